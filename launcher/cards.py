"""The cards jobs run on: real GPUs as NVML lists them, or virtual ones of a declared size whose ranks run on the CPU.

Each is a Ray resource of its node, in GiB: `card0_gib: 8`. Ray itself then keeps two studies off the same card.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.errors import UserError

RESOURCE = re.compile(r"card(\d+)_gib")

DEFAULT_VIRTUAL_CARD_GIB = 8.0
MAX_DEFAULT_VIRTUAL_CARDS = 2
"""Without GPUs and without `cards_gib`: one card a core, two at most; more ranks than cores only slow each other."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """One card of one node."""

    node_id: str
    """Ray's id of the node."""
    host: str
    index: int
    """Its place in NVML's order; the Ray resource is card<index>_gib."""
    gib: float
    num_threads: int
    """CPU threads of a rank on it: the node's cores shared out over its cards."""

    @property
    def resource(self) -> str:
        """Name of its Ray resource."""
        return f"card{self.index}_gib"

    @property
    def label(self) -> str:
        """E.g. "box1:0"."""
        return f"{self.host}:{self.index}"


def gpu_sizes_gib() -> dict[int, float]:
    """Return index -> GiB of this machine's NVIDIA GPUs, those of CUDA_VISIBLE_DEVICES only where it is set."""
    if shutil.which("nvidia-smi") is None:
        return {}
    command = ["nvidia-smi", "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return parse_gpu_list(run.stdout, os.environ.get("CUDA_VISIBLE_DEVICES")) if run.returncode == 0 else {}


def parse_gpu_list(text: str, visible: str | None) -> dict[int, float]:
    """Read nvidia-smi's lines `index, uuid, MiB`; `visible` is CUDA_VISIBLE_DEVICES (indices or UUIDs).

    Sizes are rounded to whole GiB: Ray takes nothing else for a node's resource.
    """
    allowed = None if visible is None else {item.strip() for item in visible.split(",")}
    sizes = {}
    for line in text.splitlines():
        index, uuid, mib = (part.strip() for part in line.split(","))
        if allowed is None or index in allowed or any(item and uuid.startswith(item) for item in allowed):
            sizes[int(index)] = float(round(int(mib) / 1024))
    return sizes


def local_sizes_gib(declared: Sequence[float] | None) -> tuple[dict[int, float], bool]:
    """Return index -> GiB of this machine's cards and whether they are virtual; `declared` is a study's cards_gib."""
    gpus = gpu_sizes_gib()
    if gpus:
        return gpus, False
    if declared is None:
        cores = len(os.sched_getaffinity(0))
        declared = [DEFAULT_VIRTUAL_CARD_GIB] * min(cores, MAX_DEFAULT_VIRTUAL_CARDS)
    return dict(enumerate(declared)), True


def resources(sizes_gib: Mapping[int, float]) -> dict[str, float]:
    """Return what `ray start --resources` and `ray.init(resources=...)` take."""
    return {f"card{index}_gib": float(size) for index, size in sizes_gib.items()}


def cluster_cards(nodes: Sequence[Mapping[str, Any]]) -> list[Card]:
    """Return the cards that the nodes of `ray.nodes()` announce. Raises UserError where none does."""
    cards = []
    for node in nodes:
        if not node["Alive"]:
            continue
        sizes = {
            int(match[1]): float(size)
            for name, size in node["Resources"].items()
            if (match := RESOURCE.fullmatch(name))
        }
        num_threads = max(1, int(node["Resources"].get("CPU", 1)) // max(1, len(sizes)))
        cards += [
            Card(
                node_id=node["NodeID"], host=node["NodeManagerHostname"], index=index, gib=size,
                num_threads=num_threads,
            )
            for index, size in sorted(sizes.items())
        ]  # fmt: skip
    if not cards:
        example = json.dumps(resources({0: 8.0}))
        raise UserError(
            f"No node of the Ray cluster announces its cards. Start each with: ray start ... --resources='{example}' "
            "(`shoal cards` prints that for the machine it runs on)."
        )
    return cards
