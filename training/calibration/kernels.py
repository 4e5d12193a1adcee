"""Each kernel that jobs compute with, tried on a device against plain products in fp32."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.03, torch.float16: 0.01}
"""Largest error that is no mistake, as a share of the largest value."""
INT8_TOLERANCE = 0.03
"""Of int8, which rounds in other places than its plain counterpart here."""
LENGTHS, HEADS, SIZE = (37, 5, 64), 4, 64
VARLEN, RMS_NORM, LORA, NF4, INT8 = "varlen attention", "RMS norm", "fused LoRA", "nf4", "int8"

Pair = tuple[Tensor, Tensor]
"""What a kernel gave and what it should have, in fp32 on the CPU."""


def check_kernels(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Return kernel -> its largest error, as a share of the largest value; infinite for one that does not run."""
    checks: dict[str, Callable[[torch.device, torch.dtype], Iterator[Pair]]] = {
        RMS_NORM: _rms_norm, LORA: _lora, NF4: _nf4, INT8: _int8,
    }  # fmt: skip
    if device.type == "cuda" and dtype == torch.bfloat16:
        checks[VARLEN] = _varlen
    found = {}
    for name, check in checks.items():
        torch.manual_seed(0)
        try:
            found[name] = max(_error(*pair) for pair in check(device, dtype))
        except Exception:  # a kernel can be missing, or fail, in any way
            found[name] = math.inf
    return found


def wrong_kernels(errors: dict[str, float], dtype: torch.dtype) -> list[str]:
    """Return the kernels whose error is no rounding."""
    return sorted(
        name for name, error in errors.items() if not error <= (INT8_TOLERANCE if name == INT8 else TOLERANCE[dtype])
    )


def _error(ours: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a share of the largest value; nan is infinite."""
    error = float((ours.float().cpu() - expected).abs().max() / expected.abs().max())
    return error if math.isfinite(error) else math.inf


def _leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_()


def _rms_norm(device: torch.device, dtype: torch.dtype) -> Iterator[Pair]:
    from training.fused import FusedRMSNorm

    x = torch.randn(50, 256).to(dtype)
    weight = torch.rand(256).to(dtype)
    norm = SimpleNamespace(weight=weight.to(device), variance_epsilon=1e-6)
    states = _leaf(x.to(device))
    ours = FusedRMSNorm(norm)(states)
    wide = _leaf(x.float())
    expected = F.rms_norm(wide, (256,), weight.float(), 1e-6)
    yield ours.detach(), expected.detach()
    ours.float().square().sum().backward()  # type: ignore[no-untyped-call]
    expected.square().sum().backward()  # type: ignore[no-untyped-call]
    assert states.grad is not None and wide.grad is not None
    yield states.grad, wide.grad


def _lora(device: torch.device, dtype: torch.dtype) -> Iterator[Pair]:
    from training.fused_lora import _LoraLinears

    x, weight, a, b = (torch.randn(*shape).to(dtype) for shape in ((50, 128), (96, 128), (8, 128), (96, 8)))
    there = [_leaf(part.to(device)) for part in (x, a, b)]
    (ours,) = _LoraLinears.apply(  # type: ignore[no-untyped-call]
        there[0], [0.5], weight.to(device), None, there[1], there[2]
    )
    wide = [_leaf(part.float()) for part in (x, a, b)]
    expected = F.linear(wide[0], weight.float()) + 0.5 * F.linear(F.linear(wide[0], wide[1]), wide[2])
    yield ours.detach(), expected.detach()
    ours.float().square().sum().backward()
    expected.square().sum().backward()  # type: ignore[no-untyped-call]
    for mine, right in zip(there, wide, strict=True):
        assert mine.grad is not None and right.grad is not None
        yield mine.grad, right.grad


def _nf4(device: torch.device, dtype: torch.dtype) -> Iterator[Pair]:
    """The product with a packed weight, against that with what the CPU's own kernel unpacks of it."""
    from bitsandbytes import functional, matmul_4bit

    x, weight = torch.randn(50, 256).to(dtype), torch.randn(128, 256).to(dtype)
    packed, state = functional.quantize_4bit(weight.to(device), quant_type="nf4")
    plain, plain_state = functional.quantize_4bit(weight.float(), quant_type="nf4")
    whole = functional.dequantize_4bit(plain, plain_state)
    yield functional.dequantize_4bit(packed, state), whole
    yield matmul_4bit(x.to(device), packed.t(), quant_state=state), F.linear(x.float(), whole)


def _int8(device: torch.device, dtype: torch.dtype) -> Iterator[Pair]:
    """The product of a quantized layer, against the plain one less what 8 bits round away."""
    from bitsandbytes.nn import Linear8bitLt

    x, plain = torch.randn(50, 256).to(dtype), nn.Linear(256, 128, bias=False)
    layer = Linear8bitLt(256, 128, bias=False, has_fp16_weights=False, threshold=6.0)
    layer.load_state_dict(plain.state_dict())
    layer = layer.to(device)
    with torch.no_grad():
        scale = plain.weight.abs().amax(dim=1, keepdim=True) / 127
        rows = x.float().abs().amax(dim=1, keepdim=True) / 127
        rounded = F.linear((x.float() / rows).round() * rows, (plain.weight / scale).round() * scale)
        yield layer(x.to(device)), rounded


def _varlen(device: torch.device, dtype: torch.dtype) -> Iterator[Pair]:
    from training.varlen import varlen_attention

    tokens = sum(LENGTHS)
    states = [torch.randn(1, heads, tokens, SIZE).to(dtype) for heads in (HEADS, HEADS // 2, HEADS // 2)]
    ends = torch.tensor([0, *itertools.accumulate(LENGTHS)], dtype=torch.int32, device=device)
    q, k, v = (state.to(device) for state in states)
    ours = varlen_attention(q, k, v, ends, list(LENGTHS), None, None)
    q, k, v = (state.float() for state in states)
    k, v = (part.repeat_interleave(2, dim=1) for part in (k, v))
    plain = []
    for first, length in zip((0, *itertools.accumulate(LENGTHS)), LENGTHS, strict=False):
        text = slice(first, first + length)
        plain.append(F.scaled_dot_product_attention(q[:, :, text], k[:, :, text], v[:, :, text], is_causal=True))
    yield ours, torch.cat(plain, dim=2).transpose(1, 2)
