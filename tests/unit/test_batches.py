"""The order of the samples: each once an epoch, however many ranks and whatever room there is."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from training.batches import Lengths, StepPlan, cut_batch, deal, epoch_order, fill, plan_step, steps_per_epoch

LONGEST = 64
"""Tokens of a chunk."""
whole_texts = st.integers(1, LONGEST).map(lambda length: (length,))
chunked_texts = st.builds(lambda full, rest: (LONGEST,) * full + (rest,), st.integers(1, 5), st.integers(1, LONGEST))
lengths_of_samples = st.lists(whole_texts, min_size=1, max_size=60) | st.lists(
    whole_texts | chunked_texts, min_size=1, max_size=40
)
world_sizes = st.integers(1, 5)
token_budgets = st.integers(64, 300)
"""At least the longest text: the token budget is a batch size times max_seq_length."""


def whole(*lengths: int) -> Lengths:
    """Return texts of one chunk each."""
    return [(length,) for length in lengths]


def plans(lengths: Lengths, step: int, **settings: Any) -> list[StepPlan]:
    """Return the plan of every rank."""
    return [plan_step(step, lengths, rank=rank, **settings) for rank in range(settings["world_size"])]


@given(lengths_of_samples, st.integers(1, 17), world_sizes, token_budgets, st.integers(0, 2**31), st.integers(0, 2))
def test_an_epoch_uses_every_sample_once(
    lengths: Lengths, batch: int, world_size: int, budget: int, seed: int, epoch: int
) -> None:
    per_epoch = steps_per_epoch(len(lengths), batch)
    used: list[int] = []
    for step in range(epoch * per_epoch, (epoch + 1) * per_epoch):
        ranks = plans(lengths, step, seed=seed, global_batch_size=batch, world_size=world_size, token_budget=budget)
        in_step = [index for plan in ranks for micro in plan.micro_batches for index in micro]
        assert {plan.num_samples for plan in ranks} == {len(in_step)}
        assert {plan.num_tokens for plan in ranks} == {sum(sum(lengths[index]) for index in in_step)}
        assert len({len(plan.micro_batches) for plan in ranks}) == 1, "a rank short of a pass would hang the others"
        assert all(plan.micro_batches for plan in ranks)
        used += in_step
    assert sorted(used) == list(range(len(lengths)))


@given(lengths_of_samples, st.integers(1, 17), world_sizes, token_budgets, st.integers(0, 3))
def test_ranks_and_room_never_change_what_a_step_sees(
    lengths: Lengths, batch: int, world_size: int, budget: int, step: int
) -> None:
    def samples(**settings: Any) -> list[int]:
        ranks = plans(lengths, step, seed=3, global_batch_size=batch, **settings)
        return sorted(index for plan in ranks for micro in plan.micro_batches for index in micro)

    assert samples(world_size=world_size, token_budget=budget) == samples(world_size=1, token_budget=64)


@given(lengths_of_samples, world_sizes, token_budgets)
def test_no_micro_batch_is_over_the_budget_and_only_the_last_are_empty(
    lengths: Lengths, world_size: int, budget: int
) -> None:
    """But for a text whose own chunks are over it, which goes alone."""
    for rank in range(world_size):
        cut = cut_batch(range(len(lengths)), lengths, rank=rank, world_size=world_size, token_budget=budget)
        for micro in filter(None, cut):
            chunks = [length for index in micro for length in lengths[index]]
            assert len(chunks) * max(chunks) <= budget or len(micro) == 1
        filled = [bool(micro) for micro in cut]
        assert filled == sorted(filled, reverse=True)


def test_a_text_over_the_budget_goes_alone() -> None:
    assert fill([0, 1, 2], whole(9, 3, 2), token_budget=5) == [[0], [1], [2]]


def test_micro_batches_are_filled_to_the_brim() -> None:
    assert fill([0, 1, 2, 3, 4], whole(4, 3, 2, 1, 1), token_budget=6) == [[0], [1, 2], [3, 4]]


def test_the_chunks_of_a_text_stay_together_and_count_each() -> None:
    lengths = [(8, 8, 8), (8, 8), (8, 8), (8, 1), (5,), (5,), (2,)]
    assert fill(range(7), lengths, token_budget=32) == [[0], [1, 2], [3, 4, 5], [6]]
    assert fill(range(3), [(8,) * 9, (8, 8), (8, 3)], token_budget=32) == [[0], [1, 2]]  # the first over the budget


@given(lengths_of_samples, world_sizes)
def test_hands_are_even(lengths: Lengths, world_size: int) -> None:
    hands = deal(range(len(lengths)), lengths, world_size)
    sizes = [len(hand) for hand in hands]
    assert max(sizes) - min(sizes) <= 1
    tokens = [sum(sum(lengths[index]) for index in hand) for hand in hands]
    assert max(tokens) - min(tokens) <= max(map(sum, lengths))


def test_dealing_goes_back_and_forth_longest_first() -> None:
    assert deal(range(6), whole(1, 6, 3, 4, 5, 2), world_size=2) == [[1, 2, 5], [4, 3, 0]]


@given(st.integers(1, 100), st.integers(0, 2**31), st.integers(0, 5))
def test_the_order_is_a_function_of_seed_and_epoch(num_samples: int, seed: int, epoch: int) -> None:
    first = epoch_order(num_samples, seed, epoch).tolist()
    epoch_order.cache_clear()
    assert epoch_order(num_samples, seed, epoch).tolist() == first
    assert sorted(first) == list(range(num_samples))


def test_epochs_and_seeds_differ() -> None:
    orders = [tuple(epoch_order(50, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4


def test_the_order_is_this_one() -> None:
    """Pinned: another order would make old checkpoints go on with samples they have already seen."""
    assert epoch_order(8, 42, 0).tolist() == [3, 4, 2, 7, 6, 1, 5, 0]


@given(st.integers(1, 1000), st.integers(1, 64))
def test_steps_cover_the_epoch(num_samples: int, batch: int) -> None:
    steps = steps_per_epoch(num_samples, batch)
    assert steps == math.ceil(num_samples / batch)
    last = plan_step(
        steps - 1, whole(*[1] * num_samples), seed=0, global_batch_size=batch, rank=0, world_size=1, token_budget=64
    )
    assert last.num_samples == num_samples - (steps - 1) * batch
