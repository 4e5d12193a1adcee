"""What a study is measured against: the majority class, and TF-IDF with a linear classifier, on the same data."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from training.corpus.load import Corpus

MIN_SPACE_SHARE = 0.08
"""Fewer spaces than this share of all characters (English: about 0.17) means a script that does not part its words, or
texts of one word: characters are counted instead."""


def tfidf_baseline(corpus: Corpus) -> list[dict[str, Any]]:
    """Return name, data, split, accuracy, macro_f1, seconds and rows ("sha256") of each baseline; fitted on train only.

    Scored on test, or on validation where there is no test.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    if _has_words(corpus.train.texts):
        name = "TF-IDF (1-2 words) + LinearSVC"
        # The default pattern drops one-letter words, and with them texts such as "y".
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    else:
        name = "TF-IDF (1-3 characters) + LinearSVC"
        vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True)
    split_name, split = ("test", corpus.test) if corpus.test is not None else ("validation", corpus.validation)
    start = time.perf_counter()
    model = make_pipeline(vectorizer, LinearSVC(random_state=0)).fit(corpus.train.texts, corpus.train.labels)
    predicted = [int(label) for label in model.predict(split.texts)]
    seconds = time.perf_counter() - start
    majority = Counter(corpus.train.labels).most_common(1)[0][0]
    data = {"data": corpus.facts["source"], "split": split_name, "sha256": corpus.facts["sha256"]}
    return [
        {"name": name, **data, **_score(split.labels, predicted), "seconds": round(seconds, 2)},
        {"name": "Majority class", **data, **_score(split.labels, [majority] * len(split.labels)), "seconds": 0.0},
    ]


def _has_words(texts: Sequence[str]) -> bool:
    """Whether spaces part the texts into words."""
    joined = "".join(text.strip() for text in texts[:1000])
    return sum(character.isspace() for character in joined) >= MIN_SPACE_SHARE * len(joined)


def _score(labels: list[int], predicted: list[int]) -> dict[str, float]:
    """Score predictions as the jobs' are scored: macro F1 over the classes that occur in labels or predictions."""
    from sklearn.metrics import accuracy_score, f1_score

    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0.0)),
    }
