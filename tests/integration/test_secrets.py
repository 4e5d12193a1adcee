"""A study on a real local Ray whose environment holds secrets, and a rank program that says them: who gets to see them.

One run for all tests here: Ray takes most of their time.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from conftest import CHECKOUT, python_path

HUB_TOKEN = "hf_" + "SecretOfTheHub" * 2
RAY_TOKEN = "5ec0ffee" * 8
SSH_KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\n-----END OPENSSH PRIVATE KEY-----"
OTHER_SECRETS = {"WANDB_API_KEY": "wandb-key-0123456789", "AWS_SECRET_ACCESS_KEY": "aws/key+0123456789"}
SECRETS = [HUB_TOKEN, RAY_TOKEN, "b3BlbnNzaC1rZXktdjEAAAAA", "p4ssw0rd", *OTHER_SECRETS.values()]

RANK_PROGRAM = f"""
import os, time
from pathlib import Path
from training.errors import UserError

def run_job(spec, ranks, recorder, workdir):
    token = Path("~/.ray/auth_token").expanduser().read_text()
    everything = f"{{dict(os.environ)}} https://user:p4ssw0rd@example.org {{token}} " + {SSH_KEY!r}
    print("printed:", everything, flush=True)
    recorder.event("log", message="logged: " + everything)
    assert os.environ["HF_TOKEN"] == {HUB_TOKEN!r} and token == {RAY_TOKEN!r}  # or there is nothing to hide
    if spec.name == "waits":
        Path(WAITING).touch()
        while not Path(DONE).exists():
            time.sleep(0.1)
    raise (UserError if spec.name == "refuses" else RuntimeError)("raised: " + everything)
"""
LAUNCHER = "import sys, telling; from launcher import run; from pathlib import Path; "
LAUNCHER += "sys.exit(run.run_study(Path(sys.argv[1]), run_job=telling.run_job))"
CLIENT = """
import sys
from ray._raylet import GcsClient
print("nodes:", len(GcsClient(address=sys.argv[1]).get_all_node_info(timeout=30)))
"""


@dataclass
class Run:
    """What was seen while a study ran, and what it left."""

    folder: Path
    out: str
    listening: set[str]
    command_lines: str
    clients: dict[str, str]
    dashboard: list[int]
    token_mode: int


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Run]:
    place = tmp_path_factory.mktemp("secrets")
    token = place / "home/.ray/auth_token"
    token.parent.mkdir(parents=True)
    token.write_text(RAY_TOKEN)
    token.chmod(0o644)  # as Ray itself makes it
    waiting, done = place / "waiting", place / "done"
    (place / "telling.py").write_text(f"WAITING, DONE = {str(waiting)!r}, {str(done)!r}\n{RANK_PROGRAM}")
    rows = [f"{word} number {number},{word}" for number in range(20) for word in ("cat", "dog")]
    (place / "train.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    jobs = [{"name": "waits"}, {"name": "refuses", "lora": {"r": 4}}]
    study = {
        "model": {"model_name_or_path": str(tiny_model)}, "cards_gib": [8], "data": {"train_file": "train.csv"},
        "deepspeed": "ds_configs/zero0.json", "max_failures": 0, "sweep": {"jobs": jobs},
    }  # fmt: skip
    (place / "study.yaml").write_text(yaml.safe_dump(study))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {"HOME": str(place / "home"), "HF_TOKEN": HUB_TOKEN, **OTHER_SECRETS}
    environment["PYTHONPATH"] = python_path(CHECKOUT, place)
    with (place / "out.txt").open("w") as out:
        command = [sys.executable, "-c", LAUNCHER, "study.yaml"]
        launcher = subprocess.Popen(command, cwd=place, env=environment, stdout=out, stderr=out)
    try:
        while not waiting.exists():
            assert launcher.poll() is None, (place / "out.txt").read_text()
            time.sleep(0.1)
        seen = look_around(psutil.Process(launcher.pid), environment)
    finally:
        done.touch()
        assert launcher.wait(timeout=300) == 1, (place / "out.txt").read_text()
    mode = stat.S_IMODE(token.stat().st_mode)
    yield Run(place / "outputs/study", (place / "out.txt").read_text(), token_mode=mode, **seen)


def look_around(launcher: psutil.Process, environment: dict[str, str]) -> dict[str, Any]:
    """Return what another account on the machine can see of a running study, and who is let in."""
    family = [launcher, *launcher.children(recursive=True)]
    connections = [
        connection
        for process in family
        for connection in connections_of(process)
        if connection.status == psutil.CONN_LISTEN
    ]
    gcs = next(process for process in family if "/gcs_server " in command_line_of(process))
    port = next(item.laddr.port for item in gcs.net_connections("inet") if item.status == psutil.CONN_LISTEN)
    tokens: dict[str, dict[str, str]] = {
        "right": {"RAY_AUTH_MODE": "token"},
        "none": {"RAY_AUTH_MODE": "disabled"},
        "wrong": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64},
    }
    clients = {
        name: subprocess.Popen(
            [sys.executable, "-c", CLIENT, f"127.0.0.1:{port}"],
            env={**environment, **changes}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for name, changes in tokens.items()
    }  # fmt: skip
    dashboard = next(process for process in family if "dashboard.py" in command_line_of(process))
    ports = [item.laddr.port for item in dashboard.net_connections("inet") if item.status == psutil.CONN_LISTEN]
    return {
        "listening": {connection.laddr.ip.removeprefix("::ffff:") for connection in connections},
        "command_lines": "\n".join(map(command_line_of, family)),
        "clients": {name: client.communicate()[0] for name, client in clients.items()},
        "dashboard": [status for status in map(status_of, ports) if status is not None],
    }


def command_line_of(process: psutil.Process) -> str:
    """Return a process's command line; of one that has ended meanwhile, nothing."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def connections_of(process: psutil.Process) -> list[Any]:
    """Return a process's connections; of one that has ended meanwhile, none."""
    try:
        return process.net_connections("inet")
    except psutil.NoSuchProcess:
        return []


def status_of(port: int) -> int | None:
    """Return how a port answers who shows no token; None for the dashboard's figures about itself, for Prometheus."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/version") as answer:
            return None if answer.headers.get_content_type() == "text/plain" else int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_ray_listens_on_this_machine_alone(run: Run) -> None:
    assert run.listening == {"127.0.0.1"}


def test_only_who_has_the_token_is_let_in(run: Run) -> None:
    assert "nodes: 1" in run.clients["right"]
    for name in ("none", "wrong"):
        assert "nodes:" not in run.clients[name] and "InvalidAuthToken" in run.clients[name]
    assert run.dashboard == [401]


def test_a_token_that_others_could_read_is_their_owners_again_and_that_is_said(run: Run) -> None:
    assert run.token_mode == 0o600
    assert "was open to other accounts (mode 0644)" in run.out


def test_no_secret_is_in_what_a_study_writes_or_says(run: Run) -> None:
    files = {path.relative_to(run.folder).as_posix(): path.read_bytes() for path in run.folder.rglob("*")
             if path.is_file()}  # fmt: skip
    found = [(name, secret) for name, content in files.items() for secret in SECRETS if secret.encode() in content]
    found += [("terminal", secret) for secret in SECRETS if secret in run.out]
    found += [("command lines", secret) for secret in SECRETS if secret in run.command_lines]
    assert found == []
    # All that was said has come, but for the secrets.
    for job in ("waits", "refuses"):
        assert b"printed: " in files[f"jobs/{job}/rank0.log"] and b"[HF_TOKEN]" in files[f"jobs/{job}/rank0.log"]
        assert b"logged: " in files[f"jobs/{job}/events.jsonl"]
        message = json.loads(files[f"jobs/{job}/failure.json"])["error"]["message"]
        assert "raised: " in message and "[HF_TOKEN]" in message and "[private key]" in message
    assert b"raised: " in files["report.md"] and b"raised: " in files["report.html"]
    assert "raised: " in run.out
