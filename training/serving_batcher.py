"""Dynamic batching: requests that come within a few milliseconds, or while the model is busy, are computed together.

One thread computes; the event loop gathers. A request waits `wait_seconds` at most for company, less where the budget
is full before. Requests keep their order, and one larger than the budget is computed alone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")


class Overloaded(Exception):
    """More waits already than will be taken."""


@dataclass(kw_only=True)
class _Waiting(Generic[Request, Answer]):
    request: Request
    size: int
    answer: asyncio.Future[Answer]


class Batcher(Generic[Request, Answer]):
    """Answers requests in batches. Made, asked and closed in one event loop."""

    def __init__(
        self,
        compute: Callable[[list[Request]], list[Answer]],
        *,
        budget: int,
        wait_seconds: float,
        max_waiting: int,
    ) -> None:
        """`compute` answers a batch, in its order; `budget` and `max_waiting` are in the unit of a request's size."""
        self.compute = compute
        self.budget, self.wait_seconds, self.max_waiting = budget, wait_seconds, max_waiting
        self.waiting_size = 0
        self._waiting: deque[_Waiting[Request, Answer]] = deque()
        self._arrived = asyncio.Event()
        self._full = asyncio.Event()
        self._closing = False
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batcher")
        self._loop = asyncio.create_task(self._run())

    @property
    def is_alive(self) -> bool:
        """Whether it goes on answering."""
        return not self._loop.done()

    async def ask(self, request: Request, size: int) -> Answer:
        """Return the answer to a request of this size. Raises Overloaded, or what `compute` raised for its batch."""
        if self._closing or self.waiting_size + size > self.max_waiting:
            raise Overloaded
        waiting = _Waiting[Request, Answer](
            request=request, size=size, answer=asyncio.get_running_loop().create_future()
        )
        self._waiting.append(waiting)
        self._count(size)
        return await waiting.answer

    async def close(self) -> None:
        """Answer what waits, take nothing more, and end."""
        self._closing = True
        self._arrived.set()
        self._full.set()
        await self._loop
        self._thread.shutdown()

    def _count(self, size: int) -> None:
        """Note that so much more waits, or less."""
        self.waiting_size += size
        for event, holds in ((self._arrived, bool(self._waiting)), (self._full, self.waiting_size >= self.budget)):
            if holds or self._closing:
                event.set()
            else:
                event.clear()

    async def _run(self) -> None:
        while not self._closing or self._waiting:
            await self._arrived.wait()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._full.wait(), self.wait_seconds)
            batch = self._take()
            if batch:
                await self._answer(batch)

    def _take(self) -> list[_Waiting[Request, Answer]]:
        """Return the requests that have waited longest, within the budget or one alone; forget who has gone."""
        batch: list[_Waiting[Request, Answer]] = []
        size = 0
        while self._waiting and (not batch or size + self._waiting[0].size <= self.budget):
            first = self._waiting.popleft()
            self._count(-first.size)
            if not first.answer.done():  # else its client hung up
                batch.append(first)
                size += first.size
        return batch

    async def _answer(self, batch: list[_Waiting[Request, Answer]]) -> None:
        """Compute a batch and hand out the answers."""
        loop = asyncio.get_running_loop()
        try:
            answers = await loop.run_in_executor(self._thread, self.compute, [waiting.request for waiting in batch])
        except Exception as error:  # whatever it is, it is the answer to these requests, and others come
            for waiting in batch:
                if not waiting.answer.done():
                    waiting.answer.set_exception(error)
            return
        for waiting, answer in zip(batch, answers, strict=True):
            if not waiting.answer.done():
                waiting.answer.set_result(answer)
