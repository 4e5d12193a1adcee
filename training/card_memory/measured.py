"""What a rank really holds of its card, counted three ways, to be held against the forecast."""

from __future__ import annotations

import os
import time
from functools import cache
from typing import Any

import torch

NAMES = ("gpu_reserved_bytes", "gpu_process_bytes", "gpu_used_bytes")
LOOK_SECONDS = 2.0
"""Between two questions to the driver: steps may be a hundred a second."""


def reserved_bytes() -> int:
    """Return the most that PyTorch's allocator has had of the card."""
    return torch.cuda.max_memory_reserved()


def driver_bytes() -> tuple[int, int]:
    """Return what the driver counts for this process, CUDA and its libraries included, and for all on the card.

    The first is 0 where the driver does not tell (WSL2, containers with process numbers of their own).
    """
    free, total = torch.cuda.mem_get_info()
    return _process_bytes(), total - free


def _process_bytes() -> int:
    try:
        nvml, card = _card()
        processes = nvml.nvmlDeviceGetComputeRunningProcesses(card)
    except Exception:  # NVML's own errors, or none installed: what is not counted is no reason to stop
        return 0
    return sum(process.usedGpuMemory or 0 for process in processes if process.pid == os.getpid())


@cache
def _card() -> tuple[Any, Any]:
    """Return NVML and its handle of this rank's card, which it counts among those that are hidden from CUDA."""
    import pynvml

    pynvml.nvmlInit()
    uuid = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
    return pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid)


class CardPeaks:
    """The largest of each count so far; of a card alone, all are 0 on a CPU."""

    def __init__(self) -> None:
        self.peaks = dict.fromkeys(NAMES, 0)
        self.next_look = 0.0

    def look(self) -> dict[str, int]:
        """Return, by NAMES, the largest so far, this moment's included where the driver was not asked just before."""
        if torch.cuda.is_available():
            now = {"gpu_reserved_bytes": reserved_bytes()}
            if time.monotonic() >= self.next_look:
                self.next_look = time.monotonic() + LOOK_SECONDS
                now["gpu_process_bytes"], now["gpu_used_bytes"] = driver_bytes()
            self.peaks |= {name: max(size, self.peaks[name]) for name, size in now.items()}
        return dict(self.peaks)


peaks_of_process = CardPeaks()
"""Of this process, which is one rank of one job."""
