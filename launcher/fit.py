"""Whether a job fits the cards, by its forecast: what it asks of them, and what is said where it cannot be had."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from launcher.board import Request
from launcher.cards import GIB, Card, Node
from launcher.forecast import Forecast
from launcher.schedule import room_for
from training.forecast.memory_estimate import JobForecast, MemoryEstimate
from training.spec import JobSpec

OPERATIONS_A_SECOND = 1e13
"""Of a card. Jobs are ordered by their expected time, so its true speed matters little; running jobs say theirs."""


def needed(forecast: MemoryEstimate, *, on_card: bool) -> int:
    """Return the bytes a card must have for a rank; a virtual card's rank is in host memory."""
    return forecast.card_bytes if on_card else forecast.host_bytes


def request(name: str, spec: JobSpec, forecast: Forecast, cards: Sequence[Card], *, on_card: bool) -> Request:
    """Return what a job asks of the scheduler; whole cards, the largest there are enough of, where no forecast is."""
    if isinstance(forecast, JobForecast):
        memory = forecast.memory
        return Request(
            job=name,
            num_ranks=spec.num_ranks,
            card_gib=_up(needed(memory, on_card=on_card)),
            host_gib=_up(memory.host_bytes),
            seconds=forecast.work.operations / spec.num_ranks / OPERATIONS_A_SECOND,
        )
    sizes = [size for size, number in Counter(card.size for card in cards).items() if number >= spec.num_ranks]
    return Request(job=name, num_ranks=spec.num_ranks, card_gib=float(max(sizes, default=1)))


def _up(size: int) -> float:
    """Return bytes as GiB, rounded up to what Ray can count."""
    return math.ceil(size / GIB * 100) / 100


def refusal(spec: JobSpec, asked: Request, cards: Sequence[Card], nodes: Mapping[str, Node]) -> str | None:
    """Return why a job fits nowhere even when nothing else runs, and what would help; None where it fits."""
    if room_for(asked, cards, nodes):
        return None
    sizes = [card.size for card in cards]
    if room_for(Request(job="", num_ranks=asked.num_ranks, card_gib=asked.card_gib), cards, nodes):
        most = max(node.host_gib for node in nodes.values())
        return (
            f"It needs {asked.host_gib:.2f} GiB of host memory a rank, and the nodes have {most:.1f} at most for "
            f"{asked.num_ranks} of them. {_ways(spec)}"
        )
    return explain(spec, asked.card_gib, sizes)


def explain(spec: JobSpec, card_gib: float, sizes: Sequence[float]) -> str:
    """Return why cards of these sizes do not hold a job, and which settings that would help it does not have yet."""
    most = max(Counter(sizes).values(), default=0)
    if spec.num_ranks > most:
        return (
            f"num_ranks is {spec.num_ranks} and there are {most} cards of one size at most. Set a smaller num_ranks, "
            "or add cards (cards_gib where there is no GPU)."
        )
    largest = max(size for size, number in Counter(sizes).items() if number >= spec.num_ranks)
    return f"It needs {card_gib:.2f} GiB a rank and the largest card it could have has {largest:g}. {_ways(spec)}"


def _ways(spec: JobSpec) -> str:
    offload = "ds_configs/zero3_offload_param.json"
    ways = {
        "a smaller training.per_device_train_batch_size with more gradient_accumulation_steps":
            spec.training.per_device_train_batch_size > 1,
        "training.gradient_checkpointing: true": not spec.training.gradient_checkpointing,
        "model.quantization: nf4": spec.model.quantization != "nf4",
        f"deepspeed: {offload}": spec.deepspeed != offload,
        "a smaller data.max_seq_length": True,
    }  # fmt: skip
    return f"What saves memory: {'; '.join(way for way, is_new in ways.items() if is_new)}."
