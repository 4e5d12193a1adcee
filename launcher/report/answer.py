"""The study's answer in a few sentences; nothing is called better or worse that the tests do not say."""

from __future__ import annotations

from collections import Counter
from typing import Any

from training.spec import MULTI_LABEL

METRIC_NAMES = {"accuracy": "accuracy", "macro_f1": "macro F1", "loss": "loss"}


def answer(report: dict[str, Any]) -> str:
    """Return the study's answer, a sentence or two for each data: the best setting, and whether a LLaMA is worth it."""
    if not report["best"]:
        return "No job has succeeded yet, so there is no answer."
    groups = [report["groups"][index] for index in report["best"]]
    many = len(groups) > 1
    return "\n\n".join((f"{group['data']}: " if many else "") + _answer_of(group, report) for group in groups)


def _answer_of(group: dict[str, Any], report: dict[str, Any]) -> str:
    """Return the answer for the data of one group, the best of its data."""
    metric = report["metric"]
    spread = f" ± {100 * group['accuracy_std']:.1f}" if group["accuracy_std"] is not None else ""
    seeds = f"{group['num_seeds']} seeds" if group["num_seeds"] > 1 else "one seed"
    rivals = [item for item in report["groups"] if _evaluated(item) == _evaluated(group)]
    among = f" among {len(rivals)} settings" if len(rivals) > 1 else ""
    lacking = group.get("num_stopped", 0)
    title = "No setting has all its seeds; the best of the rest" if lacking else "Best setting"
    text = (
        f"**{title}: {group['name']}** (chosen{among} by validation {METRIC_NAMES[metric]}, "
        f"{group[f'validation_{metric}_mean']:.4f}): {group['split']} {accuracy_name(group)} "
        f"{100 * group['accuracy_mean']:.1f}{spread} % over {seeds}"
    )
    all_seeds = group["num_seeds"] + lacking
    said = [f"{lacking} of its {all_seeds} seeds were stopped early, so this mean is too good."] if lacking else []
    sentences = [*said, *_verdict(group, report), *_runner_up(group, rivals, report)]
    if group["split"] == "test":
        sentences.append("The test split chose nothing.")
    else:
        sentences.append("There is no test split: the best was chosen on these texts, so it looks better than it is.")
    if group["num_seeds"] < 3:
        little = "One seed says nothing" if group["num_seeds"] == 1 else "Two seeds say little"
        sentences.append(f"{little} of the spread over seeds; run at least three.")
    if baseline := _best_baseline(group, report):
        text += f", against {100 * baseline['accuracy']:.1f} % for {baseline['name']}"
    return " ".join([f"{text}.", *sentences])


def accuracy_name(group: dict[str, Any]) -> str:
    """Return what accuracy is called: of texts with several labels, all must be right."""
    return "subset accuracy" if group.get("problem_type") == MULTI_LABEL else "accuracy"


def _verdict(group: dict[str, Any], report: dict[str, Any]) -> list[str]:
    """Return whether a LLaMA is worth it: only where the difference to the best baseline is real."""
    baseline = _best_baseline(group, report)
    if baseline is None:
        return []
    tested = _comparison(group, baseline["name"], report)
    if tested is None:
        points = 100 * (group["accuracy_mean"] - baseline["accuracy"])
        return [
            f"{points:+.1f} points, untested: predictions of one are not stored. Delete baselines.json and run the "
            "study again."
        ]
    if not tested["real"]:
        return [f"No real difference: {_measured(tested)}."]
    worth = "worth it" if tested["difference"] > 0 else "not worth it"
    return [f"A LLaMA is {worth} here: {_measured(tested)}."]


def _best_baseline(group: dict[str, Any], report: dict[str, Any]) -> dict[str, Any] | None:
    """Return the best baseline of a group's data: the one hardest to beat."""
    rivals = [item for item in report["baselines"] if item["sha256"] == group["sha256"]]
    return max(rivals, key=lambda item: float(item["accuracy"]), default=None)


def _runner_up(group: dict[str, Any], rivals: list[dict[str, Any]], report: dict[str, Any]) -> list[str]:
    """Return which settings are not really different from the best."""
    tested = [_comparison(group, item["name"], report) for item in rivals if item is not group]
    alike = [item["b"] for item in tested if item is not None and not item["real"]]
    if not alike:
        return []
    named = ", ".join(alike[:3]) + (f" and {len(alike) - 3} more" if len(alike) > 3 else "")
    return [f"No real difference to {named}."]


def _evaluated(group: dict[str, Any]) -> tuple[str, Any]:
    return group["split"], group["sha256"].get(group["split"])


def _comparison(group: dict[str, Any], rival: str, report: dict[str, Any]) -> dict[str, Any] | None:
    """Return the comparison of a group with a setting or baseline on the same rows."""
    found = (
        item
        for item in report["comparisons"]
        if (item["a"], item["b"], item["split"], item["sha256"]) == (group["name"], rival, *_evaluated(group))
    )
    return next(found, None)


def _measured(comparison: dict[str, Any]) -> str:
    """Return a difference in points with its interval and p-value."""
    low, high = comparison["interval"]
    return (
        f"{100 * comparison['difference']:+.1f} points (95 % interval {100 * low:+.1f} to {100 * high:+.1f}, "
        f"p = {p_value(comparison['p_holm'])} after Holm's correction)"
    )


def p_value(value: float) -> str:
    """Return a p-value as people write it."""
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"


def how_many_ran(report: dict[str, Any]) -> str:
    """Return how many jobs the report rests on."""
    counts = Counter(job["status"] for job in report["jobs"])
    stopped, cancelled = counts["stopped early"], counts["cancelled"]
    return (
        f"{counts['succeeded']} of {report['num_jobs']} jobs succeeded, {counts['failed']} failed, "
        + (f"{stopped} stopped early, " if stopped else "")
        + (f"{cancelled} cancelled, " if cancelled else "")
        + f"{report['num_jobs'] - len(report['jobs'])} not run."
    )


def code_that_was_run(report: dict[str, Any]) -> str:
    """Return which models' own code ran, where `trust_remote_code` let it; else nothing."""
    models = [job["settings"]["model"] for job in report["jobs"]]
    names = sorted({model["model_name_or_path"] for model in models if model["trust_remote_code"]})
    return f"trust_remote_code was on: Python code that came with {', '.join(names)} was run." if names else ""
