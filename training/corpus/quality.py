"""Check the data of a study before anything is trained on it, and say all that is wrong at once.

`load_corpus` refuses the first fault it meets; this reads the same rows before that, and goes on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from training.corpus.columns import choose_text_columns
from training.corpus.findings import Finding, Report, most_urgent_first
from training.corpus.load import read_tables
from training.corpus.overlaps import find_conflicts, find_overlaps
from training.corpus.raw_rows import read_rows
from training.corpus.split_checks import check_labels, check_texts, measure
from training.long_text import what_is_read
from training.spec import DataSpec


@dataclass(frozen=True, kw_only=True)
class DataCheck:
    """What is known of a data set, and what is wrong with it."""

    source: str
    text_columns: list[str]
    label_column: str
    tokenizer: str | None
    """Model whose tokenizer counted the tokens; None where none is known."""
    read: str | None
    """What is read of a long text, in words; None where tokens are not counted."""
    splits: dict[str, dict[str, Any]]
    """Split -> {"rows", "rows_per_class", "imbalance_ratio" (largest class over smallest), "characters" and "words"
    (quantiles), "tokens" (quantiles, or None), "cut" ({"share_of_texts", "share_of_tokens"}, or None)}."""
    overlaps: list[dict[str, Any]]
    """{"split", "other_split", "exact" (rows of the split whose normalized text stands in the other), "identical" (of
    these, to the letter), "distinct" (different texts among the exact), "near"}, for each pair of splits."""
    findings: list[Finding]
    """The most urgent first."""

    def num(self, level: str) -> int:
        """Return the number of findings of a level."""
        return sum(finding.level == level for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


def check_data(
    data: DataSpec,
    *,
    tokenizer: Any = None,
    tokenizer_name: str | None = None,
    report: Report = lambda *_: None,
) -> DataCheck:
    """Return what the splits of `data` hold, all rows of them.

    Tokens are counted with `tokenizer`, and what `data.long_text` cuts. Raises UserError for data that cannot be
    read at all: files that are no CSV, a column that is not there.
    """
    report("reading", 0, 0)
    tables = read_tables(data)
    text_columns = choose_text_columns(tables["train"], data.text_column_names, data.label_column_name)
    splits = [
        read_rows(name, tables[name], text_columns, data) for name in ("train", "validation", "test") if name in tables
    ]
    findings = []
    facts = {}
    for rows in splits:
        findings += check_labels(rows, splits[0]) + check_texts(rows, report)
        facts[rows.name], found = measure(rows, tokenizer, data, report)
        findings += found
    overlaps, found = find_overlaps(splits, report)
    findings += found + find_conflicts(splits)
    return DataCheck(
        source=data.dataset_name or str(data.train_file),
        text_columns=text_columns,
        label_column=data.label_column_name,
        tokenizer=tokenizer_name if tokenizer is not None else None,
        read=what_is_read(data) if tokenizer is not None else None,
        splits=facts,
        overlaps=overlaps,
        findings=most_urgent_first(findings),
    )
