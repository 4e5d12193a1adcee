"""What is judged of one machine by itself: from its facts to findings."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.doctor.findings import Finding, error, ok, warning
from launcher.doctor.machine import Facts, Gpus
from launcher.doctor.stack import Stack
from training.cuda.torch_build import DRIVERS, driver_for, fitting_torch
from training.cuda.visible import names_uuids
from training.network.shared_memory import why_too_small

GIB = 2**30
LOW_DISK_BYTES, FULL_DISK_BYTES = 10 * GIB, 1 * GIB
"""A base model of 3 B is 6 GiB; on the second not even a study of small ones ends."""
LOW_MEMORY_BYTES = 4 * GIB
"""A rank's libraries and Ray take about 1.5 GiB before there is any model."""
PYTHONS = ("3.10", "3.11", "3.12")
"""pyproject.toml's requires-python."""
P2P_DRIVER = "550.40.07"
"""Older ones say that cards of the RTX 40 series reach each other directly, and NCCL hangs: accelerate's
check_cuda_p2p_ib_support has the same bound."""
P2P_SERIES = "RTX 40"


def check_machine(node: str, facts: Facts, stack: Stack | None) -> list[Finding]:
    """Return the findings of one machine; `stack` is None where PyTorch was not asked, as it is not installed."""
    return [
        *_installed(node, facts),
        *_token(node, facts),
        *_disks(node, facts),
        _memory(node, facts),
        *_gpus(node, facts, stack),
        *_visible(node, facts),
        *([] if stack is None else [_cpu_adam(node, facts, stack)]),
    ]


def _installed(node: str, facts: Facts) -> list[Finding]:
    """What installing Shoal needs where it is not, and its versions where it is."""
    findings = []
    if ".".join(facts["python"].split(".")[:2]) not in PYTHONS:
        findings.append(
            error("python", node, f"Python is {facts['python']}", f"Install one of Python {', '.join(PYTHONS)}.")
        )
    if facts["installed"]:
        versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
        return [*findings, ok("versions", node, f"Python {facts['python']}, {versions}")]
    if not facts["has_venv"]:
        fix = "Debian, Ubuntu: sudo apt install python3-venv"
        findings.append(error("install", node, "python3 -m venv does not work, with which Shoal is installed", fix))
    if not facts["has_rsync"]:
        fix = "Debian, Ubuntu: sudo apt install rsync"
        findings.append(error("install", node, "there is no rsync, by which Ray sends Shoal", fix))
    return findings


def _token(node: str, facts: Facts) -> list[Finding]:
    """Whether others on the machine can read the token, and with it run programs on the whole cluster."""
    token = facts["token"]
    if token["mode"] is None:
        return []
    if not token["sha256"]:
        fix = "Delete it, and start the cluster again, which makes one."
        return [error("token", node, f"Ray's token {token['path']} is empty", fix)]
    if token["mode"] & 0o077:
        fact = (
            f"Ray's token {token['path']} can be read by others (mode {token['mode']:04o}), who can then run programs"
        )
        return [error("token", node, fact, f"chmod 600 {token['path']}")]
    return [ok("token", node, f"Ray's token {token['path']} is its owner's alone")]


def _disks(node: str, facts: Facts) -> list[Finding]:
    findings = []
    for disk in facts["disks"]:
        fact = f"{disk['free_bytes'] / GIB:.1f} GiB are free on the disk of {disk['path']}"
        fix = f"Make room there, {LOW_DISK_BYTES // GIB} GiB for bases, checkpoints and Ray's own files."
        if disk["free_bytes"] < FULL_DISK_BYTES:
            findings.append(error("disk", node, fact, fix))
        elif disk["free_bytes"] < LOW_DISK_BYTES:
            findings.append(warning("disk", node, fact, fix))
        else:
            findings.append(ok("disk", node, fact))
    return findings


def _memory(node: str, facts: Facts) -> Finding:
    fact = f"{facts['available_memory_bytes'] / GIB:.1f} GiB of RAM are available"
    if facts["available_memory_bytes"] >= LOW_MEMORY_BYTES:
        return ok("memory", node, fact)
    fix = f"Close what is not needed: a rank takes {LOW_MEMORY_BYTES // GIB} GiB and more, offloaded weights besides."
    return warning("memory", node, fact, fix)


def _gpus(node: str, facts: Facts, stack: Stack | None) -> list[Finding]:
    """Whether NVML, driver, PyTorch and cards fit each other."""
    gpus = facts["gpus"]
    if gpus["error"] and gpus["devices"]:
        fact = f"{gpus['devices']} NVIDIA cards, but NVML does not answer: {gpus['error']}"
        fix = "Restart the PC if the driver was just updated; else install it (Ubuntu: sudo ubuntu-drivers install)."
        # Before Shoal is installed its bindings are missing, which says nothing of the driver.
        return [error("nvml", node, fact, fix)] if facts["installed"] else []
    if not gpus["cards"]:
        return [ok("gpu", node, "no NVIDIA card: ranks here train on the CPU, where the PC announces virtual cards")]
    cards = ", ".join(f"{card['name']} ({card['memory_bytes'] / GIB:.1f} GiB)" for card in gpus["cards"])
    findings = [ok("nvml", node, f"driver {gpus['driver']}, {cards}")]
    if stack is not None:
        findings += _cuda(node, gpus, stack)
    if sum(P2P_SERIES in card["name"] for card in gpus["cards"]) > 1 and _parts(gpus["driver"]) < _parts(P2P_DRIVER):
        if facts["nccl_p2p_disable"]:
            findings.append(ok("p2p", node, "NCCL_P2P_DISABLE=1, as these cards and this driver need it"))
        else:
            fact = f"driver {gpus['driver']} offers direct transfers (P2P) that GeForce {P2P_SERIES} cards do not have"
            fix = (
                f"Update it to {P2P_DRIVER} or later, or put `export NCCL_P2P_DISABLE=1` in ~/.profile and restart Ray."
            )
            findings.append(error("p2p", node, fact, fix))
    return [*findings, *_shared_memory(node, facts)]


def _shared_memory(node: str, facts: Facts) -> list[Finding]:
    """Whether NCCL can connect two cards of this PC: consumer cards do it by way of /dev/shm."""
    if len(facts["gpus"]["cards"]) < 2:
        return []
    environment = {"NCCL_SHM_DISABLE": "1"} if facts["nccl_shm_disable"] else {}
    why = why_too_small(facts["shared_memory_mib"], environment)
    if why is None:
        return [ok("shared_memory", node, f"/dev/shm has {facts['shared_memory_mib'] or 0} MiB free for NCCL")]
    fact, _, fix = why.partition(". ")
    return [error("shared_memory", node, fact, fix)]


def _visible(node: str, facts: Facts) -> list[Finding]:
    """Whether CUDA_VISIBLE_DEVICES can be read by all that read it."""
    visible = facts["visible_devices"]
    if not names_uuids(visible):
        return []
    fact = f"CUDA_VISIBLE_DEVICES is {visible}: Shoal takes UUIDs, the `deepspeed` command ends with a ValueError"
    fix = "For that command write numbers, in the order of `nvidia-smi`: CUDA_DEVICE_ORDER=PCI_BUS_ID "
    return [warning("visible", node, fact, fix + "CUDA_VISIBLE_DEVICES=0, or call `python training/main.py`.")]


def _cuda(node: str, gpus: Gpus, stack: Stack) -> list[Finding]:
    driver, cards = gpus["driver"], gpus["cards"]
    runs = gpus["cuda_major"] or next(
        (major for major, oldest in sorted(DRIVERS.items(), reverse=True) if _parts(driver) >= _parts(oldest)), 0
    )
    fitting = fitting_torch(runs, [(card["compute_capability"][0], card["compute_capability"][1]) for card in cards])
    install = f".venv/bin/pip install {fitting}" if fitting else f"update NVIDIA's driver to {driver_for(12)}"
    if not stack["cuda"]:
        fact = "PyTorch is a build for CPUs, and there are NVIDIA cards"
        return [error("cuda", node, fact, f"In the checkout: {install}")]
    needed = int(stack["cuda"].split(".")[0])
    if runs < needed:
        fact = f"driver {driver} is too old for PyTorch's CUDA {stack['cuda']}, which needs {driver_for(needed)}"
        fix = f"Update it (Ubuntu: sudo ubuntu-drivers install){f'; or in the checkout: {install}' if fitting else '.'}"
        return [error("cuda", node, fact, fix)]
    findings = [
        error(
            "cuda",
            node,
            f"{card['name']} (sm_{''.join(map(str, card['compute_capability']))}) is none of the cards PyTorch was "
            f"built for: {' '.join(stack['architectures'])}",
            f"Install a PyTorch built for it, in the checkout: {install}",
        )
        for card in cards
        if not supports(stack["architectures"], card["compute_capability"])
    ]
    if stack["cuda_problem"] and not findings:
        fix = "Restart the PC; then compare `nvidia-smi` and CUDA_VISIBLE_DEVICES."
        findings.append(error("cuda", node, f"PyTorch cannot use the cards: {stack['cuda_problem']}", fix))
    return findings or [ok("cuda", node, f"PyTorch's CUDA {stack['cuda']} fits driver and cards")]


def supports(architectures: Sequence[str], capability: Sequence[int]) -> bool:
    """Whether PyTorch's code runs on a card: sm_XY on cards X.Y and later of the same X, compute_XY on all later ones.

    `capability` is the card's (X, Y). NVIDIA, CUDA C++ Programming Guide, "Binary Compatibility", "PTX Compatibility".
    """
    for architecture in architectures:
        kind, _, number = architecture.rstrip("af").partition("_")
        major, minor = int(number[:-1]), int(number[-1])
        later = (major, minor) <= tuple(capability)
        if later and (kind == "compute" or major == capability[0]):
            return True
    return False


def _cpu_adam(node: str, facts: Facts, stack: Stack) -> Finding:
    if not stack["cpu_adam_obstacle"]:
        return ok("cpu_adam", node, "DeepSpeed's CPUAdam is built")
    fact = (
        f"DeepSpeed's CPUAdam does not build ({stack['cpu_adam_obstacle']}): offloaded optimizers use torch's, slower"
    )
    if not facts["compiler"]:
        fix = "There is no C++ compiler. Debian, Ubuntu: sudo apt install g++"
    elif not facts["has_python_header"]:
        fix = "Python.h is missing. Debian, Ubuntu: sudo apt install python3-dev"
    elif not facts["has_ninja"]:
        fix = "There is no ninja: pip install ninja"
    else:
        command = "from deepspeed.ops.op_builder import CPUAdamBuilder; CPUAdamBuilder().load()"
        fix = f'See what the compiler says: python -c "{command}"'
    return warning("cpu_adam", node, fact, fix)


def _parts(version: str) -> list[int]:
    """Return "525.60.13" as numbers, to be compared."""
    return [int(part) for part in version.split(".") if part.isdigit()]
