"""What a running job shows in the terminal: a bar where somebody watches, a line now and then where a file does."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

SECONDS_BETWEEN_LINES = 10.0


def format_gib(num_bytes: float) -> str:
    """Return e.g. "1.25 GiB"."""
    return f"{num_bytes / 2**30:.2f} GiB"


def format_seconds(seconds: float) -> str:
    """Return e.g. "1:02:03" or "2:03"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class TrainingProgress:
    """Shows step events; use as a context manager. Silent on all ranks but the first."""

    def __init__(self, num_steps: int, *, enabled: bool) -> None:
        self.console = Console(file=sys.stderr)
        self.num_steps = num_steps
        self.enabled = enabled
        self.last_line = time.monotonic()
        self.bar: Progress | None = None
        if enabled and self.console.is_terminal:
            columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[status]}"))
            self.bar = Progress(*columns, console=self.console)
            self.task = self.bar.add_task("training", total=num_steps, status="")

    def __enter__(self) -> TrainingProgress:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    def step(self, event: dict[str, Any]) -> None:
        """Show one step event."""
        if not self.enabled:
            return
        status = (
            f"loss {event['loss']:.4f}  lr {event['learning_rate']:.2e}  "
            f"{event['samples_per_second']:.1f} samples/s  ETA {format_seconds(event['eta_seconds'])}  "
            f"peak {format_gib(event['peak_memory_bytes'])}"
        )
        if self.bar:
            self.bar.update(self.task, completed=event["step"], status=status)
        elif time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES or event["step"] == self.num_steps:
            self.last_line = time.monotonic()
            self.say(f"step {event['step']}/{self.num_steps}  {status}")

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        if self.enabled:
            (self.bar.console if self.bar else self.console).print(
                message, highlight=False, soft_wrap=True, markup=False
            )
