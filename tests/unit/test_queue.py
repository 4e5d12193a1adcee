"""Several studies at once: who gives way to whom, what a study says of itself, and what may be cancelled."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any

import pytest

from launcher.board import Request
from launcher.cards import Card, Node
from launcher.cli import main
from launcher.inbox import Inbox
from launcher.others import StudiesHere
from launcher.preparation import Preparation
from launcher.schedule import Scheduler
from launcher.state import JobState, Status
from launcher.status import STALE_SECONDS, STATUS_FILE, StatusFile, StudyStatus, read_status, wants
from launcher.watch import choose
from training.disk import alone_in
from training.errors import UserError


def scheduler(*sizes: int, host_gib: float = 64.0) -> Scheduler:
    cards = [Card(node_id="n", host="n", index=i, size=gib, gib=gib, num_threads=1) for i, gib in enumerate(sizes)]
    node = Node(node_id="n", host="n", total_gib=host_gib, host_gib=host_gib, cores=16)
    return Scheduler(cards, {"n": node})


def asks(job: str, gib: float = 8.0, **changes: Any) -> Request:
    return Request(job=job, card_gib=gib, **changes)


def names(placements: list[Any]) -> list[str]:
    return sorted(placement.job for placement in placements)


def test_a_free_card_is_left_to_the_study_of_higher_priority_until_it_wants_it_no_more() -> None:
    planner = scheduler(8, 8)
    for name in ("a", "b", "c"):
        planner.submit(asks(name))
    assert len(planner.start(0.0)) == 2
    planner.give_way([asks("other", priority=1)])
    planner.end("a")
    assert planner.start(1.0) == [] == planner.start(2.0)
    assert [request.job for request in planner.queue()] == ["c"]
    planner.give_way([])
    assert names(planner.start(3.0)) == ["c"]


def test_a_study_ahead_keeps_its_room_in_whatever_precision_it_would_take_it() -> None:
    card = Card(
        node_id="n", host="n", index=0, size=8.0, gib=8.0, num_threads=1, is_virtual=False, name="RTX 2060",
        capability=(7, 5),
    )  # fmt: skip
    node = Node(node_id="n", host="n", total_gib=64.0, host_gib=64.0, cores=16)
    planner = Scheduler([card], {"n": node})
    planner.submit(asks("mine"))
    bf16 = asks("other", priority=1, precision="bf16")
    planner.give_way([replace(bf16, instead=(replace(bf16, precision="fp16"),))])
    assert planner.start(0.0) == [] == planner.start(1.0)
    planner.give_way([])
    assert names(planner.start(2.0)) == ["mine"]


def test_what_the_others_leave_free_is_taken() -> None:
    planner = scheduler(8, 12)
    planner.give_way([asks("other", 11.0, priority=1)])
    for name in ("a", "b"):
        planner.submit(asks(name, 4.0))
    placements = planner.start(0.0)
    assert names(placements) == ["a", "b"] and {item.cards[0].index for item in placements} == {0}


@pytest.mark.parametrize(
    "other", [asks("other", 20.0, priority=1), asks("other", num_ranks=3, priority=1), asks("other", 9.0, priority=1)]
)
def test_a_job_that_fits_nowhere_holds_nobody_up(other: Request) -> None:
    planner = scheduler(8, 8)
    planner.give_way([other])
    planner.submit(asks("a"))
    assert names(planner.start(0.0)) == ["a"]


def test_a_card_held_for_a_wide_job_of_others_goes_to_what_will_have_ended_by_then() -> None:
    planner = scheduler(8, 8)
    planner.submit(asks("runs", seconds=100.0))
    planner.start(0.0)
    planner.give_way([asks("other", num_ranks=2, priority=1, seconds=50.0)])
    planner.submit(asks("long", seconds=1000.0))
    assert planner.start(1.0) == []
    planner.submit(asks("short", 6.0, seconds=20.0))
    assert names(planner.start(2.0)) == ["short"]


def test_host_memory_is_left_to_the_others_too() -> None:
    planner = scheduler(8, 8, host_gib=10.0)
    planner.give_way([asks("other", host_gib=6.0, priority=1)])
    planner.submit(asks("a", host_gib=6.0))
    assert planner.start(0.0) == []


def status_file(root: Path, *statuses: Status, priority: int = 0) -> StatusFile:
    root.mkdir(parents=True, exist_ok=True)
    states = [JobState(name=f"job{index}", status=status) for index, status in enumerate(statuses)]
    return StatusFile(root, root.name, priority, states)


@contextmanager
def at_work(root: Path) -> Iterator[None]:
    """As if a launcher were at work in a study folder."""
    root.mkdir(parents=True, exist_ok=True)
    with alone_in(root, "shoal run"):
        yield


def test_a_launcher_that_is_killed_leaves_an_interrupted_study(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    with at_work(root):
        file = status_file(root, "succeeded", "running", "waiting")
        file.write([asks("job2", seconds=3.0)])
        running = read_status(root)
        assert running is not None and running.state == "running"
        assert running.waiting == [asks("job2", seconds=3.0)]
        assert "1 of 3 jobs done, 1 running, 1 waiting" in running.headline()
    killed = read_status(root)
    assert killed is not None and killed.state == "interrupted"
    assert [job.status for job in killed.jobs] == ["succeeded", "interrupted", "waiting"]
    file.write(state="finished")
    finished = read_status(root)
    assert finished is not None and finished.state == "finished"
    (root / STATUS_FILE).write_text('{"study": ')
    assert read_status(root) is None


def test_nobody_gives_way_to_a_launcher_that_hangs_or_has_ended(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    with at_work(root):
        status_file(root, "waiting", priority=3).write([asks("job0")])
        said = wants(root)
        assert said["priority"] == 3 and [Request(**item) for item in said["waiting"]] == [asks("job0")]
        long_ago = time.time() - STALE_SECONDS - 5
        os.utime(root / STATUS_FILE, (long_ago, long_ago))
        assert wants(root) == {}
        os.utime(root / STATUS_FILE)
        assert wants(root) == said
    assert wants(root) == {}


def test_the_launcher_hears_once_of_each_open_job_that_is_cancelled(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    with at_work(root):
        file = status_file(root, "succeeded", "running", "waiting")
        file.write()
        Inbox(str(root / "jobs")).cancel(["job2", "job1", "job0", "../../job1", "nobody"])
        assert file.take_cancelled() == ["job1", "job2"]
        assert file.take_cancelled() == []
        Inbox(str(root / "jobs")).cancel(["job2"])
        assert status_file(root, "waiting").take_cancelled() == []  # that was said to the launcher before


def study(name: str, *statuses: Status, folder: str = "") -> StudyStatus:
    jobs = [JobState(name=f"job{index}", status=status) for index, status in enumerate(statuses)]
    return StudyStatus(
        study=name, folder=folder or f"/outputs/{name}", host="box", pid=1, priority=0, started=0.0, time=9.0,
        state="running", jobs=jobs, waiting=[],
    )  # fmt: skip


def test_what_is_cancelled_is_a_study_or_one_job() -> None:
    a, b = study("a", "running", "succeeded", "waiting"), study("b", "preparing")
    assert choose("a", [a, b]) == (a, ["job0", "job2"])
    assert choose("job2", [a, b]) == (a, ["job2"])
    assert choose("b/job0", [a, b]) == (b, ["job0"])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("job0", "several jobs. Give one of: a/job0, b/job0"),
        ("job1", r"nothing that waits or runs is called 'job1'. There is: a \(job0, job2\); b \(job0\)\."),
        ("a/job9", r"There is: a \(job0, job2\)"),
        ("over", "nothing that waits or runs"),
    ],
)
def test_a_name_that_is_no_one_thing_is_refused(target: str, message: str) -> None:
    over = replace(study("over", "waiting"), state="interrupted")
    with pytest.raises(UserError, match=message):
        choose(target, [study("a", "running", "succeeded", "waiting"), study("b", "preparing"), over])


def test_two_studies_of_one_name_are_told_apart_by_their_folders() -> None:
    twins = [study("a", "running"), study("a", "running", folder="/elsewhere/a")]
    with pytest.raises(UserError, match="box:/outputs/a and box:/elsewhere/a"):
        choose("a", twins)


def test_status_and_cancel_from_another_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert main(["status"]) == 0 and "No study has run in outputs/" in capsys.readouterr().out
    done = status_file(Path("outputs/done"), "succeeded")
    done.write(state="finished")
    with at_work(Path("outputs/demo")):
        file = status_file(Path("outputs/demo"), "running", "waiting", priority=2)
        file.states[0].cards, file.states[0].phase = "box:0", "training"
        file.write()
        assert main(["status"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split("  ")[0] for line in lines if not line.startswith(" ")] == [
            "done: finished",
            "demo: running",
        ]
        assert [line.strip() for line in lines if line.startswith(" ")] == [
            "job0: running  on card box:0  training",
            "job1: waiting",
        ]
        assert main(["status", "done"]) == 0 and "job0: succeeded" in capsys.readouterr().out
        assert main(["status", "--json"]) == 0
        assert [(item["study"], item["priority"]) for item in json.loads(capsys.readouterr().out)] == [
            ("done", 0), ("demo", 2)
        ]  # fmt: skip
        assert main(["cancel", "demo"]) == 0 and "job0, job1" in capsys.readouterr().out
        assert file.take_cancelled() == ["job0", "job1"]
        assert main(["cancel", "done"]) == 2 and "There is: demo (job0, job1)" in capsys.readouterr().err
        assert main(["status", "dmeo"]) == 2 and "'dmeo'. There is: demo, done" in capsys.readouterr().err
    assert main(["status", "--watch"]) == 0 and "demo: interrupted" in capsys.readouterr().out


def test_to_look_does_not_keep_a_launcher_out(tmp_path: Path) -> None:
    """`shoal status` holds a study's lock for a moment."""
    root = tmp_path / "demo"
    status_file(root, "running").write()
    enough = Event()

    def look() -> None:
        while not enough.is_set():
            read_status(root)

    looking = Thread(target=look)
    looking.start()
    try:
        for _ in range(100):
            with at_work(root):
                pass
    finally:
        enough.set()
        looking.join()


def test_the_oldest_study_is_shown_first(tmp_path: Path) -> None:
    for name in ("young", "old"):
        file = status_file(tmp_path / name, "succeeded")
        file.started = 1.0 if name == "old" else 2.0
        file.write(state="finished")
    assert [status.study for status in StudiesHere(tmp_path).read()] == ["old", "young"]


def test_preparation_ends_with_the_last_job_that_needs_it() -> None:
    stopped: list[str] = []
    ray = SimpleNamespace(cancel=lambda ref, force: stopped.append(ref))
    preparation = Preparation(SimpleNamespace(ray=ray), None, {}, None, print, print)
    a, b, c = (SimpleNamespace(name=name) for name in "abc")
    preparation.preparing = {"first": [[a, b]], "second": [[c]]}
    assert preparation.drop("a") is a and stopped == []
    assert preparation.drop("c") is c and stopped == ["second"]
    assert preparation.drop("b") is b and stopped == ["second", "first"]
    assert not preparation.pending
