"""Metrics of one split from its stored predictions: sums that shards of a split add up to, divided once.

Equal to scikit-learn's. As there by default, and as training chooses its checkpoints, macro averages are over the
classes that occur among labels or predictions, and what would be divided by zero is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from training.predictions import FloatArray, IntArray, Predictions

NUM_BINS = 15
"""Of the reliability curve, as in Guo et al. 2017."""

BIN_EDGES = np.linspace(0, 1, NUM_BINS + 1)[1:-1]

Scores = dict[str, Any]
"""See `scores`."""


@dataclass(frozen=True, kw_only=True)
class Sums:
    """Counts and sums over texts. Those of the shards of a split add up to those of the split."""

    confusion: IntArray
    """[classes, classes] texts: rows are labels, columns predictions."""
    log_loss: float
    """Sum of -ln p(label)."""
    brier: float
    """Sum over texts of the squared distance of the probabilities to the one-hot label."""
    bins: FloatArray
    """[3, NUM_BINS]: texts, sum of confidence, texts predicted rightly."""
    has_probabilities: bool
    """Whether the classifier gave any; without, log loss, Brier score and calibration are unknown."""

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            confusion=self.confusion + other.confusion,
            log_loss=self.log_loss + other.log_loss,
            brier=self.brier + other.brier,
            bins=self.bins + other.bins,
            has_probabilities=self.has_probabilities and other.has_probabilities,
        )


def confusion_of(predictions: Predictions) -> IntArray:
    """Return texts by label (rows) and prediction (columns), [classes, classes]."""
    size = len(predictions.label_names)
    cells = predictions.labels * size + predictions.predicted
    return np.bincount(cells, minlength=size * size).reshape(size, size).astype(np.int64)


def sums_of(predictions: Predictions) -> Sums:
    """Return the sums over these texts, of which there may be none."""
    confusion, logits = confusion_of(predictions), predictions.logits
    bins = np.zeros((3, NUM_BINS))
    if logits is None:
        return Sums(confusion=confusion, log_loss=0.0, brier=0.0, bins=bins, has_probabilities=False)
    log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    p = np.exp(log_p)
    rows = np.arange(len(logits))
    of_label = p[rows, predictions.labels]
    confidence = p[rows, predictions.predicted]
    # Bins are open below and closed above.
    place = np.searchsorted(BIN_EDGES, confidence, side="left")
    for row, weights in enumerate((None, confidence, predictions.labels == predictions.predicted)):
        bins[row] = np.bincount(place, weights=weights, minlength=NUM_BINS)
    return Sums(
        confusion=confusion,
        log_loss=float(-log_p[rows, predictions.labels].sum()),
        brier=float((p**2).sum() - 2 * of_label.sum() + len(logits)),
        bins=bins,
        has_probabilities=True,
    )


def scores(sums: Sums, label_names: list[str]) -> Scores:
    """Return the metrics, JSON values; those that no text or no probability tells are None.

    {"num_samples", "accuracy", "balanced_accuracy", "macro_f1", "micro_f1", "weighted_f1", and _precision, _recall
    likewise, "mcc", "log_loss" (natural logarithm), "brier" (sum over classes, 0 to 2), "ece", "per_class":
    [{"label", "precision", "recall", "f1", "support", "predicted"}], "confusion" (rows labels, columns predictions),
    "reliability": [{"confidence", "accuracy", "count"}] of NUM_BINS equally wide bins}.

    Sources: MCC of many classes, Gorodkin 2004 (doi:10.1016/j.compbiolchem.2004.09.006); Brier 1950
    (doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2); expected calibration error, Naeini et al. 2015
    (doi:10.1609/aaai.v29i1.9602) for the predicted class as Guo et al. 2017 (arXiv:1706.04599) have it.
    """
    confusion = sums.confusion
    total = int(confusion.sum())
    support, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    right = np.diagonal(confusion)
    of_class = {
        "precision": _divide(right, predicted),
        "recall": _divide(right, support),
        "f1": _divide(2 * right, support + predicted),
    }
    return {
        "num_samples": total,
        "accuracy": int(right.sum()) / total if total else None,
        "balanced_accuracy": float(of_class["recall"][support > 0].mean()) if total else None,
        **_averages(of_class, support, predicted),
        "mcc": _mcc(confusion) if total else None,
        **_of_probabilities(sums, total),
        "per_class": [
            {
                "label": name,
                **{metric: float(values[index]) if total else None for metric, values in of_class.items()},
                "support": int(support[index]),
                "predicted": int(predicted[index]),
            }
            for index, name in enumerate(label_names)
        ],
        "confusion": confusion.tolist(),
    }


def _divide(over: IntArray, under: IntArray) -> FloatArray:
    """Return over / under, 0 where that is none."""
    return np.divide(over, under, out=np.zeros(len(over)), where=under > 0)


def _averages(of_class: dict[str, FloatArray], support: IntArray, predicted: IntArray) -> dict[str, float | None]:
    """Return the macro, micro and weighted average of each metric; micro is the accuracy: each text has one label."""
    total = int(support.sum())
    occurs = support + predicted > 0
    averages: dict[str, float | None] = {}
    for metric, values in of_class.items():
        averages |= {
            f"macro_{metric}": float(values[occurs].mean()) if total else None,
            f"micro_{metric}": float((of_class["recall"] * support).sum() / total) if total else None,
            f"weighted_{metric}": float((values * support).sum() / total) if total else None,
        }
    return averages


def _mcc(confusion: IntArray) -> float:
    """Return Matthews' correlation coefficient; 0 where labels or predictions are all of one class."""
    total = float(confusion.sum())
    support, predicted = confusion.sum(axis=1).astype(float), confusion.sum(axis=0).astype(float)
    spread = (total**2 - (support**2).sum()) * (total**2 - (predicted**2).sum())
    covariance = total * float(np.trace(confusion)) - float(support @ predicted)
    return float(covariance / np.sqrt(spread)) if spread > 0 else 0.0


def _of_probabilities(sums: Sums, total: int) -> dict[str, Any]:
    """Return log loss, Brier score, calibration error and its curve."""
    if not sums.has_probabilities:
        return {"log_loss": None, "brier": None, "ece": None, "reliability": []}
    count, confidence, right = sums.bins
    curve = [
        {
            "confidence": float(confidence[place] / texts) if texts else None,
            "accuracy": float(right[place] / texts) if texts else None,
            "count": int(texts),
        }
        for place, texts in enumerate(count)
    ]
    return {
        "log_loss": sums.log_loss / total if total else None,
        "brier": sums.brier / total if total else None,
        "ece": float(np.abs(confidence - right).sum() / total) if total else None,
        "reliability": curve,
    }
