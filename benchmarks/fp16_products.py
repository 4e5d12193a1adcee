"""Matrix products of fp16 on CPUs without instructions for it, where PyTorch's own take up to 50 times as long as fp32.

    multiply_fp16_by_way_of_fp32()

The factors are fp16, the sums fp32 and each element is rounded to fp16 once: what a card's tensor cores do, and
PyTorch's own products on a CPU. So accuracy can be measured with it; time cannot.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LIBRARY: list[Any] = []
"""Keeps the kernels: they go where their torch.library.Library goes."""


def multiply_fp16_by_way_of_fp32() -> None:
    """Change aten::mm, aten::bmm and aten::addmm_ of this process."""
    if LIBRARY:
        return
    library = torch.library.Library("aten", "IMPL")
    library.impl("mm", product_kernel(torch.ops.aten.mm.out), "CPU", allow_override=True)
    library.impl("bmm", product_kernel(torch.ops.aten.bmm.out), "CPU", allow_override=True)
    library.impl("addmm_", add_product, "CPU", allow_override=True)
    LIBRARY.append(library)


def product_kernel(write: Any) -> Any:
    """Return a kernel of a product; `write` computes it into a tensor that is there."""

    def multiply(left: Tensor, right: Tensor) -> Tensor:
        wide = left.dtype == torch.float16
        if wide:
            left, right = left.float(), right.float()
        output = torch.empty(*left.shape[:-1], right.shape[-1], dtype=left.dtype)
        write(left, right, out=output)
        return output.to(torch.float16) if wide else output

    return multiply


def add_product(to: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """Compute to = beta * to + alpha * left @ right, in place."""
    if to.dtype != torch.float16:
        return torch.ops.aten.addmm.out(to, left, right, beta=beta, alpha=alpha, out=to)  # type: ignore[no-any-return]
    wide = torch.empty(to.shape, dtype=torch.float32)
    torch.ops.aten.addmm.out(to.float(), left.float(), right.float(), beta=beta, alpha=alpha, out=wide)
    return to.copy_(wide)
