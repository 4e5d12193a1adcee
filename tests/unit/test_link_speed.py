"""Plans for ranks on several PCs know the link between them: as it was measured, or as it is assumed."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import launcher.links
from launcher.cards import Card, Node
from launcher.choose import Choice, choose
from launcher.cost import expected_seconds
from launcher.expand import CHECKOUT, StudyJob
from launcher.links import (
    ASSUMED,
    Link,
    keep_speeds,
    link_between,
    link_of_ranks,
    measure_links,
    neighbours,
    say_link,
)
from training.forecast.memory_estimate import JobForecast, MemoryEstimate, Work
from training.spec import DataSpec, JobSpec, ModelSpec, TrainingSpec

GIB = 2**30
BASE = Work(parameters=8 * 10**9, layers=32, tokens=10**6, evaluated_tokens=0, steps=100, trained=42 * 10**6)
ETHERNET = Link(bytes_per_second=1e8, source="measured")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path))
    return tmp_path


def cards(*hosts: str) -> list[Card]:
    return [
        Card(node_id=host, host=host, index=index, size=12.0, gib=12.0, num_threads=1)
        for index, host in enumerate(hosts)
    ]


def spec_of(stage: str, ranks: int) -> JobSpec:
    content = json.loads((CHECKOUT / f"ds_configs/{stage}.json").read_text())
    return JobSpec(
        name="job", output_dir="out", data=DataSpec(dataset_name="imdb", max_seq_length=512), deepspeed=content,
        model=ModelSpec(dtype="bf16"), num_ranks=ranks, training=TrainingSpec(per_device_train_batch_size=8),
    )  # fmt: skip


def test_zero_3_over_ethernet_looks_as_slow_as_it_is() -> None:
    spec = spec_of("zero3", 2)
    near, far = (expected_seconds(spec, BASE, on_card=True, link=link) for link in (None, ETHERNET))
    half_a_base = BASE.parameters * 2 / 2 / ETHERNET.bytes_per_second
    assert half_a_base == 80  # seconds for every pass of every micro-batch
    assert far > near + 2 * BASE.steps * half_a_base * 0.97
    gradients = expected_seconds(spec_of("zero1", 2), BASE, on_card=True, link=ETHERNET)
    assert 60 < gradients - expected_seconds(spec_of("zero1", 2), BASE, on_card=True) < 200  # 84 MB a step


def planned(some: list[Card], nodes: dict[str, Node]) -> Choice:
    """A base of 16 GiB which two cards of 12 hold halved, and one in host memory."""

    def needs(spec: JobSpec, _: str) -> JobForecast:
        assert isinstance(spec.deepspeed, dict)
        zero = spec.deepspeed["zero_optimization"]
        offloads = zero.get("offload_param", {}).get("device") == "cpu"
        gib = 1.0 if offloads else 16.0 / (spec.num_ranks if zero["stage"] == 3 else 1)
        return JobForecast(
            memory=MemoryEstimate(card={"all": int(gib * GIB)}, host={"all": GIB}), work=BASE, dtype="bf16"
        )

    spec = spec_of("zero1", 1)
    job = StudyJob(written=spec, spec=spec, fixed=frozenset(), data_content=[])
    return choose(job, BASE, needs, some, nodes, on_card=True, most_ranks=2)


def node(host: str) -> Node:
    return Node(node_id=host, host=host, total_gib=64.0, host_gib=64.0, cores=8)


def test_a_base_is_cut_over_cards_of_one_pc_and_offloaded_rather_than_sent_over_ethernet() -> None:
    together = planned(cards("a", "a"), {"a": node("a")})
    assert together.setting.num_ranks == 2 and "offload_param" not in together.setting.deepspeed
    keep_speeds({("a", "b"): 1e8})
    apart = planned(cards("a", "b"), {"a": node("a"), "b": node("b")})
    assert apart.setting.num_ranks == 1 and "offload_param" in apart.setting.deepspeed
    keep_speeds({("a", "b"): 1e11})  # as fast as a bus
    assert planned(cards("a", "b"), {"a": node("a"), "b": node("b")}).setting == together.setting


def test_what_was_measured_is_kept_for_a_week_and_the_rest_is_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert link_between(["a", "a"]) is None and link_of_ranks(2, cards("a", "a", "b")) is None
    assert link_of_ranks(2, cards("a", "b")) == ASSUMED and "assumed" in str(ASSUMED)
    keep_speeds({("b", "a"): 2.5e8})
    assert link_of_ranks(2, cards("a", "b")) == Link(bytes_per_second=2.5e8, source="measured")
    assert "250 MB/s, measured" in str(link_between(["b", "a"]))
    assert link_between(["a", "b", "c"]) == ASSUMED
    keep_speeds({("b", "c"): 1e8, ("a", "c"): 3e8})
    assert link_between(["c", "a", "b"]) == Link(bytes_per_second=1e8, source="measured")
    monkeypatch.setattr(launcher.links, "KEPT_SECONDS", 0.0)
    assert link_between(["a", "b"]) == ASSUMED


def test_a_broken_cache_is_no_measurement(cache: Path) -> None:
    (cache / "links.json").write_text('[{"hosts": ["a"]}]')
    assert link_between(["a", "b"]) == ASSUMED


def test_neighbours_are_those_of_the_ring() -> None:
    assert neighbours(["b", "a"]) == [("a", "b")]
    assert neighbours("dcba") == [("a", "b"), ("a", "d"), ("b", "c"), ("c", "d")]


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Remote:
    """A method as Ray has it; this one runs here."""

    def __init__(self, method: Any) -> None:
        self.remote = method


class HereCluster:
    """A cluster of which every PC is this one."""

    def __init__(self, *, reaches: bool = True) -> None:
        class RayError(Exception):
            pass

        self.cards = cards("a", "b", "c")
        self.reaches, self.started, self.killed = reaches, 0, 0
        self.ray = SimpleNamespace(
            get=lambda value, timeout: value, kill=self._kill, exceptions=SimpleNamespace(RayError=RayError)
        )

    def _kill(self, actor: Any) -> None:
        self.killed += 1

    def task_actor(self, cls: Any, node_id: str) -> Any:
        self.started += 1
        end = cls()
        where = ("127.0.0.1", end.server.getsockname()[1] if self.reaches else closed_port())
        return SimpleNamespace(address=Remote(lambda: where), reach=Remote(end.reach))


def test_links_are_measured_once_and_said() -> None:
    cluster, said = HereCluster(), []
    say_link(cluster, said.append)
    assert (cluster.started, cluster.killed) == (3, 3) and "measured" in said[0]
    link = measure_links(cluster, cluster.cards)
    assert cluster.started == 3 and link is not None and link.source == "measured" and link.bytes_per_second > 1e6
    say_link(SimpleNamespace(cards=cards("a")), said.append)
    assert len(said) == 1


def test_a_link_that_cannot_be_measured_is_assumed() -> None:
    cluster = HereCluster(reaches=False)
    assert measure_links(cluster, cluster.cards) == ASSUMED and cluster.killed == 3
