"""A card's memory: capped, measured, given back."""

from __future__ import annotations

import gc

import torch

from benchmarks.gpu.fits import Peak

CPU_BYTES = 2**40
"""What a CPU counts for: all caps are within it."""


class Card:
    """The card's memory as PyTorch sees it; on a CPU nothing is measured and no cap holds."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.on_card = device, device.type == "cuda"
        self.total_bytes = torch.cuda.get_device_properties(device).total_memory if self.on_card else CPU_BYTES
        self.outside_bytes = 0
        """Taken by this process beside PyTorch's tensors: the CUDA context and its libraries."""

    def note_outside(self) -> None:
        """Measure what a real card of the cap's size would have to hold too. The card must be ours alone."""
        if self.on_card:
            free, total = torch.cuda.mem_get_info(self.device)
            self.outside_bytes = total - free - torch.cuda.memory_reserved(self.device)

    def cap(self, cap_bytes: int) -> None:
        """Let PyTorch take what a card of this size would leave it."""
        gc.collect()
        if self.on_card:
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction((cap_bytes - self.outside_bytes) / self.total_bytes, self.device)
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> Peak:
        """Return the peak since `cap`, that outside of PyTorch included."""
        if not self.on_card:
            return Peak(allocated_bytes=0, reserved_bytes=0)
        torch.cuda.synchronize(self.device)
        return Peak(
            allocated_bytes=torch.cuda.max_memory_allocated(self.device) + self.outside_bytes,
            reserved_bytes=torch.cuda.max_memory_reserved(self.device) + self.outside_bytes,
        )

    def held_bytes(self) -> int:
        gc.collect()
        return torch.cuda.memory_allocated(self.device) if self.on_card else 0

    def free_host_memory(self) -> None:
        """Give pinned host memory back: blocks of one model's sizes are of no use to the next."""
        free = getattr(torch.accelerator, "empty_host_cache", None) or getattr(torch._C, "_host_emptyCache", None)
        if self.on_card and free is not None:
            torch.cuda.synchronize(self.device)
            free()
