"""Whether two classifiers really differ on the same texts: tests, their correction, the size of the effect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtrit

from launcher.report.intervals import Interval, interval_of_difference
from training.predictions import FloatArray

LEVEL = 0.05
"""What a corrected p-value must be below for a difference to be called real."""
SMALLEST_P = 1e-12
"""Of the t test; a p-value below it is said to be this."""
MOST_FOR_ALL_PAIRS = 20
"""Settings; with more, the best is compared with each, and not each with each."""

MCNEMAR = "McNemar exact"
SEEDS_AND_TEXTS = "t test over seeds and texts"
PAIRED = "paired bootstrap over texts"

Comparison = dict[str, Any]
"""See `compare`."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """What one setting or baseline did with each text."""

    name: str
    correct: FloatArray
    """[texts, seeds], 1 where the prediction was right."""
    is_random: bool = True
    """Whether another seed would give another classifier; a baseline has none."""
    of_text: FloatArray = field(init=False)
    """[texts], the mean over seeds."""
    accuracy: float = field(init=False)
    variance_of_seeds: float = field(init=False)
    """Variance of the accuracies of the seeds; 0 for one."""
    variance_of_seed: float = field(init=False)
    """That without what stems from the draw of texts; 0 for one seed.

    Of two seeds the whole variance: what they tell is too little to take anything from it.
    """

    def __post_init__(self) -> None:
        texts, seeds = self.correct.shape
        of_text, of_seed = self.correct.mean(axis=1), self.correct.mean(axis=0)
        of_seeds = own = float(of_seed.var(ddof=1)) if seeds > 1 else 0.0
        if seeds > 2 and texts > 1:
            rest = self.correct - of_text[:, None] - of_seed + of_seed.mean()
            own = max(0.0, of_seeds - float((rest**2).sum()) / ((texts - 1) * (seeds - 1)) / texts)
        values = {
            "of_text": of_text, "accuracy": float(of_seed.mean()), "variance_of_seeds": of_seeds,
            "variance_of_seed": own,
        }  # fmt: skip
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def num_seeds(self) -> int:
        """Seeds of this side."""
        return int(self.correct.shape[1])


def compare(a: Side, b: Side) -> Comparison:
    """Compare two sides on the same texts, in the same order.

    {"a", "b", "difference" (of accuracy, a - b), "interval" (95 %), "interval_method", "p_value", "test",
    "effect_size" (Cohen's h of the accuracies), "effect"}.

    One classifier a side: McNemar's exact test (McNemar 1947, doi:10.1007/BF02295996; Dietterich 1998,
    doi:10.1162/089976698300017197) and the paired bootstrap, over texts: the answer is about these two classifiers.
    With several seeds on a side the answer is about the settings, whatever seed is drawn; see `_over_seeds`.
    """
    from scipy.stats import binomtest  # here, since every start of the launcher would pay for it

    difference = a.accuracy - b.accuracy
    h = cohens_h(a.accuracy, b.accuracy)
    comparison: Comparison = {"a": a.name, "b": b.name, "difference": difference}
    if a.num_seeds == b.num_seeds == 1:
        only_a, only_b = int((a.of_text > b.of_text).sum()), int((a.of_text < b.of_text).sum())
        p_value = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
        interval, method, test = interval_of_difference(a.of_text - b.of_text), PAIRED, MCNEMAR
    else:
        p_value, interval = _over_seeds(a, b)
        method = test = SEEDS_AND_TEXTS
    return {
        **comparison,
        "interval": interval,
        "interval_method": method,
        "p_value": float(p_value),
        "test": test,
        "effect_size": h,
        "effect": effect(h),
    }


def _over_seeds(a: Side, b: Side) -> tuple[float, Interval]:
    """Return p-value and interval of the difference of two settings, texts and seeds being random both.

    Seeds are nested in settings and crossed with texts, as readers and cases are in studies of diagnostic tests
    (Obuchowski & Rockette 1995, doi:10.1080/03610919508813243; nested: Hillis 2014, doi:10.1002/sim.5926). What makes
    the difference uncertain adds up: the text differences, seeds averaged, and of each side the variance component of
    its seed. Each part is weighted by the square of its own Student's t (Banerjee 1960, Sankhyā 22), which keeps the
    level where few seeds vary much; Satterthwaite's degrees of freedom do not, nor does a bootstrap over both, which
    draws anew among three seeds. A side with one seed is taken to vary as much as the seeds of the other, the draw of
    texts included, for there is nothing else to tell; a baseline does not vary.
    """
    texts = len(a.of_text)
    differences = a.of_text - b.of_text
    parts = [(float(differences.var(ddof=1)) / texts, texts - 1)] if texts > 1 else []
    for side, other in ((a, b), (b, a)):
        if side.num_seeds > 1 and other.num_seeds == 1 and other.is_random:
            parts.append((side.variance_of_seeds * (1 / side.num_seeds + 1), side.num_seeds - 1))
        elif side.num_seeds > 1:
            parts.append((side.variance_of_seed / side.num_seeds, side.num_seeds - 1))
    mean = float(differences.mean())

    def half_width(p_value: float) -> float:
        return float(sum(variance * stdtrit(freedom, p_value / 2) ** 2 for variance, freedom in parts) ** 0.5)

    half = half_width(LEVEL)
    if abs(mean) >= half_width(SMALLEST_P):
        p_value = SMALLEST_P if mean else 1.0
    else:
        p_value = 10 ** brentq(lambda power: half_width(10**power) - abs(mean), np.log10(SMALLEST_P), 0.0)
    return float(p_value), [max(-1.0, mean - half), min(1.0, mean + half)]


def cohens_h(a: float, b: float) -> float:
    """Return Cohen's effect size of two shares, 2 asin √a - 2 asin √b (Cohen 1988, chapter 6)."""
    return float(2 * np.arcsin(a**0.5) - 2 * np.arcsin(b**0.5))


def effect(h: float) -> str:
    """Return Cohen's word for an effect size h."""
    size = abs(h)
    return "negligible" if size < 0.2 else "small" if size < 0.5 else "medium" if size < 0.8 else "large"


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm 1979), in the order given."""
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    ascending = np.minimum(1.0, np.maximum.accumulate(np.asarray(p_values, dtype=np.float64)[order] * factors))
    corrected = np.empty(len(p_values))
    corrected[order] = ascending
    return [float(value) for value in corrected]


def compare_all(sides: Sequence[Side], best: Side | None, baselines: Sequence[Side]) -> list[Comparison]:
    """Compare the settings of one data with each other, and the best with each baseline.

    All pairs of up to MOST_FOR_ALL_PAIRS settings, else the best with each other. "p_holm" is corrected for all of
    these; "real" says whether it is below LEVEL. `sides` and the pairs stand in the order given.
    """
    pairs = list(combinations(sides, 2))
    if len(sides) > MOST_FOR_ALL_PAIRS:
        pairs = [(best, side) for side in sides if side is not best] if best is not None else []
    if best is not None:
        pairs += [(best, baseline) for baseline in baselines]
    compared = [compare(a, b) for a, b in pairs]
    corrected = holm([item["p_value"] for item in compared])
    return [{**item, "p_holm": p, "real": p < LEVEL} for item, p in zip(compared, corrected, strict=True)]
