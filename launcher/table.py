"""What a running study shows: a live table where somebody watches, plain lines where a file does."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import timedelta
from types import TracebackType
from typing import get_args

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from launcher.state import JobState, Status
from training.redact import redact

SECONDS_BETWEEN_LINES = 60.0
"""About one job, where a file takes them down."""
LINES_BESIDE = 8
"""Of the table's frame and of what stands above it."""
BAR_WIDTH = 8
STATUS_WIDTH = 13
"""That every phase has room in; longer texts are wrapped."""
STYLES = {
    "succeeded": "green", "finished earlier": "green", "failed": "red", "running": "cyan", "preparing": "cyan",
    "cancelled": "yellow", "interrupted": "yellow", "stopped early": "yellow",
}  # fmt: skip


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
    if state.message and state.status in ("preparing", "failed", "stopped early"):
        parts.append(state.message)
    return "  ".join(parts)


def render(states: Sequence[JobState], width: int, height: int) -> Table:
    """Return the table of the jobs for a terminal of `width` x `height` characters.

    What does not fit is left out: finished and waiting jobs first, and the figures from the last on.
    """
    shown = _most_telling(states, max(1, height - LINES_BESIDE))
    titles = _titles_that_fit(states, width)
    table = Table(expand=False, pad_edge=False, caption=_rest(states, shown), caption_justify="left")
    for title in ("job", "status", "cards", "progress", *titles):
        table.add_column(title, no_wrap=title not in ("job", "status"), overflow="fold")
    for state in shown:
        progress = Table.grid(padding=(0, 1))
        if state.num_steps:
            bar = ProgressBar(total=state.num_steps, completed=state.step, width=BAR_WIDTH)
            progress.add_row(bar, f"{state.step}/{state.num_steps}")
        status = state.status if state.status != "running" else state.phase or state.status
        if state.status == "preparing" and state.message:
            status = f"{status}: {state.message}"
        figures = [cell for _, cell in _figures(state)][: len(titles)]
        table.add_row(state.name, Text(status, STYLES.get(state.status, "dim")), state.cards, progress, *figures)
    return table


def _titles_that_fit(states: Sequence[JobState], width: int) -> list[str]:
    """Return the titles of the first figures, as many as a terminal has room for beside the other columns."""

    def widest(title: str, cells: Iterable[str]) -> int:
        return max(len(title), *map(len, cells)) + 3  # space, line, space

    room = width + 1 - STATUS_WIDTH - 3  # the last column has no neighbour, the first a line before it
    room -= widest("job", (state.name for state in states)) + widest("cards", (state.cards for state in states))
    room -= BAR_WIDTH + 1 + widest("", (f"{state.step}/{state.num_steps}" for state in states))
    titles = []
    for figures in zip(*map(_figures, states), strict=True):
        room -= widest(figures[0][0], (cell for _, cell in figures))
        if room < 0:
            break
        titles.append(figures[0][0])
    return titles


def _most_telling(states: Sequence[JobState], most: int) -> list[JobState]:
    """Return at most so many jobs, in their order: those at work before those that failed, finished or wait."""
    order = get_args(Status)
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
        ("val acc", "" if state.accuracy is None else f"{state.accuracy:.4f}"),
        ("ETA", "" if eta is None else str(timedelta(seconds=int(eta)))),
        ("samples/s", "" if state.samples_per_second is None else f"{state.samples_per_second:.1f}"),
        ("peak memory", f"{state.peak_memory_bytes / 2**30:.2f} GiB" if state.peak_memory_bytes else ""),
    ]
