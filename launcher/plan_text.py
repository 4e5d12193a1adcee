"""What `shoal plan` prints: a table of the jobs, then for each how it runs, what it needs, and why not otherwise."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from launcher.cards import GIB, Card
from launcher.choose import Choice, Lost
from launcher.expand import StudyJob
from launcher.fit import gib_text
from launcher.forecast import Planned
from launcher.report.groups import group_name, varying_settings
from launcher.report.markdown_page import describe

SMALL = 0.005
"""GiB; causes below are not shown."""
MOST_LINES = 6
"""Of a job, on settings that were not taken."""


@dataclass(frozen=True, kw_only=True)
class PlannedJob:
    """A job and how it would run."""

    job: StudyJob
    planned: Planned
    status: str
    """finished, to run, refused (by the trainer, or since it fits nowhere), or not known: its forecast failed."""
    fits: tuple[float, ...]
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
            "time_is_measured": choice.is_measured,
            "expected_card": choice.card.name if choice.card else "",
            "instead": [_way(other) for other in choice.instead],
            "card_gib": choice.asked.card_gib,
            "host_gib": choice.asked.host_gib,
            "dtype": choice.forecast.dtype,
            "lost": [{"setting": lost.setting.to_dict(), "why": lost.why} for lost in choice.lost],
            **asdict(choice.forecast.memory),
        }


def print_jobs(items: Sequence[PlannedJob], cards: Sequence[Card], host_gib: float, *, on_card: bool) -> None:
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
    kinds = Counter((card.gib, card.name and f"{card.kind}, ") for card in cards)
    have = "; ".join(f"{number} x {name}{gib_text(gib)} GiB" for (gib, name), number in sorted(kinds.items()))
    kind = "cards" if on_card else "virtual cards, whose ranks run on the CPU"
    host = "a PC of any memory" if host_gib == math.inf else f"this PC's {host_gib:.0f} GiB of memory"
    jobs = f"{len(items)} job" + "s" * (len(items) != 1)
    console.print(
        f"{jobs}, planned for {have} ({kind}) and {host}. GiB are a rank's peak; {times(items)}.",
        highlight=False,
        soft_wrap=True,
    )
    for (first, *_), settings in zip(groups.values(), map(json.loads, groups), strict=True):
        console.print(f"\n{_explain(first, settings, on_card=on_card)}", highlight=False, markup=False, soft_wrap=True)


def times(items: Sequence[PlannedJob]) -> str:
    """Return whether the times are by what was measured of the cards or CPU."""
    measured = {item.planned.is_measured for item in items if isinstance(item.planned, Choice)}
    if measured == {True}:
        return "times are by what was measured here, start and end included"
    return "times are assumed, not measured: rough (`shoal calibrate` measures this machine)"


def _cells(same: Sequence[PlannedJob], *, on_card: bool) -> list[str]:
    """Return the table's line of jobs that differ in their seed."""
    first = same[0]
    open_jobs = Counter(item.status for item in same if item.status != "finished")
    name, seeds = group_name(first.job.name) or "all", _ranges(sorted(item.job.written.seed for item in same))
    status = ", ".join(f"{number} {state}" for state, number in open_jobs.items()) or "finished"
    if not isinstance(first.planned, Choice):
        return [name, seeds, *([""] if on_card else []), "", "", "none", status]
    choice = first.planned
    memory = [choice.asked.card_gib, choice.asked.host_gib] if on_card else [choice.asked.host_gib]
    return [
        name,
        seeds,
        *(f"{gib:.2f}" for gib in memory),
        f"{_duration(choice.seconds)}, {choice.card}"
        if choice.card and choice.card.name
        else _duration(choice.seconds),
        f"{', '.join(map(gib_text, first.fits))} GiB" if first.fits else "none",
        status,
    ]


def _ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers as `0-4, 7`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


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
    lines.append(choice.refusal or _runs(choice))
    lines += [_runs_instead(other) for other in choice.instead]
    lines.append(f"{'card' if on_card else 'host memory'}, GiB: {shown}")
    return "\n  ".join([*lines, *why_not(choice)])


def _runs(choice: Choice) -> str:
    """Return how a job runs, its precision included."""
    quantization, dtype = choice.spec.model.quantization, choice.forecast.dtype
    base = f" on an {quantization} base" if quantization != "none" else ""
    zero = choice.spec.deepspeed.get("zero_optimization") or {} if isinstance(choice.spec.deepspeed, dict) else {}
    raised = (
        f"; ZeRO stage 1, not 0: {dtype} needs its fp32 copies"
        if dtype in ("bf16", "fp16") and not zero.get("stage")
        else ""
    )
    return f"runs in {dtype}{base} with {choice.setting}{raised}"


def _way(choice: Choice) -> dict[str, Any]:
    """Return how a job runs on cards of another precision, for --json."""
    return {
        "setting": choice.setting.to_dict(), "dtype": choice.forecast.dtype, "card_gib": choice.asked.card_gib,
        "host_gib": choice.asked.host_gib, "expected_seconds": round(choice.seconds, 1),
        "expected_card": choice.card.name if choice.card else "",
    }  # fmt: skip


def _runs_instead(choice: Choice) -> str:
    """Return the same in words."""
    needs = f"{choice.asked.card_gib:.2f} GiB of card and {choice.asked.host_gib:.2f} GiB of host memory"
    return f"or, on {choice.card}: {_runs(choice)}; {needs}, about {_duration(choice.seconds)}"


def why_not(choice: Choice) -> list[str]:
    """Return why a job runs with no other setting: for each DeepSpeed file and number of ranks, the nearest ones."""
    pairs: dict[tuple[int, str], list[Lost]] = {}
    for lost in choice.lost:
        pairs.setdefault(lost.setting.pair, []).append(lost)
    taken = None if choice.refusal else choice.setting.pair
    lines: list[str] = []
    for pair, alike in pairs.items():
        too_large, slower = [lost for lost in alike if lost.too_large], [lost for lost in alike if not lost.too_large]
        if too_large and not slower and pair != taken:  # not even the smallest fits
            least = min(too_large, key=lambda lost: lost.setting.smallness)
            if least.why.startswith("needs"):
                lines.append(f"not {least.setting}: {least.why}{_others(len(alike) - 1)}")
            elif not any(line.endswith(least.why) for line in lines):  # a reason that others share
                lines.append(f"not {least.setting}: {least.why}")
            continue
        lines += [f"not {first.setting}: {first.why}" for first in (*too_large[:1], *slower[:1])]
    if len(lines) > MOST_LINES:
        lines[MOST_LINES:] = [f"and {len(lines) - MOST_LINES} more, slower or larger (--json has them)"]
    return lines


def _others(number: int) -> str:
    """Return that the other settings of a file and a number of ranks need no less."""
    return f"; {number} of the same file and ranks no less" if number else ""
