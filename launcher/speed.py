"""How fast cards multiply, by what they are, until somebody has measured it; and which precision is planned on them."""

from __future__ import annotations

from collections.abc import Iterable

from launcher.cards import Capability, Card, CardKind
from training.precision import AMPERE, Precision, auto_precision

REFERENCE_TFLOPS = 25.4
"""Of an RTX 3060 in bf16: the card that the cost model's seconds are of, and that speed 1 is."""
IN_16_BITS = {(7, 0): 8.0, (7, 5): 4.0, (8, 0): 16.0, (9, 0): 15.0, (10, 0): 28.0}
"""Capability -> what tensor cores multiply in 16 bits, added up in fp32, for one in fp32 (NVIDIA's data sheets)."""
GEFORCE, PROFESSIONAL = 2.0, 4.0
"""The same of cards from Ampere on that are not in the table: the tensor cores of a GeForce add up at half the rate."""
NO_TENSOR_CORES = 2.0
"""GeForce GTX 16."""


def planned_precision(kind: CardKind) -> Precision:
    """Return what `model.dtype: auto` is on cards of a kind; where that is not known, as of the Ampere generation."""
    return auto_precision(kind.capability or AMPERE)


def tflops(kind: CardKind, precision: str) -> float:
    """Return what a kind of card could multiply and add in a precision, 10^12 a second; the reference where unknown."""
    if not kind.tflops:
        return REFERENCE_TFLOPS
    if precision == "fp32" or (precision == "bf16" and (kind.capability or AMPERE) < AMPERE):
        return kind.tflops
    if "GTX" in kind.name:
        return kind.tflops * NO_TENSOR_CORES
    is_geforce = "GeForce" in kind.name or not kind.name
    return kind.tflops * IN_16_BITS.get(kind.capability or AMPERE, GEFORCE if is_geforce else PROFESSIONAL)


def relative_speed(kind: CardKind) -> float:
    """Return how fast cards of a kind are in the precision that is planned on them; an RTX 3060 is 1, a CPU too."""
    return tflops(kind, planned_precision(kind)) / REFERENCE_TFLOPS if kind.tflops else 1.0


def least_capable(cards: Iterable[Card]) -> Capability | None:
    """Return the least compute capability of cards, as far as a forecast tells them apart: all from Ampere on are alike
    to it. None where no card's is known."""
    known = [card.capability for card in cards if card.capability]
    return min(*known, AMPERE) if known else None
