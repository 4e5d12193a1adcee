"""A model that holds the weights of one layer at a time: each layer's are there while it runs, and only then."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

Fill = Callable[[nn.Module, str, str], None]
"""Puts a weight in its place: (its module, its name there, its name in the whole model)."""

BITSANDBYTES = ("quant_state", "compress_statistics", "quant_type", "blocksize", "quant_storage", "bnb_quantized")
"""What PEFT and bitsandbytes' layers ask a 4-bit weight for before it has been read."""


class _Weight:
    """The place of a weight, and what stands there while the weight does not."""

    def __init__(self, owner: nn.Module, attribute: str, name: str, device: torch.device) -> None:
        self.owner: Any = owner
        self.attribute, self.name = attribute, name
        weight = getattr(owner, attribute)
        # One value that shows itself as all of them: shape and device are right, and it takes no memory.
        value = torch.zeros((), dtype=weight.dtype, device=device)
        self.absent = nn.Parameter(value.expand(weight.shape), requires_grad=False)
        for key in BITSANDBYTES:
            if hasattr(weight, key):
                setattr(self.absent, key, getattr(weight, key))
        self.drop()

    def drop(self) -> None:
        """Let the weight go."""
        setattr(self.owner, self.attribute, self.absent)
        if hasattr(self.owner, "quant_state"):
            self.owner.quant_state = None  # 4-bit layers keep the scales beside the weight
        state = getattr(self.owner, "state", None)
        if state is not None:
            state.CB = state.SCB = None  # and 8-bit layers the weight itself


def hold_one_layer(model: nn.Module, names: Iterable[str], fill: Fill, device: torch.device) -> None:
    """Have each layer of a model filled by `fill` before it runs, and emptied after it.

    `names` are the parameters that `fill` can bring to `device`. The layers' own forward stays as it is: weights come
    and go in hooks. Call it before an adapter wraps the model's modules.
    """
    layers = {name: part for name, part in model.named_modules() if isinstance(part, GradientCheckpointingLayer)}
    weights: dict[nn.Module, list[_Weight]] = defaultdict(list)
    for name in names:
        owner_name, _, attribute = name.rpartition(".")
        owner = model.get_submodule(owner_name)
        layer = next((part for prefix, part in layers.items() if name.startswith(f"{prefix}.")), owner)
        weights[layer].append(_Weight(owner, attribute, name, device))
    for layer, held in weights.items():
        _fill_while_it_runs(layer, held, fill)


def _fill_while_it_runs(layer: nn.Module, weights: list[_Weight], fill: Fill) -> None:
    def bring(_: nn.Module, __: Any) -> None:
        for weight in weights:
            fill(weight.owner, weight.attribute, weight.name)

    def drop(_: nn.Module, __: Any, ___: Any) -> None:
        for weight in weights:
            weight.drop()

    layer.register_forward_pre_hook(bring)
    layer.register_forward_hook(drop, always_call=True)
