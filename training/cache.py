"""Where Shoal keeps what can be made again: tokenized splits, the docstring corpus, the tiny LLaMA."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from training.result import write_json


def cache_dir() -> Path:
    """Return $SHOAL_CACHE, else ~/.cache/shoal; made if need be."""
    folder = Path(os.environ.get("SHOAL_CACHE", Path.home() / ".cache" / "shoal"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cached(relative_path: str, make: Callable[[Path], None]) -> Path:
    """Return the cached file or folder, calling `make(temporary_path)` first where it is missing.

    One process makes it while the others wait; a half-made one is never seen. What a power cut or a cleaning program
    has left incomplete is made again: the sizes of all files stand beside the entry.
    """
    target = cache_dir() / relative_path
    if _is_whole(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not _is_whole(target):
            temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
            _delete(temporary)
            make(temporary)
            _delete(target)
            temporary.replace(target)
            write_json(_sizes_file(target), _sizes(target))
    return target


def _sizes_file(target: Path) -> Path:
    return target.with_name(f"{target.name}.sizes.json")


def _sizes(target: Path) -> dict[str, int]:
    """Return the size of each file of an entry, by its path within it; "." is an entry that is a file."""
    files = [target] if target.is_file() else [path for path in target.rglob("*") if path.is_file()]
    return {path.relative_to(target).as_posix(): path.stat().st_size for path in files}


def _is_whole(target: Path) -> bool:
    """Whether an entry holds the files it was made with."""
    try:
        known = json.loads(_sizes_file(target).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return bool(known) and known == _sizes(target)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
