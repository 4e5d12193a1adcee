"""training/main.py where DeepSpeed asks about cards as on CUDA: two RTX 3060, by the stand-ins."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from stand_ins import cuda_accelerator, nvml

from training.main import main

CARDS = "3060+3060"

if __name__ == "__main__":
    nvml.install(f"{CARDS}@{nvml.DRIVER}@{nvml.CUDA}")
    cuda_accelerator.install(CARDS)
    sys.exit(main())
