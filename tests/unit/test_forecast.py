"""The memory forecast: what is counted as alive, which micro-batch is the largest, and where a job fits."""

from __future__ import annotations

import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from training.batches import plan_step
from training.errors import UserError
from training.forecast.estimate import forecast, largest_micro_batch, shape_of
from training.forecast.live import LiveBytes
from training.spec import DataSpec, JobSpec, TrainingSpec


def total(live: LiveBytes) -> int:
    return sum(live.live.values())


def test_storages_are_counted_while_they_live_and_views_never() -> None:
    with FakeTensorMode(), LiveBytes({}, {}) as live:
        whole = torch.empty(100)
        assert total(live) == 400
        views = [whole[10:20], whole.view(10, 10).t(), whole.detach().reshape(50, 2), whole.to(torch.float32)]
        assert total(live) == 400
        del whole
        assert total(live) == 400
        copy = views[0].clone()
        assert total(live) == 440
        del views
        assert total(live) == 40
        del copy
        assert total(live) == 0
    assert sum(live.peaks["cpu", ""].values()) == 440


def test_a_training_step_peaks_where_arithmetic_says() -> None:
    """x [8, 4] -> W [4, 16] -> relu -> sum: in backward W, x, hidden, relu's output and the gradients are alive."""
    with FakeTensorMode(), LiveBytes({}, {}) as live:
        weight = nn.Parameter(torch.empty(4, 16))
        x = torch.empty(8, 4)
        torch.relu(x @ weight).sum().backward()
        assert weight.grad is not None
        assert total(live) == 4 * (64 + 32 + 64)
    peak = sum(live.peaks["cpu", ""].values())
    hidden = 4 * 8 * 16
    assert 4 * (64 + 32) + 2 * hidden <= peak <= 4 * (64 + 32 + 64) + 3 * hidden


def test_causes_and_stand_ins() -> None:
    aten = torch.ops.aten

    def by_parts(x: torch.Tensor, *_: object) -> torch.Tensor:
        return x.exp() + x.exp()  # two temporaries that the kernel itself would not show

    with FakeTensorMode(), LiveBytes({aten.softplus: by_parts}, {aten.zeros_like: "zeros"}) as live:
        x = torch.empty(10)
        live.restart()
        torch.nn.functional.softplus(x)
        assert sum(live.peaks["cpu", ""].values()) == 160
        zeros = torch.zeros_like(x)
        assert live.live["cpu", "zeros"] == 40
        with live.because("mine"):
            mine = x + zeros
        assert live.live["cpu", "mine"] == 40
        live.note(mine, "yours")
        assert (live.live["cpu", "mine"], live.live["cpu", "yours"]) == (0, 40)
        assert zeros.sum().item() == 1.0  # no value is known, and none stops the program


def test_a_cpu_converts_operands_beside_the_output() -> None:
    with FakeTensorMode(), LiveBytes({}, {}) as live:
        narrow, wide = torch.empty(10, dtype=torch.bfloat16), torch.empty(10, 1)
        live.restart()
        narrow.mul_(wide[:, 0])
    assert sum(live.peaks["cpu", ""].values()) == 20 + 40 + 80  # both, then fp32 copies of operand and output


@given(
    lengths=st.lists(st.tuples(st.just(0) | st.integers(0, 7), st.integers(1, 40)), min_size=1, max_size=60),
    micro_batch=st.integers(1, 6),
    accumulation=st.integers(1, 3),
    world_size=st.integers(1, 3),
    seed=st.integers(0, 5),
)
def test_no_step_has_a_larger_micro_batch(
    lengths: list[tuple[int, int]], micro_batch: int, accumulation: int, world_size: int, seed: int
) -> None:
    budget = micro_batch * 40
    texts_of = [(40,) * full + (rest,) for full, rest in lengths]
    batch = micro_batch * accumulation * world_size
    largest = sum(largest_micro_batch(texts_of, budget, batch, world_size))
    for step in range(4):
        plan = plan_step(
            step, texts_of, seed=seed, global_batch_size=batch, rank=0, world_size=world_size, token_budget=budget
        )
        assert max(sum(sum(texts_of[i]) for i in texts) for texts in plan.micro_batches) <= largest


def spec_of(**training: int) -> JobSpec:
    return JobSpec(data=DataSpec(train_file="t.csv", max_seq_length=64), training=TrainingSpec(**training))


def test_without_data_all_texts_are_longest() -> None:
    spec = spec_of(per_device_train_batch_size=4, gradient_accumulation_steps=2, per_device_eval_batch_size=3)
    shape = shape_of(spec, None, None, 2)
    assert (shape.training, shape.evaluation, shape.accumulates) == ([[64] * 4], [64] * 3, True)


@pytest.mark.parametrize(("shortest_for_the_kernel", "training"), [(384, [[500], [340]]), (513, [[500]])])
def test_short_texts_are_a_case_of_their_own_where_their_attention_is_kept(
    shortest_for_the_kernel: int, training: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.cpu_attention.LONGEST", shortest_for_the_kernel)
    spec = JobSpec(
        data=DataSpec(train_file="t.csv", max_seq_length=512),
        training=TrainingSpec(per_device_train_batch_size=1, gradient_accumulation_steps=10),
    )
    assert shape_of(spec, [(500,), (490,), (340,), (30,)], None, 1).training == training
    assert shape_of(spec, [(340,), (300,)], None, 1).training == [[340]]


def test_short_texts_share_the_room_of_long_ones() -> None:
    draw = random.Random(0)
    lengths = [(draw.randint(5, 20),) for _ in range(100)]
    shape = shape_of(spec_of(per_device_train_batch_size=4), lengths, lengths, 1)
    assert len(shape.training[0]) == 4 and not shape.accumulates  # a step has no more
    assert len(shape.evaluation) > 12


def test_all_chunks_of_a_text_are_in_one_micro_batch() -> None:
    spec = spec_of(per_device_train_batch_size=2, gradient_accumulation_steps=3)
    long = shape_of(spec, [(64, 64, 64, 64, 9), (64, 5), (3,)], [(3,)], 1)
    assert (long.training[0], long.accumulates) == ([64, 64, 64, 64, 9], True)
    spec = replace(spec, data=replace(spec.data, long_text="chunk", max_chunks=3))
    assert shape_of(spec, None, None, 1).training == [[64] * 3]


def test_recomputing_leaves_fewer_activations_from_the_first_step_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No evaluation comes before the first step here, nor where a job goes on from a checkpoint."""
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path))
    config = {
        "model_type": "llama", "vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
        "num_attention_heads": 2, "num_labels": 3, "pad_token_id": 0,
    }  # fmt: skip
    activations = []
    for checkpointing in (False, True):
        spec = spec_of(
            per_device_train_batch_size=4, per_device_eval_batch_size=1, gradient_checkpointing=checkpointing
        )
        estimate = forecast(spec, config, shape_of(spec, None, None, 1), dtype="fp32", world_size=1, on_card=False)
        assert estimate.phase == "training"
        activations.append(estimate.host["activations"])
    assert activations[1] < 0.6 * activations[0]


def test_fp16_on_a_card_keeps_no_scores_of_all_pairs_of_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As cards without bf16 attend, whose heads share keys; and its overflow flag, which has no value here, is off."""
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path))
    config = {
        "model_type": "llama", "vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_labels": 3, "pad_token_id": 0,
    }  # fmt: skip
    spec = spec_of(per_device_train_batch_size=1, per_device_eval_batch_size=1)
    spec = replace(spec, data=replace(spec.data, max_seq_length=2048))
    asked = partial(forecast, spec, config, shape_of(spec, None, None, 1), dtype="fp16", world_size=1, on_card=True)
    # In a process that has run no model, as other tests have in this one: see training.forecast.estimate.in_fork.
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as process:
        estimate = process.submit(asked).result()
    scores = 2 * 4 * 2048**2  # of one layer
    assert 0 < estimate.card["activations"] < scores


def test_a_model_the_trainer_refuses_is_refused_as_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path))
    config = {
        "model_type": "bert", "vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_labels": 3, "pad_token_id": 0,
    }  # fmt: skip
    spec = spec_of()
    with pytest.raises(UserError, match=r"is a bert, which has no 'score' head\. Use a decoder-only model"):
        forecast(spec, config, shape_of(spec, None, None, 1), dtype="fp32", world_size=1, on_card=False)
