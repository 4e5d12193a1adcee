"""Ranks that wait for each other for as long as it takes, without a collective call, whose time is limited.

Where a rank may be late for good reason (the first one writes to a disk that is full, an evaluation's share is the
slower card's) the others wait here, and the limit on collective calls can be short: what exceeds it is a broken link.
"""

from __future__ import annotations

import time
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from training.errors import ShoalError
from training.ranks import Ranks

FIRST_SECONDS, MOST_SECONDS = 0.001, 0.25
"""Between two looks, at first and at last."""
ANSWER_SECONDS = 60.0
"""How long the first rank's PC may take to answer."""


class Meeting:
    """Where all ranks of a job meet again and again, by way of the group's key-value store on the first rank."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.number = 0
        self._store: TCPStore | None = None

    def meet(self) -> None:
        """Wait for all ranks to come here; all must, equally often. Raises ShoalError where the first rank has gone."""
        if self.ranks.world_size == 1:
            return
        self.number += 1
        try:
            store = self._connection()
            self._gather(store, "come")
            # The store ends with the first rank, which must not leave before all have seen that all are here.
            self._gather(store, "seen", waits=self.ranks.is_main)
        except RuntimeError as error:
            raise ShoalError(f"rank {self.ranks.rank} waited for the first rank, which has ended") from error

    def _gather(self, store: TCPStore, what: str, *, waits: bool = True) -> None:
        """Count this rank in, and wait until all are."""
        key = f"shoal/meeting/{self.number}/{what}"
        if store.add(key, 1) == self.ranks.world_size:
            store.set(f"{key}/all", "")
        pause = FIRST_SECONDS
        while waits and not store.check([f"{key}/all"]):
            time.sleep(pause)
            pause = min(1.5 * pause, MOST_SECONDS)

    def _connection(self) -> TCPStore:
        """Return a connection of our own: waiting on the group's would keep its threads from it."""
        if self._store is None:
            self._store = TCPStore(
                self.ranks.master_addr, self.ranks.master_port, is_master=False, wait_for_workers=False,
                timeout=timedelta(seconds=ANSWER_SECONDS),
            )  # fmt: skip
        return self._store
