"""How fast the PCs of a cluster reach each other: measured once a week, kept in Shoal's cache, else assumed.

ZeRO-3 over several PCs sends the whole base over this link in each pass: it decides what is planned for them.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from launcher.cards import Card
from launcher.doctor.link import connect, serve
from training.cache import cache_dir
from training.result import write_json

FILE = "links.json"
KEPT_SECONDS = 7 * 86400.0
"""A cable may take the place of Wi-Fi."""
SENT_BYTES = 32 << 20
WAIT_SECONDS = 60.0
"""For a PC's process to start and a slow link to be measured."""

Speeds = dict[tuple[str, str], float]
"""Two hosts in the order of their names -> bytes a second."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """The slowest link between some PCs."""

    bytes_per_second: float
    source: Literal["measured", "assumed"]

    def __str__(self) -> str:
        speed = f"{self.bytes_per_second / 1e6:.0f} MB/s"
        return f"{speed}, measured" if self.source == "measured" else f"{speed}, assumed (1 Gbit Ethernet)"


ASSUMED = Link(bytes_per_second=1.1e8, source="assumed")


def link_between(hosts: Collection[str]) -> Link | None:
    """Return the slowest link between these hosts; None where they are one PC.

    It counts as measured where that of all `neighbours` is.
    """
    if len(set(hosts)) < 2:
        return None
    known = read_speeds()
    speeds = [known.get(pair) for pair in neighbours(hosts)]
    measured = [speed for speed in speeds if speed]
    return Link(bytes_per_second=min(measured), source="measured") if len(measured) == len(speeds) else ASSUMED


def link_of_ranks(num_ranks: int, cards: Sequence[Card]) -> Link | None:
    """Return the link that a job's ranks talk by; None where one PC has equal cards for them, which go first."""
    by_host: dict[Any, int] = defaultdict(int)
    for card in cards:
        by_host[card.kind, card.host] += 1
    if num_ranks <= max(by_host.values(), default=0):
        return None
    return link_between({card.host for card in cards})


def neighbours(hosts: Collection[str]) -> list[tuple[str, str]]:
    """Return the pairs to measure: each host and the next, as in the ring that ranks send along."""
    ring = sorted(set(hosts))
    return sorted({_pair(host, ring[(place + 1) % len(ring)]) for place, host in enumerate(ring)})


def _pair(one: str, other: str) -> tuple[str, str]:
    return (one, other) if one < other else (other, one)


def read_speeds() -> Speeds:
    """Return what was measured within the last week."""
    try:
        entries = json.loads(_file().read_text(encoding="utf-8"))
        fresh = [entry for entry in entries if time.time() - entry["time"] < KEPT_SECONDS]
        return {_pair(*entry["hosts"]): float(entry["bytes_per_second"]) for entry in fresh}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def keep_speeds(speeds: Mapping[tuple[str, str], float]) -> None:
    """Keep what was measured; of two directions the slower one is to be given."""
    known = read_speeds() | {_pair(*hosts): speed for hosts, speed in speeds.items()}
    now = time.time()
    entries = [{"hosts": hosts, "bytes_per_second": speed, "time": now} for hosts, speed in known.items()]
    write_json(_file(), entries)


def _file() -> Path:
    return cache_dir() / FILE


class LinkEnd:
    """One PC's end of the links that are measured: a Ray actor there."""

    def __init__(self) -> None:
        self.server = socket.create_server(("", 0))
        threading.Thread(target=serve, args=(self.server,), daemon=True).start()

    def address(self) -> tuple[str, int]:
        """Return where it listens."""
        import ray

        return ray.util.get_node_ip_address(), int(self.server.getsockname()[1])

    def reach(self, address: str, port: int) -> float:
        """Return the bytes a second that arrive at another end. Raises ConnectionError where none do."""
        (answer,) = connect([(address, port, SENT_BYTES)])
        if answer["error"] or not answer["mb_per_s"]:
            raise ConnectionError(answer["error"] or "nothing arrived")
        return answer["mb_per_s"] * 1e6


def say_link(cluster: Any, say: Callable[[str], None]) -> None:
    """Have the links between the PCs known before jobs of several ranks are planned; say what they are taken for."""
    link = measure_links(cluster, cluster.cards)
    if link is not None:
        say(f"the slowest link between the PCs: {link}; jobs whose ranks need several PCs are planned for it")


def measure_links(cluster: Any, cards: Sequence[Card]) -> Link | None:
    """Return the slowest link between the PCs that have cards, measured if it was not lately; None of one PC.

    Where it cannot be measured, it is assumed.
    """
    nodes = {card.host: card.node_id for card in cards}
    known = link_between(nodes)
    if known is None or known.source == "measured":
        return known
    ends: dict[str, Any] = {}
    try:
        for host, node_id in nodes.items():
            ends[host] = cluster.task_actor(LinkEnd, node_id)
        where = {host: cluster.ray.get(end.address.remote(), timeout=WAIT_SECONDS) for host, end in ends.items()}
        speeds = {}
        for one, other in neighbours(nodes):
            there = cluster.ray.get(ends[one].reach.remote(*where[other]), timeout=WAIT_SECONDS)
            back = cluster.ray.get(ends[other].reach.remote(*where[one]), timeout=WAIT_SECONDS)
            speeds[one, other] = min(there, back)
        keep_speeds(speeds)
    except (cluster.ray.exceptions.RayError, OSError):
        return ASSUMED
    finally:
        for end in ends.values():
            cluster.ray.kill(end)
    return link_between(nodes)
