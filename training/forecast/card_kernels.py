"""What PyTorch's CUDA kernels for attention and RMS norm take and keep, for the fake card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from training.varlen import Heads

HAS_VARLEN = True
"""Whether the card that is forecast has the variable-length kernel; set for each forecast's process."""


def varlen_obstacle(_device: torch.device, dtype: torch.dtype, _heads: Heads) -> str | None:
    """The variable-length kernel takes 16 bits alone, on cards that have it."""
    return None if HAS_VARLEN and dtype != torch.float32 else "it is not for this card or precision"


def varlen_attn(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    """Stand in for torch.nn.attention.varlen's kernel: query [T, H, D], key and value [T_k, H_kv, D] -> [T, H, D]."""
    return _Flash.apply(query, key, value)  # type: ignore[no-any-return,no-untyped-call]


def attention(query: Tensor, *_: Any, **__: Any) -> Tensor:
    """Stand in for the memory-efficient kernel of scaled_dot_product_attention: query [B, H, T, D] -> its like."""
    log_sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
    output = torch.empty_like(query)
    del log_sums
    return output


class _Flash(torch.autograd.Function):
    """FlashAttention 2 (Dao 2023): keeps its inputs, its output and fp32 log-sum-exps; backward adds up in fp32."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        output = torch.empty_like(q, memory_format=torch.contiguous_format)
        log_sums = q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, output, log_sums)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        q, k, v, _, log_sums = ctx.saved_tensors
        sums, wide = torch.empty_like(log_sums), torch.empty_like(q, dtype=torch.float32)
        expanded = [torch.empty(q.shape[1], k.shape[0], k.shape[2], dtype=k.dtype, device=k.device) for _ in range(2)]
        del sums, wide, expanded
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def efficient_attention(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
    """Stand in for the memory-efficient kernel: query, key and value [B, H, T, D] -> [B, H, T, D]."""
    return _Efficient.apply(query, key, value)  # type: ignore[no-any-return,no-untyped-call]


class _Efficient(torch.autograd.Function):
    """Memory-efficient attention (Rabe & Staats 2021, as in xFormers): reads [B, T, H, D]; keeps its inputs, its output
    and fp32 log-sum-exps. Backward adds up the gradients in fp32."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        output = torch.empty_like(q, memory_format=torch.contiguous_format)
        log_sums = q.new_empty(q.shape[:3], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, output, log_sums)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        q, k, v, _, log_sums = ctx.saved_tensors
        delta, wide = torch.empty_like(log_sums), [torch.empty_like(x, dtype=torch.float32) for x in (q, k, v)]
        del delta, wide
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def rms_norm(states: Tensor, shape: Sequence[int], weight: Tensor, epsilon: float) -> Tensor:
    """Call the kernel that torch.nn.functional.rms_norm is on CUDA; elsewhere it is made of smaller operations."""
    return torch.ops.aten._fused_rms_norm(states, shape, weight, epsilon)[0]  # type: ignore[no-any-return]
