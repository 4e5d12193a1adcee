"""DeepSpeed's accelerator answers about cards as on CUDA, from our ranks' environment, and computes on the CPU.

    SHOAL_STAND_INS=cuda_accelerator                 two RTX 3060, which DeepSpeed alone sees
    SHOAL_STAND_INS=nvml=4090,cuda_accelerator=4090    one RTX 4090, which all of Shoal sees

Only where CUDA_VISIBLE_DEVICES shows a card: DeepSpeed asks CUDA nothing where it is empty.
"""

from __future__ import annotations

import os
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

from stand_ins.importing import after_import
from stand_ins.nvml import Inventory, functions


def install(argument: str) -> None:
    """Have DeepSpeed's CPU accelerator answer with the methods of its CUDA accelerator."""
    inventory = Inventory.of(argument or "3060+3060")
    after_import("deepspeed.accelerator.cpu_accelerator", partial(_answer_as_cuda, inventory=inventory))


def _answer_as_cuda(module: ModuleType, inventory: Inventory) -> None:
    """Put DeepSpeed's own CUDA methods, over NVML of the inventory, in place of the CPU's."""
    import deepspeed.accelerator.cuda_accelerator as cuda
    import pynvml
    import torch

    cpu: Any = module.CPU_Accelerator
    before = {name: getattr(cpu, name) for name in ("available_memory", "total_memory", "is_available")}
    cuda.pynvml = SimpleNamespace(**{**vars(pynvml), **functions(pynvml, inventory)})

    def card(index: int | None) -> int:
        """A rank's device among those it sees, as training.engine sets it."""
        visible = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
        return int(os.environ.get("LOCAL_RANK", "0")) % len(visible) if index is None else index

    def available_memory(self: Any, device_index: int | None = None) -> int:
        if not _sees_cards():
            return before["available_memory"](self, device_index)
        return cuda.CUDA_Accelerator.available_memory(self, card(device_index))

    def total_memory(self: Any, device_index: int | None = None) -> int:
        if not _sees_cards():
            return before["total_memory"](self, device_index)
        return inventory.devices[self._get_nvml_gpu_id(card(device_index))].bytes_of_cuda

    def free_of_cuda(device_index: int | None = None) -> tuple[int, int]:
        """What CUDA itself says, which takes UUIDs."""
        name = os.environ["CUDA_VISIBLE_DEVICES"].split(",")[card(device_index)]
        device = next(device for device in inventory.devices if name == str(device.index) or device.uuid == name)
        return device.bytes_free, device.bytes_of_cuda

    torch.cuda.mem_get_info = free_of_cuda
    cpu._get_nvml_gpu_id = cuda.CUDA_Accelerator._get_nvml_gpu_id
    cpu.available_memory = available_memory
    cpu.total_memory = total_memory
    cpu.is_available = lambda self: _sees_cards() or before["is_available"](self)


def _sees_cards() -> bool:
    return os.environ.get("CUDA_VISIBLE_DEVICES", "") not in ("", "-1")
