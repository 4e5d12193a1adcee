"""Causal attention by PyTorch's own kernels where the variable-length one is not for the card or the precision.

Its FlashAttention reads keys that several heads share as they are. The memory-efficient kernel (Rabe & Staats 2021),
which is what cards before RTX 30 have, and fp32 on every card, does not: asked for shared keys PyTorch writes out the
scores of all pairs of tokens, T x T for each head, and keeps them for backward. So keys and values are repeated there,
which costs as much as the queries take.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.precision import AMPERE

attention_on_card = F.scaled_dot_product_attention
"""Where memory is forecast, a stand-in for the memory-efficient kernel."""


def shares_keys(query: Tensor) -> bool:
    """Whether PyTorch has a kernel for these states that takes fewer key heads than query heads."""
    if query.device.type == "cpu":
        return True
    is_cuda = query.device.type == "cuda"
    return is_cuda and query.dtype != torch.float32 and torch.cuda.get_device_capability(query.device) >= AMPERE


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, dropout: float) -> Tensor:
    """Return causal attention [B, H, T, D] of query [B, H, T, D] to key and value [B, H_kv, T, D]."""
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1 and not shares_keys(query):
        key, value = (states.repeat_interleave(repeats, 1) for states in (key, value))
        repeats = 1
    attend = F.scaled_dot_product_attention if query.device.type == "cpu" else attention_on_card
    return attend(query, key, value, is_causal=True, scale=scaling, enable_gqa=repeats > 1, dropout_p=dropout)
