"""What a data check can find: its level, what is said of it, and the mend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning", "info"]
LEVELS: tuple[Level, ...] = ("error", "warning", "info")
"""error: training refuses the data. warning: it trains, but the result may mislead. info: worth knowing."""
NUM_EXAMPLES = 3
RARE_ROWS = 10

Report = Callable[[str, int, int], None]
"""Told what is being done ("train: texts looked at"), how many are and of how many (0 where that is not known)."""

FINDINGS: dict[str, tuple[Level, str, str]] = {
    "single_class": ("error", "every row has the same label", "Check the label column; a classifier needs two."),
    "missing_label": ("error", "rows have no label", "Give each row a name or a whole number, or remove it."),
    "unknown_label": (
        "error", "rows have a label that train lacks", "Correct it, remove the rows, or add some to train."
    ),
    "empty_text": ("error", "texts are empty", "Remove the rows or fill them."),
    "half_characters": ("error", "texts hold half a character", "Write the file again with whole characters."),
    "unlabelled_split": ("warning", "no row has a label, so the split is left out", "Give a labelled split."),
    "conflicting_labels": (
        "warning", "texts stand with several labels", "Decide on one label, or remove the rows."
    ),
    "overlap": (
        "warning", "texts stand in the other split too", "Remove them there, or scores are too good."
    ),
    "near_overlap": (
        "warning", "texts nearly stand in the other split", "Look at them; remove copies, or scores are too good."
    ),
    "duplicate_text": (
        "warning", "texts repeat an earlier one of their split", "Remove the copies; they count twice."
    ),
    "rare_class": ("warning", "classes have fewer than 10 rows", "Add rows, merge classes, or expect no skill there."),
    "imbalance": (
        "warning", "rows are in the largest class, which has 10 times the smallest's or more",
        "Judge by macro F1; accuracy hides the small classes.",
    ),
    "replacement_characters": (
        "warning", "texts hold U+FFFD, where a character was lost", "Convert again from the source."
    ),
    "mojibake": ("warning", "texts hold UTF-8 read as Latin-1, such as Ã©", "Decode the source as UTF-8."),
    "nul_characters": ("warning", "texts hold NUL characters", "Remove them."),
    "control_characters": (
        "warning", "texts hold control characters", "Remove them; \\x80 to \\x9f are Windows-1252 read as Latin-1.",
    ),
    "cut_texts": (
        "warning", "texts are longer than what is read of them",
        "If what is cut matters, raise data.max_seq_length, or set data.long_text: chunk (and raise data.max_chunks).",
    ),
    "missing_class": ("info", "classes of train have no row", "Nothing is measured of them there."),
    "html": ("info", "texts hold HTML", "Strip it if it says nothing of the class."),
    "message_parts": (
        "info", "texts hold headers or quotes of messages, which may give the class away",
        "Set data.remove (20newsgroups), or strip them.",
    ),
    "long_outliers": ("info", "texts are over 10 times as long as 95 % of the others", "Check that they are texts."),
    "removed_rows": ("info", "rows were left out by the preset", "Nothing need be done."),
}  # fmt: skip
"""Code -> level, what the counted things are, mend; the most urgent first."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One kind of defect in one split."""

    code: str
    """A key of FINDINGS."""
    level: Level
    split: str
    other_split: str | None = None
    """The one the texts stand in too."""
    message: str
    count: int
    """Texts, rows, or classes."""
    share: float
    """Of the split's texts, rows, or classes."""
    fix: str
    examples: list[dict[str, str]]
    """Up to NUM_EXAMPLES: "row" (its id), "place" (line or file), "text" (cut), "note"."""

    @staticmethod
    def of(
        code: str,
        split: str,
        *,
        count: int,
        total: int,
        examples: Sequence[dict[str, str]] = (),
        other_split: str | None = None,
        level: Level | None = None,
        detail: str = "",
    ) -> Finding:
        """Return a finding with its code's words; `detail` follows them."""
        usual, what, fix = FINDINGS[code]
        against = f" ({other_split})" if other_split else ""
        return Finding(
            code=code,
            level=level or usual,
            split=split,
            other_split=other_split,
            message=f"{split}: {count:,} of {total:,} {what}{against}{f': {detail}' if detail else ''}",
            count=count,
            share=count / total if total else 0.0,
            fix=fix,
            examples=list(examples[:NUM_EXAMPLES]),
        )


def most_urgent_first(findings: Sequence[Finding]) -> list[Finding]:
    """Return errors, warnings, then the rest, each in the order of FINDINGS."""
    order = list(FINDINGS)
    return sorted(findings, key=lambda finding: (LEVELS.index(finding.level), order.index(finding.code)))
