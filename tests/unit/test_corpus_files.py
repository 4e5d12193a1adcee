"""Each file format keeps what was written, and each fault names the file, the place and the mend."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from training.corpus.load import load_corpus
from training.errors import UserError
from training.spec import DataSpec

TEXTS = ["NA", "null", "1e3", "01", 'a "quoted", text', "two\nlines", "ÿ é 字", "x" * 200_000]
LABELS = ["0", "NA", "null", "01", "0", "NA", "null", "01"]


def write_csv(path: Path, rows: list[tuple[str, str]], delimiter: str = ",") -> Path:
    def quote(value: str) -> str:
        return '"' + value.replace('"', '""') + '"'

    lines = [delimiter.join(("text", "label")), *(delimiter.join(map(quote, row)) for row in rows)]
    content = ("\r\n".join(lines) + "\r\n").encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_json(path: Path, rows: list[tuple[str, str]]) -> Path:
    records = [{"text": text, "label": label} for text, label in rows]
    lines = ".jsonl" in path.name
    text = "\n".join(json.dumps(record) for record in records) + "\n\n" if lines else json.dumps(records)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def write_parquet(path: Path, rows: list[tuple[str, str]]) -> Path:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"text": [text for text, _ in rows], "label": [label for _, label in rows]})
    pyarrow.parquet.write_table(table, path)
    return path


def load(path: Path, **settings: object) -> object:
    return load_corpus(DataSpec(train_file=str(path), **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", ["t.csv", "t.csv.gz", "t.tsv", "t.tsv.gz", "t.json", "t.json.gz", "t.jsonl", "t.jsonl.gz", "t.parquet"]
)
def test_every_format_keeps_values_as_written(tmp_path: Path, name: str) -> None:
    rows = list(zip(TEXTS, LABELS, strict=True))
    path = tmp_path / name
    if ".json" in name:
        write_json(path, rows)
    elif name.endswith(".parquet"):
        write_parquet(path, rows)
    else:
        write_csv(path, rows, "\t" if ".tsv" in name else ",")
    # The same file as test, which is never divided, shows every row in its order.
    corpus = load_corpus(DataSpec(train_file=str(path), test_file=str(path)))
    assert corpus.test is not None
    assert corpus.test.texts == TEXTS
    assert [corpus.label_names[label] for label in corpus.test.labels] == LABELS
    assert corpus.test.ids == [f"test:{row}" for row in range(1, 9)]
    assert corpus.facts["num_texts_in_train_and_test"] == len(TEXTS)


def test_byte_order_mark_and_blank_lines_are_no_data(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xef\xbb\xbftext,label\n\na,0\n\nb,1\nc,0\nd,1\n\n")
    corpus = load_corpus(DataSpec(train_file=str(path), test_file=str(path)))
    assert corpus.test is not None
    assert corpus.test.texts == ["a", "b", "c", "d"]


def fault(tmp_path: Path, name: str, content: bytes, **settings: object) -> str:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load(path, **settings)
    message = str(caught.value)
    assert name in message
    return message


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("t.csv", b"", ["empty"]),
        ("t.csv", b" \n\n", ["empty"]),
        ("t.csv", b"text,label\n", ["no rows"]),
        ("t.jsonl", b"\n\n", ["empty"]),
        ("t.json", b"[]", ["no rows"]),
        ("t.csv", b"text,label\na,0\nb\nc,1\n", ["line 3", "1", "2"]),
        ("t.csv", b"text,label\na,0\nb,1,2\n", ["line 3", "3", "2"]),
        ("t.csv", b'text,label\n"a\nb",0\nc,1,2\n', ["line 4"]),
        ("t.csv", b'text,label\na,0\n"b,1\nc,0\n', ["line 3"]),
        ("t.csv", b"text,label,text\na,0,b\n", ["'text'", "line 1"]),
        ("t.csv", b"text,label\na,0\nb\xe9,1\n", ["line 3", "0xe9", "offset 16", "iconv"]),
        ("t.csv", b"\xff\xfet\x00e\x00", ["0xff", "offset 0", "UTF-16"]),
        ("t.json", b'[{"text": "a", "label": 0},\n {"text": }]', ["line 2"]),
        ("t.json", b'"text"', ["list of records"]),
        ("t.json", b'[{"text": "a", "label": 0}, 7]', ["row 2", "7"]),
        ("t.jsonl", b'{"text": "a", "label": 0}\n\n{"text": \n', ["line 3"]),
        ("t.jsonl", b'{"text": "a", "label": 0}\n["b", 1]\n', ["line 2"]),
        ("t.csv.gz", b"text,label\na,0\n", ["gzip"]),
        ("t.csv.gz", gzip.compress(b"text,label\n" + b"a,0\nb,1\n" * 99, mtime=0)[:-12], ["gzip"]),
        ("t.parquet", b"PAR1 and then nothing", ["Parquet"]),
        ("t.parquet", b"", ["Parquet"]),
        ("t.xlsx", b"x", [".xlsx", ".csv"]),
        ("text", b"x", [".csv"]),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_named_with_the_place(
    tmp_path: Path, name: str, content: bytes, parts: list[str]
) -> None:
    message = fault(tmp_path, name, content)
    for part in parts:
        assert part in message.removeprefix(str(tmp_path))


def test_json_may_hold_one_record_a_line(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_bytes(b'{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n{"text": "c", "label": 1}\n')
    assert load_corpus(DataSpec(train_file=str(path))).label_names == ["0", "1"]


def test_a_missing_file_names_the_one_beside_it(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", [("a", "0"), ("b", "1")])
    with pytest.raises(UserError, match=r"trian\.csv does not exist.*train\.csv"):
        load(tmp_path / "trian.csv")


def test_json_labels_become_names(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    labels = [10, 2, 2.0, "2", True, False, 0.5, 10.0]
    path.write_text("".join(json.dumps({"text": f"t{row}", "label": label}) + "\n" for row, label in enumerate(labels)))
    corpus = load_corpus(DataSpec(train_file=str(path), test_file=str(path)))
    assert corpus.test is not None
    assert [corpus.label_names[label] for label in corpus.test.labels] == [
        "10", "2", "2", "2", "true", "false", "0.5", "10",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ('{"text": "a", "label": "x"}\n{"text": "b"}\n', ["line 2", "label", "None"]),
        ('{"text": "a", "label": "x"}\n{"text": "b", "label": null}\n', ["line 2", "None"]),
        ('{"text": "a", "label": 1.0}\n{"text": "b", "label": NaN}\n{"text": "c", "label": NaN}',
         ["line 2", "nan", "1 more row)"]),
        ('{"text": "a", "label": ""}\n{"text": "b", "label": "x"}\n', ["line 1", "''"]),
        ('{"text": "a", "label": [1]}\n{"text": "b", "label": 2}\n', ["line 2", "no list of labels"]),
        ('{"text": "a", "label": 1}\n{"text": " ", "label": 2}\n{"text": null, "label": 2}\n',
         ["line 2", "empty", "1 more row)"]),
        ('{"text": "a", "label": 1}\n{"text": "b\\ud83d", "label": 2}\n', ["line 2", "ud83d"]),
        ('{"text": "a", "label": 1}\n{"text": "b", "label": 1}\n', ["'1'", "two classes"]),
        ('{"txet": "a", "label": 1, "n": 1}\n', ["'text'", "txet"]),
        ('{"text": "a", "lable": 1}\n', ["'label'", "did you mean 'lable'"]),
    ],
)  # fmt: skip
def test_a_bad_row_is_named(tmp_path: Path, rows: str, parts: list[str]) -> None:
    message = fault(tmp_path, "t.jsonl", rows.encode())
    for part in parts:
        assert part in message


def test_a_csv_row_is_named_by_its_line(tmp_path: Path) -> None:
    assert "line 4" in fault(tmp_path, "t.csv", b'text,label\n"a\nb",0\n,1\n')
    assert "line 3" in fault(tmp_path, "t.csv", b"text,label\na,0\nb,\n")


def test_parquet_of_datasets_keeps_class_names_and_their_order(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "mid", "pos"])})
    data = Dataset.from_dict({"text": list("abcdef"), "label": [2, 0, 1, 2, 0, 1]}, features=features)
    data.to_parquet(tmp_path / "t.parquet")
    corpus = load_corpus(DataSpec(train_file=str(tmp_path / "t.parquet"), test_file=str(tmp_path / "t.parquet")))
    assert corpus.label_names == ["neg", "mid", "pos"]
    assert corpus.test is not None and corpus.test.labels == [2, 0, 1, 2, 0, 1]


def test_the_index_of_a_pandas_frame_is_no_text(tmp_path: Path) -> None:
    import pandas

    frame = pandas.DataFrame({"sentence": list("abcd"), "label": [0, 1, 0, 1]}, index=[5, 6, 8, 9])
    frame.to_parquet(tmp_path / "t.parquet")
    corpus = load_corpus(DataSpec(train_file=str(tmp_path / "t.parquet"), validation_fraction=0.5))
    assert corpus.facts["text_columns"] == ["sentence"]
