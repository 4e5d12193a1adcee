"""Logits of every text of a split, and the metrics scikit-learn computes from them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from training.batches import cut_batch
from training.engine import release_gathered
from training.multi_label import compute_multi_label_metrics
from training.packing import Packing
from training.ranks import Ranks
from training.result import Metrics
from training.spec import MULTI_LABEL, SINGLE_LABEL, ProblemType
from training.tokens import TokenizedSplit


def to_device(
    split: TokenizedSplit, indices: list[int], device: torch.device, *others: npt.NDArray[Any]
) -> tuple[tuple[Tensor, Packing, list[int]], list[Tensor]]:
    """Return PackedClassifier's inputs for these texts: token ids [T], the layout of the chunks, each text's chunks.

    `others` come to `device` in the same copy. An empty micro-batch becomes the split's first text, for a rank that
    only takes part in a collective pass.
    """
    indices = indices or [0]
    texts = [split.lengths[index] for index in indices]
    lengths = [length for chunks in texts for length in chunks]
    packing, (tokens, *rest) = Packing.beside(lengths, device, split.pack(indices), *others)
    return (tokens, packing, [len(chunks) for chunks in texts]), rest


@torch.no_grad()
def compute_logits(
    engine: Any,
    split: TokenizedSplit,
    *,
    num_labels: int,
    ranks: Ranks,
    meet: Callable[[], None],
    device: torch.device,
    token_budget: int,
) -> npt.NDArray[np.float32]:
    """Return logits [texts, num_labels] on every rank; the ranks share the work. All ranks must call it.

    They `meet` before they add up: the slower card's share may take minutes longer.
    """
    engine.eval()
    logits = torch.zeros(len(split), num_labels, device=device)
    micro_batches = cut_batch(
        range(len(split)), split.lengths, rank=ranks.rank, world_size=ranks.world_size, token_budget=token_budget
    )
    for indices in micro_batches:
        inputs, (rows,) = to_device(split, indices, device, np.asarray(indices, dtype=np.int64))
        batch = engine(*inputs)
        if indices:
            logits[rows] = batch
    release_gathered(engine)
    if ranks.world_size > 1:
        meet()
        dist.all_reduce(logits)  # each row was written by one rank and is zero on the others
    engine.train()
    return logits.cpu().numpy()


def compute_metrics(
    logits: npt.NDArray[np.float32], labels: list[Any], problem_type: ProblemType = SINGLE_LABEL
) -> Metrics:
    """Return accuracy, macro F1 (over the classes that occur), mean cross-entropy ("loss") and "num_samples".

    The loss is plain, whatever the training's (training.loss) weighs: jobs of different weights are compared by it.
    Where texts have several labels: `compute_multi_label_metrics`.
    """
    if problem_type == MULTI_LABEL:
        return compute_multi_label_metrics(logits, labels)
    truth, predicted = np.asarray(labels), logits.argmax(axis=1)
    wide = logits.astype(np.float64)
    log_sum = np.logaddexp.reduce(wide, axis=1)
    losses = log_sum - wide[np.arange(len(labels)), labels]
    # As scikit-learn has them, which every rank that starts would take more than a second to load.
    right = truth == predicted
    num_right, num_true, num_predicted = (
        np.bincount(classes, minlength=logits.shape[1]) for classes in (truth[right], truth, predicted)
    )
    occurs = num_true + num_predicted > 0
    f1 = 2.0 * num_right[occurs] / (num_true + num_predicted)[occurs]
    return {
        "accuracy": float(right.mean()),
        "macro_f1": float(f1.mean()),
        "loss": float(losses.mean()),
        "num_samples": float(len(labels)),
    }


def is_better(metrics: Metrics, best: Metrics, name: str) -> bool:
    """Whether `metrics` beats `best` in that metric; the earlier one wins a tie."""
    if not best:
        return True
    value, old = metrics[name], best[name]
    if math.isnan(value):
        return False
    return value < old if name == "loss" else value > old
