"""Going on from a checkpoint: found by the first rank, shared with all, put back into the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from training.batches import StepPlan
from training.checkpoint import Checkpoint, find_checkpoint, list_checkpoints, step_of
from training.errors import UserError
from training.loop import optimizer_step
from training.loss_scale import write_loss_scale
from training.memory import memory_watched
from training.optimizer_state import write_training_state
from training.plan import Plan, read_plan
from training.ranks import Ranks
from training.run import TrainingRun, TrainingState
from training.saving import drop
from training.spec import JobSpec


def shared_start(
    spec: JobSpec, ranks: Ranks, workdir: Path, rows_sha256: str, report: Callable[[str], None]
) -> tuple[Plan, Checkpoint | None]:
    """Return rank 0's plan and checkpoint on every rank: the others may run on hosts that do not have the files."""
    found: list[Any] = [None]
    if ranks.is_main:
        try:
            plan = read_plan(workdir, spec, ranks.world_size)
            if plan.retries and list_checkpoints(workdir):
                # The job went on from there before it ran out of memory, and has saved since.
                spec = replace(spec, resume_from_checkpoint=None)
            checkpoint = find_checkpoint(workdir, spec, report)
            if checkpoint is not None and checkpoint.rows_sha256 != rows_sha256:
                raise UserError(
                    f"the training rows are not those the checkpoint after step {checkpoint.step} in {workdir} was "
                    "made with. Put the data back as it was, or start anew in another output_dir."
                )
            found = [(plan, checkpoint)]
        except Exception as error:  # passed on, so that no rank waits for one that has gone
            found = [error]
    if ranks.world_size > 1:
        with memory_watched("loading the model", 0):
            _broadcast(found)
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]  # type: ignore[no-any-return]


def _broadcast(found: list[Any]) -> None:
    """Give all ranks what the first has, by way of host memory: NCCL's would be a card's, of three fp32 copies."""
    group = dist.new_group(backend="gloo") if dist.get_backend() == "nccl" else None
    dist.broadcast_object_list(found, src=0, group=group)
    if group is not None:
        dist.destroy_process_group(group)


def restore(run: TrainingRun, checkpoint: Checkpoint) -> TrainingState:
    """Put engine and state where the checkpoint left them. All ranks must call it."""
    # One update of rate 0 and gradient 0 makes the optimizer's state exist, so that it can be overwritten.
    idle = StepPlan(micro_batches=[[]], num_samples=1)
    optimizer_step(run, idle, 0, 0.0)
    write_training_state(run.engine, checkpoint.state, checkpoint.step)
    write_loss_scale(run.engine, checkpoint.progress.get("loss_scale", {}))
    if run.ranks.is_main:
        # Those of a path now left would be taken for the newest of this one.
        for later in list_checkpoints(run.workdir):
            if step_of(later) > checkpoint.step:
                drop(run, later)
    return TrainingState(step=checkpoint.step, best_weights=checkpoint.best, **checkpoint.progress)
