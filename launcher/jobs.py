"""The loop that prepares data, starts jobs on free cards, watches their ranks and keeps what comes back."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launcher.cluster import Cluster
from launcher.expand import StudyJob
from launcher.folder import StudyFolder, data_key, fingerprint
from launcher.inbox import Inbox
from launcher.schedule import Placement, place
from launcher.state import JobState
from launcher.table import StudyView
from launcher.worker import Outcome, RankActor, RunJob, collect_logs, compute_baselines, prepare_jobs
from training.plan import Plan, RetryWith
from training.result import RunResult

POLL_SECONDS = 0.5
GRACE_SECONDS = 3.0
"""How long the other ranks get after one failed: one of them may know the cause."""
COLLECT_SECONDS = 10.0
"""How long an interrupted study waits for logs."""


@dataclass(kw_only=True)
class RunningJob:
    """A job on its cards."""

    job: StudyJob
    placement: Placement
    workdir: str
    actors: list[Any] = field(default_factory=list)
    refs: list[Any] = field(default_factory=list)
    """Of each rank's outcome, in rank order."""
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    """Rank -> how it ended, for those that have."""


class JobRunner:
    """Runs the jobs of one study on one cluster."""

    def __init__(
        self,
        cluster: Cluster,
        folder: StudyFolder,
        states: dict[str, JobState],
        view: StudyView,
        scratch: Path,
        run_job: RunJob | None,
    ) -> None:
        self.cluster, self.folder, self.states, self.view = cluster, folder, states, view
        self.scratch = scratch
        self.run_job = run_job
        self.ray = cluster.ray
        self.inbox = cluster.actor(Inbox, str(folder.jobs.resolve()), node_id=cluster.head_node_id)
        self.waiting: list[StudyJob] = []
        self.preparing: dict[Any, list[list[StudyJob]]] = {}
        self.running: dict[str, RunningJob] = {}
        self.collecting: dict[Any, RunningJob] = {}
        self.baselines: dict[Any, str] = {}

    def run(self, jobs: Sequence[StudyJob], all_jobs: Sequence[StudyJob]) -> None:
        """Run `jobs`, and the baselines of the data of `all_jobs` that are missing; return when all have ended."""
        self._prepare(jobs)
        known = self.folder.read_baselines()
        prepared = {data_key(job) for job in jobs}
        for key, job in {data_key(job): job for job in all_jobs}.items():
            if key not in known and key not in prepared:
                self._start_baselines(job)
        while self.waiting or self.preparing or self.running or self.collecting or self.baselines:
            self._start_jobs()
            refs = [*self.preparing, *self.collecting, *self.baselines]
            refs += [
                ref for job in self.running.values() for rank, ref in enumerate(job.refs) if rank not in job.outcomes
            ]
            ready, _ = self.ray.wait(refs, num_returns=1, timeout=POLL_SECONDS)
            self._take_events()
            for ref in ready:
                self._take(ref)
            self.view.update()

    def stop(self) -> None:
        """Kill every rank and bring the logs of interrupted jobs home."""
        for job in list(self.running.values()):
            self.states[job.job.name].phase = "interrupted"
            self._release(job)
        if self.collecting:
            self.ray.wait(list(self.collecting), num_returns=len(self.collecting), timeout=COLLECT_SECONDS)

    def _prepare(self, jobs: Sequence[StudyJob]) -> None:
        """Start one task for each distinct data; jobs wait for theirs."""
        groups: dict[str, dict[str, list[StudyJob]]] = defaultdict(lambda: defaultdict(list))
        for job in jobs:
            settings = {**job.spec.to_dict(), "lora": None, "seed": None, "name": None, "output_dir": None}
            same = json.dumps(settings, sort_keys=True)
            groups[data_key(job)][same].append(job)
        for group in groups.values():
            alike = list(group.values())
            specs = [(same[0].spec, _deepspeed_source(same[0])) for same in alike]
            for first, *_ in alike:
                self.states[first.name].status = "preparing"  # the others like it wait for it
            self.preparing[self.cluster.task(prepare_jobs, specs, self.inbox)] = alike

    def _start_baselines(self, job: StudyJob) -> None:
        self.baselines[self.cluster.task(compute_baselines, job.spec)] = data_key(job)

    def _start_jobs(self) -> None:
        """Start the waiting jobs the scheduler has cards for."""
        busy = {card for job in self.running.values() for card in job.placement.cards}
        free = [card for card in self.cluster.cards if card not in busy]
        by_name = {job.name: job for job in self.waiting}
        for placement in place([(job.name, job.spec.num_ranks) for job in self.waiting], free):
            job = by_name[placement.job]
            self.waiting.remove(job)
            self.running[job.name] = self._start(job, placement)

    def _start(self, job: StudyJob, placement: Placement) -> RunningJob:
        """Start the actors of a job, one a rank."""
        running = RunningJob(job=job, placement=placement, workdir=str(self.scratch / job.name))
        nodes = [card.node_id for card in placement.cards]
        one_node = len(set(nodes)) == 1
        state = self.states[job.name]
        state.status, state.message = "running", ""
        state.cards = " ".join(card.label for card in placement.cards)
        address = None
        for rank, card in enumerate(placement.cards):
            actor = self.cluster.actor(RankActor, running.workdir, rank, node_id=card.node_id, card=card)
            address = actor.address.remote(one_node) if address is None else address
            ranks = {
                "rank": rank,
                "world_size": len(nodes),
                "local_rank": nodes[:rank].count(card.node_id),
                "local_world_size": nodes.count(card.node_id),
                "num_threads": card.num_threads,
            }
            running.actors.append(actor)
            running.refs.append(actor.run.remote(job.spec, ranks, address, self.inbox, self.run_job))
        return running

    def _take_events(self) -> None:
        """Bring the states up to date."""
        for name, event in self.ray.get(self.inbox.drain.remote()):
            # Jobs that share their data are prepared together; the first of them has the messages.
            self.states[name].apply(event)

    def _take(self, ref: Any) -> None:
        """Deal with one reference that has become ready."""
        if ref in self.preparing:
            self._take_prepared(self.preparing.pop(ref), ref)
        elif ref in self.baselines:
            self._take_baselines(self.baselines.pop(ref), ref)
        elif ref in self.collecting:
            self._take_logs(self.collecting.pop(ref), ref)
        else:
            job = next(job for job in self.running.values() if ref in job.refs)
            self._take_rank(job, job.refs.index(ref))

    def _take_prepared(self, groups: list[list[StudyJob]], ref: Any) -> None:
        """Let the jobs go whose preparation worked; the others have failed."""
        outcomes = self._outcome(ref)
        answers = outcomes["result"] if outcomes["ok"] else [outcomes] * len(groups)
        for jobs, outcome in zip(groups, answers, strict=True):
            for job in jobs:
                if outcome["ok"]:
                    self.states[job.name].status = "waiting"
                    self.waiting.append(job)
                else:
                    self._end(_failure(job, outcome["error"], outcome.get("log_tail", "")))
        good = [jobs[0] for jobs, outcome in zip(groups, answers, strict=True) if outcome["ok"]]
        if good and data_key(good[0]) not in self.folder.read_baselines():
            self._start_baselines(good[0])

    def _take_baselines(self, key: str, ref: Any) -> None:
        """Keep the baselines of one data."""
        outcome = self._outcome(ref)
        if outcome["ok"]:
            self.folder.write_baselines({**self.folder.read_baselines(), key: outcome["result"]})
        else:
            self.view.say(f"the baseline could not be computed: {outcome['error']}")

    def _take_rank(self, running: RunningJob, rank: int) -> None:
        """Note how a rank ended; end the job with the last of them, or with the first that failed."""
        running.outcomes[rank] = self._outcome(running.refs[rank])
        if not running.outcomes[rank]["ok"]:
            left = [ref for other, ref in enumerate(running.refs) if other not in running.outcomes]
            ready, _ = self.ray.wait(left, num_returns=len(left), timeout=GRACE_SECONDS) if left else ([], [])
            for ref in ready:
                other = running.refs.index(ref)
                running.outcomes[other] = self._outcome(ref)
        elif len(running.outcomes) < len(running.refs):
            return
        self._release(running)

    def _release(self, running: RunningJob) -> None:
        """Kill what is left of a job, free its cards, and have its logs sent home."""
        for actor in running.actors:
            self.ray.kill(actor)
        del self.running[running.job.name]
        for node_id in dict.fromkeys(card.node_id for card in running.placement.cards):
            ref = self.cluster.task(collect_logs, running.job.name, running.workdir, self.inbox, node_id=node_id)
            self.collecting[ref] = running

    def _take_logs(self, running: RunningJob, ref: Any) -> None:
        """End the job once the logs of its last node are in."""
        outcome = self._outcome(ref)
        tails: dict[str, str] = outcome["result"] if outcome["ok"] else {}
        running.outcomes = {
            rank: {**answer, "log_tail": tails.get(f"rank{rank}.log", answer.get("log_tail", ""))}
            for rank, answer in running.outcomes.items()
        }
        if running in self.collecting.values():
            return
        self._take_events()
        plans = [answer["plan"] for _, answer in sorted(running.outcomes.items()) if "plan" in answer]
        if plans:
            self._try_again(running.job, Plan(**plans[0]))
            return
        failed = [(rank, answer) for rank, answer in sorted(running.outcomes.items()) if not answer["ok"]]
        result = running.outcomes.get(0, {}).get("result")
        if failed:
            # A user's mistake says most, then a rank that was killed; what the others met is its consequence.
            rank, answer = min(failed, key=lambda item: (not item[1].get("is_user_error"), not item[1].get("died")))
            prefix = "" if answer.get("is_user_error") or len(running.refs) == 1 else f"rank {rank}: "
            self._end(_failure(running.job, prefix + answer["error"], answer["log_tail"]))
        elif result is None:
            self._end(_failure(running.job, "rank 0 ended without a result", running.outcomes[0]["log_tail"]))
        else:
            shown = running.job.written
            self._end(
                replace(
                    RunResult(**result), name=shown.name, settings=shown.to_dict(), fingerprint=fingerprint(running.job)
                )
            )

    def _try_again(self, job: StudyJob, plan: Plan) -> None:
        """Let a job that ran out of memory go on from its newest checkpoint, with a plan that needs less."""
        self.folder.write_plan(job, plan)
        self.view.say(f"{job.name}: {RetryWith(plan)}")
        self.states[job.name].status = "waiting"
        self.waiting.insert(0, job)

    def _end(self, result: RunResult) -> None:
        """Keep a job's result or failure."""
        self.folder.write_result(result)
        self.states[result.name].end(result)

    def _outcome(self, ref: Any) -> Outcome:
        """Return what a task or rank came to; its death is an outcome too."""
        try:
            answer = self.ray.get(ref)
        except self.ray.exceptions.RayError as error:
            cause = str(error).strip().splitlines()[0]
            return {
                "ok": False,
                "error": f"its process died: killed from outside or by a full memory ({cause})",
                "died": True,
            }
        return answer if isinstance(answer, dict) and "ok" in answer else {"ok": True, "result": answer}


def _failure(job: StudyJob, message: str, log_tail: str) -> RunResult:
    """Return the job object of a job that failed."""
    return RunResult(
        name=job.name,
        status="failed",
        settings=job.written.to_dict(),
        fingerprint=fingerprint(job),
        num_ranks=job.written.num_ranks,
        error={"message": message, "log_tail": log_tail},
    )


def _deepspeed_source(job: StudyJob) -> str:
    """Return how messages name the job's DeepSpeed settings."""
    return job.written.deepspeed if isinstance(job.written.deepspeed, str) else "deepspeed"
