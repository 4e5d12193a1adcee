"""CSV, TSV, JSON, JSONL (each also .gz) and Parquet files become a `Table`, each value exactly as written.

No guessing of types: in a CSV "NA", "01" and "1e3" stay these strings. Every fault names the file and the line or row.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from training.corpus.corpus import Table, row_number
from training.errors import UserError, nearest

EXTENSIONS = ".csv, .tsv, .json, .jsonl (each also .gz) and .parquet"


def read_file(path: Path) -> Table:
    """Return the rows of one data file; the extension says the format. Raises UserError."""
    if not path.exists():
        beside = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"data file {path} does not exist{nearest(path.name, beside) or '. Check the path.'}")
    compressed = path.suffix.lower() == ".gz"
    extension = Path(path.stem).suffix.lower() if compressed else path.suffix.lower()
    if extension == ".parquet" and not compressed:
        table = _read_parquet(path)
    elif extension in (".csv", ".tsv"):
        table = _read_csv(path, _read_text(path, compressed), "," if extension == ".csv" else "\t")
    elif extension in (".json", ".jsonl"):
        table = _read_json(path, _read_text(path, compressed), is_lines=extension == ".jsonl")
    else:
        raise UserError(
            f"data file {path} has the extension {path.suffix!r}. Files are read as {EXTENSIONS}: convert or rename it."
        )
    if not table.num_rows:
        raise UserError(f"data file {path} holds no rows. Give a file with at least one text and label.")
    return table


def decode(content: bytes, path: Path) -> str:
    """Return UTF-8 bytes as text, without a byte order mark."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte, offset = error.object[error.start], error.start + content.startswith(b"\xef\xbb\xbf") * 3
        line = content.count(b"\n", 0, offset) + 1
        encoding = "UTF-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "LATIN1"
        raise UserError(
            f"{path} is not UTF-8: byte {byte:#04x} at offset {offset}, line {line}. "
            f"Convert it, e.g. iconv -f {encoding} -t UTF-8 FILE > NEW_FILE."
        ) from None


def _read_text(path: Path, compressed: bool) -> str:
    """Return the decoded content of a text file."""
    try:
        content = path.read_bytes()
        if compressed:
            content = gzip.decompress(content)
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"data file {path} is not gzip ({error}). Compress it with gzip or drop the .gz.") from None
    except EOFError:
        raise UserError(f"data file {path} is cut off: its gzip stream has no end. Copy it again.") from None
    except OSError as error:
        raise UserError(f"data file {path} cannot be read: {error.strerror}. Check the path and its rights.") from None
    text = decode(content, path)
    if not text.strip():
        raise UserError(f"data file {path} is empty. Give a file with at least one text and label.")
    return text


def _line_places(lines: list[int]) -> Any:
    """Return the `place` of rows that begin on these lines."""
    return lambda index: f"line {lines[index]}"


def _read_csv(path: Path, text: str, delimiter: str) -> Table:
    """Parse a CSV with a header. Strict: else one stray quote would swallow the rows up to the next one."""
    csv.field_size_limit(2**31 - 1)  # the default, 128 KiB, is shorter than some texts
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    rows: list[list[str]] = []
    lines: list[int] = []
    line = 1
    try:
        for row in reader:
            begin, line = line, reader.line_num + 1
            if not row:  # a blank line
                continue
            if not header:
                header = row
                continue
            if len(row) != len(header):
                raise UserError(
                    f"{path}, line {begin}: {len(row)} fields where the header has {len(header)} "
                    f"({', '.join(header)}). Put a field that holds {delimiter!r} in double quotes."
                )
            rows.append(row)
            lines.append(begin)
    except csv.Error as error:
        raise UserError(
            f"{path}, line {line}: {error}. A field that begins with a double quote must end with one; "
            'write a quote inside it twice (""), or save the data as JSONL.'
        ) from None
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise UserError(f"{path}, line 1: column {twice[0]!r} stands twice in the header. Rename one.")
    columns = {name: [row[position] for row in rows] for position, name in enumerate(header)}
    return Table.of(str(path), columns, place=_line_places(lines))


def _read_json(path: Path, text: str, *, is_lines: bool) -> Table:
    """Parse a list of records, or one record a line: many `.json` files hold lines, as Hugging Face reads them too."""
    lines: list[int] = []
    records: list[Any] = []
    if not is_lines and not text.lstrip().startswith("{"):
        try:
            records = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _json_error(path, getattr(error, "lineno", 1), str(error)) from None
        if not isinstance(records, list):
            raise UserError(f"{path} holds one {type(records).__name__}. It must be a list of records.")
    else:
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                try:
                    records.append(json.loads(line))
                except (ValueError, RecursionError) as error:
                    raise _json_error(path, number, str(error)) from None
                lines.append(number)
    place = _line_places(lines) if lines else row_number
    for index, record in enumerate(records):
        if not isinstance(record, dict):
            raise UserError(
                f"{path}, {place(index)}: {json.dumps(record)[:60]} is no record. "
                'Each must be an object such as {"text": "...", "label": "..."}.'
            )
    names: Iterable[str] = dict.fromkeys(name for record in records for name in record)
    columns = {name: [record.get(name) for record in records] for name in names}
    return Table.of(str(path), columns, place=place)


def _json_error(path: Path, line: int, message: str) -> UserError:
    """Say where JSON stops being JSON."""
    return UserError(
        f"{path}, line {line}: not JSON ({message}). Mend it there; "
        "a .json file holds a list of records, a .jsonl file one record a line."
    )


def _read_parquet(path: Path) -> Table:
    """Read a Parquet file; class names that `datasets` wrote into its schema are kept."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        arrow = pq.read_table(path)
        # pandas keeps the index of a frame under such a name.
        names = [name for name in dict.fromkeys(arrow.column_names) if not name.startswith("__index_level_")]
        columns = {name: arrow.column(name).to_pylist() for name in names}
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8: byte {error.object[error.start]:#04x} in a text. Write it anew."
        ) from None
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"data file {path} is not a whole Parquet file: {reason} Copy or write it again.") from None
    features = json.loads((arrow.schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    class_names = {name: feature["names"] for name, feature in features.items() if _is_class_label(feature)}
    return Table.of(str(path), columns, class_names=class_names)


def _is_class_label(feature: Any) -> bool:
    """Whether a feature of `datasets` holds class ids."""
    return isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
