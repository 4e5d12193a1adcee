"""Predictions of every evaluated text: all metrics can be computed again from this file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from training.corpus.corpus import Split
from training.disk import flush
from training.errors import UserError
from training.multi_label import labels_over_threshold

KEPT_CHARACTERS = 300
"""Of each text: enough for a reader to judge the label, small beside the adapter."""

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What was predicted of one split, in the order of its rows."""

    label_names: list[str]
    ids: list[str]
    labels: IntArray
    """[texts], indices into `label_names`; multi-label: [texts, classes], 1 for each label of a text."""
    predicted: IntArray
    """Likewise."""
    logits: FloatArray | None = None
    """[texts, classes]; None for a classifier that gives no probabilities."""

    @property
    def is_multi_label(self) -> bool:
        """Whether a text may have several labels, or none."""
        return self.labels.ndim == 2

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """[texts], whether the prediction is right; multi-label: all of it."""
        right = self.labels == self.predicted
        return np.asarray(right.all(axis=1) if self.is_multi_label else right)


def write_predictions(
    path: Path, evaluated: dict[str, tuple[Split, npt.NDArray[np.float32]]], label_names: list[str]
) -> None:
    """Write one row a text: split, id, label, prediction (names), logits (fp32, in the order of the labels) and text.

    Of a text longer than `KEPT_CHARACTERS` its beginning is kept, and an ellipsis. The report shows texts from here,
    for the data may lie on another machine, or nowhere any more.
    The label names, in that order, stand in the schema's metadata under "label_names", as a JSON list. Where texts have
    several labels, label and prediction are lists.
    """
    columns: dict[str, list[object]] = {"split": [], "id": [], "label": [], "prediction": [], "logits": [], "text": []}
    for name, (split, logits) in evaluated.items():
        columns["split"] += [name] * len(split.labels)
        columns["id"] += split.ids
        if split.labels and isinstance(split.labels[0], tuple):
            columns["label"] += [[label_names[index] for index in text] for text in split.labels]
            columns["prediction"] += labels_over_threshold(logits, label_names)
        else:
            columns["label"] += [label_names[label] for label in split.labels]
            columns["prediction"] += [label_names[index] for index in logits.argmax(axis=1)]
        columns["logits"] += list(logits)
        columns["text"] += [beginning(text) for text in split.texts]
    write_columns(path, columns, label_names)


def write_columns(path: Path, columns: Mapping[str, Sequence[object]], label_names: list[str]) -> None:
    """Write the columns of `write_predictions`, with or without "logits"; the file is there whole or not at all."""
    types = {"logits": pa.list_(pa.float32())}
    if any(isinstance(value, list) for value in columns["label"]):
        types |= dict.fromkeys(("label", "prediction"), pa.list_(pa.string()))
    schema = pa.schema(
        [pa.field(name, types.get(name, pa.string())) for name in columns],
        metadata={"label_names": json.dumps(label_names, ensure_ascii=False)},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(pa.table(dict(columns), schema=schema), temporary, compression="zstd")
    flush(temporary)
    temporary.replace(path)


def read_predictions(path: Path) -> dict[str, Predictions]:
    """Return split -> predictions of a file `write_predictions` wrote; empty where there is none.

    Raises UserError where the file is damaged.
    """
    try:
        table = pq.read_table(path)
        names = [str(name) for name in json.loads(table.schema.metadata[b"label_names"])]
        index = {name: position for position, name in enumerate(names)}
        split = np.asarray(table["split"].to_pylist(), dtype=object)
        ids = table["id"].to_pylist()
        labels, predicted = (_indices(table[column], index) for column in ("label", "prediction"))
        logits = _logits(table["logits"], len(names)) if "logits" in table.column_names else None
    except FileNotFoundError:
        return {}
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({error}). Delete the folder it lies in and run again: it is computed anew."
        ) from None
    return {
        str(name): Predictions(
            label_names=names,
            ids=[ids[row] for row in rows],
            labels=labels[rows],
            predicted=predicted[rows],
            logits=None if logits is None else logits[rows],
        )
        for name in dict.fromkeys(split)
        for rows in [np.flatnonzero(split == name)]
    }


def _indices(column: Any, index: Mapping[str, int]) -> IntArray:
    """Return label names as indices, lists of them as rows of 0 and 1."""
    if pa.types.is_list(column.type):
        rows = np.zeros((len(column), len(index)), dtype=np.int64)
        for row, names in zip(rows, column.to_pylist(), strict=True):
            row[[index[name] for name in names]] = 1
        return rows
    return np.asarray([index[name] for name in column.to_pylist()], dtype=np.int64)


def _logits(column: Any, num_classes: int) -> FloatArray:
    """Return a column of equally long lists as [rows, classes]."""
    values = np.asarray(column.combine_chunks().flatten(), dtype=np.float64)
    return values.reshape(len(column), num_classes)


def beginning(text: str) -> str:
    """Return the first `KEPT_CHARACTERS` of a text, with an ellipsis where something was cut."""
    return text if len(text) <= KEPT_CHARACTERS else text[: KEPT_CHARACTERS - 1] + "…"
