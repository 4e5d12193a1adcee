"""What this machine's CPU can do."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path


@cache
def cpu_flags() -> frozenset[str]:
    """Return the names Linux has for what the CPU can do, such as avx512_bf16 and amx_bf16; none on other systems."""
    cpu_info = Path("/proc/cpuinfo")
    if platform.system() != "Linux" or not cpu_info.exists():
        return frozenset()
    lines = cpu_info.read_text().splitlines()
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())
