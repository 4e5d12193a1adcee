"""Seeded, stratified parts of a split: the same rows on every machine and Python version."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from training.corpus.corpus import Split
from training.errors import UserError


def class_shares(counts: dict[int, int], total: int, *, at_least: int, leave: int) -> dict[int, int]:
    """Share `total` rows out over classes in proportion to `counts`.

    Each class gets `at_least` (as far as it has rows) and keeps back `leave` of its own; what rounding leaves over goes
    to the largest remainders. The shares add up to `total` unless `leave` makes that impossible.
    """
    num_rows = sum(counts.values())
    most = {label: max(count - leave, 0) for label, count in counts.items()}
    total = min(total, sum(most.values()))
    exact = {label: count * total / num_rows for label, count in counts.items()}
    shares = {label: min(max(int(exact[label]), at_least), most[label]) for label in counts}
    while (missing := total - sum(shares.values())) != 0:
        change = 1 if missing > 0 else -1
        lowest = {label: min(at_least, most[label]) for label in counts}
        movable = [
            label for label in counts if (shares[label] < most[label] if change > 0 else shares[label] > lowest[label])
        ]
        if not movable:
            break
        furthest = max(movable, key=lambda label: (change * (exact[label] - shares[label]), -label))
        shares[furthest] += change
    return shares


def draw(labels: Sequence[int], shares: dict[int, int], seed: str) -> list[int]:
    """Return the indices of a random part with `shares[label]` rows of each class, in their first order."""
    # Random.random() of a string seed is the one sequence Python promises to keep over its versions.
    generator = random.Random(seed)
    rows: dict[int, list[tuple[float, int]]] = {label: [] for label in shares}
    for index, label in enumerate(labels):
        rows[label].append((generator.random(), index))
    return sorted(index for label, share in shares.items() for _, index in sorted(rows[label])[:share])


def draw_multi(labels: Sequence[tuple[int, ...]], total: int, seed: str, *, leave: int) -> list[int]:
    """Return the indices of `total` random texts, fewer where each label is to keep `leave` of its own.

    Of texts with several labels most combinations are too rare to be strata.
    """
    generator = random.Random(seed)
    left = Counter(label for text in labels for label in text)
    chosen: list[int] = []
    for _, index in sorted((generator.random(), index) for index in range(len(labels))):
        if len(chosen) < total and all(left[label] > leave for label in labels[index]):
            chosen.append(index)
            left.subtract(labels[index])
    return sorted(chosen)


def is_multi_label(split: Split) -> bool:
    """Whether texts have several labels, or none."""
    return bool(split.labels) and isinstance(split.labels[0], tuple)


def set_aside(train: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Cut train into train and validation; each class keeps a row in train."""
    total = max(round(fraction * len(train.labels)), 1)
    if is_multi_label(train):
        return _parted(train, draw_multi(train.labels, total, f"{seed} validation", leave=1))
    shares = class_shares(dict(sorted(Counter(train.labels).items())), total, at_least=0, leave=1)
    return _parted(train, draw(train.labels, shares, f"{seed} validation"))


def _parted(train: Split, chosen: list[int]) -> tuple[Split, Split]:
    """Return train without the chosen rows, and these."""
    if not chosen:
        raise UserError(
            "train has one row a class, so none can be set aside for validation. Add rows, or set data.validation_file."
        )
    kept = set(chosen)
    return train.part([index for index in range(len(train.labels)) if index not in kept]), train.part(chosen)


def limit(split: Split, max_samples: int | None, seed: int, name: str) -> Split:
    """Return a stratified part of at most `max_samples` rows; train keeps every class.

    Of texts with several labels it is a random part.
    """
    if max_samples is None or max_samples >= len(split.labels):
        return split
    if is_multi_label(split):
        return split.part(draw_multi(split.labels, max_samples, f"{seed} {name}", leave=0))
    counts = dict(sorted(Counter(split.labels).items()))
    if name == "train" and max_samples < len(counts):
        raise UserError(
            f"data.max_train_samples is {max_samples}, train has {len(counts)} classes. "
            f"Set it to {len(counts)} or more."
        )
    shares = class_shares(counts, max_samples, at_least=1 if name == "train" else 0, leave=0)
    return split.part(draw(split.labels, shares, f"{seed} {name}"))
