"""What PyTorch and DeepSpeed can do on a machine, as JSON: `python launcher/doctor/stack.py`, in the checkout.

The doctor runs this file's text in a process of its own, here or on a PC over SSH: importing them takes seconds,
building CPUAdam a minute the first time, and a broken installation can end the process.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TypedDict


class Stack(TypedDict):
    """What PyTorch and DeepSpeed say."""

    cuda: str
    """The CUDA that PyTorch was built for; "" of a CPU build."""
    architectures: list[str]
    """The cards it was built for, e.g. sm_86."""
    cuda_problem: str
    """Why PyTorch cannot use a card; "" where it can, or is a CPU build."""
    cpu_adam_obstacle: str
    """Why DeepSpeedCPUAdam cannot be built; "" where it is built."""


def look() -> Stack:
    """Return what the training of a job would meet here."""
    import torch

    problem = ""
    if torch.version.cuda:
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
        except (RuntimeError, AssertionError) as reason:
            problem = str(reason).strip().splitlines()[0]
    return {
        "cuda": torch.version.cuda or "",
        # torch.cuda.get_arch_list() says nothing where the card cannot be used, until 2.10.
        "architectures": (torch._C._cuda_getArchFlags() or "").split() if torch.version.cuda else [],
        "cuda_problem": problem,
        "cpu_adam_obstacle": _cpu_adam_obstacle(),
    }


def _cpu_adam_obstacle() -> str:
    # As a rank does, which finds ninja beside its interpreter.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    try:
        from training.engine import cpu_adam_obstacle
    except Exception as reason:  # whatever an import of all of it can raise is what a job would end with
        return f"{type(reason).__name__}: {reason}"
    return cpu_adam_obstacle() or ""


if __name__ == "__main__":
    print(json.dumps(look()))
