"""A CPU measured as the card of virtual cards: ranks on all its cores, as when a study runs."""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

from training.calibration.costs import Quantities, seconds
from training.calibration.fit import Table, fit
from training.calibration.kernels import check_kernels, wrong_kernels
from training.calibration.material import save_model
from training.calibration.processes import Models, Tell, measure_alone, measure_together, preload
from training.calibration.products import product_cost
from training.calibration.record import MOST_RANKS, CardRecord, kind_of, this_cpu
from training.calibration.small_job import Taken, amounts_of, run_at_once, small_spec
from training.calibration.steps import Setting

MODELS = ((128, 6), (256, 2), (512, 2))
"""Hidden size and layers of what is trained."""
SMALL = (128, 6)
KINDS = tuple(itertools.product(("fp32", "bf16"), ("none", "nf4", "int8")))
ALONE = (
    *(Setting(hidden=hidden, layers=layers, dtype=dtype, quantization=quantization)
      for dtype, quantization in KINDS for hidden, layers in (MODELS if dtype == "fp32" else (SMALL, MODELS[-1]))),
    Setting(hidden=256, layers=2, file="zero2_offload"),
    Setting(hidden=256, layers=2, file="zero3"),
    Setting(hidden=128, layers=6, file="zero3", recomputes=True),
)  # fmt: skip
FEW = ((1, 16), (8, 32), (16, 64))
TOGETHER = (
    Setting(hidden=128, layers=6, num_ranks=2, sizes=FEW),
    Setting(hidden=512, layers=2, num_ranks=2, sizes=FEW, file="zero3"),
)
SHORT = (
    Setting(hidden=128, layers=6, sizes=FEW),
    Setting(hidden=256, layers=2, sizes=FEW),
    Setting(hidden=128, layers=6, sizes=FEW, quantization="nf4"),
    Setting(hidden=256, layers=2, sizes=FEW, file="zero3"),
)
"""Instead of `ALONE` where a rough idea is enough."""


def num_tellings(*, short: bool) -> int:
    """Return how often `measure_cpu` tells."""
    return 4 + len(SHORT if short else ALONE) + (0 if short else len(TOGETHER))


def measure_cpu(tell: Tell, *, short: bool) -> CardRecord:
    """Measure this machine's CPU. `tell` is told of each part before it begins. Raises ShoalError."""
    started = time.perf_counter()
    cores = len(os.sched_getaffinity(0))
    number = min(MOST_RANKS, cores)
    threads = cores // number
    tell("loading libraries")
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": str(threads)}
    preload()
    with tempfile.TemporaryDirectory(prefix="shoal-calibrate-") as folder:
        models: Models = {}
        for hidden, layers in MODELS:
            model = Path(folder) / f"{hidden}-{layers}"
            models[hidden, layers] = (model, save_model(model, hidden, layers))
        rows = measure_alone(SHORT if short else ALONE, models, threads, number, tell)
        if number > 1 and not short:
            rows += measure_together(TOGETHER, models, threads, number, tell)
        costs = fit(rows, {"fp32": product_cost("fp32")})
        tell("kernels, and a small job")
        kernels = check_kernels(torch.device("cpu"), torch.float32)
        one = run_small(models, threads, ranks=1, jobs=number, folder=Path(folder))
        tell("a small job of several ranks")
        two = run_small(models, threads, ranks=2, jobs=1, folder=Path(folder)) if number > 1 and not short else None
        costs, expected = with_start(costs, models, one, two)
    name, driver = this_cpu()
    return CardRecord(
        name=name, driver=driver, torch=version("torch"), date=date.today().isoformat(), num_threads=threads,
        seconds=time.perf_counter() - started, costs=costs,
        kernels=kernels, wrong=wrong_kernels(kernels, torch.float32),
        job={"expected_seconds": expected, "seconds": one.seconds, "bytes": float(one.memory_bytes)},
    )  # fmt: skip


def run_small(models: Models, threads: int, *, ranks: int, jobs: int, folder: Path, on_card: bool = False) -> Taken:
    """Run the small job so many times at once; return the mean time and the largest memory."""
    specs = []
    for number in range(jobs):
        place = folder / f"job-{ranks}-{number}"
        place.mkdir()
        specs.append(small_spec(models[SMALL][0], place, ranks))
    taken = run_at_once(specs, threads, on_card=on_card)
    mean = sum(each.seconds for each in taken) / len(taken)
    return Taken(seconds=mean, memory_bytes=max(each.memory_bytes for each in taken))


def with_start(costs: Table, models: Models, one: Taken, several: Taken | None) -> tuple[Table, float]:
    """Return the costs with what a job's start takes, which the small job took beyond all else, and that else."""
    of_job = costs[kind_of("fp32", "none")]
    folder, figures = models[SMALL]
    rest = [seconds(of_job, amounts_of(small_spec(folder, folder, ranks), figures)) for ranks in (1, 2)]
    start = max(0.0, one.seconds - rest[0])
    other = max(0.0, several.seconds - rest[1] - start) if several else 0.0
    begin = Quantities(starts=start, other_ranks=other)
    return {kind: replace(each) + begin for kind, each in costs.items()}, rest[0]
