"""Files as the disk has them: flushed, so that a rename survives a power cut; hashed; locked; without room for more."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from training.errors import UserError

WAIT_SECONDS = 5.0
"""Between two tries to write to a disk that is full."""
LOCK = ".lock"
LOOK_SECONDS = 1.0
"""How long to try for a lock: `is_taken` holds it for a moment."""


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
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=LOOK_SECONDS)
    except Timeout:
        raise UserError(f"another {what} is working in {folder}. Wait for it, stop it, or choose another.") from None
    try:
        yield
    finally:
        lock.release()


def is_taken(folder: Path) -> bool:
    """Whether somebody is `alone_in` a folder now."""
    if not (folder / LOCK).exists():
        return False
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def is_full(error: BaseException) -> bool:
    """Whether a write failed for want of room on the disk, or in its owner's quota."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def wait_for_room(write: Callable[[], None], say: Callable[[], None]) -> None:
    """Call `write`; where the disk is full, call `say` once and `write` again every few seconds until there is room."""
    while True:
        try:
            write()
            return
        except OSError as error:
            if not is_full(error):
                raise
        say()
        say = _nothing
        time.sleep(WAIT_SECONDS)


def _nothing() -> None:
    """Say nothing more."""


def append_line(path: Path, line: str) -> None:
    """Append a line to a file, the whole of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = (line + "\n").encode()
    with path.open("ab", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if file.write(content) < len(content):  # there was room for a part of it
            os.ftruncate(file.fileno(), size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
