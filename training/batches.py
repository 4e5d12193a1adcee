"""The order of the samples: a pure function of the seed, so that any run can be taken up anywhere.

Every optimizer step sees exactly one global batch of N samples (the last of an epoch may be smaller). How it is cut
over ranks and micro-batches changes no result: each text's loss has weight 1/N wherever it is computed. A micro-batch
holds as many texts as fit a token budget, so short texts are not worked on a handful at a time.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Lengths = Sequence[Sequence[int]]
"""Of each text, the tokens of each of its chunks: one, but for long texts where `data.long_text` is chunk."""
LENGTH_MULTIPLE = 32
"""Texts folded together are filled up to a multiple of this many tokens: matrix products are faster on known shapes."""
SHORTER_BY = (0.25, 64)
"""Texts are folded together if they are shorter than the longest by at most this share of it, or so many tokens."""
MOST_TEXTS = 8
"""Texts that are folded together at most: more would be no faster, and each number is a shape of its own."""


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """What one rank does in one optimizer step."""

    micro_batches: list[list[int]]
    """Sample indices. Equally many lists on every rank; a rank with fewer samples has empty ones at the end."""
    num_samples: int
    """Of the whole global batch, over all ranks."""
    num_tokens: int = 0
    """The same, without padding; only speeds need it."""


@functools.lru_cache(maxsize=2)
def epoch_order(num_samples: int, seed: int, epoch: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the epoch's permutation of 0..num_samples-1."""
    return np.random.default_rng([seed, epoch]).permutation(num_samples)


def steps_per_epoch(num_samples: int, global_batch_size: int) -> int:
    """Return the optimizer steps that use every sample once."""
    return math.ceil(num_samples / global_batch_size)


def deal(indices: Sequence[int], lengths: Lengths, world_size: int) -> list[list[int]]:
    """Return each rank's samples: dealt longest first, back and forth, so that all get about the same tokens."""
    ordered = sorted(indices, key=lambda index: (-sum(lengths[index]), index))
    hands: list[list[int]] = [[] for _ in range(world_size)]
    lap = 2 * world_size
    for place, index in enumerate(ordered):
        hands[min(place % lap, lap - 1 - place % lap)].append(index)
    return hands


def fill(indices: Sequence[int], lengths: Lengths, token_budget: int) -> list[list[int]]:
    """Cut samples, given longest first, into micro-batches of at least one sample.

    Chunks x the longest of them is at most `token_budget`: attention works on that many positions. A sample's chunks
    stay together, for its logits are pooled from them; one that is over the budget goes alone.
    """
    micro_batches: list[list[int]] = []
    room = 0
    for index in indices:
        chunks = lengths[index]
        if room < len(chunks) or not micro_batches:
            micro_batches.append([])
            room = token_budget // max(1, *chunks)
        micro_batches[-1].append(index)
        room -= len(chunks)
    return micro_batches


def cut_batch(
    indices: Sequence[int], lengths: Lengths, *, rank: int, world_size: int, token_budget: int
) -> list[list[int]]:
    """Return this rank's micro-batches; ranks with fewer get empty ones, so that all have equally many.

    Equally many, because every forward pass under ZeRO-3 is a collective operation.
    """
    cuts = [fill(hand, lengths, token_budget) for hand in deal(indices, lengths, world_size)]
    most = max(len(cut) for cut in cuts)
    return cuts[rank] + [[] for _ in range(most - len(cuts[rank]))]


def plan_step(
    step: int,
    lengths: Lengths,
    *,
    seed: int,
    global_batch_size: int,
    rank: int,
    world_size: int,
    token_budget: int,
) -> StepPlan:
    """Return what `rank` does in optimizer step `step` (counted from 0 over all epochs)."""
    per_epoch = steps_per_epoch(len(lengths), global_batch_size)
    epoch, place = divmod(step, per_epoch)
    order = epoch_order(len(lengths), seed, epoch)
    batch = order[place * global_batch_size : (place + 1) * global_batch_size].tolist()
    micro_batches = cut_batch(batch, lengths, rank=rank, world_size=world_size, token_budget=token_budget)
    num_tokens = sum(sum(lengths[index]) for index in batch)
    return StepPlan(micro_batches=micro_batches, num_samples=len(batch), num_tokens=num_tokens)


def group_lengths(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Return (texts, tokens a text is filled up to) of each run of neighbours not much shorter than the run's first."""
    groups: list[tuple[int, int]] = []
    longest = 0
    for length in lengths:
        shortest = longest - max(SHORTER_BY[0] * longest, SHORTER_BY[1])
        if groups and shortest <= length <= longest and groups[-1][0] < MOST_TEXTS:
            groups[-1] = (groups[-1][0] + 1, groups[-1][1])
        else:
            longest = length
            groups.append((1, length + -length % LENGTH_MULTIPLE))
    return groups
