"""Whether a job fits the cards, by its forecast: what it asks of them, and what is said where it cannot be had."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from launcher.board import TOLERANCE, Request, room_for
from launcher.cards import MIB, Card, CardKind, Node
from training.forecast.memory_estimate import MemoryEstimate
from training.spec import JobSpec


def needed(forecast: MemoryEstimate, *, on_card: bool) -> int:
    """Return the bytes a card must have for a rank; a virtual card's rank is in host memory."""
    return forecast.card_bytes if on_card else forecast.host_bytes


def request(
    name: str, spec: JobSpec, memory: MemoryEstimate, seconds_on: Mapping[str, float], *, on_card: bool
) -> Request:
    """Return what a job asks of the scheduler; `seconds_on` is kind of card -> expected seconds."""
    return Request(
        job=name,
        num_ranks=spec.num_ranks,
        card_gib=_up(needed(memory, on_card=on_card)),
        host_gib=_up(memory.host_bytes),
        seconds=min(seconds_on.values()),
        seconds_on=seconds_on,
    )


def whole_cards(name: str, spec: JobSpec, cards: Sequence[Card]) -> Request:
    """Return what a job without a forecast asks of the scheduler: the largest equal cards that there are enough of,
    each to what the least of them has."""
    sizes = [most_of_each(same, spec.num_ranks) for same in equal_cards(cards).values()]
    return Request(job=name, num_ranks=spec.num_ranks, card_gib=max(sizes, default=0.0) or 1.0)


def equal_cards(cards: Iterable[Card]) -> dict[CardKind, list[Card]]:
    """Return the cards by their kinds, those that have most first."""
    by_kind: dict[CardKind, list[Card]] = {}
    for card in sorted(cards, key=lambda card: (-card.gib, card.key)):
        by_kind.setdefault(card.kind, []).append(card)
    return by_kind


def most_of_each(equal: Sequence[Card], num_ranks: int) -> float:
    """Return the GiB that each of so many of these cards has, the one with most first; 0 where there are fewer."""
    return equal[num_ranks - 1].gib if len(equal) >= num_ranks else 0.0


def _up(size: int) -> float:
    """Return bytes as GiB, rounded up to the whole MiB that Ray counts."""
    return math.ceil(size / MIB) / 1024


def explain(spec: JobSpec, asked: Request, cards: Sequence[Card], nodes: Mapping[str, Node]) -> str:
    """Return why a job as planned has no room on any cards."""
    equal = equal_cards(cards)
    most = max(map(len, equal.values()), default=0)
    if spec.num_ranks > most:
        return (
            f"num_ranks is {spec.num_ranks} and no more than {most} of the cards are equal. Set a smaller "
            "num_ranks, or add cards (cards_gib where there is no GPU)."
        )
    if room_for(replace(asked, host_gib=0.0), cards, nodes):
        memory = max(node.host_gib for node in nodes.values())
        needs = f"It needs {asked.host_gib:.2f} GiB of host memory a rank"
        return f"{needs}, and the node with most has {memory:.1f}."
    largest = max(most_of_each(same, spec.num_ranks) for same in equal.values())
    return f"It needs {asked.card_gib:.2f} GiB a rank and the largest card it could have has {gib_text(largest)}."


def gib_text(gib: float) -> str:
    """Return a card's memory as people read it, never more than there is: 7.7, 8."""
    return f"{math.floor(gib * 10 + TOLERANCE) / 10:g}"
