"""`shoal plan STUDY`: how a study's jobs would run, what they need and take, without Ray and without the cards."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from launcher.cards import GIB, Card, Node, local_cards
from launcher.choose import Choice
from launcher.expand import StudyJob
from launcher.folder import StudyFolder
from launcher.forecast import Planned, plan_jobs
from launcher.report.groups import group_name, varying_settings
from launcher.report.markdown_page import describe
from launcher.run import OUTPUTS, read_jobs
from training.errors import EXIT_FAILED, EXIT_USER_ERROR, UserError

SMALL = 0.005
"""GiB; causes below are not shown."""
MOST_LOST = 4
"""Settings that were not taken, of those shown."""


@dataclass(frozen=True, kw_only=True)
class PlannedJob:
    """A job and how it would run."""

    job: StudyJob
    planned: Planned
    status: str
    """finished, to run, refused (by the trainer, or since it fits nowhere), or not known: its forecast failed."""
    fits: tuple[int, ...]
    """Sizes in GiB of the cards that hold one of its ranks, of which there are enough."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for --json."""
        known: dict[str, Any] = {"job": self.job.name, "seed": self.job.written.seed, "status": self.status}
        if not isinstance(self.planned, Choice):
            return {**known, "fits_gib": [], "error": str(self.planned)}
        choice = self.planned
        return {
            **known,
            "fits_gib": list(self.fits),
            "error": choice.refusal,
            "setting": choice.setting.to_dict(),
            "expected_seconds": round(choice.seconds, 1),
            "card_gib": choice.asked.card_gib,
            "host_gib": choice.asked.host_gib,
            "lost": [{"setting": setting.to_dict(), "why": why} for setting, why in choice.lost],
            **asdict(choice.forecast.memory),
        }


def print_plan(study_file: Path, cards_gib: Sequence[float] | None, *, as_json: bool) -> int:
    """Print a study's jobs and how they would run; return the exit status, 2 where one is refused or fits nowhere.

    `cards_gib` are the cards to plan for, of a PC whose memory is not known; without them those of this machine, or the
    study's virtual ones.
    """
    study, jobs = read_jobs(study_file)
    local = local_cards(study.cards_gib)
    on_card = bool(cards_gib) or bool(local[0].uuid)
    host_gib = math.inf if cards_gib else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
    cards, nodes = _one_node(cards_gib or [card.size for card in local], host_gib)
    folder = StudyFolder(OUTPUTS / study.name)
    items = []
    with Console(stderr=True).status("planning ...") as status:
        for job, planned in plan_jobs(jobs, cards, nodes, on_card=on_card):
            fits = fitting_sizes(planned, cards) if isinstance(planned, Choice) else ()
            ended = folder.finished(job) or folder.stopped(job, study.early_stopping)
            runs = isinstance(planned, Choice) and planned.refusal is None
            refused = isinstance(planned, Choice | UserError)
            state = "finished" if ended else "to run" if runs else "refused" if refused else "not known"
            items.append(PlannedJob(job=job, planned=planned, status=state, fits=fits if runs else ()))
            status.update(f"planning: {len(items)} of {len(jobs)} jobs")
    items.sort(key=lambda item: [job.name for job in jobs].index(item.job.name))
    if as_json:
        print(json.dumps([item.to_dict() for item in items], indent=2))
    else:
        _print(items, cards, host_gib, on_card=on_card)
    found = {item.status for item in items}
    return EXIT_FAILED if "not known" in found else EXIT_USER_ERROR if "refused" in found else 0


def _one_node(sizes: Sequence[float], host_gib: float) -> tuple[list[Card], dict[str, Node]]:
    """Return cards of these sizes, on a node with so much memory."""
    cards = [
        Card(node_id="here", host="here", index=index, size=math.ceil(size), gib=float(size), num_threads=1)
        for index, size in enumerate(sizes)
    ]
    node = Node(node_id="here", host="here", address="", total_gib=host_gib, host_gib=host_gib, cores=len(cards))
    return cards, {"here": node}


def fitting_sizes(choice: Choice, cards: Sequence[Card]) -> tuple[int, ...]:
    """Return the sizes of the cards that hold a rank, of which there are enough."""
    enough = Counter(card.size for card in cards if card.gib >= choice.asked.card_gib)
    return tuple(sorted(size for size, number in enough.items() if number >= choice.asked.num_ranks))


def _print(items: Sequence[PlannedJob], cards: Sequence[Card], host_gib: float, *, on_card: bool) -> None:
    """Print the jobs, those that differ in their seed on one line, then what makes up their memory."""
    console = Console()
    varying = varying_settings({item.job.name: item.job.written.to_dict() for item in items})
    groups: dict[str, list[PlannedJob]] = {}
    for item in items:
        groups.setdefault(json.dumps(varying[item.job.name]), []).append(item)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    memory = ["card GiB", "host GiB"] if on_card else ["host GiB"]
    for title in ("jobs", "seeds", *memory, "about", "fits on", "status"):
        table.add_column(title, overflow="fold")
    for same in groups.values():
        table.add_row(*_cells(same, on_card=on_card))
    console.print(table)
    have = ", ".join(f"{number} x {size:g} GiB" for size, number in sorted(Counter(card.gib for card in cards).items()))
    kind = "cards" if on_card else "virtual cards, whose ranks run on the CPU"
    host = "a PC of any memory" if host_gib == math.inf else f"this PC's {host_gib:.0f} GiB of memory"
    jobs = f"{len(items)} job" + "s" * (len(items) != 1)
    console.print(
        f"{jobs}, planned for {have} ({kind}) and {host}. GiB are a rank's peak; times are rough.",
        highlight=False,
        soft_wrap=True,
    )
    for (first, *_), settings in zip(groups.values(), map(json.loads, groups), strict=True):
        console.print(f"\n{_explain(first, settings, on_card=on_card)}", highlight=False, markup=False, soft_wrap=True)


def _cells(same: Sequence[PlannedJob], *, on_card: bool) -> list[str]:
    """Return the table's line of jobs that differ in their seed."""
    first = same[0]
    open_jobs = Counter(item.status for item in same if item.status != "finished")
    name, seeds = group_name(first.job.name) or "all", ", ".join(str(item.job.written.seed) for item in same)
    status = ", ".join(f"{number} {state}" for state, number in open_jobs.items()) or "finished"
    if not isinstance(first.planned, Choice):
        return [name, seeds, *([""] if on_card else []), "", "", "none", status]
    choice = first.planned
    memory = [choice.asked.card_gib, choice.asked.host_gib] if on_card else [choice.asked.host_gib]
    return [
        name,
        seeds,
        *(f"{gib:.2f}" for gib in memory),
        _duration(choice.seconds),
        f"{', '.join(map(str, first.fits))} GiB" if first.fits else "none",
        status,
    ]


def _duration(seconds: float) -> str:
    """Return a time as people say it."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _explain(item: PlannedJob, settings: Mapping[str, Any], *, on_card: bool) -> str:
    """Return how a job runs, what a rank's memory is made of, the largest first, and why it runs with nothing else."""
    lines = [f"{group_name(item.job.name) or 'all'} ({describe(dict(settings))})"]
    if not isinstance(item.planned, Choice):
        return "\n  ".join([*lines, str(item.planned)])
    choice = item.planned
    memory = choice.forecast.memory
    parts = sorted((memory.card if on_card else memory.host).items(), key=lambda part: -part[1])
    shown = ", ".join(f"{cause} {size / GIB:.2f}" for cause, size in parts if size / GIB >= SMALL)
    lines.append(choice.refusal or f"runs with {choice.setting}")
    lines.append(f"{'card' if on_card else 'host memory'}, GiB: {shown}")
    lines += [f"not {setting}: {why}" for setting, why in choice.lost[:MOST_LOST]]
    if len(choice.lost) > MOST_LOST:
        lines.append(f"and {len(choice.lost) - MOST_LOST} more, slower or larger (--json has them)")
    return "\n  ".join(lines)
