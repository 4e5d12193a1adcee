"""One small real job, in fresh processes from their start to their end, as `training/main.py` runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from training.calibration.costs import Quantities, Shape, job_amounts
from training.calibration.material import save_texts
from training.errors import ShoalError
from training.forecast.memory_estimate import Work
from training.ranks import Ranks, free_port
from training.spec import DataSpec, JobSpec, ModelSpec, TrainingSpec

CHECKOUT = Path(__file__).resolve().parents[2]
ROWS, EVALUATED_ROWS, WORDS = 96, 32, 31
"""Texts to train on and to evaluate, and the words of each; with <s> they have 32 tokens."""
TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What a job took."""

    seconds: float
    """From the start of its processes to the end of the last."""
    memory_bytes: int
    """The peak of its card, or of a rank's host memory where it has none."""


def small_spec(model: Path, folder: Path, num_ranks: int) -> JobSpec:
    """Return the job and write its texts to `folder`."""
    for name, rows in (("train", ROWS), ("validation", EVALUATED_ROWS)):
        save_texts(folder / f"{name}.jsonl", rows, WORDS, seed=rows)
    return JobSpec(
        model=ModelSpec(model_name_or_path=str(model), dtype="fp32"),
        data=DataSpec(
            train_file=str(folder / "train.jsonl"), validation_file=str(folder / "validation.jsonl"), max_seq_length=32
        ),
        training=TrainingSpec(per_device_train_batch_size=8 // num_ranks, num_train_epochs=1),
        num_ranks=num_ranks,
        output_dir=str(folder / "out"),
    )  # fmt: skip


def amounts_of(spec: JobSpec, figures: Work) -> Quantities:
    """Return what a rank of the small job does; `figures` are its model's."""
    tokens, evaluations = WORDS + 1, 2
    evaluated = (evaluations + 1) * EVALUATED_ROWS
    work = replace(
        figures, tokens=ROWS * tokens, pairs=ROWS * tokens**2, evaluated_tokens=evaluated * tokens,
        evaluated_pairs=evaluated * tokens**2, steps=ROWS // 8, evaluations=evaluations,
    )  # fmt: skip
    shape = Shape(
        work=work, quantization="none", dtype="fp32", stage=1, num_ranks=spec.num_ranks, recomputes=False,
        offloads_optimizer=False, offloads_base=False,
    )  # fmt: skip
    return job_amounts(spec, shape)


def run_at_once(specs: Sequence[JobSpec], threads: int, *, on_card: bool) -> list[Taken]:
    """Run jobs at the same time, each rank with so many threads; return what each took. Raises ShoalError."""
    started = time.perf_counter()
    jobs = [_start(spec, threads, on_card=on_card) for spec in specs]
    taken = []
    try:
        for spec, ranks in zip(specs, jobs, strict=True):
            statuses = [rank.wait(TIMEOUT_SECONDS) for rank in ranks]
            elapsed = time.perf_counter() - started
            result = Path(spec.output_dir) / "result.json"
            if any(statuses) or not result.exists():
                raise ShoalError(f"the small job failed: {_last_line(Path(spec.output_dir).with_suffix('.log'))}")
            memory = json.loads(result.read_text(encoding="utf-8"))["peak_memory"]
            taken.append(Taken(seconds=elapsed, memory_bytes=memory["gpu_bytes"] or memory["host_bytes"]))
    except subprocess.TimeoutExpired:
        raise ShoalError(f"the small job did not end within {TIMEOUT_SECONDS:.0f} s") from None
    finally:
        for rank in (rank for ranks in jobs for rank in ranks if rank.poll() is None):
            rank.kill()
    return taken


def _start(spec: JobSpec, threads: int, *, on_card: bool) -> list[subprocess.Popen[bytes]]:
    """Start the ranks of a job."""
    folder = Path(spec.output_dir)
    job = folder.with_suffix(".yaml")
    job.write_text(yaml.safe_dump(spec.to_dict()), encoding="utf-8")
    port = free_port()
    here = {"OMP_NUM_THREADS": str(threads)} | (
        {} if on_card else {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    )
    command = [sys.executable, str(CHECKOUT / "training" / "main.py"), "--job", str(job)]
    ranks = [
        Ranks(
            rank=rank, world_size=spec.num_ranks, local_rank=rank, local_world_size=spec.num_ranks, master_port=port,
            num_threads=threads,
        ).environment()
        for rank in range(spec.num_ranks)
    ]  # fmt: skip
    with folder.with_suffix(".log").open("ab") as log:
        return [
            subprocess.Popen(command, env={**os.environ, **here, **rank}, stdout=log, stderr=log, cwd=CHECKOUT)
            for rank in ranks
        ]


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
