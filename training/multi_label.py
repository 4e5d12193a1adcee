"""Texts with several labels, or none: their labels as rows of 0 and 1, what logits predict, and the metrics."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from training.result import Metrics


def multi_hot(labels: Any, num_labels: int) -> npt.NDArray[np.int64]:
    """Return [texts, num_labels], 1 for each label a text has; `labels` are the indices of each text's."""
    rows = np.zeros((len(labels), num_labels), dtype=np.int64)
    for row, text in zip(rows, labels, strict=True):
        row[list(text)] = 1
    return rows


def over_threshold(logits: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return [texts, labels], 1 for each label whose probability, the sigmoid of its logit, is above 0.5."""
    return (logits > 0).astype(np.int64)


def labels_over_threshold(logits: npt.NDArray[Any], label_names: list[str]) -> list[list[str]]:
    """Return the names of each text's predicted labels, perhaps none."""
    return [[label_names[index] for index in np.flatnonzero(row)] for row in over_threshold(logits)]


def sigmoid(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the probability of each label by itself."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -logits.astype(np.float64))))


def compute_multi_label_metrics(logits: npt.NDArray[np.float32], labels: Any) -> Metrics:
    """Return "accuracy" (of subsets: all labels of a text right), F1 averaged over labels, texts and both, the mean
    average precision "map", the mean binary cross entropy "loss" and "num_samples"; all as scikit-learn has them.

    A label that no text has counts as 0 in map and, if it is predicted or not, in macro F1, as there.
    """
    from sklearn.metrics import accuracy_score, average_precision_score, f1_score

    truth, predicted = multi_hot(labels, logits.shape[1]), over_threshold(logits)
    wide = logits.astype(np.float64)
    averages = ("macro", "micro", "weighted", "samples")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of labels that no text has
        mean_average_precision = float(average_precision_score(truth, wide, average="macro"))
    return {
        "accuracy": float(accuracy_score(truth, predicted)),
        **{f"{name}_f1": float(f1_score(truth, predicted, average=name, zero_division=0)) for name in averages},
        "map": mean_average_precision,
        "loss": float((np.logaddexp(0.0, wide) - truth * wide).mean()),
        "num_samples": float(len(labels)),
    }
