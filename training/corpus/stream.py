"""Texts to predict, row by row: a file of any size is read without ever being held in memory.

CSV, TSV, JSONL (each also .gz), Parquet, standard input, or texts given by hand. Faults name file, line, value and
mend, in the words `training.corpus.files` has for the same faults.
"""

from __future__ import annotations

import gzip
import io
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from training.corpus.columns import cell_text, join_text, require_unicode
from training.corpus.files import BYTE_ORDER_MARK, naming_faults, not_utf8, parse_csv, parse_json_lines
from training.errors import UserError, listed, nearest

EXTENSIONS = ".csv, .tsv, .jsonl (each also .gz) and .parquet"
STANDARD_INPUT = "standard input"
MAX_LINE_BYTES = 1 << 26
"""A longer one is no line of texts, and would fill the memory."""
PARQUET_ROWS = 1024
"""Rows turned into Python values at a time."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One text of the input."""

    number: int
    """From 1, in the order of the input."""
    id: str | None
    """What the input's own column `id` holds; None where it has none."""
    text: str


@dataclass(frozen=True, kw_only=True)
class TextColumns:
    """What a job's texts are made of."""

    names: list[str]
    delimiter: str
    """Between the columns."""


def stream_file(path: Path, columns: TextColumns) -> Iterator[Row]:
    """Yield the rows of a file; the extension says the format. Raises UserError."""
    if not path.exists():
        beside = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"input {path} does not exist{nearest(path.name, beside) or '. Check the path.'}")
    compressed = path.suffix.lower() == ".gz"
    extension = Path(path.stem).suffix.lower() if compressed else path.suffix.lower()
    if extension == ".parquet" and not compressed:
        rows = _rows(str(path), _parquet_records(path), columns)
    elif extension in (".csv", ".tsv", ".jsonl"):
        rows = _text_file_rows(path, extension, compressed, columns)
    else:
        raise UserError(
            f"input {path} has the extension {path.suffix!r}. Rows are read from {EXTENSIONS}: convert it, "
            "or pass a file of one text a line as --input - < FILE."
        )
    return _at_least_one(rows, str(path))


def stream_standard_input(stream: BinaryIO, columns: TextColumns) -> Iterator[Row]:
    """Yield a row a line: JSON lines if the first line begins with `{`, else each line is a text."""
    lines = _decoded_lines(stream, STANDARD_INPUT)
    beginning = list(itertools.islice(lines, 1))
    lines = itertools.chain(beginning, lines)
    if beginning and beginning[0].lstrip().startswith("{"):
        rows = _rows(STANDARD_INPUT, _places(parse_json_lines(STANDARD_INPUT, lines)), columns)
    else:
        records = ((f"line {number}", {"text": line.rstrip("\r\n")}) for number, line in enumerate(lines, start=1))
        rows = _rows(STANDARD_INPUT, records, TextColumns(names=["text"], delimiter=""))
    return _at_least_one(rows, STANDARD_INPUT)


def listed_texts(texts: list[str]) -> Iterator[Row]:
    """Yield texts given one by one on the command line."""
    records = ((f"text {number}", {"text": text}) for number, text in enumerate(texts, start=1))
    return _rows("--text", records, TextColumns(names=["text"], delimiter=""))


def windows(rows: Iterable[Row], *, max_rows: int, max_characters: int) -> Iterator[list[Row]]:
    """Yield consecutive rows in lists; a list ends with the row that reaches either limit."""
    window: list[Row] = []
    room = max_characters
    for row in rows:
        window.append(row)
        room -= len(row.text)
        if len(window) >= max_rows or room <= 0:
            yield window
            window, room = [], max_characters
    if window:
        yield window


Record = tuple[str, Mapping[str, Any]]
"""Where a row stands ("line 7"), and its cells by column."""


def _rows(source: str, records: Iterable[Record], columns: TextColumns) -> Iterator[Row]:
    """Turn records into rows, each checked.

    The first record must hold every text column; a later one of a JSONL file may leave out what is missing.
    """
    for number, (place, record) in enumerate(records, start=1):
        where = f"{source}, {place}"
        present = [name in record for name in columns.names]
        if not (all(present) if number == 1 else any(present)):
            raise _no_column(where, columns.names, list(record))
        text = join_text((record.get(name) for name in columns.names), columns.delimiter)
        if not text.strip():
            raise UserError(f"{where}: the text ({', '.join(columns.names)}) is empty. Remove the row or fill it.")
        if not text.isascii():
            require_unicode(text, where)
        identity = record.get("id")
        yield Row(number=number, id=None if identity is None else cell_text(identity), text=text)


def _no_column(where: str, wanted: list[str], present: list[str]) -> UserError:
    """Say which text column is not there."""
    missing = next(name for name in wanted if name not in present)
    hint = nearest(missing, present) or "."
    return UserError(
        f"{where}: no column {missing!r}{hint} The columns are {listed(present) or 'none'}. The job was "
        f"trained on {', '.join(map(repr, wanted))}: name them so (a CSV file's first line names its columns)."
    )


def _at_least_one(rows: Iterator[Row], source: str) -> Iterator[Row]:
    """Refuse an input without rows."""
    first = next(rows, None)
    if first is None:
        raise UserError(f"{source} holds no rows. Give at least one text.")
    yield first
    yield from rows


def _text_file_rows(path: Path, extension: str, compressed: bool, columns: TextColumns) -> Iterator[Row]:
    """Yield the rows of a CSV, TSV or JSONL file, which is open only as long."""
    with naming_faults(path), gzip.open(path) if compressed else path.open("rb") as stream:
        lines = _decoded_lines(stream, str(path))
        if extension == ".jsonl":
            records = _places(parse_json_lines(str(path), lines))
        else:
            records = _csv_records(path, lines, "," if extension == ".csv" else "\t")
        yield from _rows(str(path), records, columns)


def _csv_records(path: Path, lines: Iterator[str], delimiter: str) -> Iterator[Record]:
    """Yield the rows of a CSV by the names of its header."""
    parsed = parse_csv(str(path), itertools.chain.from_iterable(map(_cut_at_returns, lines)), delimiter)
    _, header = next(parsed, (1, []))
    for line, fields in parsed:
        yield f"line {line}", dict(zip(header, fields, strict=True))


def _cut_at_returns(line: str) -> Iterable[str]:
    """Cut a line at carriage returns within it, which some programs end their lines with."""
    within = "\r" in line.removesuffix("\n").removesuffix("\r")
    return io.StringIO(line, newline="") if within else [line]


def _places(parsed: Iterator[tuple[int, dict[str, Any]]]) -> Iterator[Record]:
    """Name the lines."""
    return ((f"line {line}", record) for line, record in parsed)


def _parquet_records(path: Path) -> Iterator[Record]:
    """Yield the rows of a Parquet file; one of its row groups is in memory at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                for record in batch.to_pylist():
                    number += 1
                    yield f"row {number}", record
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise UserError(f"{path} is not UTF-8: byte {byte:#04x} in a text. Write it anew.") from None
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"input {path} is not a whole Parquet file: {reason} Copy or write it again.") from None


def _decoded_lines(stream: BinaryIO | io.BufferedIOBase, source: str) -> Iterator[str]:
    """Yield the lines of a byte stream with their ends, as text without a byte order mark."""
    offset = 0
    beginning = b""
    for number in itertools.count(1):
        raw = stream.readline(MAX_LINE_BYTES + 1)
        if not raw:
            return
        if len(raw) > MAX_LINE_BYTES:
            raise UserError(f"{source}, line {number}: longer than {MAX_LINE_BYTES >> 20} MiB. Give one row a line.")
        if number == 1:
            beginning = raw[:2]
        mark = len(BYTE_ORDER_MARK) if number == 1 and raw.startswith(BYTE_ORDER_MARK) else 0
        try:
            line = raw[mark:].decode()
        except UnicodeDecodeError as error:
            place = offset + mark + error.start
            raise not_utf8(source, error.object[error.start], place, number, beginning) from None
        yield line
        offset += len(raw)
