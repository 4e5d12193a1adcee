"""tables/: the figures of the report as CSV, one file a table, for spreadsheets and notebooks."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

Row = dict[str, Any]

STOPPED = ("step", "num_steps", "steps_saved", "card_hours_saved")
"""Of RunResult.stopped, in jobs.csv."""


def csv_tables(report: dict[str, Any]) -> dict[str, str]:
    """Return file name -> content: leaderboard, jobs, per_class, confusion and comparisons.

    Shares are from 0 to 1 and unrounded, memory is in bytes, times are in seconds. A table without rows is left out.
    """
    tables = {
        "leaderboard.csv": list(_leaderboard(report)),
        "jobs.csv": [_job(job) for job in report["jobs"]],
        "per_class.csv": list(_per_class(report["jobs"])),
        "confusion.csv": list(_confusion(report["jobs"])),
        "comparisons.csv": list(_comparisons(report)),
    }
    return {name: _csv(rows) for name, rows in tables.items() if rows}


def _csv(rows: Sequence[Row]) -> str:
    """Return rows as CSV; columns in the order in which they first occur."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _ends(name: str, interval: Sequence[float] | None) -> Row:
    low, high = interval or (None, None)
    return {f"{name}_low": low, f"{name}_high": high}


def _leaderboard(report: dict[str, Any]) -> Iterator[Row]:
    """Yield settings and baselines."""
    for index, group in enumerate(report["groups"]):
        means = {key: value for key, value in group.items() if key.endswith(("_mean", "_std"))}
        intervals = group.get("interval", {})
        yield {
            "name": group["name"], "kind": "setting", "data": group["data"], "split": group["split"],
            "chosen": index in report["best"], "num_seeds": group["num_seeds"],
            "num_stopped": group.get("num_stopped", 0), **means,
            **_ends("accuracy", intervals.get("accuracy")), **_ends("macro_f1", intervals.get("macro_f1")),
            "settings": json.dumps(group["settings"], ensure_ascii=False),
        }  # fmt: skip
    for item in report["baselines"]:
        yield {
            "name": item["name"], "kind": "baseline", "data": item["data"], "split": item["split"],
            "accuracy_mean": item["accuracy"], "macro_f1_mean": item["macro_f1"], "seconds_mean": item.get("seconds"),
        }  # fmt: skip


def _job(job: Row) -> Row:
    """Return what a job reached and took, or why it failed."""
    row = {
        "job": job["name"], "status": job["status"], "seed": job["settings"].get("seed"), "num_ranks": job["num_ranks"],
        "cards": " ".join(job["placement"].get("cards", [])),
    }  # fmt: skip
    for split in ("validation", "test"):
        row |= {f"{split}_{name}": value for name, value in job[split].items()}
    row |= {name: value for name, value in job["train"].items() if not isinstance(value, (dict, list))}
    row |= {f"peak_{name}": value for name, value in job["peak_memory"].items()}
    row |= {f"forecast_{place}_bytes": sum(causes.values()) for place, causes in job["forecast"].items()}
    row |= {f"cost_{name}": value for name, value in job.get("cost", {}).items() if not isinstance(value, (dict, list))}
    row |= {f"stopped_{name}": job["stopped"][name] for name in STOPPED if job.get("stopped")}
    return row | {"error": job["error"].get("message", "")}


def _scored(jobs: Sequence[Row]) -> Iterator[tuple[Row, dict[str, Any]]]:
    """Yield the job and split of each set of scores, and the scores."""
    for job in jobs:
        for split, scores in (job.get("scores") or {}).items():
            yield {"job": job["name"], "split": split}, scores


def _per_class(jobs: Sequence[Row]) -> Iterator[Row]:
    for place, scores in _scored(jobs):
        yield from ({**place, **item} for item in scores["per_class"])


def _confusion(jobs: Sequence[Row]) -> Iterator[Row]:
    """Yield the cells that are not zero."""
    for place, scores in _scored(jobs):
        labels = [item["label"] for item in scores["per_class"]]
        for true, row in zip(labels, scores.get("confusion", []), strict=False):
            for predicted, count in zip(labels, row, strict=True):
                if count:
                    yield {**place, "label": true, "prediction": predicted, "count": count}


def _comparisons(report: dict[str, Any]) -> Iterator[Row]:
    for item in report.get("comparisons", []):
        plain = {name: value for name, value in item.items() if name != "interval"}
        yield plain | _ends("difference", item.get("interval"))
