"""Files as the disk has them: flushed, so that a rename survives a power cut; hashed; locked."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from training.errors import UserError


def flush(path: Path) -> None:
    """fsync a file, or a folder with all that lies in it."""
    if path.is_dir():
        for inside in path.iterdir():
            flush(inside)
    flush_entry(path)


def flush_entry(path: Path) -> None:
    """fsync a file, or the names a folder holds."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def alone_in(folder: Path, what: str) -> Iterator[None]:
    """Keep a second `what` out of the folder, with a UserError; the lock ends with its process."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"another {what} is working in {folder}. Wait for it, stop it, or choose another.") from None
    try:
        yield
    finally:
        lock.release()
