"""Pinned memory as a card's host has it, counted: PyTorch's allocator gives blocks of a power of two.

    SHOAL_STAND_INS=rounding_pins=FILE

FILE gets, when the process ends, {"rounded": bytes in such blocks, "locked": bytes that CUDA was told to lock}.
"""

from __future__ import annotations

import atexit
import json
import mmap
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

from stand_ins.importing import after_import

counted: Counter[str] = Counter()


def install(argument: str) -> None:
    """Have DeepSpeed's CPU accelerator pin as CUDA does, and count what Shoal locks itself."""
    after_import("deepspeed.accelerator.cpu_accelerator", _round)
    after_import("training.card_memory.pinned", _count)
    if argument:
        atexit.register(lambda: Path(argument).write_text(json.dumps(counted), encoding="utf-8"))


def _round(module: ModuleType) -> None:
    def pin_memory(_: Any, tensor: Any, align_bytes: int = 1) -> Any:
        import torch

        size = tensor.numel() * tensor.element_size()
        block = torch.empty(1 << max(0, size - 1).bit_length(), dtype=torch.uint8)
        counted["rounded"] += block.numel()
        return block[:size].view(tensor.dtype).view(tensor.shape).copy_(tensor)

    module.CPU_Accelerator.pin_memory = pin_memory  # type: ignore[attr-defined]


def _count(module: ModuleType) -> None:
    own: Any = module.locked_pages  # type: ignore[attr-defined]

    def locked_pages(size: int) -> tuple[Any, bool]:
        block, _ = own(size)
        counted["locked"] += -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        return block, True

    module.locked_pages = locked_pages  # type: ignore[attr-defined]
