"""LoRA layers that compute what PEFT's do in fewer and larger matrix products.

With adapters of rank 16 the products with A and B are too small to keep a processor busy. Layers that read the same
input (queries, keys and values; the two halves of a gated MLP) share one product with their A matrices laid together,
and neither scale nor sum is a pass of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners import lora
from torch import Tensor, nn

LORA_LINEAR = {"Linear", "Linear4bit", "Linear8bitLt"}
"""PEFT's LoRA layers on linear ones, plain and of bitsandbytes."""

SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers of one module that are called with the same tensor, in this order."""


def fuse_lora(model: nn.Module) -> None:
    """Give the LoRA layers of a loaded model their fast forward and backward."""
    done: set[nn.Module] = set()
    for module in model.modules():
        for names in SAME_INPUT:
            if all(hasattr(module, name) for name in names):
                _fuse([layer for name in names if is_fusable(layer := getattr(module, name))], done)
    for module in model.modules():
        if is_fusable(module):
            _fuse([module], done)


def is_fusable(layer: Any) -> bool:
    """Whether it is a LoRA layer this module knows. DoRA's is not: it needs the norm of the merged weight."""
    if type(layer).__name__ not in LORA_LINEAR or not isinstance(layer, lora.LoraLayer):
        return False
    return not layer.use_dora.get(layer.active_adapters[0], False)


def _fuse(layers: list[Any], done: set[nn.Module]) -> None:
    """Have layers that are not done yet share a `FusedLora`."""
    layers = [layer for layer in layers if layer not in done]
    done.update(layers)
    fused = FusedLora(layers)
    for number, layer in enumerate(layers):
        layer.forward = partial(fused, number)


class FusedLora:
    """Forward of LoRA layers that read the same input: W x + s B A x of each, where all can be computed so."""

    def __init__(self, layers: list[Any]) -> None:
        self.layers = layers
        self.input: Tensor | None = None
        self.outputs: list[Tensor | None] = []

    def __call__(self, number: int, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return [..., out] of layer `number` for x [..., in]; with the first call for x all layers are computed."""
        layer = self.layers[number]
        if args or kwargs or not all(_is_plain(each, x) for each in self.layers):
            return type(layer).forward(layer, x, *args, **kwargs)  # type: ignore[no-any-return]
        if not all(_is_dense(each) for each in self.layers):
            return _beside_base(layer, x)
        if x is not self.input or self.outputs[number] is None:
            self.input, self.outputs = x, list(_all_outputs(self.layers, x))
        output, self.outputs[number] = self.outputs[number], None
        if all(each is None for each in self.outputs):
            self.input = None  # nothing is held longer than the graph holds it
        return output  # type: ignore[return-value]


def _is_plain(layer: Any, x: Tensor) -> bool:
    """Whether exactly one adapter is at work, beside whole weights and in its own precision."""
    name = layer.active_adapters[0]
    a = layer.lora_A[name].weight
    if layer.disable_adapters or layer.merged or len(layer.active_adapters) > 1:
        return False
    # DeepSpeed gathers the weights of a whole layer; where it does not, each part must be called itself.
    partitioned = not a.numel() or not layer.base_layer.weight.numel()
    return not partitioned and x.dtype == a.dtype and not torch.is_autocast_enabled(x.device.type)


def _is_dense(layer: Any) -> bool:
    """Whether the base is no quantized one and the adapter reads what the base reads."""
    dropout = layer.lora_dropout[layer.active_adapters[0]]
    return type(layer.base_layer) is nn.Linear and not (isinstance(dropout, nn.Dropout) and layer.training)


def _adapter(layer: Any) -> tuple[Tensor, Tensor, float]:
    """A [r, in], B [out, r] and their scale."""
    name = layer.active_adapters[0]
    return layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]


def _beside_base(layer: Any, x: Tensor) -> Tensor:
    a, b, scaling = _adapter(layer)
    dropout: Callable[[Tensor], Tensor] = layer.lora_dropout[layer.active_adapters[0]]
    return _AddLora.apply(layer.base_layer(x), dropout(x), a, b, scaling)  # type: ignore[no-any-return,no-untyped-call]


def _all_outputs(layers: Sequence[Any], x: Tensor) -> tuple[Tensor, ...]:
    adapters = [_adapter(layer) for layer in layers]
    weights = [weight for layer in layers for weight in (layer.base_layer.weight, layer.base_layer.bias)]
    matrices = [a for a, _, _ in adapters] + [b for _, b, _ in adapters]
    scaling = [scale for _, _, scale in adapters]
    return _LoraLinears.apply(x, scaling, *weights, *matrices)  # type: ignore[no-any-return,no-untyped-call]


class _LoraLinears(torch.autograd.Function):
    """x [..., in] -> n outputs [..., out_i]. The weights [out_i, in] and biases are frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scaling: list[float], *tensors: Tensor | None) -> tuple[Tensor, ...]:
        n = len(scaling)
        weights, biases, a, b = tensors[: 2 * n : 2], tensors[1 : 2 * n : 2], tensors[2 * n : 3 * n], tensors[3 * n :]
        rows = x.reshape(-1, x.shape[-1])
        stacked = a[0] if n == 1 else torch.cat(a)  # type: ignore[arg-type]
        lows = (rows @ stacked.t()).split([each.shape[0] for each in a], 1)  # type: ignore[union-attr]
        outputs = []
        for weight, bias, low, up, scale in zip(weights, biases, lows, b, scaling, strict=True):
            output = F.linear(rows, weight, bias).addmm_(low.mul_(scale), up.t())  # type: ignore[arg-type,union-attr]
            outputs.append(output.view(*x.shape[:-1], -1))
        ctx.save_for_backward(rows, stacked, *lows, *weights, *b)
        ctx.scaling = scaling
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        n = len(ctx.scaling)
        rows, stacked, *rest = ctx.saved_tensors
        lows, weights, b = rest[:n], rest[n : 2 * n], rest[2 * n :]
        flat = [gradient.reshape(-1, gradient.shape[-1]) for gradient in gradients]
        low_gradients = [(g @ up).mul_(scale) for g, up, scale in zip(flat, b, ctx.scaling, strict=True)]
        low_gradient = low_gradients[0] if n == 1 else torch.cat(low_gradients, 1)
        by_a = (low_gradient.t() @ rows).split([low.shape[1] for low in lows])
        by_b = [g.t() @ low for g, low in zip(flat, lows, strict=True)]
        by_x = None
        if ctx.needs_input_grad[0]:
            by_x = flat[0] @ weights[0]
            for g, weight in zip(flat[1:], weights[1:], strict=True):
                by_x.addmm_(g, weight)
            by_x = by_x.addmm_(low_gradient, stacked).view(*gradients[0].shape[:-1], -1)
        return by_x, None, *[None] * (2 * n), *by_a, *by_b


class _AddLora(torch.autograd.Function):
    """output [..., out] of the base + s (x A') B' for x [..., in]."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        low = (rows @ a.t()).mul_(scaling)
        ctx.save_for_backward(rows, a, b, low)
        ctx.scaling = scaling
        flat = output.reshape(-1, output.shape[-1])
        return torch.addmm(flat, low, b.t()).view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor, None]:
        rows, a, b, low = ctx.saved_tensors
        flat = gradient.reshape(-1, gradient.shape[-1])
        low_gradient = (flat @ b).mul_(ctx.scaling)
        x_gradient = (low_gradient @ a).view(*gradient.shape[:-1], -1) if ctx.needs_input_grad[1] else None
        return gradient, x_gradient, low_gradient.t() @ rows, flat.t() @ low, None
