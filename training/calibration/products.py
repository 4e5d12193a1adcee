"""How fast a device multiplies large matrices."""

from __future__ import annotations

import time

import torch

ROWS, SIZE = 512, 512
LEAST_SECONDS = 0.2
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def product_cost(dtype: str, device: str = "cpu", size: int = SIZE) -> float:
    """Return the seconds that an addition or multiplication of a large matrix product takes, in one process.

    By a matrix and by one that is transposed alike, as a frozen layer's backward and forward pass do.
    """
    left, right = (torch.randn(rows, size, device=device).to(DTYPES[dtype]) for rows in (ROWS, size))

    def both() -> float:
        started = time.perf_counter()
        left @ right
        left @ right.t()
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    both()
    times, begun = [both()], time.perf_counter()
    while time.perf_counter() - begun < LEAST_SECONDS:
        times.append(both())
    return min(times) / (4 * ROWS * size * size)
