"""What the charts need of a study folder besides the results: how jobs learnt, and which cards they held, and when."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EVENTS_FILE, PLACEMENTS_FILE = "events.jsonl", "placements.jsonl"

MAX_POINTS = 60
"""Of a curve: more than a chart of 330 units could show apart."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """How a job learnt; x is in epochs."""

    job: str
    loss: list[tuple[float, float]]
    """Mean training loss of the steps around each place."""
    validation: dict[str, list[tuple[float, float]]]
    """Metric -> its value at each evaluation."""


@dataclass(frozen=True, kw_only=True)
class Stay:
    """A job on one card, from when to when (seconds since 1970)."""

    job: str
    card: str
    start: float
    end: float
    open: bool = False
    """Whether no end was recorded: the launcher was killed, or the job still runs."""


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file of JSON lines that others append to; a line cut short by a crash is left out."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                item = json.loads(line)
            except ValueError:
                continue
            if isinstance(item, dict):
                yield item


def read_curve(folder: Path, job: str) -> Curve:
    """Return how a job learnt, from its events; a step that was run again after a restart counts once, as it last was.

    Empty where there are no events.
    """
    steps: dict[int, tuple[float, float]] = {}
    evaluations: dict[int, dict[str, Any]] = {}
    for event in json_lines(folder / EVENTS_FILE):
        if event.get("kind") == "step":
            steps[event["step"]] = (event["epoch"], event["loss"])
        elif event.get("kind") == "evaluation" and event.get("split") == "validation":
            evaluations[event["step"]] = event
    ordered = [evaluations[step] for step in sorted(evaluations)]
    validation = {
        metric: [(event["epoch"], event[metric]) for event in ordered if isinstance(event.get(metric), float)]
        for metric in ("accuracy", "macro_f1", "loss")
    }
    return Curve(job=job, loss=thinned([steps[step] for step in sorted(steps)]), validation=validation)


def thinned(points: Sequence[tuple[float, float]], most: int = MAX_POINTS) -> list[tuple[float, float]]:
    """Return at most `most` points, each the mean of as many neighbours; the x of the last stays."""
    if len(points) <= most:
        return list(points)
    means = []
    for index in range(most):
        part = points[len(points) * index // most : len(points) * (index + 1) // most]
        means.append((part[-1][0], sum(y for _, y in part) / len(part)))
    return means


def read_stays(root: Path) -> list[Stay]:
    """Return when each job held which card, in the order of their starts.

    A start without an end lasts until the job's next start, else until the last thing known of it or the study.
    """
    stays: list[Stay] = []
    begun: dict[str, dict[str, Any]] = {}
    last = 0.0
    for line in json_lines(root / PLACEMENTS_FILE):
        last = max(last, line["time"])
        earlier = begun.pop(line["job"], None)
        if earlier is not None:
            stays += _stays(earlier, line["time"], open_end=line["event"] == "start")
        if line["event"] == "start":
            begun[line["job"]] = line
    for job, line in begun.items():
        events = [event["time"] for event in json_lines(root / "jobs" / job / EVENTS_FILE) if "time" in event]
        stays += _stays(line, max([last, *events[-1:]]), open_end=True)
    return sorted(stays, key=lambda stay: (stay.start, stay.job))


def _stays(line: dict[str, Any], end: float, *, open_end: bool) -> list[Stay]:
    """Return one for each card of the job's ranks."""
    return [
        Stay(job=line["job"], card=card, start=line["time"], end=max(end, line["time"]), open=open_end)
        for card in dict.fromkeys(line["cards"])
    ]


def tracks(stays: Sequence[Stay]) -> dict[str, list[list[Stay]]]:
    """Return for each card its stays in as few tracks as none overlap in; cards in natural order."""
    cards: dict[str, list[list[Stay]]] = defaultdict(list)
    for stay in sorted(stays, key=lambda stay: stay.start):
        for track in cards[stay.card]:
            if track[-1].end <= stay.start:
                track.append(stay)
                break
        else:
            cards[stay.card].append([stay])
    return {card: cards[card] for card in sorted(cards, key=_natural)}


def _natural(card: str) -> tuple[str, int, str]:
    """Order "box:2" before "box:10"."""
    node, _, index = card.rpartition(":")
    return (node, int(index), "") if index.isdigit() else (card, 0, "")


@dataclass(frozen=True, kw_only=True)
class Clock:
    """Time in which somebody worked: pauses of the whole study are cut out."""

    pauses: list[tuple[float, float]]
    """(start, end) of each."""
    begin: float
    end: float

    def place(self, time: float) -> float:
        """Return the seconds from the beginning, without the pauses before."""
        return time - self.begin - sum(min(time, end) - start for start, end in self.pauses if start < time)

    @property
    def seconds(self) -> float:
        """From the beginning to the end."""
        return self.place(self.end)


def clock_of(stays: Sequence[Stay], *, least_pause: float = 60.0) -> Clock:
    """Return the time of these stays, which must be some; pauses shorter than `least_pause` seconds stay in."""
    ordered = sorted(stays, key=lambda stay: stay.start)
    pauses = []
    until = ordered[0].start
    for stay in ordered:
        if stay.start - until > least_pause:
            pauses.append((until, stay.start))
        until = max(until, stay.end)
    return Clock(pauses=pauses, begin=ordered[0].start, end=until)
