"""From what a study folder holds to the content of report.json. Nothing is trained or evaluated again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from launcher.folder import Baselines, StudyFolder
from launcher.report.comparison import Comparison, Side, compare_all
from launcher.report.groups import Group, build_groups, by_validation, evaluated_data, varying_settings
from launcher.report.multi_label import multi_label_scores, multi_label_sums_of
from launcher.report.scores import scores, sums_of
from launcher.report.stopped import saved
from training.errors import UserError
from training.predictions import Predictions
from training.result import RunResult

Report = dict[str, Any]
"""The content of report.json; see `build_report`."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What the study folder holds beside results."""

    predictions: Mapping[str, Mapping[str, Predictions]] = field(default_factory=dict)
    """Job -> split -> predictions."""
    of_baselines: Sequence[Predictions | None] = ()
    """One for each baseline; None where it has none."""
    adapter_bytes: Mapping[str, int] = field(default_factory=dict)
    """Job -> size of its adapter."""


def read_stored(folder: StudyFolder, results: Sequence[RunResult], baselines: Sequence[dict[str, Any]]) -> Stored:
    """Return what the folder holds of these jobs and baselines beside their results."""
    succeeded = [result.name for result in results if result.status == "succeeded"]
    return Stored(
        predictions={job: folder.read_predictions(job) for job in succeeded},
        of_baselines=[folder.read_baseline(baseline) for baseline in baselines],
        adapter_bytes={job: folder.adapter_bytes(job) for job in succeeded},
    )


def current(baselines: Baselines, results: Sequence[RunResult]) -> list[dict[str, Any]]:
    """Return the baselines of the data the results are of; all there are while there is no result."""
    rows = [item for items in baselines.values() for item in items]
    used = [result.data["sha256"] for result in results if result.data]
    return [item for item in rows if item["sha256"] in used] if used else rows


def build_report(
    study: str,
    results: Sequence[RunResult],
    baselines: Sequence[dict[str, Any]],
    stored: Stored | None = None,
    *,
    num_jobs: int,
) -> Report:
    """Return the report.

    {"study", "num_jobs", "metric", "selection": {"metric", "split", "num_tried" (settings), "num_jobs"},
    "early_stopping" (`stopped.saved`), "best" (for each evaluated data, the index of the group that validation
    chooses), "groups" (`build_groups`), "comparisons" (`compare_all`, each with "data", "split" and "sha256" of its
    rows), "baselines" (of baselines.json, each with "scores"), "jobs": [RunResult.to_dict() with "scores" (split ->
    `scores.scores`) and "cost" (`_cost`)]}.
    """
    stored = stored or Stored()
    groups = build_groups(study, results, stored.predictions)
    metrics = {result.settings["training"]["metric_for_best_model"] for result in results}
    metric = metrics.pop() if len(metrics) == 1 else "macro_f1"
    ranking = by_validation(groups, metric)
    varying = varying_settings({result.name: result.settings for result in results})
    tried = {str(settings) for settings in varying.values()}
    of_baselines = list(stored.of_baselines) or [None] * len(baselines)
    return {
        "study": study,
        "num_jobs": num_jobs,
        "metric": metric,
        "selection": {"metric": metric, "split": "validation", "num_tried": len(tried), "num_jobs": len(results)},
        "early_stopping": saved(results),
        "best": [indices[0] for indices in ranking],
        "groups": groups,
        "comparisons": [
            comparison
            for indices in ranking
            for comparison in _comparisons([groups[index] for index in indices], baselines, of_baselines, stored)
        ],
        "baselines": [
            {**item, "scores": _scores(predictions) if predictions else None}
            for item, predictions in zip(baselines, of_baselines, strict=True)
        ],
        "jobs": [
            {
                **result.to_dict(),
                "scores": {
                    split: _scores(predictions)
                    for split, predictions in stored.predictions.get(result.name, {}).items()
                },
                "cost": _cost(result, stored.adapter_bytes.get(result.name)),
            }
            for result in results
        ],
    }


def _scores(predictions: Predictions) -> dict[str, Any]:
    if predictions.is_multi_label:
        return multi_label_scores(multi_label_sums_of(predictions), predictions.label_names)
    return scores(sums_of(predictions), predictions.label_names)


def _comparisons(
    groups: Sequence[Group],
    baselines: Sequence[dict[str, Any]],
    of_baselines: Sequence[Predictions | None],
    stored: Stored,
) -> list[Comparison]:
    """Compare the groups of one data, best first, and the best with the baselines of the same rows."""
    split, rows = evaluated_data(groups[0])
    if not rows:  # nothing tells whether these are the same texts
        return []
    of_groups = [[stored.predictions.get(job, {}).get(split) for job in group["jobs"]] for group in groups]
    rivals = [
        (item["name"], predictions)
        for item, predictions in zip(baselines, of_baselines, strict=True)
        if item["split"] == split and item["sha256"].get(split) == rows
    ]
    sides = [_side(group["name"], there) for group, there in zip(groups, of_groups, strict=True)]
    against = [_side(name, [predictions], is_random=False) for name, predictions in rivals]
    compared = compare_all(
        [side for side in sides if side is not None], sides[0], [side for side in against if side is not None]
    )
    return [{**item, "data": groups[0]["data"], "split": split, "sha256": rows} for item in compared]


def _side(name: str, seeds: Sequence[Predictions | None], *, is_random: bool = True) -> Side | None:
    """Return what predictions of the same texts got right; None where some are not stored."""
    there = [predictions for predictions in seeds if predictions is not None]
    if len(there) < len(seeds):
        return None
    if len({tuple(predictions.ids) for predictions in there}) > 1:
        raise UserError(f"predictions of {name} are of different texts, though its jobs evaluated the same. Run again.")
    correct = np.stack([predictions.correct for predictions in there], axis=1)
    return Side(name=name, correct=correct.astype(np.float64), is_random=is_random)


def _cost(result: RunResult, adapter_bytes: int | None) -> dict[str, Any]:
    """Return what a job took; None for what is not known of it.

    {"seconds" (of training), "samples_per_second", "card_hours" (ranks times seconds), "gpu_hours" (the same; None on
    the CPU), "energy_joules" (of its GPUs while training), "peak_gpu_bytes", "peak_host_bytes" (the largest of a rank),
    "forecast_gpu_bytes", "forecast_host_bytes" (of a rank), "shipped_bytes" (the adapter's)}.
    """
    seconds = result.train.get("seconds")
    hours = result.num_ranks * seconds / 3600 if seconds is not None else None
    on_gpu = result.model.get("device", "cpu") != "cpu"
    return {
        "seconds": seconds,
        "samples_per_second": result.train.get("samples_per_second"),
        "card_hours": hours,
        "gpu_hours": hours if on_gpu else None,
        "energy_joules": result.train.get("energy_joules"),
        "peak_gpu_bytes": result.peak_memory.get("gpu_bytes") or None,
        "peak_host_bytes": result.peak_memory.get("host_bytes"),
        "forecast_gpu_bytes": sum(result.forecast.get("card", {}).values()) or None,
        "forecast_host_bytes": sum(result.forecast.get("host", {}).values()) or None,
        "shipped_bytes": adapter_bytes or None,
    }
