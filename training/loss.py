"""What a training step minimizes: cross entropy, by class weights and focally where rare classes matter.

Of texts with several labels it is the binary cross entropy, the mean over labels, as transformers has it.

A text's loss is weight of its class x (1 - p)^focal_gamma x -ln p, p being the probability given to its class; that of
a step is the mean over the texts of its global batch. It is divided by their number and not by the sum of their
weights: what a text weighs then depends on nothing but its class, however the batch is cut, and a batch of one class
keeps its weight. Evaluation's loss is plain cross entropy (training.evaluation).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from training.errors import UserError, listed, nearest
from training.multi_label import multi_hot
from training.spec import MULTI_LABEL, SINGLE_LABEL, ProblemType, TrainingSpec

SMALLEST = 1e-30
"""Least 1 - p: the derivative of 0^gamma is infinite for a gamma below 1."""


@dataclass(frozen=True, kw_only=True)
class TrainingLoss:
    """The loss of training."""

    problem_type: ProblemType = SINGLE_LABEL
    weights: Tensor | None = None
    """[classes] in fp32; None where all weigh the same."""
    focal_gamma: float = 0.0

    @classmethod
    def of(
        cls,
        spec: TrainingSpec,
        label_names: Sequence[str],
        labels: Sequence[Any],
        device: Any,
        problem_type: ProblemType = SINGLE_LABEL,
    ) -> TrainingLoss:
        """Return the loss the settings ask for; `labels` are those of the training texts."""
        if problem_type == MULTI_LABEL:
            return cls(problem_type=problem_type)
        weights = class_weights(spec, label_names, labels)
        return cls(
            weights=None if weights is None else torch.tensor(weights, dtype=torch.float32, device=device),
            focal_gamma=spec.focal_gamma,
        )

    def targets(self, labels: Sequence[Any], num_labels: int) -> npt.NDArray[Any]:
        """Return what `sum` takes of these labels, given as in Split: class indices [texts], or [texts, classes] of 0.0
        and 1.0 in fp32 where texts have several."""
        if self.problem_type == MULTI_LABEL:
            return multi_hot(labels, num_labels).astype(np.float32)
        return np.asarray(labels, dtype=np.int64)

    def sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the losses of these texts added up; `logits` is [texts, classes] in fp32, `labels` are the targets on
        their device."""
        if self.problem_type == MULTI_LABEL:
            return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / logits.shape[1]
        if not self.focal_gamma:
            return F.cross_entropy(logits, labels, weight=self.weights, reduction="sum")
        log_p = F.log_softmax(logits, dim=-1).gather(1, labels[:, None]).squeeze(1)
        losses = (-torch.expm1(log_p)).clamp_min(SMALLEST) ** self.focal_gamma * -log_p
        return losses.sum() if self.weights is None else (losses * self.weights[labels]).sum()


def class_weights(spec: TrainingSpec, label_names: Sequence[str], labels: Sequence[int]) -> list[float] | None:
    """Return the weight of each class, or None where all weigh the same."""
    setting = spec.class_weights
    if isinstance(setting, dict):
        return [setting.get(name, 1.0) for name in label_names]
    if setting == "none":
        return None
    counts = Counter(labels)
    # A class without texts has no loss to weigh.
    return [len(labels) / (len(counts) * counts[index]) if counts[index] else 1.0 for index in range(len(label_names))]


def require_fitting(spec: TrainingSpec, label_names: Sequence[str], problem_type: ProblemType = SINGLE_LABEL) -> None:
    """Raise UserError for a loss that does not fit the data: weights of no class, or of several labels a text."""
    for name, is_set in (("class_weights", spec.class_weights != "none"), ("focal_gamma", spec.focal_gamma != 0)):
        if is_set and problem_type == MULTI_LABEL:
            raise UserError(
                f"training.{name} is {getattr(spec, name)!r}, but the data have several labels a text, for which there "
                "is plain binary cross entropy only. Leave it out."
            )
    named = spec.class_weights if isinstance(spec.class_weights, dict) else {}
    for name in named:
        if name not in label_names:
            raise UserError(
                f"training.class_weights names {name!r}, which is no label of the data"
                f"{nearest(name, label_names) or '.'} The labels are {listed(label_names)}."
            )
