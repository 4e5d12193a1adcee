"""The rate of matrix products on this machine, in FLOP/s: what a training step could reach at best.

    python benchmarks/speed_probe.py

Prints the median of seven rounds of products of two 2048 x 2048 matrices, on as many threads as OMP_NUM_THREADS says.
They are bf16, but fp32 on a CPU without AVX-512, where the same products in bf16 take many times as long.
`speed.py` runs it right before each cell, so that a machine that is slow for a while is not taken for slow software.
"""

from __future__ import annotations

import statistics
import time

import torch

SIZE = 2048
ROUNDS, PRODUCTS = 7, 3


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    slow = device == "cpu" and not torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    dtype = torch.float32 if slow else torch.bfloat16
    left, right = (torch.randn(SIZE, SIZE, device=device).to(dtype) for _ in range(2))
    rates = []
    for _ in range(ROUNDS + 1):
        started = time.perf_counter()
        for _ in range(PRODUCTS):
            product = left @ right
        float(product[0, 0])  # waits for the card
        rates.append(PRODUCTS * 2 * SIZE**3 / (time.perf_counter() - started))
    print(statistics.median(rates[1:]))  # the first round warms up


if __name__ == "__main__":
    main()
