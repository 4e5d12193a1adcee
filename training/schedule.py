"""The learning rate of each step: linear warm-up, then decay. Same curves as transformers.get_scheduler."""

from __future__ import annotations

import math

from training.spec import TrainingSpec


def warmup_steps(training: TrainingSpec, num_steps: int) -> int:
    """Return the steps of warm-up; a value below 1 is a share of all steps."""
    value = training.warmup_steps
    return math.ceil(value * num_steps) if value < 1 else int(value)


def learning_rate(step: int, num_steps: int, training: TrainingSpec) -> float:
    """Return the rate of optimizer step `step` (from 0) of `num_steps`."""
    warmup = 0 if training.lr_scheduler_type == "constant" else warmup_steps(training, num_steps)
    if step < warmup:
        return training.learning_rate * step / max(1, warmup)
    if training.lr_scheduler_type.startswith("constant"):
        return training.learning_rate
    progress = (step - warmup) / max(1, num_steps - warmup)
    if training.lr_scheduler_type == "linear":
        return training.learning_rate * max(0.0, 1.0 - progress)
    return training.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
