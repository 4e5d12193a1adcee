"""Sections of the page on the running: use, memory, cards, cost, failures, data and versions."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from markupsafe import Markup

from launcher.report.charts import BarRow, Stretch, bar_chart, gantt
from launcher.report.elements import Column, Content, facts, figure, folded, join, table, tag
from launcher.report.markdown_page import plain
from launcher.report.material import Job, PageMaterial, rivals
from launcher.report.page_results import LONG_TABLE, MAX_CHART_ROWS, points
from launcher.report.scale import duration
from launcher.report.stopped import HEADER, stopped_rows, what_was_saved
from launcher.report.study_files import clock_of, tracks
from training.spec import MULTI_LABEL

GIB = 2**30
MAX_STRETCHES = 1000
"""Bars of the time line."""
MAX_FAILURES = 20
"""Failures shown with their log tails."""

PYTHON = """from peft import PeftConfig, PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

adapter = {adapter!r}
base = PeftConfig.from_pretrained(adapter).base_model_name_or_path
config = AutoConfig.from_pretrained(adapter)
model = AutoModelForSequenceClassification.from_pretrained(base, config=config)
model = PeftModel.from_pretrained(model, adapter).eval()
tokenizer = AutoTokenizer.from_pretrained(adapter)
logits = model(**tokenizer(["A text."], return_tensors="pt")).logits
"""
ONE_LABEL = "print(config.id2label[int(logits.argmax())])"
SEVERAL_LABELS = "print([config.id2label[int(index)] for index in (logits[0] > 0).nonzero()])"


def use_section(material: PageMaterial) -> Markup | None:
    """Return how to use the best adapter of each data: on the command line and in Python."""
    parts: list[Content] = []
    for index in material.report["best"]:
        group = material.report["groups"][index]
        job = material.chosen(group)
        folder = material.folders[job["name"]]
        command = f"shoal predict {shlex.quote(str(folder))} --input texts.csv --output labels.csv"
        code = PYTHON.format(adapter=str(folder / "adapter"))
        code += SEVERAL_LABELS if group.get("problem_type") == MULTI_LABEL else ONE_LABEL
        parts += [
            tag("h3", f"{job['name']}{material.data_name(group)}"),
            tag("pre", tag("code", command), class_="command", tabindex="0"),
            folded("In Python, with transformers and PEFT alone", tag("pre", tag("code", code), class_="command",
                                                                      tabindex="0")),
        ]  # fmt: skip
    return join((tag("h2", "Use the best adapter"), *parts)) if parts else None


def memory_section(material: PageMaterial) -> Markup | None:
    """Return what was forecast of a rank's memory beside what it took at most, of each setting."""
    jobs = {job["name"]: job for job in material.jobs("succeeded") if job["peak_memory"]}
    on_gpu = any(job["peak_memory"].get("gpu_bytes") for job in jobs.values())
    place, key = ("card", "gpu_bytes") if on_gpu else ("host", "host_bytes")
    rows = []
    for group in (group for groups in rivals(material.report) for group in groups):
        members = [jobs[name] for name in group["jobs"] if name in jobs]
        measured = max((job["peak_memory"].get(key, 0) for job in members), default=0) / GIB
        forecast = max((sum(job["forecast"].get(place, {}).values()) for job in members), default=0) / GIB
        if measured:
            text = f"{measured:.2f} GiB" + (f", forecast {forecast:.2f}" if forecast else "")
            bars = [(forecast, "forecast"), (measured, "measured")] if forecast else [(measured, "measured")]
            rows.append(BarRow(label=group["name"], bars=bars, text=text))
    if not rows:
        return None
    what = "GPU memory" if on_gpu else "host memory"
    title = f"Peak {what} of a rank, GiB"
    description = "; ".join(f"{row.label}: {row.text}" for row in rows[:MAX_CHART_ROWS])
    chart = bar_chart(title, description, rows[:MAX_CHART_ROWS])
    note = "Hatched: forecast, and reserved on the card. Solid: the largest measured of any rank and seed."
    if on_gpu:
        note += " Measured is what tensors took; the forecast holds CUDA's context and the allocator's gaps too."
    return join((
        tag("h2", "Memory: forecast and measured"),
        tag("div", figure(title, chart, tag("p", note, class_="note")), tag("div", _memory_table(list(jobs.values()))),
            class_="pair"),
    ))  # fmt: skip


def _memory_table(jobs: list[Job]) -> Markup:
    rows: list[list[Content]] = [
        [
            job["name"], job["num_ranks"], _gib(job["peak_memory"].get("gpu_bytes", 0)),
            _gib(sum(job["forecast"].get("card", {}).values())), _gib(job["peak_memory"].get("host_bytes", 0)),
            _gib(sum(job["forecast"].get("host", {}).values())),
        ]
        for job in jobs
    ]  # fmt: skip
    titles = ("ranks", "GPU GiB", "forecast", "host GiB", "forecast")
    columns: list[Column | str] = ["job", *(Column(title=title, numeric=True) for title in titles)]
    listed = table("Peak memory of a rank, by job", columns, rows)
    return listed if len(rows) <= MAX_CHART_ROWS else folded(f"All {len(rows)} jobs", listed)


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}" if size else "–"


def gantt_section(material: PageMaterial) -> Markup | None:
    """Return which job held which card, and when."""
    stays = list(material.stays)[:MAX_STRETCHES]
    if not stays:
        return None
    clock, cards = clock_of(stays), tracks(stays)
    styles = material.styles()
    failed, stopped = ({job["name"] for job in material.jobs(kind)} for kind in ("failed", "stopped early"))
    lanes, stretches, first = [], [], 0
    for card, card_tracks in cards.items():
        lanes.append((f"card {card}", len(card_tracks)))
        for number, track in enumerate(card_tracks):
            for stay in track:
                said = " (failed)" if stay.job in failed else " (stopped early)" if stay.job in stopped else ""
                said = said or (" (no end recorded)" if stay.open else "")
                kind = "failed" if stay.job in failed else "open" if stay.open else ""
                stretches.append(Stretch(
                    lane=first + number, start=clock.place(stay.start), end=clock.place(stay.end),
                    label=f"{stay.job}{said}", style=styles.get(stay.job), kind=kind,
                ))  # fmt: skip
        first += len(card_tracks)
    busy = sum(stay.end - stay.start for stay in stays)
    num_jobs = len({stay.job for stay in stays})
    description = f"{counted(num_jobs, 'job')} on {counted(len(cards), 'card')} in {duration(clock.seconds)}."
    cuts = [clock.place(start) for start, _ in clock.pauses]
    chart = gantt("Jobs over the cards", description, lanes, stretches, clock.seconds, cuts)
    timeline = tag(
        "div", chart, class_="scroll timeline", role="region", aria_label="Jobs over the cards", tabindex="0"
    )
    note = f"{description} On average {busy / max(clock.seconds, 1):.1f} ranks ran at once."
    note += " Jobs that share a card stand one below the other; hatched: failed, or no end was recorded."
    if clock.pauses:
        longest = duration(max(end - start for start, end in clock.pauses))
        note += f" Dashed: where nothing ran, cut out (for {longest} at the longest)."
    if len(material.stays) > len(stays):
        note += f" The first {len(stays)} of {len(material.stays)}."
    return join((tag("h2", "Time on the cards"), figure("", timeline, tag("p", note, class_="note"), wide=True)))


def counted(number: int, name: str) -> str:
    """Return "1 card" or "2 cards"."""
    return f"{number} {name}" + ("" if number == 1 else "s")


def cost_section(material: PageMaterial) -> Markup | None:
    """Return the table of jobs that succeeded: what they reached and took."""
    jobs = material.jobs("succeeded")
    if not jobs:
        return None
    costs = {job["name"]: _costs(job) for job in jobs}
    kinds = list(dict.fromkeys(kind for known in costs.values() for kind in known))
    rows: list[list[Content]] = []
    for job in jobs:
        train, cost = job["train"], costs[job["name"]]
        rows.append([
            job["name"], job["settings"]["seed"], job["num_ranks"], points(job["validation"]["accuracy"]),
            points(job["test"].get("accuracy")), train.get("steps", "–"),
            duration(train["seconds"]) if "seconds" in train else "–",
            f"{train['samples_per_second']:.1f}" if "samples_per_second" in train else "–",
            *(cost.get(kind, "–") for kind in kinds), " ".join(job["placement"].get("cards", [])) or "–",
        ])  # fmt: skip
    titles = ("seed", "ranks", "validation accuracy %", "test accuracy %", "steps", "training", "samples/s", *kinds)
    columns: list[Column | str] = ["job", *(Column(title=title, numeric=True) for title in titles), "cards"]
    first = table("Jobs and what they took", columns, rows[:LONG_TABLE])
    rest = rows[LONG_TABLE:]
    more = folded(f"The other {len(rest)} jobs", table("The other jobs", columns, rest)) if rest else None
    return join((tag("h2", "Jobs and cost"), first, more))


SHOWN_APART = {"seconds", "samples_per_second"}
"""Of a job's cost: columns of their own, or in the section on memory (what begins with peak_ or forecast_)."""


def _costs(job: Job) -> dict[str, str]:
    """Return what a job cost beside its time, by what it is called; its unit stands in the name."""
    shown = {}
    for name, value in (job.get("cost") or {}).items():
        if not isinstance(value, (int, float)) or name in SHOWN_APART or name.startswith(("peak_", "forecast_")):
            continue
        if name.endswith("_bytes"):
            shown[f"{name.removesuffix('_bytes').replace('_', ' ')} MiB"] = f"{value / 2**20:,.1f}"
        elif name.endswith("_seconds"):
            shown[name.removesuffix("_seconds").replace("_", " ")] = duration(value)
        else:
            shown[name.replace("_", " ")] = f"{value:,}" if isinstance(value, int) else f"{value:,.3g}"
    return shown


def stopped_section(material: PageMaterial) -> Markup | None:
    """Return which jobs early stopping has ended, why, and what that saved."""
    rows: list[list[Content]] = [[*row] for row in stopped_rows(material.report)]
    if not rows:
        return None
    columns = [title if title in ("job", "why") else Column(title=title, numeric=True) for title in HEADER]
    listed = table("Jobs that were stopped early", columns, rows)
    if len(rows) > LONG_TABLE:
        listed = folded(f"All {len(rows)} jobs", listed)
    return join((tag("h2", "Stopped early"), tag("p", what_was_saved(material.report)), listed))


def trouble_sections(material: PageMaterial) -> list[Markup]:
    """Return where jobs ran out of memory, went on after a failure, or failed."""
    sections = []
    retries: list[list[Content]] = [
        [
            job["name"], f"{retry['phase']}, after step {retry['step']}",
            ", ".join(f"{name} {old} → {new}" for name, (old, new) in retry["changes"].items()),
        ]
        for job in material.report["jobs"]
        for retry in job.get("retries", [])
    ]  # fmt: skip
    if retries:
        listed = table("Jobs that ran out of memory; the global batch stayed", ("job", "in", "went on with"), retries)
        sections.append(join((tag("h2", "Out of memory"), listed)))
    restarts: list[list[Content]] = [
        [job["name"], reason] for job in material.report["jobs"] for reason in job.get("restarts", [])
    ]
    if restarts:
        listed = table("Jobs that went on from their newest checkpoint", ("job", "what happened"), restarts)
        sections.append(join((tag("h2", "Went on after a failure"), listed)))
    failed = material.jobs("failed")
    if failed:
        shown = [_failure(job, material.folders[job["name"]]) for job in failed[:MAX_FAILURES]]
        more = [job["name"] for job in failed[MAX_FAILURES:]]
        if more:
            shown.append(tag("p", f"And {len(more)} more: {', '.join(more)}."))
        sections.append(join((tag("h2", "Failures"), *shown)))
    return sections


def _failure(job: Job, folder: Path) -> Markup:
    """Return what is known of a failed job."""
    tail = job["error"].get("log_tail", "").strip()
    log = folded("End of its log", tag("pre", tag("code", tail), tabindex="0")) if tail else None
    where = tag("p", "All of it: ", tag("code", f"{folder}/rank0.log"), class_="note") if tail else None
    return join((tag("h3", job["name"]), tag("p", job["error"]["message"], class_="failure"), log, where))


def data_section(material: PageMaterial) -> Markup | None:
    """Return the facts of each distinct data the jobs used."""
    jobs = material.jobs("succeeded")
    distinct = {json.dumps(job["data"], sort_keys=True): job["data"] for job in jobs}
    if not distinct:
        return None
    lists = [
        facts((key, _value(value)) for key, value in item.items() if value not in ({}, [], None, ""))
        for item in distinct.values()
    ]
    return join((tag("h2", "Data"), *lists))


def _value(value: Any) -> Content:
    """Return a fact; a mapping or list of plain values as text, long ones folded."""
    if isinstance(value, dict) and value and not any(isinstance(item, (dict, list)) for item in value.values()):
        text = ", ".join(f"{key} {plain(item)}" for key, item in value.items())
    elif isinstance(value, list):
        text = ", ".join(plain(item) for item in value)
    elif isinstance(value, dict):
        text = "; ".join(f"{key}: {_value(item)}" for key, item in value.items())
    else:
        text = plain(value)
    return text if len(text) <= 400 else folded(f"{text[:60]}…", text)


def versions_section(material: PageMaterial) -> Markup | None:
    """Return packages and devices."""
    jobs = material.jobs("succeeded")
    if not jobs:
        return None
    versions = sorted({f"{name} {version}" for job in jobs for name, version in job["versions"].items()})
    devices = sorted({str(job["model"].get("device", "unknown")) for job in jobs})
    return join((
        tag("h2", "Versions and hardware"),
        facts((("packages", ", ".join(versions)), ("devices", ", ".join(devices)))),
    ))  # fmt: skip
