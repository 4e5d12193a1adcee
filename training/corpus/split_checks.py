"""What can be wrong within one split: its labels, each of its texts, their lengths."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from training.corpus.characters import defects, shown
from training.corpus.columns import natural_order
from training.corpus.findings import NUM_EXAMPLES, RARE_ROWS, Finding, Report
from training.corpus.raw_rows import Rows
from training.errors import nearest
from training.long_text import longest_whole, what_is_read
from training.spec import DataSpec

IMBALANCE_RATIO = 10
OUTLIER_FACTOR = 10
MUCH_IS_CUT = 0.1
"""Share of a split's texts or tokens from which cutting is a warning."""
BATCH_ROWS = 1000
TOKENIZED_CHARACTERS = 24_000_000
"""Of a split with more, every second, third, ... text is tokenized: shares within half a point, in bounded time."""


def check_labels(rows: Rows, train: Rows) -> list[Finding]:
    """Judge the labels of a split: missing, unknown to train, too few or too unequal."""
    total = len(rows.labels)
    missing = [row for row, label in enumerate(rows.labels) if label is None]
    if len(missing) == total and rows is not train:
        return [Finding.of("unlabelled_split", rows.name, count=total, total=total)]
    findings = about("missing_label", rows, missing, [rows.example(row) for row in missing[:NUM_EXAMPLES]])
    counts = Counter(name for names in rows.names for name in names)
    return findings + (_classes(rows, counts) if rows is train else _against_train(rows, counts, train))


def _against_train(rows: Rows, counts: Counter[str], train: Rows) -> list[Finding]:
    """Compare the classes of a split with train's."""
    known = {name for names in train.names for name in names}
    foreign = {row: [name for name in names if name not in known] for row, names in enumerate(rows.names)}
    unknown = [row for row, names in foreign.items() if names]
    examples = [
        rows.example(row, f"label {shown(foreign[row][0])!r}{nearest(foreign[row][0], known)}")
        for row in unknown[:NUM_EXAMPLES]
    ]
    findings = about(
        "unknown_label", rows, unknown, examples, _listed({name for row in unknown for name in foreign[row]})
    )
    absent = known - set(counts)
    if absent:
        detail = _listed(absent)
        findings.append(Finding.of("missing_class", rows.name, count=len(absent), total=len(known), detail=detail))
    return findings


def _classes(train: Rows, counts: Counter[str]) -> list[Finding]:
    """Judge how many rows each class of train has."""
    if len(counts) < 2:
        total = len(train.labels)
        return [Finding.of("single_class", train.name, count=total, total=total, detail=_listed(counts))]
    findings = []
    rare = [name for name in natural_order(counts) if counts[name] < RARE_ROWS]
    if rare:
        detail = ", ".join(f"{shown(name)} {counts[name]}" for name in rare[:10])
        findings.append(Finding.of("rare_class", train.name, count=len(rare), total=len(counts), detail=detail))
    (largest, most), (smallest, least) = counts.most_common()[0], counts.most_common()[-1]
    if most >= IMBALANCE_RATIO * least:
        detail = f"{shown(largest)} has {most:,} rows, {shown(smallest)} {least:,}"
        total = sum(bool(names) for names in train.names)
        findings.append(Finding.of("imbalance", train.name, count=most, total=total, detail=detail))
    return findings


def _listed(names: Iterable[str]) -> str:
    """Return the first names."""
    ordered = natural_order(names)
    more = f" and {len(ordered) - 5} more" if len(ordered) > 5 else ""
    return ", ".join(shown(name) for name in ordered[:5]) + more


def about(
    code: str, rows: Rows, at: Sequence[int], examples: Sequence[dict[str, str]], detail: str = ""
) -> list[Finding]:
    """Return the finding about these rows; none where there are none."""
    total = len(rows.texts)
    return [Finding.of(code, rows.name, count=len(at), total=total, examples=examples, detail=detail)] if at else []


def check_texts(rows: Rows, report: Report) -> list[Finding]:
    """Judge each text of a split by itself, and its copies within the split."""
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    first: dict[bytes, int] = {}
    copies = []
    for row, (text, key) in enumerate(zip(rows.texts, rows.keys, strict=True)):
        for code, position in defects(text):
            found[code].append((row, position))
        if not text.strip():
            found["empty_text"].append((row, 0))
        elif first.setdefault(key, row) != row:
            copies.append(row)
        if row % BATCH_ROWS == 0:
            report(f"{rows.name}: texts looked at", row, len(rows.texts))
    examples = [rows.example(row, f"as {rows.id(first[rows.keys[row]])}") for row in copies[:NUM_EXAMPLES]]
    findings = about("duplicate_text", rows, copies, examples)
    for code, places in found.items():
        examples = [rows.example(row, around=position) for row, position in places[:NUM_EXAMPLES]]
        findings += about(code, rows, [row for row, _ in places], examples)
    for reason, count in rows.table.removed.items():
        total = count + len(rows.texts)
        findings.append(Finding.of("removed_rows", rows.name, count=count, total=total, detail=reason))
    return findings


def measure(rows: Rows, tokenizer: Any, data: DataSpec, report: Report) -> tuple[dict[str, Any], list[Finding]]:
    """Return DataCheck.splits of a split, and findings about its lengths."""
    counts = Counter(name for names in rows.names for name in names)
    characters = np.asarray([len(text) for text in rows.texts])
    outliers = np.flatnonzero(characters > OUTLIER_FACTOR * np.quantile(characters, 0.95)).tolist()
    outliers.sort(key=lambda row: -characters[row])
    examples = [rows.example(row, f"{characters[row]:,} characters") for row in outliers[:NUM_EXAMPLES]]
    findings = about("long_outliers", rows, outliers, examples)
    facts: dict[str, Any] = {
        "rows": len(rows.texts),
        "rows_per_class": {shown(name): counts[name] for name in natural_order(counts)},
        "imbalance_ratio": max(counts.values()) / min(counts.values()) if counts else None,
        "characters": _quantiles(characters),
        "words": _quantiles(np.asarray([len(text.split()) for text in rows.texts])),
        "tokens": None,
        "cut": None,
    }
    if tokenizer is not None:
        tokenized, tokens = _count_tokens(rows, characters, tokenizer, report)
        most = longest_whole(tokenizer, data)
        facts["tokens"], facts["cut"] = _quantiles(tokens), _cut(tokens, most)
        findings += _cut_findings(rows, tokenized, tokens, np.flatnonzero(tokens > most), facts["cut"], data)
    return facts, findings


def _count_tokens(
    rows: Rows, characters: npt.NDArray[np.int64], tokenizer: Any, report: Report
) -> tuple[list[int], npt.NDArray[np.int64]]:
    """Return the rows that were tokenized, the longest among them, and the tokens of each."""
    every = -(-int(characters.sum()) // TOKENIZED_CHARACTERS) or 1
    chosen = sorted({*range(0, len(rows.texts), every), int(characters.argmax())})
    counts: list[int] = []
    for start in range(0, len(chosen), BATCH_ROWS):
        report(f"{rows.name}: texts tokenized", start, len(chosen))
        # Half a character, a finding of its own, cannot be tokenized.
        batch = [rows.texts[row].encode("utf-8", "replace").decode() for row in chosen[start : start + BATCH_ROWS]]
        encoded = tokenizer(batch, truncation=False, padding=False, return_attention_mask=False, verbose=False)
        counts += [len(ids) for ids in encoded["input_ids"]]
    return chosen, np.asarray(counts)


def _cut(tokens: npt.NDArray[np.int64], most: int) -> dict[str, float]:
    """Return what truncation to this many tokens costs."""
    lost = np.maximum(tokens - most, 0).sum()
    return {
        "share_of_texts": float((tokens > most).mean()),
        "share_of_tokens": float(lost / max(tokens.sum(), 1)),
    }


def _cut_findings(
    rows: Rows,
    tokenized: list[int],
    tokens: npt.NDArray[np.int64],
    too_long: npt.NDArray[np.int64],
    cut: dict[str, float],
    data: DataSpec,
) -> list[Finding]:
    """Say what truncation cuts; a warning where it is much."""
    over = sorted(too_long.tolist(), key=lambda index: -tokens[index])
    if not over:
        return []
    total = len(rows.texts)
    return [
        Finding.of(
            "cut_texts", rows.name,
            count=round(cut["share_of_texts"] * total), total=total,
            examples=[rows.example(tokenized[index], f"{tokens[index]:,} tokens") for index in over[:NUM_EXAMPLES]],
            level="warning" if max(cut.values()) >= MUCH_IS_CUT else "info",
            detail=f"read of each: {what_is_read(data)}; {cut['share_of_tokens']:.1%} of the split's tokens are lost"
            + (f", by a sample of {len(tokens):,}" if len(tokens) < total else ""),
        )
    ]  # fmt: skip


def _quantiles(values: npt.NDArray[np.int64]) -> dict[str, float]:
    """Return where lengths lie: 5 % are below p5."""
    names = {"min": 0, "p5": 0.05, "p50": 0.5, "p95": 0.95, "max": 1}
    found = np.quantile(values, list(names.values()), method="nearest")
    return {**dict(zip(names, map(int, found), strict=True)), "mean": round(float(values.mean()), 1)}
