"""Metrics of one split whose texts have several labels, from stored predictions; equal to scikit-learn's.

As there by default, averages are over all labels, and what would be divided by zero is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from training.predictions import FloatArray, IntArray, Predictions

Scores = dict[str, Any]
"""See `multi_label_scores`."""


@dataclass(frozen=True, kw_only=True)
class MultiLabelSums:
    """Counts and sums over texts. Those of the shards of a split add up to those of the split."""

    right: IntArray
    """[labels] texts that have the label and are predicted to."""
    support: IntArray
    """[labels] texts that have it."""
    predicted: IntArray
    """[labels] texts predicted to have it."""
    num_samples: int
    num_exact: int
    """Texts whose labels are all right."""
    samples: FloatArray
    """[3]: precision, recall and F1 of each text over its labels, added up."""
    log_loss: float
    """Sum over texts and labels of the binary cross entropy, natural logarithm."""
    ranked: list[tuple[IntArray, FloatArray]]
    """Labels and logits of each shard: average precision is of the order of all texts. Empty without logits."""

    def __add__(self, other: MultiLabelSums) -> MultiLabelSums:
        added = {name: getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__}
        return MultiLabelSums(**added)


def multi_label_sums_of(predictions: Predictions) -> MultiLabelSums:
    """Return the sums over these texts, of which there may be none."""
    truth, predicted, logits = predictions.labels, predictions.predicted, predictions.logits
    both = truth * predicted
    of_text = [
        _divide(both.sum(axis=1), predicted.sum(axis=1)),
        _divide(both.sum(axis=1), truth.sum(axis=1)),
        _divide(2 * both.sum(axis=1), truth.sum(axis=1) + predicted.sum(axis=1)),
    ]
    return MultiLabelSums(
        right=both.sum(axis=0),
        support=truth.sum(axis=0),
        predicted=predicted.sum(axis=0),
        num_samples=len(truth),
        num_exact=int(predictions.correct.sum()),
        samples=np.array([values.sum() for values in of_text]),
        log_loss=0.0 if logits is None else float((np.logaddexp(0.0, logits) - truth * logits).sum()),
        ranked=[] if logits is None else [(truth, logits)],
    )


def multi_label_scores(sums: MultiLabelSums, label_names: list[str]) -> Scores:
    """Return the metrics, JSON values; those that no text or no logit tells are None.

    {"num_samples", "accuracy" (of subsets: all labels of a text are right), "macro_f1" (mean over labels), "micro_f1"
    (over all labels of all texts), "weighted_f1" (by the texts of a label), "samples_f1" (mean over texts), and
    _precision, _recall likewise, "map" (mean over labels of the average precision; 0 for a label that no text has),
    "log_loss" (mean over texts and labels), "per_class": [{"label", "precision", "recall", "f1", "support",
    "predicted", "average_precision"}]}.
    """
    total = sums.num_samples
    right, support, predicted = sums.right, sums.support, sums.predicted
    of_label = {
        "precision": _divide(right, predicted),
        "recall": _divide(right, support),
        "f1": _divide(2 * right, support + predicted),
    }
    of_all = {
        "precision": _divide(right.sum(keepdims=True), predicted.sum(keepdims=True)),
        "recall": _divide(right.sum(keepdims=True), support.sum(keepdims=True)),
        "f1": _divide(2 * right.sum(keepdims=True), (support + predicted).sum(keepdims=True)),
    }
    averages: dict[str, float | None] = {}
    for place, (metric, values) in enumerate(of_label.items()):
        weighted = _divide((values * support).sum(keepdims=True), support.sum(keepdims=True))
        averages |= {
            f"macro_{metric}": float(values.mean()) if total else None,
            f"micro_{metric}": float(of_all[metric][0]) if total else None,
            f"weighted_{metric}": float(weighted[0]) if total else None,
            f"samples_{metric}": float(sums.samples[place] / total) if total else None,
        }
    precisions = _average_precisions(sums) if total and sums.ranked else None
    return {
        "num_samples": total,
        "accuracy": sums.num_exact / total if total else None,
        **averages,
        "map": float(np.mean(precisions)) if precisions is not None else None,
        "log_loss": sums.log_loss / (total * len(label_names)) if total and sums.ranked else None,
        "per_class": [
            {
                "label": name,
                **{metric: float(values[index]) if total else None for metric, values in of_label.items()},
                "support": int(support[index]),
                "predicted": int(predicted[index]),
                "average_precision": float(precisions[index]) if precisions is not None else None,
            }
            for index, name in enumerate(label_names)
        ],
    }


def _divide(over: npt.NDArray[Any], under: npt.NDArray[Any]) -> FloatArray:
    """Return over / under, 0 where that is none."""
    return np.asarray(np.divide(over, under, out=np.zeros(len(over)), where=under > 0))


def _average_precisions(sums: MultiLabelSums) -> list[float]:
    """Return the average precision of each label."""
    truth, logits = (np.concatenate([shard[place] for shard in sums.ranked]) for place in (0, 1))
    return [average_precision(truth[:, index], logits[:, index]) for index in range(truth.shape[1])]


def average_precision(truth: IntArray, scores: FloatArray) -> float:
    """Return the sum of precision times gain of recall, from the highest score down; equal scores come at once."""
    if not truth.any():
        return 0.0
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    ends = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)  # the last of each score
    found = np.cumsum(truth[order])[ends]
    recall = found / found[-1]
    return float((np.diff(recall, prepend=0.0) * found / (ends + 1)).sum())
