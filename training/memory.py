"""Peak memory of this process."""

from __future__ import annotations

import resource

import torch


def peak_memory_bytes() -> dict[str, int]:
    """Return "gpu_bytes" (torch.cuda.max_memory_allocated; 0 on a CPU) and "host_bytes" (largest resident set)."""
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {"gpu_bytes": gpu, "host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
