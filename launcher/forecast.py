"""Forecasts of what jobs need, asked of a process of the trainer's: the launcher knows no torch."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from queue import Empty, Queue

from launcher.expand import CHECKOUT, StudyJob
from training.errors import ShoalError, UserError
from training.forecast.memory_estimate import JobForecast, MemoryEstimate, Work
from training.spec import JobSpec

Forecast = JobForecast | ShoalError
"""What a job needs, or why that is not known; a UserError is what the trainer refuses the job for."""


def forecasts(specs: Sequence[JobSpec], *, on_card: bool) -> Iterator[JobForecast | UserError]:
    """Yield the forecast of each job, or what the trainer refuses it for, as it comes.

    Seconds for each that is new, then it is known. Raises ShoalError where the trainer's process fails.
    """
    command = [sys.executable, "-m", "training.forecast"]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        assert process.stdin is not None and process.stdout is not None
        for spec in specs:
            try:
                process.stdin.write(json.dumps({"spec": spec.to_dict(), "on_card": on_card}) + "\n")
                process.stdin.flush()
                answer = json.loads(process.stdout.readline())
            except (BrokenPipeError, json.JSONDecodeError):
                process.wait()
                log.seek(0)
                reason = log.read().strip().splitlines()
                raise ShoalError(f"the memory forecast failed: {reason[-1] if reason else 'no answer'}") from None
            if answer["ok"]:
                yield JobForecast(memory=MemoryEstimate(**answer["estimate"]), work=Work(**answer["work"]))
            else:
                yield UserError(answer["error"])
        process.stdin.close()


def alike(jobs: Sequence[StudyJob]) -> list[list[StudyJob]]:
    """Return the jobs in groups of those that differ in their seed only: they need the same memory and time."""
    groups: dict[str, list[StudyJob]] = defaultdict(list)
    for job in jobs:
        settings = {**job.spec.to_dict(), "seed": None, "name": None, "output_dir": None}
        groups[json.dumps(settings, sort_keys=True)].append(job)
    return list(groups.values())


class Forecaster:
    """Forecasts of a study's jobs, made in a thread while other things go on."""

    def __init__(self, jobs: Sequence[StudyJob], *, on_card: bool) -> None:
        self.done: Queue[tuple[str, Forecast]] = Queue()
        self.thread = threading.Thread(target=self._work, args=(alike(jobs), on_card), daemon=True)
        self.thread.start()

    def take(self) -> dict[str, Forecast]:
        """Return the forecasts that have come since the last call, by the names of the jobs."""
        new: dict[str, Forecast] = {}
        while True:
            try:
                name, forecast = self.done.get_nowait()
            except Empty:
                return new
            new[name] = forecast

    def _work(self, groups: list[list[StudyJob]], on_card: bool) -> None:
        left = list(groups)
        try:
            for forecast in forecasts([first.spec for first, *_ in groups], on_card=on_card):
                for job in left.pop(0):
                    self.done.put((job.name, forecast))
        except Exception as error:  # whatever it is, jobs can do without
            reason = error if isinstance(error, ShoalError) else ShoalError(f"the memory forecast failed: {error}")
            for job in (job for jobs in left for job in jobs):
                self.done.put((job.name, reason))
