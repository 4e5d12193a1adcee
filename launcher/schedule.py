"""Which waiting job starts now, and on which cards. Pure: the same input gives the same placements."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from launcher.cards import Card
from training.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A job and the card of each of its ranks, in the order of the ranks."""

    job: str
    cards: tuple[Card, ...]


def place(waiting: Sequence[tuple[str, int]], free: Iterable[Card]) -> list[Placement]:
    """Return the jobs to start now; `waiting` holds (name, ranks) in the order of the study.

    The widest job goes first and narrower ones fill what it leaves; at the latest it starts when they have ended.
    """
    left = list(free)
    placements = []
    for name, num_ranks in sorted(waiting, key=lambda job: -job[1]):
        cards = choose_cards(num_ranks, left)
        if cards:
            placements.append(Placement(job=name, cards=tuple(cards)))
            left = [card for card in left if card not in cards]
    return placements


def choose_cards(num_ranks: int, free: Sequence[Card]) -> list[Card]:
    """Return `num_ranks` cards of one size, on one node if it can be, else over nodes; empty where there are none.

    One size, because DeepSpeed gives all ranks equal work. Of several choices the smallest cards, and then the node
    with the fewest to spare, so that large cards and whole nodes stay free for who needs them.
    """
    one_node: dict[tuple[int, str], list[Card]] = defaultdict(list)
    any_node: dict[int, list[Card]] = defaultdict(list)
    for card in free:
        one_node[round(card.gib), card.node_id].append(card)
        any_node[round(card.gib)].append(card)
    fitting = [(size, len(cards), cards) for (size, _), cards in one_node.items() if len(cards) >= num_ranks]
    if not fitting:
        # Fullest nodes first: the fewer hosts a job spans, the less goes over the network.
        fitting = [
            (size, 0, sorted(cards, key=lambda card: (-len(one_node[size, card.node_id]), card.node_id, card.index)))
            for size, cards in any_node.items()
            if len(cards) >= num_ranks
        ]
    return min(fitting, key=lambda choice: choice[:2])[2][:num_ranks] if fitting else []


def refuse_too_wide(jobs: Sequence[tuple[str, int]], cards: Sequence[Card]) -> None:
    """Raise UserError for jobs (name, ranks) that need more cards of one size than there are in all."""
    too_wide = [(name, num_ranks) for name, num_ranks in jobs if not choose_cards(num_ranks, cards)]
    if too_wide:
        have = ", ".join(f"{card.label} ({card.gib:g} GiB)" for card in cards)
        lines = [
            f"job {name}: num_ranks is {num_ranks} and there are not that many cards of one size: {have}."
            for name, num_ranks in too_wide
        ]
        raise UserError("\n".join([*lines, "Set a smaller num_ranks, or add cards (cards_gib where there is no GPU)."]))
