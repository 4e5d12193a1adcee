"""What happens before jobs start: data and models checked and made once, baselines, data checks, memory forecasts."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from launcher.board import Request, room_for
from launcher.check_text import summary
from launcher.choose import Choice
from launcher.cluster import Cluster
from launcher.expand import StudyJob, but_for_the_seed
from launcher.fit import explain, whole_cards
from launcher.folder import StudyFolder, data_key
from launcher.forecast import Planned, Planner
from launcher.inventory import unreserved
from launcher.settings import deepspeed_source
from launcher.state import JobState
from launcher.worker import Outcome, check_data, compute_baselines, prepare_jobs
from training.errors import ShoalError, UserError


class Fail(Protocol):
    """Told of a job that cannot run: the job, the message, the end of a log, whether its study is to be mended."""

    def __call__(self, job: StudyJob, message: str, log_tail: str, *, is_user_error: bool) -> None:
        """Keep it."""


class Preparation:
    """Prepares the jobs of a study; `ready` returns those that may start."""

    def __init__(
        self, cluster: Cluster, folder: StudyFolder, states: dict[str, JobState], inbox: Any,
        say: Callable[[str], None], fail: Fail,
    ) -> None:  # fmt: skip
        self.cluster, self.folder, self.states, self.inbox = cluster, folder, states, inbox
        self.say, self.fail = say, fail
        self.preparing: dict[Any, list[list[StudyJob]]] = {}
        self.baselines: dict[Any, StudyJob] = {}
        self.data_checks: dict[Any, str] = {}
        self.prepared: list[StudyJob] = []
        self.planners: list[Planner] = []
        self.plans: dict[str, Planned] = {}

    def begin(self, jobs: Sequence[StudyJob], all_jobs: Sequence[StudyJob]) -> None:
        """Start with `jobs`, and with the baselines and checks of the data of `all_jobs` that are missing."""
        self._plan(jobs)
        new = []
        for job in jobs:
            if self.folder.has_checkpoint(job):  # what it needs was in order, and its data and model are made
                self._let_wait(job)
            else:
                new.append(job)
        self._prepare(new)
        prepared = {data_key(job) for job in new}
        for key, job in {data_key(job): job for job in reversed(all_jobs)}.items():
            if key not in prepared:
                self._look_at_data(job)

    @property
    def refs(self) -> list[Any]:
        """Return what is to be waited for."""
        return [*self.preparing, *self.baselines, *self.data_checks]

    @property
    def pending(self) -> bool:
        """Whether anything is left to come."""
        return bool(self.preparing or self.baselines or self.data_checks or self.prepared)

    def take(self, ref: Any, outcome: Outcome) -> bool:
        """Deal with one of `refs` that has become ready; False where it is none."""
        if ref in self.preparing:
            self._take_prepared(self.preparing.pop(ref), outcome)
        elif ref in self.baselines:
            self._take_baselines(self.baselines.pop(ref), outcome)
        elif ref in self.data_checks:
            self._take_data_check(self.data_checks.pop(ref), outcome)
        else:
            return False
        return True

    def ready(self) -> list[tuple[StudyJob, Planned]]:
        """Return the jobs that have become ready, with how they are to run."""
        for planner in self.planners:
            self.plans |= planner.take()
        ready = []
        for job in [job for job in self.prepared if job.name in self.plans]:
            planned = self.plans.pop(job.name)
            self.prepared.remove(job)
            # Its rank would say the same, and keep cards from others until then. A job that has trained was in order:
            # what is amiss now is here, as a hub that does not answer.
            if isinstance(planned, UserError) and not self.folder.has_checkpoint(job):
                self.fail(job, str(planned), "", is_user_error=True)
                continue
            if isinstance(planned, ShoalError):
                self.say(f"{job.name}: {planned} It gets whole cards.")
            ready.append((job, planned))
        return ready

    def asked(self, job: StudyJob, planned: Planned) -> tuple[Request, str | None]:
        """Return what a job asks of the scheduler, and why no cards would ever do where that is so."""
        if isinstance(planned, Choice):
            return planned.asked, planned.refusal
        cards, nodes = unreserved(self.cluster.cards, self.cluster.nodes)
        asked = whole_cards(job.name, job.spec, cards)
        fits = room_for(asked, cards, nodes)
        return asked, None if fits else explain(job.spec, asked, cards, nodes)

    def plan_again(self, jobs: Sequence[StudyJob]) -> None:
        """Plan jobs for the cards that are left; they become ready once more.

        What fits them no longer waits for cards to come back, and needs no advice on its study.
        """
        self.prepared += jobs
        self._plan(jobs, with_remedies=False)

    def drop(self, name: str) -> StudyJob:
        """Let go of a job that is not ready yet, and of what is made for it alone; return it."""
        for job in [job for job in self.prepared if job.name == name]:
            self.prepared.remove(job)
            return job
        ref, same, job = next(
            (ref, same, job)
            for ref, groups in self.preparing.items()
            for same in groups
            for job in same
            if job.name == name
        )
        same.remove(job)
        if not any(self.preparing[ref]):
            del self.preparing[ref]
            self.cluster.ray.cancel(ref, force=True)
        return job

    def _plan(self, jobs: Sequence[StudyJob], *, with_remedies: bool = True) -> None:
        if jobs:
            # What others have reserved they will give back: a job is planned for the cards, not for the moment.
            cards, nodes = unreserved(self.cluster.cards, self.cluster.nodes)
            known, on_card = self.folder.forecasts, self.cluster.on_card
            planner = Planner(jobs, cards, nodes, on_card=on_card, known=known, with_remedies=with_remedies)
            self.planners.append(planner)

    def _prepare(self, jobs: Sequence[StudyJob]) -> None:
        """Start one task for each distinct data; jobs wait for theirs."""
        groups: dict[str, dict[str, list[StudyJob]]] = defaultdict(lambda: defaultdict(list))
        for job in jobs:
            settings = {**but_for_the_seed(job.spec.to_dict()), "lora": None}
            same = json.dumps(settings, sort_keys=True)
            groups[data_key(job)][same].append(job)
        for group in groups.values():
            alike = list(group.values())
            specs = [(same[0].spec, deepspeed_source(same[0])) for same in alike]
            for first, *_ in alike:
                self.states[first.name].status = "preparing"  # the others like it wait for it
            names = alike[0][0].name if len(group) == 1 else f"{alike[0][0].name} and others like it"
            ref = self.cluster.task(prepare_jobs, specs, self.inbox, name=f"{names}: prepare")
            self.preparing[ref] = alike

    def _look_at_data(self, job: StudyJob) -> None:
        """Compute the baselines of the job's data, then check it: one after the other in one warm Ray worker."""
        if data_key(job) in self.folder.read_baselines():
            self._start_data_check(job)
            return
        ref = self.cluster.task(compute_baselines, job.spec, name=f"{job.name}: baselines of its data")
        self.baselines[ref] = job

    def _start_data_check(self, job: StudyJob) -> None:
        """Check the job's data while jobs train."""
        if data_key(job) not in self.folder.read_data_checks():
            ref = self.cluster.task(check_data, job.spec, name=f"{job.name}: check of its data")
            self.data_checks[ref] = data_key(job)

    def _take_prepared(self, groups: list[list[StudyJob]], outcomes: Outcome) -> None:
        """Let the jobs go whose preparation worked; the others have failed."""
        answers = outcomes["result"] if outcomes["ok"] else [outcomes] * len(groups)
        for jobs, outcome in zip(groups, answers, strict=True):
            for job in jobs:
                if outcome["ok"]:
                    self._let_wait(job)
                else:
                    is_user_error = bool(outcome.get("is_user_error"))
                    self.fail(job, outcome["error"], outcome.get("log_tail", ""), is_user_error=is_user_error)
        good = [jobs[0] for jobs, outcome in zip(groups, answers, strict=True) if jobs and outcome["ok"]]
        if good:
            self._look_at_data(good[0])
        else:  # loading names the first fault, the check all of them
            self._start_data_check(next(jobs[0] for jobs in groups if jobs))

    def _let_wait(self, job: StudyJob) -> None:
        self.states[job.name].status = "waiting"
        self.prepared.append(job)

    def _take_baselines(self, job: StudyJob, outcome: Outcome) -> None:
        """Keep the baselines of one data."""
        if outcome["ok"]:
            self.folder.add_baselines(data_key(job), outcome["result"])
        else:
            self.say(f"the baseline could not be computed: {outcome['error']}")
        self._start_data_check(job)

    def _take_data_check(self, key: str, outcome: Outcome) -> None:
        """Keep the check of one data, and say what is wrong."""
        if outcome["ok"]:
            checks = {**self.folder.read_data_checks(), key: outcome["result"]}
            self.folder.write_data_checks(checks)
            self.say(f"data check of {outcome['result']['data']}: {summary(outcome['result']['check'])}")
        elif not outcome["is_user_error"]:  # else the jobs of this data say so
            self.say(f"the data could not be checked: {outcome['error']}")
