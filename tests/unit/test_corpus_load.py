"""Folders, datasets, columns, labels and splits as `load_corpus` puts them together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from training.corpus.columns import natural_order
from training.corpus.corpus import Corpus, Split
from training.corpus.load import load_corpus
from training.errors import UserError
from training.spec import DataSpec


def write_rows(path: Path, rows: list[tuple[str, Any]]) -> str:
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return str(path)


def many(counts: dict[str, int]) -> list[tuple[str, str]]:
    return [(f"{label} {row}", label) for label, count in counts.items() for row in range(count)]


def names(split: Split, corpus: Corpus) -> list[str]:
    return [corpus.label_names[label] for label in split.labels]


def test_validation_is_cut_from_train_and_no_row_is_lost(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", many({"a": 60, "b": 30, "c": 9, "single": 1}))
    test = write_rows(tmp_path / "test.jsonl", many({"a": 5, "b": 5}))
    data = DataSpec(train_file=train, test_file=test, validation_fraction=0.2)
    corpus = load_corpus(data)
    assert corpus.test is not None and len(corpus.test.ids) == 10
    assert len(corpus.validation.ids) == 20
    assert sorted(corpus.train.ids + corpus.validation.ids) == sorted(f"train:{row}" for row in range(1, 101))
    assert "single" in names(corpus.train, corpus)
    assert corpus.facts["rows_per_class"]["validation"] == {"a": 12, "b": 6, "c": 2, "single": 0}
    assert "20%" in corpus.facts["validation"] and "seed 0" in corpus.facts["validation"]
    assert load_corpus(data) == corpus


def test_a_given_validation_split_is_used_whole(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", many({"a": 6, "b": 6}))
    validation = write_rows(tmp_path / "validation.jsonl", many({"a": 2, "b": 2}))
    corpus = load_corpus(DataSpec(train_file=train, validation_file=validation))
    assert corpus.validation.ids == [f"validation:{row}" for row in range(1, 5)]
    assert len(corpus.train.ids) == 12
    assert corpus.test is None and corpus.facts["validation"] == "as given"


def test_a_validation_split_of_the_texts_of_test_is_refused(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", many({"a": 60, "b": 60}))
    rows = [(f"new {text}", label) for text, label in many({"a": 8, "b": 8})]
    test = write_rows(tmp_path / "test.jsonl", rows)
    again = write_rows(tmp_path / "again.jsonl", rows[::-1])
    part = write_rows(tmp_path / "part.jsonl", rows[2:14])
    for validation in (test, again, part):
        with pytest.raises(UserError, match="texts of validation are in test, which has 16"):
            load_corpus(DataSpec(train_file=train, validation_file=validation, test_file=test))
    overlapping = write_rows(tmp_path / "overlapping.jsonl", [*rows[:12], ("of its own", "a")])
    assert load_corpus(DataSpec(train_file=train, validation_file=overlapping, test_file=test)).test is not None


def test_parts_are_seeded_and_train_keeps_every_class(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", many({"a": 400, "b": 50, "c": 2}))
    limits = {"max_train_samples": 20, "max_validation_samples": 7, "max_test_samples": 5}
    data = DataSpec(train_file=train, test_file=train, **limits)  # type: ignore[arg-type]
    corpus = load_corpus(data)
    assert corpus.facts["num_rows"] == {"train": 20, "validation": 7, "test": 5}
    assert set(names(corpus.train, corpus)) == {"a", "b", "c"}
    assert not set(corpus.train.ids) & set(corpus.validation.ids)
    assert load_corpus(data) == corpus
    other = load_corpus(DataSpec(train_file=train, test_file=train, split_seed=1, **limits))  # type: ignore[arg-type]
    assert other.train.ids != corpus.train.ids
    with pytest.raises(UserError, match=r"max_train_samples is 2.*3 classes"):
        load_corpus(DataSpec(train_file=train, max_train_samples=2))


def test_the_drawn_rows_are_these(tmp_path: Path) -> None:
    """Pinned: a change here changes every study that sets validation aside."""
    corpus = load_corpus(DataSpec(train_file=write_rows(tmp_path / "t.jsonl", many({"a": 20, "b": 20}))))
    assert corpus.validation.ids == PINNED


PINNED = ["train:17", "train:19", "train:28", "train:32"]


def test_a_label_train_lacks_is_refused(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", many({"World": 3, "Sports": 3}))
    test = write_rows(tmp_path / "test.jsonl", [("x", "World"), ("y", "Sprots"), ("z", "Sprots"), ("w", "Other")])
    with pytest.raises(UserError) as caught:
        load_corpus(DataSpec(train_file=train, test_file=test))
    message = str(caught.value)
    for part in ("test.jsonl line 2", "'Sprots' in 2 row", "'Other'", "did you mean 'Sports'"):
        assert part in message


def test_no_row_can_be_set_aside(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", [("x", "a"), ("y", "b")])
    with pytest.raises(UserError, match=r"validation_file"):
        load_corpus(DataSpec(train_file=train))


def test_text_columns_are_joined_and_must_exist(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("title,body,label\nA,one,0\nB,,1\nC,three,0\nD,four,1\n")
    columns = {"text_column_names": ["title", "body"], "text_column_delimiter": " / "}
    corpus = load_corpus(DataSpec(train_file=str(path), test_file=str(path), **columns))  # type: ignore[arg-type]
    assert corpus.test is not None
    assert corpus.test.texts == ["A / one", "B", "C / three", "D / four"]
    with pytest.raises(UserError, match=r"'title', 'body', 'label'.*text_column_names"):
        load_corpus(DataSpec(train_file=str(path)))
    with pytest.raises(UserError, match=r"no column 'titel'; did you mean 'title'"):
        load_corpus(DataSpec(train_file=str(path), text_column_names=["titel"]))


def test_the_only_other_column_is_the_text(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("label,sentence\n0,a\n1,b\n0,c\n1,d\n")
    assert load_corpus(DataSpec(train_file=str(path))).facts["text_columns"] == ["sentence"]


def class_folders(folder: Path, counts: dict[str, int]) -> None:
    for label, count in counts.items():
        (folder / label).mkdir(parents=True)
        for row in range(count):
            (folder / label / f"{row}.txt").write_text(f"{label} text {row}")


@pytest.mark.parametrize("key", ["train_file", "dataset_name"])
def test_one_subfolder_a_class(tmp_path: Path, key: str) -> None:
    class_folders(tmp_path / "data", {"10": 4, "2": 4})
    (tmp_path / "data" / "2" / ".hidden").write_bytes(b"\xff")
    corpus = load_corpus(DataSpec(**{key: str(tmp_path / "data")}))  # type: ignore[arg-type]
    assert corpus.label_names == ["2", "10"]
    assert len(corpus.train.ids) + len(corpus.validation.ids) == 8


def test_class_folders_below_split_folders(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        class_folders(tmp_path / split, {"neg": count, "pos": count})
    (tmp_path / "train" / "urls.txt").write_text("not a text")
    corpus = load_corpus(DataSpec(dataset_name=str(tmp_path)))
    assert corpus.facts["num_rows"] == {"train": 8, "validation": 4, "test": 6}


def test_faults_of_folders(tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.txt").write_text("a")
    with pytest.raises(UserError, match=r"flat.*subfolder"):
        load_corpus(DataSpec(train_file=str(tmp_path / "flat")))
    class_folders(tmp_path / "bytes", {"a": 1, "b": 1})
    (tmp_path / "bytes" / "b" / "0.txt").write_bytes(b"ok\n\xe9")
    with pytest.raises(UserError, match=r"0\.txt.*0xe9 at offset 3"):
        load_corpus(DataSpec(train_file=str(tmp_path / "bytes")))
    class_folders(tmp_path / "hollow", {"a": 1, "b": 1})
    (tmp_path / "hollow" / "c").mkdir()
    with pytest.raises(UserError, match=r"hollow/c holds no files"):
        load_corpus(DataSpec(train_file=str(tmp_path / "hollow")))
    class_folders(tmp_path / "blank", {"a": 2, "b": 2})
    (tmp_path / "blank" / "b" / "1.txt").write_text("\n")
    with pytest.raises(UserError, match=r"b/1\.txt.*empty"):
        load_corpus(DataSpec(train_file=str(tmp_path / "blank")))


def test_saved_datasets(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["pos", "neg"])})

    def part(count: int, labels: list[int] | None = None) -> Dataset:
        content = {"text": [f"t{row}" for row in range(count)], "label": labels or [row % 2 for row in range(count)]}
        return Dataset.from_dict(content, features=features)

    part(10).save_to_disk(str(tmp_path / "one"))
    corpus = load_corpus(DataSpec(dataset_name=str(tmp_path / "one"), test_file=str(tmp_path / "one")))
    assert corpus.label_names == ["pos", "neg"]
    assert corpus.test is not None and corpus.test.labels == [0, 1] * 5

    secret = DatasetDict({"train": part(10), "validation": part(4), "test": part(3, [-1, -1, -1])})
    secret.save_to_disk(str(tmp_path / "three"))
    corpus = load_corpus(DataSpec(dataset_name=str(tmp_path / "three")))
    assert corpus.facts["num_rows"] == {"train": 10, "validation": 4}
    assert 3 in corpus.facts["removed"].values()

    DatasetDict({"train": part(4, [0, 1, -1, 1])}).save_to_disk(str(tmp_path / "gap"))
    with pytest.raises(UserError, match=r"row 3.*-1"):
        load_corpus(DataSpec(dataset_name=str(tmp_path / "gap")))
    (tmp_path / "three" / "train" / "state.json").write_text("{")
    with pytest.raises(UserError, match=r"three.*save_to_disk"):
        load_corpus(DataSpec(dataset_name=str(tmp_path / "three")))


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "t.jsonl", many({"a": 2, "b": 2}))
    for name, match in [
        (path, "train_file"),
        ("./nowhere", "does not exist"),
        ("builtin:docstring", "did you mean 'builtin:docstrings'"),
    ]:
        with pytest.raises(UserError, match=match):
            load_corpus(DataSpec(dataset_name=name))
    class_folders(tmp_path / "data", {"a": 2, "b": 2})
    with pytest.raises(UserError, match=r"dataset_config_name is 'x'.*Leave it out"):
        load_corpus(DataSpec(dataset_name=str(tmp_path / "data"), dataset_config_name="x"))


@pytest.mark.parametrize("name", ["imdb", "ag_news", "someone/something"])
def test_the_hub_out_of_reach_names_the_mend(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    import datasets

    def unreachable(*_: object) -> None:
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match=r"Couldn't reach the hub.*data\.train_file"):
        load_corpus(DataSpec(dataset_name=name))


def test_imdb_leaves_out_what_has_no_label(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})

    def part(labels: list[int]) -> Any:
        texts = [f"t{row}" for row in range(len(labels))]
        return datasets.Dataset.from_dict({"text": texts, "label": labels}, features=features)

    asked: list[str] = []

    def load_dataset(name: str, *_: object) -> Any:
        asked.append(name)
        return datasets.DatasetDict(
            {"train": part([0, 1, -1, 0, 1, 0, 1]), "test": part([0, 1]), "unsupervised": part([-1, -1])}
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    corpus = load_corpus(DataSpec(dataset_name="imdb"))
    assert asked == ["stanfordnlp/imdb"]
    ids = corpus.train.ids + corpus.validation.ids
    assert "train:3" not in ids and "train:7" in ids and len(ids) == 6
    assert corpus.facts["removed"] == {"train: rows labelled -1": 1}


def test_newsgroups_notes_what_was_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    import sklearn.datasets
    from sklearn.utils import Bunch

    calls: list[Any] = []

    def fetch(**settings: Any) -> Bunch:
        calls.append(settings)
        return Bunch(data=["a", " \n", "c", "d"], target=[0, 1, 1, 0], target_names=["alt.atheism", "sci.med"])

    monkeypatch.setattr(sklearn.datasets, "fetch_20newsgroups", fetch)
    corpus = load_corpus(DataSpec(dataset_name="20newsgroups", remove=["headers", "quotes"], validation_fraction=0.3))
    assert [call["remove"] for call in calls] == [("headers", "quotes")] * 2
    assert corpus.facts["remove"] == ["headers", "quotes"]
    assert corpus.facts["removed"] == {
        "train: posts empty without headers, quotes": 1,
        "test: posts empty without headers, quotes": 1,
    }
    assert corpus.test is not None and corpus.test.ids == ["test:1", "test:3", "test:4"]


def test_natural_order() -> None:
    assert natural_order(["10", "2", "1", "-1", "1.5"]) == ["-1", "1", "1.5", "2", "10"]
    assert natural_order(["class 10", "class 2", "b", "B"]) == ["B", "b", "class 2", "class 10"]
    assert natural_order(["a1b10", "a1b9", "a", "7"]) == ["7", "a", "a1b9", "a1b10"]
    assert natural_order(["01", "1", "1"]) == ["01", "1"]


def test_a_class_that_only_test_has_is_refused_though_the_feature_names_it(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["cat", "dog", "fish"])}
    )
    train = {"text": [f"text {row}" for row in range(20)], "label": [0, 1] * 10}
    test = {"text": ["a cat", "a fish"], "label": [0, 2]}
    splits = {name: datasets.Dataset.from_dict(rows, features) for name, rows in (("train", train), ("test", test))}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UserError, match="'fish'"):
        load_corpus(DataSpec(dataset_name=str(tmp_path / "saved")))


def test_the_answer_must_not_stand_in_the_text(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", many({"a": 5, "b": 5}))
    with pytest.raises(UserError, match="label column 'label'"):
        load_corpus(DataSpec(train_file=train, text_column_names=["text", "label"]))


@pytest.mark.parametrize(("last", "is_text"), [("Straße".encode(), True), (b"\xff\xfe", False)])
def test_bytes_are_read_as_utf8_or_refused(last: bytes, is_text: bool, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"text": [b"one", b"two", b"three", last], "label": ["a", "b", "a", "b"]}), path)
    data = DataSpec(train_file=str(path), validation_fraction=0.3)
    if is_text:
        corpus = load_corpus(data)
        assert "Straße" in corpus.train.texts + corpus.validation.texts
    else:
        with pytest.raises(UserError, match="row 4"):
            load_corpus(data)
