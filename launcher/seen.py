"""What finished jobs teach: each is kept beside its forecast, and `shoal calibrate --show` prints them by card."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from launcher.cards import GIB
from launcher.choose import Choice
from launcher.running import RunningJob
from training.calibration.record import kind_of, records
from training.calibration.seen import SeenJob, note, seen_jobs
from training.result import RunResult

MOST_LINES = 30
"""Jobs of a card that are listed, the newest; the summary is of all."""

DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
"""What a result calls a precision -> what a study does."""


def keep(running: RunningJob, choice: Choice, result: RunResult, study: str) -> None:
    """Keep a job that succeeded beside what was forecast of it."""
    first = running.placement.cards[0]
    memory, forecast = result.peak_memory, choice.forecast.memory
    on_card = not first.is_virtual
    went_on = bool(result.restarts or result.retries or running.resumes)
    note(
        SeenJob(
            time=round(time.time(), 3),
            card=first.name if on_card else "CPU",
            job=f"{study}/{result.name}",
            kind=kind_of(DTYPES.get(result.model.get("dtype", ""), "?"), str(result.model.get("quantization", "?"))),
            num_ranks=result.num_ranks,
            forecast_bytes=forecast.card_bytes if on_card else forecast.host_bytes,
            bytes=memory.get("gpu_bytes" if on_card else "host_bytes", 0),
            expected_seconds=round(running.placement.seconds, 2),
            seconds=0.0 if went_on else round(running.seconds, 2),
            time_was_measured=choice.is_measured,
            memory=memory,
        )
    )


def show() -> int:
    """Print records and jobs seen, per card; return the exit status."""
    console = Console()
    for record in records():
        console.print(
            f"{record.name} ({record.driver}), torch {record.torch}: measured on {record.date}", highlight=False
        )
    jobs = seen_jobs()
    if not jobs:
        console.print("No job has been seen yet: `shoal run` keeps those that succeed.", highlight=False)
    for card in sorted({job.card for job in jobs}):
        show_card(console, card, [job for job in jobs if job.card == card])
    return 0


def show_card(console: Console, card: str, jobs: list[SeenJob]) -> None:
    """Print the jobs of one kind of card."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for title in ("job", "ranks", "kind", "forecast GiB", "GiB", "expected s", "took s", "time"):
        table.add_column(title, overflow="fold")
    for job in jobs[-MOST_LINES:]:
        took = f"{job.seconds:.1f}" if job.seconds else "went on"
        source = "measured" if job.time_was_measured else "assumed"
        memory = (f"{job.forecast_bytes / GIB:.2f}", f"{job.bytes / GIB:.2f}")
        table.add_row(job.job, str(job.num_ranks), job.kind, *memory, f"{job.expected_seconds:.1f}", took, source)
    console.print(f"\n{card}: {len(jobs)} jobs seen", highlight=False)
    console.print(table)
    memory_line = spread(job.bytes / job.forecast_bytes for job in jobs if job.forecast_bytes)
    console.print(f"memory, measured over forecast: {memory_line}", highlight=False)
    for source, measured in (("measured", True), ("assumed", False)):
        some = [job for job in jobs if job.time_was_measured == measured and job.seconds and job.expected_seconds]
        if some:
            line = spread(job.seconds / job.expected_seconds for job in some)
            console.print(f"time, taken over expected by {source} costs: {line}", highlight=False)


def spread(ratios: Iterable[float]) -> str:
    """Return median and range of ratios."""
    found = sorted(ratios)
    if not found:
        return "not known"
    return f"median {statistics.median(found):.2f}, {found[0]:.2f} to {found[-1]:.2f}"
