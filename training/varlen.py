"""PyTorch's variable-length flash attention (torch.nn.attention.varlen): texts end to end, no padding at all."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CAUSAL, ALL = (-1, 0), (-1, -1)
"""Windows: what lies before a token, or all there is."""
PROBE_TOLERANCE = 0.05


def varlen_works(query: Tensor) -> bool:
    """Whether the kernel runs here for this type and head size [.., D] and gives what plain attention gives."""
    if query.device.type != "cuda" or query.dtype != torch.bfloat16:
        return False
    return _probe(query.device, query.shape[-1])


@functools.cache
def _probe(device: torch.device, head_size: int) -> bool:
    """Try the kernel, forward and backward, on two small texts with grouped heads."""
    lengths = [5, 3]
    ends = torch.tensor([0, 5, 8], dtype=torch.int32, device=device)
    generator = torch.Generator(device).manual_seed(0)
    states = [
        torch.randn(1, heads, 8, head_size, device=device, dtype=torch.bfloat16, generator=generator).requires_grad_()
        for heads in (4, 2, 2)
    ]
    query, key, value = states
    try:
        with torch.enable_grad():
            ours = varlen_attention(query, key, value, ends, lengths, None, None)
            texts = zip(*(torch.split(state, lengths, dim=2) for state in states), strict=True)
            plain = [F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True) for q, k, v in texts]
            expected = torch.cat(plain, dim=2).transpose(1, 2)
            mine = [ours, *torch.autograd.grad(ours.sum(), states)]
            theirs = [expected, *torch.autograd.grad(expected.sum(), states, retain_graph=True)]
            last = torch.tensor([4], device=device)  # of the first text; the second stands for a tail
            ours = varlen_attention(query, key, value, ends, lengths[:1], last, None)[:, last]
            mine += [ours, *torch.autograd.grad(ours.sum(), states)]
            theirs += [expected[:, last], *torch.autograd.grad(expected[:, last].sum(), states)]
    except (ImportError, RuntimeError, ValueError, TypeError):  # an older torch or card, or a size without a kernel
        return False
    return all(float((a - b).abs().max()) < PROBE_TOLERANCE for a, b in zip(mine, theirs, strict=True))


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ends: Tensor,
    lengths: Sequence[int],
    last_index: Tensor | None,
    scaling: float | None,
) -> Tensor:
    """Causal attention of query [1, H, T, D], key and value [1, H_kv, T, D], text by text -> [1, T, H, D].

    `ends` int32 are 0, the end of each of the B texts, and T where a tail follows them. With `last_index` [B] only the
    rows of each text's last token are computed; the others are zero.
    """
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    longest = max(*lengths, q.shape[0] - sum(lengths))
    options: dict[str, Any] = {"scale": scaling, "enable_gqa": q.shape[1] != k.shape[1]}
    if last_index is None:
        rows = varlen_attn(q, k, v, ends, ends, longest, longest, window_size=CAUSAL, **options)
        assert isinstance(rows, Tensor)
        return rows[None]
    num_texts, num_tokens = len(lengths), sum(lengths)
    each = torch.arange(num_texts + 1, dtype=torch.int32, device=ends.device)
    # Without the tail: backward writes the gradients of the keys it was told of, and nothing into the rest.
    k, v, texts = k[:num_tokens], v[:num_tokens], ends[: num_texts + 1]
    rows = varlen_attn(q.index_select(0, last_index), k, v, each, texts, 1, longest, window_size=ALL, **options)
    assert isinstance(rows, Tensor)
    return torch.zeros_like(q).index_copy(0, last_index, rows)[None]
