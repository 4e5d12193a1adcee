"""The training loop, top to bottom: plan a step, add up its micro-batches, update, now and then evaluate and save."""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from training.batches import StepPlan, plan_step, steps_per_epoch
from training.checkpoint import Checkpoint, folder_name, list_checkpoints, step_of, write_checkpoint
from training.engine import copy_trainable
from training.errors import ShoalError
from training.evaluation import compute_logits, compute_metrics, is_better, to_device
from training.memory import peak_memory_bytes
from training.optimizer_state import read_training_state, write_training_state
from training.progress import TrainingProgress
from training.ranks import Ranks
from training.recorder import Recorder
from training.result import Metrics
from training.schedule import learning_rate
from training.spec import JobSpec
from training.tokens import TokenizedSplit

MAX_STEP_EVENTS = 500
"""Steps are reported one by one up to this many, then in groups: enough for a curve."""


@dataclass(kw_only=True)
class TrainingState:
    """What changes while training; all of it stands in a checkpoint."""

    step: int = 0
    untrained: Metrics = field(default_factory=dict)
    best: Metrics = field(default_factory=dict)
    best_epoch: float = 0.0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    stale_evaluations: int = 0
    last_loss: float = math.nan
    seconds: float = 0.0
    """Spent on optimizer steps, without evaluation."""

    def progress(self) -> dict[str, Any]:
        """Return the JSON part of a checkpoint."""
        names = ("untrained", "best", "best_epoch", "stale_evaluations", "last_loss", "seconds")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """What stays the same while training."""

    spec: JobSpec
    ranks: Ranks
    device: torch.device
    engine: Any
    train: TokenizedSplit
    validation: TokenizedSplit
    num_labels: int
    global_batch_size: int
    rows_sha256: str
    """Of the training rows, as Corpus.facts has it."""
    recorder: Recorder
    workdir: Path

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps that use every training text once."""
        return steps_per_epoch(len(self.train), self.global_batch_size)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole job."""
        training = self.spec.training
        if training.max_steps > 0:
            return training.max_steps
        return math.ceil(training.num_train_epochs * self.steps_per_epoch)

    @property
    def token_budget(self) -> int:
        """Tokens a rank works on at once."""
        return self.spec.training.per_device_train_batch_size * self.spec.data.max_seq_length

    def logits(self, split: TokenizedSplit) -> Any:
        """Return the model's logits [texts, num_labels] of a split. All ranks must call it."""
        return compute_logits(
            self.engine,
            split,
            num_labels=self.num_labels,
            ranks=self.ranks,
            device=self.device,
            token_budget=self.spec.training.per_device_eval_batch_size * self.spec.data.max_seq_length,
        )


def train(run: TrainingRun, state: TrainingState) -> None:
    """Train from `state.step` to the last step, or until early stopping."""
    patience = run.spec.training.early_stopping_patience
    save_steps = run.spec.training.save_steps
    meter = StepMeter(run, state)
    with TrainingProgress(run.num_steps, enabled=run.ranks.is_main) as progress:
        if state.step == 0:
            state.untrained = evaluate(run, state, progress)
        while state.step < run.num_steps and not (patience and state.stale_evaluations >= patience):
            plan = plan_step(
                state.step,
                run.train.lengths,
                seed=run.spec.seed,
                global_batch_size=run.global_batch_size,
                rank=run.ranks.rank,
                world_size=run.ranks.world_size,
                token_budget=run.token_budget,
            )
            rate = learning_rate(state.step, run.num_steps, run.spec.training)
            meter.start()
            loss_sum = optimizer_step(run, plan, state.step, rate)
            state.step += 1
            meter.add(loss_sum, plan.num_samples, rate, progress)
            epoch_ends = state.step % run.steps_per_epoch == 0 or state.step == run.num_steps
            if epoch_ends:
                note_evaluation(run, state, evaluate(run, state, progress))
            if epoch_ends or (save_steps and state.step % save_steps == 0):
                save(run, state)


def optimizer_step(run: TrainingRun, plan: StepPlan, step: int, rate: float) -> Tensor:
    """Make one update; return the summed loss of this rank's texts (a detached scalar).

    DeepSpeed averages gradients over ranks, so each text's loss is weighted by world_size / N to make the update
    that of the mean over the N texts of the global batch, however they are spread.
    """
    engine, ranks = run.engine, run.ranks
    seed_random(run.spec.seed, step, ranks.rank)
    for group in engine.optimizer.param_groups:
        group["lr"] = rate
    total = torch.zeros((), device=run.device)
    for number, indices in enumerate(plan.micro_batches, start=1):
        logits = engine(*to_device(run.train, indices, run.device))
        labels = torch.tensor([run.train.labels[i] for i in indices or [0]], device=run.device)
        loss = F.cross_entropy(logits, labels, reduction="sum") * (1.0 if indices else 0.0)
        engine.set_gradient_accumulation_boundary(number == len(plan.micro_batches))
        engine.backward(loss * (ranks.world_size / plan.num_samples), scale_wrt_gas=False)
        total += loss.detach()
    engine.step()
    return total


def seed_random(seed: int, step: int, rank: int) -> None:
    """Seed dropout by place, so that a resumed run draws what an undisturbed one would."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0]))


class StepMeter:
    """Adds up losses and times and reports them as step events."""

    def __init__(self, run: TrainingRun, state: TrainingState) -> None:
        self.run, self.state = run, state
        self.every = math.ceil(run.num_steps / MAX_STEP_EVENTS)
        self.loss_sum = torch.zeros((), device=run.device)
        self.num_samples = 0
        self.samples_timed = 0
        self.seconds_timed = 0.0

    def start(self) -> None:
        """Begin timing a step."""
        self.started = time.perf_counter()

    def add(self, loss_sum: Tensor, num_samples: int, rate: float, progress: TrainingProgress) -> None:
        """Note a finished step; report it if its turn has come."""
        run, state = self.run, self.state
        self.loss_sum += loss_sum
        self.num_samples += num_samples
        if state.step % self.every and state.step != run.num_steps:
            self._time(num_samples)
            return
        if run.ranks.world_size > 1:
            dist.all_reduce(self.loss_sum)
        state.last_loss = float(self.loss_sum) / self.num_samples
        self._time(num_samples)
        if not math.isfinite(state.last_loss):
            raise ShoalError(
                f"training diverged: the loss is {state.last_loss} at step {state.step}. "
                f"Lower training.learning_rate ({run.spec.training.learning_rate})."
            )
        self._report(rate, progress)
        self.loss_sum.zero_()
        self.num_samples = 0

    def _time(self, num_samples: int) -> None:
        elapsed = time.perf_counter() - self.started
        self.state.seconds += elapsed
        self.seconds_timed += elapsed
        self.samples_timed += num_samples

    def _report(self, rate: float, progress: TrainingProgress) -> None:
        if not self.run.ranks.is_main:
            return
        run, state = self.run, self.state
        memory = peak_memory_bytes()
        seconds_a_sample = self.seconds_timed / self.samples_timed
        event = {
            "step": state.step,
            "num_steps": run.num_steps,
            "epoch": round(state.step / run.steps_per_epoch, 4),
            "loss": state.last_loss,
            "learning_rate": rate,
            "samples_per_second": 1.0 / seconds_a_sample,
            "eta_seconds": (run.num_steps - state.step) * run.global_batch_size * seconds_a_sample,
            "peak_memory_bytes": memory["gpu_bytes"] or memory["host_bytes"],
        }
        run.recorder.event("step", **event)
        progress.step(event)


def evaluate(run: TrainingRun, state: TrainingState, progress: TrainingProgress) -> Metrics:
    """Return the metrics on validation. All ranks must call it and all get the same."""
    metrics = compute_metrics(run.logits(run.validation), run.validation.labels)
    if run.ranks.is_main:
        epoch = round(state.step / run.steps_per_epoch, 4)
        run.recorder.event("evaluation", split="validation", step=state.step, epoch=epoch, **metrics)
        progress.say(
            f"epoch {epoch:g}: validation accuracy {metrics['accuracy']:.4f}  "
            f"macro F1 {metrics['macro_f1']:.4f}  loss {metrics['loss']:.4f}"
        )
    return metrics


def note_evaluation(run: TrainingRun, state: TrainingState, metrics: Metrics) -> None:
    """Keep the weights if they are the best so far. All ranks must call it."""
    if is_better(metrics, state.best, run.spec.training.metric_for_best_model):
        state.best = metrics
        state.best_epoch = round(state.step / run.steps_per_epoch, 4)
        state.best_weights = copy_trainable(run.engine.module)
        state.stale_evaluations = 0
    else:
        state.stale_evaluations += 1


def save(run: TrainingRun, state: TrainingState) -> None:
    """Write a checkpoint and drop the oldest. All ranks must call it; the first writes."""
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
    folder = write_checkpoint(run.workdir, checkpoint, run.spec)
    run.recorder.save(folder_name(state.step), folder)
    run.recorder.event("checkpoint", step=state.step)
    for old in list_checkpoints(run.workdir)[: -run.spec.training.save_total_limit]:
        drop(run, old)


def drop(run: TrainingRun, checkpoint: Path) -> None:
    """Delete a checkpoint, here and in the run folder."""
    shutil.rmtree(checkpoint)
    run.recorder.remove(f"{checkpoint.parent.name}/{checkpoint.name}")


def restore(run: TrainingRun, checkpoint: Checkpoint) -> TrainingState:
    """Put engine and state where the checkpoint left them. All ranks must call it."""
    # One update of rate 0 and gradient 0 makes the optimizer's state exist, so that it can be overwritten.
    idle = StepPlan(micro_batches=[[]], num_samples=1)
    optimizer_step(run, idle, 0, 0.0)
    write_training_state(run.engine, checkpoint.state, checkpoint.step)
    if run.ranks.is_main:
        # Those of a path now left would be taken for the newest of this one.
        for later in list_checkpoints(run.workdir):
            if step_of(later) > checkpoint.step:
                drop(run, later)
    return TrainingState(step=checkpoint.step, best_weights=checkpoint.best, **checkpoint.progress)
