"""What is free: the memory of each card, and host memory and cores of each node. No clock, no Ray."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from launcher.cards import Card, CardKey, CardKind, Node
from launcher.speed import planned_precision, relative_speed

TOLERANCE = 1e-6
"""GiB; sums of floats differ by less."""


def in_mib(gib: float) -> float:
    """Return GiB as Ray counts a card's memory: whole MiB, which Ray wants of all that is more than one."""
    return float(math.ceil(gib * 1024 - TOLERANCE))


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a job asks for. Its ranks are alike: DeepSpeed gives all of them equal work."""

    job: str
    num_ranks: int = 1
    card_gib: float
    """Of a card's memory, a rank."""
    host_gib: float = 0.0
    """Of its node's memory, a rank."""
    seconds: float = 1.0
    """Expected."""
    priority: int = 0
    """Higher goes first."""
    precision: str = ""
    """What it was planned in where its study leaves that to the card: only cards on which that is the same will do."""
    seconds_on: Mapping[str, float] = field(default_factory=dict)
    """Kind of card, as text -> expected seconds there; `seconds` on all others."""
    instead: tuple[Request, ...] = ()
    """What it asks for on cards of other precisions; it gets the one or the other."""

    @property
    def options(self) -> tuple[Request, ...]:
        """Return this and what would do instead."""
        return (self, *self.instead)

    def expected(self, kind: CardKind) -> float:
        """Return the seconds that the job is expected to take on cards of a kind."""
        return self.seconds_on.get(str(kind), self.seconds)

    def holds_on(self, kind: CardKind) -> bool:
        """Whether cards of a kind compute in the precision that the job was planned in."""
        return not self.precision or planned_precision(kind) == self.precision

    def renamed(self, job: str, priority: int) -> Request:
        """Return the same of another job's name and priority."""
        instead = tuple(other.renamed(job, priority) for other in self.instead)
        return replace(self, job=job, priority=priority, instead=instead)

    @staticmethod
    def of(content: Mapping[str, Any]) -> Request:
        """Return the request that dataclasses.asdict made this of. Raises TypeError for anything else."""
        instead = tuple(Request.of(other) for other in content.get("instead", ()))
        return Request(**{**content, "instead": instead})


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A job and the card of each of its ranks, in the order of the ranks."""

    request: Request
    cards: tuple[Card, ...]

    @property
    def job(self) -> str:
        """Name of the job."""
        return self.request.job

    @property
    def seconds(self) -> float:
        """What the job is expected to take on these cards, which are equal."""
        return self.request.expected(self.cards[0].kind)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON holds them."""
        return {
            "cards": [card.label for card in self.cards],
            "card_gib": self.request.card_gib,
            "host_gib": self.request.host_gib,
        }


class Board:
    """Free memory by card and node. Cards of one kind are equal; jobs of several ranks get equal ones."""

    def __init__(self, cards: Iterable[Card], nodes: Mapping[str, Node]) -> None:
        self.cards = {card.key: card for card in cards}
        self.free_gib = {key: card.gib for key, card in self.cards.items()}
        self.total_gib = self.total_free_gib = sum(self.free_gib.values())
        self.num_jobs = dict.fromkeys(self.cards, 0)
        self.free_host_gib = {node_id: node.host_gib for node_id, node in nodes.items()}
        # A card may always hold one rank; each rank more needs a core.
        per_node = Counter(node_id for node_id, _ in self.cards)
        self.free_ranks = {node_id: max(per_node[node_id], node.cores) for node_id, node in nodes.items()}
        self.kinds = {key: card.kind for key, card in self.cards.items()}
        self.by_kind: dict[CardKind, list[tuple[float, CardKey]]] = defaultdict(list)
        """Kind -> (free GiB, key) of its cards, the least free first."""
        for key, card in self.cards.items():
            insort(self.by_kind[self.kinds[key]], (card.gib, key))
        self.speeds = {kind: relative_speed(kind) for kind in self.by_kind}
        self.power = sum(card.gib * self.speeds[self.kinds[key]] for key, card in self.cards.items())
        """GiB x speed of all cards: the GiB-seconds of jobs, counted at speed 1, that go through in a second."""

    def take(self, placement: Placement) -> None:
        """Book a job."""
        self._book(placement, sign=1)

    def give(self, placement: Placement) -> None:
        """Free what a job had."""
        self._book(placement, sign=-1)

    def _book(self, placement: Placement, *, sign: int) -> None:
        for key in (card.key for card in placement.cards):
            if key not in self.cards:  # it has gone from the cluster since
                continue
            order = self.by_kind[self.kinds[key]]
            del order[bisect_left(order, (self.free_gib[key], key))]
            self.free_gib[key] -= sign * placement.request.card_gib
            insort(order, (self.free_gib[key], key))
            self.total_free_gib -= sign * placement.request.card_gib
            self.num_jobs[key] += sign
            self.free_host_gib[key[0]] -= sign * placement.request.host_gib
            self.free_ranks[key[0]] -= sign

    def find(
        self,
        request: Request,
        allowed: Callable[[CardKey], bool] | None = None,
        *,
        tight: bool = False,
        most_seconds: float = math.inf,
    ) -> Placement | None:
        """Return where a job goes, or None where there is no room now, on those cards that are `allowed` and on which
        it is expected to take no longer than so long.

        Each rank gets an equal card, on one node if it can be. Of several choices those on which it ends soonest, its
        time shared with the jobs that are there, and then the smallest, so that large cards stay free for who needs
        them; where it is to be `tight`, those that have the least to spare.
        """
        choices: list[tuple[tuple[float, ...], list[CardKey], Request]] = []
        for option in request.options:
            choices += self._choices(option, allowed, tight=tight, most_seconds=most_seconds)
        if not choices:
            return None
        _, keys, option = min(choices, key=lambda choice: choice[:2])
        return Placement(request=option, cards=tuple(self.cards[key] for key in keys))

    def _choices(
        self, request: Request, allowed: Callable[[CardKey], bool] | None, *, tight: bool, most_seconds: float
    ) -> Iterator[tuple[tuple[float, ...], list[CardKey], Request]]:
        """Yield the best cards of each kind for one option of a job, with what they are ordered by."""
        for kind, order in self.by_kind.items():
            seconds = request.expected(kind)
            if seconds > most_seconds or not request.holds_on(kind):
                continue
            first = bisect_left(order, (request.card_gib - TOLERANCE, ("", -1)))
            if len(order) - first < request.num_ranks:
                continue
            fitting = [key for _, key in order[first:] if self._ranks_on(key[0], request)]
            fitting = [key for key in fitting if allowed(key)] if allowed else fitting
            keys = self._choose(sorted(fitting, key=self._tightness if tight else self._preference), request)
            if keys:
                spans, spare = len({key[0] for key in keys}), sum(self.free_gib[key] for key in keys)
                busiest = max(self.num_jobs[key] for key in keys)
                shared = seconds * (1 + busiest)
                place = (spans, spare) if tight else (spans, shared, busiest, kind.total_gib, spare)
                yield place, keys, request

    def _choose(self, fitting: Sequence[CardKey], request: Request) -> list[CardKey]:
        """Return cards of these equal ones, the best first, which all have room for a rank; none where too few have."""
        if request.num_ranks == 1:
            return list(fitting[:1])
        by_node: dict[str, list[CardKey]] = defaultdict(list)
        for key in fitting:
            if len(by_node[key[0]]) < self._ranks_on(key[0], request):
                by_node[key[0]].append(key)
        whole = [keys for keys in by_node.values() if len(keys) >= request.num_ranks]
        if whole:
            # The node with the fewest to spare: whole nodes stay free for wide jobs.
            return min(whole, key=lambda keys: (len(keys), keys))[: request.num_ranks]
        # Fullest nodes first: the fewer hosts a job spans, the less goes over the network.
        flat = [key for keys in sorted(by_node.values(), key=lambda keys: (-len(keys), keys)) for key in keys]
        return flat[: request.num_ranks] if len(flat) >= request.num_ranks else []

    def _ranks_on(self, node_id: str, request: Request) -> int:
        """Return how many ranks of a job a node has memory and cores for."""
        ranks = self.free_ranks[node_id]
        if request.host_gib > TOLERANCE:
            ranks = int(min(ranks, (self.free_host_gib[node_id] + TOLERANCE) / request.host_gib))
        return max(0, ranks)

    def _preference(self, key: CardKey) -> tuple[int, float, CardKey]:
        return (self.num_jobs[key], self.free_gib[key], key)

    def _tightness(self, key: CardKey) -> tuple[float, CardKey]:
        return (self.free_gib[key], key)


def placed_alone(request: Request, cards: Iterable[Card], nodes: Mapping[str, Node]) -> Placement | None:
    """Return where a job goes when nothing else runs; None where it does not fit."""
    return Board(cards, nodes).find(request)


def room_for(request: Request, cards: Iterable[Card], nodes: Mapping[str, Node]) -> bool:
    """Whether a job fits on these cards when nothing else runs."""
    return placed_alone(request, cards, nodes) is not None
