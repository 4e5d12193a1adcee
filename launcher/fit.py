"""Whether a job fits the cards, by its forecast: what it asks of them, and what is said where it cannot be had."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from launcher.board import Request
from launcher.cards import GIB, Card, Node
from launcher.schedule import room_for
from training.forecast.memory_estimate import MemoryEstimate
from training.spec import JobSpec


def needed(forecast: MemoryEstimate, *, on_card: bool) -> int:
    """Return the bytes a card must have for a rank; a virtual card's rank is in host memory."""
    return forecast.card_bytes if on_card else forecast.host_bytes


def request(name: str, spec: JobSpec, memory: MemoryEstimate, seconds: float, *, on_card: bool) -> Request:
    """Return what a job asks of the scheduler."""
    return Request(
        job=name,
        num_ranks=spec.num_ranks,
        card_gib=_up(needed(memory, on_card=on_card)),
        host_gib=_up(memory.host_bytes),
        seconds=seconds,
    )


def whole_cards(name: str, spec: JobSpec, cards: Sequence[Card]) -> Request:
    """Return what a job without a forecast asks of the scheduler: the largest cards that there are enough of."""
    sizes = [size for size, number in Counter(card.size for card in cards).items() if number >= spec.num_ranks]
    return Request(job=name, num_ranks=spec.num_ranks, card_gib=float(max(sizes, default=1)))


def _up(size: int) -> float:
    """Return bytes as GiB, rounded up to what Ray can count."""
    return math.ceil(size / GIB * 100) / 100


def explain(spec: JobSpec, asked: Request, cards: Sequence[Card], nodes: Mapping[str, Node]) -> str:
    """Return why a job as planned has no room on any cards."""
    numbers = Counter(card.size for card in cards)
    most = max(numbers.values(), default=0)
    if spec.num_ranks > most:
        return (
            f"num_ranks is {spec.num_ranks} and no more than {most} of the cards are of one size. Set a smaller "
            "num_ranks, or add cards (cards_gib where there is no GPU)."
        )
    if room_for(replace(asked, host_gib=0.0), cards, nodes):
        memory = max(node.host_gib for node in nodes.values())
        needs = f"It needs {asked.host_gib:.2f} GiB of host memory a rank"
        return f"{needs}, and the node with most has {memory:.1f}."
    largest = max(card.gib for card in cards if numbers[card.size] >= spec.num_ranks)
    return f"It needs {asked.card_gib:.2f} GiB a rank and the largest card it could have has {largest:g}."
