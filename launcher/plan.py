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

from launcher.cards import local_sizes_gib
from launcher.expand import StudyJob
from launcher.folder import StudyFolder
from launcher.forecast import Forecast, forecasts
from launcher.report import group_name, varying_settings
from launcher.report_markdown import describe
from launcher.run import OUTPUTS, read_jobs
from training.errors import EXIT_FAILED

GIB = 2**30
SMALL = 0.005
"""GiB; causes below are not shown."""


@dataclass(frozen=True, kw_only=True)
class PlannedJob:
    """A job and what it needs."""

    job: StudyJob
    forecast: Forecast
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
            **asdict(self.forecast),
        }


def print_plan(study_file: Path, cards_gib: Sequence[float] | None, *, as_json: bool) -> int:
    """Print a study's jobs, what they need and where they fit; return the exit status, 1 where one fits nowhere.

    `cards_gib` are the cards to plan for; without them those of this machine, or the study's virtual ones.
    """
    study, jobs = read_jobs(study_file)
    if cards_gib:
        sizes, on_card = list(cards_gib), True
    else:
        local, virtual = local_sizes_gib(study.cards_gib)
        sizes, on_card = list(local.values()), not virtual
    console = Console(stderr=True)
    planned = []
    with console.status("forecasting memory ...") as status:
        for job, forecast in zip(jobs, forecasts([job.spec for job in jobs], on_card=on_card), strict=True):
            planned.append(plan_job(job, forecast, sizes, StudyFolder(OUTPUTS / study.name), on_card=on_card))
            status.update(f"forecasting memory: {len(planned)} of {len(jobs)} jobs")
    if as_json:
        print(json.dumps([item.to_dict() for item in planned], indent=2))
    else:
        _print_table(planned, sizes, on_card=on_card)
    return 0 if all(item.fits for item in planned) else EXIT_FAILED


def plan_job(
    job: StudyJob, forecast: Forecast, sizes: Sequence[float], folder: StudyFolder, *, on_card: bool
) -> PlannedJob:
    """Return where a job fits: cards of one size, enough of them for its ranks, each large enough for one."""
    needed = forecast.card_bytes if on_card else forecast.host_bytes
    fits = [
        size
        for size, number in sorted(Counter(sizes).items())
        if number >= job.written.num_ranks and size * GIB >= needed and not forecast.error
    ]
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
        forecast = max((item.forecast for item in items), key=lambda each: (each.card_bytes, each.host_bytes))
        memory = [forecast.card_bytes, forecast.host_bytes] if on_card else [forecast.host_bytes]
        to_run = sum(item.status == "to run" for item in items)
        table.add_row(
            group_name(items[0].job.name) or "all", ", ".join(str(item.job.written.seed) for item in items),
            str(items[0].job.written.num_ranks),
            *("refused" if forecast.error else f"{size / GIB:.2f}" for size in memory),
            ", ".join(f"{size:g} GiB" for size in items[0].fits) or "none",
            f"{to_run} to run" if to_run else "finished",
        )  # fmt: skip
    console.print(table)
    have = ", ".join(f"{number} x {size:g} GiB" for size, number in sorted(Counter(sizes).items()))
    kind = "cards" if on_card else "virtual cards, whose ranks run on the CPU"
    console.print(f"{len(planned)} jobs; memory is a rank's peak. Planned for {have} ({kind}).", highlight=False)
    for items in groups.values():
        item = items[0]
        name = group_name(item.job.name) or "all"
        varies = {key: value for key, value in settings[item.job.name].items() if key != "num_ranks"}
        text = f"\n{name} ({describe(varies)})\n  "
        text += item.forecast.error or _explain(item.forecast, on_card=on_card)
        if not item.fits and not item.forecast.error:
            text += f"\n  {_refusal(item, sizes, on_card=on_card)}"
        console.print(text, highlight=False, markup=False)


def _explain(forecast: Forecast, *, on_card: bool) -> str:
    """Return what a rank's memory is made of, the largest first."""
    causes = forecast.card if on_card else forecast.host
    parts = sorted(causes.items(), key=lambda item: -item[1])
    where = "card" if on_card else "host memory"
    return f"{where}: " + ", ".join(f"{cause} {size / GIB:.2f}" for cause, size in parts if size / GIB >= SMALL)


def _refusal(item: PlannedJob, sizes: Sequence[float], *, on_card: bool) -> str:
    """Return why a job fits nowhere, and what would help."""
    job, needed = item.job.written, item.forecast.card_bytes if on_card else item.forecast.host_bytes
    most = max(Counter(sizes).values(), default=0)
    if job.num_ranks > most:
        return f"It needs {job.num_ranks} cards of one size, and there are {most} at most: set fewer num_ranks."
    return (
        f"It needs {needed / GIB:.2f} GiB a rank and the largest card has {max(sizes):g}: set a smaller "
        "training.per_device_train_batch_size (and more gradient_accumulation_steps), "
        "training.gradient_checkpointing: true, model.quantization: nf4, or deepspeed: "
        "ds_configs/zero3_offload_param.json."
    )
