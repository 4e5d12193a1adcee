"""Where the doctor's scripts run: in a process of this machine, or on a PC of a cluster file over SSH."""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from launcher.expand import CHECKOUT
from training.errors import UserError

SCRIPTS = Path(__file__).parent
CONNECT_SECONDS = 10
SSH_FAILED = 255
"""ssh's own exit status; all others are those of what it ran."""
BLANKS = {"HEAD", "WORKER1", "WORKER2", "USER"}
"""Of cluster/cluster.yaml, as long as nobody has filled it in."""
REMOTE = "cd ~/shoal 2>/dev/null; p=.venv/bin/python; [ -x $p ] || p=python3; exec $p -c {script} {words}"
"""Where cluster.yaml installs Shoal; and where it has not yet, any Python."""


class NodeError(Exception):
    """A script that did not run or did not end well."""

    def __init__(self, said: str, *, unreachable: bool) -> None:
        super().__init__((said.strip().splitlines() or ["it ended without a word"])[-1])
        self.said = said
        self.unreachable = unreachable
        """Whether SSH failed, and not what it should have run."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A machine that runs scripts of this folder."""

    name: str
    """As the cluster file names it; of this machine, its host name."""
    ssh: tuple[str, ...] = ()
    """The command that logs in there; () for this machine."""
    python: str = sys.executable
    """This machine's interpreter; a PC over SSH has its own."""

    def command(self, script: str, *words: str) -> list[str]:
        """Return the command that runs a script with these arguments."""
        text = (SCRIPTS / script).read_text(encoding="utf-8")
        if not self.ssh:
            return [self.python, "-c", text, *words]
        inner = REMOTE.format(script=shlex.quote(text), words=shlex.join(words))
        # The kind of shell Ray starts its nodes in: what ~/.profile and ~/.bashrc set holds for both.
        return [*self.ssh, f"bash --login -c -i {shlex.quote(inner)}"]

    def run(self, script: str, *words: str, timeout_seconds: float) -> Any:
        """Return what a script printed as JSON. Raises NodeError."""
        command = self.command(script, *words)
        try:
            run = subprocess.run(
                command, cwd=CHECKOUT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_seconds
            )
        except subprocess.TimeoutExpired:
            raise NodeError(f"no answer within {timeout_seconds:g} s", unreachable=False) from None
        if run.returncode:
            raise NodeError(run.stderr, unreachable=bool(self.ssh) and run.returncode == SSH_FAILED)
        try:
            return json.loads(run.stdout.strip().splitlines()[-1])  # what a ~/.bashrc prints comes before it
        except (ValueError, IndexError):
            raise NodeError(run.stdout, unreachable=False) from None


def this_machine() -> Node:
    """Return the machine the doctor runs on."""
    return Node(name=socket.gethostname())


@dataclass(frozen=True, kw_only=True)
class ClusterFile:
    """What Ray's cluster file of own PCs says of them."""

    path: Path
    head: str
    workers: tuple[str, ...]
    user: str
    key: str
    """Path of the SSH key; "" where the file names none, and ssh takes its usual ones."""

    @property
    def start(self) -> str:
        """Return the command that installs Shoal on every PC and starts Ray."""
        return f"ray submit --start {self.path} launcher/launch.py -- STUDY"

    def nodes(self) -> list[Node]:
        """Return its PCs, the head first."""
        return [Node(name=name, ssh=self._ssh(name)) for name in (self.head, *self.workers)]

    def _ssh(self, address: str) -> tuple[str, ...]:
        """As Ray logs in, but for questions, which nobody here would answer."""
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": str(CONNECT_SECONDS),
            "IdentitiesOnly": "yes",
            "LogLevel": "ERROR",
            "ServerAliveInterval": "5",
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
        }
        words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        key = ["-i", str(Path(self.key).expanduser())] if self.key else []
        return ("ssh", *words, *key, f"{self.user}@{address}")


def read_cluster_file(path: Path) -> ClusterFile:
    """Return the PCs of a cluster file. Raises UserError where it is none of own PCs, or not filled in."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        provider, auth = content["provider"], content["auth"]
        kind = provider["type"]
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file. Give Ray's cluster file, e.g. cluster/cluster.yaml.") from None
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError, AttributeError) as problem:
        what = str(problem).splitlines()[0]
        raise UserError(f"{path}: this is no Ray cluster file ({what}). Begin with cluster/cluster.yaml.") from None
    if kind != "local":
        raise UserError(
            f"{path}: provider.type is {kind!r}. The doctor looks at PCs of your own (local); a cloud makes its own."
        )
    head, workers, user = provider.get("head_ip"), provider.get("worker_ips") or [], auth.get("ssh_user")
    if not isinstance(workers, list):
        raise UserError(f"{path}: provider.worker_ips is {workers!r}. Give a list of addresses.")
    wanted = [
        ("provider.head_ip", head),
        *(("provider.worker_ips", worker) for worker in workers),
        ("auth.ssh_user", user),
    ]
    if len({head, *workers}) <= len(workers):
        raise UserError(f"{path}: a PC stands twice in head_ip and worker_ips. Name each once; the head trains too.")
    for key, value in wanted:
        if not isinstance(value, str) or value in BLANKS:
            raise UserError(f"{path}: {key} is {value!r}. Fill it in.")
    return ClusterFile(
        path=path, head=str(head), workers=tuple(workers), user=str(user), key=str(auth.get("ssh_private_key") or "")
    )
