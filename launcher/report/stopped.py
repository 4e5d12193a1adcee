"""What early stopping has ended, and what that saved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from training.result import RunResult

HEADER = ("job", "steps trained", "of", "epoch of the decision", "had", "needed", "card-hours saved (estimate)", "why")


def saved(results: Sequence[RunResult]) -> dict[str, Any] | None:
    """Return {"num_jobs", "num_steps", "steps_saved", "card_hours_saved"} of all stopped jobs; None where none was.

    Card-hours are an estimate, None where no speed is known of a job: its steps times its own mean time a step.
    """
    stopped = [result.stopped for result in results if result.status == "stopped early"]
    if not stopped:
        return None
    hours = [item["card_hours_saved"] for item in stopped]
    return {
        "num_jobs": len(stopped),
        "num_steps": sum(item["num_steps"] for item in stopped),
        "steps_saved": sum(item["steps_saved"] for item in stopped),
        "card_hours_saved": None if None in hours else sum(hours),
    }


def what_was_saved(report: dict[str, Any]) -> str:
    """Return what early stopping saved; empty where it has stopped nothing."""
    total = report.get("early_stopping")
    if not total:
        return ""
    one = total["num_jobs"] == 1
    text = (
        f"Early stopping ended {total['num_jobs']} hopeless job{'' if one else 's'}: {total['steps_saved']:,} of "
        f"{'its' if one else 'their'} {total['num_steps']:,} steps were not trained"
    )
    if total["card_hours_saved"] is not None:
        text += f", an estimated {hours(total['card_hours_saved'])} at {'its' if one else 'their'} own measured speed"
    return f"{text}. Validation alone decided."


def hours(value: float) -> str:
    """Return card-hours in the unit people read them in."""
    return f"{value:.1f} card-hours" if value >= 1 else f"{60 * value:.2g} card-minutes"


def stopped_rows(report: dict[str, Any]) -> list[list[Any]]:
    """Return the rows under HEADER, a stopped job each."""
    rows = []
    for job in report["jobs"]:
        if job["status"] == "stopped early":
            stopped, verdict = job["stopped"], job["stopped"]["verdict"]
            spared = stopped["card_hours_saved"]
            rows.append(
                [
                    job["name"], stopped["step"], stopped["num_steps"], f"{verdict['epoch']:g}",
                    f"{verdict['value']:.4f}", f"{verdict['needed']:.4f}", "" if spared is None else f"{spared:.3g}",
                    job["error"]["message"],
                ]
            )  # fmt: skip
    return rows
