"""Near duplicates: every pair of high similarity is found, and no pair of low similarity."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from training.corpus.near_duplicates import SHINGLE_WORDS, THRESHOLD, near_pairs, shingle_hashes, sign


def shingles(text: str) -> set[tuple[str, ...]]:
    """Return the shingles as sets of words, as the definition says."""
    words = text.split()
    return {
        tuple(words[at : at + SHINGLE_WORDS]) for at in range(max(len(words) - SHINGLE_WORDS + 1, min(len(words), 1)))
    }


def jaccard(one: str, other: str) -> float:
    left, right = shingles(one), shingles(other)
    return len(left & right) / len(left | right)


@given(st.lists(st.lists(st.sampled_from(["a", "b", "ab", "ba", "c1"]), max_size=12).map(" ".join), max_size=8))
def test_as_many_hashes_as_shingles(texts: list[str]) -> None:
    hashes, counts = shingle_hashes(texts)
    assert counts.tolist() == [len(shingles(text)) for text in texts]
    assert len(set(hashes.tolist())) == len(set().union(*map(shingles, texts)))


@settings(max_examples=10)
@given(st.integers(0, 2**32))
def test_pairs_are_found_by_their_true_similarity(seed: int) -> None:
    """Of texts with some words changed, all pairs from 0.9 are found, and none below the threshold."""
    generator = random.Random(seed)
    texts = [" ".join(f"w{generator.randrange(5000)}" for _ in range(generator.randrange(20, 200))) for _ in range(60)]
    changed = []
    for text in texts:
        words = text.split()
        for at in generator.sample(range(len(words)), generator.randrange(0, max(len(words) // 20, 2))):
            words[at] = f"x{generator.randrange(5000)}"
        changed.append(" ".join(words))
    found = {(pair.index, pair.other): pair.jaccard for pair in near_pairs(changed, sign(changed), texts, sign(texts))}
    truth = {(at, at): jaccard(changed[at], texts[at]) for at in range(len(texts))}
    assert {pair for pair, value in truth.items() if value >= 0.9} <= set(found)
    assert all(value >= THRESHOLD and abs(truth[pair] - value) < 1e-12 for pair, value in found.items())


def test_recall_of_a_thousand_pairs_just_above_the_threshold() -> None:
    """1 - (1 - s^5)^20 is 0.9996 at 0.8; a fixed seed, so a change of the hashes shows here."""
    generator = random.Random(1)
    texts = [" ".join(f"w{generator.randrange(100_000)}" for _ in range(62)) for _ in range(1000)]
    changed = []
    for text in texts:
        words = text.split()
        words[20], words[40] = "x", "y"  # 6 of 60 shingles differ: 54 / 66 = 0.818
        changed.append(" ".join(words))
    pairs = near_pairs(changed, sign(changed), texts, sign(texts))
    assert len(pairs) >= 995
    assert {round(pair.jaccard, 3) for pair in pairs} == {round(54 / 66, 3)}


def test_signatures_do_not_depend_on_the_batch_a_text_is_in() -> None:
    texts = ["one two three four five", "", "!?", "six", "seven eight"]
    together = sign(texts)
    assert together.num_shingles.tolist() == [3, 0, 0, 1, 1]
    for at, text in enumerate(texts):
        assert (sign([text]).bands[:, 0] == together.bands[:, at]).all()
    assert near_pairs(["", "!?"], sign(["", "!?"]), texts, together) == []


def test_a_template_thousands_share_costs_no_square_of_them() -> None:
    texts = [f"how do you answer the couplet of the old master today {number}" for number in range(3000)]
    pairs = near_pairs(texts[:10], sign(texts[:10]), texts, sign(texts))
    assert len(pairs) == 10
    assert all(pair.jaccard >= THRESHOLD for pair in pairs)
