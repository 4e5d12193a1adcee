"""What the page is made of: the content of report.json and what charts need besides, read from study folders."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.report.charts import NUM_STYLES
from launcher.report.examples import Example, read_examples
from launcher.report.groups import place
from launcher.report.study_files import Curve, Stay, read_curve

MAX_CURVES = 40
"""Jobs whose curves are read and drawn: more lines cannot be told apart."""

Group = dict[str, Any]
Job = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Texts of one evaluated data."""

    hardest: list[Example] = field(default_factory=list)
    mistakes: list[Example] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class PageMaterial:
    """All that the page shows."""

    report: dict[str, Any]
    folders: Mapping[str, Path]
    """Job -> its run folder, as commands name it."""
    stays: Sequence[Stay] = ()
    curves: Sequence[Curve] = ()
    """Of the best groups' jobs first."""
    examples: Mapping[int, Examples] = field(default_factory=dict)
    """Index of the best group of a data -> its texts."""

    def jobs(self, status: str) -> list[Job]:
        """Return the jobs of one status."""
        return [job for job in self.report["jobs"] if job["status"] == status]

    def job(self, name: str) -> Job:
        """Return a job by its name."""
        return next(job for job in self.report["jobs"] if job["name"] == name)

    def chosen(self, group: Group) -> Job:
        """Return the job of a group to use: the best on validation, by the study's metric."""
        metric = self.report["metric"]
        sign = -1 if metric == "loss" else 1
        jobs = [self.job(name) for name in group["jobs"]]
        return max(jobs, key=lambda job: sign * job["validation"][metric])

    def data_name(self, group: Group) -> str:
        """Return the name of a group's data where the study has several, to put beside a heading; else nothing."""
        return f": {group['data']}" if len(self.report["best"]) > 1 else ""

    def styles(self) -> dict[str, int | None]:
        """Return the style of each job that succeeded: that of its group, the same in all charts; None from the ninth.

        The grey that None stands for is told apart by labels alone.
        """
        order = [group for groups in rivals(self.report) for group in groups]
        return {
            name: style if style < NUM_STYLES else None for style, group in enumerate(order) for name in group["jobs"]
        }


def rivals(report: dict[str, Any]) -> list[list[Group]]:
    """Return the groups of each evaluated data, by validation, the best first; the data in the order of `best`."""
    by_data: dict[str, list[Group]] = defaultdict(list)
    for group in report["groups"]:
        by_data[evaluated(group)].append(group)
    firsts = [evaluated(report["groups"][index]) for index in report["best"]]
    return [sorted(by_data[key], key=lambda group: place(group, report["metric"])) for key in firsts]


def evaluated(group: Group) -> str:
    """Return what names the rows a group was evaluated on."""
    return str(group["sha256"].get(group["split"], ""))


def read_material(report: dict[str, Any], folders: Mapping[str, Path], stays: Sequence[Stay]) -> PageMaterial:
    """Read what the page shows besides `report`; `folders` names the run folder of each job."""
    plain = PageMaterial(report=report, folders=folders)
    curves = [read_curve(folders[name], name) for name in _in_turn(rivals(report))[:MAX_CURVES]]
    examples = {}
    for index, groups in zip(report["best"], rivals(report), strict=True):
        chosen = plain.chosen(report["groups"][index])
        found = read_examples(folders, chosen["name"], _in_turn([groups]), groups[0]["split"])
        examples[index] = Examples(hardest=found[0], mistakes=found[1])
    kept = [curve for curve in curves if curve.loss or any(curve.validation.values())]
    return PageMaterial(report=report, folders=folders, stays=stays, curves=kept, examples=examples)


def _in_turn(data: Sequence[Sequence[Group]]) -> list[str]:
    """Return the jobs of all groups, the first of each group first."""
    groups = [group["jobs"] for groups in data for group in groups]
    longest = max(map(len, groups), default=0)
    return [jobs[turn] for turn in range(longest) for jobs in groups if turn < len(jobs)]
