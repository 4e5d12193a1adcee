"""The types of this package: a Table as read from its source, and the Corpus a job works on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from training.spec import SINGLE_LABEL, ProblemType


def row_number(index: int) -> str:
    """Return "row N", counted from 1, for the row at `index`."""
    return f"row {index + 1}"


@dataclass(frozen=True, kw_only=True)
class Table:
    """One split as its source holds it: columns of any values, nothing judged yet."""

    source: str
    """File, folder or dataset as messages name it."""
    column_names: list[str]
    column: Callable[[str], Sequence[Any]]
    """Name -> values, one a row."""
    num_rows: int
    place: Callable[[int], str]
    """Row (from 0) -> where a user finds it: "line 7", "row 6", "pos/12.txt"."""
    class_names: dict[str, list[str]] = field(default_factory=dict)
    """Column -> names its values index (a ClassLabel of `datasets`, or a list of such)."""
    removed: dict[str, int] = field(default_factory=dict)
    """What a preset left out, and how many rows."""
    row_numbers: Sequence[int] | None = None
    """Row (from 1) of each row in the source, where some were left out."""

    @staticmethod
    def of(
        source: str,
        columns: dict[str, list[Any]],
        *,
        place: Callable[[int], str] = row_number,
        class_names: dict[str, list[str]] | None = None,
    ) -> Table:
        """Return a Table over columns held in memory, all equally long."""
        return Table(
            source=source,
            column_names=list(columns),
            column=columns.__getitem__,
            num_rows=len(next(iter(columns.values()), [])),
            place=place,
            class_names=class_names or {},
        )


@dataclass(frozen=True, kw_only=True)
class Split:
    """Texts, the class of each, and an id that stays the same whatever part is used."""

    ids: list[str]
    """ "<split>:<row>", the split and row (from 1) of the source."""
    texts: list[str]
    labels: list[Any]
    """Indices into Corpus.label_names; where texts have several labels, a tuple of them for each, ascending."""

    def sha256(self) -> str:
        """Return a hash of all rows in their order."""
        digest = hashlib.sha256()
        for text, label in zip(self.texts, self.labels, strict=True):
            digest.update(f"{label} {len(text)} {text}".encode())
        return digest.hexdigest()[:16]

    def part(self, indices: Sequence[int]) -> Split:
        """Return the rows at `indices`, in that order."""
        return Split(
            ids=[self.ids[index] for index in indices],
            texts=[self.texts[index] for index in indices],
            labels=[self.labels[index] for index in indices],
        )


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """What a job trains on, chooses by and reports on."""

    train: Split
    validation: Split
    test: Split | None
    label_names: list[str]
    problem_type: ProblemType = SINGLE_LABEL
    facts: dict[str, Any]
    """JSON values: source, files, columns, rows of each split and class, how validation was made, what was removed,
    a hash of each split's rows."""
