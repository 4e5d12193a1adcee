"""Host memory that a card copies from without waiting, in blocks of just the size of a layer's weights.

DeepSpeed pins each offloaded parameter by itself, and PyTorch's allocator of pinned memory rounds each up to a power of
two: up to 1.9 times the bytes of the weights. Here a layer's weights stand side by side in one block of whole pages,
which CUDA is told to lock where it is.
"""

from __future__ import annotations

import copy
import mmap
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

ALIGNMENT = 64
"""Bytes to which each weight in a block is aligned."""


def pins_parameters(config: dict[str, Any]) -> bool:
    """Whether a filled DeepSpeed configuration asks for offloaded weights in pinned memory."""
    section = config.get("zero_optimization", {}).get("offload_param") or {}
    return section.get("device", "none") == "cpu" and bool(section.get("pin_memory"))


def unpinned(config: dict[str, Any]) -> dict[str, Any]:
    """Return a DeepSpeed configuration that leaves the pinning of weights to `pin_layers`."""
    config = copy.deepcopy(config)
    if pins_parameters(config):
        config["zero_optimization"]["offload_param"]["pin_memory"] = False
    return config


def pin_layers(model: nn.Module) -> bool:
    """Move the frozen weights that ZeRO-3 keeps in host memory into pinned blocks, layer by layer.

    Returns whether all of them are pinned: a system may lock no more memory (WSL2 sets a limit); weights beyond it
    stay where they can be copied from all the same, only slower.
    """
    groups: dict[int, list[Tensor]] = {}
    for layer in [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]:
        groups[id(layer)] = _slices(layer.parameters())
    inside = {id(each) for group in groups.values() for each in group}
    for each in _slices(model.parameters()):
        if id(each) not in inside:
            groups[id(each)] = [each]
    are_locked = [_pin(group) for group in groups.values() if group]
    return all(are_locked)


def _slices(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """Return this rank's slices of frozen parameters that are in host memory."""
    cut: list[Any] = [each for each in parameters if hasattr(each, "ds_tensor") and not each.requires_grad]
    # Small ones stay whole where they compute (DeepSpeed's persistence threshold).
    slices = [parameter.ds_tensor for parameter in cut if not parameter.ds_persist]
    return [each for each in slices if each is not None and each.device.type == "cpu" and each.numel()]


def _pin(slices: list[Tensor]) -> bool:
    """Move these into one block, locked where that can be; return whether it could."""
    sizes = [-(-each.numel() * each.element_size() // ALIGNMENT) * ALIGNMENT for each in slices]
    block, is_locked = locked_pages(sum(sizes))
    start = 0
    for each, size in zip(slices, sizes, strict=True):
        place = block[start : start + each.numel() * each.element_size()].view(each.dtype).view(each.shape)
        place.copy_(each)
        each.data = place
        start += size
    return is_locked


def locked_pages(size: int) -> tuple[Tensor, bool]:
    """Return `size` bytes (uint8) on pages of their own, and whether they are locked. A forecast has a stand-in."""
    pages = _Pages(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block = torch.frombuffer(pages, dtype=torch.uint8)
    return block, pages.lock(block.data_ptr())


class _Pages(mmap.mmap):
    """Anonymous memory, which the tensors that show it keep alive. CUDA hears of it before it goes."""

    address = 0
    """Where it is locked; 0 where it is not."""

    def lock(self, address: int) -> bool:
        """Have CUDA lock the pages, which begin at this address; return whether it could."""
        if not torch.cuda.is_available():
            return False
        error = torch.cuda.cudart().cudaHostRegister(address, len(self), 0)  # type: ignore[no-untyped-call]
        if int(error) != 0:
            with suppress(RuntimeError):  # CUDA reports it once more, to the next kernel that is started
                torch.zeros(1, device="cuda").add_(1)
                torch.cuda.synchronize()
            return False
        self.address = address
        return True

    def __del__(self) -> None:
        if self.address:
            with suppress(Exception):  # when Python ends, CUDA may have ended before
                torch.cuda.cudart().cudaHostUnregister(self.address)  # type: ignore[no-untyped-call]
