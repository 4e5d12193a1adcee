"""What a study is measured against: the majority class, and TF-IDF with a linear classifier, on the same data."""

from __future__ import annotations

import pickle
import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from training.corpus.load import Corpus, Split
from training.multi_label import multi_hot
from training.spec import MULTI_LABEL

MIN_SPACE_SHARE = 0.08
"""Fewer spaces than this share of all characters (English: about 0.17) means a script that does not part its words, or
texts of one word: characters are counted instead."""


def tfidf_baseline(corpus: Corpus) -> list[dict[str, Any]]:
    """Return what each baseline reaches and costs; fitted on train only.

    {"kind" (a file's name), "name", "data", "split" (test, or validation where there is no test), "sha256" of the rows,
    "accuracy", "macro_f1", "cost": {"seconds" (of fitting), "samples_per_second" (likewise), "shipped_bytes" (of
    the pickle)}, "predictions": columns of predictions.parquet but for the logits, "label_names"}.
    """
    from sklearn.dummy import DummyClassifier
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    if _has_words(corpus.train.texts):
        name = "TF-IDF (1-2 words)"
        # The default pattern drops one-letter words, and with them texts such as "y".
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    else:
        name = "TF-IDF (1-3 characters)"
        vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True)
    classifier: Any = LinearSVC(random_state=0)
    name, majority = f"{name} + LinearSVC", "Majority class"
    if corpus.problem_type == MULTI_LABEL:
        classifier = OneVsRestClassifier(classifier)
        name, majority = f"{name}, one a label", "Majority of each label"
    return [
        _measure("tfidf", name, make_pipeline(vectorizer, classifier), corpus),
        _measure("majority", majority, DummyClassifier(strategy="most_frequent"), corpus),
    ]


def _measure(kind: str, name: str, model: Any, corpus: Corpus) -> dict[str, Any]:
    """Fit one baseline and score it."""
    split_name, split = ("test", corpus.test) if corpus.test is not None else ("validation", corpus.validation)
    is_multi, names = corpus.problem_type == MULTI_LABEL, corpus.label_names

    def targets(of: Split) -> Any:
        return multi_hot(of.labels, len(names)) if is_multi else of.labels

    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Label .* is present in all training examples|Label not .* is present"
        )
        model.fit(corpus.train.texts, targets(corpus.train))
    seconds = time.perf_counter() - start
    predicted = model.predict(split.texts)
    return {
        "kind": kind,
        "name": name,
        "data": corpus.facts["source"],
        "split": split_name,
        "sha256": corpus.facts["sha256"],
        **_score(targets(split), predicted),
        "cost": {
            "seconds": seconds,
            "samples_per_second": len(corpus.train.texts) / seconds,
            "shipped_bytes": _pickled_bytes(model),
        },
        "label_names": corpus.label_names,
        "predictions": {
            "split": [split_name] * len(split.ids),
            "id": split.ids,
            "label": [[names[index] for index in text] if is_multi else names[text] for text in split.labels],
            "prediction": [
                [names[index] for index in np.flatnonzero(text)] if is_multi else names[int(text)] for text in predicted
            ],
        },
    }


class _Counter:
    """A file that keeps nothing: a vocabulary may be large."""

    num_bytes = 0

    def write(self, data: bytes) -> int:
        """Count."""
        self.num_bytes += memoryview(data).nbytes
        return memoryview(data).nbytes


def _pickled_bytes(model: Any) -> int:
    """Return the size of a model as scikit-learn's are shipped."""
    counter = _Counter()
    pickle.dump(model, counter, protocol=pickle.HIGHEST_PROTOCOL)
    return counter.num_bytes


def _has_words(texts: Sequence[str]) -> bool:
    """Whether spaces part the texts into words."""
    joined = "".join(text.strip() for text in texts[:1000])
    return sum(character.isspace() for character in joined) >= MIN_SPACE_SHARE * len(joined)


def _score(labels: Any, predicted: Any) -> dict[str, float]:
    """Score predictions as the jobs' are scored: macro F1 over the classes that occur in labels or predictions.

    Where texts have several labels: subset accuracy, and over all labels.
    """
    from sklearn.metrics import accuracy_score, f1_score

    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0.0)),
    }
