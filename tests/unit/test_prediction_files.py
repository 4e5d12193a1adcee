"""Predictions reach their file whole or not at all, in every format the same."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from training.errors import UserError
from training.prediction_files import Columns, check_output, writing

FIRST: Columns = {"row": [1, 2], "id": ["01", None], "prediction": ["a, b", "é"], "probability": [0.25, 1e-9]}
SECOND: Columns = {"row": [3], "id": [None], "prediction": ['say "x"'], "probability": [1.0]}
ROWS = [
    {"row": 1, "id": "01", "prediction": "a, b", "probability": 0.25},
    {"row": 2, "id": None, "prediction": "é", "probability": 1e-9},
    {"row": 3, "id": None, "prediction": 'say "x"', "probability": 1.0},
]


def write(output: Path | None) -> None:
    with writing(output) as add:
        add(FIRST)
        add(SECOND)


def test_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "p.csv")
    write(None)
    text = (tmp_path / "p.csv").read_text(encoding="utf-8")
    assert text == capsys.readouterr().out
    read = list(csv.DictReader(text.splitlines()))
    assert [row["prediction"] for row in read] == [row["prediction"] for row in ROWS]
    assert [float(row["probability"]) for row in read] == [row["probability"] for row in ROWS]
    assert [row["id"] for row in read] == ["01", "", ""]


def test_jsonl(tmp_path: Path) -> None:
    write(tmp_path / "p.jsonl")
    assert [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()] == ROWS


def test_parquet(tmp_path: Path) -> None:
    write(tmp_path / "p.parquet")
    assert pq.read_table(tmp_path / "p.parquet").to_pylist() == ROWS


@pytest.mark.parametrize("name", ["p.csv", "p.jsonl", "p.parquet"])
def test_what_was_there_stays_until_all_is_written(tmp_path: Path, name: str) -> None:
    output = tmp_path / name
    output.write_text("old")
    with pytest.raises(RuntimeError), writing(output) as add:
        add(FIRST)
        assert output.read_text() == "old"
        raise RuntimeError
    assert output.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == [name]
    write(output)
    assert output.read_bytes() != b"old"


def test_an_output_that_cannot_be_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("text\na\n")
    (tmp_path / "d.csv").mkdir()
    for name, word in (("p.xlsx", ".parquet"), ("no/p.csv", "folder"), ("d.csv", "folder"), ("in.csv", "input")):
        with pytest.raises(UserError, match=word):
            check_output(tmp_path / name, source)
    check_output(tmp_path / "p.csv", source)
