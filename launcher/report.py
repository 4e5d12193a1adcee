"""From the results of a study to its report: groups of jobs that differ in their seed only, beside the baselines."""

from __future__ import annotations

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.folder import Baselines, StudyFolder
from launcher.report_markdown import render_markdown
from training.result import RunResult, write_json

Report = dict[str, Any]
"""The content of report.json; see `build_report`."""

METRICS = ("accuracy", "macro_f1")
NOT_SETTINGS = ("name", "seed", "output_dir", "resume_from_checkpoint")


def write_report(folder: StudyFolder) -> Path:
    """Write report.json and report.md from what the study folder holds; return the path of report.md."""
    name, jobs = folder.read_study()
    results = folder.read_results(jobs)
    baselines = current(folder.read_baselines(), results)
    report = build_report(name, results, baselines, num_jobs=len(jobs))
    report["data_checks"] = list(folder.read_data_checks().values())
    write_json(folder.root / "report.json", report)
    path = folder.root / "report.md"
    temporary = path.with_name(".report.md.tmp")
    temporary.write_text(render_markdown(report), encoding="utf-8")
    temporary.replace(path)
    return path


def current(baselines: Baselines, results: Sequence[RunResult]) -> list[dict[str, Any]]:
    """Return the baselines of the data the results are of; all there are while there is no result."""
    rows = [item for items in baselines.values() for item in items]
    used = [result.data["sha256"] for result in results if result.data]
    return [item for item in rows if item["sha256"] in used] if used else rows


def build_report(
    study: str, results: Sequence[RunResult], baselines: Sequence[dict[str, Any]], *, num_jobs: int
) -> Report:
    """Return the report.

    {"study", "num_jobs", "jobs": [RunResult.to_dict()],
    "groups": [{"name", "settings" (what varies), "jobs", "num_seeds",
    "split" (test, or validation where there is no test), "accuracy_mean", "accuracy_std", "macro_f1_mean", ...,
    "validation_accuracy_mean", ..., "data", "sha256"}], "best" (for each evaluated data, the index of the group that
    validation chooses), "metric", "baselines"}; `write_report` adds "data_checks"
    ([{"data", "check"}]). Standard deviations are the sample's (n - 1), null for one seed.
    """
    varying = varying_settings({result.name: result.settings for result in results})
    members: dict[str, list[RunResult]] = defaultdict(list)
    for result in results:
        if result.status == "succeeded":
            members[json.dumps(varying[result.name])].append(result)
    groups = [_group(study, json.loads(settings), jobs) for settings, jobs in members.items()]
    metrics = {result.settings["training"]["metric_for_best_model"] for result in results}
    metric = metrics.pop() if len(metrics) == 1 else "macro_f1"
    return {
        "study": study,
        "num_jobs": num_jobs,
        "metric": metric,
        "best": _best(groups, metric),
        "groups": groups,
        "baselines": list(baselines),
        "jobs": [result.to_dict() for result in results],
    }


def varying_settings(jobs: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return for each job (name -> JobSpec.to_dict()) the settings in which jobs differ, by dotted key."""
    flat = {name: _flatten(settings) for name, settings in jobs.items()}
    keys = [key for key in next(iter(flat.values()), {}) if key not in NOT_SETTINGS]
    varying = [key for key in keys if len({json.dumps(item[key], sort_keys=True) for item in flat.values()}) > 1]
    return {name: {key: settings[key] for key in varying} for name, settings in flat.items()}


def _flatten(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings by dotted key; DeepSpeed's stay together, whether a file's name or a mapping."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and key != "deepspeed":
            flat |= {f"{key}.{inner}": item for inner, item in value.items()}
        else:
            flat[key] = value
    return flat


def group_name(job: str) -> str:
    """Return what the names of jobs that differ in their seed only have in common; empty where it is nothing."""
    return re.sub(r"-?seed\d+$", "", job)


def _group(study: str, settings: dict[str, Any], jobs: list[RunResult]) -> dict[str, Any]:
    """Return the figures of jobs that differ in their seed only."""
    split = "test" if all(job.test for job in jobs) else "validation"
    group: dict[str, Any] = {
        "name": group_name(jobs[0].name) or study,
        "settings": settings,
        "jobs": [job.name for job in jobs],
        "num_seeds": len(jobs),
        "split": split,
        "data": jobs[0].data.get("source", ""),
        "sha256": jobs[0].data.get("sha256", {}),
    }
    for metric in METRICS:
        group |= _mean_and_std(metric, [getattr(job, split)[metric] for job in jobs])
    for metric in (*METRICS, "loss"):
        group |= _mean_and_std(f"validation_{metric}", [job.validation[metric] for job in jobs])
    group |= _mean_and_std(
        "untrained_validation_accuracy",
        [job.untrained_validation["accuracy"] for job in jobs if "accuracy" in job.untrained_validation],
    )
    group |= _mean_and_std("seconds", [job.train["seconds"] for job in jobs if "seconds" in job.train])
    return group


def _mean_and_std(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """Return the mean and the sample standard deviation; None where there is none."""
    return {
        f"{name}_mean": statistics.fmean(values) if values else None,
        f"{name}_std": statistics.stdev(values) if len(values) > 1 else None,
    }


def _best(groups: Sequence[dict[str, Any]], metric: str) -> list[int]:
    """Return, for each evaluated data, the group with the best mean on validation: the test split chooses nothing."""
    sign = -1 if metric == "loss" else 1
    rivals: dict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        rivals[group["sha256"].get(group["split"], "")].append(index)
    return [
        max(indices, key=lambda index: sign * groups[index][f"validation_{metric}_mean"]) for indices in rivals.values()
    ]
