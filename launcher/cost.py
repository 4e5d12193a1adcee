"""How long a job takes under a setting: what a step does, times what each of it costs on a kind of card.

The costs are guesses, of data sheets for cards and of a PC's core for the CPU: good for an order, not for a date.
benchmarks/planner.py fits them to measured steps, and checks whether the setting they pick is as fast as the best.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

from training.forecast.memory_estimate import Work
from training.spec import JobSpec

BYTES_A_WEIGHT = {"nf4": 0.56, "int8": 1.0}
"""In storage, with the scales of their blocks."""


@dataclass(frozen=True, kw_only=True)
class Quantities:
    """A number for each thing that takes a rank time: how many of it a job has, or the seconds that one costs."""

    operations: float
    """Multiplications and additions: two a weight and token in forward, as many for the gradients of what flows back
    through frozen weights (Kaplan et al. 2020, arXiv:2001.08361, 2.1, less the gradients of the weights)."""
    layers: float
    """Layers passed forward and backward, over all micro-batches."""
    layers_stage3: float
    """Those of ZeRO-3, which gathers and releases each."""
    steps: float
    steps_offloaded: float
    """Those whose optimizer works in host memory."""
    bytes_offloaded: float
    """Weights that come from host memory."""
    bytes_gathered: float
    """Weights that come from other ranks."""
    weights_dequantized: float


def seconds(costs: Quantities, amounts: Quantities) -> float:
    """Return the expected time of a job, without its start-up."""
    return math.fsum(cost * amount for cost, amount in zip(astuple(costs), astuple(amounts), strict=True))


CARD = Quantities(
    operations=1e-13,  # a third of what an RTX 3060 multiplies in bf16
    layers=1.5e-3,
    layers_stage3=1e-3,
    steps=5e-3,
    steps_offloaded=2e-2,
    bytes_offloaded=1e-10,  # PCIe 3.0 x16, pinned
    bytes_gathered=2e-10,  # by way of host memory: consumer cards have no peer-to-peer
    weights_dequantized=1e-11,
)
CPU = Quantities(
    operations=5e-11,
    layers=1e-3,
    layers_stage3=2e-3,
    steps=2e-2,
    steps_offloaded=1e-2,
    bytes_offloaded=2e-10,
    bytes_gathered=1e-9,
    weights_dequantized=1e-9,
)
"""Of one core of a PC."""


def amounts(spec: JobSpec, work: Work, stage: int, *, offloads_optimizer: bool, offloads_base: bool) -> Quantities:
    """Return what a rank of a job does; `stage` and offloads are those of its DeepSpeed file."""
    training, ranks = spec.training, spec.num_ranks
    # Micro-batches hold as many texts as fit a token budget (training.batches).
    budget = training.per_device_train_batch_size * spec.data.max_seq_length
    micro_batches = work.steps * max(1, math.ceil(work.tokens / max(1, work.steps) / ranks / budget))
    passes = 3 if training.gradient_checkpointing else 2
    operations = work.parameters * (2 * passes * work.tokens + 2 * work.evaluated_tokens) / ranks
    unquantized = 4.0 if spec.model.dtype == "fp32" else 2.0
    base_bytes = work.parameters * BYTES_A_WEIGHT.get(spec.model.quantization, unquantized)
    quantized = spec.model.quantization != "none"
    layers = micro_batches * work.layers * passes / 2
    return Quantities(
        operations=operations,
        layers=layers,
        layers_stage3=layers if stage == 3 else 0.0,
        steps=work.steps,
        steps_offloaded=work.steps if offloads_optimizer else 0.0,
        bytes_offloaded=passes * micro_batches * base_bytes if offloads_base else 0.0,
        bytes_gathered=passes * micro_batches * base_bytes * (ranks - 1) / ranks if stage == 3 else 0.0,
        weights_dequantized=passes * micro_batches * work.parameters if quantized else 0.0,
    )
