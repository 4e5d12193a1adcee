"""torch.nn.attention.varlen.varlen_attn made of plain attention, so that bf16 jobs on a CPU take a card's branch.

"varlen" has the signature of torch 2.12 and later, "varlen=2.11" and "varlen=2.10" those of these releases. As the
kernel it refuses what FlashAttention 2 refuses, computes in fp32, and leaves garbage in rows that no text has.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stand_ins.importing import after_import

CAUSAL = (-1, 0)


def install(argument: str) -> None:
    """Put the stand-in where torch has the kernel, and have the trainer try it on CPUs."""
    kernel = KERNELS[argument]

    def replace(module: ModuleType) -> None:
        module.varlen_attn = kernel  # type: ignore[attr-defined]

    after_import("torch.nn.attention.varlen", replace)
    after_import("training.varlen", lambda module: module.DEVICE_TYPES.add("cpu"))


def varlen_attn_2_10(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    is_causal: bool = False,
    return_aux: Any = None,
) -> Tensor:
    """Take what torch 2.10's takes: it shares key heads unasked, and has no scale."""
    return attention(query, key, value, (cu_seq_q, cu_seq_k), (max_q, max_k), causal=is_causal, scale=None)


def varlen_attn_2_11(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """Take what torch 2.11's takes: it shares key heads unasked."""
    causal = window_size == CAUSAL
    return attention(query, key, value, (cu_seq_q, cu_seq_k), (max_q, max_k), causal=causal, scale=scale)


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> Tensor:
    """Take what torch 2.12's and later take."""
    assert cu_seq_k is not None
    if not enable_gqa and query.size(1) != key.size(1):
        raise ValueError(f"Expect the same number of heads but got Hq={query.size(1)} and Hkv={key.size(1)}.")
    causal = window_size == CAUSAL
    return attention(query, key, value, (cu_seq_q, cu_seq_k), (max_q, max_k), causal=causal, scale=scale)


KERNELS: dict[str, Callable[..., Tensor]] = {"": varlen_attn, "2.11": varlen_attn_2_11, "2.10": varlen_attn_2_10}


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ends: tuple[Tensor, Tensor],
    longest: tuple[int, int],
    *,
    causal: bool,
    scale: float | None,
) -> Tensor:
    """Attention of query [T, H, D], key and value [T_k, H_kv, D], text by text -> [T, H, D] as FlashAttention 2 has it.

    `ends` and `longest` are those of queries and of keys.
    """
    require_possible(query, key, value, ends)
    outputs = []
    places = [end.tolist() for end in ends]
    for first, end, first_key, end_key in zip(places[0], places[0][1:], places[1], places[1][1:], strict=False):
        assert end - first <= longest[0] and end_key - first_key <= longest[1], "a text is longer than was said"
        q = query[first:end].transpose(0, 1)[None].float()
        k, v = (states[first_key:end_key].transpose(0, 1)[None].float() for states in (key, value))
        assert not causal or q.shape[2] == k.shape[2], "causal attention is used with equally many queries and keys"
        output = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=True)
        outputs.append(output[0].transpose(0, 1).to(query.dtype))
    garbage = query.new_full((len(query) - places[0][-1], *query.shape[1:]), torch.nan)
    return torch.cat([*outputs, garbage])


def require_possible(query: Tensor, key: Tensor, value: Tensor, ends: tuple[Tensor, Tensor]) -> None:
    """Raise RuntimeError for what the kernel refuses."""
    if not query.dtype == key.dtype == value.dtype or query.dtype not in (torch.float16, torch.bfloat16):
        raise RuntimeError(f"FlashAttention only supports fp16 and bf16 data type, not {query.dtype}")
    if query.shape[2] % 8 or query.shape[2] > 256:
        raise RuntimeError(f"FlashAttention takes head sizes up to 256 that are multiples of 8, not {query.shape[2]}")
    if query.shape[1] % key.shape[1]:
        raise RuntimeError("Number of heads in key/value must divide number of heads in query")
    if any(end.dtype != torch.int32 for end in ends) or len(ends[0]) != len(ends[1]):
        raise RuntimeError("cu_seqlens must be int32, and equally many of queries and keys")
