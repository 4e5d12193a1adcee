"""Predicted rows on their way out: CSV on standard output, or a CSV, JSONL or Parquet file.

A file is written under a temporary name and renamed when it is whole, so nobody reads half of it.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from training.disk import flush
from training.errors import UserError

EXTENSIONS = (".csv", ".jsonl", ".parquet")

Columns = dict[str, list[Any]]
"""Name -> values, all equally many; the names are the same in every call."""
Write = Callable[[Columns], None]
"""Appends rows."""


def check_output(output: Path, source: Path | None) -> None:
    """Refuse a file that cannot be written, before anything is computed for it; `source` is the input."""
    if output.suffix.lower() not in EXTENSIONS:
        raise UserError(
            f"--output {output} has the extension {output.suffix!r}. Predictions are written as "
            f"{', '.join(EXTENSIONS)}: name one."
        )
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: its folder does not exist. Make it first, or choose another.")
    if output.is_dir():
        raise UserError(f"--output {output} is a folder. Give the name of a file.")
    if source is not None and output.exists() and output.samefile(source):
        raise UserError(f"--output {output} is the input, which it would replace. Give another name.")


@contextmanager
def writing(output: Path | None, label_delimiter: str | None = None) -> Iterator[Write]:
    """Give what appends rows to `output`, or to standard output; the file stands there once all went well.

    In a CSV, lists of labels have `label_delimiter` between them, and are JSON without one.
    """
    if output is None:
        yield _csv_writer(_standard_output(), label_delimiter)
        return
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        with _file_writer(temporary, output.suffix.lower(), label_delimiter) as write:
            yield write
        flush(temporary)
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)


def _standard_output() -> TextIO:
    """Return standard output, in UTF-8 whatever the terminal's encoding."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    return sys.stdout


@contextmanager
def _file_writer(path: Path, extension: str, label_delimiter: str | None) -> Iterator[Write]:
    """Give what appends rows to an open file of that format."""
    if extension == ".parquet":
        with _parquet_writer(path) as write:
            yield write
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        yield _csv_writer(file, label_delimiter) if extension == ".csv" else _json_writer(file)


def _csv_writer(file: TextIO, label_delimiter: str | None) -> Write:
    """Return what writes CSV, the header before the first rows."""
    writer = csv.writer(file, lineterminator="\n")
    begun = False

    def cell(value: Any) -> Any:
        if not isinstance(value, list):
            return value
        return json.dumps(value, ensure_ascii=False) if label_delimiter is None else label_delimiter.join(value)

    def write(columns: Columns) -> None:
        nonlocal begun
        if not begun:
            writer.writerow(columns)
            begun = True
        writer.writerows(map(cell, row) for row in zip(*columns.values(), strict=True))
        file.flush()

    return write


def _json_writer(file: TextIO) -> Write:
    """Return what writes one JSON object a line."""

    def write(columns: Columns) -> None:
        for values in zip(*columns.values(), strict=True):
            json.dump(dict(zip(columns, values, strict=True)), file, ensure_ascii=False)
            file.write("\n")

    return write


@contextmanager
def _parquet_writer(path: Path) -> Iterator[Write]:
    """Give what writes Parquet, a row group a call; numbers and texts tell their types."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types: dict[type, Any] = {int: pa.int64(), float: pa.float64(), list: pa.list_(pa.string())}
    writer: Any = None

    def write(columns: Columns) -> None:
        nonlocal writer
        schema = pa.schema([(name, types.get(type(values[0]), pa.string())) for name, values in columns.items()])
        writer = writer or pq.ParquetWriter(path, schema)
        writer.write_table(pa.table(columns, schema=schema))

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()
