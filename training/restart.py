"""Out of memory: all ranks of a job leave together and begin again in fresh processes, with a smaller plan.

For jobs under `deepspeed` or plain `python`; under Ray the launcher starts new actors instead. A rank that runs out of
memory leaves the others waiting in a collective call, which no exception can reach. So each rank has a thread that
watches the group's key-value store, and replaces its process by a fresh one (exec) when a rank says so there. The
process numbers stay, so the deepspeed launcher notices nothing.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from training.errors import EXIT_FAILED, EXIT_STOPPED, describe_os_error
from training.plan import Plan, write_plan
from training.ranks import Ranks
from training.spec import JobSpec
from training.stop import StopRequest

PLAN_KEY, SEEN_KEY = "shoal/plan", "shoal/plan_seen"
POLL_SECONDS = 0.3
PATIENCE_SECONDS = 30.0
"""How long ranks wait for each other before they go on regardless."""


class Restarter:
    """This rank's part in starting a job anew."""

    def __init__(self, spec: JobSpec, ranks: Ranks, workdir: Path, stop: StopRequest) -> None:
        self.spec, self.ranks, self.workdir, self.stop = spec, ranks, workdir, stop
        self.store: TCPStore | None = None
        self.under_way = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self) -> None:
        """Begin to watch for a rank that is out of memory; call it once the ranks have joined."""
        if self.ranks.world_size == 1:
            return
        self.store = self._connect()
        self._thread = threading.Thread(target=self._watch, args=(self._connect(),), name="restarter", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the watch. Python, leaving with the thread in a call of the store, would abort the whole process."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(PATIENCE_SECONDS)

    def restart(self, plan: Plan) -> NoReturn:
        """Begin again with `plan`, on every rank."""
        if self.store is None:
            write_plan(self.workdir, self.spec, 1, plan)
            self._begin_again()
        self.store.set(PLAN_KEY, json.dumps(asdict(plan)))
        self.under_way.set()
        self.wait_if_under_way()
        raise RuntimeError("the watching thread has not replaced this process")

    def wait_if_under_way(self) -> None:
        """Wait to be replaced if a restart is under way: what a rank meets then is that the others have gone."""
        if self.under_way.is_set():
            time.sleep(4 * PATIENCE_SECONDS)

    def _connect(self) -> TCPStore:
        ranks = self.ranks
        return TCPStore(
            ranks.master_addr, ranks.master_port, is_master=False, wait_for_workers=False,
            timeout=timedelta(seconds=PATIENCE_SECONDS),
        )  # fmt: skip

    def _watch(self, store: TCPStore) -> None:
        try:
            while not store.check([PLAN_KEY]):
                if self._closing.wait(POLL_SECONDS):
                    return
            plan = Plan(**json.loads(store.get(PLAN_KEY)))
        except RuntimeError:  # the first rank has ended, and the store with it
            return
        self.under_way.set()
        try:
            with suppress(RuntimeError):  # the store has gone already
                if self.ranks.is_main:
                    write_plan(self.workdir, self.spec, self.ranks.world_size, plan)
                    self._await(lambda: store.add(SEEN_KEY, 0) >= self.ranks.world_size - 1)
                else:
                    store.add(SEEN_KEY, 1)
                    # Whoever comes back before the first rank has gone would join the old group.
                    self._await(lambda: not store.check([PLAN_KEY]))
        except OSError as error:
            print(f"shoal: {describe_os_error(error)}", file=sys.stderr, flush=True)
            os._exit(EXIT_FAILED)
        self._begin_again()

    def _begin_again(self) -> NoReturn:
        """Start afresh, unless the job was asked to end meanwhile."""
        if self.stop.requested:
            print("shoal: stopped; the same command goes on from the newest checkpoint", file=sys.stderr, flush=True)
            os._exit(EXIT_STOPPED)
        begin_again()

    @staticmethod
    def _await(holds: Callable[[], bool]) -> None:
        """Poll until `holds()` is true, but not for ever."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not holds() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)


def begin_again() -> NoReturn:
    """Replace this process by a fresh one with the same command, number and environment."""
    sys.stdout.flush()
    sys.stderr.flush()
    for entry in Path("/proc/self/fd").iterdir():  # sockets of the old group must not live on; the terminal's must
        with suppress(OSError):
            if int(entry.name) > 2:
                fcntl.fcntl(int(entry.name), fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    os.execv(sys.executable, sys.orig_argv)
