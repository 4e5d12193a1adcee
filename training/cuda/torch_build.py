"""Which build of PyTorch is installed, and which one a driver and its cards can run, without importing it (seconds).

python3 training/cuda/torch_build.py     what pip should install here, e.g. torch===2.10.0 for a driver of CUDA 12
"""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

Capability = tuple[int, int]
DRIVERS = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}
"""CUDA's major version -> the oldest Linux driver for it (NVIDIA, CUDA Toolkit release notes, "CUDA Toolkit and Minimum
Required Driver Version for CUDA Minor Version Compatibility")."""


@dataclass(frozen=True, kw_only=True)
class TorchBuild:
    """An installed PyTorch."""

    version: str
    """E.g. "2.13.0+cu130": of the official builds the part after the plus sign names CUDA."""
    cuda: str | None
    """The CUDA it is for, e.g. "13.0"; None of a build for CPUs, or for another maker's cards."""
    is_for_other_cards: bool = False
    """A build for ROCm or Intel's XPU."""

    @property
    def cuda_major(self) -> int:
        """Return 13 of "13.0", 0 without CUDA."""
        return int((self.cuda or "0").split(".")[0])

    def runs_on(self, capability: Capability) -> bool:
        """Whether it has kernels for a card. Of builds that are not PyTorch's own nobody can tell: they pass.

        PyTorch's RELEASE.md, "PyTorch CUDA Support Matrix": CUDA 13 from sm_75; 12.8 from sm_75, until 2.10 from sm_70;
        12.6 from sm_50 to sm_90.
        """
        release, _, local = self.version.partition("+")
        if self.cuda is None or local != f"cu{self.cuda.replace('.', '')}":
            return True
        minor = int(self.cuda.split(".")[1])
        if self.cuda_major >= 13:
            return capability >= (7, 5)
        if self.cuda_major == 12 and minor >= 8:
            newest_with_volta = tuple(int(part) for part in release.split(".")[:2]) <= (2, 10)
            return capability >= ((7, 0) if newest_with_volta else (7, 5))
        return (5, 0) <= capability < (10, 0)


def installed_torch() -> TorchBuild | None:
    """Return what torch/version.py says; None where it is not there or says something else."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return None
    try:
        tree = ast.parse(Path(spec.submodule_search_locations[0], "version.py").read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return None
    values: dict[str, str | None] = {}
    for line in tree.body:
        if isinstance(line, ast.Assign | ast.AnnAssign) and isinstance(line.value, ast.Constant):
            for target in line.targets if isinstance(line, ast.Assign) else [line.target]:
                values[getattr(target, "id", "")] = line.value.value  # type: ignore[assignment]
    if "cuda" not in values or not values.get("__version__"):
        return None
    others = any(values.get(name) for name in ("hip", "rocm", "xpu"))
    return TorchBuild(version=str(values["__version__"]), cuda=values["cuda"], is_for_other_cards=others)


def fitting_torch(cuda_major: int, capabilities: Sequence[Capability]) -> str | None:
    """Return what pip should install for a driver of this CUDA and these cards; None where only another driver helps.

    Three equal signs: for two, a build for CPUs (2.13.0+cpu) that is installed or offered would do.
    """
    lowest, highest = min(capabilities, default=(8, 0)), max(capabilities, default=(8, 0))
    if cuda_major >= 13 and lowest >= (7, 5):
        return "torch===2.13.0"
    if cuda_major >= 12 and lowest >= (7, 0):
        return "torch===2.10.0"
    if cuda_major >= 12 and lowest >= (5, 0) and highest < (10, 0):
        return "torch===2.13.0+cu126 --extra-index-url https://download.pytorch.org/whl/cu126"
    return None


def driver_for(cuda_major: int) -> str:
    """Return the oldest driver for a CUDA, in words."""
    return f"{DRIVERS[cuda_major]} or later" if cuda_major in DRIVERS else f"one for CUDA {cuda_major}"


def wanted_here() -> str:
    """Return what pip should install for this machine's driver and cards, as `nvidia-smi` tells them; "" for whatever
    pip's index offers: there is no card, or nothing fits it, which is said when something is run on it."""
    try:
        told = subprocess.run(["nvidia-smi"], capture_output=True, text=True, check=True).stdout
        query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        asked = subprocess.run(query, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    cuda = re.search(r"CUDA Version: (\d+)", told)
    cards = [(int(major), int(minor)) for major, minor in re.findall(r"^(\d+)\.(\d+)$", asked, flags=re.MULTILINE)]
    return (fitting_torch(int(cuda[1]), cards) or "") if cuda else ""


if __name__ == "__main__":  # before anything is installed: `make` asks it
    print(wanted_here())
