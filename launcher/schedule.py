"""Which waiting jobs start now, and on which cards: the shortest study as a whole, and no card or host over-booked.

At each event (a job ends, fails or comes, a card appears or goes) jobs are placed anew, in this order: priority, those
as long as all that waits, those that the fewest cards could hold, the longest, the largest. What fits beside them is
filled up with later jobs (backfilling), but not on the cards that the first few without room wait for, unless the later
ones will have ended by then. Jobs share a card only where memory is short; then each goes where it leaves least of it.

Pure: no clock and no Ray; the same calls give the same placements. benchmarks/scheduling.py measures it.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from launcher.board import TOLERANCE, Board, Placement, Request
from launcher.cards import Card, CardKey, Node
from launcher.speed import relative_speed

Need = tuple[int, float, float, str]
"""Ranks, card and host GiB, precision."""
Kind = tuple[int, tuple[Need, ...]]
"""Of requests that need the same: priority, and the need of each of their options. Where one finds no room, no longer
one does."""


MOST_HOLDS = 3
"""Jobs that cards are held for. With one, jobs for large cards are left to the end; with many, cards idle."""

LONG = 0.7
"""Share of the time that all waiting jobs would fill the cards for. A longer job may end last of all: it goes first."""


@dataclass(frozen=True, kw_only=True)
class Hold:
    """The cards that a job without room waits for, and when it can expect to have them."""

    job: str = ""
    card_gib: float = 0.0
    until: float = float("inf")
    seconds: float = 0.0
    """Expected there."""
    keys: frozenset[CardKey] = frozenset()
    latest: float = float("inf")
    """When the job would have ended if it waited for whichever cards are best, those held for others among them: it is
    put on no card on which it ends later."""

    def ends(self, now: float) -> float:
        """Return when the job can be expected to have ended there."""
        return max(now, self.until) + self.seconds

    def allows(self, key: CardKey, request: Request, board: Board, now: float) -> bool:
        """Whether a later job may go on a card: it is gone by then, or leaves room enough."""
        if key not in self.keys or now + request.expected(board.kinds[key]) <= self.until:
            return True
        return board.free_gib[key] - request.card_gib + TOLERANCE >= self.card_gib


class Scheduler:
    """The waiting and the running jobs of a study."""

    def __init__(self, cards: Iterable[Card], nodes: Mapping[str, Node]) -> None:
        self.board = Board(cards, nodes)
        self.waiting: dict[Kind, list[tuple[float, int, Request]]] = {}
        """Kind -> heap of (-seconds, number of its submission, request)."""
        self.waiting_gib, self.waiting_work = 0.0, 0.0
        self.work: dict[str, float] = {}
        """Waiting job -> GiB x seconds of it on cards of speed 1."""
        self.could_hold: dict[Kind, float] = {}
        """Kind -> speeds of all cards that could hold a rank of it, of those kinds that were asked for."""
        self.running_power, self.running_until = 0.0, 0.0
        """GiB x speed of what runs, and the same times when each job is expected to end."""
        self.running: dict[str, Placement] = {}
        self.ends: dict[str, float] = {}
        """Running job -> when it is expected to end."""
        self.on_card: dict[CardKey, list[tuple[float, float, str]]] = defaultdict(list)
        """Card -> (expected end, GiB, name) of its running jobs, the soonest to end first."""
        self.submitted = 0
        self.holds: list[Hold] = []
        """Of the first jobs without room, in their order; true until something on the held cards changes."""
        self.avoided: frozenset[str] = frozenset()
        """Nodes that nothing is started on for now."""
        self.ahead: dict[str, Request] = {}
        """Waiting jobs of other studies, which go first; see `give_way`."""

    def submit(self, request: Request) -> None:
        """Let a job wait for cards."""
        kind = _kind(request)
        heapq.heappush(self.waiting.setdefault(kind, []), (-request.seconds, self.submitted, request))
        self._count(request, 1)
        self.submitted += 1

    def withdraw(self, request: Request) -> None:
        """Let a waiting job wait no longer."""
        kind = _kind(request)
        left = [item for item in self.waiting.pop(kind) if item[2].job != request.job]
        heapq.heapify(left)
        if left:
            self.waiting[kind] = left
        self._count(request, -1)

    def _count(self, request: Request, sign: int) -> None:
        if sign > 0:
            self.work[request.job] = request.num_ranks * request.card_gib * self._seconds_at_speed_1(request)
        self.waiting_gib += sign * request.num_ranks * request.card_gib
        self.waiting_work += sign * (self.work[request.job] if sign > 0 else self.work.pop(request.job))

    def _seconds_at_speed_1(self, request: Request) -> float:
        speeds = self.board.speeds.items()
        known = [request.expected(kind) * speed for kind, speed in speeds if request.holds_on(kind)]
        return min(known, default=request.seconds)

    def end(self, job: str) -> None:
        """Free the cards of a job that has ended, however it did."""
        self._expect(job, None)
        self.board.give(self.running.pop(job))

    def expect(self, job: str, ends_at: float) -> None:
        """Correct when a running job is expected to end."""
        self._expect(job, ends_at)

    def update(self, cards: Iterable[Card], nodes: Mapping[str, Node]) -> None:
        """Take in that cards have appeared, gone, or have more or less memory for us."""
        self.board = Board(cards, nodes)
        self.holds, self.could_hold = [], {}
        for placement in self.running.values():
            self.board.take(placement)

    def avoid(self, node_ids: frozenset[str]) -> None:
        """Start nothing on these nodes until told otherwise; what runs there is left to run."""
        if node_ids != self.avoided:
            self.avoided, self.holds = node_ids, []

    def give_way(self, requests: Iterable[Request]) -> bool:
        """Keep the room free that others' jobs wait for, as if they were ours; all have a higher priority than ours.

        A later call takes the place of an earlier one. Returns whether anything is new.
        """
        ahead = {request.job: request for request in requests}
        if ahead == self.ahead:
            return False
        for request in self.ahead.values():
            self.withdraw(request)
        for request in ahead.values():
            self.submit(request)
        self.ahead, self.holds = ahead, []
        return True

    def queue(self) -> list[Request]:
        """Return what our jobs wait for; of those that need the same no more than there are cards."""
        most = len(self.board.cards)
        first = [item for heap in self.waiting.values() for item in heapq.nsmallest(most, heap)]
        return [request for _, _, request in first if request.job not in self.ahead]

    def start(self, now: float) -> list[Placement]:
        """Return the jobs to start now; they count as running from here on."""
        placements = self._place(now)
        for placement in placements:
            if placement.job in self.ahead:  # its room was kept while ours were placed
                self.end(placement.job)
                self.submit(self.ahead[placement.job])  # with its other ways, of which the placement has one
        return [placement for placement in placements if placement.job not in self.ahead]

    def _place(self, now: float) -> list[Placement]:
        """Book all that has room now, in its order."""
        order = [(*self._place_in_order(kind), kind) for kind in self.waiting]
        heapq.heapify(order)
        placements: list[Placement] = []
        held: dict[CardKey, Hold] = {}
        without_room = 0
        while order:
            *_, kind = heapq.heappop(order)
            request = self.waiting[kind][0][2]
            placement = self._find(request, held, now, self._expected_end(now))
            if placement is None and without_room < MOST_HOLDS:
                hold = self._hold(without_room, request, held, now)
                # On cards where it ends no later than if it waited; where nothing runs, nobody is to be waited for.
                placement = self._find(request, held, now, hold.latest)
                if placement is None and not self.running:
                    placement = self._find(request, held, now, float("inf"))
                if placement is None:
                    held |= dict.fromkeys(hold.keys, hold)
                    without_room += bool(hold.keys)
            if placement is not None:
                placements.append(self._start(kind, placement, now))
                if kind in self.waiting:
                    heapq.heappush(order, (*self._place_in_order(kind), kind))
        return placements

    def _expected_end(self, now: float) -> float:
        """Return when all that waits and runs would have ended if it filled the cards: what ends by then is never too
        late, on however slow a card."""
        running = max(0.0, self.running_until - now * self.running_power)
        return now + (self.waiting_work + running) / self.board.power if self.board.power else float("inf")

    def _find(self, request: Request, held: Mapping[CardKey, Hold], now: float, latest: float) -> Placement | None:
        """Return where a job goes, if there is room that is not held for another, to end by `latest`."""
        crowded = self.waiting_gib > self.board.total_free_gib

        def allowed(key: CardKey) -> bool:
            is_held = key in held and not held[key].allows(key, request, self.board, now)
            return key[0] not in self.avoided and not is_held

        only = allowed if held or self.avoided else None
        return self.board.find(request, only, tight=crowded, most_seconds=latest - now + TOLERANCE)

    def _start(self, kind: Kind, placement: Placement, now: float) -> Placement:
        """Book the first job of a kind on its cards."""
        request = heapq.heappop(self.waiting[kind])[2]
        if not self.waiting[kind]:
            del self.waiting[kind]
        self._count(request, -1)
        self.board.take(placement)
        self.running[request.job] = placement
        self._expect(request.job, now + placement.seconds)
        return placement

    def _expect(self, job: str, ends_at: float | None) -> None:
        """Note when a running job is expected to end; None where it has."""
        placement = self.running[job]
        before = self.ends.pop(job, None)
        power = placement.request.card_gib * len(placement.cards) * relative_speed(placement.cards[0].kind)
        self.running_power += power * ((ends_at is not None) - (before is not None))
        self.running_until += power * ((ends_at or 0.0) - (before or 0.0))
        for card in placement.cards:
            jobs = self.on_card[card.key]
            if before is not None:
                jobs.remove((before, placement.request.card_gib, job))
            if ends_at is not None:
                insort(jobs, (ends_at, placement.request.card_gib, job))
        if ends_at is not None:
            self.ends[job] = ends_at
        keys = {card.key for card in placement.cards}
        if any(hold.keys & keys for hold in self.holds):
            self.holds = []

    def _place_in_order(self, kind: Kind) -> tuple[int, bool, float, float, float, int]:
        """Return what the first job of a kind is ordered by."""
        priority, ((num_ranks, card_gib, _, _), *_) = kind
        minus_seconds, number, request = self.waiting[kind][0]
        if kind not in self.could_hold:
            self.could_hold[kind] = self._could_hold(request)
        scarcity = self.could_hold[kind] / num_ranks
        is_short = -minus_seconds * self.board.power < LONG * self.waiting_work
        return (-priority, is_short, scarcity if is_short else 0.0, minus_seconds, -card_gib, number)

    def _could_hold(self, request: Request) -> float:
        """Return the speeds of all cards that would hold a rank of a job if nothing else ran."""
        board = self.board
        return sum(
            board.speeds[kind]
            for option in request.options
            for key, kind in board.kinds.items()
            if option.holds_on(kind) and self._is_large(key, option)
        )

    def _hold(self, index: int, request: Request, held: Mapping[CardKey, Hold], now: float) -> Hold:
        """Return the cards, of those not held for another, on which a job is expected to start the soonest.

        Looking over all cards takes longest in here, so what was found for the `index`-th job in the way is kept.
        """
        if index < len(self.holds) and self.holds[index].job == request.job:
            return self.holds[index]
        best = behind = Hold(job=request.job)
        for option in request.options:
            for kind, order in self.board.by_kind.items():
                if option.holds_on(kind):
                    there = [key for _, key in order if key[0] not in self.avoided and self._is_large(key, option)]
                    found = self._soonest(option, [key for key in there if key not in held], {}, now)
                    best = min(best, found, key=lambda hold: hold.ends(now))
                    behind = min(behind, self._soonest(option, there, held, now), key=lambda hold: hold.ends(now))
        if behind.ends(now) < best.ends(now):  # cards that it would better not have are kept free for nobody
            best = Hold(job=request.job, latest=behind.ends(now))
        else:
            best = replace(best, latest=best.ends(now))
        self.holds[index:] = [best]
        return best

    def _soonest(self, request: Request, keys: Iterable[CardKey], held: Mapping[CardKey, Hold], now: float) -> Hold:
        """Return those of these equal cards on which a job is expected to start the soonest, after the jobs that some
        are held for; none where too few are."""

        def room_at(key: CardKey) -> float:
            room = self._room_at(key, request, now)
            return max(room, held[key].ends(now)) if key in held else room

        times = sorted((room_at(key), key) for key in keys)[: request.num_ranks]
        if len(times) < request.num_ranks:
            return Hold(job=request.job)
        until, last = times[-1]
        seconds = request.expected(self.board.kinds[last])
        keys = frozenset(key for _, key in times)
        return Hold(job=request.job, card_gib=request.card_gib, until=until, seconds=seconds, keys=keys)

    def _is_large(self, key: CardKey, request: Request) -> bool:
        """Whether a card would hold a rank if nothing else ran there."""
        return self.board.cards[key].size + TOLERANCE >= request.card_gib

    def _room_at(self, key: CardKey, request: Request, now: float) -> float:
        """Return when a card is expected to have room for a rank; never, where it is too small."""
        free = self.board.free_gib[key]
        if free + TOLERANCE >= request.card_gib:
            return now
        for ends, gib, _ in self.on_card[key]:
            free += gib
            if free + TOLERANCE >= request.card_gib:
                return max(now, ends)
        return float("inf")


def _kind(request: Request) -> Kind:
    """Return what tells a request from those that need other cards."""
    needs = ((each.num_ranks, each.card_gib, each.host_gib, each.precision) for each in request.options)
    return (request.priority, tuple(needs))
