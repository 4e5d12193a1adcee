"""PyTorch's variable-length flash attention (torch.nn.attention.varlen): texts end to end, no padding at all.

The kernel came with torch 2.10 and has taken more arguments with each release since; it gets those that it knows.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

DEVICE_TYPES = {"cuda"}
"""Where the kernel is tried. Tests add the CPU, together with a stand-in for the kernel."""
CAUSAL, ALL = (-1, 0), (-1, -1)
"""Windows: what lies before a token, or all there is."""
PROBE_TOLERANCE = 0.05


@dataclass(frozen=True, kw_only=True)
class Heads:
    """The attention heads of a model."""

    queries: int
    keys: int
    """Key and value heads; each serves queries / keys query heads."""
    size: int

    @staticmethod
    def of(config: Any) -> Heads:
        """Return the heads of a model of this transformers configuration."""
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        keys = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        return Heads(queries=config.num_attention_heads, keys=keys, size=size)


def varlen_obstacle(device: torch.device, dtype: torch.dtype, heads: Heads) -> str | None:
    """Return why the kernel is not for such states on this device; None where it runs and gives what plain attention
    gives.

    It is tried at the first call, forward and backward: call it outside of layers whose activations are recomputed,
    which would take the trial's tensors for their own.
    """
    if device.type not in DEVICE_TYPES:
        return "this is no CUDA card"
    if dtype != torch.bfloat16:
        return f"it is for bfloat16, not {str(dtype).removeprefix('torch.')}"
    return _probe(device, heads.queries // heads.keys, heads.size)


def describe_attention(obstacle: str | None) -> str:
    """Say which attention a job has, given the kernel's obstacle."""
    if obstacle is None:
        return "PyTorch's variable-length kernel, texts end to end"
    return f"SDPA; PyTorch's variable-length kernel is not used: {obstacle}"


@functools.cache
def _probe(device: torch.device, group: int, head_size: int) -> str | None:
    """Try the kernel on two small texts and a tail, with two key heads for `group` query heads each."""
    try:
        with torch.inference_mode(False), torch.enable_grad():
            difference = _difference(device, group, head_size)
    except torch.OutOfMemoryError:  # which says nothing about the kernel
        raise
    except ImportError:
        return f"torch {torch.__version__} does not have it, 2.10 and later do"
    except (RuntimeError, ValueError, TypeError) as error:  # a card, a head size or a release that it is not for
        words = str(error).strip().splitlines() or [""]
        return f"it does not run here: {type(error).__name__}: {words[0][:200]}"
    if not difference < PROBE_TOLERANCE:
        return f"it differs from plain attention here, by {difference:.3g}"
    return None


def _difference(device: torch.device, group: int, head_size: int) -> float:
    """Return the largest difference to plain attention, of outputs and gradients, in both forms that are used.

    It is a share of the largest value where that is above 1, as of keys' gradients, which add up over query heads.
    """
    lengths, tail = [5, 3], 2
    ends = torch.tensor([0, 5, 8, 10], dtype=torch.int32, device=device)
    last = torch.tensor([4, 7], device=device)
    generator = torch.Generator(device).manual_seed(0)
    states = [
        torch.randn(1, heads, 10, head_size, device=device, dtype=torch.bfloat16, generator=generator).requires_grad_()
        for heads in (2 * group, 2, 2)
    ]
    query, key, value = states
    texts = zip(*(torch.split(state, [*lengths, tail], dim=2) for state in states), strict=True)
    plain = [F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True) for q, k, v in texts]
    expected = torch.cat(plain, dim=2).transpose(1, 2)
    ours = varlen_attention(query, key, value, ends, lengths, None, None)
    mine = [ours, *torch.autograd.grad(ours.sum(), states)]
    theirs = [expected, *torch.autograd.grad(expected.sum(), states, retain_graph=True)]
    ours = varlen_attention(query, key, value, ends, lengths, last, None)[:, last]
    mine += [ours, *torch.autograd.grad(ours.sum(), states)]
    theirs += [expected[:, last], *torch.autograd.grad(expected[:, last].sum(), states)]
    with torch.no_grad():
        differences = [(a - b).abs().max() / b.abs().max().clamp_min(1) for a, b in zip(mine, theirs, strict=True)]
        return float(torch.stack(differences).max())


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
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    longest = max(*lengths, q.shape[0] - sum(lengths))
    if last_index is None:
        return _kernel(q, k, v, (ends, ends), (longest, longest), causal=True, scaling=scaling)[None]
    num_texts, num_tokens = len(lengths), sum(lengths)
    each = torch.arange(num_texts + 1, dtype=torch.int32, device=ends.device)
    # Without the tail: backward writes the gradients of the keys it was told of, and nothing into the rest.
    k, v, texts = k[:num_tokens], v[:num_tokens], ends[: num_texts + 1]
    rows = q.index_select(0, last_index)
    rows = _kernel(rows, k, v, (each, texts), (1, longest), causal=False, scaling=scaling)
    return torch.zeros_like(q).index_copy(0, last_index, rows)[None]


def _kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ends: tuple[Tensor, Tensor],
    longest: tuple[int, int],
    *,
    causal: bool,
    scaling: float | None,
) -> Tensor:
    """Call the kernel in the way of the installed release; `ends` and `longest` are those of queries and of keys."""
    from torch.nn.attention.varlen import varlen_attn

    known, options = _parameters(varlen_attn), dict[str, Any]()
    if "window_size" in known:
        options["window_size"] = CAUSAL if causal else ALL
    else:  # torch 2.10
        options["is_causal"] = causal
    usual = q.shape[-1] ** -0.5
    if "scale" in known:
        options["scale"] = scaling
    elif scaling is not None and not math.isclose(scaling, usual):
        q = q * (scaling / usual)
    if "enable_gqa" in known:  # the kernel before torch 2.12 shares key heads unasked
        options["enable_gqa"] = q.shape[1] != k.shape[1]
    rows = varlen_attn(q, k, v, *ends, *longest, **options)
    assert isinstance(rows, Tensor)
    return rows


@functools.cache
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)
