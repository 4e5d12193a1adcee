"""Scores of texts with several labels, from shards of stored predictions, against scikit-learn."""

from __future__ import annotations

import warnings
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit
from sklearn import metrics

from launcher.report.multi_label import Scores, average_precision, multi_label_scores, multi_label_sums_of
from training.corpus.corpus import Split
from training.multi_label import compute_multi_label_metrics, multi_hot, over_threshold, sigmoid
from training.predictions import Predictions, read_predictions, write_predictions

NUM_CASES = 3000
EXACT = 1e-12

Case = tuple[np.ndarray, np.ndarray]


def predictions(truth: np.ndarray, logits: np.ndarray) -> Predictions:
    names = [f"label {index}" for index in range(logits.shape[1])]
    predicted = over_threshold(logits)
    return Predictions(label_names=names, ids=[""] * len(truth), labels=truth, predicted=predicted, logits=logits)


def draw(generator: np.random.Generator) -> Case:
    """Draw a case: mostly small ones, where labels are missing, texts have none, and logits tie."""
    texts, labels = int(generator.integers(1, 40)), int(generator.integers(2, 9))
    truth = (generator.random((texts, labels)) < generator.random(labels) ** 2).astype(np.int64)
    logits = generator.normal(-0.5, 2, (texts, labels)) + 3 * generator.random() * truth
    return truth, np.round(logits, int(generator.integers(0, 6)))


def in_shards(case: Case, generator: np.random.Generator) -> Scores:
    """Score what three ranks hold, some of them nothing."""
    cuts = np.sort(generator.integers(0, len(case[0]) + 1, size=2))
    shards = zip(*(np.split(part, cuts) for part in case), strict=True)
    sums = reduce(add, (multi_label_sums_of(predictions(*shard)) for shard in shards))
    return multi_label_scores(sums, predictions(*case).label_names)


@pytest.fixture(scope="module")
def cases() -> list[tuple[Case, Scores]]:
    generator = np.random.default_rng(9)
    drawn = [draw(generator) for _ in range(NUM_CASES)]
    return [(case, in_shards(case, generator)) for case in drawn]


def test_labels_are_scored_as_by_scikit_learn(cases: list[tuple[Case, Scores]]) -> None:
    """One call for all cases, filled up: the labels of each are labels of their own. A call a case takes minutes."""
    texts = max(len(truth) for (truth, _), _ in cases)
    truth, predicted = (
        np.concatenate([np.pad(part, ((0, texts - len(part)), (0, 0))) for part in parts], axis=1)
        for parts in ([case[0] for case, _ in cases], [over_threshold(case[1]) for case, _ in cases])
    )
    expected = metrics.precision_recall_fscore_support(truth, predicted, average=None, zero_division=0)
    rows = [row for _, found in cases for row in found["per_class"]]
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        assert np.abs(np.array([row[name] for row in rows]) - values).max() <= EXACT
    assert min(row["support"] for row in rows) == 0 and len(cases) == NUM_CASES


def test_averages_are_scikit_learns(cases: list[tuple[Case, Scores]]) -> None:
    for (truth, logits), found in cases[:40]:
        predicted = over_threshold(logits)
        expected = {"accuracy": metrics.accuracy_score(truth, predicted), "num_samples": len(truth)}
        for average in ("macro", "micro", "weighted", "samples"):
            values = metrics.precision_recall_fscore_support(truth, predicted, average=average, zero_division=0)
            expected |= {f"{average}_{name}": values[place] for place, name in enumerate(("precision", "recall", "f1"))}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of labels that no text has
            expected["map"] = metrics.average_precision_score(truth, logits, average="macro")
        # Each label of each text is a case of its own.
        expected["log_loss"] = metrics.log_loss(truth.ravel(), expit(logits).ravel(), labels=[0, 1])
        assert {name: found[name] for name in expected} == pytest.approx(expected, abs=EXACT)


def test_averages_are_those_of_the_formulas(cases: list[tuple[Case, Scores]]) -> None:
    """Of all cases, where scikit-learn would take minutes: written out text by text and label by label."""
    names = ("accuracy", "micro_f1", "macro_f1", "weighted_f1", "samples_f1", "map", "log_loss")
    expected = []
    for (truth, logits), found in cases:
        predicted = logits > 0
        f1 = [row["f1"] for row in found["per_class"]]  # which another test holds equal to scikit-learn's
        of_text = 2 * (truth * predicted).sum(1) / np.maximum((truth + predicted).sum(1), 1)
        p = expit(logits)
        expected.append([
            (truth == predicted).all(axis=1).mean(),
            2 * (truth * predicted).sum() / max(truth.sum() + predicted.sum(), 1),
            np.mean(f1),
            np.dot(f1, truth.sum(0)) / max(truth.sum(), 1),
            of_text.mean(),
            np.mean([row["average_precision"] for row in found["per_class"]]),
            -np.mean(truth * np.log(p) + (1 - truth) * np.log(1 - p)),
        ])  # fmt: skip
    values = np.array([[found[name] for name in names] for _, found in cases])
    assert (np.abs(values - np.array(expected)) <= EXACT).all()


def test_average_precision_is_scikit_learns(cases: list[tuple[Case, Scores]]) -> None:
    some = cases[:400]
    texts = max(len(truth) for (truth, _), _ in some)
    truth = np.concatenate([np.pad(case[0], ((0, texts - len(case[0])), (0, 0))) for case, _ in some], axis=1)
    # What fills up comes last, without the label, and so changes nothing.
    logits = np.concatenate(
        [np.pad(case[1], ((0, texts - len(case[1])), (0, 0)), constant_values=-1e9) for case, _ in some], axis=1
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of labels that no text has
        expected = metrics.average_precision_score(truth, logits, average=None)
    found = [row["average_precision"] for _, scores in some for row in scores["per_class"]]
    assert np.abs(np.array(found) - expected).max() <= EXACT and 0.0 in found
    assert average_precision(np.zeros(3, dtype=np.int64), np.arange(3.0)) == 0.0


def test_training_scores_the_same(cases: list[tuple[Case, Scores]]) -> None:
    for (truth, logits), found in cases[:25]:
        labels = [tuple(np.flatnonzero(row)) for row in truth]
        assert (multi_hot(labels, truth.shape[1]) == truth).all()
        trained = compute_multi_label_metrics(logits, labels)
        trained["log_loss"] = trained.pop("loss")
        assert {name: found[name] for name in trained} == pytest.approx(trained, abs=EXACT)


def test_a_split_without_texts_or_logits_has_no_scores() -> None:
    nothing = multi_label_scores(
        multi_label_sums_of(predictions(np.zeros((0, 2), dtype=np.int64), np.zeros((0, 2)))), ["a", "b"]
    )
    assert nothing["num_samples"] == 0
    assert {nothing[name] for name in ("accuracy", "macro_f1", "samples_f1", "map", "log_loss")} == {None}
    truth = np.array([[1, 0], [0, 0]])
    of_labels = Predictions(label_names=["a", "b"], ids=["1", "2"], labels=truth, predicted=truth * 0)
    found = multi_label_scores(multi_label_sums_of(of_labels), ["a", "b"])
    assert (found["accuracy"], found["map"], found["log_loss"]) == (0.5, None, None)
    assert of_labels.correct.tolist() == [False, True]


def test_a_probability_is_over_the_threshold_where_its_logit_is_positive() -> None:
    logits = np.array([[-800.0, -1e-7, 0.0, 1e-7, 800.0]])
    np.testing.assert_allclose(sigmoid(logits), expit(logits))
    assert over_threshold(logits).tolist() == [[0, 0, 0, 1, 1]]


def test_predictions_are_written_and_read_again(tmp_path: Path) -> None:
    split = Split(ids=["test:1", "test:2", "test:3"], texts=["x", "y", "z"], labels=[(), (0, 2), (1,)])
    logits = np.array([[-1, -1, -1], [2, -1, 3], [1, 1, -1]], dtype=np.float32)
    write_predictions(tmp_path / "p.parquet", {"test": (split, logits)}, ["a", "b", "c"])
    read = read_predictions(tmp_path / "p.parquet")["test"]
    assert read.is_multi_label and read.labels.tolist() == [[0, 0, 0], [1, 0, 1], [0, 1, 0]]
    assert read.predicted.tolist() == [[0, 0, 0], [1, 0, 1], [1, 1, 0]]
    assert read.correct.tolist() == [True, True, False]
