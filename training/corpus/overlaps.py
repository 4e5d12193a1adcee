"""Texts that stand in two splits, the same or near, and texts that stand with two labels."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from training.corpus.characters import normalized, shown
from training.corpus.findings import NUM_EXAMPLES, Finding, Report
from training.corpus.near_duplicates import NearPair, Signatures, near_pairs, sign
from training.corpus.raw_rows import Rows


@dataclass(frozen=True, kw_only=True)
class Signed:
    """A split with what it is compared by."""

    rows: Rows
    plain: list[str]
    """Its normalized texts."""
    signatures: Signatures


def find_overlaps(splits: list[Rows], report: Report) -> tuple[list[dict[str, Any]], list[Finding]]:
    """Return DataCheck.overlaps and findings: each of validation and test against the splits before it."""
    overlaps: list[dict[str, Any]] = []
    findings: list[Finding] = []
    signed = [_sign(rows, report) for rows in splits] if len(splits) > 1 else []
    for position, ours in enumerate(signed):
        for theirs in signed[:position]:
            facts, found = _compare(ours, theirs)
            overlaps.append(facts)
            findings += found
    return overlaps, findings


def _sign(rows: Rows, report: Report) -> Signed:
    """Sign the texts of a split."""
    plain = [normalized(text) for text in rows.texts]
    total = len(plain)
    done = 0

    def advance(texts: int) -> None:
        nonlocal done
        done += texts
        report(f"{rows.name}: texts compared", done, total)

    return Signed(rows=rows, plain=plain, signatures=sign(plain, advance))


def _compare(ours: Signed, theirs: Signed) -> tuple[dict[str, Any], list[Finding]]:
    """Return what of one split stands in another."""
    rows, other = ours.rows, theirs.rows
    first: dict[bytes, int] = {}
    for row, key in enumerate(other.keys):
        first.setdefault(key, row)
    same = [row for row, key in enumerate(rows.keys) if key and key in first]
    written = set(other.texts)
    identical = sum(rows.texts[row] in written for row in same)
    distinct = len({rows.keys[row] for row in same})
    pairs = near_pairs(ours.plain, ours.signatures, theirs.plain, theirs.signatures)
    near = sorted((pair for pair in pairs if rows.keys[pair.index] not in first), key=lambda pair: -pair.jaccard)
    total = len(rows.texts)
    findings = []
    if same:
        examples = [rows.example(row, _beside(other, first[rows.keys[row]])) for row in same[:NUM_EXAMPLES]]
        detail = f"{distinct:,} different ones, {identical:,} rows to the letter"
        findings.append(
            Finding.of(
                "overlap", rows.name, other_split=other.name,
                count=len(same), total=total, examples=examples, detail=detail,
            )
        )  # fmt: skip
    if near:
        examples = [_near_example(rows, other, pair) for pair in near[:NUM_EXAMPLES]]
        findings.append(
            Finding.of(
                "near_overlap", rows.name, other_split=other.name, count=len(near), total=total, examples=examples
            )
        )
    facts = {
        "split": rows.name, "other_split": other.name,
        "exact": len(same), "identical": identical, "distinct": distinct, "near": len(near),
    }  # fmt: skip
    return facts, findings


def _near_example(rows: Rows, other: Rows, pair: NearPair) -> dict[str, str]:
    return rows.example(pair.index, f"{pair.jaccard:.2f} alike: {_beside(other, pair.other)}")


def _beside(other: Rows, row: int) -> str:
    """Return where the like of a text stands, and its label."""
    return f"{other.id(row)}, {other.table.place(row)}, label {shown(str(other.labels[row]))}"


def find_conflicts(splits: list[Rows]) -> list[Finding]:
    """Return the texts of each split that stand with another label in it or in an earlier split."""
    findings = []
    seen: dict[bytes, dict[str, str]] = defaultdict(dict)
    for rows in splits:
        at = []
        for row, (key, label) in enumerate(zip(rows.keys, rows.labels, strict=True)):
            if key and label is not None:
                places = seen[key]
                places.setdefault(label, rows.id(row))
                if len(places) > 1:
                    at.append(row)
        examples = [
            rows.example(row, "; ".join(f"{shown(label)} in {place}" for label, place in seen[rows.keys[row]].items()))
            for row in at[:NUM_EXAMPLES]
        ]
        if at:
            total = len(rows.texts)
            findings.append(Finding.of("conflicting_labels", rows.name, count=len(at), total=total, examples=examples))
    return findings
