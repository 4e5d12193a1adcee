"""Layers that compute what PEFT's and transformers' do, in fewer passes over memory.

On short texts a training step is bound by element-wise work, not by matrix products. `fuse_layers` replaces the forward
of layers it knows; names and parameters stay, so saving and loading notice nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.calibration.kernels import LORA, RMS_NORM
from training.fused_lora import fuse_lora

ROTARY_ATTENTION = {
    "GemmaAttention", "LlamaAttention", "MistralAttention", "Qwen2Attention", "Qwen3Attention", "SmolLM3Attention",
}  # fmt: skip
"""Attention layers whose module's `apply_rotary_pos_emb` is LLaMA's."""


def fuse_layers(model: nn.Module, off: Collection[str] = ()) -> None:
    """Give LoRA layers and RMS norms of a loaded model their fast forward and backward, but for those that are `off`,
    by the names of training.calibration.kernels."""
    if LORA not in off:
        fuse_lora(model)
    part: Any
    for part in model.modules():
        if type(part).__name__ in ROTARY_ATTENTION:
            fuse_rotary(part)
        elif type(part).__name__.endswith("RMSNorm") and hasattr(part, "variance_epsilon") and RMS_NORM not in off:
            part.forward = FusedRMSNorm(part)


def fuse_rotary(attention: nn.Module) -> None:
    """Rotate queries and keys in fewer passes, in all models of the family of this attention layer."""
    family: Any = sys.modules[type(attention).__module__]
    if family.apply_rotary_pos_emb is not rotate:
        plain_rotations[family.__name__] = family.apply_rotary_pos_emb
    family.apply_rotary_pos_emb = rotate


plain_rotations: dict[str, Callable[..., Any]] = {}
"""Module of a family that `fuse_rotary` has changed -> its own function."""


@contextmanager
def plain_rotary() -> Iterator[None]:
    """Within this context all families rotate with their own function: what checks ours must not use it."""
    for name, own in plain_rotations.items():
        sys.modules[name].apply_rotary_pos_emb = own  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for name in plain_rotations:
            sys.modules[name].apply_rotary_pos_emb = rotate  # type: ignore[attr-defined]


def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Return [1, heads, T, D] query and key turned by their positions (Su et al. 2021); cos and sin are [1, T, D]."""
    return _Rotate.apply(query, cos, sin), _Rotate.apply(key, cos, sin)  # type: ignore[no-untyped-call]


class _Rotate(torch.autograd.Function):
    """The first half of D with the second, as transformers' LLaMA pairs them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos[:, None], sin[:, None], 1.0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(gradient, cos[:, None], sin[:, None], -1.0), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, way: float) -> Tensor:
    half = x.shape[-1] // 2
    turned = x * cos
    turned[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-way)
    turned[..., half:].addcmul_(x[..., :half], sin[..., half:], value=way)
    return turned


rms_norm_on_card = F.rms_norm
"""One kernel on CUDA. Where memory is forecast, a stand-in."""


class FusedRMSNorm:
    """Forward of an RMS norm: weight * x / sqrt(mean(x^2) + epsilon), computed in fp32 (Zhang & Sennrich 2019)."""

    def __init__(self, norm: Any) -> None:
        self.norm = norm

    def __call__(self, states: Tensor) -> Tensor:
        """Return [..., D] for states [..., D]."""
        weight, epsilon = self.norm.weight, self.norm.variance_epsilon
        if weight.dtype != states.dtype:
            return type(self.norm).forward(self.norm, states)  # type: ignore[no-any-return]
        if states.device.type != "cpu":
            return rms_norm_on_card(states, weight.shape, weight, epsilon)
        return _RMSNorm.apply(states, weight, epsilon)  # type: ignore[no-any-return,no-untyped-call]


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = x.float()
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse = torch.rsqrt(norm.square_().div_(x.shape[-1]).add_(epsilon))
        ctx.save_for_backward(x, weight, inverse)
        scaled = (wide * inverse) if wide is x else wide.mul_(inverse)
        return scaled.to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, inverse = ctx.saved_tensors
        normed = x.float() * inverse
        by_weight = None
        if ctx.needs_input_grad[1]:
            by_weight = (gradient.float() * normed).flatten(0, -2).sum(0).to(weight.dtype)
        wide = (gradient * weight).float()
        along = torch.linalg.vecdot(wide, normed)[..., None].div_(x.shape[-1])
        return wide.addcmul_(normed, along, value=-1).mul_(inverse).to(x.dtype), by_weight, None
