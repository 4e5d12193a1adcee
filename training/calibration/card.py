"""A CUDA card measured: its kernels, what takes memory beside tensors, its speeds, steps, and a small job.

No card has run this yet: tests run its parts on the CPU.
"""

from __future__ import annotations

import os
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from training.calibration.cpu import SMALL, run_small, with_start
from training.calibration.fit import fit
from training.calibration.material import save_model
from training.calibration.processes import Models, Tell
from training.calibration.record import CardRecord
from training.calibration.steps import Setting, measure
from training.errors import ShoalError
from training.ranks import Ranks, free_port

MODELS = (SMALL, (512, 2), (1024, 2))
SIZES = ((1, 16), (8, 64), (4, 256), (16, 128), (8, 512), (32, 256))
MIB = 1 << 20
COPIED = 256 * MIB
"""Bytes that are copied to measure how fast."""


def settings(dtype: str) -> tuple[Setting, ...]:
    """Return what is trained; `dtype` is what the card computes in by default."""
    kinds = tuple((dtype, base) for base in ("none", "nf4", "int8"))
    return (
        *(Setting(hidden=hidden, layers=layers, dtype=kind, quantization=base, sizes=SIZES)
          for kind, base in (*kinds, ("fp32", "none")) for hidden, layers in MODELS),
        *(Setting(hidden=512, layers=2, dtype=dtype, file=file, sizes=SIZES)
          for file in ("zero2_offload", "zero3", "zero3_offload_param")),
    )  # fmt: skip


def num_tellings() -> int:
    """Return how often `measure_card` tells."""
    return 3 + len(settings("bf16"))


def measure_card(tell: Tell) -> CardRecord:
    """Measure the first card that is visible. Raises ShoalError."""
    started = time.perf_counter()
    tell("loading libraries")
    name, driver = facts_of_card()
    import torch

    from training.pretrained import resolve_dtype

    if torch.version.cuda is None:
        raise ShoalError(
            f"PyTorch {torch.__version__} is built for CPUs alone. `shoal doctor` says which one fits here."
        )
    kinds = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
    dtype = kinds[resolve_dtype("auto", torch.device("cuda"))]
    tell(f"{name}: kernels, memory, speed")
    looked = look(dtype)
    with tempfile.TemporaryDirectory(prefix="shoal-calibrate-") as folder:
        models: Models = {}
        for hidden, layers in MODELS:
            model = Path(folder) / f"{hidden}-{layers}"
            models[hidden, layers] = (model, save_model(model, hidden, layers))
        looked["speed"]["disk read, GB/s"] = disk_speed(Path(folder) / f"{MODELS[-1][0]}-{MODELS[-1][1]}")
        threads = len(os.sched_getaffinity(0))
        ranks = Ranks(master_port=free_port(), num_threads=threads)
        rows = measure(settings(dtype), models, ranks, Path(folder), tell)
        costs = fit(rows, looked["product_costs"])
        tell("a small job")
        one = run_small(models, threads, ranks=1, jobs=1, folder=Path(folder), on_card=True)
        costs, rest = with_start(costs, models, one, None)
    return CardRecord(
        name=name, driver=driver, torch=version("torch"), date=date.today().isoformat(),
        num_threads=threads, seconds=time.perf_counter() - started, costs=costs, kernels=looked["kernels"],
        wrong=looked["wrong"], memory=looked["memory"], speed=looked["speed"],
        job={"expected_seconds": rest, "seconds": one.seconds, "bytes": float(one.memory_bytes)},
    )  # fmt: skip


def free_bytes() -> int:
    """Return what is free of the card, as NVML tells it: torch would make a context to ask."""
    import pynvml

    return int(pynvml.nvmlDeviceGetMemoryInfo(_handle()).free)


def _handle() -> Any:
    """Return NVML's handle of the one card that is visible, which the launcher names by its number."""
    import pynvml

    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetHandleByIndex(int(os.environ.get("CUDA_VISIBLE_DEVICES") or 0))


def facts_of_card() -> tuple[str, str]:
    """Return the card's name and its driver."""
    import pynvml

    handle = _handle()
    return str(pynvml.nvmlDeviceGetName(handle)), str(pynvml.nvmlSystemGetDriverVersion())


def look(dtype: str) -> dict[str, Any]:
    """Return errors of kernels, bytes beside tensors, and speeds; the first thing of this process on the card."""
    import torch

    from training.calibration.kernels import check_kernels, wrong_kernels
    from training.calibration.products import DTYPES, product_cost

    device, before = torch.device("cuda", 0), free_bytes()
    memory: dict[str, int] = {}

    def note(name: str) -> None:
        torch.cuda.empty_cache()
        memory[name] = before - free_bytes() - torch.cuda.memory_reserved(device)

    torch.zeros(1, device=device)
    note("context")
    products = {name: product_cost(name, "cuda", size=4096) for name in DTYPES}
    note("context and cuBLAS")
    kernels = check_kernels(device, DTYPES[dtype])
    note("context, cuBLAS and bitsandbytes")
    speed = {f"{name} products, TFLOP/s": 1e-12 / cost for name, cost in products.items()}
    return {
        "kernels": kernels, "wrong": wrong_kernels(kernels, DTYPES[dtype]), "memory": memory,
        "speed": speed | copy_speeds(device), "product_costs": products,
    }  # fmt: skip


def copy_speeds(device: Any, size: int = COPIED) -> dict[str, float]:
    """Return how fast the device is given bytes of host memory, and how long it takes to be given work."""
    import torch

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    found = {}
    for name in ("pinned", "pageable"):
        source = torch.empty(size, dtype=torch.uint8, pin_memory=name == "pinned" and device.type == "cuda")
        target = torch.empty(size, dtype=torch.uint8, device=device)
        target.copy_(source)
        wait()
        started = time.perf_counter()
        target.copy_(source, non_blocking=True)
        wait()
        found[f"host to card, {name}, GB/s"] = size / 1e9 / (time.perf_counter() - started)
    little = torch.zeros(1, device=device)
    wait()
    started = time.perf_counter()
    for _ in range(1000):
        little.add_(1)
    wait()
    found["launch, microseconds"] = (time.perf_counter() - started) * 1e3
    return found


def disk_speed(folder: Path) -> float:
    """Return how fast weights are read from a folder, in GB/s, their pages let go first."""
    total, seconds = 0, 0.0
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            began = time.perf_counter()
            while block := stream.read(16 * MIB):
                total += len(block)
            seconds += time.perf_counter() - began
    return total / 1e9 / seconds if seconds else 0.0
