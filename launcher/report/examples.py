"""Texts worth a look: what most models get wrong, and what the best is surest of and wrong about."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

PREDICTIONS_FILE = "predictions.parquet"

MAX_JOBS = 20
"""Whose predictions are looked at for the hardest texts: reading more says little more."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """An evaluated text and what was predicted for it."""

    id: str
    text: str | None
    """Its beginning; None where the predictions are of an older Shoal, which kept none."""
    label: str
    prediction: str
    """The class predicted; of several jobs the wrong one that most of them predicted."""
    label_probability: float
    """The mean over the jobs, of the true class."""
    prediction_probability: float
    """The mean over the jobs, of that class."""
    num_wrong: int
    num_jobs: int


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What a job predicted for the texts of one split."""

    ids: list[str]
    texts: list[str] | None
    labels: list[str]
    label_names: list[str]
    probabilities: npt.NDArray[np.float64]
    """[texts, labels]"""


def read_predictions(folder: Path, split: str) -> Predictions | None:
    """Return what a job predicted for a split; None where it kept nothing, or texts have several labels."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / PREDICTIONS_FILE
    if not path.exists():
        return None
    table = pq.read_table(path, filters=[("split", "=", split)])
    if not table.num_rows or table.schema.field("label").type != pa.string():
        return None
    logits = np.stack(table["logits"].to_numpy(zero_copy_only=False)).astype(np.float64)
    unnormalized = np.exp(logits - logits.max(axis=1, keepdims=True))
    return Predictions(
        ids=table["id"].to_pylist(),
        texts=table["text"].to_pylist() if "text" in table.column_names else None,
        labels=table["label"].to_pylist(),
        label_names=json.loads(table.schema.metadata[b"label_names"]),
        probabilities=unnormalized / unnormalized.sum(axis=1, keepdims=True),
    )


def hardest(jobs: Sequence[Predictions], count: int = 10) -> list[Example]:
    """Return the texts whose true class got the lowest mean probability of jobs evaluated on the same rows.

    Only texts that more than half of the jobs got wrong; the hardest first.
    """
    if not jobs:
        return []
    first = jobs[0]
    truth = _truth(first)
    rows = np.arange(len(truth))
    mean = np.mean([job.probabilities for job in jobs], axis=0)
    wrong = np.sum([job.probabilities.argmax(axis=1) != truth for job in jobs], axis=0)
    chosen = [row for row in np.argsort(mean[rows, truth], kind="stable") if 2 * wrong[row] > len(jobs)]
    examples = []
    for row in chosen[:count]:
        guesses = np.bincount([job.probabilities[row].argmax() for job in jobs], minlength=len(first.label_names))
        guesses[truth[row]] = 0
        examples.append(_example(first, int(row), mean, int(guesses.argmax()), int(wrong[row]), len(jobs)))
    return examples


def most_confident_mistakes(job: Predictions, count: int = 10) -> list[Example]:
    """Return the wrong predictions with the highest probability, the surest first."""
    predicted = job.probabilities.argmax(axis=1)
    confidence = job.probabilities.max(axis=1)
    wrong = predicted != _truth(job)
    chosen = [row for row in np.argsort(-confidence, kind="stable") if wrong[row]]
    return [_example(job, int(row), job.probabilities, int(predicted[row]), 1, 1) for row in chosen[:count]]


def _truth(job: Predictions) -> npt.NDArray[np.int64]:
    """Return the index of each text's class."""
    index = {name: position for position, name in enumerate(job.label_names)}
    return np.asarray([index[label] for label in job.labels], dtype=np.int64)


def _example(
    job: Predictions, row: int, probabilities: npt.NDArray[np.float64], predicted: int, num_wrong: int, num_jobs: int
) -> Example:
    index = job.label_names.index(job.labels[row])
    return Example(
        id=job.ids[row],
        text=job.texts[row] if job.texts is not None else None,
        label=job.labels[row],
        prediction=job.label_names[predicted],
        label_probability=float(probabilities[row, index]),
        prediction_probability=float(probabilities[row, predicted]),
        num_wrong=num_wrong,
        num_jobs=num_jobs,
    )


def read_examples(
    folders: Mapping[str, Path], chosen: str, jobs: Sequence[str], split: str
) -> tuple[list[Example], list[Example]]:
    """Return the hardest texts over these jobs and the chosen one, and the chosen one's most confident mistakes.

    Of the jobs those count that predicted the same classes for the same texts.
    """
    best = read_predictions(folders[chosen], split)
    if best is None:
        return [], []
    read = (read_predictions(folders[name], split) for name in jobs[:MAX_JOBS] if name != chosen)
    alike = [item for item in read if item and item.ids == best.ids and item.label_names == best.label_names]
    return hardest([best, *alike]), most_confident_mistakes(best)
