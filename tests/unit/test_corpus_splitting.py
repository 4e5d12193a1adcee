"""The parts of a split: sizes add up, classes are kept, nothing is drawn twice."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from training.corpus.splitting import class_shares, draw

counts_of_classes = st.lists(st.integers(1, 200), min_size=1, max_size=12).map(lambda sizes: dict(enumerate(sizes)))


@given(counts_of_classes, st.integers(0, 1500), st.integers(0, 1), st.integers(0, 1))
def test_shares_add_up_within_their_bounds(counts: dict[int, int], total: int, at_least: int, leave: int) -> None:
    most = {label: count - leave for label, count in counts.items()}
    lowest = sum(min(at_least, most[label]) for label in counts)
    shares = class_shares(counts, total, at_least=at_least, leave=leave)
    assert sum(shares.values()) == min(max(total, lowest), sum(most.values()))
    for label, share in shares.items():
        assert min(at_least, most[label]) <= share <= most[label]


def test_shares_are_in_proportion() -> None:
    assert class_shares({0: 80, 1: 20}, 10, at_least=0, leave=1) == {0: 8, 1: 2}
    assert class_shares({0: 998, 1: 1, 2: 1}, 10, at_least=1, leave=0) == {0: 8, 1: 1, 2: 1}


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(0, 9))
def test_draw_takes_each_share_once_in_order(labels: list[int], seed: int) -> None:
    shares = {label: (count + 1) // 2 for label, count in Counter(labels).items()}
    drawn = draw(labels, shares, str(seed))
    assert drawn == sorted(set(drawn))
    assert Counter(labels[index] for index in drawn) == shares
