"""What is known of each job while a study runs, kept up to date by the job's events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from training.recorder import Event
from training.result import RunResult

Status = Literal[
    "running",
    "preparing",
    "failed",
    "interrupted",
    "succeeded",
    "stopped early",
    "waiting",
    "cancelled",
    "finished earlier",
]
"""Those of which most is to be told first."""
OPEN = ("waiting", "preparing", "running")
"""Of a job that has not ended."""


STEP_FIELDS = (
    "step", "num_steps", "loss", "samples_per_second", "tokens_per_second", "step_seconds", "eta_seconds",
    "peak_memory_bytes",
)  # fmt: skip
"""Of a step event, and of a state."""


@dataclass(kw_only=True)
class JobState:
    """One row of the live table."""

    name: str
    status: Status = "waiting"
    cards: str = ""
    """E.g. "box1:0 box1:1"."""
    phase: str = ""
    step: int = 0
    num_steps: int = 0
    loss: float | None = None
    accuracy: float | None = None
    """Of the newest evaluation on validation; of the kept adapter once the job has ended."""
    samples_per_second: float | None = None
    tokens_per_second: float | None = None
    step_seconds: float | None = None
    eta_seconds: float | None = None
    peak_memory_bytes: int = 0
    forecast_memory_bytes: int = 0
    """Of a rank, of the memory that the peak is of; 0 where there is no forecast."""
    retries: int = 0
    """How often it went on from its newest checkpoint in this run of the study."""
    message: str = ""
    """The newest log message, or the error."""
    is_user_error: bool = False
    """Of a job that failed: whether its study is to be mended."""

    def begin(self, cards: str, forecast_memory_bytes: int) -> None:
        """Take in that the job starts, or goes on, on these cards."""
        self.retries += bool(self.cards)
        self.status, self.message, self.cards = "running", "", cards
        self.forecast_memory_bytes = forecast_memory_bytes

    def apply(self, event: Event) -> None:
        """Take in one event of the job."""
        kind = event["kind"]
        if kind == "phase":
            self.phase = event["phase"]
        elif kind == "log":
            self.message = event["message"]
        elif kind == "step":
            for name in STEP_FIELDS:
                setattr(self, name, event[name])
        elif kind == "evaluation" and event["split"] == "validation":
            self.accuracy = event["accuracy"]

    def end(self, result: RunResult, *, earlier: bool = False) -> None:
        """Take in the job's result."""
        self.status = "finished earlier" if earlier and result.status == "succeeded" else result.status
        self.phase, self.eta_seconds = "", None
        self.message = result.error.get("message", "")
        if result.validation:
            self.accuracy = result.validation["accuracy"]
        if result.peak_memory:
            self.peak_memory_bytes = result.peak_memory["gpu_bytes"] or result.peak_memory["host_bytes"]
        if result.stopped:
            self.step, self.num_steps = result.stopped["step"], result.stopped["num_steps"]
        if result.train:
            self.loss = result.train.get("final_loss")
            self.samples_per_second = result.train.get("samples_per_second")
            self.step = self.num_steps = result.train.get("steps", 0)
