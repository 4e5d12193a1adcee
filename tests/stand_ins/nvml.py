"""NVML of cards that are not here: what pynvml answers on a PC with these, for every process.

    SHOAL_STAND_INS=nvml=3060+4090           two cards, in PCI order; "none": NVML's library is missing
    SHOAL_STAND_INS=nvml=3060-1.1+3060       a desktop uses 1.1 GiB of the first
    SHOAL_STAND_INS=nvml=3060@535.54.03      an older driver

The rest of pynvml (errors, constants, structures) is its own. The ranks behind it run on the CPU: the torch that
is installed passes for a build for CUDA 13.0, as pip installs it where no CPU build is offered. With
"3060@580.95.05@cpu" the checks see the build that is really there, with "...@12.8" one for another CUDA.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any

from stand_ins.importing import after_import

MIB, GIB = 2**20, 2**30
DRIVER = "580.95.05"
CUDA = "13.0"
"""What the installed torch passes for."""
DRIVEN_CUDA = {13: 580, 12: 525, 11: 450}
"""CUDA's major version -> the first driver branch that has it."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """A card as NVML and CUDA tell it."""

    name: str
    total_mib: int
    """NVML's total."""
    cuda_gib: float
    """What CUDA can give of it: "total capacity" in PyTorch's out-of-memory messages. The driver holds the rest."""
    capability: tuple[int, int]
    num_cores: int
    clock_mhz: int
    """The highest of the multiprocessors."""
    bus_bits: int


def _geforce(name: str, *figures: Any) -> Figures:
    total_mib, cuda_gib, capability, num_cores, clock_mhz, bus_bits = figures
    return Figures(
        name=f"NVIDIA GeForce {name}", total_mib=total_mib, cuda_gib=cuda_gib, capability=capability,
        num_cores=num_cores, clock_mhz=clock_mhz, bus_bits=bus_bits,
    )  # fmt: skip


CARDS = {
    "1080": _geforce("GTX 1080", 8192, 7.92, (6, 1), 2560, 1911, 256),
    "2060": _geforce("RTX 2060", 6144, 5.79, (7, 5), 1920, 2100, 192),
    "2080ti": _geforce("RTX 2080 Ti", 11264, 10.75, (7, 5), 4352, 2100, 352),
    "3060": _geforce("RTX 3060", 12288, 11.76, (8, 6), 3584, 2130, 192),
    "3070": _geforce("RTX 3070", 8192, 7.78, (8, 6), 5888, 2115, 256),
    "3080": _geforce("RTX 3080", 10240, 9.78, (8, 6), 8704, 2115, 320),
    "4060": _geforce("RTX 4060", 8188, 7.63, (8, 9), 3072, 3105, 128),
    "4070": _geforce("RTX 4070", 12282, 11.71, (8, 9), 5888, 3105, 192),
    "4090": _geforce("RTX 4090", 24564, 23.64, (8, 9), 16384, 3105, 384),
    "5090": _geforce("RTX 5090", 32607, 31.36, (12, 0), 21760, 3090, 512),
    "t4": Figures(
        name="Tesla T4", total_mib=15360, cuda_gib=14.58, capability=(7, 5), num_cores=2560, clock_mhz=1590,
        bus_bits=256,
    ),
    "v100": Figures(
        name="Tesla V100-SXM2-16GB", total_mib=16384, cuda_gib=15.77, capability=(7, 0), num_cores=5120, clock_mhz=1530,
        bus_bits=4096,
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Device:
    """One card of an inventory; it is its own NVML handle."""

    index: int
    figures: Figures
    used_mib: int

    @property
    def uuid(self) -> str:
        """The same for the same place: tests write it out."""
        return f"GPU-{self.index:08x}-aaaa-bbbb-cccc-{self.figures.num_cores:012x}"

    @property
    def bytes_of_cuda(self) -> int:
        return int(self.figures.cuda_gib * 1024) * MIB

    @property
    def bytes_free(self) -> int:
        return self.bytes_of_cuda - self.used_mib * MIB


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """What `install`'s argument says."""

    devices: tuple[Device, ...]
    driver: str = DRIVER
    cuda: str = CUDA

    @classmethod
    def of(cls, argument: str) -> Inventory:
        """Read "3060-1.1+4090@535.54@13.0"."""
        cards, *options = argument.split("@")
        devices = []
        for index, word in enumerate([] if cards == "none" else cards.split("+")):
            model, _, used_gib = word.partition("-")
            used_mib = round(float(used_gib or 0) * 1024)
            devices.append(Device(index=index, figures=CARDS[model.lower()], used_mib=used_mib))
        return cls(devices=tuple(devices), **dict(zip(("driver", "cuda"), options, strict=False)))


def install(argument: str) -> None:
    """Have pynvml, whoever imports it, tell of these cards."""
    inventory = Inventory.of(argument or "3060")
    after_import("pynvml", partial(replace_functions, inventory=inventory))
    if inventory.cuda != "cpu":
        after_import("training.cuda.torch_build", partial(_believe_in_cuda, cuda=inventory.cuda))


def _believe_in_cuda(module: ModuleType, cuda: str) -> None:
    """Have the checks of driver and cards take the installed CPU build for one with CUDA."""
    real = module.installed_torch
    module.installed_torch = lambda: replace(real(), version=_build(real().version, cuda), cuda=cuda)


def _build(version: str, cuda: str) -> str:
    """What PyTorch calls its own build of a release for a CUDA: 2.13.0+cu130."""
    return f"{version.partition('+')[0]}+cu{cuda.replace('.', '')}"


def replace_functions(pynvml: ModuleType, inventory: Inventory) -> None:
    """Replace what pynvml asks NVIDIA's library by what is known of an inventory."""
    for name, function in functions(pynvml, inventory).items():
        setattr(pynvml, name, function)


def functions(pynvml: Any, inventory: Inventory) -> dict[str, Callable[..., Any]]:
    """Return NVML's functions by their names."""
    devices = inventory.devices

    def start(*flags: int) -> None:
        if not devices:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    def by_index(index: int) -> Device:
        if not 0 <= index < len(devices):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return devices[index]

    def by_uuid(uuid: str | bytes) -> Device:
        text = uuid.decode() if isinstance(uuid, bytes) else uuid
        found = next((device for device in devices if device.uuid == text), None)
        if found is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return found

    def refuse(*arguments: Any) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    cuda_version = next((major * 1000 for major, first in DRIVEN_CUDA.items() if _branch(inventory) >= first), 10000)
    return {
        "nvmlInit": start, "nvmlInitWithFlags": start, "nvmlShutdown": lambda: None,
        "nvmlSystemGetDriverVersion": lambda: inventory.driver,
        "nvmlSystemGetCudaDriverVersion": lambda: cuda_version,
        "nvmlSystemGetCudaDriverVersion_v2": lambda: cuda_version,
        "nvmlDeviceGetCount": lambda: len(devices),
        "nvmlDeviceGetHandleByIndex": by_index, "nvmlDeviceGetHandleByUUID": by_uuid,
        "nvmlDeviceIsMigDeviceHandle": lambda device: 0, "nvmlDeviceGetMigMode": refuse,
        "nvmlDeviceGetDeviceHandleFromMigDeviceHandle": refuse,
        **_of_a_device(pynvml),
    }  # fmt: skip


def _of_a_device(pynvml: Any) -> dict[str, Callable[..., Any]]:
    """Return NVML's functions that take a handle, by their names."""

    def memory(device: Device, version: int | None = None) -> Any:
        total, cuda = device.figures.total_mib * MIB, device.bytes_of_cuda
        if version:
            info = pynvml.c_nvmlMemory_v2_t()
            info.version, info.reserved, info.used = version, total - cuda, cuda - device.bytes_free
        else:
            info = pynvml.c_nvmlMemory_t()
            info.used = total - device.bytes_free  # the first version counts what is reserved as used
        info.total, info.free = total, device.bytes_free
        return info

    def pci(device: Device) -> Any:
        info = pynvml.nvmlPciInfo_t()
        info.domain, info.bus, info.device, info.pciDeviceId = 0, device.index + 1, 0, 0x10DE
        info.busId = f"00000000:{device.index + 1:02X}:00.0"
        return info

    def processes(device: Device) -> list[Any]:
        """This process alone, with 300 MiB, as once its context is made."""
        return [pynvml.nvmlFriendlyObject({"pid": os.getpid(), "usedGpuMemory": 300 * MIB})]

    return {
        "nvmlDeviceGetName": lambda device: device.figures.name,
        "nvmlDeviceGetUUID": lambda device: device.uuid,
        "nvmlDeviceGetIndex": lambda device: device.index,
        "nvmlDeviceGetCudaComputeCapability": lambda device: list(device.figures.capability),
        "nvmlDeviceGetNumGpuCores": lambda device: device.figures.num_cores,
        "nvmlDeviceGetMaxClockInfo": lambda device, kind: device.figures.clock_mhz,
        "nvmlDeviceGetMemoryBusWidth": lambda device: device.figures.bus_bits,
        "nvmlDeviceGetMemoryInfo": memory,
        "nvmlDeviceGetPciInfo": pci, "nvmlDeviceGetPciInfo_v3": pci,
        "nvmlDeviceGetMaxPcieLinkGeneration": lambda device: 4, "nvmlDeviceGetMaxPcieLinkWidth": lambda device: 16,
        "nvmlDeviceGetCurrPcieLinkGeneration": lambda device: 4, "nvmlDeviceGetCurrPcieLinkWidth": lambda device: 16,
        "nvmlDeviceGetComputeRunningProcesses": processes, "nvmlDeviceGetComputeRunningProcesses_v3": processes,
        "nvmlDeviceGetTotalEnergyConsumption": lambda device: 123_456_789,
        "nvmlDeviceGetPowerUsage": lambda device: 15_000,
    }  # fmt: skip


def _branch(inventory: Inventory) -> int:
    return int(inventory.driver.split(".")[0])
