"""`shoal doctor --cluster` over real SSH: two PCs as they should be, then with one thing after another broken."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from emulated_lan import CHECKOUT, NETWORK, Lan, environment, install_shoal, why_not

REASON = why_not()
pytestmark = [pytest.mark.cluster, pytest.mark.skipif(REASON is not None, reason=str(REASON))]

BUSY = {"disk", "memory"}
"""What a machine that runs tests may lack, and a PC of the tests with it."""
WITHOUT_COMPILER = {("warning", address, "cpu_adam") for address in (f"{NETWORK}.2", f"{NETWORK}.3")}


@dataclass(frozen=True, kw_only=True)
class Pcs:
    lan: Lan
    head: str
    worker: str

    def home(self, name: str) -> Path:
        return self.lan.folder / name / "home"

    def doctor(self, *workers: str, key: Path | None = None) -> tuple[int, list[dict[str, Any]]]:
        """Run the doctor on the user's own PC; return its exit status and findings."""
        file = self.lan.folder / "cluster.yaml"
        provider = {"type": "local", "head_ip": self.head, "worker_ips": [*workers]}
        auth = {"ssh_user": "root", "ssh_private_key": str(key or self.lan.key)}
        file.write_text(yaml.safe_dump({"cluster_name": "shoal", "provider": provider, "auth": auth}))
        run = self.lan.run(sys.executable, "-m", "launcher.cli", "doctor", "--json", "--cluster", file)
        assert "Traceback" not in run.stdout, run.stdout
        return run.returncode, json.loads(run.stdout[run.stdout.index("{") :])["findings"]


@pytest.fixture(scope="module")
def pcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pcs]:
    with Lan(tmp_path_factory.mktemp("doctor") / "pcs") as lan:
        addresses = [_add(lan, name) for name in ("head", "worker")]
        yield Pcs(lan=lan, head=addresses[0], worker=addresses[1])


def _add(lan: Lan, name: str) -> str:
    """Start a PC on which cluster.yaml has installed Shoal and laid the token, without a compiler."""
    home = lan.folder / name / "home"
    install_shoal(home, lan.home)
    for package in ("launcher", "training"):
        shutil.copytree(CHECKOUT / package, home / "shoal" / package, ignore=shutil.ignore_patterns("__pycache__"))
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("a-token-of-the-tests")
    (home / ".ray" / "auth_token").chmod(0o600)
    return lan.add(name, {"CXX": "/nowhere/c++"})


def amiss(findings: list[dict[str, Any]]) -> set[tuple[str, str, str]]:
    return {(found["level"], found["node"], found["check"]) for found in findings if found["level"] != "ok"}


def test_pcs_as_they_should_be(pcs: Pcs) -> None:
    status, findings = pcs.doctor(pcs.worker)
    assert {entry for entry in amiss(findings) if entry[2] not in BUSY} == WITHOUT_COMPILER, findings
    assert status == 0
    checks = {(found["node"], found["check"]) for found in findings}
    for node in (pcs.head, pcs.worker):
        assert {(node, check) for check in ("versions", "token", "disk", "memory", "gpu", "cpu_adam", "link")} <= checks
    assert {(pcs.head, "ports"), (pcs.head, "clock"), (f"{pcs.head} <-> {pcs.worker}", "all_reduce")} <= checks


def test_a_key_that_is_not_there(pcs: Pcs) -> None:
    status, findings = pcs.doctor(pcs.worker, key=Path("/nowhere/key"))
    assert status == 1
    assert amiss(findings) == {("error", node, "ssh") for node in (pcs.head, pcs.worker)}
    assert all("ssh-copy-id" in found["fix"] or "ssh-keygen" in found["fix"] for found in findings)


def test_each_thing_that_is_broken_is_found(pcs: Pcs) -> None:
    """All at once: asking PyTorch on each PC takes ten seconds."""
    home = pcs.home("worker")
    (home / ".ray" / "auth_token").write_text("another-token")
    (home / ".ray" / "auth_token").chmod(0o644)
    with (home / "shoal" / "training" / "loop.py").open("a") as file:
        file.write("# changed here alone\n")
    (home / "clock").mkdir()
    (home / "clock" / "sitecustomize.py").write_text(
        "import time\nright = time.time\ntime.time = lambda: right() + 60\n"
    )
    (home / ".bashrc").write_text("export PYTHONPATH=~/clock\necho Welcome\n")
    slow = "tc qdisc add dev worker root tbf rate 16mbit burst 32kbit latency 400ms"
    subprocess.run(["nsenter", f"--target={pcs.lan.first}", "--net", "bash", "-c", slow], env=environment(), check=True)
    pcs.lan.ssh("head", f"setsid {sys.executable} -m http.server 6379 >/dev/null 2>&1 </dev/null &")
    bare = pcs.lan.add("bare", {})
    nobody = f"{NETWORK}.1"  # the user's own PC, which runs no SSH server
    status, findings = pcs.doctor(pcs.worker, bare, nobody)
    assert status == 1
    assert ("warning", bare, "install") in amiss(findings)
    own_python = {"python", "install"}  # nobody knows what the system's python3 is
    assert {entry for entry in amiss(findings) if entry[2] not in BUSY | own_python} == WITHOUT_COMPILER | {
        ("error", nobody, "ssh"),
        ("error", pcs.worker, "token"),
        ("warning", pcs.worker, "versions"),
        ("warning", pcs.worker, "clock"),
        ("warning", f"{pcs.head} -> {pcs.worker}", "link"),
        ("warning", f"{bare} -> {pcs.worker}", "link"),
        ("error", pcs.head, "ports"),
    }
    said = json.dumps(findings)
    assert "is not the head's" in said and "mode 0644" in said and "training/loop.py" in said
    assert "60 s ahead" in said and "port 6379" in said and "openssh-server" in said
    assert "another-token" not in said and all(found["fix"] for found in findings if found["level"] != "ok")
