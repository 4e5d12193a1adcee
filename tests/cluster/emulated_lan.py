"""PCs on one machine: each has its own network address, processes, host name, /tmp and home, and runs a real sshd.

All of them, their bridge and the user's own PC live inside one network, mount and process namespace. When its first
process ends, also by a kill of the tests, the kernel ends and unmounts all the rest.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
PROGRAMS = ("ip", "sshd", "ssh", "ssh-keygen", "rsync", "unshare", "nsenter", "mount", "bash")
SEARCH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
NETWORK = "10.77.0"

OUTER = """
set -e
ip link set lo up
ip link add lan type bridge
ip address add {network}.1/24 dev lan
ip link set lan up
touch {folder}/ready
read -r _ || true
"""
"""The user's own PC, at the bridge's address. It ends with its input, which ends with the tests, killed or not."""

HOST = """
set -e
hostname {name}
ip link set lo up
until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done
ip address add {address}/24 dev eth0
ip link set eth0 up
ip route add default via {network}.1
mount --bind {own}/passwd /etc/passwd
mount --bind {own}/hosts /etc/hosts
mount -t tmpfs tmpfs /run
mkdir /run/sshd
for path in {shared}; do
    case $path in /tmp/*) mkdir -p {own}$path; mount --bind $path {own}$path;; esac
done
mount --rbind {own}/tmp /tmp
mount --bind {own}/home {home}
exec {sshd} -D -f {own}/sshd_config -E {own}/sshd.log
"""
"""One PC. A private /tmp would hide what of ours lies there: that is mounted into it first."""

SSHD = """
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PasswordAuthentication no
PermitRootLogin yes
StrictModes no
UsePAM no
"""


def why_not() -> str | None:
    """Return why this machine cannot emulate PCs; None if it can."""
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    absent = [name for name in PROGRAMS if find(name) is None]
    if absent:
        return f"needs {', '.join(absent)} (Debian: apt-get install openssh-server iproute2 rsync)"
    probe = (
        "mount -t tmpfs tmpfs /run && ip link add name lan type bridge && ip link add name pc type veth peer name eth0"
    )
    command = ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "bash", "-c", probe]
    run = subprocess.run(command, capture_output=True, text=True, env=environment())
    return None if run.returncode == 0 else f"namespaces or bridges are not permitted here: {run.stderr.strip()}"


def find(program: str) -> str | None:
    return shutil.which(program, path=SEARCH)


def environment() -> dict[str, str]:
    """Return an environment for programs of the system's, found also where root's PATH is short."""
    return {**os.environ, "PATH": SEARCH}


class Lan:
    """A network with the user's PC and further ones; a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        """Where every PC's home is, seen from that PC."""
        self.key = folder / "key"
        self.addresses: dict[str, str] = {}
        self.profiles: dict[str, Mapping[str, str]] = {}
        self.first_of: dict[str, int] = {}
        """PC -> the process whose end is the PC's."""
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Lan:
        self.home.mkdir(parents=True)
        for name in ("key", "host_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / name], check=True)
        command = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c"]
        outer = self._start([*command, OUTER.format(network=NETWORK, folder=self.folder)], stdin=subprocess.PIPE)
        self.first = _only_child(outer.pid)
        _wait_for(lambda: (self.folder / "ready").exists(), outer, "the network")
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()
            if process.stdin is not None:
                process.stdin.close()

    def add(self, name: str, profile: Mapping[str, str]) -> str:
        """Start a PC whose ~/.profile sets these variables; return its address."""
        own = self.folder / name
        for part in ("home", "tmp"):
            (own / part).mkdir(parents=True, exist_ok=True)
        (own / "tmp").chmod(0o1777)
        address = self.addresses.setdefault(name, f"{NETWORK}.{len(self.addresses) + 2}")
        self.profiles[name] = profile
        (own / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n")  # as Debian's installer writes it
        users = [line.split(":") for line in Path("/etc/passwd").read_text().splitlines()]
        users = [[*user[:5], str(self.home), "/bin/bash"] if user[0] == "root" else user for user in users]
        (own / "passwd").write_text("".join(":".join(user) + "\n" for user in users))
        (own / "sshd_config").write_text(SSHD.format(folder=self.folder))
        exports = "".join(f"export {key}={value}\n" for key, value in profile.items())
        (own / "home" / ".bashrc").write_text("")
        (own / "home" / ".profile").write_text(f"{exports}. ~/.bashrc\n")
        shared = " ".join(str(path) for path in (self.folder, sys.prefix, sys.base_prefix))
        script = HOST.format(
            name=name, address=address, network=NETWORK, own=own, home=self.home, shared=shared, sshd=find("sshd")
        )
        spaces = ["--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        process = self._start([*self._inside(), "unshare", *spaces, "bash", "-c", script])
        unshare = _only_child(process.pid)  # nsenter forks to enter the process namespace
        first = self.first_of[name] = _only_child(unshare)
        veth = f"ip link add name {name} type veth peer name eth0 netns {first} && ip link set {name} master lan up"
        subprocess.run(
            ["nsenter", f"--target={self.first}", "--net", "bash", "-c", veth], env=environment(), check=True
        )
        return address

    def cut(self, name: str) -> None:
        """Take a PC off the network."""
        self._set_link(name, "down")

    def mend(self, name: str) -> None:
        """Put a PC that was cut off back on the network."""
        self._set_link(name, "up")

    def _set_link(self, name: str, state: str) -> None:
        command = ["nsenter", f"--target={self.first}", "--net", "ip", "link", "set", name, state]
        subprocess.run(command, env=environment(), check=True)

    def turn_off_and_on(self, name: str) -> None:
        """End all processes of a PC at once, and start it anew with the disk as it is."""
        os.kill(self.first_of[name], signal.SIGKILL)
        while Path(f"/proc/{self.first_of[name]}").exists():
            time.sleep(0.05)
        self.add(name, self.profiles[name])

    def run(self, *command: str | Path, cwd: Path = CHECKOUT, **kwargs: Any) -> subprocess.CompletedProcess[str]:
        """Run a command on the user's own PC."""
        home = self.folder / "user"
        home.mkdir(exist_ok=True)
        env = {**environment(), "HOME": str(home), "TMPDIR": str(home)}
        words = [*self._inside(cwd), *(str(word) for word in command)]
        with (self.folder / "commands.log").open("a+") as log:
            log.seek(0, os.SEEK_END)
            start = log.tell()
            run = subprocess.run(words, env=env, text=True, stdout=log, stderr=log, stdin=subprocess.DEVNULL, **kwargs)
            log.seek(start)
            return subprocess.CompletedProcess(command, run.returncode, log.read())

    def ssh(self, name: str, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command on one of the PCs."""
        options = ["-i", self.key, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
        return self.run("ssh", *options, f"root@{self.addresses[name]}", command)

    def _inside(self, cwd: Path = CHECKOUT) -> list[str]:
        return ["nsenter", f"--target={self.first}", "--net", "--mount", "--pid", f"--wd={cwd}", "--"]

    def _start(self, command: list[str], stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        with (self.folder / "hosts.log").open("ab") as log:
            process = subprocess.Popen(command, stdin=stdin, stdout=log, stderr=log, env=environment())
        self.processes.append(process)
        return process


def install_shoal(home: Path, seen_as: Path) -> None:
    """Lay in a home the environment that cluster.yaml's set-up would install, of the packages of the tests' own.

    Its own interpreter and scripts, its Shoal the checkout beside it; `seen_as` is the home as its PC sees it. The
    set-up then finds it up to date: installing PyTorch three times over takes minutes and an index.
    """
    venv = home / "shoal" / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "tests_packages.pth").write_text(f"{seen_as / 'shoal'}\n{sysconfig.get_path('purelib')}\n")
    for name in ("ray", "shoal"):
        lines = (Path(sys.prefix) / "bin" / name).read_text().splitlines(keepends=True)
        script = venv / "bin" / name
        script.write_text("".join([f"#!{seen_as}/shoal/.venv/bin/python\n", *lines[1:]]))
        script.chmod(0o755)
    shutil.copy(CHECKOUT / "pyproject.toml", venv / "installed.toml")


def _only_child(pid: int) -> int:
    """Return the process that a process has started, once it has."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    for _ in range(1000):
        if found := children.read_text().split():
            return int(found[0])
        time.sleep(0.01)
    raise RuntimeError(f"process {pid} started nothing")


def _wait_for(happened: Any, process: subprocess.Popen[bytes], what: str) -> None:
    while not happened():
        if process.poll() is not None:
            raise RuntimeError(f"{what} did not start: exit status {process.returncode}")
        time.sleep(0.02)
