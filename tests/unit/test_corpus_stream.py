"""Rows to predict come one by one, as written; each fault names the place and the mend; memory stays bounded."""

from __future__ import annotations

import gzip
import io
import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_corpus_files import LABELS, TEXTS, write_csv, write_json, write_parquet

from training.corpus import stream
from training.corpus.stream import Row, TextColumns, listed_texts, stream_file, stream_standard_input, windows
from training.errors import UserError

TEXT = TextColumns(names=["text"], delimiter=" ")


@pytest.mark.parametrize(
    "name", ["t.csv", "t.csv.gz", "t.tsv", "t.tsv.gz", "t.jsonl", "t.jsonl.gz", "t.parquet", "T.CSV"]
)
def test_every_format_keeps_texts_as_written(tmp_path: Path, name: str) -> None:
    rows = list(zip(TEXTS, LABELS, strict=True))
    path = tmp_path / name
    if ".json" in name:
        write_json(path, rows)
    elif name.endswith(".parquet"):
        write_parquet(path, rows)
    else:
        write_csv(path, rows, "\t" if ".tsv" in name else ",")
    read = list(stream_file(path, TEXT))
    assert [row.text for row in read] == TEXTS
    assert [row.number for row in read] == list(range(1, len(TEXTS) + 1))
    assert {row.id for row in read} == {None}


def test_ids_and_columns(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    rows = [{"id": 7, "title": "a", "body": "b"}, {"id": "x", "title": None, "body": "c"}, {"title": "d", "n": 1}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = list(stream_file(path, TextColumns(names=["title", "body"], delimiter=" / ")))
    assert [(row.id, row.text) for row in read] == [("7", "a / b"), ("x", "c"), (None, "d")]


def test_marks_blank_lines_and_returns_are_no_data(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b'\xef\xbb\xbftext,id\n\na,1\r\n\n"b\r\nb",2\rc,3\rd,4')
    assert [(row.text, row.id) for row in stream_file(path, TEXT)] == [
        ("a", "1"), ("b\r\nb", "2"), ("c", "3"), ("d", "4"),
    ]  # fmt: skip


def fault(read: Callable[[], Iterator[Row]]) -> str:
    with pytest.raises(UserError) as caught:
        list(read())
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("t.csv", b"", ["no rows"]),
        ("t.csv", b"text,label\n", ["no rows"]),
        ("t.jsonl", b"\n\n", ["no rows"]),
        ("t.csv", b"headline\na\n", ["'text'", "'headline'", "trained on"]),
        ("t.csv", b"texts\na\n", ["did you mean 'texts'"]),
        ("t.jsonl", b'{"text": "a"}\n{"body": "b"}\n', ["line 2", "'text'", "'body'"]),
        ("t.csv", b'text,label\na,0\n" ",1\n', ["line 3", "empty"]),
        ("t.csv", b"text,label\na,0\nb\nc,1\n", ["line 3", "1", "2"]),
        ("t.csv", b'text,label\na,0\n"b,1\nc,0\n', ["line 3"]),
        ("t.csv", b"text,label\na,0\nb\xe9,1\n", ["line 3", "0xe9", "offset 16", "iconv"]),
        ("t.csv", b"\xef\xbb\xbftext\n\xe9\n", ["line 2", "offset 8"]),
        ("t.csv", b"\xff\xfet\x00e\x00", ["0xff", "offset 0", "UTF-16"]),
        ("t.jsonl", b'{"text": "a", "label": 0}\n\n{"text": \n', ["line 3"]),
        ("t.jsonl", b'{"text": "a", "label": 0}\n["b", 1]\n', ["line 2"]),
        ("t.jsonl", b'{"text": "\\ud800"}\n', ["line 1", "half a character"]),
        ("t.csv.gz", b"text,label\na,0\n", ["gzip"]),
        ("t.csv.gz", gzip.compress(b"text,label\n" + b"a,0\nb,1\n" * 99, mtime=0)[:-12], ["gzip"]),
        ("t.parquet", b"PAR1 and then nothing", ["Parquet"]),
        ("t.json", b"[]", [".json", ".jsonl"]),
        ("t.txt", b"x", [".csv", "--input -"]),
    ],
)  # fmt: skip
def test_a_fault_is_named_with_the_place(tmp_path: Path, name: str, content: bytes, parts: list[str]) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    message = fault(lambda: stream_file(path, TEXT))
    for part in [name, *parts]:
        assert part in message


def test_a_missing_file_gets_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_text("text\na\n")
    assert "did you mean 'texts.csv'" in fault(lambda: stream_file(tmp_path / "text.csv", TEXT))


def test_a_column_missing_from_the_first_record_is_refused_though_others_are_there(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"title": "a", "bodi": "b"}\n')
    message = fault(lambda: stream_file(path, TextColumns(names=["title", "body"], delimiter=" ")))
    assert "'body'; did you mean 'bodi'?" in message


def test_standard_input_holds_texts_or_records() -> None:
    plain = stream_standard_input(io.BytesIO("\ufeffa, b\r\n{c\n".encode()), TEXT)
    assert [row.text for row in plain] == ["a, b", "{c"]
    columns = TextColumns(names=["title", "body"], delimiter="|")
    records = stream_standard_input(io.BytesIO(b'{"title": "a", "body": "b", "id": 3}\n\n'), columns)
    assert [(row.text, row.id) for row in records] == [("a|b", "3")]


@pytest.mark.parametrize(
    ("content", "part"),
    [(b"", "no rows"), (b"a\n\nb\n", "line 2: the text"), (b'{"text": "a"}\nb\n', "line 2: not JSON")],
)
def test_a_fault_in_standard_input_names_the_line(content: bytes, part: str) -> None:
    message = fault(lambda: stream_standard_input(io.BytesIO(content), TEXT))
    assert message.startswith("standard input") and part in message


def test_listed_texts() -> None:
    assert [(row.number, row.text) for row in listed_texts(["a", "b"])] == [(1, "a"), (2, "b")]
    assert "text 2" in fault(lambda: listed_texts(["a", " "]))


def test_a_line_without_end_is_refused_before_it_fills_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MAX_LINE_BYTES", 1000)
    assert "line 2: longer than" in fault(lambda: stream_standard_input(io.BytesIO(b"a\n" + b"b" * 2000), TEXT))


def test_windows_end_with_the_row_that_reaches_a_limit() -> None:
    rows = listed_texts(["a", "b" * 10, "c", "d", "e", "f"])
    cut = [[row.text[0] for row in window] for window in windows(rows, max_rows=3, max_characters=10)]
    assert cut == [["a", "b"], ["c", "d", "e"], ["f"]]


class Endless(io.RawIOBase):
    """Lines made one at a time; knows how many were asked for."""

    def __init__(self, lines: int) -> None:
        super().__init__()
        self.lines = lines
        self.read_lines = 0

    def readline(self, size: int | None = -1) -> bytes:
        if self.read_lines == self.lines:
            return b""
        self.read_lines += 1
        return b'{"text": "%099d", "id": %d}\n' % (self.read_lines, self.read_lines)


def test_no_more_than_a_window_is_held_of_an_input_of_any_size() -> None:
    lines, size = 60_000, 500
    source = Endless(lines)
    tracemalloc.start()
    done = 0
    for window in windows(stream_standard_input(source, TEXT), max_rows=size, max_characters=1 << 20):  # type: ignore[arg-type]
        done += len(window)
        assert source.read_lines == done and len(window) <= size
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert done == lines
    # Two windows at most, of about 400 bytes a row; all rows together are 24 MB.
    assert peak < 2 * size * 1000
