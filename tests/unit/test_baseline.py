"""The baselines a study is measured against."""

from __future__ import annotations

import pytest

from training.baseline import tfidf_baseline
from training.corpus.load import Corpus, Split


def split(name: str, rows: list[tuple[str, int]]) -> Split:
    return Split(
        ids=[f"{name}:{number}" for number in range(1, len(rows) + 1)],
        texts=[text for text, _ in rows],
        labels=[label for _, label in rows],
    )


def corpus(train: list[tuple[str, int]], test: list[tuple[str, int]] | None) -> Corpus:
    return Corpus(
        train=split("train", train),
        validation=split("validation", train[:4]),
        test=None if test is None else split("test", test),
        label_names=["cold", "warm"],
        facts={"source": "texts", "sha256": {"train": "1", "test": "2"}},
    )


ENGLISH = [
    ("a cold and icy winter", 0),
    ("ice and snow all day", 0),
    ("icy snow in winter", 0),
    ("a hot summer day", 1),
]


def test_scores_test_and_names_both_baselines() -> None:
    tfidf, majority = tfidf_baseline(corpus(ENGLISH, [("snow in winter", 0), ("hot summer", 1), ("a hot day", 1)]))
    assert tfidf["name"] == "TF-IDF (1-2 words) + LinearSVC"
    assert (tfidf["split"], tfidf["accuracy"], tfidf["macro_f1"]) == ("test", 1.0, 1.0)
    assert majority["name"] == "Majority class"
    assert tfidf["predictions"]["id"] == ["test:1", "test:2", "test:3"]
    assert tfidf["predictions"]["label"] == tfidf["predictions"]["prediction"] == ["cold", "warm", "warm"]
    assert majority["predictions"]["prediction"] == ["cold"] * 3
    assert tfidf["cost"]["shipped_bytes"] > majority["cost"]["shipped_bytes"] > 0
    assert majority["accuracy"] == pytest.approx(1 / 3)
    assert majority["macro_f1"] == pytest.approx(0.25)  # F1 of 0.5 for the class it names, 0 for the other


def test_majority_is_of_train_not_of_test() -> None:
    _, majority = tfidf_baseline(corpus(ENGLISH, [("hot", 1)]))
    assert majority["accuracy"] == 0.0


def test_validation_is_scored_where_there_is_no_test() -> None:
    for row in tfidf_baseline(corpus(ENGLISH, None)):
        assert row["split"] == "validation"


def test_a_script_without_spaces_is_read_by_characters() -> None:
    chinese = [("今天天气很冷下雪了", 0), ("冬天下雪路上结冰", 0), ("夏天阳光很热", 1), ("热浪来袭气温升高", 1)]
    tfidf, _ = tfidf_baseline(corpus(chinese, [("山上下雪", 0), ("天气炎热", 1)]))
    assert tfidf["name"] == "TF-IDF (1-3 characters) + LinearSVC"
    assert tfidf["accuracy"] == 1.0


def test_texts_of_single_letters_and_signs_do_not_fail() -> None:
    signs = [("y", 1), ("n", 0), ("y y", 1), ("n !", 0), ("?", 0)]
    tfidf, _ = tfidf_baseline(corpus(signs, [("y", 1), ("n", 0)]))
    assert tfidf["accuracy"] == 1.0
