"""From a Table to texts and label names: which columns, and every row checked."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any

from training.corpus.corpus import Table
from training.errors import UserError, listed, nearest


def choose_text_columns(table: Table, wanted: list[str] | None, label_column_name: str) -> list[str]:
    """Return the columns the text is made of: the wanted ones, else `text`, else the only one beside the label."""
    _require_column(table, label_column_name, "data.label_column_name")
    for name in wanted or []:
        _require_column(table, name, "data.text_column_names")
    if label_column_name in (wanted or []):
        raise UserError(
            f"data.text_column_names holds the label column {label_column_name!r}: the answer would stand in the text. "
            "Leave it out, or set data.label_column_name."
        )
    if wanted:
        return wanted
    others = [name for name in table.column_names if name != label_column_name]
    if "text" in others:
        return ["text"]
    if len(others) == 1:
        return others
    raise UserError(
        f"{table.source} has no column 'text'. Its columns are {listed(table.column_names)}. "
        "Set data.text_column_names to the one(s) to use."
    )


def _require_column(table: Table, name: str, key: str) -> None:
    """Refuse a column that is not there."""
    if name not in table.column_names:
        hint = nearest(name, table.column_names) or "."
        raise UserError(
            f"{table.source} has no column {name!r}{hint} Its columns are {listed(table.column_names)}. "
            f"Set {key} to one of them (the first line of a CSV file must name the columns)."
        )


def read_texts(table: Table, column_names: list[str], delimiter: str) -> list[str]:
    """Return the text of each row; missing parts are left out, a row without any text is refused."""
    texts = joined_texts(table, column_names, delimiter)
    empty = [row for row, text in enumerate(texts) if not text.strip()]
    if empty:
        raise UserError(
            f"{table.source} {table.place(empty[0])}: the text ({', '.join(column_names)}) is empty"
            f"{_and_more(len(empty) - 1)}. Remove the row or fill it."
        )
    for row, text in enumerate(texts):
        if not text.isascii():
            require_unicode(text, f"{table.source} {table.place(row)}")
    return texts


def joined_texts(table: Table, column_names: list[str], delimiter: str) -> list[str]:
    """Return the text of each row as it is, empty ones and broken characters among them."""
    columns = [table.column(name) for name in column_names]
    return [join_text(values, delimiter) for values in zip(*columns, strict=True)]


def join_text(values: Iterable[Any], delimiter: str) -> str:
    """Return the text that the cells of one row make; missing ones are left out."""
    return delimiter.join(part for part in map(cell_text, values) if part)


def require_unicode(text: str, place: str) -> None:
    """Refuse half a surrogate pair, which JSON can hold and no tokenizer can read."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{place}: the text holds {text[error.start]!r}, half a character. "
            "Write the file again with whole characters."
        ) from None


def cell_text(value: Any) -> str:
    """Return a cell as text; "" for a missing one."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="surrogateescape")  # what is no text is refused with its row
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def holds_label_lists(table: Table, column_name: str, delimiter: str | None) -> bool:
    """Whether a text may have several labels: by a delimiter, or because the column holds lists."""
    return delimiter is not None or any(isinstance(value, list) for value in table.column(column_name))


def read_label_lists(table: Table, column_name: str, delimiter: str | None) -> list[list[str]]:
    """Return the label names of each row, perhaps none; what is no list of labels is refused."""
    found = label_lists_or_none(table, column_name, delimiter)
    wrong = [row for row, names in enumerate(found) if names is None]
    if wrong:
        mend = 'Give a list such as ["a", "b"], [] for a text without labels.'
        if delimiter is not None:
            mend = f"Give names with {delimiter!r} between them, or an empty field for a text without labels."
        raise UserError(
            f"{table.source} {table.place(wrong[0])}: {column_name} is {table.column(column_name)[wrong[0]]!r:.60}, "
            f"which is no list of labels{_and_more(len(wrong) - 1)}. {mend}"
        )
    return [names for names in found if names is not None]


def label_lists_or_none(table: Table, column_name: str, delimiter: str | None) -> list[list[str] | None]:
    """Return the label names of each row, each once; None for a row that has no list of them."""
    class_names = table.class_names.get(column_name)
    found: list[list[str] | None] = []
    for value in table.column(column_name):
        if isinstance(value, str) and delimiter is not None:
            value = [part.strip() for part in value.split(delimiter) if part.strip()]
        if not isinstance(value, list):
            found.append(None)
            continue
        names = [_class_of(item, class_names) if class_names else _label_of(item) for item in value]
        unique = [name for name in dict.fromkeys(names) if name is not None]
        found.append(None if None in names else unique)
    return found


def read_labels(table: Table, column_name: str) -> list[str]:
    """Return the label name of each row; a missing one is refused."""
    labels = labels_or_none(table, column_name)
    values = table.column(column_name)
    missing = [row for row, label in enumerate(labels) if label is None]
    if missing:
        raise UserError(
            f"{table.source} {table.place(missing[0])}: {column_name} is {values[missing[0]]!r:.40}, which is no label"
            f"{_and_more(len(missing) - 1)}. Give each row a name or a whole number, or remove it."
        )
    return [label for label in labels if label is not None]


def labels_or_none(table: Table, column_name: str) -> list[str | None]:
    """Return the label name of each row, None where there is none."""
    names = table.class_names.get(column_name)
    return [_class_of(value, names) if names else _label_of(value) for value in table.column(column_name)]


def _class_of(value: Any, names: list[str]) -> str | None:
    """Return the name a ClassLabel index stands for; -1 is its "no label"."""
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else None


def _label_of(value: Any) -> str | None:
    """Return a cell as label name, or None where it is none. 2 and 2.0 are "2"; strings stay as written."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return str(int(value)) if value.is_integer() else str(value)
    if isinstance(value, int):
        return str(value)
    return value if isinstance(value, str) and value.strip() else None


def _and_more(count: int) -> str:
    return f" (and in {count} more row{'s' if count > 1 else ''})" if count else ""


def is_unlabelled(table: Table, column_name: str) -> bool:
    """Whether every row of a ClassLabel column is -1, as in test splits whose answers are kept secret."""
    return column_name in table.class_names and all(value in (-1, None) for value in table.column(column_name))


def natural_order(names: Iterable[str]) -> list[str]:
    """Return names sorted as people count: "2" before "10", "-1" before "0", "class 2" before "class 10"."""
    unique = set(names)
    if all(re.fullmatch(r"[+-]?[0-9]+(\.[0-9]+)?", name) for name in unique):
        return sorted(unique, key=lambda name: (float(name), name))
    return sorted(unique, key=lambda name: (_counting_key(name), name))


def _counting_key(name: str) -> list[tuple[str, int]]:
    """Cut into (text, the number after it) pairs."""
    parts = [*re.split(r"([0-9]+)", name), "-1"]
    return [(parts[index], int(parts[index + 1])) for index in range(0, len(parts) - 1, 2)]
