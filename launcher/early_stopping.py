"""Early stopping within a study: its check, its jobs as halving sees them, and what is kept of a stopped one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from launcher.expand import StudyJob
from launcher.folder import StudyFolder, data_key
from launcher.halving import Halving, Member, Verdict, arenas_with_rivals
from launcher.report.answer import METRIC_NAMES
from launcher.report.study_files import EVENTS_FILE, json_lines
from launcher.running import RunningJob, Unwanted
from launcher.state import JobState
from launcher.study import EarlyStopping, Study
from training.errors import UserError
from training.recorder import Event
from training.spec import TrainingSpec

NOT_SETTINGS = ("name", "seed", "output_dir", "resume_from_checkpoint")


@dataclass(frozen=True, kw_only=True)
class Stop:
    """A job that is to be ended, and why."""

    job: str
    verdict: Verdict
    after_step: int
    """Its checkpoint is waited for, so that the job can go on if the study asks for it one day; 0 waits for none."""


def check_early_stopping(study: Study, jobs: Sequence[StudyJob]) -> None:
    """Raise UserError where early stopping could stop nothing: too few evaluations, or nothing to compare."""
    rule = study.early_stopping
    if rule is None:
        return
    members = members_of(rule, jobs)
    errors = {error for job in jobs if (error := _cannot_stop(rule, job.written.training))}
    if not arenas_with_rivals(members.values()):
        errors.add(
            "early_stopping compares settings on the same data and of the same length, and there are no two. Add "
            "settings to the sweep, or remove early_stopping."
        )
    metrics = {member.metric for member in members.values()}
    if len(metrics) > 1:
        errors.add(
            f"jobs choose by different metrics ({', '.join(sorted(metrics))}). Set early_stopping.metric to the one to "
            "compare them by."
        )
    if errors:
        raise UserError("\n".join(f"{study.source}: {error}" for error in sorted(errors)))


def _cannot_stop(rule: EarlyStopping, training: TrainingSpec) -> str | None:
    """Return why a job has no evaluation between grace period and end, as far as its settings alone tell."""
    epochs, max_steps, eval_steps = training.num_train_epochs, training.max_steps, training.eval_steps
    if max_steps > 0:
        if eval_steps is not None and eval_steps < max_steps:
            return None
        return (
            f"early_stopping needs evaluations before the end of a job, but training.max_steps is {max_steps} and "
            f"training.eval_steps {'is not set' if eval_steps is None else eval_steps}. Set eval_steps below max_steps."
        )
    if rule.grace_epochs >= epochs:
        return (
            f"early_stopping.grace_epochs is {rule.grace_epochs:g}, but training.num_train_epochs is {epochs:g}: no "
            "job could be stopped. Set grace_epochs below it, and training.eval_steps to evaluate within an epoch."
        )
    if eval_steps is None and math.ceil(epochs) - 1 < rule.grace_epochs:
        return (
            f"a job of {epochs:g} epochs is evaluated once after early_stopping.grace_epochs ({rule.grace_epochs:g}): "
            "at its end. Set training.eval_steps, so that it is evaluated within an epoch."
        )
    return None


def members_of(rule: EarlyStopping, jobs: Sequence[StudyJob]) -> dict[str, Member]:
    """Return what each job is among the others."""
    members = {}
    for job in jobs:
        settings = {key: value for key, value in job.written.to_dict().items() if key not in NOT_SETTINGS}
        training = job.written.training
        arena = [data_key(job), training.max_steps if training.max_steps > 0 else training.num_train_epochs]
        members[job.name] = Member(
            setting=json.dumps(settings, sort_keys=True),
            arena=json.dumps(arena),
            metric=rule.metric or training.metric_for_best_model,
        )
    return members


class EarlyStops:
    """Hears the evaluations of a study's jobs and says which are to be ended; without a rule none is."""

    def __init__(self, rule: EarlyStopping | None, jobs: Sequence[StudyJob], folder: StudyFolder) -> None:
        self.rule = rule
        self.halving = Halving(rule or EarlyStopping(), members_of(rule, jobs) if rule else {})
        self.pending: dict[str, Stop] = {}
        """Job -> how it is to be ended, once its checkpoint is there."""
        if rule is not None:
            for job in jobs:
                self._recall(job, folder)

    def _recall(self, job: StudyJob, folder: StudyFolder) -> None:
        """Take in what the job did in earlier runs of the study."""
        for event in json_lines(folder.jobs / job.name / EVENTS_FILE):
            if event.get("kind") == "evaluation" and event.get("split") == "validation":
                self.halving.record(job.name, event["epoch"], event)
        stopped = folder.stopped(job, self.rule)
        if stopped is not None:
            verdict = Verdict(**stopped.stopped["verdict"])
            self.halving.stopped[self.halving.members[job.name].setting] = verdict

    def take(self, job: str, event: Event, state: JobState) -> list[Stop]:
        """Take in an event of a job; return the jobs to end now."""
        if self.rule is None:
            return []
        if event["kind"] == "checkpoint" and job in self.pending and event["step"] >= self.pending[job].after_step:
            return [self.pending.pop(job)]
        if event["kind"] != "evaluation" or event["split"] != "validation":
            return []
        if event["step"] and event["step"] >= state.num_steps:  # nothing is left to save
            self.halving.record(job, event["epoch"], event)
            return []
        known = set(self.halving.stopped)
        verdict = self.halving.decide(job, event["epoch"], event)
        if verdict is None:
            return []
        setting = self.halving.members[job].setting
        if setting in known:
            return [] if job in self.pending else [Stop(job=job, verdict=verdict, after_step=0)]
        self.pending[job] = Stop(job=job, verdict=verdict, after_step=event["step"])
        others = [name for name in self.halving.seeds_of(setting) if name != job]
        return [Stop(job=name, verdict=verdict, after_step=0) for name in others]

    def unwanted(self, stop: Stop, states: Mapping[str, JobState], running: Mapping[str, RunningJob]) -> Unwanted:
        """Return what is kept of a job that is to be ended."""
        assert self.rule is not None
        state = states[stop.job]
        like = states.get(stop.verdict.job, state)
        there = [running[name] for name in (stop.job, stop.verdict.job) if name in running]
        num_ranks = len(there[0].placement.cards) if there else 1
        stopped = kept_of(stop, self.rule, state, like, num_ranks)
        return Unwanted(status="stopped early", message=reason(stop), stopped=stopped)


def reason(stop: Stop) -> str:
    """Return in words why a job was stopped."""
    verdict = stop.verdict
    name = f"validation {METRIC_NAMES[verdict.metric]}"
    whose = "it" if verdict.job == stop.job else f"its setting ({verdict.job})"
    mean = f" (mean of {verdict.num_seeds} seeds)" if verdict.num_seeds > 1 else ""
    bound = "at most" if verdict.metric == "loss" else "at least"
    settings = "setting" if verdict.num_rivals == 1 else "settings"
    return (
        f"after {verdict.epoch:g} epochs {whose} had {name} {verdict.value:.4f}{mean} and "
        f"needed {bound} {verdict.needed:.4f} to go on beside {verdict.num_rivals} other {settings}"
    )


def kept_of(stop: Stop, rule: EarlyStopping, state: JobState, like: JobState, num_ranks: int) -> dict[str, Any]:
    """Return RunResult.stopped of a job; `like` is the state of the seed that decided.

    What was saved is estimated by the job's own mean speed, or that of `like` where it has not trained.
    """
    num_steps = state.num_steps or like.num_steps
    saved = num_steps - state.step
    seconds_a_step = _seconds_a_step(state) or _seconds_a_step(like)
    return {
        "verdict": asdict(stop.verdict),
        "step": state.step,
        "num_steps": num_steps,
        "steps_saved": saved,
        "card_hours_saved": None if seconds_a_step is None else num_ranks * saved * seconds_a_step / 3600,
        "rule": asdict(rule),
    }


def _seconds_a_step(state: JobState) -> float | None:
    """Return the mean of a job that trains; None of one that does not."""
    left = state.num_steps - state.step
    return state.eta_seconds / left if state.eta_seconds is not None and left > 0 else None
