"""A training run: what stays the same while it trains, and what changes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, device

from training.batches import steps_per_epoch
from training.evaluation import compute_logits
from training.loss import TrainingLoss
from training.loss_scale import LossScale
from training.network.meeting import Meeting
from training.plan import Plan
from training.ranks import Ranks
from training.recorder import Recorder
from training.result import Metrics
from training.spec import JobSpec
from training.stop import StopRequest
from training.tokens import TokenizedSplit


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
    energy_joules: float = 0.0
    """Of all ranks' cards while training, validation included; nan where one does not tell."""

    loss_scale: LossScale = field(default_factory=dict)
    """Of an fp16 job."""

    def progress(self) -> dict[str, Any]:
        """Return the JSON part of a checkpoint."""
        names = ("untrained", "best", "best_epoch", "stale_evaluations", "last_loss", "seconds", "energy_joules")
        return {name: getattr(self, name) for name in (*names, *(["loss_scale"] if self.loss_scale else []))}


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """What stays the same while training."""

    spec: JobSpec
    plan: Plan
    ranks: Ranks
    meeting: Meeting
    """Where the ranks wait for one that may be late for good reason."""
    device: device
    engine: Any
    train: TokenizedSplit
    validation: TokenizedSplit
    num_labels: int
    dtype: str
    """In which the model computes: bfloat16, float16 or float32."""
    loss: TrainingLoss
    global_batch_size: int
    rows_sha256: str
    """Of the training rows, as Corpus.facts has it."""
    recorder: Recorder
    workdir: Path
    stop: StopRequest

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
        return self.plan.per_device_train_batch_size * self.spec.data.max_seq_length

    def logits(self, split: TokenizedSplit) -> Any:
        """Return the model's logits [texts, num_labels] of a split. All ranks must call it."""
        return compute_logits(
            self.engine,
            split,
            num_labels=self.num_labels,
            ranks=self.ranks,
            meet=self.meeting.meet,
            device=self.device,
            token_budget=self.plan.per_device_eval_batch_size * self.spec.data.max_seq_length,
        )
