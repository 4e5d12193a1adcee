"""What takes a job time: how many of each thing a rank does, and what one of each costs. Light: the launcher reads it.

`amounts` of a job and those of a calibration's measured steps are the same sums, so that what is fitted to one holds
for the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from training.forecast.memory_estimate import Work
from training.spec import JobSpec

BYTES_A_WEIGHT = {"nf4": 0.56, "int8": 1.0}
"""In storage, with the scales of their blocks."""


@dataclass(frozen=True, kw_only=True)
class Quantities:
    """A number for each thing that takes a rank time: how many of it a job has, or the seconds that one costs."""

    operations: float = 0.0
    """Multiplications and additions: two a weight and token in forward, as many for the gradients of what flows back
    through frozen weights (Kaplan et al. 2020, arXiv:2001.08361, 2.1), and six a weight of the adapter, which has
    gradients of its own."""
    activations: float = 0.0
    """Numbers that go in and out of linear layers, in forward and again in backward."""
    attended: float = 0.0
    """Pairs of positions x hidden size x layers, in forward and again in backward."""
    layers: float = 0.0
    """Layers passed forward and backward, over all micro-batches."""
    layers_stage3: float = 0.0
    """Those of ZeRO-3, which gathers and releases each."""
    micro_batches: float = 0.0
    steps: float = 0.0
    steps_of_ranks: float = 0.0
    """Those that add up gradients of several ranks."""
    steps_offloaded: float = 0.0
    """Those whose optimizer works in host memory."""
    weights_updated: float = 0.0
    """Trained weights x steps."""
    bytes_offloaded: float = 0.0
    """Weights that come from host memory."""
    bytes_gathered: float = 0.0
    """Weights that come from other ranks."""
    weights_dequantized: float = 0.0
    starts: float = 0.0
    """One: processes and libraries, the process group, the last evaluation, the proof that the adapter loads."""
    starts_stage3: float = 0.0
    """One of a job of ZeRO-3."""
    other_ranks: float = 0.0
    """Ranks beyond the first."""
    layers_built: float = 0.0
    """Layers made with their adapters: for training, and to prove that the adapter loads."""
    weights_loaded: float = 0.0
    weights_quantized: float = 0.0
    evaluated_operations: float = 0.0
    """Those of evaluations, a forward pass alone: some CPUs multiply by a transposed matrix at another speed."""
    evaluated_layers: float = 0.0
    evaluations: float = 0.0
    """Each with its checkpoint."""
    evaluations_stage3: float = 0.0
    evaluations_of_ranks: float = 0.0

    def __add__(self, other: Quantities) -> Quantities:
        """Return the sum, thing by thing."""
        return Quantities(**{item.name: getattr(self, item.name) + getattr(other, item.name) for item in fields(self)})

    def times(self, number: float) -> Quantities:
        """Return so many of all."""
        return Quantities(**{item.name: number * getattr(self, item.name) for item in fields(self)})


def seconds(costs: Quantities, amounts: Quantities) -> float:
    """Return the expected time of so much."""
    return math.fsum(getattr(costs, item.name) * getattr(amounts, item.name) for item in fields(costs))


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What of a model and its setting a step's costs depend on."""

    work: Work
    """The model's figures; its tokens are not read."""
    quantization: str
    dtype: str
    stage: int
    num_ranks: int
    recomputes: bool
    offloads_optimizer: bool
    offloads_base: bool
    """From host memory to a card."""


def step_amounts(shape: Shape, *, tokens: float, pairs: float, micro_batches: float, steps: float = 1.0) -> Quantities:
    """Return what a rank does in steps of so many tokens (its own) and pairs of positions within their texts."""
    work = shape.work
    passes = 3 if shape.recomputes else 2
    lora = (6 + 2 * shape.recomputes) * work.trained
    weight_bytes = 4.0 if shape.dtype == "fp32" else 2.0
    base_bytes = work.parameters * BYTES_A_WEIGHT.get(shape.quantization, weight_bytes)
    layers = micro_batches * work.layers * passes / 2
    several = shape.num_ranks > 1
    return Quantities(
        operations=tokens * (2 * passes * work.parameters + lora),
        activations=tokens * work.activations * passes,
        attended=pairs * work.hidden * work.layers * passes,
        layers=layers,
        layers_stage3=layers if shape.stage == 3 else 0.0,
        micro_batches=micro_batches,
        steps=steps,
        steps_of_ranks=steps if several else 0.0,
        steps_offloaded=steps if shape.offloads_optimizer else 0.0,
        weights_updated=steps * work.trained,
        bytes_offloaded=passes * micro_batches * base_bytes if shape.offloads_base else 0.0,
        bytes_gathered=passes * micro_batches * base_bytes * (shape.num_ranks - 1) / shape.num_ranks
        if shape.stage == 3 else 0.0,
        weights_dequantized=passes * micro_batches * work.parameters if shape.quantization != "none" else 0.0,
    )  # fmt: skip


def evaluation_amounts(shape: Shape, *, tokens: float, pairs: float, micro_batches: float) -> Quantities:
    """Return what a rank does to evaluate so many tokens (its own): a forward pass, without what is around it."""
    training = step_amounts(replace(shape, recomputes=False), tokens=tokens, pairs=pairs, micro_batches=micro_batches)
    forward = training.times(0.5)
    return replace(
        forward,
        operations=0.0,
        layers=0.0,
        layers_stage3=0.0,
        micro_batches=0.0,
        evaluated_operations=2 * tokens * (shape.work.parameters + shape.work.trained),
        evaluated_layers=micro_batches * shape.work.layers,
        steps=0.0, steps_of_ranks=0.0, steps_offloaded=0.0, weights_updated=0.0,
    )  # fmt: skip


def loading_amounts(shape: Shape) -> Quantities:
    """Return what it takes to make the model once."""
    work = shape.work
    quantized = work.parameters if shape.quantization != "none" else 0
    return Quantities(
        layers_built=work.layers, weights_loaded=work.weights, weights_quantized=quantized,
        starts_stage3=1.0 if shape.stage == 3 else 0.0,
    )  # fmt: skip


def evaluations_amounts(shape: Shape, number: float) -> Quantities:
    """Return what is around so many evaluations: metrics, and a checkpoint of each."""
    return Quantities(
        evaluations=number,
        evaluations_stage3=number if shape.stage == 3 else 0.0,
        evaluations_of_ranks=number if shape.num_ranks > 1 else 0.0,
    )


def job_amounts(spec: JobSpec, shape: Shape) -> Quantities:
    """Return all that a rank of a job does, from its start to its end."""
    work, training, ranks = shape.work, spec.training, shape.num_ranks
    # Micro-batches hold as many texts as fit a token budget (training.batches).
    budget = training.per_device_train_batch_size * spec.data.max_seq_length
    filled = max(1.0, work.tokens / max(1, work.steps) / ranks / budget)
    micro_batches = work.steps * math.ceil(filled)
    trained = step_amounts(
        shape, tokens=work.tokens / ranks, pairs=work.pairs / ranks, micro_batches=micro_batches, steps=work.steps
    )
    budget = training.per_device_eval_batch_size * spec.data.max_seq_length
    passes = max(work.evaluations, math.ceil(work.evaluated_tokens / ranks / budget))
    evaluated = evaluation_amounts(
        shape, tokens=work.evaluated_tokens / ranks, pairs=work.evaluated_pairs / ranks, micro_batches=passes
    )
    # Again to prove that the adapter loads, by the first rank.
    made = replace(loading_amounts(shape).times(2.0), starts_stage3=1.0 if shape.stage == 3 else 0.0)
    whole = Quantities(starts=1.0, other_ranks=ranks - 1.0)
    return trained + evaluated + made + whole + evaluations_amounts(shape, work.evaluations)
