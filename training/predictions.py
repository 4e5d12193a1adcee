"""Predictions of every evaluated text: all metrics can be computed again from this file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from training.disk import flush
from training.tokens import TokenizedSplit


def write_predictions(
    path: Path, evaluated: dict[str, tuple[TokenizedSplit, npt.NDArray[np.float32]]], label_names: list[str]
) -> None:
    """Write one row a text: split, id, label, prediction (names) and logits (fp32, in the order of the labels).

    The label names, in that order, stand in the schema's metadata under "label_names", as a JSON list.
    """
    columns: dict[str, list[object]] = {"split": [], "id": [], "label": [], "prediction": [], "logits": []}
    for name, (split, logits) in evaluated.items():
        columns["split"] += [name] * len(split)
        columns["id"] += split.ids
        columns["label"] += [label_names[label] for label in split.labels]
        columns["prediction"] += [label_names[index] for index in logits.argmax(axis=1)]
        columns["logits"] += list(logits)
    types = {"logits": pa.list_(pa.float32())}
    schema = pa.schema(
        [pa.field(name, types.get(name, pa.string())) for name in columns],
        metadata={"label_names": json.dumps(label_names, ensure_ascii=False)},
    )
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(pa.table(columns, schema=schema), temporary)
    flush(temporary)
    temporary.replace(path)
