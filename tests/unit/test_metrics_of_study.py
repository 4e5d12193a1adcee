"""Which metrics are set when, and that the Grafana dashboard shows all of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from launcher.metrics import JOB_GAUGES, LINGER_SECONDS, STUDY_GAUGES, Reading, StudyMetrics
from launcher.state import JobState

DASHBOARD = Path(__file__).resolve().parents[2] / "cluster" / "grafana" / "shoal_dashboard.json"
STEP = {
    "kind": "step", "step": 3, "num_steps": 12, "loss": 1.5, "samples_per_second": 7.0, "tokens_per_second": 300.0,
    "step_seconds": 0.5, "eta_seconds": 4.5, "peak_memory_bytes": 3 << 30,
}  # fmt: skip


@pytest.fixture
def states() -> dict[str, JobState]:
    names = ("first", "second", "third")
    return {name: JobState(name=name) for name in names}


@pytest.fixture
def metrics(states: dict[str, JobState]) -> StudyMetrics:
    return StudyMetrics("demo", states)


def read(metrics: StudyMetrics, now: float = 0.0) -> dict[tuple[str, ...], float]:
    """Return name and labels but for the study -> value."""
    found: list[Reading] = list(metrics.readings(4, now))
    assert all(reading.labels["study"] == "demo" for reading in found)
    values = {
        (reading.name, *(value for label, value in reading.labels.items() if label != "study")): reading.value
        for reading in found
    }
    assert len(values) == len(found)
    return values


def test_a_running_job_has_all_of_them(metrics: StudyMetrics, states: dict[str, JobState]) -> None:
    states["first"].begin("box1:0 box1:1", 4 << 30)
    states["first"].apply(STEP)
    states["first"].apply({"kind": "evaluation", "split": "validation", "accuracy": 0.75})
    values = read(metrics)
    assert {key[0]: value for key, value in values.items() if key[-1] == "first"} == {
        "shoal_job_loss": 1.5,
        "shoal_job_validation_accuracy": 0.75,
        "shoal_job_samples_per_second": 7.0,
        "shoal_job_tokens_per_second": 300.0,
        "shoal_job_step_seconds": 0.5,
        "shoal_job_peak_memory_bytes": 3 << 30,
        "shoal_job_forecast_memory_bytes": 4 << 30,
        "shoal_job_progress_ratio": 0.25,
        "shoal_job_retries": 0,
    }
    assert {key[0] for key in values} == {*JOB_GAUGES, *STUDY_GAUGES}


def test_the_study_counts_jobs_cards_and_retries(metrics: StudyMetrics, states: dict[str, JobState]) -> None:
    states["first"].begin("box1:0", 0)
    states["first"].status = "waiting"  # out of memory
    states["first"].begin("box1:0", 0)
    states["second"].begin("box1:0 box1:1", 0)
    values = read(metrics)
    assert values["shoal_study_jobs", "running"] == 2
    assert values["shoal_study_jobs", "waiting"] == 1
    assert values["shoal_study_jobs", "failed"] == 0
    assert values["shoal_study_queue_length",] == 1
    assert values["shoal_study_cards",] == 4
    assert values["shoal_study_cards_in_use",] == 2
    assert values["shoal_study_retries",] == values["shoal_job_retries", "first"] == 1
    assert values["shoal_job_retries", "second"] == 0


def test_the_series_of_a_job_end_soon_after_it(metrics: StudyMetrics, states: dict[str, JobState]) -> None:
    def jobs(now: float) -> set[str]:
        return {key[-1] for key in read(metrics, now) if key[0] in JOB_GAUGES}

    states["second"].status = "finished earlier"
    assert jobs(0.0) == set()
    states["first"].begin("box1:0", 0)
    assert jobs(1.0) == {"first"}
    states["first"].status = "succeeded"
    assert jobs(LINGER_SECONDS) == {"first"}
    assert jobs(LINGER_SECONDS + 2.0) == set()


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    shown = {target["expr"] for panel in dashboard["panels"] for target in panel["targets"]}
    assert {name for expr in shown for name in re.findall(r"\bray_(shoal_\w+)", expr)} == {*JOB_GAUGES, *STUDY_GAUGES}
    for expr in shown:
        labels = 'study=~"$study", job_name=~"$job"' if "shoal_job_" in expr else 'study=~"$study"'
        assert f"{{{labels}}}" in expr
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert list(variables) == ["datasource", "study", "job"]
    for variable in ("study", "job"):
        metric, label = re.findall(r"label_values\(ray_(\w+)(?:{.*})?, (\w+)\)", variables[variable]["definition"])[0]
        assert metric in {*JOB_GAUGES, *STUDY_GAUGES} and label in ("study", "job_name")
    assert {panel["datasource"] for panel in dashboard["panels"]} == {"${datasource}"}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
