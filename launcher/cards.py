"""The cards jobs run on: real GPUs as NVML lists them, or virtual ones of a declared size whose ranks run on the CPU.

Each is a Ray resource of its node, in MiB: `card0_mib: 7895`. Jobs reserve what they need of it, so Ray itself keeps
several jobs, of one study or of several, from over-booking a card; what the desktop uses is never announced. What a GPU
is (its name, its compute capability, its whole memory, how fast it multiplies) stands in labels of the node.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

CardKey = tuple[str, int]
"""Ray's id of the node, and the card's index there."""
Capability = tuple[int, int]
"""CUDA compute capability: (8, 6) is sm_86."""
GIB = 2**30
MIB = 2**20
LEAST_MIB = 256
"""A card with less than this free is none: the context of a CUDA process alone takes more."""

MAX_GIB = 4096
"""Of a virtual card; no card is larger, and Ray refuses what is far larger."""
DEFAULT_VIRTUAL_CARD_GIB = 8.0
MAX_DEFAULT_VIRTUAL_CARDS = 2
"""Without GPUs and without `cards_gib`: one card a core, two at most; more ranks than cores only slow each other."""


@dataclass(frozen=True, kw_only=True)
class CardKind:
    """What equal cards have in common, whatever is in use of them. Jobs of several ranks get equal ones."""

    total_gib: float
    """All of its memory as NVML counts it, or the declared size of a virtual card."""
    name: str = ""
    """NVML's, e.g. "NVIDIA GeForce RTX 3060"; a virtual card has none."""
    capability: Capability | None = None
    """None for virtual cards."""
    tflops: float = field(default=0.0, compare=False)
    """What its cores could multiply and add in fp32, 10^12 a second; 0 where that is not known. Cards of one model
    differ a little, by their clocks."""

    def __str__(self) -> str:
        return self.name.removeprefix("NVIDIA ").removeprefix("GeForce ") or f"{self.total_gib:g} GiB"


@dataclass(frozen=True, kw_only=True)
class Node:
    """One machine of the cluster."""

    node_id: str
    """Ray's id of it."""
    host: str
    total_gib: float
    """Memory that Ray announces for jobs."""
    host_gib: float
    """What of it jobs of ours may use: all but what others have reserved."""
    cores: int


@dataclass(frozen=True, kw_only=True)
class Card:
    """One card of one node."""

    node_id: str
    host: str
    index: int
    """Its place in NVML's order; the Ray resource is card<index>_mib."""
    size: float
    """GiB that its node announces: what CUDA could have of it when Ray was started there."""
    gib: float
    """What of it jobs of ours may use: its size, less what others have reserved."""
    num_threads: int
    """CPU threads of a rank on it: the node's cores shared out over its cards."""
    is_virtual: bool = True
    """Its ranks run on the CPU: its node has no GPU."""
    uuid: str = ""
    """NVML's, where its node says it; so is what follows."""
    name: str = ""
    capability: Capability | None = None
    total_gib: float = 0.0
    """All of its memory; 0 where its node does not say: a virtual card has what it is announced with."""
    tflops: float = 0.0
    """See CardKind."""

    @property
    def key(self) -> CardKey:
        """Return what tells it from all other cards of the cluster."""
        return (self.node_id, self.index)

    @property
    def kind(self) -> CardKind:
        """Return what it has in common with the cards that are its equals."""
        total = self.total_gib or self.size
        return CardKind(total_gib=total, name=self.name, capability=self.capability, tflops=self.tflops)

    @property
    def resource(self) -> str:
        """Name of its Ray resource."""
        return f"card{self.index}_mib"

    @property
    def label(self) -> str:
        """E.g. "box1:0"."""
        return f"{self.host}:{self.index}"


@dataclass(frozen=True, kw_only=True)
class LocalCard:
    """One card of this machine, as it is announced to Ray."""

    index: int
    mib: int
    """What CUDA can have of it, in whole MiB, for Ray takes nothing else."""
    uuid: str = ""
    name: str = ""
    capability: Capability | None = None
    total_mib: int = 0
    tflops: float = 0.0
    """See CardKind."""


def gpus() -> list[LocalCard]:
    """Return this machine's NVIDIA GPUs, those of CUDA_VISIBLE_DEVICES only where it is set; none without a driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        found = [_gpu(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()
    return visible_gpus(found, os.environ.get("CUDA_VISIBLE_DEVICES"))


def _gpu(nvml: Any, index: int) -> LocalCard:
    """Return a GPU as NVML describes it.

    Its `free` is what CUDA can have: neither what processes use nor what the driver keeps for itself (some 0.3 GiB; a
    card of 12 GiB has 11.7 to give) is part of it, in the first version of the structure and in the second.
    """
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    try:
        megahertz = nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)
        tflops = nvml.nvmlDeviceGetNumGpuCores(handle) * 2 * megahertz / 1e6
    except nvml.NVMLError:  # a virtualized card may keep it to itself
        tflops = 0.0
    return LocalCard(
        index=index,
        mib=memory.free // MIB,
        uuid=nvml.nvmlDeviceGetUUID(handle),
        name=nvml.nvmlDeviceGetName(handle),
        capability=(major, minor),
        total_mib=memory.total // MIB,
        tflops=tflops,
    )


def visible_gpus(found: Sequence[LocalCard], visible: str | None) -> list[LocalCard]:
    """Return those of these cards that jobs may have; `visible` is CUDA_VISIBLE_DEVICES (indices or UUIDs)."""
    allowed = None if visible is None else {item.strip() for item in visible.split(",")}

    def is_allowed(card: LocalCard) -> bool:
        if allowed is None or str(card.index) in allowed:
            return True
        return any(item and card.uuid.startswith(item) for item in allowed)

    return [card for card in found if is_allowed(card) and card.mib >= LEAST_MIB]


def local_cards(declared: Sequence[float] | None, *, virtual: bool = False) -> list[LocalCard]:
    """Return this machine's cards, virtual ones where it has no GPU or where `virtual` ones are asked for.

    `declared` is a study's cards_gib.
    """
    real = [] if virtual else gpus()
    if real:
        return real
    if declared is None:
        cores = len(os.sched_getaffinity(0))
        declared = [DEFAULT_VIRTUAL_CARD_GIB] * min(cores, MAX_DEFAULT_VIRTUAL_CARDS)
    return [LocalCard(index=index, mib=int(size * 1024)) for index, size in enumerate(declared)]


def resources(cards: Sequence[LocalCard]) -> dict[str, float]:
    """Return what `ray start --resources` and `ray.init(resources=...)` take."""
    return {f"card{card.index}_mib": float(card.mib) for card in cards}


def labels(cards: Sequence[LocalCard]) -> dict[str, str]:
    """Return what `ray start --labels` and `ray.init(labels=...)` take: what GPU each of the resources is."""
    found: dict[str, str] = {}
    for card in cards:
        if card.uuid:
            found[f"card{card.index}_uuid"] = card.uuid
        if card.capability:
            # Ray takes letters, digits and _.- in a label, 63 of them.
            name = re.sub(r"[^A-Za-z0-9.-]", "_", card.name)[:63].strip("_.-")
            sm = ".".join(map(str, card.capability))
            values = {"name": name, "sm": sm, "total_mib": str(card.total_mib), "tflops": f"{card.tflops:.2f}"}
            found |= {f"card{card.index}_{key}": value for key, value in values.items() if value}
    return found
