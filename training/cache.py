"""Where Shoal keeps what can be made again: tokenized splits, the docstring corpus, the tiny LLaMA."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock


def cache_dir() -> Path:
    """Return $SHOAL_CACHE, else ~/.cache/shoal; made if need be."""
    folder = Path(os.environ.get("SHOAL_CACHE", Path.home() / ".cache" / "shoal"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cached(relative_path: str, make: Callable[[Path], None]) -> Path:
    """Return the cached file or folder, calling `make(temporary_path)` first where it is missing.

    One process makes it while the others wait; a half-made one is never seen.
    """
    target = cache_dir() / relative_path
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.exists():
            temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
            make(temporary)
            temporary.replace(target)
    return target
