"""fp16's loss scale: what of it a checkpoint holds, when it gives way, and what no scale mends."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler

from training.errors import ShoalError
from training.loss_scale import (
    overflowed,
    read_loss_scale,
    require_finite,
    require_lower_scale,
    scaler_of,
    write_loss_scale,
)
from training.precision import auto_precision
from training.ranks import Ranks

ONE = Ranks(rank=0, world_size=1, local_rank=0, local_world_size=1, master_port=1, num_threads=1)


def engine(scale: float = 2.0**10, window: int = 5, *, overflow: bool = False) -> Any:
    scaler = DynamicLossScaler(scale, window, 1, 1, False, raise_error_at_min_scale=False)
    return SimpleNamespace(optimizer=SimpleNamespace(loss_scaler=scaler, overflow=overflow))


def scales(engine: Any, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        engine.optimizer.loss_scaler.update_scale(False)
        found.append(engine.optimizer.loss_scaler.cur_scale)
    return found


@pytest.mark.parametrize("before", range(13))
def test_a_resumed_scale_grows_when_an_undisturbed_one_does(before: int) -> None:
    undisturbed, left, resumed = engine(), engine(), engine(scale=2.0**20)
    expected = scales(undisturbed, 20)
    assert len(set(expected)) == 4  # it grows each fifth step
    scales(left, before)
    scales(resumed, 1)  # as restoring a checkpoint makes one idle step
    write_loss_scale(resumed, read_loss_scale(left))
    assert scales(resumed, 20 - before) == expected[before:]


def test_other_precisions_have_none() -> None:
    for optimizer in (SimpleNamespace(), SimpleNamespace(loss_scaler=LossScaler(1.0), overflow=True)):
        plain = SimpleNamespace(optimizer=optimizer)
        assert scaler_of(plain) is None and read_loss_scale(plain) == {} and not overflowed(plain)
        write_loss_scale(plain, {})


def test_an_overflow_is_said_with_the_scale_before_and_now() -> None:
    job = engine(overflow=True)
    before = read_loss_scale(job)
    assert overflowed(job)
    job.optimizer.loss_scaler.cur_scale /= 2
    message = require_lower_scale(job, before, torch.tensor(1.5), 6, ONE)
    assert message.startswith("step 7 is made again") and "1024" in message and "512 now" in message


@pytest.mark.parametrize(
    ("loss", "words"), [(float("inf"), "activations"), (float("nan"), "activations"), (1.0, "lowest")]
)
def test_what_no_scale_mends_ends_the_job_with_the_remedy(loss: float, words: str) -> None:
    job = engine(scale=1.0, overflow=True)
    with pytest.raises(ShoalError, match=rf"(?s){words}.*Set model.dtype: fp32"):
        require_lower_scale(job, read_loss_scale(job), torch.tensor(loss), 0, ONE)


def test_logits_that_are_no_numbers_are_refused_in_fp16_alone() -> None:
    logits = np.array([[1.0, np.nan]])
    require_finite(logits, "bfloat16")
    require_finite(np.ones((2, 2)), "float16")
    for wrong in (logits, np.array([[np.inf, 0.0]])):
        with pytest.raises(ShoalError, match="fp32"):
            require_finite(wrong, "float16")


@pytest.mark.parametrize(
    ("capability", "precision"),
    [((12, 0), "bf16"), ((8, 6), "bf16"), ((7, 5), "fp16"), ((7, 0), "fp16"), ((6, 1), "fp32")],
)
def test_precision_of_a_card(capability: tuple[int, int], precision: str) -> None:
    assert auto_precision(capability) == precision
