"""Scores from stored predictions, against scikit-learn and formulas of their own."""

from __future__ import annotations

from functools import reduce
from itertools import pairwise
from operator import add

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn import metrics

from launcher.report.scores import NUM_BINS, Scores, scores, sums_of
from training.evaluation import compute_metrics
from training.predictions import Predictions

NUM_CASES = 10_000
EXACT = 1e-12


def predictions(labels: np.ndarray, logits: np.ndarray) -> Predictions:
    names = [f"class {index}" for index in range(logits.shape[1])]
    return Predictions(
        label_names=names, ids=[""] * len(labels), labels=labels, predicted=logits.argmax(axis=1), logits=logits
    )


def draw(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw labels [texts] and logits [texts, classes] of a case: mostly small ones, where classes are missing."""
    texts, classes = int(generator.integers(1, 40)), int(generator.integers(2, 9))
    occurring = generator.choice(classes, size=int(generator.integers(1, classes + 1)), replace=False)
    labels = generator.choice(occurring, size=texts)
    # Rounded, so that confidences lie on the edges of bins now and then and logits tie.
    logits = generator.normal(0, 2, (texts, classes)) + 2 * generator.random() * np.eye(classes)[labels]
    return labels, np.round(logits, int(generator.integers(0, 6)))


def in_shards(labels: np.ndarray, logits: np.ndarray, generator: np.random.Generator) -> Scores:
    """Score what two ranks hold, some of them nothing."""
    cut = [int(generator.integers(0, len(labels) + 1))]
    shards = zip(np.split(labels, cut), np.split(logits, cut), strict=True)
    sums = reduce(add, (sums_of(predictions(*shard)) for shard in shards))
    return scores(sums, predictions(labels, logits).label_names)


@pytest.fixture(scope="module")
def cases() -> list[tuple[np.ndarray, np.ndarray, Scores]]:
    generator = np.random.default_rng(5)
    drawn = [draw(generator) for _ in range(NUM_CASES)]
    return [(labels, logits, in_shards(labels, logits, generator)) for labels, logits in drawn]


Cases = list[tuple[np.ndarray, np.ndarray, Scores]]


def test_classes_are_scored_as_by_scikit_learn(cases: Cases) -> None:
    """One call for all cases: the classes of each are classes of their own. A call a case would take minutes."""
    sizes = [logits.shape[1] for _, logits, _ in cases]
    firsts = np.cumsum([0, *sizes[:-1]])
    labels = np.concatenate([first + case[0] for first, case in zip(firsts, cases, strict=True)])
    predicted = np.concatenate([first + case[1].argmax(axis=1) for first, case in zip(firsts, cases, strict=True)])
    expected = metrics.precision_recall_fscore_support(labels, predicted, labels=np.arange(sum(sizes)), zero_division=0)
    rows = [row for _, _, found in cases for row in found["per_class"]]
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        assert np.abs(np.array([row[name] for row in rows]) - values).max() <= EXACT
    assert min(row["support"] for row in rows) == 0 and len(cases) == NUM_CASES


def test_averages_and_probabilities_are_those_of_the_formulas(cases: Cases) -> None:
    expected = by_formula(cases)
    found = {name: np.array([case[2][name] for case in cases]) for name in expected}
    assert {name: np.abs(found[name] - expected[name]).max() <= EXACT for name in expected} == dict.fromkeys(
        expected, True
    )


def by_formula(cases: Cases) -> dict[str, np.ndarray]:
    """Return the scores of all cases as textbooks write them; arrays are [cases, texts, classes], filled up with 0."""
    texts, classes = max(len(case[0]) for case in cases), max(case[1].shape[1] for case in cases)
    shape = (len(cases), texts, classes)
    is_label, is_predicted, p, log_p = np.zeros(shape), np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for place, (labels, logits, _) in enumerate(cases):
        rows, size = len(labels), logits.shape[1]
        is_label[place, :rows, :size] = np.eye(size)[labels]
        is_predicted[place, :rows, :size] = np.eye(size)[logits.argmax(axis=1)]
        log_p[place, :rows, :size] = log_softmax(logits, axis=1)
        p[place, :rows, :size] = softmax(logits, axis=1)
    there = is_label.sum(2)  # 1 for a text, 0 for what fills up
    count = there.sum(1)
    support, predicted = is_label.sum(1), is_predicted.sum(1)
    of_both = (is_label * is_predicted).sum(1)
    with np.errstate(invalid="ignore"):
        f1 = np.nan_to_num(2 * of_both / (support + predicted))
        recall = of_both / support
    x = is_label - (support / count[:, None])[:, None] * there[:, :, None]
    y = is_predicted - (predicted / count[:, None])[:, None] * there[:, :, None]
    spread = ((x * x).sum((1, 2)) * (y * y).sum((1, 2))) ** 0.5
    confidence, right = p.max(2), (is_label * is_predicted).sum(2)
    ece = np.zeros(len(cases))
    edges = np.linspace(0, 1, NUM_BINS + 1)
    for low, high in pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        ece += np.abs(((confidence - right) * inside).sum(1)) / count
    return {
        "accuracy": right.sum(1) / count,
        "macro_f1": f1.sum(1) / ((support + predicted) > 0).sum(1),
        "weighted_f1": (f1 * support).sum(1) / count,
        "balanced_accuracy": np.nanmean(recall, axis=1),
        "mcc": np.where(spread > 1e-9, (x * y).sum((1, 2)) / np.maximum(spread, 1e-9), 0.0),
        "log_loss": -(log_p * is_label).sum((1, 2)) / count,
        "brier": ((p - is_label) ** 2).sum((1, 2)) / count,
        "ece": ece,
    }


def test_all_is_as_scikit_learn_and_training_have_it(cases: Cases) -> None:
    for labels, logits, found in [case for case in cases if len(set(case[0])) > 1][:25]:
        predicted, everyone = logits.argmax(axis=1), np.arange(logits.shape[1])
        p = np.exp(log_softmax(logits, axis=1))
        expected = {
            "accuracy": metrics.accuracy_score(labels, predicted),
            "mcc": metrics.matthews_corrcoef(labels, predicted),
            "log_loss": metrics.log_loss(labels, p, labels=everyone),
        }
        for average in ("macro", "micro", "weighted"):
            of_all = metrics.precision_recall_fscore_support(labels, predicted, average=average, zero_division=0)
            expected |= {f"{average}_{name}": of_all[place] for place, name in enumerate(("precision", "recall", "f1"))}
        assert {name: found[name] for name in expected} == pytest.approx(expected, abs=EXACT)
        assert found["confusion"] == metrics.confusion_matrix(labels, predicted, labels=everyone).tolist()
        assert sum(place["count"] for place in found["reliability"]) == len(labels)
        trained = compute_metrics(logits, labels.tolist())
        assert (found["accuracy"], found["macro_f1"], found["log_loss"], found["num_samples"]) == pytest.approx(
            (trained["accuracy"], trained["macro_f1"], trained["loss"], trained["num_samples"]), abs=EXACT
        )


def test_a_split_without_texts_has_no_scores() -> None:
    nothing = scores(sums_of(predictions(np.zeros(0, dtype=int), np.zeros((0, 3)))), ["a", "b", "c"])
    assert nothing["num_samples"] == 0
    assert nothing["confusion"] == [[0, 0, 0]] * 3
    names = ("accuracy", "balanced_accuracy", "macro_f1", "micro_recall", "mcc", "log_loss", "brier", "ece")
    assert {nothing[name] for name in names} == {None}


def test_labels_alone_tell_nothing_of_probabilities() -> None:
    labels = np.array([0, 1, 1])
    of_labels = Predictions(label_names=["a", "b"], ids=["1", "2", "3"], labels=labels, predicted=np.array([0, 1, 0]))
    found = scores(sums_of(of_labels), ["a", "b"])
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert (found["log_loss"], found["brier"], found["ece"], found["reliability"]) == (None, None, None, [])
