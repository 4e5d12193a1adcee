"""Which precision `model.dtype: auto` is, on what. Imports no torch, so that the launcher can plan by it too."""

from __future__ import annotations

from typing import Literal

from training.cpu import cpu_flags

Precision = Literal["bf16", "fp16", "fp32"]
Capability = tuple[int, int]
"""CUDA compute capability: (8, 6) is sm_86."""
AMPERE: Capability = (8, 0)
"""The first cards that multiply bf16, and for which the kernel of attention over texts of many lengths is written."""
VOLTA: Capability = (7, 0)
"""The first cards that multiply fp16 several times as fast as fp32; Turing (7.5) is the last without bf16."""


def auto_precision(capability: Capability | None) -> Precision:
    """Return what `auto` is on a card of this compute capability, or on this machine's CPU, which has none: bf16 where
    the hardware multiplies it natively, else fp16 where a card does, else fp32."""
    if capability is None:
        return "fp32" if cpu_flags().isdisjoint({"avx512_bf16", "amx_bf16"}) else "bf16"
    if capability >= AMPERE:
        return "bf16"
    return "fp16" if capability >= VOLTA else "fp32"
