"""Train one classifier on this machine.

    deepspeed [--num_gpus N] training/main.py --job job.yaml [--set lora.r=8]
    deepspeed [--num_gpus N] training/main.py --model_name_or_path X --train_file Y --deepspeed ds_configs/Z.json ...
    python training/main.py ...            # one rank

Exit status: 0 the job succeeded, 1 it failed, 2 the input is at fault, 130 interrupted, 143 stopped by SIGTERM.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path

# `deepspeed training/main.py` puts training/ first on the path, where our modules would shadow libraries.
_CHECKOUT = str(Path(__file__).resolve().parent.parent)
sys.path[:] = [
    _CHECKOUT,
    *(entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent),
]

from training.card_memory.allocator import use_expandable_segments  # noqa: E402
from training.cuda.fitness import require_fitting_torch  # noqa: E402
from training.disk import alone_in  # noqa: E402
from training.errors import (  # noqa: E402
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_STOPPED,
    EXIT_USER_ERROR,
    ShoalError,
    UserError,
    describe_os_error,
)
from training.flags import parse_flags  # noqa: E402
from training.ranks import Ranks  # noqa: E402
from training.recorder import FolderRecorder, Recorder  # noqa: E402
from training.result import RunResult, read_result  # noqa: E402
from training.spec import JobSpec  # noqa: E402
from training.stop import Stopped, StopRequest  # noqa: E402

GRACE_SECONDS = 5.0
"""How long other ranks wait before they exit on an error that every rank meets: the deepspeed launcher kills all
ranks as soon as one exits, and the first must have said why."""


def main(arguments: list[str] | None = None) -> int:
    """Parse, train, say what came out; return the exit status."""
    is_main = os.environ.get("RANK", "0") == "0"
    use_expandable_segments(os.environ)
    try:
        spec = parse_flags(sys.argv[1:] if arguments is None else arguments, warn=None if is_main else _silent)
        require_fitting_torch()
        folder = Path(spec.output_dir).expanduser()
        finished = finished_result(folder, spec)
        if finished is not None:
            if is_main:
                print(f"{folder} holds this job's result already; nothing to do. Delete it to train again.")
                print_result(finished, folder)
            return 0
        result = train_here(spec, folder)
    except Stopped as stopped:
        if is_main:
            print(f"shoal: stopped {stopped}; the same command goes on from there", file=sys.stderr, flush=True)
        return EXIT_STOPPED
    except KeyboardInterrupt:
        if is_main:
            print("shoal: interrupted; the same command goes on from the newest checkpoint", file=sys.stderr)
        return EXIT_INTERRUPTED
    except (ShoalError, OSError) as error:
        if isinstance(error, OSError) and error.filename is None:
            raise
        if not is_main:
            time.sleep(GRACE_SECONDS)  # an error that rank 0 met too ends this process here
        who = "" if is_main else f"rank {os.environ['RANK']}: "
        message = describe_os_error(error) if isinstance(error, OSError) else error
        print(f"shoal: {who}{message}", file=sys.stderr, flush=True)
        return EXIT_FAILED if isinstance(error, ShoalError) and not isinstance(error, UserError) else EXIT_USER_ERROR
    if result is not None:
        print_result(result, folder)
    return 0


def finished_result(folder: Path, spec: JobSpec) -> RunResult | None:
    """Return the result the folder already holds of this very job; refuse a folder that holds another one's."""
    result = read_result(folder)
    if result is None:
        return None
    if result.fingerprint != spec.fingerprint():
        raise UserError(f"{folder} holds the result of a job with other settings. Choose another --output_dir.")
    from training.corpus.load import load_corpus

    if result.data["sha256"] != load_corpus(spec.data).facts["sha256"]:
        raise UserError(f"{folder} holds the result of the same job on other rows. Choose another --output_dir.")
    if not (folder / "adapter").is_dir():
        raise UserError(f"{folder} holds a result.json and no adapter/. Delete result.json to go on from a checkpoint.")
    return result


def train_here(spec: JobSpec, folder: Path) -> RunResult | None:
    """Run this rank in this process, writing into `folder`."""
    from training.plan import RetryWith
    from training.rank import run_job
    from training.restart import Restarter

    ranks = Ranks.from_environment()
    recorder: Recorder = TerminalRecorder(folder)
    stop = StopRequest()
    stop.listen()
    restarter = Restarter(spec, ranks, folder, stop)
    with alone_in(folder, "job") if ranks.is_main else nullcontext():
        try:
            return run_job(spec, ranks, recorder, folder, stop=stop, joined=restarter.watch)
        except RetryWith as retry:
            recorder.event("log", message=str(retry))
            restarter.restart(retry.plan)
        except Exception:
            restarter.wait_if_under_way()
            raise
        finally:
            restarter.close()
            stop.leave()


class TerminalRecorder(FolderRecorder):
    """Also says on the terminal what phase the job is in and what it logs."""

    def event(self, kind: str, **values: object) -> None:
        """Note one event."""
        super().event(kind, **values)
        if kind in ("phase", "log"):
            print(values.get("phase") or values.get("message"), file=sys.stderr, flush=True)


def print_result(result: RunResult, folder: Path) -> None:
    """Say the figures and where the adapter lies."""
    for name, metrics in (("validation", result.validation), ("test", result.test)):
        if metrics:
            print(f"{name:<10}  accuracy {metrics['accuracy']:.4f}  macro F1 {metrics['macro_f1']:.4f}")
    print(f"adapter     {folder / 'adapter'} (verified by reloading)")
    print(f"result      {folder / 'result.json'}")


def _silent(_message: str) -> None:
    """Say nothing: rank 0 says it."""


if __name__ == "__main__":
    sys.exit(main())
