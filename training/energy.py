"""Energy of the cards a job trains on, by the counter of NVIDIA's driver (Volta and later)."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist

from training.ranks import Ranks


class EnergyMeter:
    """Reads what this rank's card has used. A card that jobs share is counted whole, for each of them."""

    def __init__(self, device: torch.device, ranks: Ranks) -> None:
        self.device, self.ranks = device, ranks
        self.last = read_joules(device)

    def taken(self) -> float:
        """Return the joules of all ranks' cards since the last call; nan where a card does not tell, 0 on the CPU.

        All ranks must call it.
        """
        if self.device.type != "cuda":
            return 0.0
        now = read_joules(self.device)
        joules = torch.tensor(now - self.last, dtype=torch.float64, device=self.device)
        self.last = now
        if self.ranks.world_size > 1:
            dist.all_reduce(joules)
        return float(joules.item())


def read_joules(device: torch.device) -> float:
    """Return what the device has used since its driver was loaded; nan where that is not known."""
    if device.type != "cuda":
        return math.nan
    try:
        import pynvml
    except ImportError:
        return math.nan
    try:
        pynvml.nvmlInit()
        # By UUID: NVML counts cards that CUDA_VISIBLE_DEVICES hides.
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        millijoules = pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByUUID(uuid))
        pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return math.nan
    return float(millijoules) / 1000
