"""Cards as nodes announce them, and which jobs get which."""

from __future__ import annotations

import itertools
import math
import re
import sys
from collections import defaultdict
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.board import Board, Placement, Request, room_for
from launcher.cards import GIB, MIB, Card, LocalCard, Node, gpus, labels, local_cards, resources, visible_gpus
from launcher.fit import whole_cards
from launcher.inventory import cluster_cards, require_cards, unreserved
from launcher.schedule import Scheduler
from training.errors import UserError
from training.spec import DataSpec, JobSpec

RTX_3060 = {"name": "NVIDIA GeForce RTX 3060", "capability": (8, 6), "total_mib": 12288, "tflops": 15.05}
FOUND = [
    LocalCard(index=0, mib=11936, uuid="GPU-aaa1", **RTX_3060),  # type: ignore[arg-type]
    LocalCard(index=1, mib=11117, uuid="GPU-bbb2", **RTX_3060),  # type: ignore[arg-type]
    LocalCard(index=2, mib=24135, uuid="GPU-ccc3", name="NVIDIA GeForce RTX 4090", capability=(8, 9), total_mib=24564),
    LocalCard(index=3, mib=120, uuid="GPU-ddd4", name="NVIDIA GeForce RTX 4090", capability=(8, 9), total_mib=24564),
]
"""As NVML has them; the second drives a desktop, the last is full."""


def card(node: str, index: int, size: int = 8, gib: float | None = None) -> Card:
    return Card(node_id=node, host=node, index=index, size=size, gib=size if gib is None else gib, num_threads=1)


def nodes_of(cards: list[Card], *, host_gib: float = 64.0, cores: int = 16) -> dict[str, Node]:
    return {
        item.node_id: Node(
            node_id=item.node_id,
            host=item.node_id,
            total_gib=host_gib,
            host_gib=host_gib,
            cores=cores,
        )
        for item in cards
    }


def found(cards: list[Card], request: Request, nodes: dict[str, Node] | None = None) -> tuple[Card, ...]:
    """Return where a job goes on idle cards."""
    placement = Board(cards, nodes or nodes_of(cards)).find(request)
    return placement.cards if placement else ()


def scheduler(cards: list[Card], **node: Any) -> Scheduler:
    return Scheduler(cards, nodes_of(cards, **node))


def started(placements: list[Placement]) -> dict[str, list[str]]:
    return {placement.job: [item.label for item in placement.cards] for placement in placements}


def test_a_gpu_is_announced_with_all_that_cuda_can_give_and_with_what_it_is() -> None:
    cards = visible_gpus(FOUND, None)
    assert resources(cards) == {"card0_mib": 11936.0, "card1_mib": 11117.0, "card2_mib": 24135.0}
    assert {key: value for key, value in labels(cards).items() if key.startswith("card0")} == {
        "card0_uuid": "GPU-aaa1", "card0_name": "NVIDIA_GeForce_RTX_3060", "card0_sm": "8.6",
        "card0_total_mib": "12288", "card0_tflops": "15.05",
    }  # fmt: skip


def announced(local: list[LocalCard], name: str = "a") -> dict[str, Any]:
    """Return the node that announces these cards."""
    return {**node(name), "Resources": {"CPU": 8.0, "GPU": float(len(local)), **resources(local)},
            "Labels": labels(local)}  # fmt: skip


def test_what_a_node_announces_of_its_gpus_is_what_the_cluster_has() -> None:
    for value in labels(FOUND).values():
        assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", value)  # as Ray checks them
    cards, _ = cluster_cards([announced(visible_gpus(FOUND, None))], {}, {})
    assert [(item.name, item.capability, item.total_gib, item.uuid) for item in cards[1:]] == [
        ("NVIDIA GeForce RTX 3060", (8, 6), 12.0, "GPU-bbb2"),
        ("NVIDIA GeForce RTX 4090", (8, 9), 24564 / 1024, "GPU-ccc3"),
    ]
    assert (cards[0].size, cards[0].tflops) == (11936 / 1024, 15.05)


def test_equal_cards_are_equal_whatever_a_desktop_uses_of_them() -> None:
    cards, nodes = cluster_cards([announced(visible_gpus(FOUND, None))], {}, {})
    two = Request(job="two", num_ranks=2, card_gib=10.5)
    assert [item.index for item in found(cards, two, nodes)] == [1, 0]
    assert found(cards, replace(two, card_gib=11.2), nodes) == ()  # the least of both
    spec = JobSpec(name="x", output_dir="x", data=DataSpec(dataset_name="imdb"), num_ranks=2)
    assert whole_cards("two", spec, cards).card_gib == 11117 / 1024


@pytest.mark.parametrize("capable", [(8, 6), (8, 9)])
def test_cards_of_one_size_that_are_of_two_models_are_not_equal(capable: tuple[int, int]) -> None:
    a, b = (replace(card("a", index), name=f"model {index}", capability=(8, 6), total_gib=8.0) for index in (0, 1))
    two = Request(job="two", num_ranks=2, card_gib=4.0)
    assert found([a, b], two) == ()
    assert bool(found([a, replace(b, name=a.name, capability=capable)], two)) == (capable == (8, 6))


def test_nvml_is_asked_for_what_is_free_and_for_what_a_card_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of an idle RTX 3060."""
    memory = SimpleNamespace(total=12288 * MIB, free=11936 * MIB, used=352 * MIB)
    stub: Any = ModuleType("pynvml")
    stub.NVMLError, stub.NVML_CLOCK_SM = RuntimeError, 1
    answers = {
        "Init": None, "Shutdown": None, "DeviceGetCount": 1, "DeviceGetHandleByIndex": "handle",
        "DeviceGetMemoryInfo": memory, "DeviceGetCudaComputeCapability": (8, 6), "DeviceGetMaxClockInfo": 2100,
        "DeviceGetNumGpuCores": 3584, "DeviceGetUUID": "GPU-aaa1", "DeviceGetName": "NVIDIA GeForce RTX 3060",
    }  # fmt: skip
    for name, answer in answers.items():
        setattr(stub, f"nvml{name}", lambda *_, answer=answer: answer)
    monkeypatch.setitem(sys.modules, "pynvml", stub)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (gpu,) = gpus()
    assert gpu.tflops == pytest.approx(15.05, abs=0.01)
    assert replace(gpu, tflops=15.05) == FOUND[0]


@pytest.mark.parametrize(("visible", "kept"), [("1", [1]), ("GPU-ccc3,0", [0, 2]), ("", []), (None, [0, 1, 2])])
def test_cuda_visible_devices_hides_cards(visible: str | None, kept: list[int]) -> None:
    assert [item.index for item in visible_gpus(FOUND, visible)] == kept


def test_a_machine_without_gpus_has_virtual_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.cards.gpus", list)
    assert resources(local_cards([8, 12.5])) == {"card0_mib": 8192.0, "card1_mib": 12800.0}
    assert not any(item.uuid for item in local_cards(None))


def node(name: str, *, alive: bool = True, **changed: Any) -> dict[str, Any]:
    total = {"CPU": 7.0, "card0_mib": 8192.0, "card1_mib": 12288.0, "memory": 30.0 * GIB} | changed
    return {"NodeID": name, "NodeManagerHostname": name, "NodeManagerAddress": f"ip-{name}", "Alive": alive,
            "Resources": total, "Labels": {"card1_uuid": "GPU-1"}}  # fmt: skip


def test_cards_are_read_off_the_living_nodes_and_share_their_cores() -> None:
    cards, nodes = cluster_cards([node("a"), node("b", alive=False)], {}, {})
    assert [(item.label, item.size, item.gib, item.num_threads, item.uuid) for item in cards] == [
        ("a:0", 8, 8.0, 3, ""), ("a:1", 12, 12.0, 3, "GPU-1"),
    ]  # fmt: skip
    assert nodes == {"a": Node(node_id="a", host="a", total_gib=30.0, host_gib=30.0, cores=7)}


def test_what_others_have_reserved_is_left_to_them() -> None:
    left = {"a": {"card0_mib": 1024.0, "card1_mib": 12288.0, "memory": 20.0 * GIB}}
    cards, nodes = cluster_cards([node("a")], left, {"a": {"card0_mib": 4096.0, "memory": 2.0 * GIB}})
    assert [(item.size, item.gib) for item in cards] == [(8, 5.0), (12, 12.0)]
    assert (nodes["a"].host_gib, nodes["a"].total_gib) == (22.0, 30.0)
    there, machines = unreserved(cards, nodes)
    assert [item.gib for item in there] == [8.0, 12.0] and machines["a"].host_gib == 30.0


def test_a_cluster_that_announces_no_card_is_told_how() -> None:
    nodes = [{**node("a"), "Resources": {"CPU": 2.0}}]
    cards, _ = cluster_cards(nodes, {}, {})
    with pytest.raises(UserError, match=r"ray start .*card0_mib"):
        require_cards(cards, nodes, virtual=None)


def test_a_cluster_of_an_older_shoal_is_told_to_start_anew() -> None:
    nodes = [{**node("a"), "Resources": {"CPU": 2.0, "card0_gib": 8.0}}]
    cards, _ = cluster_cards(nodes, {}, {})
    with pytest.raises(UserError, match=r"older Shoal.*start Ray there again"):
        require_cards(cards, nodes, virtual=None)


def test_a_cluster_of_real_cards_is_no_place_for_virtual_ones() -> None:
    nodes = [node("gpu", GPU=2.0)]
    cards, _ = cluster_cards(nodes, {}, {}, virtual=True)
    with pytest.raises(UserError, match=r"virtual_cards is true.*Leave it out"):
        require_cards(cards, nodes, virtual=True)


def test_virtual_cards_keep_no_real_ones_waiting_nor_take_their_place_later() -> None:
    both = [node("cpu"), node("gpu", GPU=2.0)]
    assert {item.node_id for item in cluster_cards(both, {}, {})[0]} == {"gpu"}
    assert cluster_cards([node("cpu")], {}, {}, virtual=False)[0] == []
    assert {item.node_id for item in cluster_cards(both, {}, {}, virtual=True)[0]} == {"cpu"}


def test_small_jobs_share_a_card_only_where_none_is_idle() -> None:
    planner = scheduler([card("a", 0), card("b", 0)])
    for name in "xyz":
        planner.submit(Request(job=name, card_gib=3.0))
    placed = started(planner.start(0.0))
    assert placed == {"x": ["a:0"], "y": ["b:0"], "z": ["a:0"]}


def test_a_card_is_shared_by_no_more_ranks_than_its_node_has_cores() -> None:
    planner = scheduler([card("a", 0)], cores=2)
    for name in "xyz":
        planner.submit(Request(job=name, card_gib=1.0))
    assert len(planner.start(0.0)) == 2


def test_host_memory_admits_too() -> None:
    planner = scheduler([card("a", 0), card("a", 1)], host_gib=10.0)
    for name in "xy":
        planner.submit(Request(job=name, card_gib=1.0, host_gib=6.0))
    assert list(started(planner.start(0.0))) == ["x"]
    planner.end("x")
    assert list(started(planner.start(1.0))) == ["y"]


def test_a_job_gets_equal_cards_on_one_node_before_it_spans_nodes() -> None:
    cards = [card("a", 0), card("b", 0), card("b", 1, 24), card("c", 0, 24), card("c", 1, 24)]
    two = Request(job="two", num_ranks=2, card_gib=4.0)

    def find(some: list[Card]) -> list[str]:
        return [item.label for item in found(some, two)]

    assert find(cards) == ["c:0", "c:1"]
    assert find(cards[:3]) == ["a:0", "b:0"]
    assert find(cards[1:3]) == []


def test_a_narrow_job_leaves_the_large_card_free() -> None:
    cards = [card("a", 0, 24), card("b", 0, 8)]
    assert found(cards, Request(job="x", card_gib=4.0)) == (cards[1],)


def test_priority_then_the_choosy_then_the_longest() -> None:
    planner = scheduler([card("a", 0, 8), card("b", 0, 12)], cores=1)
    requests = [("short", 8.0, 1.0, 0), ("long", 8.0, 1.2, 0), ("large", 10.0, 1.0, 0), ("urgent", 8.0, 1.0, 1)]
    for name, gib, seconds, priority in requests:
        planner.submit(Request(job=name, card_gib=gib, seconds=seconds, priority=priority))
    assert started(planner.start(0.0)) == {"urgent": ["a:0"], "large": ["b:0"]}
    planner.end("urgent")
    assert list(started(planner.start(1.0))) == ["long"]


def test_a_wide_job_is_not_starved_by_small_ones_but_they_fill_its_waiting_time() -> None:
    planner = scheduler([card("a", 0, 8)])
    for name, gib, seconds in (("first", 5.0, 100.0), ("wide", 8.0, 300.0)):
        planner.submit(Request(job=name, card_gib=gib, seconds=seconds))
        planner.start(0.0)
    planner.submit(Request(job="short", card_gib=3.0, seconds=90.0))
    planner.submit(Request(job="late", card_gib=2.0, seconds=200.0))
    assert list(started(planner.start(0.0))) == ["short"]
    planner.end("short")
    assert planner.start(90.0) == []
    planner.end("first")
    assert list(started(planner.start(100.0))) == ["wide"]


def test_a_job_that_is_withdrawn_waits_no_longer() -> None:
    planner = scheduler([card("a", 0)])
    requests = [Request(job=name, card_gib=6.0, seconds=seconds) for name, seconds in (("x", 3.0), ("y", 2.0))]
    for request in requests:
        planner.submit(request)
    planner.withdraw(requests[0])
    assert list(started(planner.start(0.0))) == ["y"]
    planner.end("y")
    assert planner.start(1.0) == [] and planner.waiting_gib == 0.0


def test_jobs_move_on_when_a_card_goes_and_when_one_appears() -> None:
    a, b = card("a", 0), card("b", 0)
    planner = scheduler([a])
    planner.submit(Request(job="x", card_gib=6.0))
    planner.submit(Request(job="y", card_gib=6.0))
    assert list(started(planner.start(0.0))) == ["x"]
    planner.update([a, b], nodes_of([a, b]))
    assert started(planner.start(1.0)) == {"y": ["b:0"]}
    planner.update([b], nodes_of([b]))
    planner.end("x")  # its card is gone
    planner.submit(Request(job="x", card_gib=6.0))
    assert planner.start(2.0) == []
    planner.end("y")
    assert started(planner.start(3.0)) == {"x": ["b:0"]}


CARDS = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from([8, 12, 24])), min_size=1, max_size=8
).map(lambda drawn: [card(name, index, size) for index, (name, size) in enumerate(drawn)])  # fmt: skip
REQUESTS = st.lists(
    st.builds(
        lambda ranks, gib, host, seconds, priority: (ranks, gib, host, seconds, priority),
        st.integers(1, 3), st.floats(0.3, 24.0), st.floats(0.0, 20.0), st.floats(1.0, 100.0), st.integers(0, 2),
    ),
    min_size=1, max_size=20,
)  # fmt: skip


def run_all(cards: list[Card], drawn: list[Any], durations: list[float]) -> list[tuple[str, tuple[Card, ...], float]]:
    """Run the feasible jobs to their ends, which come at other times than expected; return the placements."""
    nodes = nodes_of(cards, host_gib=30.0, cores=3)
    planner = Scheduler(cards, nodes)
    requests = [
        Request(job=f"j{i}", num_ranks=ranks, card_gib=gib, host_gib=host, seconds=seconds, priority=priority)
        for i, (ranks, gib, host, seconds, priority) in enumerate(drawn)
    ]
    feasible = [request for request in requests if room_for(request, cards, nodes)]
    for request in feasible:
        planner.submit(request)
    log: list[tuple[str, tuple[Card, ...], float]] = []
    ends: dict[str, float] = {}
    now = 0.0
    while True:
        for placement in planner.start(now):
            log.append((placement.job, placement.cards, now))
            ends[placement.job] = now + durations[len(log) % len(durations)]
            check_room(planner, nodes)
        if not ends:
            assert {job for job, *_ in log} == {request.job for request in feasible}
            assert len(log) == len(feasible)
            return log
        job = min(ends, key=lambda name: (ends[name], name))
        now = ends.pop(job)
        planner.end(job)


def check_room(planner: Scheduler, nodes: dict[str, Node]) -> None:
    """Count from the placements alone what each card and host holds."""
    held: dict[Any, float] = defaultdict(float)
    for placement in planner.running.values():
        assert len(placement.cards) == placement.request.num_ranks == len({item.key for item in placement.cards})
        assert len({item.kind for item in placement.cards}) == 1
        for item in placement.cards:
            held[item.key] += placement.request.card_gib
            held[item.node_id] += placement.request.host_gib
            assert held[item.key] <= item.gib + 1e-6
            assert held[item.node_id] <= nodes[item.node_id].host_gib + 1e-6


@settings(max_examples=150, deadline=None)
@given(cards=CARDS, drawn=REQUESTS, durations=st.lists(st.floats(0.5, 150.0), min_size=1, max_size=7))
def test_nothing_is_over_booked_all_that_fits_runs_and_the_same_again(
    cards: list[Card], drawn: list[Any], durations: list[float]
) -> None:
    assert run_all(cards, drawn, durations) == run_all(cards, drawn, durations)


@settings(max_examples=100, deadline=None)
@given(cards=CARDS, ranks=st.integers(1, 4), gib=st.floats(0.1, 30.0))
def test_room_is_found_exactly_where_enough_equal_cards_are_large_enough(
    cards: list[Card], ranks: int, gib: float
) -> None:
    sizes = [item.size for item in cards]
    expected = any(size >= gib and sizes.count(size) >= ranks for size in set(sizes))
    request = Request(job="x", num_ranks=ranks, card_gib=gib)
    assert bool(found(cards, request, nodes_of(cards, cores=99, host_gib=math.inf))) == expected


def test_all_orders_of_submission_place_as_much() -> None:
    cards = [card("a", 0, 8), card("a", 1, 12)]
    jobs = [Request(job="p", card_gib=8.0), Request(job="q", card_gib=12.0), Request(job="r", card_gib=4.0)]
    for order in itertools.permutations(jobs):
        planner = scheduler(cards)
        for request in order:
            planner.submit(request)
        assert {placement.job for placement in planner.start(0.0)} == {"p", "q"}
