"""The doctor, with each thing it looks at broken: for real where one machine can, as facts where it takes a card."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.cli import main
from launcher.doctor import machine
from launcher.doctor.checks import check_machine, supports
from launcher.doctor.compare import check_clocks, check_links, compare, unreachable
from launcher.doctor.examine import describe
from launcher.doctor.findings import Finding, error, ok
from launcher.doctor.links import Link, measure
from launcher.doctor.machine import Card, Facts, Gpus
from launcher.doctor.nodes import ClusterFile, Node, NodeError, read_cluster_file, this_machine
from launcher.doctor.stack import Stack
from launcher.doctor.sums import check_sum_here

GIB = 2**30
HEAD, WORKER = "10.0.0.1", "10.0.0.2"
CLUSTER = ClusterFile(path=Path("cluster.yaml"), head=HEAD, workers=(WORKER,), user="ada", key="~/key")
STACK: Stack = {"cuda": "", "architectures": [], "cuda_problem": "", "cpu_adam_obstacle": ""}
CUDA: Stack = {
    "cuda": "12.8",
    "architectures": ["sm_75", "sm_86", "sm_90"],
    "cuda_problem": "",
    "cpu_adam_obstacle": "",
}
CARD: Card = {"name": "NVIDIA GeForce RTX 3060", "compute_capability": [8, 6], "memory_bytes": 12 * GIB}
CARD_40: Card = {"name": "NVIDIA GeForce RTX 4090", "compute_capability": [8, 9], "memory_bytes": 24 * GIB}


def facts(**changed: Any) -> Facts:
    """Return the facts of a PC that is as it should be, but for these."""
    healthy: Facts = {
        "hostname": "pc", "checkout": "/home/ada/shoal", "installed": True, "python": "3.11.7",
        "versions": {"shoal": "0.1.0", **dict.fromkeys(machine.PACKAGES, "1.0")},
        "sources": {"launcher/run.py": "aa", "training/rank.py": "bb"}, "has_venv": True, "has_rsync": True,
        "address": HEAD, "token": {"path": "/home/ada/.ray/auth_token", "mode": 0o600, "sha256": "cc"},
        "ports": [{"number": port, "taken": False, "owner": ""} for port in (6379, 8265)],
        "disks": [{"path": "/tmp", "free_bytes": 50 * GIB}], "available_memory_bytes": 16 * GIB,
        "compiler": "/usr/bin/c++", "has_ninja": True, "has_python_header": True,
        "nccl_shm_disable": False, "shared_memory_mib": 8192,
        "gpus": {"devices": 0, "error": "no driver", "driver": "", "cuda_major": 0, "cards": []},
        "nccl_p2p_disable": False, "visible_devices": "",
    }  # fmt: skip
    assert set(changed) <= set(healthy)
    return {**healthy, **changed}  # type: ignore[typeddict-item]


def gpus(*cards: Card, driver: str = "570.86.15", problem: str = "", devices: int = 1) -> Gpus:
    return {"devices": devices, "error": problem, "driver": driver, "cuda_major": 0, "cards": list(cards)}


def amiss(findings: list[Finding]) -> list[tuple[str, str, str]]:
    """Return (level, node, check) of what is not ok; each must say how to mend it."""
    found = [finding for finding in findings if finding.level != "ok"]
    assert all(finding.fix and finding.fact for finding in found)
    return [(finding.level, finding.node, finding.check) for finding in found]


def alone(stack: Stack | None = STACK, **changed: Any) -> list[Finding]:
    return check_machine("pc", facts(**changed), stack)


def together(own: Facts | None = None, **changed: Any) -> list[Finding]:
    """Compare a healthy head with a worker of which this is changed."""
    return compare(
        CLUSTER,
        {HEAD: facts(), WORKER: facts(**{"address": WORKER, **changed})},
        own or facts(),
        {HEAD: HEAD, WORKER: WORKER},
    )


def test_what_is_healthy_has_no_finding_amiss() -> None:
    assert amiss(alone()) == [] and amiss(together()) == []
    assert amiss(alone(CUDA, gpus=gpus(CARD, CARD_40))) == []


def test_this_machine_is_looked_at_by_the_script_that_is_sent() -> None:
    seen: Facts = this_machine().run("machine.py", timeout_seconds=60)
    assert seen["installed"] and set(seen["versions"]) == {"shoal", *machine.PACKAGES}
    assert seen["python"] == ".".join(map(str, sys.version_info[:3]))
    assert "launcher/doctor/machine.py" in seen["sources"] and seen["available_memory_bytes"] > 0


@pytest.mark.parametrize(
    ("text", "mode", "expected"),
    [("5f3c\n", 0o600, []), ("5f3c", 0o644, [("error", "pc", "token")]), ("\n", 0o600, [("error", "pc", "token")])],
    ids=["as it should be", "read by others", "empty"],
)
def test_the_token_file(tmp_path: Path, text: str, mode: int, expected: list[tuple[str, str, str]]) -> None:
    path = tmp_path / "auth_token"
    path.write_text(text)
    path.chmod(mode)
    findings = alone(token=machine.look_at_token(path))
    assert amiss(findings) == expected
    assert "5f3c" not in describe(findings)


def test_tokens_must_be_the_heads(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("head", "same", "other")]
    for path, text in zip(paths, ["token", "token\n", "another"], strict=True):
        path.write_text(text)
        path.chmod(0o600)
    head, same, other, missing = (machine.look_at_token(path) for path in [*paths, tmp_path / "missing"])
    addresses = {HEAD: HEAD, WORKER: HEAD}

    def compared(heads: machine.Token, workers: machine.Token) -> list[tuple[str, str, str]]:
        return amiss(compare(CLUSTER, {HEAD: facts(token=heads), WORKER: facts(token=workers)}, facts(), addresses))

    assert compared(head, same) == [] and compared(missing, missing) == []
    assert compared(head, other) == compared(head, missing) == [("error", WORKER, "token")]
    assert compared(missing, other) == [("error", HEAD, "token")]


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("", 0)) as server:
        yield server.getsockname()[1]


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.parametrize(("place", "level"), [(0, "error"), (1, "warning")])
def test_a_port_of_the_heads_that_is_taken(taken_port: int, place: int, level: str) -> None:
    ports = [machine.look_at_port(closed_port()), machine.look_at_port(closed_port())]
    ports[place] = machine.look_at_port(taken_port)
    assert ports[place]["owner"] == Path("/proc/self/comm").read_text().strip()
    for port, number in zip(ports, (machine.GCS_PORT, machine.DASHBOARD_PORT), strict=True):
        port["number"] = number
    findings = compare(CLUSTER, {HEAD: facts(ports=ports)}, facts(), {HEAD: HEAD})
    assert amiss(findings) == [(level, HEAD, "ports")]
    ports[0] = {"number": machine.GCS_PORT, "taken": True, "owner": "gcs_server"}
    assert amiss(compare(CLUSTER, {HEAD: facts(ports=ports)}, facts(), {HEAD: HEAD})) == []


@pytest.mark.parametrize(
    ("gib", "expected"), [(20, []), (5, [("warning", "pc", "disk")]), (0.5, [("error", "pc", "disk")])]
)
def test_a_disk_without_room(monkeypatch: pytest.MonkeyPatch, gib: float, expected: list[tuple[str, str, str]]) -> None:
    usage = shutil.disk_usage("/")._replace(free=int(gib * GIB))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert amiss(alone(disks=machine.look_at_disks([Path("/"), Path("/")]))) == expected


def test_little_memory_and_an_old_python() -> None:
    assert amiss(alone(available_memory_bytes=2 * GIB)) == [("warning", "pc", "memory")]
    assert amiss(alone(python="3.9.2")) == [("error", "pc", "python")]


def test_what_installing_needs() -> None:
    bare = facts(installed=False, versions={}, sources={}, has_venv=False, has_rsync=False)
    findings = check_machine("pc", bare, None)
    assert amiss(findings) == [("error", "pc", "install")] * 2
    assert "python3-venv" in describe(findings) and "apt install rsync" in describe(findings)
    assert amiss(together(installed=False, versions={}, sources={})) == [("warning", WORKER, "install")]


@pytest.mark.parametrize(
    ("changed", "word"),
    [({"compiler": ""}, "g++"), ({"has_python_header": False}, "python3-dev"), ({"has_ninja": False}, "ninja"),
     ({}, "CPUAdamBuilder")],
)  # fmt: skip
def test_a_cpu_adam_that_does_not_build(changed: dict[str, Any], word: str) -> None:
    findings = alone({**STACK, "cpu_adam_obstacle": "Error building extension"}, **changed)
    assert amiss(findings) == [("warning", "pc", "cpu_adam")]
    assert word in findings[-1].fix


def test_a_path_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.look()["compiler"] == ""


def test_a_pytorch_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.12: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(NodeError, match="libcudart") as caught:
        this_machine().run("stack.py", timeout_seconds=60)
    assert not caught.value.unreachable


@pytest.mark.parametrize(
    ("changed", "stack", "check"),
    [
        ({"gpus": gpus(problem="Driver/library version mismatch")}, STACK, "nvml"),
        ({"gpus": gpus(CARD)}, STACK, "cuda"),
        ({"gpus": gpus(CARD, driver="470.57.02")}, CUDA, "cuda"),
        ({"gpus": gpus(CARD, driver="570.86.15")}, {**CUDA, "cuda": "13.0"}, "cuda"),
        ({"gpus": gpus({**CARD, "compute_capability": [6, 1]})}, CUDA, "cuda"),
        ({"gpus": gpus(CARD)}, {**CUDA, "cuda_problem": "CUDA unknown error"}, "cuda"),
        ({"gpus": gpus(CARD_40, CARD_40, driver="535.54.03")}, CUDA, "p2p"),
    ],
)
def test_cards_that_cannot_be_used(changed: dict[str, Any], stack: Stack, check: str) -> None:
    assert amiss(alone(stack, **changed)) == [("error", "pc", check)]


@pytest.mark.parametrize(
    ("changed", "stack", "mend"),
    [
        (gpus(CARD), STACK, "torch===2.10.0"),
        (gpus(CARD, driver="580.95.05"), STACK, "torch===2.13.0"),
        (gpus(CARD, driver="570.86.15"), {**CUDA, "cuda": "13.0"}, "580.65.06 or later|Ubuntu.*torch===2.10.0"),
        (gpus({**CARD, "compute_capability": [6, 1]}), CUDA, r"torch===2.13.0\+cu126"),
    ],
)
def test_the_mend_names_a_pytorch_that_runs_there(changed: Gpus, stack: Stack, mend: str) -> None:
    (found,) = [finding for finding in alone(stack, gpus=changed) if finding.level != "ok"]
    assert re.search(mend, found.fix)


def test_under_wsl2_the_driver_is_windows_and_is_asked_for_cuda() -> None:
    found: Gpus = {**gpus(CARD, driver="577.00"), "cuda_major": 13}
    assert amiss(alone({**CUDA, "cuda": "13.0"}, gpus=found)) == []


def test_uuids_are_not_for_the_deepspeed_command() -> None:
    assert amiss(alone(visible_devices="0,1")) == []
    assert amiss(alone(visible_devices="GPU-6f1c2d3e")) == [("warning", "pc", "visible")]


def test_p2p_harms_nobody_with_one_card_or_where_it_is_off() -> None:
    assert amiss(alone(CUDA, gpus=gpus(CARD_40, CARD, driver="535.54.03"))) == []
    assert amiss(alone(CUDA, gpus=gpus(CARD_40, CARD_40, driver="535.54.03"), nccl_p2p_disable=True)) == []


def test_dockers_shared_memory_harms_ranks_on_two_cards() -> None:
    findings = alone(CUDA, gpus=gpus(CARD, CARD), shared_memory_mib=64)
    assert amiss(findings) == [("error", "pc", "shared_memory")]
    assert "64 MiB" in describe(findings) and "--shm-size" in describe(findings) and "--ipc=host" in describe(findings)
    assert amiss(alone(CUDA, gpus=gpus(CARD), shared_memory_mib=64)) == []
    assert amiss(alone(CUDA, gpus=gpus(CARD, CARD), shared_memory_mib=64, nccl_shm_disable=True)) == []


@pytest.mark.parametrize("interface", [None, "nosuch0"])
def test_two_ranks_add_up(interface: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Really, by gloo; where its interface is none of this machine's, that is said, with the variable."""
    if interface is not None:
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", interface)
    finding = check_sum_here(this_machine(), facts())
    assert finding.level == ("ok" if interface is None else "error"), finding
    assert interface is None or "GLOO_SOCKET_IFNAME=nosuch0" in finding.fact


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        (["sm_80"], [8, 6], True), (["sm_86"], [8, 0], False), (["sm_80"], [9, 0], False),
        (["sm_70", "compute_90"], [12, 0], True), (["sm_75"], [6, 1], False), (["sm_90a", "sm_120"], [12, 0], True),
    ],
)  # fmt: skip
def test_which_cards_a_build_is_for(architectures: list[str], capability: list[int], runs: bool) -> None:
    assert supports(architectures, capability) is runs


@pytest.mark.parametrize("package", ["shoal", "ray", "torch"])
def test_versions_must_be_the_heads(package: str) -> None:
    other = {**facts()["versions"], package: "0.9"}
    findings = together(versions=other)
    assert amiss(findings) == [("error", WORKER, "versions")]
    assert package in describe(findings) and "ray submit --start cluster.yaml" in describe(findings)


def test_python_must_be_the_heads_to_the_patch_but_a_build_for_cards_may_differ() -> None:
    assert amiss(together(python="3.11.8")) == [("error", WORKER, "versions")]
    assert amiss(together(versions={**facts()["versions"], "torch": "1.0+cu128"})) == []


def test_the_files_must_be_those_of_the_checkout() -> None:
    assert amiss(together(sources={**facts()["sources"], "training/rank.py": "dd"})) == [
        ("warning", WORKER, "versions")
    ]
    assert amiss(together(sources={**facts()["sources"], "training/removed_since.py": "dd"})) == []


def test_a_pc_that_ray_will_call_otherwise() -> None:
    assert amiss(together(address="192.168.7.3")) == [("warning", WORKER, "address")]


def test_links_and_clocks_are_measured(tmp_path: Path) -> None:
    """Two addresses of this machine: nobody listens at the second's SSH port, or somebody does."""
    wrong_clock = tmp_path / "wrong"
    wrong_clock.write_text(f'#!/bin/sh\nexport PYTHONPATH={tmp_path}\nexec {sys.executable} "$@"\n')
    wrong_clock.chmod(0o755)
    (tmp_path / "sitecustomize.py").write_text("import time\nright = time.time\ntime.time = lambda: right() - 60\n")
    here, there = Node(name="127.0.0.1"), Node(name="127.0.0.2", python=str(wrong_clock))
    links, clocks = measure([here, there])
    reached = {(link.source, link.target, link.purpose): link for link in links}
    assert set(reached) == {
        (here.name, there.name, "any port"), (here.name, there.name, "SSH"),
        (there.name, here.name, "any port"), (there.name, here.name, "Ray's head"),
    }  # fmt: skip
    assert all((link.mb_per_s or 0) > 0 for link in links if link.purpose == "any port")
    assert amiss(check_clocks(here.name, clocks)) == [("warning", there.name, "clock")]
    assert "60 s behind" in describe(check_clocks(here.name, clocks))


def test_a_closed_port_and_a_slow_link() -> None:
    (answer,) = this_machine().run(
        "link.py", "connect", json.dumps([["127.0.0.1", closed_port(), 0]]), timeout_seconds=60
    )
    assert "refused" in answer["error"]
    closed = Link(source=WORKER, target=HEAD, port=6379, purpose="Ray's head", **answer)
    fine = Link(source=HEAD, target=WORKER, port=40000, purpose="any port", error="", mb_per_s=112.0)
    slow = Link(source=HEAD, target=WORKER, port=40000, purpose="any port", error="", mb_per_s=2.0)
    assert amiss(check_links(CLUSTER, [fine, closed])) == [("error", f"{WORKER} -> {HEAD}", "ports")]
    assert amiss(check_links(CLUSTER, [slow])) == [("warning", f"{HEAD} -> {WORKER}", "link")]
    assert amiss(check_links(CLUSTER, [fine])) == []


def test_a_pc_that_prints_too_much_or_nothing(tmp_path: Path) -> None:
    """What its shell says before the facts is no harm; a shell that ends instead is said."""
    shell = tmp_path / "python"
    shell.write_text(f'#!/bin/sh\necho "Welcome {{}}"\nexec {sys.executable} "$@"\n')
    shell.chmod(0o755)
    assert Node(name="pc", python=str(shell)).run("machine.py", timeout_seconds=60)["installed"]
    shell.write_text("#!/bin/sh\necho Please change your password.\n")
    silent = Node(name="pc", python=str(shell))
    with pytest.raises(NodeError, match="change your password"):
        silent.run("machine.py", timeout_seconds=60)
    with pytest.raises(NodeError, match="listener"):
        measure([silent, Node(name="127.0.0.1")])


@pytest.mark.skipif(shutil.which("ssh") is None, reason="needs ssh")
def test_a_pc_whose_ssh_server_does_not_run() -> None:
    node = CLUSTER.nodes()[0]
    node = Node(name="127.0.0.1", ssh=("ssh", "-p", str(closed_port()), *node.ssh[1:-1], "ada@127.0.0.1"))
    with pytest.raises(NodeError, match="Connection refused") as caught:
        node.run("machine.py", timeout_seconds=60)
    finding = unreachable(CLUSTER, node.name, caught.value)
    assert (finding.level, finding.check) == ("error", "ssh") and "openssh-server" in finding.fix


@pytest.mark.parametrize(
    ("said", "fix"),
    [
        ("ada@10.0.0.2: Permission denied (publickey).", "ssh-copy-id -i ~/key.pub ada@10.0.0.2"),
        ("ssh: Could not resolve hostname pc2: Name or service not known", "cluster.yaml"),
        ("@ WARNING: UNPROTECTED PRIVATE KEY FILE! @\nPermission denied", "chmod 600 ~/key"),
        ("ssh: connect to host 10.0.0.2 port 22: Connection timed out", "firewall"),
    ],
)
def test_what_ssh_says_has_a_mend(said: str, fix: str) -> None:
    finding = unreachable(CLUSTER, WORKER, NodeError(said, unreachable=True))
    assert fix in finding.fix and said.splitlines()[-1] in finding.fact


LOCAL = "provider: {type: local, head_ip: a, worker_ips: [b]}\nauth: {ssh_user: ada, ssh_private_key: ~/key}\n"


def test_a_cluster_file(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(LOCAL)
    cluster = read_cluster_file(path)
    assert [node.name for node in cluster.nodes()] == ["a", "b"]
    assert cluster.nodes()[1].ssh[-3:] == ("-i", os.path.expanduser("~/key"), "ada@b")  # noqa: PTH111


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (None, "no such file"), ("name: study", "no Ray cluster file"), ("{", "no Ray cluster file"),
        ("- a", "no Ray cluster file"), (LOCAL.replace("local", "aws"), "'aws'"),
        (LOCAL.replace("head_ip: a", "head_ip: HEAD"), "provider.head_ip is 'HEAD'"),
        (LOCAL.replace("ada", "USER"), "auth.ssh_user"), (LOCAL.replace("[b]", "b"), "worker_ips is 'b'"),
        (LOCAL.replace("[b]", "[a]"), "twice"),
    ],
)  # fmt: skip
def test_what_is_no_cluster_file_ends_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, word: str
) -> None:
    path = tmp_path / "cluster.yaml"
    if text is not None:
        path.write_text(text)
    assert main(["doctor", "--cluster", str(path)]) == 2
    assert word in capsys.readouterr().err


def test_errors_have_their_fix_below_them() -> None:
    text = describe([error("token", "pc", "it is empty", "Delete it."), ok("disk", "pc", "50 GiB are free")])
    assert text.splitlines() == [
        "error    pc  token: it is empty",
        "         fix: Delete it.",
        "ok       pc  disk: 50 GiB are free",
    ]
