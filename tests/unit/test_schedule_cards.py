"""Cards as nodes announce them, and which jobs get which."""

from __future__ import annotations

import pytest

from launcher.cards import Card, cluster_cards, parse_gpu_list, resources
from launcher.schedule import choose_cards, place, refuse_too_wide
from training.errors import UserError

NVIDIA_SMI = "0, GPU-aaa1, 8188\n1, GPU-bbb2, 12282\n2, GPU-ccc3, 81559\n"


def card(node: str, index: int, gib: float = 8.0) -> Card:
    return Card(node_id=node, host=node, index=index, gib=gib, num_threads=1)


def test_gpu_sizes_are_whole_gib_because_ray_takes_nothing_else() -> None:
    sizes = parse_gpu_list(NVIDIA_SMI, None)
    assert resources(sizes) == {"card0_gib": 8.0, "card1_gib": 12.0, "card2_gib": 80.0}


@pytest.mark.parametrize(("visible", "kept"), [("1", [1]), ("GPU-ccc3,0", [0, 2]), ("", []), (None, [0, 1, 2])])
def test_cuda_visible_devices_hides_cards(visible: str | None, kept: list[int]) -> None:
    assert list(parse_gpu_list(NVIDIA_SMI, visible)) == kept


def test_cards_are_read_off_the_living_nodes_and_share_their_cores() -> None:
    def node(name: str, alive: bool) -> dict[str, object]:
        return {
            "NodeID": name, "NodeManagerHostname": name, "Alive": alive,
            "Resources": {"CPU": 7.0, "card0_gib": 8.0, "card1_gib": 12.0, "memory": 1.0},
        }  # fmt: skip

    cards = cluster_cards([node("a", True), node("b", False)])
    assert [(item.label, item.gib, item.num_threads) for item in cards] == [("a:0", 8.0, 3), ("a:1", 12.0, 3)]


def test_a_cluster_that_announces_no_card_is_told_how() -> None:
    with pytest.raises(UserError, match=r"ray start .*card0_gib"):
        cluster_cards([{"NodeID": "a", "NodeManagerHostname": "a", "Alive": True, "Resources": {"CPU": 2.0}}])


def test_the_widest_job_goes_first_and_narrower_ones_fill_up() -> None:
    free = [card("a", 0), card("a", 1), card("a", 2)]
    placed = place([("narrow1", 1), ("narrow2", 1), ("wide", 2)], free)
    assert [(item.job, len(item.cards)) for item in placed] == [("wide", 2), ("narrow1", 1)]
    used = [item for placement in placed for item in placement.cards]
    assert len(set(used)) == len(used) == 3


def test_a_job_gets_cards_of_one_size_on_one_node_before_it_spans_nodes() -> None:
    free = [card("a", 0), card("b", 0), card("b", 1, 24.0), card("c", 0, 24.0), card("c", 1, 24.0)]
    assert choose_cards(2, free) == [free[3], free[4]]
    assert choose_cards(2, free[:3]) == [free[0], free[1]]
    assert choose_cards(2, free[1:3]) == []


def test_a_narrow_job_leaves_the_large_card_free() -> None:
    assert choose_cards(1, [card("a", 0, 24.0), card("b", 0, 8.0)]) == [card("b", 0, 8.0)]


def test_a_job_wider_than_all_cards_is_refused_with_its_name() -> None:
    with pytest.raises(UserError, match=r"job big: num_ranks is 3"):
        refuse_too_wide([("small", 2), ("big", 3)], [card("a", 0), card("a", 1)])
