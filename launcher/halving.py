"""Which settings are hopeless: asynchronous successive halving (ASHA; Li et al. 2020, arXiv:1810.05934).

A rung is a number of epochs: the grace period, `reduction_factor` times it, and so on. The first evaluation of a job at
or after a rung is kept there. A setting goes on if it is among the best 1 / `reduction_factor` of those kept so far, by
the quantile of Ray Tune's AsyncHyperBandScheduler; so nobody waits for anybody, and the first at a rung always goes on.

Jobs that differ in their seed only are one setting: its value at a rung is the mean of its seeds there, they are not
compared with one another, and they are stopped together, those that wait included: fewer seeds than asked for say
nothing of the setting. The last setting that is left is never stopped.

Pure: the same calls give the same answers. It does not drive Ray's own scheduler, which would add ray[tune] and knows
nothing of seeds; for settings of one seed the tests compare each decision with it.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from launcher.study import EarlyStopping

TOLERANCE = 1e-4
"""Of epochs, which events have rounded to four places."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """What a job is among the others."""

    setting: str
    """The same for jobs that differ in their seed only."""
    arena: str
    """The same for jobs that may be compared."""
    metric: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Why a setting is stopped."""

    job: str
    """Whose evaluation decided."""
    rung: float
    """In epochs."""
    epoch: float
    """Of that evaluation."""
    metric: str
    value: float
    """Of the setting: the mean of the seeds that have come so far."""
    needed: float
    num_rivals: int
    """Settings it was compared with."""
    num_seeds: int
    """That have come so far."""


class Halving:
    """What was reached at each rung, and which settings were stopped for it."""

    def __init__(self, rule: EarlyStopping, members: Mapping[str, Member]) -> None:
        self.rule, self.members = rule, members
        self.rungs: dict[str, dict[int, dict[str, dict[str, float]]]] = defaultdict(dict)
        """Arena -> number of the rung -> setting -> job -> value."""
        self.stopped: dict[str, Verdict] = {}
        """Setting -> why."""
        self.num_comparisons = 0

    def seeds_of(self, setting: str) -> list[str]:
        """Return the jobs of a setting."""
        return [job for job, member in self.members.items() if member.setting == setting]

    def record(self, job: str, epoch: float, metrics: Mapping[str, float]) -> int | None:
        """Keep an evaluation at the highest rung reached; None where that is none, or has one of this job."""
        member = self.members[job]
        number = self._highest_rung(epoch)
        if number is None:
            return None
        values = self.rungs[member.arena].setdefault(number, {}).setdefault(member.setting, {})
        if job in values:
            return None
        values[job] = metrics[member.metric]
        return number

    def decide(self, job: str, epoch: float, metrics: Mapping[str, float]) -> Verdict | None:
        """Keep an evaluation; return why its setting is to be stopped, and None where it goes on.

        One that was stopped before stays so: a seed may have been added to it.
        """
        member = self.members[job]
        if member.setting in self.stopped:
            return self.stopped[member.setting]
        number = self.record(job, epoch, metrics)
        if number is None:
            return None
        rung = self.rungs[member.arena][number]
        sign = -1.0 if member.metric == "loss" else 1.0
        values = {setting: sign * statistics.fmean(seeds.values()) for setting, seeds in rung.items()}
        own = values.pop(member.setting)
        rivals = [value for value in values.values() if not math.isnan(value)]
        needed = cutoff(rivals, self.rule.reduction_factor)
        self.num_comparisons += needed is not None
        if needed is None or own >= needed or not self._others_left(member):
            return None
        verdict = Verdict(
            job=job, rung=self._epochs(number), epoch=epoch, metric=member.metric, value=sign * own,
            needed=sign * needed, num_rivals=len(values), num_seeds=len(rung[member.setting]),
        )  # fmt: skip
        self.stopped[member.setting] = verdict
        return verdict

    def _others_left(self, member: Member) -> bool:
        """Whether another setting that was compared goes on, or has come to its end."""
        seen = {setting for rung in self.rungs[member.arena].values() for setting in rung}
        return bool(seen - self.stopped.keys() - {member.setting})

    def _epochs(self, number: int) -> float:
        return self.rule.grace_epochs * float(self.rule.reduction_factor**number)

    def _highest_rung(self, epoch: float) -> int | None:
        """Return the number of the highest rung at or before `epoch`; None within the grace period."""
        number = -1
        while self._epochs(number + 1) <= epoch + TOLERANCE:
            number += 1
        return number if number >= 0 else None


def cutoff(values: Sequence[float], reduction_factor: int) -> float | None:
    """Return what the best 1 / `reduction_factor` of the values reach, interpolated as numpy.percentile does.

    None of no values.
    """
    if not values:
        return None
    ordered = sorted(values)
    below, rest = divmod((len(ordered) - 1) * (reduction_factor - 1), reduction_factor)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * rest / reduction_factor


def arenas_with_rivals(members: Iterable[Member]) -> set[str]:
    """Return the arenas in which there is more than one setting."""
    settings = defaultdict(set)
    for member in members:
        settings[member.arena].add(member.setting)
    return {arena for arena, names in settings.items() if len(names) > 1}
