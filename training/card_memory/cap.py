"""What a rank may take of a card that it shares, and whether more is to be had where that was too little."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from training.forecast.memory_estimate import CUDA_CONTEXT, GIB, NCCL_BUFFERS
from training.ranks import Ranks

MORE_SHARE, MORE_BYTES = 0.15, 512 << 20
"""What a job asks for beyond what did not do: a share of it, and at least so many bytes."""
LEAST_GAIN = 64 << 20
"""Fewer bytes than these more are no other try worth."""


@dataclass(frozen=True, kw_only=True)
class CardSpace:
    """Bytes of a card, as CUDA tells them."""

    free: int
    total: int


def card_space() -> CardSpace:
    """Return the space of the current card. The one place that asks CUDA; tests have another."""
    free, total = torch.cuda.mem_get_info()
    return CardSpace(free=free, total=total)


def share_of_pytorch(gib: float, world_size: int) -> int:
    """Return the bytes that PyTorch's tensors may take of what is reserved: CUDA and NCCL take theirs beside them."""
    beside = CUDA_CONTEXT + (NCCL_BUFFERS if world_size > 1 else 0)
    return max(0, round(gib * GIB) - beside)


def limit_card_memory(ranks: Ranks) -> None:
    """Let this process have no more of its card than it may: it must not starve its neighbours.

    It runs out of memory instead, and goes on with more where the card has it, else with a smaller plan.
    """
    if ranks.card_gib is None:
        return
    share = share_of_pytorch(ranks.card_gib, ranks.world_size)
    torch.cuda.set_per_process_memory_fraction(min(1.0, share / card_space().total))


def more_gib(ranks: Ranks, space: CardSpace) -> float | None:
    """Return how much of each card to ask for after running out of memory; None where that would not help.

    That is the case where no limit was set, where the card itself is full, and where the job had all that any job can
    have of such a card.
    """
    if ranks.card_gib is None or ranks.card_most_gib is None:
        return None
    had = round(ranks.card_gib * GIB)
    wanted = min(had + max(MORE_BYTES, round(MORE_SHARE * had)), round(ranks.card_most_gib * GIB))
    if wanted - had < LEAST_GAIN or space.free < LEAST_GAIN:
        return None
    return wanted / GIB
