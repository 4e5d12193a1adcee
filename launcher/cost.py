"""How long a job takes under a setting: what a step does, times what each of it costs on a kind of card.

The costs are fitted to measured steps by benchmarks/planner.py, which also checks that the setting it picks is as fast
as the best. No card was at hand for those of cards: they are what data sheets say, and good for an order only.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

from training.forecast.memory_estimate import Work
from training.spec import JobSpec

BYTES_A_WEIGHT = {"nf4": 0.56, "int8": 1.0}
"""In storage, with the scales of their blocks."""


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """What a rank does in a whole job, in the order of Costs."""

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
    """Weights and gradients that come from other ranks."""
    weights_dequantized: float


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds for one of each of Amounts, on a kind of card."""

    operations: float
    layers: float
    layers_stage3: float
    steps: float
    steps_offloaded: float
    bytes_offloaded: float
    bytes_gathered: float
    weights_dequantized: float

    def seconds(self, amounts: Amounts) -> float:
        """Return the expected time of a job, without its start-up."""
        return math.fsum(cost * amount for cost, amount in zip(astuple(self), astuple(amounts), strict=True))


CARD = Costs(
    operations=1e-13,  # a third of what an RTX 3060 multiplies in bf16
    layers=1.5e-3,
    layers_stage3=1e-3,
    steps=5e-3,
    steps_offloaded=2e-2,
    bytes_offloaded=1e-10,  # PCIe 3.0 x16, pinned
    bytes_gathered=2e-10,  # by way of host memory: consumer cards have no peer-to-peer
    weights_dequantized=1e-11,
)
CPU = Costs(
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


def amounts(spec: JobSpec, work: Work, stage: int, *, offloads_optimizer: bool, offloads_base: bool) -> Amounts:
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
    return Amounts(
        operations=operations,
        layers=layers,
        layers_stage3=layers if stage == 3 else 0.0,
        steps=work.steps,
        steps_offloaded=work.steps if offloads_optimizer else 0.0,
        bytes_offloaded=passes * micro_batches * base_bytes if offloads_base else 0.0,
        bytes_gathered=passes * micro_batches * base_bytes * (ranks - 1) / ranks if stage == 3 else 0.0,
        weights_dequantized=passes * micro_batches * work.parameters if quantized else 0.0,
    )
