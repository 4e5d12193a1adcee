"""The doctor at work: this machine alone, or the PCs of a cluster file."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from launcher.doctor.checks import check_machine
from launcher.doctor.compare import check_clocks, check_links, compare, unreachable
from launcher.doctor.findings import LEVELS, Finding, error, ok
from launcher.doctor.links import measure
from launcher.doctor.machine import Facts
from launcher.doctor.nodes import ClusterFile, Node, NodeError, read_cluster_file, this_machine
from launcher.doctor.stack import Stack
from launcher.doctor.sums import check_sum_here, check_sums_between
from launcher.joining import address_of
from launcher.links import keep_speeds
from training.calibration.record import card_record, read_record, this_cpu

FACTS_SECONDS = 60.0
STACK_SECONDS = 900.0
"""An old PC builds CPUAdam in minutes."""

Tell = Callable[[str], None]


def doctor(cluster_file: Path | None, *, as_json: bool) -> int:
    """Print what is found, of this machine or of the cluster; return 1 where there is an error, else 0."""
    if cluster_file is None:
        findings = examine_machine(this_machine(), _tell)
    else:
        findings = examine_cluster(read_cluster_file(cluster_file), _tell)
    findings = sorted(findings, key=lambda finding: LEVELS.index(finding.level))
    counts = {level: sum(finding.level == level for finding in findings) for level in LEVELS}
    if as_json:
        print(json.dumps({"findings": [asdict(finding) for finding in findings], "counts": counts}, indent=2))
    else:
        print(describe(findings))
        print(f"{counts['error']} errors, {counts['warning']} warnings, {counts['ok']} as they should be.")
    return 1 if counts["error"] else 0


def describe(findings: Sequence[Finding]) -> str:
    """Return findings for people, one a line, and below it the mend."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.level:7}  {finding.node}  {finding.check}: {finding.fact}")
        if finding.fix:
            lines.append(f"         fix: {finding.fix}")
    return "\n".join(lines)


def examine_machine(node: Node, tell: Tell) -> list[Finding]:
    """Return the findings of this machine."""
    facts: Facts = node.run("machine.py", timeout_seconds=FACTS_SECONDS)
    if not facts["installed"]:
        fix = "In the checkout: make demo, or pip install -e ."
        missing = error("install", node.name, f"not all of Shoal's packages are installed for {node.python}", fix)
        return [missing, *check_machine(node.name, facts, None)]
    tell("asking PyTorch, and building DeepSpeed's CPUAdam (about a minute the first time)")
    findings = _with_stack(node, facts)
    if any(finding.check in ("torch", "cuda") and finding.level == "error" for finding in findings):
        return findings  # two ranks would meet the same
    tell("letting two ranks add up numbers (seconds; two minutes at most)")
    return [*findings, measured(node.name, facts), check_sum_here(node, facts)]


def measured(name: str, facts: Facts) -> Finding:
    """Return whether plans know how fast this machine's cards, or its CPU, are."""
    cards = {card["name"]: card_record(card["name"]) for card in facts["gpus"]["cards"]} or {
        "the CPU": read_record(*this_cpu())
    }
    known = [f"{card} measured on {record.date}" for card, record in cards.items() if record]
    assumed = [f"{card} assumed (shoal calibrate measures it)" for card, record in cards.items() if not record]
    return ok("speed", name, "; ".join([*known, *assumed]))


def examine_cluster(cluster: ClusterFile, tell: Tell) -> list[Finding]:
    """Return the findings of each PC of a cluster file, and of what lies between them."""
    findings: list[Finding] = []
    facts: dict[str, Facts] = {}
    nodes = cluster.nodes()
    tell(f"logging in to {len(nodes)} PCs")
    with ThreadPoolExecutor(len(nodes)) as pool:
        for node, answer in zip(nodes, pool.map(_facts, nodes), strict=True):
            if isinstance(answer, NodeError):
                findings.append(unreachable(cluster, node.name, answer))
            else:
                facts[node.name] = answer
        there = [node for node in nodes if node.name in facts]
        addresses = {node.name: address_of(node.name) for node in there}
        own: Facts = this_machine().run("machine.py", timeout_seconds=FACTS_SECONDS)
        findings += compare(cluster, facts, own, addresses)
        if len(there) > 1 and cluster.head in facts:
            tell("measuring the links between them")
            findings += _between(cluster, there, facts)
        tell("asking PyTorch on each, and building DeepSpeed's CPUAdam (about a minute the first time)")
        for its in pool.map(lambda node: _with_stack(node, facts[node.name]), there):
            findings += its
    well = [node for node in there if facts[node.name]["installed"]]
    if len(well) > 1 and well[0].name == cluster.head:
        tell("letting ranks on two PCs add up numbers (seconds a pair; two minutes at most)")
        findings += check_sums_between(well, facts, facts[cluster.head]["address"])
    return findings


def _facts(node: Node) -> Facts | NodeError:
    try:
        facts: Facts = node.run("machine.py", timeout_seconds=FACTS_SECONDS)
    except NodeError as problem:
        return problem
    return facts


def _between(cluster: ClusterFile, nodes: Sequence[Node], facts: Mapping[str, Facts]) -> list[Finding]:
    """Return the findings of what lies between PCs; `nodes[0]` is the head. Speeds are kept for plans made here."""
    try:
        links, clocks = measure(nodes)
    except NodeError as problem:
        fix = "Log in to each PC as Ray does, with `bash --login -i`, and see what its shell says."
        return [error("link", cluster.head, f"the links between the PCs were not measured: {problem}", fix)]
    speeds: dict[tuple[str, str], float] = {}
    for link in links:
        pair = sorted((facts[link.source]["hostname"], facts[link.target]["hostname"]))
        if link.mb_per_s:
            speeds[pair[0], pair[1]] = min(link.mb_per_s * 1e6, speeds.get((pair[0], pair[1]), math.inf))
    keep_speeds(speeds)
    return [*check_links(cluster, links), *check_clocks(cluster.head, clocks)]


def _with_stack(node: Node, facts: Facts) -> list[Finding]:
    """Return the findings of one machine, PyTorch's and DeepSpeed's among them where they are installed."""
    if not facts["installed"]:
        return check_machine(node.name, facts, None)
    try:
        stack: Stack = node.run("stack.py", timeout_seconds=STACK_SECONDS)
    except NodeError as problem:
        fix = "Ask again if the PC is just busy; else delete the environment it is in (.venv), and install Shoal again."
        broken = error("torch", node.name, f"PyTorch or DeepSpeed does not start: {problem}", fix)
        return [broken, *check_machine(node.name, facts, None)]
    return check_machine(node.name, facts, stack)


def _tell(message: str) -> None:
    """Say what takes time, beside the findings."""
    print(f"shoal: {message}", file=sys.stderr, flush=True)
