"""A PC that does not answer gets no jobs, before Ray itself has noticed that it is gone."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

import pytest

from launcher.cluster import Cluster


def node(name: str, port: int) -> dict[str, Any]:
    return {
        "NodeID": name, "Alive": True, "NodeManagerHostname": name, "NodeManagerAddress": "127.0.0.1",
        "NodeManagerPort": port, "Resources": {"CPU": 2.0, "card0_gib": 8.0},
    }  # fmt: skip


def test_a_doubted_node_is_left_out_until_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray._private.state.available_resources_per_node", dict)
    here, gone = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
    nodes = [node("here", here.getsockname()[1]), node("gone", gone.getsockname()[1])]
    cluster = Cluster.__new__(Cluster)
    cluster.ray, cluster.kind, cluster.doubted = SimpleNamespace(nodes=lambda: nodes), True, set()

    def seen() -> list[str]:
        cards, known = cluster.look([])
        assert {card.node_id for card in cards} == set(known)
        return sorted(known)

    place = gone.getsockname()
    gone.close()
    assert seen() == ["gone", "here"]  # nobody has doubted it
    cluster.doubt(["here", "gone"])
    assert seen() == ["here"] == seen()
    with socket.create_server(place):
        assert seen() == ["gone", "here"]
    assert seen() == ["gone", "here"] and not cluster.doubted
    nodes[1]["Alive"] = False
    cluster.doubt(["gone"])
    assert seen() == ["here"] and not cluster.doubted  # Ray has noticed
    here.close()
