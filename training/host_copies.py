"""Copies between host memory and a card that nobody waits for: a host that waits launches nothing meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

PINNED_FOR = {"cuda"}
"""Device types that read pinned host memory by themselves."""
ALIGNMENT = 64
"""Bytes; each array begins at a multiple of it."""


def to_device_together(arrays: Sequence[npt.NDArray[Any]], device: torch.device) -> list[Tensor]:
    """Return these arrays as tensors on `device`, brought there in one copy that does not wait for earlier work."""
    starts = np.cumsum([0] + [array.nbytes + -array.nbytes % ALIGNMENT for array in arrays]).tolist()
    host = np.zeros(starts[-1], dtype=np.uint8)
    for start, array in zip(starts, arrays, strict=False):
        host[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    buffer = torch.from_numpy(host)
    if device.type in PINNED_FOR:
        buffer = buffer.pin_memory()
    buffer = buffer.to(device, non_blocking=True)
    return [
        buffer[start : start + array.nbytes].view(torch.from_numpy(array[:0]).dtype).view(array.shape)
        for start, array in zip(starts, arrays, strict=False)
    ]


class Fetched:
    """Values on their way from a device to the host."""

    def __init__(self, values: Tensor) -> None:
        self.event: torch.cuda.Event | None = None
        if values.device.type == "cuda":
            self.host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self.host.copy_(values.detach(), non_blocking=True)
            self.event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.event.record()
        else:
            self.host = values.detach().clone()

    def values(self) -> list[float]:
        """Wait for them."""
        if self.event is not None:
            self.event.synchronize()
        return self.host.tolist()
