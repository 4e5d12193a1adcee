"""Checkpoints of a run: gathered from the ranks, written beside the training, the oldest dropped."""

from __future__ import annotations

import shutil
from pathlib import Path

from training.checkpoint import Checkpoint, folder_name, list_checkpoints, write_checkpoint
from training.checkpoint_writer import CheckpointWriter
from training.optimizer_state import read_training_state
from training.run import TrainingRun, TrainingState


def save(run: TrainingRun, state: TrainingState, writer: CheckpointWriter) -> None:
    """Gather a checkpoint and have it written, the oldest dropped. All ranks must call it; the first writes."""
    tensors = read_training_state(run.engine)
    if not run.ranks.is_main:
        return
    checkpoint = Checkpoint(
        step=state.step,
        global_batch_size=run.global_batch_size,
        state=tensors,
        best=state.best_weights,
        progress=state.progress(),
        rows_sha256=run.rows_sha256,
    )
    writer.submit(lambda: keep(run, checkpoint))


def keep(run: TrainingRun, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, here and into the run folder, then drop the oldest."""
    folder = write_checkpoint(run.workdir, checkpoint, run.spec)
    run.recorder.save(folder_name(checkpoint.step), folder)
    run.recorder.event("checkpoint", step=checkpoint.step)
    for old in list_checkpoints(run.workdir)[: -run.spec.training.save_total_limit]:
        drop(run, old)


def drop(run: TrainingRun, checkpoint: Path) -> None:
    """Delete a checkpoint, here and in the run folder."""
    shutil.rmtree(checkpoint)
    run.recorder.remove(f"{checkpoint.parent.name}/{checkpoint.name}")
