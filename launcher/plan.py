"""`shoal plan STUDY`: the jobs a study would run and the memory they need, without Ray and without the cards."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from launcher.cards import GIB, local_cards
from launcher.expand import StudyJob
from launcher.fit import explain, needed
from launcher.folder import StudyFolder
from launcher.forecast import forecasts
from launcher.report import group_name, varying_settings
from launcher.report_markdown import describe
from launcher.run import OUTPUTS, read_jobs
from training.errors import EXIT_FAILED, UserError
from training.forecast.memory_estimate import JobForecast, MemoryEstimate

SMALL = 0.005
"""GiB; causes below are not shown."""


@dataclass(frozen=True, kw_only=True)
class PlannedJob:
    """A job and what it needs."""

    job: StudyJob
    forecast: MemoryEstimate | UserError
    """What a rank needs, or what the trainer refuses the job for."""
    status: str
    """finished, or to run."""
    fits: tuple[float, ...]
    """Sizes in GiB of the cards that hold one of its ranks, of which there are enough."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for --json."""
        written = self.job.written
        return {
            "job": written.name,
            "seed": written.seed,
            "num_ranks": written.num_ranks,
            "status": self.status,
            "fits_gib": list(self.fits),
            **({"error": str(self.forecast)} if isinstance(self.forecast, UserError) else asdict(self.forecast)),
        }


def print_plan(study_file: Path, cards_gib: Sequence[float] | None, *, as_json: bool) -> int:
    """Print a study's jobs, what they need and where they fit; return the exit status, 1 where one fits nowhere.

    `cards_gib` are the cards to plan for; without them those of this machine, or the study's virtual ones.
    """
    study, jobs = read_jobs(study_file)
    if cards_gib:
        sizes, on_card = list(cards_gib), True
    else:
        local = local_cards(study.cards_gib)
        sizes, on_card = [float(card.size) for card in local], bool(local[0].uuid)
    console = Console(stderr=True)
    planned = []
    with console.status("forecasting memory ...") as status:
        for job, forecast in zip(jobs, forecasts([job.spec for job in jobs], on_card=on_card), strict=True):
            memory = forecast.memory if isinstance(forecast, JobForecast) else forecast
            planned.append(plan_job(job, memory, sizes, StudyFolder(OUTPUTS / study.name), on_card=on_card))
            status.update(f"forecasting memory: {len(planned)} of {len(jobs)} jobs")
    if as_json:
        print(json.dumps([item.to_dict() for item in planned], indent=2))
    else:
        _print_table(planned, sizes, on_card=on_card)
    return 0 if all(item.fits for item in planned) else EXIT_FAILED


def plan_job(
    job: StudyJob, forecast: MemoryEstimate | UserError, sizes: Sequence[float], folder: StudyFolder, *, on_card: bool
) -> PlannedJob:
    """Return where a job fits: cards of one size, enough of them for its ranks, each large enough for one."""
    fits: list[float] = []
    if isinstance(forecast, MemoryEstimate):
        size_needed, num_ranks = needed(forecast, on_card=on_card), job.written.num_ranks
        numbers = sorted(Counter(sizes).items())
        fits = [size for size, number in numbers if number >= num_ranks and size * GIB >= size_needed]
    status = "finished" if folder.finished(job) else "to run"
    return PlannedJob(job=job, forecast=forecast, status=status, fits=tuple(fits))


def _print_table(planned: Sequence[PlannedJob], sizes: Sequence[float], *, on_card: bool) -> None:
    """Print the jobs, those that differ in their seed on one line, then what makes up their memory."""
    console = Console()
    settings = varying_settings({item.job.name: item.job.written.to_dict() for item in planned})
    groups: dict[str, list[PlannedJob]] = {}
    for item in planned:
        groups.setdefault(json.dumps(settings[item.job.name]), []).append(item)
    table = Table(pad_edge=False)
    for title in ("jobs", "seeds", "ranks", *(["card GiB"] if on_card else []), "host GiB", "fits cards of", "status"):
        table.add_column(title, overflow="fold")
    for items in groups.values():
        table.add_row(*_cells(items, on_card=on_card))
    console.print(table)
    have = ", ".join(f"{number} x {size:g} GiB" for size, number in sorted(Counter(sizes).items()))
    kind = "cards" if on_card else "virtual cards, whose ranks run on the CPU"
    console.print(f"{len(planned)} jobs; memory is a rank's peak. Planned for {have} ({kind}).", highlight=False)
    for first, *_ in groups.values():
        varies = {key: value for key, value in settings[first.job.name].items() if key != "num_ranks"}
        text = f"\n{group_name(first.job.name) or 'all'} ({describe(varies)})\n  "
        if isinstance(first.forecast, UserError):
            text += str(first.forecast)
        else:
            text += _explain(first.forecast, on_card=on_card)
            if not first.fits:
                card_gib = needed(first.forecast, on_card=on_card) / GIB
                text += f"\n  {explain(first.job.written, card_gib, sizes)}"
        console.print(text, highlight=False, markup=False)


def _cells(items: Sequence[PlannedJob], *, on_card: bool) -> list[str]:
    """Return the table's line of jobs that differ in their seed."""
    first, forecast = items[0], items[0].forecast
    if isinstance(forecast, MemoryEstimate):
        needs = [forecast.card_bytes, forecast.host_bytes] if on_card else [forecast.host_bytes]
        memory = [f"{size / GIB:.2f}" for size in needs]
    else:
        memory = ["refused"] * (2 if on_card else 1)
    to_run = sum(item.status == "to run" for item in items)
    return [
        group_name(first.job.name) or "all",
        ", ".join(str(item.job.written.seed) for item in items),
        str(first.job.written.num_ranks),
        *memory,
        ", ".join(f"{size:g} GiB" for size in first.fits) or "none",
        f"{to_run} to run" if to_run else "finished",
    ]


def _explain(forecast: MemoryEstimate, *, on_card: bool) -> str:
    """Return what a rank's memory is made of, the largest first."""
    causes = forecast.card if on_card else forecast.host
    parts = sorted(causes.items(), key=lambda item: -item[1])
    where = "card" if on_card else "host memory"
    return f"{where}: " + ", ".join(f"{cause} {size / GIB:.2f}" for cause, size in parts if size / GIB >= SMALL)
