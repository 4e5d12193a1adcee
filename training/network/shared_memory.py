"""The shared memory by which NCCL connects two cards of a PC: consumer cards do not reach each other directly."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

FOLDER = Path("/dev/shm")
NEEDED_MIB = 256
"""NCCL has been seen to fail with Docker's default of 64 MiB; its buffers are 7 to 10 MiB a channel and direction."""
MEND = (
    "In a container: start it with --shm-size=1g, or --ipc=host (Docker Compose: shm_size: 1gb). Elsewhere: delete "
    "what nobody uses in /dev/shm, or mount -o remount,size=1g /dev/shm. NCCL_SHM_DISABLE=1 does without it, slower."
)


def free_mib(folder: Path = FOLDER) -> int | None:
    """Return the MiB that are free of a PC's shared memory; None where there is no such folder."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize >> 20


def why_too_small(free: int | None, environment: Mapping[str, str]) -> str | None:
    """Return why ranks on several cards of this PC would fail, and the mend; None where they would not."""
    if environment.get("NCCL_SHM_DISABLE", "0") == "1" or (free is not None and free >= NEEDED_MIB):
        return None
    has = "there is no /dev/shm" if free is None else f"/dev/shm has {free} MiB free"
    return f"{has}, and NCCL needs {NEEDED_MIB} for several ranks on the cards of one PC. {MEND}"
