"""The live table in terminals of any size."""

from __future__ import annotations

import io
from typing import get_args

import pytest
from rich.console import Console

from launcher.state import JobState, Status
from launcher.table import render


def drawn(states: list[JobState], width: int, height: int) -> str:
    console = Console(file=io.StringIO(), width=width, height=height)
    console.print(render(states, width, height))
    return console.file.getvalue()  # type: ignore[attr-defined]


def running(name: str) -> JobState:
    return JobState(
        name=name, status="running", phase="training", cards="box1:0 box1:1", step=7, num_steps=150, loss=1.5,
        accuracy=0.5, samples_per_second=70.0, eta_seconds=65.0, peak_memory_bytes=3 << 30,
    )  # fmt: skip


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_name_status_and_progress_are_whole_in_any_width(width: int) -> None:
    text = drawn([running("nf4-zero3-2ranks-seed0")], width, 24)
    assert "nf4-zero3-2ranks-seed0" in text and "training" in text and "7/150" in text
    assert max(map(len, text.splitlines())) <= width
    assert ("3.00 GiB" in text) == (width == 200)


def test_jobs_at_work_are_seen_however_many_wait() -> None:
    waiting = [JobState(name=f"job{number}") for number in range(30)]
    done = JobState(name="done", status="succeeded")
    text = drawn([done, *waiting, running("busy")], 80, 24)
    assert "busy" in text and "done" in text
    assert len(text.splitlines()) <= 24
    assert "and 16 waiting" in text


def test_all_jobs_are_shown_where_there_is_room() -> None:
    text = drawn([running("a"), JobState(name="b", status="failed")], 120, 40)
    assert "failed" in text and "and " not in text


def test_the_first_figures_are_seen_in_a_narrow_terminal() -> None:
    state = running("lora-zero2-seed0")
    state.cards, state.eta_seconds = "box1:0", 3 * 3600 + 65
    text = drawn([state, JobState(name="b", status="cancelled")], 80, 24)
    assert "1.5000" in text and "val acc" in text and "cancelled" in text
    assert "3:01:05" in drawn([state], 120, 24)


@pytest.mark.parametrize("status", get_args(Status))
def test_every_status_is_whole_beside_all_figures(status: Status) -> None:
    state = running("seed0")
    state.status, state.phase = status, ""
    assert status in drawn([state], 120, 24) and "3.00 GiB" in drawn([state], 120, 24)


def test_a_message_with_brackets_is_no_markup() -> None:
    assert "[bold]" in drawn([JobState(name="a", status="preparing", message="[bold] texts")], 120, 24)
