"""What lies between the PCs of a cluster: who reaches whom, how fast, and how far their clocks are apart."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from launcher.doctor.machine import GCS_PORT
from launcher.doctor.nodes import Node, NodeError

SENT_BYTES = 32 << 20
"""A tenth of a second of 2.5 Gbit Ethernet, three seconds of 100 Mbit: link.py stops after two."""
SSH_PORT = 22
PINGS = 3


@dataclass(frozen=True, kw_only=True)
class Link:
    """What came of one PC's reaching another."""

    source: str
    target: str
    port: int
    purpose: str
    """What the port is for: "Ray's head", "SSH", or any one, as Ray's own are."""
    error: str
    """Why it cannot be reached; "" where it can."""
    mb_per_s: float | None
    """How many 10^6 bytes a second arrive; None where none were sent."""


@dataclass(frozen=True, kw_only=True)
class Clock:
    """How far a PC's clock is from that of the machine the doctor runs on."""

    node: str
    ahead_seconds: float
    uncertainty_seconds: float
    """Half the time the answer took."""


@dataclass(frozen=True, kw_only=True)
class _Listener:
    """A PC that listens while the context lasts."""

    ports: list[int]
    clock: Clock


def measure(nodes: Sequence[Node]) -> tuple[list[Link], list[Clock]]:
    """Let every PC reach every other one, one after the other, so that none shares the network. `nodes[0]` is the head.

    Raises NodeError where a script does not run on a PC that could be logged in to.
    """
    with ExitStack() as stack:
        listeners = {
            node.name: stack.enter_context(_listening(node, [0, *([GCS_PORT] if node is nodes[0] else [])]))
            for node in nodes
        }
        links = [link for node in nodes for link in _reach_others(node, nodes, listeners)]
        return links, [listener.clock for listener in listeners.values()]


def _reach_others(source: Node, nodes: Sequence[Node], listeners: dict[str, _Listener]) -> list[Link]:
    head = nodes[0]
    targets = []
    for node in nodes:
        if node is source:
            continue
        targets.append((node.name, listeners[node.name].ports[0], SENT_BYTES, "any port"))
        if node is head:
            targets.append((node.name, GCS_PORT, 0, "Ray's head"))
        if source is head:  # which starts Ray there
            targets.append((node.name, SSH_PORT, 0, "SSH"))
    answers = source.run("link.py", "connect", json.dumps([target[:3] for target in targets]), timeout_seconds=300)
    return [
        Link(source=source.name, target=name, port=port, purpose=purpose, **answer)
        for (name, port, _, purpose), answer in zip(targets, answers, strict=True)
    ]


@contextmanager
def _listening(node: Node, ports: Sequence[int]) -> Iterator[_Listener]:
    """Let a PC listen at these ports (0: any) within this context."""
    command = node.command("link.py", "listen", *map(str, ports))
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        got = _line(process)["ports"]
        yield _Listener(ports=got, clock=_clock(node.name, process))
    finally:
        process.kill()
        process.communicate()


def _clock(name: str, process: subprocess.Popen[str]) -> Clock:
    """Ask for the time, and again, for the first answer may wait for something; believe the quickest."""
    clocks = []
    for _ in range(PINGS):
        assert process.stdin is not None
        before = time.time()
        process.stdin.write("\n")
        process.stdin.flush()
        there = _line(process)["time"]
        half = (time.time() - before) / 2
        clocks.append(Clock(node=name, ahead_seconds=there - before - half, uncertainty_seconds=half))
    return min(clocks, key=lambda clock: clock.uncertainty_seconds)


def _line(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Return the next line of JSON; what a ~/.bashrc prints comes before the first."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):
            return dict(json.loads(line))
    raise NodeError("its listener ended", unreachable=False)
