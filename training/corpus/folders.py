"""Folders of data: one subfolder a class, or what `datasets`' `save_to_disk` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.corpus.columns import natural_order
from training.corpus.corpus import Table
from training.corpus.files import decode
from training.errors import UserError

SPLIT_NAMES = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test",
}  # fmt: skip
"""Names splits go by -> ours."""


def read_folder(folder: Path) -> dict[str, Table]:
    """Return the splits a folder holds; one without split names is train. Raises UserError."""
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _read_saved(folder)
    subfolders = _subfolders(folder)
    splits = [item for item in subfolders if item.name.lower() in SPLIT_NAMES]
    if any(SPLIT_NAMES[item.name.lower()] == "train" and _subfolders(item) for item in splits):
        return {SPLIT_NAMES[item.name.lower()]: _read_class_folders(item) for item in splits}
    if subfolders:
        return {"train": _read_class_folders(folder)}
    files = sorted(item.name for item in folder.iterdir() if item.is_file())
    hint = f" It holds {', '.join(files[:5])}: give files as data.train_file, data.test_file." if files else ""
    raise UserError(
        f"folder {folder} has neither subfolders (one a class, holding text files) nor a dataset saved by "
        f"`save_to_disk`.{hint}"
    )


def _subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder but hidden ones, in natural order of their names."""
    found = {item.name: item for item in folder.iterdir() if item.is_dir() and not item.name.startswith((".", "__"))}
    return [found[name] for name in natural_order(list(found))]


def _read_class_folders(folder: Path) -> Table:
    """Read `folder/CLASS/FILE`; every file that is not hidden is one text."""
    texts: list[str] = []
    labels: list[str] = []
    names: list[str] = []
    for subfolder in _subfolders(folder):
        files = {item.name: item for item in subfolder.iterdir() if item.is_file() and not item.name.startswith(".")}
        if not files:
            raise UserError(f"class folder {subfolder} holds no files. Put its texts there, one a file, or delete it.")
        for name in natural_order(list(files)):
            texts.append(decode(files[name].read_bytes(), files[name]))
            labels.append(subfolder.name)
            names.append(f"{subfolder.name}/{name}")
    if not texts:
        raise UserError(f"folder {folder} has no subfolders. Make one a class, holding its texts, one a file.")
    return Table.of(str(folder), {"text": texts, "label": labels}, place=lambda index: f"file {names[index]}")


def _read_saved(folder: Path) -> dict[str, Table]:
    """Read a folder `save_to_disk` wrote, of a Dataset or a DatasetDict."""
    import datasets

    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:  # a damaged folder shows as whatever Arrow or datasets stumble over
        raise UserError(
            f"folder {folder} cannot be read as a saved dataset: {_first_line(error)} Save it again with save_to_disk."
        ) from None
    if not isinstance(saved, dict):
        saved = {"train": saved}
    return tables_of_splits(saved, f"folder {folder}")


def tables_of_splits(splits: Any, source: str) -> dict[str, Table]:
    """Return the splits of a `datasets.DatasetDict` under our names; splits of other names are left out."""
    import datasets

    tables = {}
    for name, dataset in splits.items():
        ours = SPLIT_NAMES.get(str(name).lower())
        if ours is None or not dataset.num_rows:
            continue
        tables[ours] = Table.of(
            f"{source}, split {name}",
            {column: dataset[column][:] for column in dataset.column_names},
            class_names={
                column: list(label.names)
                for column, feature in dataset.features.items()
                if isinstance(label := getattr(feature, "feature", feature), datasets.ClassLabel)
            },
        )
    if "train" not in tables:
        raise UserError(f"{source} has no split 'train'; its splits are {', '.join(map(str, splits))}. Rename one.")
    return tables


def _first_line(error: Exception) -> str:
    """Return an error's first line, or its type where it says nothing, as a sentence."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if line.endswith(".") else f"{line}."
