"""The cards jobs run on: real GPUs as NVML lists them, or virtual ones of a declared size whose ranks run on the CPU.

Each is a Ray resource of its node, in GiB: `card0_gib: 8`. Jobs reserve what they need of it, so Ray itself keeps
several jobs, of one study or of several, from over-booking a card; what the desktop uses is never announced.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from training.errors import UserError

RESOURCE = re.compile(r"card(\d+)_gib")
CardKey = tuple[str, int]
"""Ray's id of the node, and the card's index there."""
GIB = 2**30
WHOLE_GIB = 0.1
"""A card that lacks less than this of a whole GiB counts as having it: an "8 GB" card has 7.996 GiB."""

DEFAULT_VIRTUAL_CARD_GIB = 8.0
MAX_DEFAULT_VIRTUAL_CARDS = 2
"""Without GPUs and without `cards_gib`: one card a core, two at most; more ranks than cores only slow each other."""


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
    """Its place in NVML's order; the Ray resource is card<index>_gib."""
    size: int
    """GiB that its node announces. Cards of one size are equal: a job of several ranks gets such."""
    gib: float
    """What of it jobs of ours may use: its size, less what others have reserved."""
    num_threads: int
    """CPU threads of a rank on it: the node's cores shared out over its cards."""
    is_virtual: bool = True
    """Its ranks run on the CPU: its node has no GPU."""
    uuid: str = ""
    """NVML's, where its node says it."""

    @property
    def key(self) -> CardKey:
        """Return what tells it from all other cards of the cluster."""
        return (self.node_id, self.index)

    @property
    def resource(self) -> str:
        """Name of its Ray resource."""
        return f"card{self.index}_gib"

    @property
    def label(self) -> str:
        """E.g. "box1:0"."""
        return f"{self.host}:{self.index}"


@dataclass(frozen=True, kw_only=True)
class LocalCard:
    """One card of this machine, as it is announced to Ray."""

    index: int
    size: int
    """Whole GiB, for Ray takes nothing else: what is free of a GPU, so that desktop and games keep theirs."""
    uuid: str = ""


def gpus() -> list[LocalCard]:
    """Return this machine's NVIDIA GPUs, those of CUDA_VISIBLE_DEVICES only where it is set; none without a driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            found.append((pynvml.nvmlDeviceGetUUID(handle), pynvml.nvmlDeviceGetMemoryInfo(handle).free))
    finally:
        pynvml.nvmlShutdown()
    return visible_gpus(found, os.environ.get("CUDA_VISIBLE_DEVICES"))


def visible_gpus(found: Sequence[tuple[str, int]], visible: str | None) -> list[LocalCard]:
    """Return the cards of (uuid, free bytes) in NVML's order; `visible` is CUDA_VISIBLE_DEVICES (indices or UUIDs)."""
    allowed = None if visible is None else {item.strip() for item in visible.split(",")}
    cards = []
    for index, (uuid, free) in enumerate(found):
        if allowed is None or str(index) in allowed or any(item and uuid.startswith(item) for item in allowed):
            size = math.floor(free / GIB + WHOLE_GIB)
            if size:  # one that others have filled is none
                cards.append(LocalCard(index=index, size=size, uuid=uuid))
    return cards


def local_cards(declared: Sequence[float] | None) -> list[LocalCard]:
    """Return this machine's cards, virtual ones where it has no GPU; `declared` is a study's cards_gib."""
    real = gpus()
    if real:
        return real
    if declared is None:
        cores = len(os.sched_getaffinity(0))
        declared = [DEFAULT_VIRTUAL_CARD_GIB] * min(cores, MAX_DEFAULT_VIRTUAL_CARDS)
    return [LocalCard(index=index, size=int(size)) for index, size in enumerate(declared)]


def resources(cards: Sequence[LocalCard]) -> dict[str, float]:
    """Return what `ray start --resources` and `ray.init(resources=...)` take."""
    return {f"card{card.index}_gib": float(card.size) for card in cards}


def labels(cards: Sequence[LocalCard]) -> dict[str, str]:
    """Return what `ray start --labels` and `ray.init(labels=...)` take: which GPU each of the resources is."""
    return {f"card{card.index}_uuid": card.uuid for card in cards if card.uuid}


Inventory = tuple[list[Card], dict[str, Node]]
"""Cards, and the nodes they are of by their ids."""


def unreserved(cards: Sequence[Card], nodes: Mapping[str, Node]) -> Inventory:
    """Return the same when nobody has reserved anything: what a job can wait for."""
    return (
        [replace(card, gib=float(card.size)) for card in cards],
        {node_id: replace(node, host_gib=node.total_gib) for node_id, node in nodes.items()},
    )


def cluster_cards(
    nodes: Sequence[Mapping[str, Any]],
    available: Mapping[str, Mapping[str, float]],
    ours: Mapping[str, Mapping[str, float]],
    *,
    virtual: bool | None = None,
) -> Inventory:
    """Return the cards of the nodes of `ray.nodes()`, and these nodes.

    `available` is what Ray has left of each node's resources; `ours` is what we have reserved ourselves. The rest
    others have reserved, and it is left to them. Only `virtual` cards or only real ones; by default the real ones where
    there are any, since a CPU would keep them waiting.
    """
    cards: list[Card] = []
    machines: dict[str, Node] = {}
    for node in nodes:
        if not node["Alive"]:
            continue
        node_id, total = node["NodeID"], node["Resources"]

        def usable(name: str, node_id: str = node_id, total: Mapping[str, float] = total) -> float:
            left = available.get(node_id, total).get(name, 0.0) + ours.get(node_id, {}).get(name, 0.0)
            return min(float(total[name]), left)

        indices = sorted(int(match[1]) for name in total if (match := RESOURCE.fullmatch(name)))
        cores = max(1, int(total.get("CPU", 1)))
        cards += [
            Card(
                node_id=node_id,
                host=node["NodeManagerHostname"],
                index=index,
                size=round(total[f"card{index}_gib"]),
                gib=usable(f"card{index}_gib"),
                num_threads=max(1, cores // len(indices)),
                is_virtual=not total.get("GPU"),
                uuid=node.get("Labels", {}).get(f"card{index}_uuid", ""),
            )
            for index in indices
        ]
        machines[node_id] = Node(
            node_id=node_id,
            host=node["NodeManagerHostname"],
            total_gib=total["memory"] / GIB if "memory" in total else math.inf,
            host_gib=usable("memory") / GIB if "memory" in total else math.inf,
            cores=cores,
        )
    if virtual is None:
        virtual = all(card.is_virtual for card in cards)
    return [card for card in cards if card.is_virtual == virtual], machines


def require_cards(cards: Sequence[Card]) -> None:
    """Raise UserError where a cluster has none."""
    if not cards:
        example = json.dumps({"card0_gib": 8.0})
        raise UserError(
            f"No node of the Ray cluster announces its cards. Start each with: ray start ... --resources='{example}' "
            "(`shoal cards` prints that for the machine it runs on)."
        )
