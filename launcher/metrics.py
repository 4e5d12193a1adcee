"""Shoal's metrics in Ray: each node's agent exports them, Prometheus scrapes them, cluster/grafana/ shows them.

The head's process sets them, and they get the prefix `ray_`: `ray_shoal_job_loss{study="demo", job_name="r8-seed0"}`.
The label is job_name because Prometheus has a label `job` of its own. Ray forgets a gauge about 20 seconds after it
was last set, so what is no longer set here leaves no stale series behind.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, get_args

from launcher.state import JobState, Status

SECONDS_BETWEEN = 2.0
"""Ray collects what was set every 10 seconds."""
LINGER_SECONDS = 30.0
"""How long a job's last values are still set once it has left its cards: a scrape or two must see them."""

JOB_GAUGES = {
    "shoal_job_loss": "Mean training loss since the last report.",
    "shoal_job_validation_accuracy": "Accuracy of the newest evaluation on validation, 0 to 1.",
    "shoal_job_samples_per_second": "Samples trained on a second, over all ranks, mean since the job started.",
    "shoal_job_tokens_per_second": "Tokens (no padding) trained on a second, all ranks, mean since the job started.",
    "shoal_job_step_seconds": "Seconds an optimizer step, mean since the last report.",
    "shoal_job_peak_memory_bytes": "Peak memory of rank 0: its tensors on the card; its process on the CPU.",
    "shoal_job_forecast_memory_bytes": "Memory a rank was forecast to need: of the card; of the host on the CPU.",
    "shoal_job_progress_ratio": "Optimizer steps done, 0 to 1.",
    "shoal_job_retries": "Times the job went on from its newest checkpoint, out of memory or after a failure.",
}
"""Name -> description, of what has the labels study and job_name."""

STUDY_GAUGES = {
    "shoal_study_jobs": "Jobs of the study, by status.",
    "shoal_study_queue_length": "Jobs that wait for cards or are being prepared.",
    "shoal_study_cards": "Cards that the study can use.",
    "shoal_study_cards_in_use": "Cards that its jobs run on.",
    "shoal_study_retries": "Times one of its jobs went on from its newest checkpoint.",
}
"""Name -> description, of what has the label study alone, but for the first, which has status too."""


class Reading(NamedTuple):
    """A value that a gauge is set to."""

    name: str
    value: float
    labels: dict[str, str]


def job_readings(study: str, state: JobState) -> Iterator[Reading]:
    """Yield what is known of one job."""
    values = {
        "shoal_job_loss": state.loss,
        "shoal_job_validation_accuracy": state.accuracy,
        "shoal_job_samples_per_second": state.samples_per_second,
        "shoal_job_tokens_per_second": state.tokens_per_second,
        "shoal_job_step_seconds": state.step_seconds,
        "shoal_job_peak_memory_bytes": state.peak_memory_bytes or None,
        "shoal_job_forecast_memory_bytes": state.forecast_memory_bytes or None,
        "shoal_job_progress_ratio": state.step / state.num_steps if state.num_steps else None,
        "shoal_job_retries": state.retries,
    }
    labels = {"study": study, "job_name": state.name}
    yield from (Reading(name, value, labels) for name, value in values.items() if value is not None)


def study_readings(study: str, states: Mapping[str, JobState], num_cards: int) -> Iterator[Reading]:
    """Yield what is known of the study as a whole."""
    labels = {"study": study}
    counts = Counter(state.status for state in states.values())
    for status in get_args(Status):
        yield Reading("shoal_study_jobs", counts[status], {**labels, "status": status})
    in_use = {card for state in states.values() if state.status == "running" for card in state.cards.split()}
    yield Reading("shoal_study_queue_length", counts["waiting"] + counts["preparing"], labels)
    yield Reading("shoal_study_cards", num_cards, labels)
    yield Reading("shoal_study_cards_in_use", len(in_use), labels)
    yield Reading("shoal_study_retries", sum(state.retries for state in states.values()), labels)


class StudyMetrics:
    """Sets the metrics of one study; Ray must be connected. `update` is cheap enough for each turn of a loop."""

    def __init__(self, study: str, states: Mapping[str, JobState]) -> None:
        from ray.util.metrics import Gauge

        self.study, self.states = study, states
        self.gauges: dict[str, Any] = {}
        for name, description in JOB_GAUGES.items():
            self.gauges[name] = Gauge(name, description, tag_keys=("study", "job_name"))
        for name, description in STUDY_GAUGES.items():
            tags = ("study", "status") if name == "shoal_study_jobs" else ("study",)
            self.gauges[name] = Gauge(name, description, tag_keys=tags)
        self.last_ran: dict[str, float] = {}
        """Job -> when it was last seen on cards."""
        self.next_update = 0.0

    def update(self, num_cards: int) -> None:
        """Set what is known now, if it is time to. `num_cards` are those the study can use."""
        now = time.monotonic()
        if now >= self.next_update:
            self.next_update = now + SECONDS_BETWEEN
            for reading in self.readings(num_cards, now):
                self.gauges[reading.name].set(reading.value, reading.labels)

    def readings(self, num_cards: int, now: float) -> Iterator[Reading]:
        """Yield all there is to set at the time `now` (seconds, monotonic): the study, and the jobs on cards."""
        yield from study_readings(self.study, self.states, num_cards)
        for name, state in self.states.items():
            if state.status == "running":
                self.last_ran[name] = now
            if now - self.last_ran.get(name, -LINGER_SECONDS) < LINGER_SECONDS:
                yield from job_readings(self.study, state)
