"""The batcher: together what comes together, each its own answer, and one failure is no end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from training.serving_batcher import Batcher, Overloaded

FAULTY = -1


class Computer:
    """Doubles numbers, notes each batch, and waits to be let on."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()
        self.go.set()

    def __call__(self, batch: list[int]) -> list[int]:
        self.batches.append(batch)
        assert self.go.wait(30)
        if FAULTY in batch:
            raise ValueError("a faulty one")
        return [2 * number for number in batch]


def served(
    test: Callable[[Batcher[int, int], Computer], Awaitable[None]], budget: int = 10, max_waiting: int = 1000
) -> Computer:
    """Run a test against a batcher and close it."""

    async def main() -> Computer:
        computer = Computer()
        batcher = Batcher(computer, budget=budget, wait_seconds=0.05, max_waiting=max_waiting)
        await test(batcher, computer)
        computer.go.set()
        await batcher.close()
        assert not batcher.is_alive
        return computer

    return asyncio.run(main())


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.001)


def test_what_comes_together_is_computed_together_within_the_budget() -> None:
    async def test(batcher: Batcher[int, int], computer: Computer) -> None:
        answers = await asyncio.gather(*(batcher.ask(number, size=4) for number in range(5)))
        assert answers == [0, 2, 4, 6, 8]
        assert batcher.is_alive and batcher.waiting_size == 0

    assert served(test).batches == [[0, 1], [2, 3], [4]]


def test_a_request_larger_than_the_budget_is_computed_alone() -> None:
    async def test(batcher: Batcher[int, int], computer: Computer) -> None:
        assert await asyncio.gather(batcher.ask(1, 3), batcher.ask(2, 99), batcher.ask(3, 3)) == [2, 4, 6]

    assert served(test).batches == [[1], [2], [3]]


def test_what_comes_while_it_computes_is_the_next_batch() -> None:
    async def test(batcher: Batcher[int, int], computer: Computer) -> None:
        computer.go.clear()
        first = asyncio.create_task(batcher.ask(1, 1))
        await until(lambda: computer.batches == [[1]])
        others = [asyncio.create_task(batcher.ask(number, 1)) for number in range(2, 8)]
        await until(lambda: batcher.waiting_size == 6)
        computer.go.set()
        assert await asyncio.gather(first, *others) == [2, 4, 6, 8, 10, 12, 14]

    assert served(test).batches == [[1], [2, 3, 4, 5, 6, 7]]


def test_a_failure_is_the_answer_of_its_batch_alone() -> None:
    async def test(batcher: Batcher[int, int], computer: Computer) -> None:
        answers = await asyncio.gather(
            batcher.ask(1, 9), batcher.ask(FAULTY, 5), batcher.ask(2, 5), batcher.ask(3, 9), return_exceptions=True
        )
        assert [str(answer) for answer in answers] == ["2", "a faulty one", "a faulty one", "6"]

    served(test)


def test_more_than_may_wait_is_refused_at_once() -> None:
    async def test(batcher: Batcher[int, int], computer: Computer) -> None:
        computer.go.clear()
        taken = asyncio.create_task(batcher.ask(1, 10))
        await until(lambda: computer.batches == [[1]])
        waiting = asyncio.create_task(batcher.ask(2, 15))
        await until(lambda: batcher.waiting_size == 15)
        with pytest.raises(Overloaded):
            await batcher.ask(3, 10)
        computer.go.set()
        assert await asyncio.gather(taken, waiting) == [2, 4]
        assert await batcher.ask(3, 10) == 6

    served(test, max_waiting=20)


def test_what_a_client_no_longer_waits_for_is_not_computed() -> None:
    async def test(batcher: Batcher[int, int], computer: Computer) -> None:
        computer.go.clear()
        first = asyncio.create_task(batcher.ask(1, 1))
        await until(lambda: computer.batches == [[1]])
        gone, stays = (asyncio.create_task(batcher.ask(number, 1)) for number in (2, 3))
        await until(lambda: batcher.waiting_size == 2)
        gone.cancel()
        with suppress(asyncio.CancelledError):
            await gone
        computer.go.set()
        assert await asyncio.gather(first, stays) == [2, 6]

    assert served(test).batches == [[1], [3]]


def test_closing_answers_what_waits_and_takes_nothing_more() -> None:
    async def test(batcher: Batcher[int, int], computer: Computer) -> None:
        computer.go.clear()
        asked = [asyncio.create_task(batcher.ask(number, 10)) for number in range(3)]
        await until(lambda: batcher.waiting_size == 20)  # the first is being computed
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        computer.go.set()
        await closing
        assert await asyncio.gather(*asked) == [0, 2, 4]
        with pytest.raises(Overloaded):
            await batcher.ask(9, 1)

    served(test)
