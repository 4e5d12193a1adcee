"""Each defect is planted alone in small files, and it alone is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.check import check_all, targets
from launcher.check_text import markdown_section, terminal_text
from training.corpus.characters import shown
from training.corpus.quality import DataCheck, check_data
from training.errors import UserError
from training.spec import DataSpec

WORDS = [
    "river", "stone", "cloud", "engine", "paper", "garden", "winter", "copper", "music", "harbour", "lantern", "valley",
]  # fmt: skip


def texts(count: int, first: int = 0) -> list[str]:
    """Return texts without a word in common with their neighbours in the same place."""
    return [
        " ".join(f"{word}{(first + number) * 31 + place}" for place, word in enumerate(WORDS))
        for number in range(first, first + count)
    ]


def rows(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Return sound rows of two classes."""
    return [{"text": text, "label": ("a", "b")[at % 2]} for at, text in enumerate(texts(count, first))]


def write(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def check(folder: Path, train: list[dict[str, Any]], test: list[dict[str, Any]] | None = None) -> DataCheck:
    files = {"train_file": write(folder / "train.jsonl", train)}
    if test is not None:
        files["test_file"] = write(folder / "test.jsonl", test)
    return check_data(DataSpec(**files))  # type: ignore[arg-type]


def found(result: DataCheck) -> dict[str, tuple[str, int, str]]:
    """Return code -> split, count, first row."""
    return {
        item.code: (item.split, item.count, item.examples[0]["row"] if item.examples else "")
        for item in result.findings
    }


def test_sound_data_has_no_finding(tmp_path: Path) -> None:
    result = check(tmp_path, rows(40), rows(20, first=40))
    assert result.findings == []
    assert result.splits["train"]["rows_per_class"] == {"a": 20, "b": 20}
    assert result.splits["test"]["words"]["p50"] == len(WORDS)
    assert result.overlaps == [
        {"split": "test", "other_split": "train", "exact": 0, "identical": 0, "distinct": 0, "near": 0}
    ]


@pytest.mark.parametrize(
    ("code", "level", "text"),
    [
        ("empty_text", "error", " \t\u00a0"),
        ("half_characters", "error", "half \ud83d a face"),
        ("replacement_characters", "warning", "a caf\ufffd in the old town"),
        ("mojibake", "warning", "a cafÃ© in the old town"),
        ("mojibake", "warning", "it â€™s the quote of another time"),
        ("nul_characters", "warning", "cut\0short"),
        ("control_characters", "warning", "a bell \x07 rings"),
        ("html", "info", "great film<br />really"),
        ("html", "info", "shares of A &amp; B fell"),
        ("message_parts", "info", "From: me@example.org\nSubject: hello\n\nWhere is it?"),
        ("message_parts", "info", "He wrote:\n> where is it?\nHere."),
        ("long_outliers", "info", "quite long " * 2000),
    ],
)
def test_a_planted_text_is_found_and_nothing_else(tmp_path: Path, code: str, level: str, text: str) -> None:
    train = rows(40)
    train[7]["text"] = text
    result = check(tmp_path, train)
    assert found(result) == {code: ("train", 1, "train:8")}
    assert [(item.level, item.share) for item in result.findings] == [(level, 1 / 40)]
    assert result.findings[0].examples[0]["place"] == "line 8"
    json.dumps(result.to_dict(), ensure_ascii=False).encode()


@pytest.mark.parametrize(
    "text",
    [
        "À propos: «CAFÉ», naïve São Paulo, ÂME", "if a < b and c > d; then", "Привет, мир", "tabs\tand\nlines",
        "x <3 you", ">>> import this\n", "<p#=x>;",
    ],
)  # fmt: skip
def test_what_is_only_unusual_is_no_defect(tmp_path: Path, text: str) -> None:
    train = rows(40)
    train[7]["text"] = text
    assert check(tmp_path, train).findings == []


def test_copies_of_one_split_are_counted_beyond_the_first(tmp_path: Path) -> None:
    train = rows(40)
    train[9]["text"] = train[5]["text"].upper() + "  "
    train[11]["text"] = train[5]["text"]
    result = check(tmp_path, train)
    assert found(result) == {"duplicate_text": ("train", 2, "train:10")}
    assert result.findings[0].examples[0]["note"] == "as train:6"


def test_texts_of_train_in_test_are_found_the_same_and_near(tmp_path: Path) -> None:
    train, test = rows(40), rows(20, first=40)
    test[2]["text"] = train[4]["text"].title()
    test[3]["text"] = train[5]["text"] + " indeed"
    result = check(tmp_path, train, test)
    assert found(result) == {"overlap": ("test", 1, "test:3"), "near_overlap": ("test", 1, "test:4")}
    assert "train:5, line 5, label a" in result.findings[0].examples[0]["note"]
    assert "train:6" in result.findings[1].examples[0]["note"]


def test_chinese_texts_are_near_by_their_characters(tmp_path: Path) -> None:
    train, test = rows(40), rows(20, first=40)
    train[4]["text"] = "四川游客张某带着六名女子在三亚沙滩烧烤被撒沙这事你怎么看"
    test[2]["text"] = train[4]["text"] + "呢？"
    assert found(check(tmp_path, train, test)) == {"near_overlap": ("test", 1, "test:3")}


def test_one_text_with_two_labels_is_found_within_and_across_splits(tmp_path: Path) -> None:
    train, test = rows(40), rows(20, first=40)
    train[9]["text"] = train[4]["text"]  # a, then b
    test[1]["text"] = train[6]["text"]
    conflicts = [item for item in check(tmp_path, train, test).findings if item.code == "conflicting_labels"]
    assert [(item.split, item.count) for item in conflicts] == [("train", 1), ("test", 1)]
    assert conflicts[1].examples[0]["note"] == "a in train:7; b in test:2"


def test_labels_missing_and_unknown_are_found_at_once(tmp_path: Path) -> None:
    train, test = rows(40), rows(20, first=40)
    train[3]["label"] = None
    test[5]["label"] = "aa"
    test[6]["text"] = ""
    result = check(tmp_path, train, test)
    assert found(result) == {
        "missing_label": ("train", 1, "train:4"), "unknown_label": ("test", 1, "test:6"),
        "empty_text": ("test", 1, "test:7"),
    }  # fmt: skip
    assert result.num("error") == 3
    assert (
        "did you mean 'a'" in next(item for item in result.findings if item.code == "unknown_label").examples[0]["note"]
    )


def test_unequal_classes_are_found(tmp_path: Path) -> None:
    train = [{**row, "label": "a"} for row in rows(40)]
    assert found(check(tmp_path, train)) == {"single_class": ("train", 40, "")}
    train[0]["label"] = "rare"
    result = check(tmp_path, train, [{**row, "label": "a"} for row in rows(20, first=40)])
    assert set(found(result)) == {"rare_class", "imbalance", "missing_class"}
    assert result.splits["train"]["imbalance_ratio"] == 39


class LetterTokenizer:
    """A token a character."""

    def __call__(self, batch: list[str] | str, **_: Any) -> dict[str, Any]:
        return {"input_ids": [list(map(ord, text)) for text in batch] if isinstance(batch, list) else [ord(batch)]}


def test_what_truncation_cuts_is_counted_in_tokens(tmp_path: Path) -> None:
    train = [{"text": letter * 10, "label": "ab"[at % 2]} for at, letter in enumerate("abcdefghijklmnopqrstuvwx")]
    train[3]["text"] = "d" * 50
    file = write(tmp_path / "train.jsonl", train)
    result = check_data(DataSpec(train_file=file, max_seq_length=20), tokenizer=LetterTokenizer(), tokenizer_name="x")
    assert result.splits["train"]["cut"] == {"share_of_texts": 1 / 24, "share_of_tokens": 30 / 280}
    assert result.splits["train"]["tokens"]["max"] == 50
    (cut,) = result.findings
    assert (cut.code, cut.level, cut.count, cut.examples[0]["note"]) == ("cut_texts", "warning", 1, "50 tokens")
    assert "the first 20 tokens; 10.7% of the split's tokens are lost" in cut.message
    assert "tokens of x; read of a long text: the first 20 tokens" in terminal_text("t", result.to_dict())


def test_of_chunks_only_what_no_chunk_holds_is_cut(tmp_path: Path) -> None:
    train = [{"text": letter * 10, "label": "ab"[at % 2]} for at, letter in enumerate("abcdefghijklmnopqrstuvwx")]
    train[3]["text"] = "d" * 50

    def cut(**chunks: Any) -> dict[str, float]:
        data = DataSpec(train_file=file, max_seq_length=20, long_text="chunk", chunk_overlap=5, **chunks)
        result = check_data(data, tokenizer=LetterTokenizer(), tokenizer_name="x")
        assert [finding.code for finding in result.findings] == (["cut_texts"] if "max_chunks" in chunks else [])
        return result.splits["train"]["cut"] or {}

    file = write(tmp_path / "train.jsonl", train)
    assert cut() == {"share_of_texts": 0.0, "share_of_tokens": 0.0}  # 20 + 15 + 15
    assert cut(max_chunks=2) == {"share_of_texts": 1 / 24, "share_of_tokens": 15 / 280}


def test_the_command_prints_and_its_status_says_whether_training_would_refuse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "train.jsonl", rows(40))
    assert check_all(file, {}, as_json=False) == 0
    assert "Nothing is wrong." in capsys.readouterr().out
    bad = rows(40)
    bad[2]["text"] = ""
    file = write(tmp_path / "bad.jsonl", bad)
    assert check_all(file, {}, as_json=True) == 1
    (item,) = json.loads(capsys.readouterr().out)["data_checks"]
    assert item["check"]["findings"][0]["code"] == "empty_text"
    with pytest.raises(UserError, match=r"nowhere.csv does not exist"):
        check_all(str(tmp_path / "nowhere.csv"), {}, as_json=False)
    with pytest.raises(UserError, match="no column 'topic'"):
        check_all(file, {"label_column_name": "topic"}, as_json=False)


def test_a_study_is_checked_once_for_each_of_its_data(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / f"{name}.jsonl", rows(40))
    study = tmp_path / "study.yaml"
    study.write_text(
        "sweep:\n  jobs:\n    - data: {train_file: one.jsonl, max_seq_length: 32}\n"
        "    - data: {train_file: two.jsonl}\n    - data: {train_file: one.jsonl, max_seq_length: 64}\n"
    )
    assert [(title, data.max_seq_length) for title, data, _ in targets(str(study), {})] == [
        ("one.jsonl", 32), ("two.jsonl", 512),
    ]  # fmt: skip
    with pytest.raises(UserError, match="which sets label_column_name itself"):
        targets(str(study), {"label_column_name": "x"})


def test_the_report_shows_findings_and_escapes_what_comes_from_the_data(tmp_path: Path) -> None:
    train = [{**row, "label": "<b>|x" if at else "y"} for at, row in enumerate(rows(40))]
    section = markdown_section([{"data": "train.jsonl", "check": check(tmp_path, train).to_dict()}])
    assert "**warning** train: 39 of 40 rows are in the largest class" in section
    assert "\\<b\\>\\|x" in section


def test_what_is_shown_of_a_text_is_one_safe_line() -> None:
    assert shown("a\x1b[31m\nb\ud800\0\x1c") == "a\\x1b[31m b\\ud800\\x00\\x1c"
    assert shown("x" * 500).endswith("…")
    assert "here" in shown("x" * 500 + "here" + "y" * 500, around=500)
