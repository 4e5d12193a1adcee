"""report.md: the answer first, then the figures it rests on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from launcher.check_text import markdown_section

METRIC_NAMES = {"accuracy": "accuracy", "macro_f1": "macro F1", "loss": "loss"}


def render_markdown(report: dict[str, Any]) -> str:
    """Return the text of report.md for the content of report.json."""
    jobs = report["jobs"]
    succeeded = [job for job in jobs if job["status"] == "succeeded"]
    failed = [job for job in jobs if job["status"] == "failed"]
    sections = [f"# Study {report['study']}", answer(report)]
    sections.append(
        f"{len(succeeded)} of {report['num_jobs']} jobs succeeded, {len(failed)} failed, "
        f"{report['num_jobs'] - len(jobs)} not run."
    )
    if report["groups"]:
        sections += ["## Settings", _groups(report)]
    if report["baselines"]:
        sections += ["## Baselines", _baselines(report["baselines"])]
    if report.get("data_checks"):
        sections += ["## Data check", markdown_section(report["data_checks"])]
    if succeeded:
        sections += ["## Jobs", _jobs(succeeded)]
    retried = [job for job in jobs if job.get("retries")]
    if retried:
        sections += ["## Out of memory", _retries(retried)]
    restarted = [job for job in jobs if job.get("restarts")]
    if restarted:
        sections += ["## Went on after a failure", _restarts(restarted)]
    if failed:
        sections += ["## Failures", *(_failure(job) for job in failed)]
    if succeeded:
        sections += ["## Data", _data(succeeded), "## Versions and hardware", _versions(succeeded)]
    return "\n\n".join(sections) + "\n"


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
    text = (
        f"**Best setting: {group['name']}** (by validation {METRIC_NAMES[metric]}, "
        f"{group[f'validation_{metric}_mean']:.4f}): {group['split']} accuracy "
        f"{100 * group['accuracy_mean']:.1f}{spread} % over {seeds}"
    )
    rivals = [item for item in report["baselines"] if item["sha256"] == group["sha256"]]
    if not rivals:
        return f"{text}."
    baseline = max(rivals, key=lambda item: float(item["accuracy"]))
    points = 100 * (group["accuracy_mean"] - baseline["accuracy"])
    noise = 100 * (group["accuracy_std"] or 0.0)
    if abs(points) <= noise:
        verdict = f"No clear difference: {points:+.1f} points are within the spread of the seeds."
    elif points > 0:
        verdict = f"A LLaMA is worth it here: {points:+.1f} points."
    else:
        verdict = f"A LLaMA is not worth it here: {points:+.1f} points."
    if group["num_seeds"] == 1:
        verdict += " One seed says nothing of the spread; run at least three."
    return f"{text}, against {100 * baseline['accuracy']:.1f} % for {baseline['name']}. {verdict}"


def describe(settings: dict[str, Any]) -> str:
    """Return what varies as `r 8, quantization nf4`; report.json has the whole keys."""
    return ", ".join(f"{key.split('.')[-1]} {_plain(value)}" for key, value in settings.items()) or "the only one"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _percent(mean: float | None, std: float | None = None) -> str:
    if mean is None:
        return ""
    return f"{100 * mean:.1f}" + (f" ± {100 * std:.1f}" if std is not None else "")


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table; a bar within a cell would end it."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _groups(report: dict[str, Any]) -> str:
    """Return the table of settings, the best first."""
    sign = 1 if report["metric"] == "loss" else -1
    rows = [
        [
            group["name"],
            group["num_seeds"],
            _percent(group["validation_accuracy_mean"], group["validation_accuracy_std"]),
            _percent(group["validation_macro_f1_mean"], group["validation_macro_f1_std"]),
            group["split"],
            _percent(group["accuracy_mean"], group["accuracy_std"]),
            _percent(group["macro_f1_mean"], group["macro_f1_std"]),
            _percent(group["untrained_validation_accuracy_mean"]),
            describe(group["settings"]),
        ]
        for group in sorted(report["groups"], key=lambda item: sign * item[f"validation_{report['metric']}_mean"])
    ]
    header = (
        "setting", "seeds", "validation accuracy %", "validation macro F1 %", "evaluated on", "accuracy %",
        "macro F1 %", "untrained validation accuracy %", "what varies",
    )  # fmt: skip
    note = "Mean ± sample standard deviation over seeds. Ordered by validation; the test split chooses nothing."
    return f"{_table(header, rows)}\n\n{note}"


def _baselines(baselines: Sequence[dict[str, Any]]) -> str:
    rows = [
        [item["name"], item["data"], item["split"], _percent(item["accuracy"]), _percent(item["macro_f1"])]
        for item in baselines
    ]
    return _table(("baseline", "data", "evaluated on", "accuracy %", "macro F1 %"), rows)


def _jobs(jobs: Sequence[dict[str, Any]]) -> str:
    """Return the table of jobs that succeeded."""
    rows = []
    for job in jobs:
        memory, train = job["peak_memory"], job["train"]
        rows.append(
            [
                job["name"],
                job["settings"]["seed"],
                job["num_ranks"],
                _percent(job["validation"]["accuracy"]),
                _percent(job["test"].get("accuracy")),
                _percent(job["test"].get("macro_f1")),
                train.get("steps", ""),
                f"{train['seconds']:.0f}" if "seconds" in train else "",
                f"{train['samples_per_second']:.1f}" if "samples_per_second" in train else "",
                " ".join(job["placement"].get("cards", [])),
                _against_forecast(memory.get("gpu_bytes", 0), job["forecast"].get("card", {})),
                _against_forecast(memory.get("host_bytes", 0), job["forecast"].get("host", {})),
            ]
        )
    header = (
        "job", "seed", "ranks", "validation accuracy %", "test accuracy %", "test macro F1 %", "steps", "seconds",
        "samples/s", "cards", "peak GPU GiB", "peak host GiB",
    )  # fmt: skip
    note = (
        "Peak memory is the largest of any rank; in brackets what was forecast and reserved. A GPU's peak is that of "
        "its tensors, the forecast holds CUDA's context and the allocator's gaps too."
    )
    return f"{_table(header, rows)}\n\n{note}"


def _against_forecast(measured: int, forecast: dict[str, int]) -> str:
    """Return a peak in GiB with its forecast by cause; empty where that memory was not used."""
    if not measured:
        return ""
    return f"{measured / 2**30:.2f}" + (f" ({sum(forecast.values()) / 2**30:.2f})" if forecast else "")


def _retries(jobs: Sequence[dict[str, Any]]) -> str:
    """Return where jobs ran out of memory and what they went on with; the global batch stayed."""
    rows = [
        [
            job["name"], f"{retry['phase']}, after step {retry['step']}",
            ", ".join(f"{name} {old} → {new}" for name, (old, new) in retry["changes"].items()),
        ]
        for job in jobs
        for retry in job["retries"]
    ]  # fmt: skip
    return _table(("job", "in", "went on with"), rows)


def _restarts(jobs: Sequence[dict[str, Any]]) -> str:
    """Return what jobs died of and went on after, from their newest checkpoint."""
    return _table(("job", "what happened"), [[job["name"], reason] for job in jobs for reason in job["restarts"]])


def _failure(job: dict[str, Any]) -> str:
    """Return what is known of a failed job."""
    tail = job["error"].get("log_tail", "").strip()
    text = f"### {job['name']}\n\n{job['error']['message']}"
    # Indented, so that no line of a log can end the block.
    return text + ("\n\n" + "\n".join(f"    {line}" for line in tail.splitlines()) if tail else "")


def _data(jobs: Sequence[dict[str, Any]]) -> str:
    """Return the facts of each distinct data the jobs used."""
    distinct = {json.dumps(job["data"], sort_keys=True): job["data"] for job in jobs}
    tables = [
        _table(("fact", "value"), [[key, _plain(value)] for key, value in facts.items()]) for facts in distinct.values()
    ]
    return "\n\n".join(tables)


def _versions(jobs: Sequence[dict[str, Any]]) -> str:
    """Return the packages and devices of the jobs."""
    versions = sorted({f"{name} {version}" for job in jobs for name, version in job["versions"].items()})
    devices = sorted({str(job["model"].get("device", "unknown")) for job in jobs})
    return f"{', '.join(versions)}.\n\nDevices: {', '.join(devices)}."
