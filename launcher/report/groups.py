"""Groups of jobs that differ in their seed only: what varies between them, their figures, the best by validation."""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from launcher.report.intervals import SEEDS, TEXTS, Interval, interval_of_mean, interval_of_share, intervals_of_model
from launcher.report.scores import confusion_of
from training.predictions import Predictions
from training.result import RunResult
from training.spec import SINGLE_LABEL

Group = dict[str, Any]
"""See `build_groups`."""
Stored = Mapping[str, Mapping[str, Predictions]]
"""Job -> split -> what was predicted."""

METRICS = ("accuracy", "macro_f1")
NOT_SETTINGS = ("name", "seed", "output_dir", "resume_from_checkpoint")


def build_groups(study: str, results: Sequence[RunResult], stored: Stored) -> list[Group]:
    """Return the groups of the jobs that succeeded.

    {"name", "settings" (what varies), "jobs", "num_seeds", "num_stopped" (seeds stopped early: the means lack them),
    "split" (test, or validation where there is no test),
    "accuracy_mean", "accuracy_std", "macro_f1_mean", ..., "interval": {"accuracy", "macro_f1"} (95 %, [low, high]),
    "interval_method", "validation_accuracy_mean", ..., "validation_interval", "data", "sha256", "problem_type"}. Where
    texts have several labels, accuracy is of all labels of a text, and macro F1 has no interval of one seed. Standard
    deviations are the sample's (n - 1), None for one seed; an interval is None for one seed without stored predictions.
    """
    varying = varying_settings({result.name: result.settings for result in results})
    members: dict[str, list[RunResult]] = defaultdict(list)
    num_stopped: Counter[str] = Counter()
    for result in results:
        settings = json.dumps(varying[result.name])
        if result.status == "succeeded":
            members[settings].append(result)
        num_stopped[settings] += result.status == "stopped early"
    return [
        {**_group(study, json.loads(settings), jobs, stored), "num_stopped": num_stopped[settings]}
        for settings, jobs in members.items()
    ]


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
    return re.sub(r"[-/]?seed\d+$", "", job)


def _group(study: str, settings: dict[str, Any], jobs: list[RunResult], stored: Stored) -> Group:
    """Return the figures of jobs that differ in their seed only."""
    split = "test" if all(job.test for job in jobs) else "validation"
    group: Group = {
        "name": group_name(jobs[0].name) or study,
        "settings": settings,
        "jobs": [job.name for job in jobs],
        "num_seeds": len(jobs),
        "split": split,
        "data": jobs[0].data.get("source", ""),
        "sha256": jobs[0].data.get("sha256", {}),
        "problem_type": jobs[0].data.get("problem_type", SINGLE_LABEL),
    }
    for metric in METRICS:
        group |= _mean_and_std(metric, [getattr(job, split)[metric] for job in jobs])
    group["interval"], group["interval_method"] = _interval(jobs, split, stored)
    for metric in (*METRICS, "loss"):
        group |= _mean_and_std(f"validation_{metric}", [job.validation[metric] for job in jobs])
    group["validation_interval"], _ = _interval(jobs, "validation", stored)
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


def _interval(jobs: Sequence[RunResult], split: str, stored: Stored) -> tuple[dict[str, Interval | None], str]:
    """Return the interval of each of METRICS, and by which method."""
    if len(jobs) > 1:
        return {metric: interval_of_mean([getattr(job, split)[metric] for job in jobs]) for metric in METRICS}, SEEDS
    predictions = stored.get(jobs[0].name, {}).get(split)
    if predictions is None:
        return dict.fromkeys(METRICS), ""
    if predictions.is_multi_label:
        return {"accuracy": interval_of_share(predictions.correct), "macro_f1": None}, TEXTS
    return dict(intervals_of_model(confusion_of(predictions))), TEXTS


def evaluated_data(group: Group) -> tuple[str, str]:
    """Return what can be compared: the split and a hash of its rows. The same rows as validation were chosen by."""
    return group["split"], group["sha256"].get(group["split"], "")


def by_validation(groups: Sequence[Group], metric: str) -> list[list[int]]:
    """Return, for each evaluated data, the indices of its groups, best first.

    The test split chooses nothing.
    """
    rivals: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        rivals[evaluated_data(group)].append(index)
    return [sorted(indices, key=lambda index: place(groups[index], metric)) for indices in rivals.values()]


def place(group: Group, metric: str) -> tuple[bool, float]:
    """Return what orders groups, the best first: by validation, and last those whose means lack seeds."""
    sign = 1 if metric == "loss" else -1
    return group.get("num_stopped", 0) > 0, sign * group[f"validation_{metric}_mean"]


def seeds(group: Group) -> str:
    """Return over how many seeds a group's means are, and how many they lack."""
    return str(group["num_seeds"]) + (f" ({group['num_stopped']} stopped)" if group.get("num_stopped") else "")
