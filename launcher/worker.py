"""Code that runs inside Ray workers: one rank of a job, the work before jobs start, the clearing up after them.

The only module of the launcher that imports the trainer, and only inside functions: the head imports this module
to start actors and must stay light.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import traceback
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher.inbox import RayRecorder
from training.card_memory.allocator import use_expandable_segments
from training.cuda.fitness import require_fitting_torch
from training.errors import ShoalError, UserError
from training.plan import PLAN_FILE, RetryWith
from training.ranks import Ranks, free_port
from training.recorder import Recorder, SilentRecorder
from training.redact import redact, redact_file
from training.result import RunResult
from training.spec import JobSpec
from training.trackers import TRACKERS_FILE

LOG_TAIL_LINES = 30
LOOPBACK = "127.0.0.1"

RunJob = Callable[[JobSpec, Ranks, Recorder, Path], "RunResult | None"]
Outcome = dict[str, Any]
"""{"ok": True, "result": RunResult.to_dict() or None} or {"ok": False, "error": text, "is_user_error": bool}; also
"plan" where a job ran out of memory and may go on with this smaller one."""


class RankActor:
    """One rank in its own process. Made a Ray actor by the launcher, which sets CUDA_VISIBLE_DEVICES beforehand."""

    def __init__(self, workdir: str, rank: int) -> None:
        self.workdir = Path(workdir)
        self.workdir.mkdir(parents=True, exist_ok=True)
        # Ctrl-C in the terminal is the head's to handle: it ends the ranks itself.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # Where Ray's dashboard shows the rank's own log.
        print(f"rank{rank}.log comes to the study's folder when this rank has ended", file=sys.stderr)
        log = os.open(self.workdir / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        # Ray wraps both streams to send them to the driver; the log file is enough.
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)

    def address(self, one_node: bool) -> tuple[str, int]:
        """Return where rank 0 will listen."""
        import ray

        return (LOOPBACK if one_node else ray.util.get_node_ip_address()), free_port()

    def run(
        self,
        spec: JobSpec,
        ranks: dict[str, int],
        address: tuple[str, int],
        inbox: Any,
        run_job: RunJob | None,
    ) -> Outcome:
        """Train. `ranks` holds Ranks' fields but for the address. Never raises: an error is an outcome."""
        place = Ranks(**ranks, master_addr=address[0], master_port=address[1])
        os.environ.update(place.environment())
        use_expandable_segments(os.environ)
        try:
            require_fitting_torch()  # the head's own were asked before, another PC's were not
            recorder: Recorder = SilentRecorder()
            if place.is_main:
                recorder = sender = RayRecorder(inbox, spec.name)
                sender.event("phase", phase="starting")
                sender.fetch("checkpoints", self.workdir)
                sender.fetch(PLAN_FILE, self.workdir)
                sender.fetch(TRACKERS_FILE, self.workdir)
            if run_job is None:
                from training.rank import run_job as trainer

                run_job = trainer
            result = run_job(spec, place, recorder, self.workdir)
        except RetryWith as retry:
            return {"ok": False, "error": str(retry), "is_user_error": False, "plan": asdict(retry.plan)}
        except ShoalError as error:
            return {"ok": False, "error": redact(str(error)), "is_user_error": isinstance(error, UserError)}
        except Exception as error:
            traceback.print_exc()
            return {"ok": False, "error": redact(f"{type(error).__name__}: {error}"), "is_user_error": False}
        return {"ok": True, "result": None if result is None else result.to_dict()}


def scratch_folder(study_folder: Path) -> Path:
    """Return where the ranks of a run keep their files, on whatever node: a folder of this run alone.

    Its name begins with the study's, so that what a killed launcher could not clear is found: of a study folder only
    one launcher is at work.
    """
    place = f"{socket.gethostname()} {study_folder.resolve()}"
    key = hashlib.sha256(place.encode()).hexdigest()[:8]
    return Path(tempfile.gettempdir()) / f"shoal-{key}-{uuid.uuid4().hex[:8]}"


def prepare_jobs(specs: list[tuple[JobSpec, str]], inbox: Any) -> list[Outcome]:
    """Ray task: make what jobs share, and find bad input before a card is taken.

    `specs` are jobs of the same data, each with the name of its DeepSpeed file. Returns an outcome for each.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # No job runs yet, and Ray gives a task one thread; read by torch when it is imported.
    os.environ["OMP_NUM_THREADS"] = str(len(os.sched_getaffinity(0)))
    try:
        from training.corpus.load import load_corpus

        corpus = load_corpus(specs[0][0].data)
    except Exception as error:
        return [_task_error(error)] * len(specs)
    return [_prepare_one(spec, source, corpus, inbox) for spec, source in specs]


def _prepare_one(spec: JobSpec, deepspeed_source: str, corpus: Any, inbox: Any) -> Outcome:
    """Check one job's settings and model, and make the model where it is built in."""

    def report(message: str) -> None:
        RayRecorder(inbox, spec.name).event("log", message=message)

    try:
        from training.prepare import prepare

        prepare(spec, deepspeed_source, corpus.label_names, corpus.problem_type, report)
    except Exception as error:
        return _task_error(error)
    return {"ok": True}


def compute_baselines(spec: JobSpec) -> Outcome:
    """Ray task: the baselines of the job's data, as "result"."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        from training.baseline import tfidf_baseline
        from training.corpus.load import load_corpus

        return {"ok": True, "result": tfidf_baseline(load_corpus(spec.data))}
    except Exception as error:
        return _task_error(error)


def check_data(spec: JobSpec) -> Outcome:
    """Ray task: {"data", "check"} of the job's data, as "result"."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        from training.check import check

        found = check(spec.data, spec.model)
        return {"ok": True, "result": {"data": found.source, "check": found.to_dict()}}
    except Exception as error:
        return _task_error(error)


def collect_logs(job: str, workdir: str, inbox: Any, prefix: str) -> dict[str, str]:
    """Ray task on a node the job ran on: send its rank logs home and clear its scratch folder.

    `prefix` is put before the logs' names: another try may send its own meanwhile. What ranks of a launcher that was
    killed have left here goes too. Returns the last lines of each log.
    """
    tails = {}
    recorder = RayRecorder(inbox, job)
    for log in sorted(Path(workdir).glob("rank*.log")):
        redact_file(log)
        recorder.save(prefix + log.name, log)
        tails[log.name] = log_tail(log)
    shutil.rmtree(workdir, ignore_errors=True)
    scratch = Path(workdir).parent
    with suppress(OSError):  # other jobs of the study still have theirs in it
        scratch.rmdir()
    for left in scratch.parent.glob(f"{scratch.name.rpartition('-')[0]}-*"):
        if left != scratch:
            shutil.rmtree(left, ignore_errors=True)
    return tails


def log_tail(log: Path) -> str:
    """Return the last lines of a log file."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - (64 << 10)))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    return "\n".join(lines[-LOG_TAIL_LINES:])


def _task_error(error: Exception) -> Outcome:
    """Turn what a task met into an outcome; our own errors need no traceback."""
    if isinstance(error, ShoalError):
        error_text = redact(str(error))
        return {"ok": False, "error": error_text, "is_user_error": isinstance(error, UserError), "log_tail": ""}
    tail = redact("\n".join(traceback.format_exc().splitlines()[-LOG_TAIL_LINES:]))
    error_text = redact(f"{type(error).__name__}: {error}")
    return {"ok": False, "error": error_text, "is_user_error": False, "log_tail": tail}
