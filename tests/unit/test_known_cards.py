"""`--cards`: what a number of GB or a model's name stands for."""

from __future__ import annotations

import pytest

from launcher.known_cards import read_cards
from training.errors import UserError


def test_gb_are_those_that_a_card_is_sold_with_and_of_which_it_gives_less() -> None:
    cards = read_cards("8,12, 16,24,7.5")
    assert [item.gib for item in cards] == [7.7, 11.7, 15.6, 23.6, 7.5]
    assert {item.capability for item in cards} == {(8, 6)} and not any(item.is_virtual or item.name for item in cards)


@pytest.mark.parametrize(
    ("text", "name", "gib", "capability"),
    [
        ("3060", "NVIDIA GeForce RTX 3060", 11.7, (8, 6)),
        ("RTX 4070 Ti SUPER", "NVIDIA GeForce RTX 4070 Ti SUPER", 15.6, (8, 9)),
        ("rtx3060ti", "NVIDIA GeForce RTX 3060 Ti", 7.7, (8, 6)),
        ("1660", "NVIDIA GeForce GTX 1660", 5.7, (7, 5)),
        ("t4", "NVIDIA T4", 14.5, (7, 5)),
    ],
)
def test_a_model_is_known_by_its_name(text: str, name: str, gib: float, capability: tuple[int, int]) -> None:
    (found,) = read_cards(text)
    assert (found.name, found.gib, found.capability) == (name, gib, capability)


@pytest.mark.parametrize("text", ["", "8,", "-1", "nan", "3O60", "1e9"])
def test_what_is_neither_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--cards has"):
        read_cards(text)
