"""CSV, TSV, JSON, JSONL (each also .gz) and Parquet files become a `Table`, each value exactly as written.

No guessing of types: in a CSV "NA", "01" and "1e3" stay these strings. Every fault names the file and the line or row.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from training.corpus.corpus import Table, row_number
from training.errors import UserError, nearest

EXTENSIONS = ".csv, .tsv, .json, .jsonl (each also .gz) and .parquet"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MAX_FIELD_CHARACTERS = 1 << 26
"""Of one CSV field: longer than any text, and short enough for a quote that is never closed to be noticed."""


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
        byte, offset = error.object[error.start], error.start + content.startswith(BYTE_ORDER_MARK) * 3
        raise not_utf8(str(path), byte, offset, content.count(b"\n", 0, offset) + 1, content[:2]) from None


def not_utf8(source: str, byte: int, offset: int, line: int, beginning: bytes) -> UserError:
    """Say which byte is not UTF-8; the first two bytes of UTF-16 give it away."""
    encoding = "UTF-16" if beginning in (b"\xff\xfe", b"\xfe\xff") else "LATIN1"
    return UserError(
        f"{source} is not UTF-8: byte {byte:#04x} at offset {offset}, line {line}. "
        f"Convert it, e.g. iconv -f {encoding} -t UTF-8 FILE > NEW_FILE."
    )


@contextmanager
def naming_faults(path: Path) -> Iterator[None]:
    """Turn what opening and reading a data file, or unpacking it, can meet into UserErrors."""
    try:
        yield
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"data file {path} is not gzip ({error}). Compress it with gzip or drop the .gz.") from None
    except EOFError:
        raise UserError(f"data file {path} is cut off: its gzip stream has no end. Copy it again.") from None
    except OSError as error:
        raise UserError(f"data file {path} cannot be read: {error.strerror}. Check the path and its rights.") from None


def _read_text(path: Path, compressed: bool) -> str:
    """Return the decoded content of a text file."""
    with naming_faults(path):
        content = path.read_bytes()
        if compressed:
            content = gzip.decompress(content)
    text = decode(content, path)
    if not text.strip():
        raise UserError(f"data file {path} is empty. Give a file with at least one text and label.")
    return text


def _line_places(lines: list[int]) -> Any:
    """Return the `place` of rows that begin on these lines."""
    return lambda index: f"line {lines[index]}"


def _read_csv(path: Path, text: str, delimiter: str) -> Table:
    """Parse a CSV with a header."""
    parsed = parse_csv(str(path), io.StringIO(text, newline=""), delimiter)
    _, header = next(parsed, (1, []))
    rows = list(parsed)
    columns = {name: [row[position] for _, row in rows] for position, name in enumerate(header)}
    return Table.of(str(path), columns, place=_line_places([line for line, _ in rows]))


def parse_csv(source: str, lines: Iterable[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line each row begins on and its fields, the header first, all as long as the header.

    Strict: else one stray quote would swallow the rows up to the next one.
    """
    csv.field_size_limit(MAX_FIELD_CHARACTERS)  # the default, 128 KiB, is shorter than some texts
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] = []
    line = 1
    try:
        for row in reader:
            begin, line = line, reader.line_num + 1
            if not row:  # a blank line
                continue
            if not header:
                header = row
                _refuse_twice(source, header)
            if len(row) != len(header):
                raise UserError(
                    f"{source}, line {begin}: {len(row)} fields where the header has {len(header)} "
                    f"({', '.join(header)}). Put a field that holds {delimiter!r} in double quotes."
                )
            yield begin, row
    except csv.Error as error:
        raise UserError(
            f"{source}, line {line}: {error}. A field that begins with a double quote must end with one; "
            'write a quote inside it twice (""), or save the data as JSONL.'
        ) from None


def _refuse_twice(source: str, header: list[str]) -> None:
    """Refuse two columns of one name."""
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise UserError(f"{source}, line 1: column {twice[0]!r} stands twice in the header. Rename one.")


def _read_json(path: Path, text: str, *, is_lines: bool) -> Table:
    """Parse a list of records, or one record a line: many `.json` files hold lines, as Hugging Face reads them too."""
    place: Any = row_number
    if is_lines or text.lstrip().startswith("{"):
        parsed = list(parse_json_lines(str(path), text.split("\n")))
        records = [record for _, record in parsed]
        place = _line_places([line for line, _ in parsed])
    else:
        try:
            records = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _json_error(str(path), getattr(error, "lineno", 1), str(error)) from None
        if not isinstance(records, list):
            raise UserError(f"{path} holds one {type(records).__name__}. It must be a list of records.")
        for index, record in enumerate(records):
            _require_record(str(path), row_number(index), record)
    names: Iterable[str] = dict.fromkeys(name for record in records for name in record)
    columns = {name: [record.get(name) for record in records] for name in names}
    return Table.of(str(path), columns, place=place)


def parse_json_lines(source: str, lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the line and the record of each line that is not blank."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise _json_error(source, number, str(error)) from None
            _require_record(source, f"line {number}", record)
            yield number, record


def _require_record(source: str, place: str, record: Any) -> None:
    """Refuse JSON that is no object."""
    if not isinstance(record, dict):
        raise UserError(
            f"{source}, {place}: {json.dumps(record)[:60]} is no record. "
            'Each must be an object such as {"text": "...", "label": "..."}.'
        )


def _json_error(source: str, line: int, message: str) -> UserError:
    """Say where JSON stops being JSON."""
    return UserError(
        f"{source}, line {line}: not JSON ({message}). Mend it there; "
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
    return Table.of(str(path), columns, class_names=_class_names((arrow.schema.metadata or {}).get(b"huggingface")))


def _class_names(metadata: bytes | None) -> dict[str, list[str]]:
    """Return column -> class names of what `datasets` writes into a schema; nothing where it is none of its writing."""
    try:
        features = json.loads(metadata or b"{}").get("info", {}).get("features", {})
        labels = {name: feature.get("feature", feature) for name, feature in features.items()}
        return {name: label["names"] for name, label in labels.items() if _is_class_label(label)}
    except (ValueError, RecursionError, AttributeError):
        return {}


def _is_class_label(feature: Any) -> bool:
    """Whether a feature of `datasets` holds class ids."""
    return isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list)
