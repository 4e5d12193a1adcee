"""A frozen base of fake tensors, quantized as asked: `training.model.load_base` without weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from training.linear_4bit import adapt_4_bit_layers
from training.loading import Partition, skeleton
from training.model import HEAD, quantization_config, require_head
from training.spec import ModelSpec
from training.verification.layers import hold_one_layer
from training.verification.verify import prepared


def fake_base(
    spec: ModelSpec,
    checkpoint: str,
    config: Any,
    dtype: torch.dtype,
    device: torch.device,
    partition: Partition | None = None,
    *,
    begin: Callable[[str], None] = lambda _: None,
) -> Any:
    """Return what `load_base` returns, on `device` from the start. Call it under FakeTensorMode.

    `begin` hears of each weight's kind before it is made.
    """
    model = _skeleton(spec, checkpoint, config, dtype)
    require_head(model, spec, config)
    for name, parameter in sorted(model.named_parameters(), key=lambda named: -named[1].numel()):
        layer_name, _, attribute = name.rpartition(".")
        layer = model.get_submodule(layer_name)
        begin(f"{attribute} {tuple(parameter.shape)}")
        fake = fill(layer, attribute, parameter, dtype, device)
        if partition is not None and spec.quantization != "int8" and not name.startswith(f"{HEAD}."):
            partition(fake)
    _fake_buffers(model, device)
    adapt_4_bit_layers(model)
    model.requires_grad_(False)
    return model.eval()


def fake_base_in_layers(
    spec: ModelSpec, checkpoint: str, config: Any, dtype: torch.dtype, device: torch.device, live: Any
) -> Any:
    """Return what `training.verification.verify.base_in_layers` returns; weights that come are counted by `live`."""
    model = _skeleton(spec, checkpoint, config, dtype)
    _fake_buffers(model, device)
    empty = dict(model.named_parameters())
    fill(model.score, "weight", model.score.weight, dtype, device)

    def bring(owner: nn.Module, attribute: str, name: str) -> None:
        with live:
            fill(owner, attribute, empty[name], dtype, device)

    hold_one_layer(model, [name for name in empty if not name.startswith(f"{HEAD}.")], bring, device)
    return prepared(model)


def _skeleton(spec: ModelSpec, checkpoint: str, config: Any, dtype: torch.dtype) -> Any:
    quantization = None if spec.quantization == "none" else quantization_config(spec.quantization, dtype)
    with _disable_current_modes():
        return skeleton(checkpoint, config, dtype, torch.device("cpu"), quantization)


def _fake_buffers(model: Any, device: torch.device) -> None:
    for name, buffer in list(model.named_buffers()):
        layer_name, _, attribute = name.rpartition(".")
        model.get_submodule(layer_name)._buffers[attribute] = torch.empty(
            buffer.shape, dtype=buffer.dtype, device=device
        )


def fill(layer: Any, attribute: str, parameter: nn.Parameter, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    """Put a fake parameter in its place, as `load_base` makes it of this one of the skeleton."""
    fake = _fake_parameter(layer, attribute, parameter, dtype, device)
    setattr(layer, attribute, fake)
    return fake


def _fake_parameter(
    layer: Any, attribute: str, parameter: nn.Parameter, dtype: torch.dtype, device: torch.device
) -> nn.Parameter:
    """Return a parameter as `load_base` makes it of this one of the skeleton."""
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    shape = parameter.shape
    if attribute == "weight" and isinstance(layer, Linear4bit):
        return _in_4_bits(layer, parameter, dtype, device)
    if attribute == "weight" and isinstance(layer, Linear8bitLt):
        return _in_8_bits(shape, dtype, device)
    return nn.Parameter(torch.empty(shape, dtype=dtype, device=device), requires_grad=False)


def _in_4_bits(layer: Any, old: Any, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    """nf4: half a byte a weight, held in `dtype`, and the fp32 maximum of each block.

    bitsandbytes' Params4bit wraps no fake tensor; its layers ask the weight for a few attributes only.
    """
    from bitsandbytes.functional import QuantState

    shape = old.shape
    packed = torch.empty(shape.numel() // 2 // dtype.itemsize, 1, dtype=dtype, device=device)
    absmax = torch.empty(-(-shape.numel() // old.blocksize), dtype=torch.float32, device=device)
    state = QuantState(
        absmax=absmax, shape=shape, dtype=dtype, blocksize=old.blocksize, quant_type=old.quant_type,
        code=torch.empty(16, dtype=torch.float32, device=device),
    )  # fmt: skip
    layer.quant_state = state
    weight = nn.Parameter(packed, requires_grad=False)
    for name, value in {
        "quant_state": state, "quant_type": old.quant_type, "blocksize": old.blocksize, "bnb_quantized": True,
        "compress_statistics": False, "quant_storage": dtype,
    }.items():  # fmt: skip
        setattr(weight, name, value)
    return weight


def _in_8_bits(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    """int8: a byte a weight and the fp32 scale of each row, made of the whole weight at once."""
    whole = torch.empty(shape, dtype=dtype, device=device)
    codes, scales, _ = torch.ops.bitsandbytes.int8_vectorwise_quant(whole.to(torch.float16))
    weight = nn.Parameter(codes, requires_grad=False)
    weight.CB, weight.SCB = weight.data, scales  # type: ignore[attr-defined]
    return weight


def stand_ins() -> dict[Any, Any]:
    """Return bitsandbytes' kernels as the operations they are made of on a CPU (its backends/default/ops.py).

    How many columns of activations are outliers depends on values; there are none here.
    """
    from bitsandbytes.backends.default.ops import _gemm_4bit_default_impl

    kernels = torch.ops.bitsandbytes
    return {
        kernels.gemm_4bit: _gemm_4bit_default_impl,
        kernels.int8_vectorwise_quant: _quantize_rows,
        kernels.int8_linear_matmul: _multiply_bytes,
        kernels.int8_mixed_scaled_mm: _multiply_in_8_bits,
        kernels.int8_mm_dequant: _dequantize_product,
    }


def _quantize_rows(values: Tensor, threshold: float = 0.0) -> tuple[Tensor, Tensor, Tensor | None]:
    outliers = None
    if threshold > 0:
        outliers = torch.empty(0, dtype=torch.int64, device=values.device)
        kept = values.abs() >= threshold  # to the end, as there  # noqa: F841
    scales = torch.max(values.abs(), dim=1).values.float()
    codes = torch.round(values * (127.0 / scales.unsqueeze(-1))).to(torch.int8)
    return codes, scales, outliers


def _multiply_bytes(values: Tensor, weight: Tensor) -> Tensor:
    """Return the int32 product; without AVX-512, bitsandbytes multiplies copies in fp32 (its backends/cpu/ops.py)."""
    if values.device.type == "cpu" and torch.backends.cpu.get_cpu_capability() != "AVX512":
        return torch.matmul(values.float(), weight.float().t()).to(torch.int32)
    return values.new_empty(*values.shape[:-1], weight.shape[0], dtype=torch.int32)


def _multiply_in_8_bits(
    values: Tensor, codes: Tensor, weight: Tensor, scales: Tensor, weight_scales: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    kernels = torch.ops.bitsandbytes
    product = kernels.int8_linear_matmul.default(codes, weight)
    output = kernels.int8_mm_dequant.default(product, scales, weight_scales, dtype=values.dtype)
    return output, torch.empty(0, dtype=values.dtype, device=values.device)


def _dequantize_product(
    product: Tensor, scales: Tensor, weight_scales: Tensor, dtype: torch.dtype | None = None, bias: Tensor | None = None
) -> Tensor:
    output = product * (scales.reshape(-1).unsqueeze(-1) * weight_scales.reshape(-1).unsqueeze(0)) * 6.200124e-05
    return output.to(dtype or torch.float16)
