"""Cards of unequal speed: who gets the fast ones, and who had better wait for one."""

from __future__ import annotations

import pytest

from benchmarks.scheduling import CLUSTERS, draw_jobs, planned, simulate
from benchmarks.scheduling_bound import shortest
from launcher.board import Placement, Request
from launcher.cards import Card, Node
from launcher.cost import costs_on
from launcher.known_cards import read_cards
from launcher.schedule import Scheduler
from launcher.speed import REFERENCE_TFLOPS, relative_speed, tflops

PC = {"here": Node(node_id="here", host="here", total_gib=64.0, host_gib=64.0, cores=16)}


def scheduler(cards: list[Card], *jobs: Request) -> Scheduler:
    found = Scheduler(cards, PC)
    for job in jobs:
        found.submit(planned(job, {card.kind for card in cards}))
    return found


def started(placements: list[Placement]) -> dict[str, str]:
    return {placement.job: str(placement.cards[0].kind) for placement in placements}


@pytest.mark.parametrize("names", ["3060,4090", "4090,3060"])
def test_an_idle_4090_is_taken_before_a_3060(names: str) -> None:
    assert started(scheduler(read_cards(names), Request(job="x", card_gib=4.0)).start(0.0)) == {"x": "RTX 4090"}


def test_the_large_card_is_left_to_whom_no_other_holds() -> None:
    jobs = Request(job="small", card_gib=4.0, seconds=100.0), Request(job="large", card_gib=20.0, seconds=400.0)
    placed = started(scheduler(read_cards("4070,4090"), *jobs).start(0.0))
    assert placed == {"large": "RTX 4090", "small": "RTX 4070"}


def test_a_job_waits_for_a_fast_card_where_it_ends_sooner_so() -> None:
    """Alone on the 4090 a job of 1,000 s on a 3060 takes 153 s; the next waits for it, for 306 s in all."""
    jobs = [Request(job=name, card_gib=11.0, num_ranks=1, seconds=1000.0) for name in ("first", "second", "third")]
    cards = read_cards("3060,4090")
    alone = scheduler(cards, *jobs)
    assert started(alone.start(0.0)) == {"first": "RTX 4090", "second": "RTX 4090"}  # both have room there
    alone.end("first")
    assert started(alone.start(153.0)) == {"third": "RTX 4090"}


def test_where_much_waits_slow_cards_work_too() -> None:
    jobs = [Request(job=f"job{number}", card_gib=11.0, seconds=1000.0) for number in range(40)]
    placed = started(scheduler(read_cards("3060,4090"), *jobs).start(0.0))
    assert sorted(placed.values()) == ["RTX 3060", "RTX 4090", "RTX 4090"]


def test_a_wide_job_takes_no_slow_cards_because_others_hold_the_fast_ones() -> None:
    """With this draw a job of four ranks ran on the slowest cards until twice the bound, the last by far to end."""
    cards, nodes = CLUSTERS[1].build()
    jobs, misjudged = draw_jobs(1000, 2, {card.kind for card in cards})
    runs, _ = simulate(Scheduler(cards, nodes), jobs, misjudged)
    assert len(runs) == 1000
    assert max(run.end for run in runs) < 1.15 * shortest(jobs, misjudged, cards)


def test_equal_cards_that_a_job_may_have_count_by_their_speed() -> None:
    slow, fast = read_cards("3060,4090")
    assert relative_speed(fast.kind) == pytest.approx(6.5, abs=0.1)
    assert relative_speed(slow.kind) == pytest.approx(1.0, abs=0.01)
    assert costs_on(fast.kind, "bf16").operations == pytest.approx(
        costs_on(slow.kind, "bf16").operations / 6.5, rel=0.01
    )
    assert costs_on(slow.kind, "fp32").operations == pytest.approx(2e-13, rel=0.01)


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [("2060", "fp32", 6.5), ("2060", "fp16", 26.0), ("1660", "fp16", 10.0), ("2060", "bf16", 6.5),
     ("4090", "bf16", 165.2), ("v100", "fp16", 125.6), ("a100", "bf16", 312.0), ("l4", "bf16", 121.2)],
)  # fmt: skip
def test_what_a_card_multiplies_is_that_of_its_data_sheet(name: str, precision: str, expected: float) -> None:
    (card,) = read_cards(name)
    assert tflops(card.kind, precision) == pytest.approx(expected, rel=0.01)


def test_a_card_of_unknown_speed_counts_as_the_reference() -> None:
    card = Card(node_id="a", host="a", index=0, size=8.0, gib=8.0, num_threads=1)
    assert tflops(card.kind, "bf16") == REFERENCE_TFLOPS and relative_speed(card.kind) == 1.0


def test_the_bound_is_that_of_the_fastest_way_to_cut_the_jobs() -> None:
    """Two jobs of the whole card each: on equal cards one each; with one card six times as fast, shares of 1 to 6."""
    cards = read_cards("7.5,7.5")
    jobs = [Request(job=name, card_gib=7.5, seconds=700.0) for name in "ab"]
    exact = {"a": 1.0, "b": 1.0}
    assert shortest([planned(job, {cards[0].kind}) for job in jobs], exact, cards) == pytest.approx(700.0, rel=1e-3)
    mixed = read_cards("3060,4090")
    speed = relative_speed(mixed[1].kind)
    whole = [planned(Request(job=name, card_gib=11.7, seconds=700.0), {card.kind for card in mixed}) for name in "ab"]
    bound = shortest(whole, exact, mixed)
    area = 2 * 11.7 * 700.0 / (11.7 + 23.6 * speed)
    assert bound == pytest.approx(max(area, 700.0 / speed), rel=1e-3)
