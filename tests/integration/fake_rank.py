"""A stand-in for training.rank.run_job: follows its contract, trains nothing. `lora.r` says how it behaves."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from training.plan import RetryWith, read_plan
from training.ranks import Ranks
from training.recorder import Recorder
from training.result import RunResult
from training.spec import JobSpec

(
    RAISES, SECOND_RANK_IS_KILLED, WAITS, OUT_OF_MEMORY, TAKES_ITS_TIME, KILLED_ONCE, WAITS_FOR_COMPANY,
    RETRIES_AND_WAITS, WAITS_FOR_A_SIGN, REACHES_ITS_LEARNING_RATE,
) = range(101, 111)  # fmt: skip
ADAPTER_BYTES = bytes(range(256)) * 40_000
"""10 MB: more than one chunk."""


def run_job(spec: JobSpec, ranks: Ranks, recorder: Recorder, workdir: Path) -> RunResult | None:
    print(f"this is rank {ranks.rank} of {ranks.world_size}", flush=True)
    if spec.lora.r == RAISES:
        print("about to fail")
        raise ValueError("the stand-in fails")
    if spec.lora.r == SECOND_RANK_IS_KILLED or (spec.lora.r == KILLED_ONCE and not _seen(spec, ranks)):
        if ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)
    if spec.lora.r == TAKES_ITS_TIME:
        time.sleep(4)
    while spec.lora.r == WAITS_FOR_A_SIGN and not (Path(spec.output_dir) / "sign").exists():
        time.sleep(0.1)
    if spec.lora.r == REACHES_ITS_LEARNING_RATE:
        return _evaluated(spec, recorder, workdir)
    plan = read_plan(workdir, spec, ranks.world_size)
    if spec.lora.r in (OUT_OF_MEMORY, RETRIES_AND_WAITS) and not plan.retries:
        if ranks.is_main:
            smaller = plan.smaller("training", 1, "CUDA out of memory")
            assert smaller is not None
            raise RetryWith(smaller)
        time.sleep(600)  # in a collective call, as far as the launcher can tell
    if not ranks.is_main:
        time.sleep(600 if spec.lora.r in (WAITS_FOR_COMPANY, RETRIES_AND_WAITS) else 0)
        return None
    resumed = (workdir / "checkpoints/step-000001").exists()
    if resumed:
        recorder.event("log", message="resuming after step 1")
    for step in (1, 2):
        folder = workdir / f"checkpoints/step-{step:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "state.json").write_text("{}")
        recorder.save(f"checkpoints/{folder.name}", folder)
        recorder.event(
            "step", step=step, num_steps=2, epoch=step / 2, loss=1.0, learning_rate=1e-3, samples_per_second=10.0,
            tokens_per_second=400.0, step_seconds=0.25, eta_seconds=0.0, peak_memory_bytes=1 << 30,
        )  # fmt: skip
        waits = spec.lora.r == RETRIES_AND_WAITS or (spec.lora.r == WAITS_FOR_COMPANY and ranks.world_size > 1)
        if waits or (spec.lora.r == WAITS and not resumed):
            time.sleep(600)
    recorder.remove("checkpoints/step-000001")
    adapter = workdir / "adapter"
    adapter.mkdir()
    (adapter / "weights.bin").write_bytes(ADAPTER_BYTES)
    recorder.save("adapter", adapter)
    metrics = {"accuracy": 0.8 + spec.seed / 100 % 0.1, "macro_f1": 0.8, "loss": 0.5, "num_samples": 10.0}
    return RunResult(
        name=spec.name, status="succeeded", settings=spec.to_dict(), fingerprint=spec.fingerprint(),
        num_ranks=ranks.world_size, validation=metrics, test=metrics, retries=plan.retries,
    )  # fmt: skip


def _evaluated(spec: JobSpec, recorder: Recorder, workdir: Path) -> RunResult:
    """Train four epochs of a step whose validation accuracy is always the learning rate.

    A rate below one half is hopeless: it waits until a better job was evaluated, and after its own first evaluation
    for its end, or for the file `patience` in the jobs' folder.
    """
    reached = spec.training.learning_rate
    metrics = {"accuracy": reached, "macro_f1": reached, "loss": 1 - reached, "num_samples": 10.0}
    jobs = Path(spec.output_dir).parent
    while reached < 0.5 and not (jobs / "somebody-is-good").exists():
        time.sleep(0.1)
    resumed = (workdir / "checkpoints/step-000001").exists()
    if resumed:
        recorder.event("log", message="resuming after step 1")
    for step in range(2 if resumed else 1, 5):
        recorder.event(
            "step", step=step, num_steps=4, epoch=float(step), loss=1.0, learning_rate=reached, samples_per_second=10.0,
            tokens_per_second=400.0, step_seconds=90.0, eta_seconds=90.0 * (4 - step), peak_memory_bytes=1 << 30,
        )  # fmt: skip
        recorder.event("evaluation", split="validation", step=step, epoch=float(step), **metrics)
        folder = workdir / f"checkpoints/step-{step:06d}"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text("{}")
        recorder.save(f"checkpoints/{folder.name}", folder)  # returns when the events before have arrived, too
        recorder.event("checkpoint", step=step)
        if reached >= 0.5:
            (jobs / "somebody-is-good").touch()
        while reached < 0.5 and not (jobs / "patience").exists():
            time.sleep(0.1)
    return RunResult(
        name=spec.name, status="succeeded", settings=spec.to_dict(), fingerprint=spec.fingerprint(),
        validation=metrics, test=metrics, train={"steps": 4},
    )  # fmt: skip


def _seen(spec: JobSpec, ranks: Ranks) -> bool:
    """Whether this rank has been here before: it leaves a mark in the current directory."""
    mark = Path(spec.output_dir) / f"seen-by-rank{ranks.rank}"
    seen = mark.exists()
    mark.touch()
    return seen


if __name__ == "__main__":
    import fake_rank

    from launcher.run import run_study

    sys.exit(run_study(Path(sys.argv[1]), run_job=fake_rank.run_job))
