"""Whether two ranks can add up numbers, as every step of a job of several ranks does: on one PC, or on two."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from launcher.doctor.all_reduce import NUMBERS, SECONDS, Summed
from launcher.doctor.findings import Finding, error, ok
from launcher.doctor.machine import Facts
from launcher.doctor.nodes import Node, NodeError

PORTS = range(29600, 31600)
"""One of these at random: below those that Linux gives out by itself."""


def check_sum_here(node: Node, facts: Facts) -> Finding:
    """Return whether two ranks on this machine can: on two of its cards by NCCL, or on the CPU by gloo."""
    backend = "nccl" if len(facts["gpus"]["cards"]) > 1 else "gloo"
    return _judge(node.name, backend, [node, node], "127.0.0.1")


def check_sums_between(nodes: Sequence[Node], facts: Mapping[str, Facts], head_address: str) -> list[Finding]:
    """Return whether a rank on the head, which is `nodes[0]`, and one on each other PC can."""
    findings = []
    for node in nodes[1:]:
        both = [nodes[0], node]
        backend = "nccl" if all(facts[each.name]["gpus"]["cards"] for each in both) else "gloo"
        findings.append(_judge(f"{nodes[0].name} <-> {node.name}", backend, both, head_address))
    return findings


def _judge(where: str, backend: str, nodes: Sequence[Node], address: str) -> Finding:
    one_pc = nodes[0] is nodes[1]
    place = str(random.choice(PORTS))

    def run(rank: int) -> Summed | NodeError:
        words = [str(rank), "2" if one_pc else "1", address, place, backend]
        try:
            summed: Summed = nodes[rank].run("all_reduce.py", *words, timeout_seconds=2.5 * SECONDS)
        except NodeError as problem:
            return problem
        return summed

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(run, range(2)))
    problems = [answer for answer in answers if isinstance(answer, NodeError)]
    if problems:
        # The one whose own setting is wrong ends at once and says it; the other has waited for it.
        said = min(map(str, problems), key=lambda text: "timed out" in text.lower() or "not all of" in text)
        fact = f"two ranks could not add up numbers by {backend}: {said}"
        return error("all_reduce", where, fact, _fix(backend, one_pc=one_pc))
    slower = max(answer["seconds"] for answer in answers if not isinstance(answer, NodeError))
    return ok("all_reduce", where, f"two ranks add up {4 * NUMBERS >> 20} MiB by {backend} in {1000 * slower:.0f} ms")


def _fix(backend: str, *, one_pc: bool) -> str:
    """Return what to look at, the likeliest first."""
    more = " NCCL_DEBUG=INFO in the environment has NCCL say more." if backend == "nccl" else ""
    if one_pc and backend == "nccl":
        return f"Give /dev/shm 1 GiB (in a container: --shm-size=1g or --ipc=host), or set NCCL_P2P_DISABLE=1.{more}"
    if one_pc:
        return "Unset GLOO_SOCKET_IFNAME, and see that 127.0.0.1 is up: ip address show lo"
    return (
        "Let these PCs reach each other on all ports. Where the interface is the wrong one, put e.g. "
        f"`export NCCL_SOCKET_IFNAME==eth0 GLOO_SOCKET_IFNAME=eth0` in ~/.profile there, and start Ray again.{more}"
    )
