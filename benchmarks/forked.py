"""Many small jobs without paying for their imports: one process imports everything, ranks are forked from it.

    preload()
    statuses = run_ranks(["--model_name_or_path", ...], num_ranks=2, log=Path("job.log"))

A forked rank calls training.main.main, as `deepspeed training/main.py` would. It runs on the CPU: a CUDA context does
not survive a fork. The parent must start no thread, join no group and load no model.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
POLL_SECONDS = 0.02
TIMEOUT_SECONDS = 300.0
"""A tiny job takes a few seconds; a machine that does much else may take many times that."""
GONE = 128
"""Status of a process that somebody else has waited for; training/main.py has no such status."""


def preload() -> None:
    """Import once what every rank imports, and build or load DeepSpeed's CPUAdam. Call it before anything is forked."""
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    # torch compiles CPUAdam with ninja, which stands beside the interpreter.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    import torch

    torch.set_num_threads(1)  # no pool of threads that a fork would leave behind
    import bitsandbytes  # noqa: F401
    import datasets  # noqa: F401
    import deepspeed  # noqa: F401
    import scipy.stats  # noqa: F401
    import sklearn.metrics  # noqa: F401
    import torch.utils.tensorboard
    from transformers import LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast  # noqa: F401

    import training.main
    import training.rank  # noqa: F401
    from training.engine import cpu_adam_obstacle

    obstacle = cpu_adam_obstacle()
    if obstacle is not None:
        print(f"DeepSpeedCPUAdam does not build here ({obstacle}); torch's AdamW is used.", file=sys.stderr)


def fork(task: Callable[[], int], log: Path, environment: dict[str, str] | None = None) -> int:
    """Run `task` in a forked process that ends with its status, output appended to `log`; return the process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        # The parent's own streams may lead elsewhere, as under pytest.
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        os.environ.update(environment or {})
        status = task()
    except BaseException:
        traceback.print_exc()
    finally:  # whatever happens, the child must not return into the parent's program
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def start_ranks(flags: list[str], num_ranks: int, log: Path, program: Path | None = None) -> list[int]:
    """Start a job's ranks with these flags of training/main.py; return their process ids, rank 0 first.

    `program` is run in its place, as a script.
    """
    from training.ranks import Ranks, free_port

    port = free_port()
    return [
        fork(
            lambda: _run(program or ROOT / "training" / "main.py", flags),
            log,
            Ranks(
                rank=rank,
                world_size=num_ranks,
                local_rank=rank,
                local_world_size=num_ranks,
                master_port=port,
                num_threads=1,
            ).environment(),
        )
        for rank in range(num_ranks)
    ]


def _run(program: Path, flags: list[str]) -> int:
    """Run a program as Python would, but for its imports, in a process whose command line is the program's own."""
    sys.argv = [str(program), *flags]
    sys.orig_argv = [sys.executable, *sys.argv]  # a job out of memory begins again with it
    try:
        runpy.run_path(str(program), run_name="__main__")
    except SystemExit as exit:
        return exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    return 0


def wait(pids: list[int], timeout_seconds: float = TIMEOUT_SECONDS) -> list[int]:
    """Return the processes' exit statuses, in order; minus the signal's number for one that a signal ended.

    As under the deepspeed launcher, all are killed once one has failed; so are those alive after the timeout.
    """
    statuses: dict[int, int] = {}
    deadline = time.monotonic() + timeout_seconds
    while len(statuses) < len(pids):
        for pid in pids:
            status = poll(pid) if pid not in statuses else None
            if status is not None:
                statuses[pid] = status
        if any(statuses.values()) or time.monotonic() > deadline:
            break
        time.sleep(POLL_SECONDS)
    for pid in pids:
        if pid not in statuses:
            kill(pid)
            statuses[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return [statuses[pid] for pid in pids]


def poll(pid: int) -> int | None:
    """Return a forked process's exit status, or None while it runs. A status can be had once."""
    try:
        ended, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return GONE
    return os.waitstatus_to_exitcode(status) if ended else None


def kill(pid: int) -> None:
    """SIGKILL a forked process whose status has not been taken; one that has ended by itself is no error."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def run_ranks(
    flags: list[str],
    num_ranks: int,
    log: Path,
    timeout_seconds: float = TIMEOUT_SECONDS,
    program: Path | None = None,
) -> list[int]:
    """Run a job to its end; return its ranks' exit statuses. `program` as for `start_ranks`."""
    return wait(start_ranks(flags, num_ranks, log, program), timeout_seconds)


def run_forked(task: Callable[[], int], log: Path, timeout_seconds: float = TIMEOUT_SECONDS) -> int:
    """Run `task` in a forked process of its own; return its exit status."""
    return wait([fork(task, log)], timeout_seconds)[0]
