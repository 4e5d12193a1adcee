"""Which of Shoal's own kernels are not used on a device, since its calibration found them wrong there."""

from __future__ import annotations

import torch

from training.calibration.record import card_record, read_record, this_cpu


def switched_off(device: torch.device) -> frozenset[str]:
    """Return the kernels, by their names in training.calibration.kernels; none where the device is not measured."""
    if device.type == "cuda":
        record = card_record(torch.cuda.get_device_name(device)) if torch.cuda.is_available() else None
    else:
        record = read_record(*this_cpu())
    return frozenset(record.wrong) if record else frozenset()
