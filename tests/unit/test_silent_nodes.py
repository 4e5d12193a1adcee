"""A PC that does not answer gets no jobs, before Ray itself has noticed that it is gone."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

from launcher.board import Request
from launcher.cards import Card, Node
from launcher.cluster import Cluster
from launcher.schedule import Scheduler


def node(name: str, port: int) -> dict[str, Any]:
    return {
        "NodeID": name, "Alive": True, "NodeManagerHostname": name, "NodeManagerAddress": "127.0.0.1",
        "NodeManagerPort": port, "Resources": {"CPU": 2.0, "card0_mib": 8192.0},
    }  # fmt: skip


def test_nodes_that_do_not_answer_are_silent_until_they_do() -> None:
    here, gone = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
    nodes = [node("here", here.getsockname()[1]), node("gone", gone.getsockname()[1])]
    cluster = Cluster.__new__(Cluster)
    cluster.ray, cluster.silent_before = SimpleNamespace(nodes=lambda: nodes), frozenset()
    place = gone.getsockname()
    gone.close()
    assert cluster.silent() == frozenset()  # nobody has doubted it
    assert cluster.silent(["here", "gone"]) == {"gone"} == cluster.silent()
    with socket.create_server(place):
        assert cluster.silent() == frozenset()
    assert cluster.silent() == frozenset()  # it has answered
    nodes[1]["Alive"] = False
    assert cluster.silent(["gone"]) == frozenset()  # Ray has given it up itself
    here.close()


def test_nothing_is_started_on_nodes_that_are_avoided_and_what_runs_there_runs_on() -> None:
    cards = [Card(node_id=name, host=name, index=0, size=8, gib=8.0, num_threads=1) for name in ("a", "b")]
    nodes = {name: Node(node_id=name, host=name, total_gib=64, host_gib=64, cores=2) for name in ("a", "b")}
    scheduler = Scheduler(cards, nodes)
    scheduler.submit(Request(job="early", card_gib=8.0))
    (early,) = scheduler.start(0.0)
    other = ({"a", "b"} - {early.cards[0].node_id}).pop()
    scheduler.avoid(frozenset({other}))
    scheduler.submit(Request(job="late", card_gib=8.0))
    assert scheduler.start(1.0) == [] and set(scheduler.running) == {"early"}
    scheduler.avoid(frozenset())
    assert [placement.cards[0].node_id for placement in scheduler.start(2.0)] == [other]


def test_no_avoided_card_is_held_for_a_job_that_waits() -> None:
    """Else the cards that it will really have are given to later jobs."""
    cards = [Card(node_id=name, host=name, index=i, size=8, gib=8.0, num_threads=1) for name in "ab" for i in (0, 1)]
    nodes = {name: Node(node_id=name, host=name, total_gib=64, host_gib=64, cores=2) for name in "ab"}
    scheduler = Scheduler(cards, nodes)
    scheduler.avoid(frozenset("a"))
    for name in ("one", "two"):
        scheduler.submit(Request(job=name, card_gib=8.0, seconds=100.0))
    assert {card.node_id for placement in scheduler.start(0.0) for card in placement.cards} == {"b"}
    scheduler.submit(Request(job="wide", card_gib=8.0, num_ranks=2, seconds=1000.0, priority=1))
    scheduler.submit(Request(job="later", card_gib=8.0, seconds=500.0))
    assert scheduler.start(1.0) == []
    scheduler.end("one")
    assert scheduler.start(2.0) == []  # it is kept for the wide one
    scheduler.end("two")
    assert [placement.job for placement in scheduler.start(3.0)] == ["wide"]
