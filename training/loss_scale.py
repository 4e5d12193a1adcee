"""fp16's loss scale: what is too small for fp16's gradients is multiplied up, and a step that overflows is made again.

DeepSpeed multiplies the loss, divides the summed gradients, leaves the weights alone where one is infinite on any rank,
and moves the scale (Micikevicius et al. 2018, arXiv:1710.03740, 3.2). Others then go on with the next batch: a batch is
lost, and a step is counted that was none. Here the same texts are tried again at the lower scale, so that a job makes
the steps it was asked for, on every text, and an overflow leaves no trace in what is learnt.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from training.errors import ShoalError
from training.ranks import Ranks

LossScale = dict[str, float]
"""What of the scaler stands in a checkpoint: "scale", "steps" without an overflow, "hysteresis" left; else empty."""

REMEDY = "Set model.dtype: fp32, or bf16 on a card from RTX 30 on"


def scaler_of(engine: Any) -> Any | None:
    """Return the dynamic loss scaler of an fp16 job, None in another precision."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    return scaler if getattr(scaler, "dynamic", False) else None


def read_loss_scale(engine: Any) -> LossScale:
    """Return the scaler's state; empty where the job has none."""
    scaler = scaler_of(engine)
    if scaler is None:
        return {}
    return {
        "scale": float(scaler.cur_scale),
        "steps": scaler.cur_iter - scaler.last_overflow_iter - 1,
        "hysteresis": scaler.cur_hysteresis,
    }


def write_loss_scale(engine: Any, state: LossScale) -> None:
    """Put back what `read_loss_scale` returned."""
    scaler = scaler_of(engine)
    if scaler is None or not state:
        return
    scaler.cur_scale = state["scale"]
    scaler.cur_iter = scaler.last_overflow_iter + 1 + int(state["steps"])
    scaler.cur_hysteresis = int(state["hysteresis"])


def overflowed(engine: Any) -> bool:
    """Whether the step just made was left out, for a gradient of some rank was infinite or not a number."""
    return scaler_of(engine) is not None and bool(engine.optimizer.overflow)


def forget_gradients(engine: Any) -> None:
    """Drop what a step that was left out has summed up.

    DeepSpeed 0.19.8 does so but in stages 1 and 2 with an offloaded optimizer, where the next step would be added to
    the infinite sums, and overflow as well.
    """
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    if isinstance(engine.optimizer, DeepSpeedZeroOptimizer):
        for group in engine.optimizer.averaged_gradients:
            engine.optimizer.averaged_gradients[group] = None


def require_lower_scale(engine: Any, before: LossScale, loss_sum: Tensor, step: int, ranks: Ranks) -> str:
    """Return what to say of an overflow in the step after `step` steps. All ranks must call it.

    Raises ShoalError where no scale can mend it: the loss itself is no number, or the scale is as low as it goes.
    """
    finite = torch.isfinite(loss_sum).float()
    if ranks.world_size > 1:
        dist.all_reduce(finite, op=dist.ReduceOp.MIN)
    if not finite.item():
        raise ShoalError(
            f"the loss is not finite in step {step + 1}: the model's activations overflow fp16, which ends at 65504, "
            f"and no loss scale mends that. {REMEDY}."
        )
    after = read_loss_scale(engine)
    if (after["scale"], after["hysteresis"]) == (before["scale"], before["hysteresis"]):
        raise ShoalError(
            f"the gradients of step {step + 1} overflow fp16 even at the lowest loss scale ({after['scale']:g}). "
            f"{REMEDY}, or lower training.learning_rate."
        )
    return (
        f"step {step + 1} is made again: its gradients overflowed fp16 at a loss scale of {before['scale']:g}, which "
        f"is {after['scale']:g} now"
    )


def require_finite(logits: Any, dtype: str) -> None:
    """Raise ShoalError for logits (NumPy) of fp16 that are not finite: the predictions would mean nothing."""
    if dtype == "float16" and not bool((abs(logits) < float("inf")).all()):
        raise ShoalError(
            f"a logit is not finite: the model's activations overflow fp16, which ends at 65504. {REMEDY}."
        )
