"""bitsandbytes' 4-bit layers, made to work with weights that ZeRO-3 has partitioned."""

from __future__ import annotations

from functools import partial
from typing import Any

import bitsandbytes
import torch
from bitsandbytes.nn import Linear4bit
from torch import Tensor


def adapt_4_bit_layers(model: Any) -> None:
    """Have a model's 4-bit layers compute what bitsandbytes' do, and hold no weight in their graph nor repack it.

    bitsandbytes' function keeps a view of the packed weight until backward, so whatever ZeRO-3 gathers would stay on
    the card until then, all layers of it. And on CPUs with bf16 instructions its layers repack their weights the first
    time they are evaluated, which fails on widths that are no multiple of 32 and would change partitioned weights.
    """
    for layer in model.modules():
        if isinstance(layer, Linear4bit):
            layer.support_avx512bf16_for_cpu = False
            layer.forward = partial(_forward, layer)


def _forward(layer: Any, x: Tensor) -> Tensor:
    """Return [..., out] for x [..., in]."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return type(layer).forward(layer, x)  # type: ignore[no-any-return]
    output = _Product.apply(x.to(layer.compute_dtype or x.dtype), layer)  # type: ignore[no-untyped-call]
    return output.to(x.dtype)  # type: ignore[no-any-return]


class _Product(torch.autograd.Function):
    """x [..., in] and a layer's frozen weight and bias -> [..., out]; backward asks the layer for the weight again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Any) -> Tensor:
        ctx.layer = layer
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        return bitsandbytes.matmul_4bit(x, layer.weight, bias=bias, quant_state=_state(layer))  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        weight = ctx.layer.weight
        assert weight.numel(), "DeepSpeed gathers a layer's weights before its backward pass"
        whole = bitsandbytes.functional.dequantize_4bit(weight.data.view(-1, 1), _state(ctx.layer))
        return gradient @ whole.to(gradient.dtype), None


def _state(layer: Any) -> Any:
    """Return what a weight is dequantized with; only the layer has it where something has made the weight anew."""
    return getattr(layer.weight, "quant_state", None) or layer.quant_state
