"""Whether NVIDIA's driver, its cards and the installed PyTorch fit each other: asked before any data is read.

Nothing is refused that might work: ranks that shall run on the CPU, builds and cards of which not enough is known.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training.cuda import torch_build
from training.cuda.torch_build import DRIVERS, Capability, TorchBuild, driver_for, fitting_torch
from training.cuda.visible import VISIBLE
from training.errors import UserError

ON_THE_CPU = "To train on the CPU all the same: CUDA_VISIBLE_DEVICES= before the command"


@dataclass(frozen=True, kw_only=True)
class SeenCard:
    """A card that this process may use."""

    index: int
    name: str
    capability: Capability


@dataclass(frozen=True, kw_only=True)
class Driver:
    """NVIDIA's driver and the cards of a process."""

    version: str
    cuda_major: int | None
    """The newest CUDA it runs; None where it does not say."""
    cards: tuple[SeenCard, ...]


def require_fitting_torch() -> None:
    """Raise UserError where the cards that this process would train on cannot be used with what is installed."""
    driver = seen_driver(os.environ.get(VISIBLE))
    build = torch_build.installed_torch()
    if driver is not None and build is not None and (problem := misfit(build, driver)):
        raise UserError(problem)


def seen_driver(visible: str | None) -> Driver | None:
    """Return driver and cards, those of CUDA_VISIBLE_DEVICES (`visible`) only; None without a driver or such cards."""
    try:
        import pynvml
    except ImportError:
        return None
    wanted = None if visible is None else [part.strip() for part in visible.split(",")]
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        cards = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            uuid = pynvml.nvmlDeviceGetUUID(handle)
            if wanted is None or any(part and (part == str(index) or uuid.startswith(part)) for part in wanted):
                major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
                cards.append(SeenCard(index=index, name=pynvml.nvmlDeviceGetName(handle), capability=(major, minor)))
        version = pynvml.nvmlSystemGetDriverVersion()
        # By CUDA itself, which is right under WSL2 too, where the driver's version is that of Windows.
        cuda_major = pynvml.nvmlSystemGetCudaDriverVersion_v2() // 1000
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()
    return Driver(version=version, cuda_major=cuda_major or None, cards=tuple(cards)) if cards else None


def misfit(build: TorchBuild, driver: Driver) -> str | None:
    """Return what does not fit and the mend; None where all does, or might."""
    if build.is_for_other_cards:
        return None
    names = ", ".join(dict.fromkeys(card.name for card in driver.cards))
    capabilities = [card.capability for card in driver.cards]
    cuda_major = driver.cuda_major or build.cuda_major or max(DRIVERS)
    install = install_command(fitting_torch(cuda_major, capabilities))
    if build.cuda is None:
        mend = install or f"update NVIDIA's driver to {driver_for(12)}"
        mend = mend[0].upper() + mend[1:]
        return f"PyTorch {build.version} is a build for CPUs, and this machine has {names}. {mend}. {ON_THE_CPU}."
    if cuda_major < build.cuda_major:
        fact = (
            f"NVIDIA's driver {driver.version} is too old for PyTorch {build.version}: it runs CUDA {cuda_major} at "
            f"most, and this PyTorch is for CUDA {build.cuda}"
        )
        update = f"Update it to {driver_for(build.cuda_major)} (Ubuntu: sudo ubuntu-drivers install, then restart)"
        return f"{fact}. {update}{f'; or {install}' if install else ''}. {ON_THE_CPU}."
    strangers = [card for card in driver.cards if not build.runs_on(card.capability)]
    if not strangers:
        return None
    return _no_kernels(build, driver, strangers, install)


def _no_kernels(build: TorchBuild, driver: Driver, strangers: Sequence[SeenCard], install: str) -> str:
    """Return the message for cards that a build has no code for."""
    named = ", ".join(f"{card.name} (sm_{card.capability[0]}{card.capability[1]})" for card in strangers)
    mends = [install] if install else []
    others = [str(card.index) for card in driver.cards if card not in strangers]
    if others:
        mends.append(f"leave it out with CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES={','.join(others)}")
    mends = mends or ["install a PyTorch that is built for it"]
    mend = "; or ".join(mends)
    return f"PyTorch {build.version} has no code for {named}. {mend[0].upper()}{mend[1:]}. {ON_THE_CPU}."


def install_command(requirement: str | None) -> str:
    """Return "install ... with: .venv/bin/pip install ..." for the environment that runs; "" for None."""
    if requirement is None:
        return ""
    package, _, options = requirement.partition(" ")
    pip = Path(sys.prefix) / "bin" / "pip"
    shown = pip.relative_to(Path.cwd()) if pip.is_relative_to(Path.cwd()) else pip
    return f"install one that fits with: {shown} install '{package}'{' ' if options else ''}{options}"
