"""How the jobs of a study end: results and failures are kept, and what may fare better is let go on."""

from __future__ import annotations

from collections import defaultdict

from launcher.choose import Choice
from launcher.expand import StudyJob
from launcher.folder import StudyFolder
from launcher.forecast import Planned
from launcher.running import Failure, RunningJob, Unwanted, failure_of, result_of, smaller_plan, unsuccessful
from launcher.seen import keep
from launcher.state import JobState
from launcher.table import StudyView
from training.plan import RetryWith
from training.result import RunResult


class Endings:
    """Keeps how each job of a study ended, and what each of its tries that it went on from ran into."""

    def __init__(self, folder: StudyFolder, states: dict[str, JobState], view: StudyView, max_failures: int) -> None:
        self.folder, self.states, self.view, self.max_failures = folder, states, view, max_failures
        self.restarts: dict[str, list[str]] = defaultdict(list)
        """Job -> why each of its tries failed that it went on from."""

    def settle(self, running: RunningJob, planned: Planned) -> bool:
        """Keep how a try ended whose logs are in, and its job with it unless that tries again; return whether."""
        failure = failure_of(running)
        if running.unwanted:
            self.give_up(running.job, running.unwanted)
        elif plan := smaller_plan(running):
            self.folder.write_plan(running.spec, plan)
            self.view.say(f"{running.job.name}: {RetryWith(plan)}")
            return True
        elif failure is None:
            result = result_of(running, planned, self.restarts[running.job.name])
            self._end(result)
            if isinstance(planned, Choice):
                keep(running, planned, result, self.folder.root.name)
        elif self._goes_on(running, failure):
            return True
        else:
            self.fail(running.job, failure.message, failure.log_tail, is_user_error=failure.is_user_error)
        return False

    def goes_on_at_once(self, running: RunningJob) -> bool:
        """Whether a job tries again of which a rank has died, with no need of its logs."""
        failure = failure_of(running)
        died = failure is not None and failure.died and smaller_plan(running) is None
        return died and failure is not None and self._goes_on(running, failure)

    def _goes_on(self, running: RunningJob, failure: Failure) -> bool:
        """Let a job go on from its newest checkpoint where that may help; return whether it does."""
        name, restarts = running.job.name, self.restarts[running.job.name]
        if len(restarts) >= self.max_failures or not failure.may_pass(restarts):
            return False
        restarts.append(failure.message)
        self.view.say(f"{name}: {failure.message}. Going on from its newest checkpoint.")
        return True

    def fail(self, job: StudyJob, message: str, log_tail: str, *, is_user_error: bool) -> None:
        """Keep that a job failed, and whether its study is to be mended."""
        self.states[job.name].is_user_error = is_user_error
        self._end(unsuccessful(job, "failed", message, log_tail, self.restarts[job.name]))

    def give_up(self, job: StudyJob, why: Unwanted) -> None:
        """Keep why nobody wanted more of a job."""
        self._end(unsuccessful(job, why.status, why.message, "", self.restarts[job.name], why.stopped))

    def _end(self, result: RunResult) -> None:
        self.folder.write_result(result)
        self.states[result.name].end(result)
