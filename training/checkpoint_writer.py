"""Checkpoints written beside the training: the loop goes on while the disk and the network work."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType


class CheckpointWriter:
    """Runs one write at a time in a thread of its own. A context manager: leaving it waits for the last write."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._running: Future[None] | None = None

    def submit(self, write: Callable[[], None]) -> None:
        """Start a write once the one before it has ended, and raise what that one met."""
        self.wait()
        self._running = self._thread.submit(write)

    def wait(self) -> None:
        """Wait for the write under way, if there is one, and raise what it met."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)
        if error is None:  # else that one says more
            self.wait()
