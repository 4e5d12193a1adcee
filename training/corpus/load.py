"""The way in: `load_corpus` turns the data section of a job into checked texts and labels."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from training.corpus import columns, splitting
from training.corpus.corpus import Corpus, Split, Table
from training.corpus.files import read_file
from training.corpus.folders import read_folder
from training.corpus.hub import NEWSGROUPS, read_hub, read_newsgroups
from training.errors import UserError, nearest
from training.spec import DOCSTRINGS, MULTI_LABEL, SINGLE_LABEL, DataSpec

__all__ = ["Corpus", "Split", "load_corpus"]

MIN_TEXTS_CONTAINED = 10
"""Different texts of a split that make it a part of another."""


def load_corpus(data: DataSpec) -> Corpus:
    """Return the splits `data` asks for; raise UserError naming file, row, value and mend for data that cannot work."""
    tables = read_tables(data)
    text_columns = columns.choose_text_columns(tables["train"], data.text_column_names, data.label_column_name)
    removed = {f"{split}: {what}": count for split, table in tables.items() for what, count in table.removed.items()}
    for split in ("validation", "test"):
        if split in tables and columns.is_unlabelled(tables[split], data.label_column_name):
            removed[f"{split}: rows without labels"] = tables.pop(split).num_rows
    is_multi = columns.holds_label_lists(tables["train"], data.label_column_name, data.label_delimiter)
    present, label_names = _label_names(tables["train"], data, is_multi)
    splits = {
        split: _read_split(split, table, text_columns, present, label_names, data, is_multi)
        for split, table in tables.items()
    }
    _refuse_choosing_by_test(splits)
    overlap = set(splits["train"].texts) & set(splits["test"].texts) if "test" in splits else set()
    made = "as given"
    if "validation" not in splits:
        splits["train"], splits["validation"] = splitting.set_aside(
            splits["train"], data.validation_fraction, data.split_seed
        )
        how = "random" if is_multi else "stratified"
        made = f"{data.validation_fraction:.0%} of train set aside, {how}, seed {data.split_seed}"
    maxima = {"train": data.max_train_samples, "validation": data.max_validation_samples, "test": data.max_test_samples}
    splits = {
        name: splitting.limit(splits[name], maximum, data.split_seed, name)
        for name, maximum in maxima.items()
        if name in splits
    }
    facts: dict[str, Any] = {
        "source": data.dataset_name or str(data.train_file),
        "files": {split: table.source for split, table in tables.items()},
        "text_columns": text_columns,
        "label_column": data.label_column_name,
        "label_names": label_names,
        "problem_type": MULTI_LABEL if is_multi else SINGLE_LABEL,
        "num_rows": {split: len(part.labels) for split, part in splits.items()},
        "rows_per_class": {split: _rows_per_class(part, label_names) for split, part in splits.items()},
        "validation": made,
        "removed": removed,
        "remove": list(data.remove),
        "num_texts_in_train_and_test": len(overlap),
        "sha256": {split: part.sha256() for split, part in splits.items()},
    }
    return Corpus(
        train=splits["train"],
        validation=splits["validation"],
        test=splits.get("test"),
        label_names=label_names,
        problem_type=facts["problem_type"],
        facts=facts,
    )


def read_tables(data: DataSpec) -> dict[str, Table]:
    """Return a Table for each split there is; a file named for a split stands in for that of the dataset."""
    if data.train_file is not None:
        tables = _read_path(Path(data.train_file).expanduser())
    else:
        tables = _read_dataset(str(data.dataset_name), data)
    for split, file in (("validation", data.validation_file), ("test", data.test_file)):
        if file is not None:
            inside = _read_path(Path(file).expanduser())
            if set(inside) != {"train"}:
                raise UserError(f"data.{split}_file {file} holds the splits {', '.join(inside)}. Give the one to use.")
            tables[split] = inside["train"]
    for table in tables.values():
        if not table.num_rows:
            raise UserError(f"{table.source} holds no rows. Give a split with rows, or leave it out.")
    return tables


def _read_path(path: Path) -> dict[str, Table]:
    """Read a file, or a folder."""
    return read_folder(path) if path.is_dir() else {"train": read_file(path)}


def _read_dataset(name: str, data: DataSpec) -> dict[str, Table]:
    """Read `data.dataset_name`: built in, a preset, a folder, or of the hub."""
    folder = Path(name).expanduser()
    on_hub = not name.startswith("builtin:") and name != NEWSGROUPS and not folder.is_dir()
    if data.dataset_config_name is not None and not on_hub:
        raise UserError(
            f"data.dataset_config_name is {data.dataset_config_name!r}, but {name} has no configurations. Leave it out."
        )
    if name == DOCSTRINGS:
        from training.corpus.docstrings import docstring_tables

        return docstring_tables()
    if name.startswith("builtin:"):
        raise UserError(
            f"data.dataset_name is {name!r}{nearest(name, [DOCSTRINGS]) or '.'} The built-in one is {DOCSTRINGS!r}."
        )
    if name == NEWSGROUPS:
        return read_newsgroups(data.remove)
    return read_folder(folder) if folder.is_dir() else read_hub(name, data.dataset_config_name)


def _label_lists(table: Table, data: DataSpec, is_multi: bool) -> list[list[str]]:
    """Return the label names of each row: one, or in multi-label data any number."""
    column_name = data.label_column_name
    if is_multi:
        return columns.read_label_lists(table, column_name, data.label_delimiter)
    return [[name] for name in columns.read_labels(table, column_name)]


def _label_names(train: Table, data: DataSpec, is_multi: bool) -> tuple[set[str], list[str]]:
    """Return the classes train has, and all in order: a ClassLabel's own, else those of train as people count."""
    column_name = data.label_column_name
    present = columns.natural_order(name for names in _label_lists(train, data, is_multi) for name in names)
    if len(present) < 2:
        what = f"every {column_name} is {present[0]!r}" if present else f"no text has a label in {column_name}"
        raise UserError(
            f"{train.source}: {what}. A classifier needs two classes or more; check data.label_column_name and the "
            "rows."
        )
    return set(present), train.class_names.get(column_name, present)


def _read_split(
    name: str,
    table: Table,
    text_columns: list[str],
    present: set[str],
    label_names: list[str],
    data: DataSpec,
    is_multi: bool,
) -> Split:
    """Return the checked texts and labels of one Table."""
    columns.choose_text_columns(table, text_columns, data.label_column_name)
    names = _label_lists(table, data, is_multi)
    index = {label: position for position, label in enumerate(label_names)}
    _refuse_unknown_labels(name, table, names, present)
    numbers = table.row_numbers or range(1, table.num_rows + 1)
    return Split(
        ids=[f"{name}:{number}" for number in numbers],
        texts=columns.read_texts(table, text_columns, data.text_column_delimiter),
        labels=[tuple(sorted(index[label] for label in row)) if is_multi else index[row[0]] for row in names],
    )


def _refuse_unknown_labels(split: str, table: Table, names: list[list[str]], present: set[str]) -> None:
    """Refuse labels that train does not have."""
    unknown = [(row, label) for row, labels in enumerate(names) for label in labels if label not in present]
    if unknown:
        first, label = unknown[0]
        count = sum(other == label for _, other in unknown)
        others = columns.natural_order({other for _, other in unknown} - {label})
        also = f" (also {', '.join(map(repr, others[:5]))})" if others else ""
        raise UserError(
            f"{table.source} {table.place(first)}: {split} has label {label!r} in {count} row(s), "
            f"train has none{also}{nearest(label, present) or '.'} "
            "Correct the label, remove the rows, or add some of that class to train."
        )


def _refuse_choosing_by_test(splits: dict[str, Split]) -> None:
    """Refuse a validation split whose texts are those of test, all or a part: it chooses checkpoints and settings."""
    if "validation" not in splits or "test" not in splits:
        return
    validation, test = set(splits["validation"].texts), set(splits["test"].texts)
    smaller = min(len(validation), len(test))
    # Of a handful of texts, such as "yes" and "no", all may well be in both.
    if validation == test or (smaller >= MIN_TEXTS_CONTAINED and len(validation & test) == smaller):
        raise UserError(
            f"{len(validation & test)} of {len(validation)} texts of validation are in test, which has {len(test)}: "
            "the job would choose by its test split. Give a validation split of other texts, or none: a part of train "
            "is then set aside."
        )


def _rows_per_class(split: Split, label_names: list[str]) -> dict[str, int]:
    """Return class -> rows."""
    counts = Counter(index for label in split.labels for index in (label if isinstance(label, tuple) else (label,)))
    return {name: counts[index] for index, name in enumerate(label_names)}
