"""report.md: the answer first, then the figures it rests on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from launcher.check_text import markdown_section
from launcher.report.answer import accuracy_name, answer, code_that_was_run, how_many_ran, p_value
from launcher.report.groups import place, seeds
from launcher.report.stopped import HEADER, stopped_rows, what_was_saved

MOST_COMPARISONS = 40
"""Rows of that table; report.json has all."""


def render_markdown(report: dict[str, Any]) -> str:
    """Return the text of report.md for the content of report.json."""
    jobs = report["jobs"]
    succeeded = [job for job in jobs if job["status"] == "succeeded"]
    failed = [job for job in jobs if job["status"] == "failed"]
    sections = [f"# Study {report['study']}", answer(report)]
    sections.append(how_many_ran(report))
    if saved := what_was_saved(report):
        sections.append(saved)
    if trusted := code_that_was_run(report):
        sections.append(f"**{trusted}**")
    if report["groups"]:
        sections += ["## Settings", _groups(report)]
    if report["comparisons"]:
        sections += ["## Which differences are real", _comparisons(report["comparisons"])]
    if report["baselines"]:
        sections += ["## Baselines", _baselines(report["baselines"])]
    for group in (report["groups"][index] for index in report["best"]):
        sections += _best_job(group, jobs)
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
    if stopped := stopped_rows(report):
        sections += ["## Stopped early", _table(HEADER, stopped)]
    if failed:
        sections += ["## Failures", *(_failure(job) for job in failed)]
    if succeeded:
        sections += ["## Data", _data(succeeded), "## Versions and hardware", _versions(succeeded)]
    return "\n\n".join(sections) + "\n"


def describe(settings: dict[str, Any]) -> str:
    """Return what varies as `r 8, quantization nf4`; report.json has the whole keys."""
    return ", ".join(f"{key.split('.')[-1]} {plain(value)}" for key, value in settings.items()) or "the only one"


def plain(value: Any) -> str:
    """Return a setting or fact as people write it: text without quotes, anything else as JSON."""
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
    rows = [
        [
            group["name"],
            seeds(group),
            _percent(group["validation_accuracy_mean"], group["validation_accuracy_std"]),
            _percent(group["validation_macro_f1_mean"], group["validation_macro_f1_std"]),
            group["split"],
            _percent(group["accuracy_mean"], group["accuracy_std"]),
            _range(group["interval"]["accuracy"]),
            _percent(group["macro_f1_mean"], group["macro_f1_std"]),
            _range(group["interval"]["macro_f1"]),
            _percent(group["untrained_validation_accuracy_mean"]),
            describe(group["settings"]),
        ]
        for group in sorted(report["groups"], key=lambda group: place(group, report["metric"]))
    ]
    header = (
        "setting", "seeds", "validation accuracy %", "validation macro F1 %", "evaluated on", "accuracy %", "95 %",
        "macro F1 %", "95 %", "untrained validation accuracy %", "what varies",
    )  # fmt: skip
    methods = ", ".join(sorted({group["interval_method"] for group in report["groups"]} - {""}))
    note = "Mean ± sample standard deviation over seeds. Ordered by validation; the test split chooses nothing."
    note += f" 95 % intervals: {methods}." if methods else ""
    if any(accuracy_name(group) != "accuracy" for group in report["groups"]):
        note += " Accuracy of texts with several labels is of subsets: all labels of a text must be right."
    return f"{_table(header, rows)}\n\n{note}"


def _range(interval: Sequence[float] | None) -> str:
    return f"{100 * interval[0]:.1f} – {100 * interval[1]:.1f}" if interval else ""


def _comparisons(comparisons: Sequence[dict[str, Any]]) -> str:
    """Return the table of what was compared with what."""
    rows = [
        [
            item["a"],
            item["b"],
            f"{100 * item['difference']:+.1f}",
            _range(item["interval"]),
            item["test"],
            p_value(item["p_value"]),
            p_value(item["p_holm"]),
            f"{item['effect_size']:+.2f}, {item['effect']}",
            "**yes**" if item["real"] else "no",
        ]
        for item in comparisons[:MOST_COMPARISONS]
    ]
    header = ("this", "against", "points", "95 %", "test", "p", "p, Holm", "Cohen's h", "real")
    note = (
        "Accuracy on the same texts. Real: p below 0.05 after Holm's correction for all comparisons of the data. "
        "McNemar's test and its interval (paired bootstrap over texts) are about the two models trained; the t test is "
        "about the settings, whatever seed."
    )
    if len(comparisons) > MOST_COMPARISONS:
        note += f" {len(comparisons) - MOST_COMPARISONS} more are in report.json."
    return f"{_table(header, rows)}\n\n{note}"


def _baselines(baselines: Sequence[dict[str, Any]]) -> str:
    """Return the table of baselines with what they cost."""
    rows = []
    for item in baselines:
        cost = item.get("cost", {})
        rows.append(
            [
                item["name"],
                item["data"],
                item["split"],
                _percent(item["accuracy"]),
                _percent(item["macro_f1"]),
                f"{cost['seconds']:.2f}" if cost else "",
                _size(cost.get("shipped_bytes")),
            ]
        )
    header = ("baseline", "data", "evaluated on", "accuracy %", "macro F1 %", "seconds of fitting", "to ship")
    return _table(header, rows)


def _size(num_bytes: int | None) -> str:
    """Return a size in the unit people read it in; empty where it is not known."""
    if not num_bytes:
        return ""
    return f"{num_bytes / 2**20:.1f} MiB" if num_bytes >= 2**20 else f"{num_bytes / 2**10:.1f} KiB"


def _best_job(group: dict[str, Any], jobs: Sequence[dict[str, Any]]) -> list[str]:
    """Return what one job of the best setting does with each class: the first seed's, chosen by nothing."""
    job = next(job for job in jobs if job["name"] == group["jobs"][0])
    scores = job["scores"].get(group["split"])
    if scores is None:
        return []
    rows = [
        [item["label"], *(f"{100 * item[name]:.1f}" for name in ("precision", "recall", "f1")), item["support"]]
        for item in scores["per_class"]
    ]
    figures = {
        "balanced_accuracy": "balanced accuracy", "micro_f1": "micro F1", "weighted_f1": "weighted F1",
        "samples_f1": "F1 by text", "map": "mean average precision", "mcc": "MCC", "log_loss": "log loss",
        "brier": "Brier score", "ece": "calibration error (ECE)",
    }  # fmt: skip
    if "confusion" in scores:  # one label a text: micro F1 is the accuracy
        del figures["micro_f1"]
    known = {what: scores[name] for name, what in figures.items() if scores.get(name) is not None}
    line = ", ".join(f"{what} {value:.3f}" for what, value in known.items())
    table = _table(("class", "precision %", "recall %", "F1 %", "texts"), rows)
    return [f"## Classes: {job['name']} on {group['split']}", table, f"{line[0].upper()}{line[1:]}."]


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
                _hours(job["cost"]["card_hours"]),
                _size(job["cost"]["shipped_bytes"]),
            ]
        )
    header = (
        "job", "seed", "ranks", "validation accuracy %", "test accuracy %", "test macro F1 %", "steps", "seconds",
        "samples/s", "cards", "peak GPU GiB", "peak host GiB", "card hours", "to ship",
    )  # fmt: skip
    note = (
        "Peak memory is the largest of any rank; in brackets what was forecast and reserved. A GPU's peak is that of "
        "its tensors, the forecast holds CUDA's context and the allocator's gaps too. Card hours are those of "
        "training, ranks together; to ship is the adapter, beside the base."
    )
    energy = [job["cost"]["energy_joules"] for job in jobs if job["cost"]["energy_joules"]]
    if energy:
        note += f" Energy of the GPUs while training: {sum(energy) / 3.6e6:.3f} kWh, by NVML, all jobs together."
    return f"{_table(header, rows)}\n\n{note}"


def _hours(hours: float | None) -> str:
    return "" if hours is None else f"{hours:.3f}" if hours < 1 else f"{hours:.1f}"


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
        _table(("fact", "value"), [[key, plain(value)] for key, value in facts.items()]) for facts in distinct.values()
    ]
    return "\n\n".join(tables)


def _versions(jobs: Sequence[dict[str, Any]]) -> str:
    """Return the packages and devices of the jobs."""
    versions = sorted({f"{name} {version}" for job in jobs for name, version in job["versions"].items()})
    devices = sorted({str(job["model"].get("device", "unknown")) for job in jobs})
    return f"{', '.join(versions)}.\n\nDevices: {', '.join(devices)}."
