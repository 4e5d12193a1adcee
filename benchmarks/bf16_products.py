"""Matrix products of bf16 on CPUs without instructions for it, where PyTorch's own take up to 80 times as long as fp32.

    multiply_bf16_by_way_of_fp32()

What a program holds in PyTorch's memory stays as it is: NumPy multiplies, and the copies in fp32 are its own. So a
benchmark of memory can call this; one of time cannot.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

LIBRARY: list[Any] = []
"""Keeps the kernels: they go where their torch.library.Library goes."""


def multiply_bf16_by_way_of_fp32() -> None:
    """Change aten::mm and aten::bmm of this process, unless the CPU multiplies bf16 itself."""
    if LIBRARY or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return
    library = torch.library.Library("aten", "IMPL")
    library.impl("mm", product_kernel(torch.ops.aten.mm.out), "CPU", allow_override=True)
    library.impl("bmm", product_kernel(torch.ops.aten.bmm.out), "CPU", allow_override=True)
    LIBRARY.append(library)


def product_kernel(write: Any) -> Any:
    """Return a kernel of a product; `write` computes it, for other types, into a tensor that is there."""

    def multiply(left: Tensor, right: Tensor) -> Tensor:
        output = torch.empty(*left.shape[:-1], right.shape[-1], dtype=left.dtype)
        if left.dtype != torch.bfloat16:
            return write(left, right, out=output)  # type: ignore[no-any-return]
        product = np.matmul(_to_fp32(left), _to_fp32(right))
        _bits(output)[...] = _round(product)
        return output

    return multiply


def _bits(values: Tensor) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """Return bf16 values as they lie in memory."""
    return values.detach().view(torch.int16).numpy().view(np.uint16)


def _to_fp32(values: Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return bf16 values, the upper half of fp32's bits."""
    return (_bits(values).astype(np.uint32) << 16).view(np.float32)


def _round(values: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """Return the bits of the nearest bf16, ties to even; of finite values."""
    bits = values.view(np.uint32)
    return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
