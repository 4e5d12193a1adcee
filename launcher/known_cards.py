"""Cards that are not here, for `shoal plan --cards`: what a number of GB or a model's name stands for.

A card of 12 GB gives a process less than 12 GiB: the driver keeps some. The sizes are those that PyTorch names in
its messages when memory runs out ("GPU 0 has a total capacity of 11.76 GiB"), rounded down to tenths; the rates follow
from NVIDIA's data sheets.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from launcher.cards import Card, LocalCard
from training.errors import UserError, nearest

GIB_OF_GB: dict[float, float] = {
    4: 3.8, 6: 5.7, 8: 7.7, 10: 9.7, 11: 10.7, 12: 11.7, 16: 15.6, 20: 19.6, 24: 23.6, 32: 31.3, 40: 39.3, 48: 47.3,
    80: 79.1,
}  # fmt: skip
"""What a card is sold as -> GiB that CUDA can have of it."""
TURING, AMPERE, ADA, BLACKWELL = (7, 5), (8, 6), (8, 9), (12, 0)
UNNAMED = (AMPERE, 12.7)
"""Capability and TFLOP/s of a card given by its size alone: an RTX 3060's."""
MODELS: dict[str, tuple[float, tuple[int, int], float]] = {
    "1650": (4, TURING, 3.0), "1660": (6, TURING, 5.0), "1660 super": (6, TURING, 5.0), "1660 ti": (6, TURING, 5.4),
    "2060": (6, TURING, 6.5), "2060 super": (8, TURING, 7.2), "2070": (8, TURING, 7.5), "2070 super": (8, TURING, 9.1),
    "2080": (8, TURING, 10.1), "2080 super": (8, TURING, 11.2), "2080 ti": (11, TURING, 13.4),
    "3050": (8, AMPERE, 9.1), "3060": (12, AMPERE, 12.7), "3060 ti": (8, AMPERE, 16.2), "3070": (8, AMPERE, 20.3),
    "3070 ti": (8, AMPERE, 21.7), "3080": (10, AMPERE, 29.8), "3080 ti": (12, AMPERE, 34.1),
    "3090": (24, AMPERE, 35.6), "3090 ti": (24, AMPERE, 40.0),
    "4060": (7.6, ADA, 15.1), "4060 ti": (8, ADA, 22.1), "4070": (12, ADA, 29.1), "4070 super": (12, ADA, 35.5),
    "4070 ti": (12, ADA, 40.1), "4070 ti super": (16, ADA, 44.1), "4080": (16, ADA, 48.7),
    "4080 super": (16, ADA, 52.2), "4090": (24, ADA, 82.6),
    "5060": (8, BLACKWELL, 19.2), "5060 ti": (16, BLACKWELL, 23.7), "5070": (12, BLACKWELL, 30.9),
    "5070 ti": (16, BLACKWELL, 43.9), "5080": (16, BLACKWELL, 56.3), "5090": (32, BLACKWELL, 104.8),
    "t4": (14.5, TURING, 8.1), "v100": (15.7, (7, 0), 15.7), "a10": (22.0, AMPERE, 31.2), "l4": (22.0, ADA, 30.3),
    "a100": (40, (8, 0), 19.5), "h100": (80, (9, 0), 66.9),
}  # fmt: skip
"""Model -> GB as it is sold, or GiB where it gives less than others; capability; fp32 TFLOP/s of the data sheet."""


def read_cards(text: str) -> list[Card]:
    """Return the cards of "8,12,12" (GB as they are sold), "3060,4090" (models) or "7.5" (GiB as they are), on one PC.

    Raises UserError for what is neither.
    """
    parts = [part.strip() for part in text.split(",")]
    return [_card(index, part) for index, part in enumerate(parts)]


def _card(index: int, text: str) -> Card:
    model = re.sub(r"[\s_-]+", " ", text.lower())
    model = re.sub(r"^(nvidia ?)?(geforce ?)?(rtx ?|gtx ?)?", "", model)
    model = re.sub(r"(?<=\d)(?=(ti|super)\b)", " ", model)
    if model in MODELS:
        gb, capability, tflops = MODELS[model]
        return _planned(index, GIB_OF_GB.get(gb, gb), f"NVIDIA {_written(model)}", capability, tflops)
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 0 < size < 1024:
        raise UserError(
            f"--cards has {text!r}{nearest(model, MODELS)}. Give GB as cards are sold (8,12,12) or models (3060,4090)."
        )
    return _planned(index, GIB_OF_GB.get(int(size), size) if size % 1 == 0 else size, "", *UNNAMED)


def _planned(index: int, gib: float, name: str, capability: tuple[int, int], tflops: float) -> Card:
    return Card(
        node_id="here", host="here", index=index, size=gib, gib=gib, num_threads=1, is_virtual=False, name=name,
        capability=capability, total_gib=gib, tflops=tflops,
    )  # fmt: skip


def _written(model: str) -> str:
    """Return a model as NVIDIA writes it."""
    words = " ".join({"ti": "Ti", "super": "SUPER"}.get(word, word.upper()) for word in model.split())
    if not model[0].isdigit():
        return words
    return f"GeForce {'GTX' if model.startswith('16') else 'RTX'} {words}"


def as_planned(cards: Sequence[LocalCard]) -> list[Card]:
    """Return this machine's cards as those of one PC."""
    return [
        Card(
            node_id="here", host="here", index=card.index, size=card.mib / 1024, gib=card.mib / 1024, num_threads=1,
            is_virtual=not card.uuid, uuid=card.uuid, name=card.name, capability=card.capability,
            total_gib=card.total_mib / 1024, tflops=card.tflops,
        )
        for card in cards
    ]  # fmt: skip
