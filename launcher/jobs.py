"""The loop over a study's jobs: starts them where the scheduler says, watches their ranks, keeps what comes back."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.board import Request, room_for
from launcher.cards import Node
from launcher.choose import Choice
from launcher.cluster import Cluster
from launcher.collecting import LogCollector
from launcher.early_stopping import EarlyStops, Stop
from launcher.endings import Endings
from launcher.expand import StudyJob
from launcher.folder import StudyFolder
from launcher.forecast import Planned
from launcher.inbox import INBOX_NAME, NAMESPACE, Inbox
from launcher.inventory import unreserved
from launcher.metrics import StudyMetrics
from launcher.others import Rivals
from launcher.preparation import Preparation
from launcher.running import CANCELLED, RunningJob, Unwanted, asked_again, failure_of, start_ranks
from launcher.schedule import Scheduler
from launcher.state import OPEN, JobState
from launcher.status import StatusFile
from launcher.table import StudyView
from launcher.worker import Outcome, RunJob
from training.forecast.memory_estimate import MemoryEstimate

POLL_SECONDS = 0.5
PLAN_SECONDS = 0.05
"""Between two looks at what is planned, while nothing else goes on."""
LOOK_SECONDS = 1.0
"""Between two looks at what cards there are and what others have of them."""
RESERVE_SECONDS = 15.0
"""How long Ray may take to reserve what was free at the last look; another study may have been faster."""
GRACE_SECONDS = 3.0
"""How long the other ranks get after one failed: one of them may know the cause."""


class JobRunner:
    """Runs the jobs of one study on one cluster."""

    def __init__(
        self,
        cluster: Cluster,
        folder: StudyFolder,
        states: dict[str, JobState],
        view: StudyView,
        metrics: StudyMetrics,
        scratch: Path,
        run_job: RunJob | None,
        max_failures: int,
        status: StatusFile,
        early_stops: EarlyStops,
    ) -> None:
        self.cluster, self.folder, self.states, self.view = cluster, folder, states, view
        folder.say = view.say
        self.status, self.early_stops = status, early_stops
        self.stops: list[Stop] = []
        """Jobs that early stopping wants ended."""
        self.metrics, self.scratch = metrics, scratch
        self.run_job = run_job
        self.endings = Endings(folder, states, view, max_failures)
        self.ray = cluster.ray
        name = f"{INBOX_NAME.format(study=status.study)} {uuid.uuid4().hex[:8]}"
        self.inbox = cluster.actor(
            Inbox, str(folder.jobs.resolve()), node_id=cluster.head_node_id, name=name, namespace=NAMESPACE
        )
        self.rivals = Rivals(name, status.priority)
        self.preparation = Preparation(cluster, folder, states, self.inbox, view.say, self.endings.fail)
        self.scheduler = Scheduler(cluster.cards, cluster.nodes)
        self.waiting: dict[str, StudyJob] = {}
        self.plans: dict[str, Planned] = {}
        self.asked: dict[str, Request] = {}
        """Job -> what it waits for, or has."""
        self.reserving: dict[Any, RunningJob] = {}
        self.running: dict[str, RunningJob] = {}
        self.logs = LogCollector(cluster, self.inbox)
        self.tries = itertools.count(1)
        self.next_look = time.monotonic() + LOOK_SECONDS

    def run(self, jobs: Sequence[StudyJob], all_jobs: Sequence[StudyJob]) -> None:
        """Run `jobs`, and the baselines of the data of `all_jobs` that are missing; return when all have ended."""
        self.preparation.begin(jobs, all_jobs)
        while self.preparation.pending or self.waiting or self.reserving or self.running or self.logs.open:
            for job, planned in self.preparation.ready():
                self._admit(job, planned)
            for name in self.status.take_cancelled():
                self._give_up(name, CANCELLED)
            while self.stops:
                stop = self.stops.pop()
                self._give_up(stop.job, self.early_stops.unwanted(stop, self.states, self.running))
            if self.scheduler.give_way(self.rivals.ahead()):
                self.next_look = 0.0  # what they no longer wait for they have
            self._look()
            self._start_jobs()
            refs = [*self.preparation.refs, *self.reserving, *self.logs.open]
            refs += [ref for job in self.running.values() for ref in job.open_refs()]
            if refs:
                ready, _ = self.ray.wait(refs, num_returns=1, timeout=POLL_SECONDS)
            else:
                time.sleep(PLAN_SECONDS if self.preparation.pending else POLL_SECONDS)
                ready = []
            self._take_events()
            for ref in ready:
                self._take(ref)
            self.view.update()
            self.metrics.update(len(self.cluster.cards))
            self.status.write(self.scheduler.queue(), gives_way_to=len(self.scheduler.ahead))

    def stop(self) -> None:
        """Kill every rank and bring the logs of interrupted jobs home."""
        for job in list(self.running.values()):
            self.states[job.job.name].phase = "interrupted"
            self._release(job)
        self.logs.finish()

    def _admit(self, job: StudyJob, planned: Planned) -> None:
        """Let a job wait for cards, or refuse it where no card would ever do."""
        asked, refusal = self.preparation.asked(job, planned)
        if refusal and job.name not in self.plans:
            self.endings.fail(job, f"Refused before it started: {refusal}", "", is_user_error=True)
            return
        if refusal:  # it had cards that have gone since
            self.view.say(f"{job.name} waits for cards like those that have gone. {refusal}")
        else:
            self.plans[job.name], self.asked[job.name] = planned, asked.renamed(job.name, self.status.priority)
            if not room_for(asked, *unreserved(self.cluster.cards, self.cluster.nodes)):
                self.preparation.plan_again([job])  # cards have gone while it was planned
                return
        self.waiting[job.name] = job
        self.scheduler.submit(self.asked[job.name])

    def _look(self) -> None:
        """Take in that cards appeared or went, or that other studies have taken some."""
        if time.monotonic() < self.next_look:
            return
        self.scheduler.avoid(self.cluster.silent())
        self.next_look = time.monotonic() + LOOK_SECONDS
        cards, nodes = self.cluster.look(job.placement for job in [*self.running.values(), *self.reserving.values()])
        if cards != self.cluster.cards or nodes != self.cluster.nodes:
            gone = {card.key for card in self.cluster.cards} - {card.key for card in cards}
            self.cluster.cards, self.cluster.nodes = cards, nodes
            self.scheduler.update(cards, nodes)
            if gone:
                self._do_without(nodes)
        for job in [job for job in self.reserving.values() if time.monotonic() > job.give_up_at]:
            # What looked free is another study's by now: wait again, and look closer.
            del self.reserving[job.reservation]
            self._free(job)
            self._wait_again(job)

    def _do_without(self, nodes: Mapping[str, Node]) -> None:
        """Deal with cards that have gone: jobs on them have died, jobs that waited for such are planned again."""
        for running in list(self.running.values()):
            lost = {
                rank: {"ok": False, "error": "its PC has gone", "died": True}
                for rank, card in enumerate(running.placement.cards)
                if card.node_id not in nodes and rank not in running.outcomes
            }
            if lost:
                running.outcomes |= lost
                self._end_try(running)
        there = unreserved(self.cluster.cards, self.cluster.nodes)
        stranded = [job for name, job in self.waiting.items() if not room_for(self.asked[name], *there)]
        for job in stranded:
            del self.waiting[job.name]
            self.scheduler.withdraw(self.asked[job.name])
        self.preparation.plan_again(stranded)

    def _start_jobs(self) -> None:
        """Reserve cards for the jobs that the scheduler has room for."""
        for placement in self.scheduler.start(time.monotonic()):
            job, planned = self.waiting.pop(placement.job), self.plans[placement.job]
            group, reservation = self.cluster.reserve(placement)
            running = RunningJob(
                job=job,
                spec=planned.on(placement.request).spec if isinstance(planned, Choice) else job.spec,
                placement=placement,
                # Of this try alone: what the one before has left may still be on its way to the head.
                workdir=str(self.scratch / f"{job.name}-{next(self.tries)}"),
                group=group,
                reservation=reservation,
                give_up_at=time.monotonic() + RESERVE_SECONDS,
            )
            self.reserving[reservation] = running

    def _take_events(self) -> None:
        """Bring the states up to date."""
        for name, event in self.ray.get(self.inbox.drain.remote()):
            # Jobs that share their data are prepared together; the first of them has the messages.
            self.states[name].apply(event)
            self.stops += self.early_stops.take(name, event, self.states[name])
            if event["kind"] == "waiting":
                self.view.say(f"{name}: {event['message']}")
            if event["kind"] == "step" and name in self.running:
                self.scheduler.expect(name, time.monotonic() + event["eta_seconds"])

    def _take(self, ref: Any) -> None:
        """Deal with one reference that has become ready."""
        if ref in self.preparation.refs:
            self.preparation.take(ref, self.cluster.outcome(ref))
        elif ref in self.reserving:
            self._begin(self.reserving.pop(ref), self.cluster.outcome(ref))
        elif ref in self.logs.open:
            self._take_logs(ref)
        else:
            job = next(job for job in self.running.values() if ref in job.refs)
            self._take_rank(job, job.refs.index(ref))

    def _begin(self, running: RunningJob, reserved: Outcome) -> None:
        """Start the ranks of a job whose cards are reserved."""
        if not reserved["ok"]:
            self._free(running)
            self._wait_again(running)
            return
        planned = self._plan_of(running)
        forecast = planned.forecast.memory if isinstance(planned, Choice) else MemoryEstimate()
        cards = " ".join(card.label for card in running.placement.cards)
        self.states[running.job.name].begin(cards, forecast.card_bytes or forecast.host_bytes)
        self.running[running.job.name] = running
        running.resumes, running.began_at = self.folder.has_checkpoint(running.job), time.monotonic()
        self.folder.record_placement("start", running.placement)
        start_ranks(self.cluster, running, self.inbox, self.run_job, self.scheduler.board)

    def _take_rank(self, running: RunningJob, rank: int) -> None:
        """Note how a rank ended; end the job with the last of them, or with the first that failed."""
        running.outcomes[rank] = self.cluster.outcome(running.refs[rank])
        if not running.outcomes[rank]["ok"]:
            left = running.open_refs()
            ready, _ = self.ray.wait(left, num_returns=len(left), timeout=GRACE_SECONDS) if left else ([], [])
            for ref in ready:
                running.outcomes[running.refs.index(ref)] = self.cluster.outcome(ref)
        elif len(running.outcomes) < len(running.refs):
            return
        self._end_try(running)

    def _end_try(self, running: RunningJob) -> None:
        """End a try of a job; one of which a rank has died tries again while its logs are on their way."""
        if not all(answer["ok"] for answer in running.outcomes.values()):
            # A PC may have gone, of which the other ranks' errors are the first sign.
            silent = self.cluster.silent(card.node_id for card in running.placement.cards)
            self.scheduler.avoid(silent)
            self.next_look = 0.0
            for rank, card in enumerate(running.placement.cards):
                if card.node_id in silent:
                    gone = {"ok": False, "error": "its PC does not answer", "died": True}
                    running.outcomes.setdefault(rank, gone)
        running.goes_on = self.endings.goes_on_at_once(running)
        self._release(running)
        if running.goes_on:
            self._wait_again(running)

    def _release(self, running: RunningJob) -> None:
        """Kill what is left of a job, free its cards, and have its logs sent home."""
        for actor in running.actors:
            self.ray.kill(actor)
        del self.running[running.job.name]
        running.seconds = time.monotonic() - running.began_at
        self.folder.record_placement("end", running.placement)
        self._free(running)
        self.logs.begin(running)

    def _free(self, running: RunningJob) -> None:
        """Give back what a job had reserved."""
        self.cluster.release(running.group)
        self.scheduler.end(running.job.name)

    def _wait_again(self, running: RunningJob) -> None:
        """Let a job wait for cards once more."""
        name = running.job.name
        self.states[name].status = "waiting"
        if running.actors:  # what it has trained is of this precision; more of the card, where that was short
            self.asked[name] = asked_again(running)
        if room_for(self.asked[name], *unreserved(self.cluster.cards, self.cluster.nodes)):
            self.waiting[name] = running.job
            self.scheduler.submit(self.asked[name])
        else:
            self.preparation.plan_again([running.job])

    def _plan_of(self, running: RunningJob) -> Planned:
        """Return how a job runs on the cards it has."""
        planned = self.plans[running.job.name]
        return planned.on(running.placement.request) if isinstance(planned, Choice) else planned

    def _take_logs(self, ref: Any) -> None:
        """End a job once the logs of its last node are in."""
        running = self.logs.take(ref)
        if running is None:
            return
        self._take_events()
        if self.endings.settle(running, self._plan_of(running)):
            self._wait_again(running)

    def _give_up(self, name: str, why: Unwanted) -> None:
        """End a job that waits or runs; one that has ended stays as it is."""
        if name not in self.states or self.states[name].status not in OPEN:
            return
        if name in self.running:
            self.running[name].unwanted = why
            self.states[name].phase = "cancelling" if why is CANCELLED else "stopping"
            self._release(self.running[name])
            return
        ended = self.logs.waiting(name)
        if ended:  # it tries again unless it ended well
            ended.unwanted = why if failure_of(ended) is not None else None
            return
        if name in self.waiting:
            job = self.waiting.pop(name)
            self.scheduler.withdraw(self.asked[name])
        elif reserving := [running for running in self.reserving.values() if running.job.name == name]:
            job = reserving[0].job
            del self.reserving[reserving[0].reservation]
            self._free(reserving[0])
        else:
            job = self.preparation.drop(name)
        self.endings.give_up(job, why)
