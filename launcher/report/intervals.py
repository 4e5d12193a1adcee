"""95 % intervals: of the mean over seeds, of one model's scores, of the difference of two on the same texts.

`python benchmarks/intervals.py` measures how often they hold what they should.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri, stdtrit

from training.predictions import FloatArray, IntArray

Interval = list[float]
"""[low, high]."""

LEVEL = 0.95
TAILS = np.array([(1 - LEVEL) / 2, (1 + LEVEL) / 2])
NUM_DRAWS = 2000
SEEDS = "Student's t over seeds"
TEXTS = "BCa bootstrap over texts"


def interval_of_mean(values: Sequence[float]) -> Interval:
    """Return Student's t interval of the mean of two shares or more, kept within 0 and 1.

    Of the scores of several seeds: where the mean over all seeds lies, on these very texts.
    """
    half = stdtrit(len(values) - 1, TAILS[1]) * np.std(values, ddof=1) / len(values) ** 0.5
    mean = float(np.mean(values))
    return [max(0.0, mean - float(half)), min(1.0, mean + float(half))]


def intervals_of_model(confusion: IntArray, num_draws: int = NUM_DRAWS) -> dict[str, Interval]:
    """Return the bootstrap intervals of "accuracy" and "macro_f1" of one model, over texts.

    Drawing texts with replacement is drawing the counts of the confusion matrix from a multinomial distribution.
    BCa (Efron 1987, doi:10.1080/01621459.1987.10478410) and not percentiles: with few texts a class, macro F1 is biased
    downwards in each draw.
    """
    rows, columns = np.nonzero(confusion)
    counts = confusion[rows, columns].astype(np.float64)
    size = len(confusion)
    of_label, of_prediction = np.eye(size)[rows], np.eye(size)[columns]
    on_diagonal = (rows == columns).astype(np.float64)

    wrong_and_right = np.array([counts @ (1 - on_diagonal), counts @ on_diagonal])

    def macro_f1(weights: FloatArray) -> FloatArray:
        total = weights @ of_label + weights @ of_prediction
        right = (weights * on_diagonal) @ of_label
        f1 = np.divide(2 * right, total, out=np.zeros_like(total), where=total > 0)
        return np.asarray(f1.sum(axis=1) / (total > 0).sum(axis=1))

    return {
        "accuracy": _of_mean(np.array([0.0, 1.0]), wrong_and_right, num_draws),
        "macro_f1": _bca(macro_f1, counts, num_draws),
    }


def interval_of_share(correct: npt.NDArray[np.bool_], num_draws: int = NUM_DRAWS) -> Interval:
    """Return the bootstrap interval, over texts, of the share that is right."""
    counts = np.bincount(correct.astype(np.int64), minlength=2).astype(np.float64)
    return _of_mean(np.array([0.0, 1.0]), counts, num_draws)


def interval_of_difference(differences: FloatArray, num_draws: int = NUM_DRAWS) -> Interval:
    """Return the paired bootstrap interval of the mean of what two classifiers differ by, one value a text (BCa)."""
    values, counts = np.unique(differences, return_counts=True)
    return _of_mean(values, counts.astype(np.float64), num_draws)


def _of_mean(values: FloatArray, counts: FloatArray, num_draws: int) -> Interval:
    """Return the interval of the mean of `values`, each of which `counts` texts have."""
    values, counts = values[counts > 0], counts[counts > 0]

    def mean(weights: FloatArray) -> FloatArray:
        return np.asarray(weights @ values / weights.sum(axis=1))

    return _bca(mean, counts, num_draws)


def _bca(statistic: Callable[[FloatArray], FloatArray], counts: FloatArray, num_draws: int) -> Interval:
    """Return the BCa interval of a statistic of `counts` [kinds], texts alike being counted.

    `statistic` maps weights [draws, kinds] to values [draws]. The draws' seed is fixed: the same report again.
    """
    if len(counts) == 1:  # all texts are alike
        (value,) = statistic(counts[None])
        return [float(value), float(value)]
    total = counts.sum()
    generator = np.random.default_rng(0)
    draws = np.sort(statistic(generator.multinomial(int(total), counts / total, size=num_draws).astype(np.float64)))
    (value,) = statistic(counts[None])
    # Sums of floats: what ties with the value differs from it by rounding.
    below, up_to = np.searchsorted(draws, [value - 1e-12, value + 1e-12])
    share = np.clip((below + up_to) / 2 / num_draws, 1 / num_draws, 1 - 1 / num_draws)
    bias = ndtri(share)
    left_out = statistic(counts - np.eye(len(counts))) if total > 1 else np.zeros(len(counts))
    deviation = float((counts * left_out).sum() / total) - left_out
    spread = float((counts * deviation**2).sum())
    skewness = float((counts * deviation**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0
    shifted = bias + ndtri(TAILS)
    low, high = np.quantile(draws, ndtr(bias + shifted / (1 - skewness * shifted)))
    return [float(low), float(high)]
