"""What a Ray cluster says of its cards and nodes, read off `ray.nodes()`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from launcher.cards import GIB, Card, Node
from training.errors import UserError

RESOURCE = re.compile(r"card(\d+)_mib")
OLD_RESOURCE = re.compile(r"card\d+_gib")
"""As Shoal announced cards once, in whole GiB."""

Inventory = tuple[list[Card], dict[str, Node]]
"""Cards, and the nodes they are of by their ids."""


def unreserved(cards: Sequence[Card], nodes: Mapping[str, Node]) -> Inventory:
    """Return the same when nobody has reserved anything: what a job can wait for."""
    return (
        [replace(card, gib=card.size) for card in cards],
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
                size=total[f"card{index}_mib"] / 1024,
                gib=usable(f"card{index}_mib") / 1024,
                num_threads=max(1, cores // len(indices)),
                is_virtual=not total.get("GPU"),
                **_labelled(node.get("Labels", {}), index),
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


def _labelled(found: Mapping[str, str], index: int) -> dict[str, Any]:
    """Return what of a Card its node's labels say; what they lack is left out."""
    prefix = f"card{index}_"
    own = {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}
    known: dict[str, Any] = {"uuid": own.get("uuid", ""), "name": own.get("name", "").replace("_", " ")}
    if "sm" in own:
        major, _, minor = own["sm"].partition(".")
        known["capability"] = (int(major), int(minor or 0))
    return {
        **known, "total_gib": int(own.get("total_mib", 0)) / 1024, "tflops": float(own.get("tflops", 0.0)),
    }  # fmt: skip


def require_cards(cards: Sequence[Card], nodes: Sequence[Mapping[str, Any]], *, virtual: bool | None) -> None:
    """Raise UserError where a cluster has none; `nodes` are those of `ray.nodes()`, `virtual` as in cluster_cards."""
    if cards:
        return
    if virtual and cluster_cards(nodes, {}, {})[0]:
        raise UserError("virtual_cards is true, and the PCs of this cluster announce real cards alone. Leave it out.")
    if any(OLD_RESOURCE.fullmatch(name) for node in nodes if node["Alive"] for name in node["Resources"]):
        raise UserError(
            "The Ray cluster was started by an older Shoal, which announced cards in GiB (card0_gib). Install this "
            "version on every PC and start Ray there again; with cluster/cluster.yaml `ray submit --start` does both."
        )
    example = json.dumps({"card0_mib": 8192.0})
    raise UserError(
        f"No node of the Ray cluster announces its cards. Start each with: ray start ... --resources='{example}' "
        "(`shoal cards` prints that for the machine it runs on)."
    )
