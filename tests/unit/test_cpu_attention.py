"""Attention written out for a CPU: what PyTorch's own computes in fp32, to bf16's precision."""

from __future__ import annotations

import platform
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training.cpu import cpu_flags
from training.cpu_attention import LONGEST, is_short, kernel_from, last_attention, short_attention


def inputs(num_queries: int, num_heads: int, num_pairs: int, length: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, num_heads, num_queries, 16), (3, num_pairs, length, 16), (3, num_pairs, length, 16)]
    tensors = [torch.randn(shape, generator=generator).to(torch.bfloat16) for shape in shapes]
    # As the packed path lays them out: heads beside each other within a token.
    return [each.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for each in tensors]


def assert_near(ours: Tensor, expected: Tensor, tensors: list[Tensor]) -> None:
    gradients = torch.autograd.grad(ours.float().square().sum(), tensors)
    for value, reference in zip(
        (ours, *gradients), (expected, *torch.autograd.grad(expected.square().sum(), tensors)), strict=True
    ):
        difference = (value.detach().float() - reference.detach().float()).norm()
        assert float(difference / reference.detach().float().norm()) < 2e-2


@pytest.mark.parametrize(("num_heads", "num_pairs"), [(4, 4), (6, 2), (4, 1)])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_causal_attention(num_heads: int, num_pairs: int, scale: float | None) -> None:
    tensors = inputs(33, num_heads, num_pairs, 33)
    expected = F.scaled_dot_product_attention(
        *(each.float() for each in tensors), is_causal=True, scale=scale, enable_gqa=True
    )
    assert_near(short_attention(*tensors, scale), expected, tensors)


@pytest.mark.parametrize(("num_heads", "num_pairs"), [(4, 4), (6, 2)])
def test_the_last_token_sees_its_own_text_alone(num_heads: int, num_pairs: int) -> None:
    tensors = inputs(1, num_heads, num_pairs, 32)
    lengths = [32, 7, 1]
    mask = (torch.arange(32) < torch.tensor(lengths)[:, None])[:, None, None]
    expected = F.scaled_dot_product_attention(*(each.float() for each in tensors), attn_mask=mask, enable_gqa=True)
    assert_near(last_attention(*tensors, lengths, None), expected, tensors)


def test_only_short_bf16_texts_that_are_trained_come_here() -> None:
    query, key, _ = inputs(8, 4, 2, 8)
    assert is_short(query, key)
    assert not is_short(query.detach(), key)
    assert not is_short(query.float(), key.float())
    assert not is_short(query, key.new_zeros(1, 2, LONGEST, 16))


def test_where_the_kernel_is_as_fast_depends_on_the_cpu() -> None:
    assert kernel_from(frozenset({"avx512_bf16"})) == 513
    assert kernel_from(frozenset({"avx512_bf16", "amx_bf16"})) == kernel_from(frozenset()) == 384
    assert kernel_from(cpu_flags()) == LONGEST


@pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux", reason="what Linux says of an x86 CPU")
def test_the_flags_of_this_cpu_are_read() -> None:
    assert {"fpu", "sse2"} <= cpu_flags()
