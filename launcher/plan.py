"""`shoal plan STUDY`: the jobs a study would run, without Ray."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from launcher.cards import local_sizes_gib
from launcher.folder import StudyFolder
from launcher.report import varying_settings
from launcher.report_markdown import describe
from launcher.run import OUTPUTS, read_jobs


def print_plan(study_file: Path) -> int:
    """Print a study's jobs, what tells them apart, and which are finished; return the exit status."""
    study, jobs = read_jobs(study_file)
    folder = StudyFolder(OUTPUTS / study.name)
    console = Console()
    settings = varying_settings({job.name: job.written.to_dict() for job in jobs})
    table = Table(pad_edge=False)
    for title in ("job", "seed", "ranks", "what varies", "status"):
        table.add_column(title, overflow="fold")
    for job in jobs:
        status = "finished" if folder.finished(job) else "to run"
        table.add_row(job.name, str(job.written.seed), str(job.written.num_ranks), describe(settings[job.name]), status)
    console.print(table)
    cards, _ = local_sizes_gib(study.cards_gib)
    sizes = ", ".join(f"{gib:g} GiB" for gib in cards.values())
    console.print(f"{len(jobs)} jobs, a card a rank. Cards of this machine: {len(cards)} ({sizes})", highlight=False)
    widest = max(jobs, key=lambda job: job.written.num_ranks)
    most = max(Counter(cards.values()).values(), default=0)
    if widest.written.num_ranks > most:
        console.print(
            f"{widest.name} needs {widest.written.num_ranks} cards of one size, and this machine has {most}: it wants "
            "a cluster, or a smaller num_ranks.",
            highlight=False,
        )
    return 0
