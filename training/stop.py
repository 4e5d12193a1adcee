"""SIGTERM, the system's "please end": the training loop finishes its step and saves before the process goes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Stopped(BaseException):
    """The job was asked to end and has; like KeyboardInterrupt, no error handler may swallow it."""


class StopRequest:
    """Whether the job has been asked to end. One that does not listen never is."""

    def __init__(self) -> None:
        self.requested = False
        self._deferring = False

    def listen(self) -> None:
        """Take over SIGTERM; call it in the main thread."""
        signal.signal(signal.SIGTERM, lambda *_: self._request())

    def leave(self) -> None:
        """Give SIGTERM back to the system: what follows has nothing to save and ends at once."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _request(self) -> None:
        self.requested = True
        if not self._deferring:
            raise Stopped("before there was a step to save")

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within this context a signal only sets `requested`: whoever entered it asks, and ends in time."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
