"""What a running study shows: a live table where somebody watches, plain lines where a file does."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from launcher.state import JobState
from training.redact import redact

SECONDS_BETWEEN_LINES = 10.0
LINES_BESIDE = 8
"""Of the table's frame and of what stands above it."""
FIXED_WIDTH = 46
"""Columns "status" and "progress", and the lines between columns."""
FIGURE_WIDTH = 16
STYLES = {"succeeded": "green", "finished earlier": "green", "failed": "red", "running": "cyan"}


class StudyView:
    """Shows the jobs of a study; use as a context manager."""

    def __init__(self, states: Sequence[JobState], console: Console | None = None) -> None:
        self.states = states
        self.console = console or Console()
        self.live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        self.shown: dict[str, str] = {}
        self.last_line: dict[str, float] = {}

    def __enter__(self) -> StudyView:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.update()
        if self.live:
            self.live.stop()

    def say(self, message: str) -> None:
        """Print a line above the table."""
        self.console.print(redact(message), highlight=False, markup=False, soft_wrap=True)

    def update(self) -> None:
        """Show the states as they are now."""
        if self.live:
            self.live.update(render(self.states, *self.console.size), refresh=True)
            return
        for state in self.states:
            text = f"{state.status} {state.phase}".strip()
            changed = text != self.shown.get(state.name, "waiting")
            since = time.monotonic() - self.last_line.get(state.name, 0.0)
            news = state.status == "running" or (state.status == "preparing" and state.message)
            if changed or (news and since >= SECONDS_BETWEEN_LINES):
                self.shown[state.name] = text
                self.last_line[state.name] = time.monotonic()
                self.say(describe(state))


def describe(state: JobState) -> str:
    """Return one line about a job."""
    parts = [f"{state.name}: {state.status}"]
    if state.status == "running":
        parts += [part for part in (f"on card {state.cards}", state.phase) if part]
    if state.num_steps and state.status == "running":
        parts.append(f"step {state.step}/{state.num_steps}")
    parts += [f"{title} {cell}" for title, cell in _figures(state) if cell]
    if state.message and state.status in ("preparing", "failed"):
        parts.append(state.message)
    return "  ".join(parts)


def render(states: Sequence[JobState], width: int, height: int) -> Table:
    """Return the table of the jobs for a terminal of `width` x `height` characters.

    What does not fit is left out: finished and waiting jobs first, and the figures from the last on.
    """
    shown = _most_telling(states, max(1, height - LINES_BESIDE))
    names = max(len(state.name) for state in states)
    cards = max((len(state.cards) for state in states), default=0)
    num_figures = max(0, width - names - cards - FIXED_WIDTH) // FIGURE_WIDTH
    table = Table(expand=False, pad_edge=False, caption=_rest(states, shown), caption_justify="left")
    titles = [title for title, _ in _figures(states[0])][:num_figures]
    for title in ("job", "status", "cards", "progress", *titles):
        table.add_column(title, no_wrap=title not in ("job", "status"), overflow="fold")
    for state in shown:
        bar = ProgressBar(total=state.num_steps, completed=state.step, width=8) if state.num_steps else ""
        progress = Table.grid(padding=(0, 1))
        progress.add_row(bar, f"{state.step}/{state.num_steps}" if state.num_steps else "")
        status = state.status if state.status != "running" else state.phase or state.status
        if state.status == "preparing" and state.message:
            status = f"{status}: {state.message}"
        figures = [cell for _, cell in _figures(state)][:num_figures]
        style = STYLES.get(state.status, "dim")
        table.add_row(state.name, f"[{style}]{status.replace('[', '(')}[/]", state.cards, progress, *figures)
    return table


def _most_telling(states: Sequence[JobState], most: int) -> list[JobState]:
    """Return at most so many jobs, in their order: those at work before those that failed, finished or wait."""
    order = ("running", "preparing", "failed", "succeeded", "waiting", "finished earlier")
    chosen = sorted(range(len(states)), key=lambda index: (order.index(states[index].status), index))[:most]
    return [states[index] for index in sorted(chosen)]


def _rest(states: Sequence[JobState], shown: Sequence[JobState]) -> str | None:
    """Return what is said of the jobs that are not shown."""
    if len(shown) == len(states):
        return None
    counts = Counter(state.status for state in states)
    counts.subtract(state.status for state in shown)
    return "and " + ", ".join(f"{count} {status}" for status, count in counts.items() if count)


def _figures(state: JobState) -> list[tuple[str, str]]:
    """Return (title, text) of the figures of a job; the text is empty where there is none yet."""
    eta = state.eta_seconds if state.status == "running" else None
    return [
        ("loss", "" if state.loss is None else f"{state.loss:.4f}"),
        ("val. accuracy", "" if state.accuracy is None else f"{state.accuracy:.4f}"),
        ("ETA", "" if eta is None else f"{int(eta) // 60}:{int(eta) % 60:02d}"),
        ("samples/s", "" if state.samples_per_second is None else f"{state.samples_per_second:.1f}"),
        ("peak memory", f"{state.peak_memory_bytes / 2**30:.2f} GiB" if state.peak_memory_bytes else ""),
    ]
