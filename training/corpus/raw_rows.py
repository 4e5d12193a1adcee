"""A split as its source holds it: rows a job would refuse are still among them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from training.corpus import columns
from training.corpus.characters import normalized, shown
from training.corpus.corpus import Table
from training.spec import DataSpec


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Texts and labels of a split, nothing judged."""

    name: str
    table: Table
    texts: list[str]
    labels: list[str | None]
    """As one word: of several labels, all of them. None where there is none, or no list of them."""
    names: list[list[str]]
    """Each label of a row by itself."""
    keys: list[bytes]
    """A hash of each normalized text; empty for an empty one."""

    def example(self, row: int, note: str = "", *, around: int = 0) -> dict[str, str]:
        """Return what a finding shows of a row."""
        text = shown(self.texts[row], around=around)
        return {"row": self.id(row), "place": self.table.place(row), "text": text, "note": note}

    def id(self, row: int) -> str:
        """Return the id the row has in a Corpus."""
        return f"{self.name}:{self.table.row_numbers[row] if self.table.row_numbers else row + 1}"


def read_rows(name: str, table: Table, text_columns: list[str], data: DataSpec) -> Rows:
    """Read a split's texts and labels as they are."""
    columns.choose_text_columns(table, text_columns, data.label_column_name)
    texts = columns.joined_texts(table, text_columns, data.text_column_delimiter)
    column = data.label_column_name
    if columns.holds_label_lists(table, column, data.label_delimiter):
        lists = columns.label_lists_or_none(table, column, data.label_delimiter)
        labels = [None if names is None else ", ".join(sorted(names)) or "none" for names in lists]
    else:
        labels = columns.labels_or_none(table, column)
        lists = [None if label is None else [label] for label in labels]
    return Rows(
        name=name,
        table=table,
        texts=texts,
        labels=labels,
        names=[names or [] for names in lists],
        keys=[_key(text) for text in texts],
    )


def _key(text: str) -> bytes:
    """Return a hash of a text's normalized form."""
    plain = normalized(text)
    return hashlib.blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=12).digest() if plain else b""
