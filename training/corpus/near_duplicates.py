"""Texts that are nearly the same, found among many by MinHash and confirmed by their shingles.

A text is the set of its shingles: every `SHINGLE_WORDS` words in a row, where a character of a script that does not
part its words (Chinese, Japanese, Thai ...) counts as a word. Two texts are near where the Jaccard similarity of their
sets is `THRESHOLD` or more. MinHash: Broder, "On the resemblance and containment of documents", 1997; banding:
Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", chapter 3.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SHINGLE_WORDS = 3
THRESHOLD = 0.8
"""A pair of this similarity is a candidate with probability 1 - (1 - 0.8^5)^20 = 0.9996, one of 0.9 almost surely."""
BANDS, ROWS_PER_BAND = 20, 5
MAX_OF_BUCKET = 64
"""Candidates a text gets from one band at most: what thousands of texts share is a template, not a copy."""
BATCH_CHARACTERS = 1 << 20
"""Texts turned into shingles at a time: some tens of MB."""

_WITHOUT_SPACES = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_WITHOUT_SPACES}]|[^\W{_WITHOUT_SPACES}]+")
_BASE = 0x9E3779B97F4A7C15
_SEED = 20_240_229

Hashes = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Signatures:
    """What is kept of each text to find those like it."""

    bands: Hashes
    """[BANDS, texts]: equal in a band where all its MinHash values are."""
    num_shingles: Indices
    """[texts]: distinct shingles, 0 for a text without a word, which is near to none."""


@dataclass(frozen=True, kw_only=True)
class NearPair:
    """Two texts by their position, one of each list."""

    index: int
    other: int
    jaccard: float


def sign(texts: Sequence[str], advance: Callable[[int], None] = lambda _: None) -> Signatures:
    """Return the signatures of normalized texts; `advance` is told of texts that are done."""
    generator = np.random.default_rng(_SEED)
    factors = generator.integers(0, 2**63, BANDS * ROWS_PER_BAND, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    shifts = generator.integers(0, 2**63, BANDS * ROWS_PER_BAND, dtype=np.uint64)
    bands = np.zeros((BANDS, len(texts)), dtype=np.uint64)
    sizes = np.zeros(len(texts), dtype=np.int64)
    for start, batch in _batches(texts):
        hashes, counts = shingle_hashes(batch)
        filled = np.flatnonzero(counts)
        if len(filled):
            begins = np.concatenate([[0], np.cumsum(counts[filled])[:-1]])
            for number, (factor, shift) in enumerate(zip(factors, shifts, strict=True)):
                # An odd factor permutes the 64-bit numbers, so the smallest product is a random shingle's.
                smallest = np.minimum.reduceat(hashes * factor + shift, begins)
                band = bands[number // ROWS_PER_BAND]
                band[start + filled] = _mixed(band[start + filled] * np.uint64(_BASE) + smallest)
            sizes[start : start + len(batch)] = counts
        advance(len(batch))
    return Signatures(bands=bands, num_shingles=sizes)


def near_pairs(
    texts: Sequence[str], signatures: Signatures, others: Sequence[str], of_others: Signatures
) -> list[NearPair]:
    """Return for each of `texts` that has a near one among `others` the pair of the highest similarity, in order."""
    pairs = _candidates(signatures, of_others)
    small, large = np.sort([signatures.num_shingles[pairs[0]], of_others.num_shingles[pairs[1]]], axis=0)
    pairs = pairs[:, small >= THRESHOLD * large]  # the Jaccard similarity is at most the ratio of the sizes
    best: dict[int, NearPair] = {}
    at, shingles = -1, np.empty(0, dtype=np.uint64)
    for index, other in pairs.T.tolist():
        if index != at:
            at, shingles = index, _distinct(texts[index])
        rivals = _distinct(others[other])
        shared = len(np.intersect1d(shingles, rivals, assume_unique=True))
        similarity = shared / (len(shingles) + len(rivals) - shared)
        if similarity >= THRESHOLD and (index not in best or similarity > best[index].jaccard):
            best[index] = NearPair(index=index, other=other, jaccard=similarity)
    return list(best.values())


def _candidates(left: Signatures, right: Signatures) -> Indices:
    """Return [2, pairs]: positions that share a band, each pair once, ordered by the left one."""
    usable = np.flatnonzero(right.num_shingles)
    asking = np.flatnonzero(left.num_shingles)
    found = []
    for ours, theirs in zip(left.bands[:, asking], right.bands[:, usable], strict=True):
        order = np.argsort(theirs, kind="stable")
        ordered = theirs[order]
        first = np.searchsorted(ordered, ours, side="left")
        count = np.minimum(np.searchsorted(ordered, ours, side="right") - first, MAX_OF_BUCKET)
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        found.append(np.stack([np.repeat(asking, count), usable[order[np.repeat(first, count) + within]]]))
    return np.unique(np.concatenate(found, axis=1), axis=1)


def _batches(texts: Sequence[str]) -> Iterator[tuple[int, Sequence[str]]]:
    """Yield position of the first and texts of about BATCH_CHARACTERS."""
    start = room = 0
    for end, text in enumerate(texts):
        room += len(text) + 1
        if room >= BATCH_CHARACTERS:
            yield start, texts[start : end + 1]
            start, room = end + 1, 0
    if start < len(texts):
        yield start, texts[start:]


def shingle_hashes(texts: Sequence[str]) -> tuple[Hashes, Indices]:
    """Return the hashes of all distinct shingles, text by text, and how many each text has.

    A text of fewer than SHINGLE_WORDS words is one shingle. A shingle's hash is a polynomial in its characters, taken
    from one running sum over all texts (Karp and Rabin 1987), and then mixed.
    """
    joined = "\n".join(" ".join(_WORD.findall(text)) for text in texts)
    codes = np.frombuffer(f"\n{joined}\n".encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    is_end = codes == ord("\n")
    is_gap = is_end | (codes == ord(" "))
    begins = np.flatnonzero(is_gap[:-1] & ~is_gap[1:]) + 1
    ends = np.flatnonzero(~is_gap[:-1] & is_gap[1:]) + 1
    num_words = np.bincount(np.cumsum(is_end)[begins] - 1, minlength=len(texts))
    first_word = np.cumsum(num_words) - num_words
    num_shingles = np.where(num_words > 0, np.maximum(num_words - SHINGLE_WORDS + 1, 1), 0)
    text_of = np.repeat(np.arange(len(texts)), num_shingles)
    within = np.arange(len(text_of)) - np.repeat(np.cumsum(num_shingles) - num_shingles, num_shingles)
    first = first_word[text_of] + within
    last = np.minimum(first + SHINGLE_WORDS - 1, (first_word + num_words)[text_of] - 1)
    hashes = _polynomials(codes, begins[first], ends[last])
    order = np.lexsort((hashes, text_of))
    hashes, text_of = hashes[order], text_of[order]
    is_new = np.ones(len(hashes), dtype=bool)
    is_new[1:] = (hashes[1:] != hashes[:-1]) | (text_of[1:] != text_of[:-1])
    return hashes[is_new], np.bincount(text_of[is_new], minlength=len(texts))


def _polynomials(codes: npt.NDArray[np.uint32], begins: Indices, ends: Indices) -> Hashes:
    """Return the hash of codes[begin:end] for each, modulo 2^64."""
    powers = _powers(_BASE, len(codes))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(codes * powers, dtype=np.uint64)])
    inverse = _powers(pow(_BASE, -1, 1 << 64), len(codes))
    return _mixed((sums[ends] - sums[begins]) * inverse[begins - 1])


def _powers(base: int, count: int) -> Hashes:
    """Return base^1 ... base^count modulo 2^64."""
    return np.cumprod(np.full(count, base, dtype=np.uint64), dtype=np.uint64)


def _mixed(values: Hashes) -> Hashes:
    """Spread every bit over all (the finalizer of SplitMix64, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))  # type: ignore[no-any-return]


def _distinct(text: str) -> Hashes:
    return shingle_hashes([text])[0]
