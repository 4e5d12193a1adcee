"""Gives back what a DeepSpeed engine holds, all of it."""

from __future__ import annotations

import gc
from collections import deque
from typing import Any

import torch


def release(engine: Any) -> None:
    """Let go of all tensors of an engine that is done, on the card and in host memory; nothing may use it after.

    ZeRO-3's hooks keep model and optimizer themselves for as long as the process lives, so it is not enough to drop
    the engine: each tensor is emptied.
    """
    for part in engine.module.modules():
        if hasattr(part, "quant_state"):
            part.quant_state = None
        state: Any = getattr(part, "state", None)
        if hasattr(state, "CB"):
            state.CB = state.SCB = None  # int8 weights
    held: list[Any] = [vars(engine.optimizer), vars(engine.basic_optimizer)]
    for parameter in engine.module.parameters():
        parameter.grad = None
        held += [parameter, vars(parameter)]
    seen: set[int] = set()
    kept: list[Any] = []  # else a number of `seen` could be another object's by then
    while held:
        value = held.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        kept.append(value)
        if isinstance(value, torch.Tensor):
            value.data = torch.empty(0, dtype=value.dtype, device=value.device)
        elif isinstance(value, dict):
            held += value.values()
        elif isinstance(value, (list, tuple, deque)):
            held += value
        elif hasattr(value, "absmax"):  # nf4's scales
            value.absmax = None
    del held, kept
    give_back()


def give_back() -> None:
    """Return the memory that PyTorch's allocators keep for later, the card's and the pinned."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        free_host = getattr(torch.accelerator, "empty_host_cache", None) or getattr(torch._C, "_host_emptyCache", None)
        if free_host is not None:
            free_host()
