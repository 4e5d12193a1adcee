"""Reads datasets by name: from the hub, and the presets `imdb`, `ag_news` and `20newsgroups`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.corpus.corpus import Table
from training.corpus.folders import tables_of_splits
from training.errors import UserError

HUB_PRESETS = {"imdb": "stanfordnlp/imdb", "ag_news": "fancyzhx/ag_news"}
"""Preset -> hub name. Their loader leaves out splits other than train, validation, test and rows without a label."""
NEWSGROUPS = "20newsgroups"
OWN_FILES = "or download it elsewhere and set data.train_file and data.test_file to its CSV, JSONL or Parquet files"


def read_hub(name: str, config_name: str | None) -> dict[str, Table]:
    """Return the splits of a hub dataset, or of a preset that lives there."""
    hub_name = HUB_PRESETS.get(name, name)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        kind = "is a file. Set data.train_file to it" if Path(name).expanduser().is_file() else "does not exist"
        raise UserError(f"data.dataset_name {name} {kind}. Give an existing folder or a hub name (owner/dataset).")
    import datasets

    try:
        splits = datasets.load_dataset(hub_name, config_name)
    except Exception as error:  # the network, the hub and each file format raise their own kinds
        first_line = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"dataset {hub_name!r} cannot be loaded from the hub: {first_line.rstrip('.')}. Check the name, "
            f"the network and `hf auth login` for gated data, {OWN_FILES}."
        ) from None
    tables = tables_of_splits(splits, hub_name)
    return {split: _with_labels_only(table) for split, table in tables.items()} if name in HUB_PRESETS else tables


def _with_labels_only(table: Table) -> Table:
    """Leave out the rows labelled -1."""
    labels = table.column("label")
    return keep_rows(table, [row for row, label in enumerate(labels) if label != -1], "rows labelled -1")


def keep_rows(table: Table, rows: Sequence[int], reason: str) -> Table:
    """Return `table` with only `rows`, in order; what is missing is noted under `reason`."""
    num_removed = table.num_rows - len(rows)
    if not num_removed:
        return table

    def column(name: str) -> list[Any]:
        values = table.column(name)
        return [values[row] for row in rows]

    return Table(
        source=table.source,
        column_names=table.column_names,
        column=column,
        num_rows=len(rows),
        place=lambda row: table.place(rows[row]),
        class_names=table.class_names,
        removed={**table.removed, reason: num_removed},
        row_numbers=[row + 1 for row in rows],
    )


def read_newsgroups(remove: Sequence[str]) -> dict[str, Table]:
    """Return scikit-learn's "bydate" train and test; posts that `remove` leaves nothing of are left out."""
    from sklearn.datasets import fetch_20newsgroups

    tables = {}
    for split in ("train", "test"):
        try:
            bunch = fetch_20newsgroups(subset=split, remove=tuple(remove), shuffle=False)
        except Exception as error:  # urllib, tarfile and pickle each raise their own kinds
            raise UserError(f"20newsgroups cannot be downloaded: {error}. Check the network, {OWN_FILES}.") from None
        columns = {"text": list(bunch.data), "label": [bunch.target_names[index] for index in bunch.target]}
        table = Table.of(f"20newsgroups ({split})", columns)
        filled = [row for row, text in enumerate(columns["text"]) if text.strip()]
        tables[split] = keep_rows(
            table, filled, f"posts empty without {', '.join(remove)}" if remove else "empty posts"
        )
    return tables
