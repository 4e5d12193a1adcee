"""4-bit layers compute what bitsandbytes' compute, and let go of what ZeRO-3 has gathered."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import Tensor, nn

from training.linear_4bit import adapt_4_bit_layers


def layer_of(dtype: torch.dtype, *, bias: bool = False) -> Any:
    torch.manual_seed(0)
    layer = Linear4bit(64, 96, bias=bias, quant_type="nf4", compute_dtype=dtype, compress_statistics=False)
    weight = Params4bit(
        torch.randn(96, 64, dtype=dtype), requires_grad=False, quant_type="nf4", compress_statistics=False,
        quant_storage=torch.uint8, module=layer,
    )  # fmt: skip
    layer.weight = weight.to("cpu")
    return layer.to(dtype) if bias else layer


def output_and_gradient(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    output = layer(x)
    output.float().pow(2).sum().backward()
    assert x.grad is not None
    return output.detach(), x.grad


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_layer_computes_what_bitsandbytes_does(dtype: torch.dtype, bias: bool) -> None:
    layer, x = layer_of(dtype, bias=bias), torch.randn(3, 5, 64).to(dtype)
    expected = output_and_gradient(layer, x)
    evaluated = layer(x)
    adapt_4_bit_layers(nn.Sequential(layer))
    for ours, theirs in zip(output_and_gradient(layer, x), expected, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(layer(x), evaluated)


@pytest.mark.parametrize("bias", [False, True])
def test_nothing_gathered_outlives_the_forward_pass(bias: bool) -> None:
    layer, x = layer_of(torch.float32, bias=bias), torch.randn(2, 64)
    _, expected = output_and_gradient(layer, x)
    adapt_4_bit_layers(nn.Sequential(layer))
    own = layer.weight.data

    layer.weight.data = own.clone()  # DeepSpeed gathers it before the forward pass
    gathered = weakref.ref(layer.weight.untyped_storage())
    x.requires_grad_()
    output = layer(x)
    layer.weight.data = torch.empty(0, dtype=own.dtype)  # and lets it go after it
    assert gathered() is None  # bitsandbytes' own function would hold a view of it

    layer.weight.data = own  # and gathers it again before the backward pass
    output.pow(2).sum().backward()
    assert x.grad is not None and torch.equal(x.grad, expected)
