"""What a study that runs tells others, and what they ask of it: status.json and cancel/ in its folder.

The launcher writes the one and reads the other. `shoal status` and `shoal cancel` on its machine use these files as
they are; on other nodes of a Ray cluster they ask the study's Inbox, which does (launcher/others.py).
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from launcher.board import Request
from launcher.state import OPEN, JobState
from training.disk import is_taken

STATUS_FILE = "status.json"
CANCEL_FOLDER = "cancel"
"""Holds an empty file named after each job that is to end."""
WRITE_SECONDS = 2.0
STALE_SECONDS = 30.0
"""A launcher that has written nothing for so long hangs, and nobody gives way to it."""


@dataclass(frozen=True, kw_only=True)
class StudyStatus:
    """The content of status.json."""

    study: str
    folder: str
    """Its study folder, absolute, on the launcher's machine."""
    host: str
    """The launcher's machine."""
    pid: int
    """The launcher's process."""
    priority: int
    started: float
    """Unix seconds, as is `time`."""
    time: float
    """When this is, or was last, so."""
    state: Literal["running", "finished", "interrupted"]
    jobs: list[JobState]
    waiting: list[Request]
    """What jobs wait for; of those that need the same no more than there are cards."""
    gives_way_to: int = 0
    """Waiting jobs of studies of higher priority that room is kept for."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON holds them."""
        return asdict(self)

    @staticmethod
    def of(content: dict[str, Any]) -> StudyStatus:
        """Return the status that `to_dict` made this of. Raises TypeError or KeyError for anything else."""
        jobs = [JobState(**job) for job in content["jobs"]]
        waiting = [Request.of(request) for request in content["waiting"]]
        return StudyStatus(**{**content, "jobs": jobs, "waiting": waiting})

    def headline(self) -> str:
        """Return one line about the study as a whole."""
        counts = Counter(job.status for job in self.jobs)
        done = counts.pop("succeeded", 0) + counts.pop("finished earlier", 0)
        parts = [f"{done} of {len(self.jobs)} jobs done"]
        parts += [f"{count} {status}" for status, count in sorted(counts.items())]
        used = {card for job in self.jobs if job.status == "running" for card in job.cards.split()}
        parts += [f"{len(used)} card{'s' * (len(used) != 1)} in use"] if used else []
        parts += [f"giving way to {self.gives_way_to} of higher priority"] if self.gives_way_to else []
        elapsed = timedelta(seconds=int(self.time - self.started))
        return f"{self.study}: {self.state}  priority {self.priority}  elapsed {elapsed}  {', '.join(parts)}"


class StatusFile:
    """The launcher's side of it."""

    def __init__(self, root: Path, study: str, priority: int, states: Sequence[JobState]) -> None:
        self.root, self.study, self.priority, self.states = root, study, priority, states
        self.started = time.time()
        self.next_write = 0.0
        self.take_cancelled()  # what was asked of an earlier launcher is over

    def write(
        self,
        waiting: Iterable[Request] = (),
        *,
        gives_way_to: int = 0,
        state: Literal["running", "finished", "interrupted"] = "running",
    ) -> None:
        """Write status.json where the last one is old enough, and always when the study ends."""
        if state == "running" and time.monotonic() < self.next_write:
            return
        self.next_write = time.monotonic() + WRITE_SECONDS
        status = StudyStatus(
            study=self.study, folder=str(self.root.resolve()), host=socket.gethostname(), pid=os.getpid(),
            priority=self.priority, started=self.started, time=time.time(), state=state, jobs=list(self.states),
            waiting=list(waiting), gives_way_to=gives_way_to,
        )  # fmt: skip
        with suppress(OSError):  # a full disk is the results' to complain of
            temporary = self.root / f".{STATUS_FILE}.tmp"
            temporary.write_text(json.dumps(status.to_dict(), ensure_ascii=False), encoding="utf-8")
            temporary.replace(self.root / STATUS_FILE)

    def take_cancelled(self) -> list[str]:
        """Return the jobs that somebody has cancelled since the last call."""
        asked = sorted((self.root / CANCEL_FOLDER).glob("*"))
        for path in asked:
            path.unlink(missing_ok=True)
        return [path.name for path in asked]


def read_status(root: Path) -> StudyStatus | None:
    """Return the newest status of a study folder; None where there is none to be read.

    A launcher that was killed could not say so: its study is interrupted, and so are the jobs that ran.
    """
    try:
        status = StudyStatus.of(json.loads((root / STATUS_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError):
        return None
    status = replace(status, folder=str(root.resolve()))
    if status.state == "running" and not is_taken(root):
        status = replace(status, state="interrupted")
    if status.state == "running":  # its launcher may be busy
        status = replace(status, time=time.time())
    if status.state == "interrupted":
        for job in status.jobs:
            job.status = "interrupted" if job.status in ("running", "preparing") else job.status
    return status


def wants(root: Path) -> dict[str, Any]:
    """Return {"priority", "waiting": [Request as a dict]} of a study whose launcher is at work; {} of another."""
    status = read_status(root)
    if status is None or status.state != "running":
        return {}
    if time.time() - (root / STATUS_FILE).stat().st_mtime > STALE_SECONDS:
        return {}
    return {"priority": status.priority, "waiting": [asdict(request) for request in status.waiting]}


def ask_to_cancel(root: Path, jobs: Iterable[str]) -> None:
    """Ask the launcher of a study folder to end these of its jobs."""
    status = read_status(root)
    if status is None:
        return
    folder = root / CANCEL_FOLDER
    folder.mkdir(exist_ok=True)
    for job in {job.name for job in status.jobs if job.status in OPEN}.intersection(jobs):
        (folder / job).touch()
