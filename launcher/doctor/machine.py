"""What a machine is and has, as JSON: `python launcher/doctor/machine.py`, in the checkout.

The doctor sends this file's text to each PC over SSH, where nothing of Shoal need be installed yet: it imports nothing
but the standard library, and NVML's bindings where there are any, and runs on any Python 3.8 or later.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import socket
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import TypedDict

PACKAGES = ("ray", "torch", "deepspeed", "transformers", "peft", "bitsandbytes")
GCS_PORT, DASHBOARD_PORT = 6379, 8265
"""Ray's on the head; cluster.yaml starts it with them."""
NVIDIA = "0x10de"
DISPLAY_CLASS = "0x03"


class Token(TypedDict):
    """The file of Ray's token; it itself is told to nobody."""

    path: str
    mode: int | None
    """Its permission bits; None where there is no file that can be read."""
    sha256: str
    """Of what it holds; "" where that is nothing."""


class Port(TypedDict):
    """A TCP port Ray will listen at."""

    number: int
    taken: bool
    owner: str
    """The program that listens there, "" where another account's or none."""


class Disk(TypedDict):
    """The file system of a folder."""

    path: str
    free_bytes: int


class Card(TypedDict):
    """An NVIDIA card, as NVML tells it."""

    name: str
    compute_capability: list[int]
    memory_bytes: int


class Gpus(TypedDict):
    """The machine's NVIDIA cards."""

    devices: int
    """How many display devices of NVIDIA's the PCI bus has, with or without a driver."""
    error: str
    """Why NVML does not answer; "" where it does."""
    driver: str
    cuda_major: int
    """The newest CUDA that the driver runs; 0 where it does not say."""
    cards: list[Card]


class Facts(TypedDict):
    """What is known of one machine."""

    hostname: str
    checkout: str
    installed: bool
    """Whether Shoal's checkout and all its packages are there."""
    python: str
    versions: dict[str, str]
    """Of Shoal and PACKAGES, those that are installed."""
    sources: dict[str, str]
    """SHA-256 of Shoal's own files, by their path in the checkout."""
    has_venv: bool
    has_rsync: bool
    address: str
    """The address Ray will announce this machine by: that of its route to the outside."""
    token: Token
    ports: list[Port]
    disks: list[Disk]
    available_memory_bytes: int
    compiler: str
    """The C++ compiler PyTorch calls, "" where there is none."""
    has_ninja: bool
    has_python_header: bool
    gpus: Gpus
    nccl_p2p_disable: bool
    nccl_shm_disable: bool
    shared_memory_mib: int | None
    """Free in /dev/shm; None where there is none."""
    visible_devices: str
    """CUDA_VISIBLE_DEVICES."""


def look() -> Facts:
    """Return the facts of this machine; the checkout is the current folder."""
    checkout = Path.cwd()
    versions = _versions(checkout)
    return {
        "hostname": socket.gethostname(),
        "checkout": str(checkout),
        "installed": set(versions) == {"shoal", *PACKAGES},
        "python": platform.python_version(),
        "versions": versions,
        "sources": _sources(checkout),
        "has_venv": importlib.util.find_spec("ensurepip") is not None,
        "has_rsync": shutil.which("rsync") is not None,
        "address": _address(),
        "token": look_at_token(Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()),
        "ports": [look_at_port(port) for port in (GCS_PORT, DASHBOARD_PORT)],
        "disks": look_at_disks([checkout, Path(tempfile.gettempdir())]),
        "available_memory_bytes": _available_memory(),
        "compiler": shutil.which(os.environ.get("CXX", "c++")) or "",
        # Beside the interpreter, where training looks for it too.
        "has_ninja": bool(shutil.which("ninja", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")),
        "has_python_header": Path(sysconfig.get_path("include"), "Python.h").exists(),
        "gpus": _gpus(),
        "nccl_p2p_disable": os.environ.get("NCCL_P2P_DISABLE", "0") == "1",
        "nccl_shm_disable": os.environ.get("NCCL_SHM_DISABLE", "0") == "1",
        "shared_memory_mib": _shared_memory_mib(),
        "visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
    }


def look_at_token(path: Path) -> Token:
    """Return what is to know of the token's file."""
    try:
        mode = path.stat().st_mode & 0o777
        token = path.read_bytes().strip()
    except OSError:
        return {"path": str(path), "mode": None, "sha256": ""}
    return {"path": str(path), "mode": mode, "sha256": hashlib.sha256(token).hexdigest() if token else ""}


def look_at_port(number: int) -> Port:
    """Return whether somebody listens at a port, and who."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", number))
            return {"number": number, "taken": False, "owner": ""}
        except OSError:
            return {"number": number, "taken": True, "owner": _listener(number)}


def look_at_disks(folders: list[Path]) -> list[Disk]:
    """Return the room of the folders' file systems, each once."""
    systems: dict[int, Path] = {}
    for folder in folders:
        systems.setdefault(folder.stat().st_dev, folder)
    return [{"path": str(folder), "free_bytes": shutil.disk_usage(folder).free} for folder in systems.values()]


def _versions(checkout: Path) -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    try:
        text = (checkout / "training" / "__init__.py").read_text(encoding="utf-8")
    except OSError:
        return versions
    found = re.search(r'^__version__ = "(.+)"', text, flags=re.MULTILINE)
    return {"shoal": found[1], **versions} if found else versions


def _sources(checkout: Path) -> dict[str, str]:
    paths = sorted(path for folder in ("launcher", "training") for path in (checkout / folder).rglob("*.py"))
    return {path.relative_to(checkout).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def _address() -> str:
    """Return the address of this machine's route to the outside, by which Ray calls it; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("8.8.8.8", 53))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def _listener(port: int) -> str:
    """Return the name of the program that listens at a TCP port, from /proc; "" where it is another account's."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:  # 0A is LISTEN
                inodes.add(f"socket:[{fields[9]}]")
    for handle in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(handle) in inodes:  # noqa: PTH115  (a socket is no path)
                return (handle.parents[1] / "comm").read_text().strip()
        except OSError:
            continue
    return ""


def _available_memory() -> int:
    found = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())
    return int(found[1]) * 1024 if found else 0


def _shared_memory_mib() -> int | None:
    try:
        return shutil.disk_usage("/dev/shm").free >> 20
    except OSError:
        return None


def _gpus() -> Gpus:
    buses = Path("/sys/bus/pci/devices").glob("*")
    devices = sum(_read(bus / "vendor") == NVIDIA and _read(bus / "class").startswith(DISPLAY_CLASS) for bus in buses)
    try:
        import pynvml
    except ImportError:
        missing = "its Python bindings are not installed"
        return {"devices": devices, "error": missing, "driver": "", "cuda_major": 0, "cards": []}
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        cards: list[Card] = [
            {
                "name": pynvml.nvmlDeviceGetName(handle),
                "compute_capability": list(pynvml.nvmlDeviceGetCudaComputeCapability(handle)),
                "memory_bytes": pynvml.nvmlDeviceGetMemoryInfo(handle).total,
            }
            for handle in handles
        ]
        driver = pynvml.nvmlSystemGetDriverVersion()
        cuda_major = pynvml.nvmlSystemGetCudaDriverVersion() // 1000
    except pynvml.NVMLError as problem:
        return {"devices": devices, "error": str(problem), "driver": "", "cuda_major": 0, "cards": []}
    found = max(devices, len(cards))
    return {"devices": found, "error": "", "driver": driver, "cuda_major": cuda_major, "cards": cards}


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


if __name__ == "__main__":
    print(json.dumps(look()))
