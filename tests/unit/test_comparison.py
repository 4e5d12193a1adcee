"""Intervals, and whether differences are real."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from launcher.report.comparison import Side, cohens_h, compare, compare_all, effect, holm
from launcher.report.intervals import interval_of_difference, interval_of_mean, intervals_of_model


def side(name: str, *seeds: list[int] | np.ndarray, is_random: bool = True) -> Side:
    return Side(name=name, correct=np.array(seeds, dtype=float).T, is_random=is_random)


def drawn(name: str, share: float, num_seeds: int, generator: np.random.Generator, texts: int = 400) -> Side:
    return Side(name=name, correct=(generator.random((texts, num_seeds)) < share).astype(float))


def test_the_mean_over_seeds_has_students_interval() -> None:
    values = [0.80, 0.82, 0.87]
    expected = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert interval_of_mean(values) == pytest.approx(expected)
    assert interval_of_mean([0.2, 0.9]) == [0.0, 1.0]


def test_bootstrap_intervals_are_those_scipy_finds_by_drawing_texts() -> None:
    confusion = np.array([[60, 8, 2], [10, 50, 0], [6, 4, 20]])
    labels = np.repeat(np.arange(3), confusion.sum(axis=1))
    predicted = np.concatenate([np.repeat(np.arange(3), row) for row in confusion])

    def macro_f1(labels: np.ndarray, predicted: np.ndarray, axis: int = -1) -> np.ndarray:
        f1 = [
            2 * ((labels == name) & (predicted == name)).sum(axis)
            / ((labels == name).sum(axis) + (predicted == name).sum(axis))
            for name in range(3)
        ]  # fmt: skip
        return np.mean(f1, axis=0)

    def accuracy(labels: np.ndarray, predicted: np.ndarray, axis: int = -1) -> np.ndarray:
        return (labels == predicted).mean(axis)

    found = intervals_of_model(confusion)
    for name, statistic in (("accuracy", accuracy), ("macro_f1", macro_f1)):
        reference = stats.bootstrap(
            (labels, predicted), statistic, paired=True, vectorized=True, n_resamples=4000, method="BCa", rng=1
        ).confidence_interval
        assert found[name] == pytest.approx([reference.low, reference.high], abs=0.012)
    differences = (labels == predicted).astype(float) - (np.arange(len(labels)) % 3 > 0)
    reference = stats.bootstrap((differences,), np.mean, n_resamples=4000, method="BCa", rng=1).confidence_interval
    assert interval_of_difference(differences) == pytest.approx([reference.low, reference.high], abs=0.012)


def test_a_model_that_is_always_right_has_an_interval_without_width() -> None:
    assert intervals_of_model(np.array([[7, 0], [0, 9]])) == {"accuracy": [1.0, 1.0], "macro_f1": [1.0, 1.0]}


def test_one_model_a_side_is_mcnemars_test() -> None:
    a = side("a", [1] * 90 + [1] * 9 + [0] * 1)
    b = side("b", [1] * 90 + [0] * 9 + [1] * 1)
    found = compare(a, b)
    assert found["test"] == "McNemar exact"
    assert found["p_value"] == pytest.approx(stats.binomtest(1, 10).pvalue)
    assert found["difference"] == pytest.approx(0.08)
    assert found["interval"][0] < 0.08 < found["interval"][1]
    assert compare(a, a)["p_value"] == 1.0 and compare(a, a)["interval"] == [0.0, 0.0]


def test_seeds_that_differ_much_make_the_difference_of_settings_unsure() -> None:
    generator = np.random.default_rng(0)
    alike = [drawn("a", 0.8, 5, generator), drawn("b", 0.6, 5, generator)]
    assert compare(*alike)["p_value"] < 0.001
    unlike = [
        Side(name=name, correct=np.concatenate([drawn("", share, 1, generator).correct for share in shares], axis=1))
        for name, shares in (("a", (0.6, 0.8, 0.99)), ("b", (0.5, 0.7, 0.9)))
    ]
    found = compare(*unlike)
    assert found["p_value"] > 0.2 and found["interval"][0] < 0 < found["interval"][1]


def test_with_seeds_alone_against_a_baseline_the_test_is_students() -> None:
    """Where a seed sets the level of all texts alike, the t test of the accuracies remains."""
    texts = (np.arange(20_000) * 7919 / 20_000) % 1
    levels = (0.80, 0.82, 0.87)
    seeds = Side(name="a", correct=np.stack([texts < level for level in levels], axis=1).astype(float))
    baseline = Side(name="b", correct=(texts < 0.75).astype(float)[:, None], is_random=False)
    found, expected = compare(seeds, baseline), stats.ttest_1samp(levels, 0.75)
    assert found["p_value"] == pytest.approx(expected.pvalue, rel=0.02)
    low, high = expected.confidence_interval()
    assert found["interval"] == pytest.approx([low - 0.75, high - 0.75], abs=0.001)


def test_without_an_effect_of_seeds_the_test_is_that_of_the_text_differences() -> None:
    generator = np.random.default_rng(3)
    while True:
        a, b = drawn("a", 0.75, 4, generator), drawn("b", 0.7, 4, generator)
        if a.variance_of_seed == b.variance_of_seed == 0:
            break
    expected = stats.ttest_rel(a.of_text, b.of_text)
    assert compare(a, b)["p_value"] == pytest.approx(expected.pvalue, rel=1e-6)
    assert compare(a, b)["interval"] == pytest.approx(list(expected.confidence_interval()))


def test_a_side_with_one_seed_is_taken_to_vary_as_the_other_and_a_baseline_not_at_all() -> None:
    generator = np.random.default_rng(1)
    seeds = [drawn("", share, 1, generator).correct for share in (0.70, 0.78, 0.86)]
    several = Side(name="a", correct=np.concatenate(seeds, axis=1))
    other = drawn("b", 0.7, 1, generator)
    as_model = compare(several, other)
    as_baseline = compare(several, Side(name="b", correct=other.correct, is_random=False))
    widths = [item["interval"][1] - item["interval"][0] for item in (as_baseline, as_model)]
    assert widths[0] < widths[1]
    assert compare(other, several)["p_value"] == pytest.approx(as_model["p_value"])


def test_holm_corrects_for_the_number_of_comparisons() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_effect_sizes_have_cohens_words() -> None:
    assert cohens_h(0.5, 0.5) == 0
    assert cohens_h(1.0, 0.0) == pytest.approx(np.pi)
    assert [effect(h) for h in (0.1, -0.3, 0.6, -0.9)] == ["negligible", "small", "medium", "large"]


def test_all_pairs_of_a_few_settings_and_the_best_against_many() -> None:
    generator = np.random.default_rng(2)
    few = [drawn(str(number), 0.7, 3, generator) for number in range(4)]
    baseline = drawn("baseline", 0.3, 1, generator)
    found = compare_all(few, few[0], [baseline])
    assert len(found) == 6 + 1
    assert [item["b"] for item in found if item["real"]] == ["baseline"]
    assert all(item["p_holm"] >= item["p_value"] for item in found)
    many = [drawn(str(number), 0.7, 1, generator) for number in range(25)]
    assert {item["a"] for item in compare_all(many, many[0], [baseline])} == {"0"}
    assert len(compare_all(many, many[0], [baseline])) == 24 + 1
    assert compare_all(few, None, [baseline])[0]["b"] == "1"
