"""Forecasts of what jobs need, asked of a process of the trainer's: the launcher knows no torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import Empty, Queue
from types import TracebackType
from typing import Any

from launcher.cards import Capability, Card, Node
from launcher.choose import Choice, choose
from launcher.expand import CHECKOUT, StudyJob, but_for_the_seed
from launcher.known_answers import KnownAnswers, key_of
from launcher.precisions import choose_for_each
from launcher.remedies import remedies
from launcher.settings import settings
from launcher.speed import least_capable
from training.errors import ShoalError, UserError
from training.forecast.memory_estimate import JobForecast, MemoryEstimate, Work
from training.spec import JobSpec

Planned = Choice | ShoalError
"""How a job is to run, or why that is not known; a UserError is what the trainer refuses the job for."""


class ForecastDied(ShoalError):
    """The process that answers has ended."""


class ForecastProcess:
    """The trainer's process that answers, started by the first question that is not `known`; a context manager.

    Seconds a question, once. `data_content` of the methods is StudyJob's.
    """

    def __init__(self, *, on_card: bool, known: KnownAnswers | None = None) -> None:
        self.on_card, self.known = on_card, known
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> ForecastProcess:
        self.log = tempfile.TemporaryFile("w+")
        return self

    def _start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "training.forecast"]
        # A group of its own, so that Ctrl-C is ours to handle and its forks end with it.
        return subprocess.Popen(
            command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
            start_new_session=True,
        )  # fmt: skip

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None:
            if error is not None:
                with suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
            with suppress(BrokenPipeError):
                self.process.communicate()
        self.log.close()

    def forecast(
        self, spec: JobSpec, source: str, data_content: Sequence[str] = (), capability: Capability | None = None
    ) -> JobForecast | UserError:
        """Return what a job needs, or what the trainer refuses it for; `source` names its DeepSpeed settings. Cards
        whose compute `capability` is not known count as of the Ampere generation."""
        answer = self._answer(spec, source, data_content, memory=True, capability=capability)
        if not answer["ok"]:
            return UserError(answer["error"])
        memory, work = MemoryEstimate(**answer["estimate"]), Work(**answer["work"])
        return JobForecast(memory=memory, work=work, dtype=answer["dtype"])

    def work(self, spec: JobSpec, source: str, data_content: Sequence[str] = ()) -> Work:
        """Return what a job computes. Raises UserError for what the trainer refuses."""
        answer = self._answer(spec, source, data_content, memory=False, capability=None)
        if not answer["ok"]:
            raise UserError(answer["error"])
        return Work(**answer["work"])

    def _answer(
        self, spec: JobSpec, source: str, data_content: Sequence[str], *, memory: bool, capability: Capability | None
    ) -> dict[str, Any]:
        question = {
            "spec": spec.to_dict(), "deepspeed_source": source, "on_card": self.on_card, "memory": memory,
            "capability": capability,
        }  # fmt: skip
        if self.known is None:
            return self._ask(question)
        key = key_of(question, data_content)
        answer = self.known.get(key)
        if answer is None:
            answer = self._ask(question)
            if answer["ok"]:  # what is refused may be mended by what is no part of the question
                self.known.add(key, answer)
        return answer

    def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        process = self.process = self.process or self._start()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
            answer = dict(json.loads(process.stdout.readline()))
        except (BrokenPipeError, json.JSONDecodeError):
            process.wait()
            self.process = None  # the next question may be another's
            self.log.seek(0)
            reason = self.log.read().strip().splitlines()
            raise ForecastDied(f"the memory forecast failed: {reason[-1] if reason else 'no answer'}") from None
        if answer.get("crashed"):
            raise ShoalError(f"the memory forecast failed: {answer['error']}")
        return answer


def alike(jobs: Sequence[StudyJob]) -> list[list[StudyJob]]:
    """Return the jobs in groups of those that differ in their seed only: they need the same memory and time."""
    groups: dict[str, list[StudyJob]] = defaultdict(list)
    for job in jobs:
        settings = but_for_the_seed(job.spec.to_dict())
        groups[json.dumps([settings, sorted(job.fixed - {"seed"})], sort_keys=True)].append(job)
    return list(groups.values())


def plan_jobs(
    jobs: Sequence[StudyJob],
    cards: Sequence[Card],
    nodes: Mapping[str, Node],
    *,
    on_card: bool,
    known: KnownAnswers | None = None,
    with_remedies: bool = True,
) -> Iterator[tuple[StudyJob, Planned]]:
    """Yield each job with the setting it is to run with; those that differ in their seed together, and what fits
    nowhere last, `with_remedies` or without. What is `known` is not asked again.

    Raises ShoalError where the trainer's process dies.
    """
    most_ranks = max(1, len(cards) // max(1, len(jobs)))
    with ForecastProcess(on_card=on_card, known=known) as process:

        def search(job: StudyJob, *, least: bool = False) -> Choice:
            def among(job: StudyJob, some: Sequence[Card], precision: str) -> Choice:
                setting, spec = next(settings(job, len(some)))  # one that is tried, whatever file the study names
                work, capability = process.work(spec, setting.deepspeed, job.data_content), least_capable(some)
                ask = partial(process.forecast, data_content=job.data_content, capability=capability)
                return choose(
                    job, work, ask, some, nodes, on_card=on_card, most_ranks=most_ranks, least=least,
                    precision=precision,
                )  # fmt: skip

            return choose_for_each(job, cards, among, on_card=on_card)

        refused: list[tuple[list[StudyJob], Choice]] = []
        for same in alike(jobs):
            planned: Planned
            try:
                planned = search(same[0])
            except ForecastDied:
                for others, choice in refused:  # that they fit nowhere is known
                    yield from _each(others, choice)
                raise
            except ShoalError as error:  # of these jobs alone
                planned = error
            if isinstance(planned, Choice) and planned.refusal:
                refused.append((same, planned))
            else:
                yield from _each(same, planned)
        for same, choice in refused:  # what would make them fit takes longest to find, and the others need not wait
            advice = remedies(same[0], search) if with_remedies else ""
            yield from _each(same, replace(choice, refusal=f"{choice.refusal} {advice}".rstrip()))


def _each(same: Sequence[StudyJob], planned: Planned) -> Iterator[tuple[StudyJob, Planned]]:
    """Yield jobs that differ in their seed with what was found for the first of them."""
    for job in same:
        yield job, planned.of(job) if isinstance(planned, Choice) else planned


class Planner:
    """Plans a study's jobs in a thread, while other things go on."""

    def __init__(
        self,
        jobs: Sequence[StudyJob],
        cards: Sequence[Card],
        nodes: Mapping[str, Node],
        *,
        on_card: bool,
        known: Path,
        with_remedies: bool,
    ) -> None:
        """`known` is the file of the forecasts there have been; for the rest see plan_jobs."""
        self.done: Queue[tuple[str, Planned]] = Queue()
        names = {job.name for job in jobs}
        plans = plan_jobs(
            list(jobs),
            list(cards),
            dict(nodes),
            on_card=on_card,
            known=KnownAnswers(known),
            with_remedies=with_remedies,
        )
        threading.Thread(target=self._work, args=(names, plans), daemon=True).start()

    def take(self) -> dict[str, Planned]:
        """Return the plans that have come since the last call, by the names of the jobs."""
        new: dict[str, Planned] = {}
        while True:
            try:
                name, planned = self.done.get_nowait()
            except Empty:
                return new
            new[name] = planned

    def _work(self, left: set[str], plans: Iterator[tuple[StudyJob, Planned]]) -> None:
        try:
            for job, planned in plans:
                left.discard(job.name)
                self.done.put((job.name, planned))
        except Exception as error:  # whatever it is, jobs can do without
            reason = error if isinstance(error, ShoalError) else ShoalError(f"the memory forecast failed: {error}")
            for name in left:
                self.done.put((name, reason))
