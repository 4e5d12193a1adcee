"""CUDA_VISIBLE_DEVICES where it holds UUIDs of cards or of MIG slices, which CUDA takes and DeepSpeed does not."""

from __future__ import annotations

import os

VISIBLE = "CUDA_VISIBLE_DEVICES"


def names_uuids(visible: str | None) -> bool:
    """Whether a value of CUDA_VISIBLE_DEVICES names cards otherwise than by numbers: "GPU-6f1c..." or "MIG-..."."""
    return any(part.strip().upper().startswith(("GPU-", "MIG-")) for part in (visible or "").split(","))


def let_deepspeed_read_uuids() -> None:
    """Have DeepSpeed ask CUDA how much of a card is free where the user names cards by UUID.

    It would look the card up in NVML by its place in CUDA_VISIBLE_DEVICES, which it reads as numbers, and end with a
    ValueError (https://github.com/deepspeedai/DeepSpeed/pull/8510). CUDA's answer is of the very card or MIG slice, and
    the environment stays as it is for the processes that follow.
    """
    if not names_uuids(os.environ.get(VISIBLE)):
        return
    import torch
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    if not hasattr(accelerator, "_get_nvml_gpu_id"):  # the CPU's has nothing to look up
        return

    def available_memory(device_index: int | None = None) -> int:
        return torch.cuda.mem_get_info(device_index)[0]

    accelerator.available_memory = available_memory
