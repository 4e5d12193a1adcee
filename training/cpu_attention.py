"""Attention of short texts in bf16 on a CPU, where PyTorch's own kernels are slow.

Its flash kernel takes several times as long for a backward pass over texts of a hundred tokens as batched matrix
products do (torch 2.13, AVX512-bf16 and AMX). Written out, scores and probabilities of a text exist at once; they
grow with the square of its length, which is why long texts go to the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from training.cpu import cpu_flags


def kernel_from(flags: frozenset[str]) -> int:
    """Return from how many tokens of a text on PyTorch's kernel is as fast, on a CPU with these flags.

    With AVX512-bf16 alone it still is slower at 512 tokens, most where heads share keys.
    """
    return 513 if "avx512_bf16" in flags and "amx_bf16" not in flags else 384


LONGEST = kernel_from(cpu_flags())
"""Texts of fewer tokens are attended to here."""


def is_short(query: Tensor, key: Tensor) -> bool:
    """Whether this module is the faster way for query [B, H, ., D] and key [B, H_kv, T, D].

    Without a backward pass the kernel is.
    """
    on_cpu = query.device.type == "cpu" and query.dtype == torch.bfloat16
    return on_cpu and key.shape[2] < LONGEST and query.requires_grad


def short_attention(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """Return causal attention [B, H, T, D] of query [B, H, T, D] to key and value [B, H_kv, T, D]."""
    mask = causal_mask(key.shape[2], query.shape[1] // key.shape[1])
    return _attend(query, key, value, mask.expand(query.shape[0] * key.shape[1], -1, -1), scale)


def last_attention(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], scale: float | None) -> Tensor:
    """Return attention [B, H, 1, D] of one query a text to the first `lengths` keys and values [B, H_kv, T, D]."""
    hidden = torch.arange(key.shape[2]) >= torch.tensor(lengths)[:, None]
    mask = torch.zeros(hidden.shape, dtype=query.dtype).masked_fill_(hidden, float("-inf"))
    mask = mask.repeat_interleave(key.shape[1], 0)[:, None]
    return _attend(query, key, value, mask.expand(-1, query.shape[1] // key.shape[1], -1), scale)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float | None) -> Tensor:
    """softmax(s q k' + mask) v. The heads that share a key are laid end to end, one product serves them all.

    mask: [B * H_kv, H / H_kv * T_q, T].
    """
    pairs, width = len(mask), query.shape[-1]
    queries = query.reshape(pairs, -1, width)
    keys = key.reshape(pairs, -1, width).transpose(1, 2)
    scores = torch.baddbmm(mask, queries, keys, alpha=width**-0.5 if scale is None else scale)
    return torch.bmm(scores.softmax(-1), value.reshape(pairs, -1, width)).view(query.shape)


@lru_cache(maxsize=64)
def causal_mask(length: int, repeats: int) -> Tensor:
    """[repeats * length, length]: 0 where a token sees, -inf where it does not."""
    mask = torch.full((length, length), float("-inf"), dtype=torch.bfloat16).triu(1)
    return mask.repeat(repeats, 1)
