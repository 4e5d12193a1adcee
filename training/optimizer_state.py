"""The whole fp32 training state of adapter and head, whatever ZeRO made of it: read out and put back.

Under ZeRO each rank holds a slice of the fp32 weights and of AdamW's moments; DeepSpeed's `safe_get_*` and
`safe_set_*` calls assemble and scatter them (https://deepspeed.readthedocs.io/en/latest/zero3.html). Without ZeRO in
fp32 the optimizer is plain torch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.engine import load_trainable, trainable_parameters

MOMENTS = ("exp_avg", "exp_avg_sq")


def _is_plain(parameter: nn.Parameter) -> bool:
    """Whether the optimizer holds the parameter itself instead of a slice of an fp32 copy."""
    return not hasattr(parameter, "ds_id") and not hasattr(parameter, "_hp_mapping")


def read_training_state(engine: Any) -> dict[str, Tensor]:
    """Return "param/NAME", "exp_avg/NAME", "exp_avg_sq/NAME" as fp32 CPU tensors. All ranks must call it.

    Valid after at least one optimizer step.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    state: dict[str, Tensor] = {}
    for name, parameter in trainable_parameters(engine.module).items():
        if _is_plain(parameter):
            values = [parameter.detach(), *(engine.optimizer.state[parameter][key] for key in MOMENTS)]
        else:
            values = [
                safe_get_full_fp32_param(parameter),
                *(safe_get_full_optimizer_state(parameter, key) for key in MOMENTS),
            ]
        for key, value in zip(("param", *MOMENTS), values, strict=True):
            state[f"{key}/{name}"] = value.detach().float().cpu().reshape(parameter_shape(parameter)).clone()
    return state


def parameter_shape(parameter: nn.Parameter) -> torch.Size:
    """Return the whole shape, also of a parameter ZeRO-3 has partitioned."""
    return getattr(parameter, "ds_shape", parameter.shape)


def write_training_state(engine: Any, state: dict[str, Tensor], num_updates: int) -> None:
    """Put back what `read_training_state` returned after `num_updates` optimizer steps. All ranks must call it.

    The optimizer must have made one step (of learning rate 0, say): before, its state does not exist.
    """
    parameters = trainable_parameters(engine.module)
    load_trainable(engine.module, {name: state[f"param/{name}"] for name in parameters})
    for name, parameter in parameters.items():
        if _is_plain(parameter):
            for key in MOMENTS:
                engine.optimizer.state[parameter][key].copy_(state[f"{key}/{name}"])
            continue
        _write_param(parameter, state[f"param/{name}"])
        for key in MOMENTS:
            _write_moment(parameter, state[f"{key}/{name}"], key)
    optimizer = base_optimizer(engine)
    for values in optimizer.state.values():
        if isinstance(values.get("step"), Tensor):
            values["step"].fill_(num_updates)
        elif "step" in values:
            values["step"] = num_updates
    if hasattr(optimizer, "ds_opt_adam"):
        _count_up(optimizer, num_updates)


def _count_up(optimizer: Any, num_updates: int) -> None:
    """Bring DeepSpeedCPUAdam's own powers of beta to `num_updates` the way training does.

    It multiplies them up step by step in fp32, but calls `pow` after a jump (csrc/includes/cpu_adam.h), which rounds
    otherwise: a resumed run would drift from an undisturbed one.
    """
    group = optimizer.param_groups[0]
    weight, gradient, mean, square = (torch.zeros(1) for _ in range(4))
    for step in range(2, num_updates + 1):
        optimizer.ds_opt_adam.adam_update(
            optimizer.opt_id, step, 0.0, *group["betas"], group["eps"], 0.0, group["bias_correction"],
            weight, gradient, mean, square,
        )  # fmt: skip


def _write_param(parameter: nn.Parameter, value: Tensor) -> None:
    """Put a whole fp32 weight where ZeRO keeps its slices."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

    if hasattr(parameter, "ds_id"):
        safe_set_local_fp32_param(parameter, own_slice(parameter, value))
    else:
        safe_set_full_fp32_param(parameter, value.to(parameter.device))


def _write_moment(parameter: nn.Parameter, value: Tensor, key: str) -> None:
    """Put a whole moment of AdamW where ZeRO keeps its slices."""
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    if hasattr(parameter, "ds_id"):
        safe_set_local_optimizer_state(parameter, own_slice(parameter, value), key)
    else:
        safe_set_full_optimizer_state(parameter, value.to(parameter.device), key)


def own_slice(parameter: Any, value: Tensor) -> Tensor:
    """Return this rank's slice of a whole tensor as ZeRO-3 cuts it, the last slice padded with zeros.

    DeepSpeed's own `safe_set_full_*` forget the padding and fail where a tensor does not divide by the ranks.
    """
    size = int(parameter.ds_tensor.numel())
    flat = value.flatten()[dist.get_rank() * size :][:size]
    return torch.nn.functional.pad(flat, (0, size - flat.numel())).to(parameter.ds_tensor.device)


def base_optimizer(engine: Any) -> Any:
    """Return the AdamW inside ZeRO's wrapper."""
    return engine.basic_optimizer
