"""How the jobs of a study end: results and failures are kept, and what may fare better is let go on."""

from __future__ import annotations

from collections import defaultdict

from launcher.expand import StudyJob
from launcher.folder import StudyFolder
from launcher.forecast import Planned
from launcher.running import Failure, RunningJob, Unwanted, result_of, unsuccessful
from launcher.state import JobState
from launcher.table import StudyView
from training.result import RunResult


class Endings:
    """Keeps how each job of a study ended, and what each of its tries that it went on from ran into."""

    def __init__(self, folder: StudyFolder, states: dict[str, JobState], view: StudyView, max_failures: int) -> None:
        self.folder, self.states, self.view, self.max_failures = folder, states, view, max_failures
        self.restarts: dict[str, list[str]] = defaultdict(list)
        """Job -> why each of its tries failed that it went on from."""

    def succeed(self, running: RunningJob, planned: Planned) -> None:
        """Keep the result of a job that ended well."""
        self._end(result_of(running, planned, self.restarts[running.job.name]))

    def go_on(self, running: RunningJob, failure: Failure) -> bool:
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
