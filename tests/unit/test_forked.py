"""The fork server of the benchmarks reports how its processes end and leaves none behind."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from benchmarks.forked import GONE, fork, kill, poll, run_forked, wait


def sleep_for_ever() -> int:
    while True:
        time.sleep(60)


def fail() -> int:
    raise ValueError("on purpose")


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_status_and_the_output_come_home(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert run_forked(lambda: print("said") or 3, log) == 3
    assert log.read_text() == "said\n"


def test_an_exception_is_status_1_with_its_traceback(tmp_path: Path) -> None:
    assert run_forked(fail, tmp_path / "log") == 1
    assert "ValueError: on purpose" in (tmp_path / "log").read_text()


def test_the_environment_is_the_childs_alone(tmp_path: Path) -> None:
    pid = fork(lambda: int(os.environ["RANK_OF_TEST"]), tmp_path / "log", {"RANK_OF_TEST": "7"})
    assert wait([pid]) == [7]
    assert "RANK_OF_TEST" not in os.environ


def test_the_others_are_killed_once_one_has_failed(tmp_path: Path) -> None:
    pids = [fork(sleep_for_ever, tmp_path / "log"), fork(lambda: 2, tmp_path / "log")]
    assert wait(pids) == [-signal.SIGKILL, 2]
    assert not any(map(is_alive, pids))


def test_all_are_killed_after_the_timeout(tmp_path: Path) -> None:
    pids = [fork(sleep_for_ever, tmp_path / "log") for _ in range(2)]
    assert wait(pids, timeout_seconds=0) == [-signal.SIGKILL] * 2
    assert not any(map(is_alive, pids))


def test_a_process_killed_from_outside_is_reported(tmp_path: Path) -> None:
    pid = fork(sleep_for_ever, tmp_path / "log")
    assert poll(pid) is None
    kill(pid)
    assert wait([pid]) == [-signal.SIGKILL]
    assert poll(pid) == GONE
