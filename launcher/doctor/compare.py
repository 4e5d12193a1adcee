"""What is judged of several PCs together: what must be equal on them, and what lies between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from launcher.doctor.findings import Finding, error, ok, warning
from launcher.doctor.links import Clock, Link
from launcher.doctor.machine import DASHBOARD_PORT, GCS_PORT, PACKAGES, Facts
from launcher.doctor.nodes import ClusterFile, NodeError

GCS_PROGRAM = "gcs_server"
CLOCK_SECONDS = 2.0
"""Beyond it, times of events and checkpoints of several PCs are in no order that a reader could follow."""
SLOW_MB_PER_S = 10.0
"""100 Mbit Ethernet carries 11.7 MB/s of TCP; below it, something is wrong, and gradients of several ranks wait."""


def compare(
    cluster: ClusterFile, facts: Mapping[str, Facts], own: Facts, addresses: Mapping[str, str]
) -> list[Finding]:
    """Return what the PCs that were logged in to have not in common.

    `own` are the facts of the user's own checkout, `addresses` the IP addresses of the cluster file's names.
    """
    return [
        *_installed(cluster, facts),
        *_versions(cluster, facts),
        *_sources(cluster, facts, own),
        *_tokens(cluster, facts),
        *_addresses(facts, addresses),
        *(_ports(cluster.head, facts[cluster.head]) if cluster.head in facts else []),
    ]


def unreachable(cluster: ClusterFile, node: str, problem: NodeError) -> Finding:
    """Return the finding of a PC whose facts could not be had, by what ssh or the PC's Python said."""
    if not problem.unreachable:
        fix = "Debian, Ubuntu: sudo apt install python3-venv; then see what else its shell says when you log in."
        return error("python", node, f"Python does not run there: {problem}", fix)
    login = f"{cluster.user}@{node}"
    fixes = {
        "Connection refused": "Start its SSH server (Debian, Ubuntu: sudo apt install openssh-server).",
        "Could not resolve": f"Correct the name in {cluster.path}, or give the IP address.",
        "UNPROTECTED": f"chmod 600 {cluster.key}",
        "no such identity": f"Name your key at ssh_private_key in {cluster.path}; ssh-keygen -t ed25519 makes one.",
        "Permission denied": f"ssh-copy-id -i {cluster.key}.pub {login}; a key with a passphrase does not do, for Ray "
        "starts the PCs unattended.",
    }
    fix = next((fix for sign, fix in fixes.items() if sign.lower() in problem.said.lower()), "")
    fix = fix or "See that the PC is on, in this network, and has this address; a firewall must let SSH in (port 22)."
    return error("ssh", node, f"ssh {login}: {problem}", fix)


def check_links(cluster: ClusterFile, links: Sequence[Link]) -> list[Finding]:
    """Return which PCs do not reach others, or slowly; one finding for each PC that has none of these."""
    findings = []
    for link in links:
        where = f"{link.source} -> {link.target}"
        if link.error:
            fact = f"port {link.port} ({link.purpose}) cannot be reached: {link.error}"
            fix = f"Let {link.source} in on {link.target}: Ray's PCs talk on ports of all numbers."
            findings.append(error("ports", where, fact, f"{fix} Ubuntu: sudo ufw allow from {link.source}"))
        elif link.mb_per_s is not None and link.mb_per_s < SLOW_MB_PER_S:
            fact = (
                f"{link.mb_per_s:.1f} MB/s, less than 100 Mbit Ethernet carries: jobs of several PCs will wait for it"
            )
            fix = "Use a cable in place of Wi-Fi; look at cable, switch and what else uses the network."
            findings.append(warning("link", where, fact, fix))
    for source in dict.fromkeys(link.source for link in links):
        its = [link for link in links if link.source == source]
        speeds = [link.mb_per_s for link in its if link.mb_per_s is not None]
        if not any(link.error for link in its) and min(speeds) >= SLOW_MB_PER_S:
            findings.append(ok("link", source, f"reaches the other PCs, at {min(speeds):.0f} MB/s or more"))
    return findings


def check_clocks(head: str, clocks: Sequence[Clock]) -> list[Finding]:
    """Return which PCs' clocks differ from the head's."""
    (reference,) = (clock for clock in clocks if clock.node == head)
    findings = []
    for clock in clocks:
        ahead = clock.ahead_seconds - reference.ahead_seconds
        if abs(ahead) - clock.uncertainty_seconds - reference.uncertainty_seconds > CLOCK_SECONDS:
            fact = f"its clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the head's"
            findings.append(
                warning("clock", clock.node, fact, "Let both follow a time server: timedatectl set-ntp true")
            )
    return findings or [ok("clock", head, f"the PCs' clocks agree within {CLOCK_SECONDS:g} s")]


def _installed(cluster: ClusterFile, facts: Mapping[str, Facts]) -> list[Finding]:
    return [
        warning(
            "install", node, "Shoal and its packages are not (all) installed in ~/shoal", f"{cluster.start} does it."
        )
        for node, fact in facts.items()
        if not fact["installed"]
    ]


def _versions(cluster: ClusterFile, facts: Mapping[str, Facts]) -> list[Finding]:
    """Python and packages against the head's: Ray refuses a node whose Python differs in the last part already."""
    findings = []
    head = facts.get(cluster.head)
    for node, fact in facts.items():
        if head is None or not head["installed"] or not fact["installed"]:
            continue
        if fact["python"] != head["python"]:
            wrong = f"Python is {fact['python']}, the head's {head['python']}; Ray wants them equal to the last part"
            fix = f"Install the same Python there, rm -r ~/shoal/.venv, and {cluster.start}"
            findings.append(error("versions", node, wrong, fix))
        for package in ("shoal", *PACKAGES):
            theirs, heads = (_public(which["versions"][package]) for which in (fact, head))
            if theirs != heads:
                reinstall = "" if package == "shoal" else "On both: rm -r ~/shoal/.venv. Then "
                fix = f"{reinstall}{cluster.start}"
                findings.append(error("versions", node, f"{package} is {theirs}, the head's {heads}", fix))
    return findings


def _public(version: str) -> str:
    """Return "2.9.0" of "2.9.0+cu128": a head without cards may have PyTorch's build for CPUs."""
    return version.partition("+")[0]


def _sources(cluster: ClusterFile, facts: Mapping[str, Facts], own: Facts) -> list[Finding]:
    """Shoal's files against those of this checkout; Ray leaves on the PCs what was deleted here, which harms nobody."""
    findings = []
    for node, fact in facts.items():
        differ = [path for path, digest in own["sources"].items() if fact["sources"].get(path) != digest]
        if fact["installed"] and differ:
            what = f"its Shoal differs from this checkout in {len(differ)} files, {differ[0]} the first"
            findings.append(warning("versions", node, what, f"{cluster.start} brings yours to every PC."))
    return findings


def _tokens(cluster: ClusterFile, facts: Mapping[str, Facts]) -> list[Finding]:
    """The head's token must be every worker's; it is made and brought there when the cluster starts."""
    tokens = {node: fact["token"] for node, fact in facts.items()}
    if cluster.head not in tokens or not any(token["mode"] is not None for token in tokens.values()):
        return []
    findings = []
    for node, token in tokens.items():
        if token["mode"] is None and not facts[node]["installed"]:
            continue  # it comes with the rest
        if token["mode"] is None:
            fact = f"there is no Ray token in {token['path']}: Ray keeps out a PC without the head's"
            findings.append(error("token", node, fact, f"{cluster.start} makes it, and brings it to every PC."))
        elif token["sha256"] != tokens[cluster.head]["sha256"] and tokens[cluster.head]["mode"] is not None:
            fact = "its Ray token is not the head's: Ray keeps it out"
            findings.append(error("token", node, fact, f"{cluster.start} brings it the head's."))
    return findings


def _addresses(facts: Mapping[str, Facts], addresses: Mapping[str, str]) -> list[Finding]:
    """Whether Ray will call each PC what the cluster file does; a PC in two networks may differ."""
    return [
        warning(
            "address",
            node,
            f"Ray will call it {fact['address']}, by its route to the outside; the cluster file says {addresses[node]}",
            "Name that address in the cluster file, or let its default route go by this network.",
        )
        for node, fact in facts.items()
        if fact["address"] != addresses[node]
    ]


def _ports(head: str, facts: Facts) -> list[Finding]:
    """Whether Ray can have its ports on the head, or has them."""
    findings = []
    ports = {port["number"]: port for port in facts["ports"]}
    gcs = ports[GCS_PORT]
    runs = gcs["taken"] and gcs["owner"].startswith(GCS_PROGRAM)
    if gcs["taken"] and not runs:
        who = gcs["owner"] or "a program of another account"
        fix = f"Stop it, or take another port in head_start_ray_commands and worker_start_ray_commands, for {GCS_PORT}."
        findings.append(error("ports", head, f"port {GCS_PORT}, which Ray's head needs, is taken by {who}", fix))
    if ports[DASHBOARD_PORT]["taken"] and not runs:
        who = ports[DASHBOARD_PORT]["owner"] or "a program of another account"
        fix = "Stop it: Ray would take another port, and `ray dashboard` would show that program."
        findings.append(warning("ports", head, f"port {DASHBOARD_PORT}, of Ray's dashboard, is taken by {who}", fix))
    return findings or [ok("ports", head, "Ray's head runs" if runs else "Ray's ports are free")]
