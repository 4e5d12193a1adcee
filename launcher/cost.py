"""How long a job takes under a setting, from its start to its end, by what was measured of the card or CPU it runs on.

`shoal calibrate` measures; until then the costs are guesses, of data sheets for cards and of a PC's core for the CPU:
good for an order, not for a date. benchmarks/planner.py checks whether the setting they pick is as fast as the best,
benchmarks/planned_time.py whether jobs take what was planned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from launcher.cards import Card, CardKind
from launcher.links import Link
from launcher.speed import REFERENCE_TFLOPS, tflops
from training.calibration.costs import Quantities, Shape, job_amounts, seconds
from training.calibration.record import CardRecord, card_record, kind_of, read_record, this_cpu
from training.forecast.memory_estimate import Work
from training.spec import JobSpec

GRADIENT_BYTES = 2
"""Of each trained weight, in bf16; twice that in fp32, of a small number."""

CARD = Quantities(
    operations=1e-13,  # two fifths of what an RTX 3060 multiplies in bf16
    layers=1.5e-3,
    layers_stage3=1e-3,
    steps=5e-3,
    steps_offloaded=2e-2,
    bytes_offloaded=1e-10,  # PCIe 3.0 x16, pinned
    bytes_gathered=2e-10,  # by way of host memory: consumer cards have no peer-to-peer
    weights_dequantized=1e-11,
    starts=15.0,
    other_ranks=2.0,
    layers_built=2e-2,
    weights_loaded=2e-9,  # from an SSD, in bf16
    evaluated_operations=1e-13,
    evaluated_layers=7e-4,
    evaluations=0.1,
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
    starts=12.0,
    other_ranks=3.0,
    layers_built=2e-2,
    weights_loaded=2e-9,
    weights_quantized=1e-7,
    evaluated_operations=5e-11,
    evaluated_layers=5e-4,
    evaluations=0.1,
)
"""Of one core of a PC."""


def cpu_record() -> CardRecord | None:
    """Return what was measured of this machine's CPU, if it was."""
    return read_record(*this_cpu())


def costs_on(kind: CardKind | None, precision: str) -> Quantities:
    """Return what each thing is guessed to cost on a kind of card in a precision; None stands for an RTX 3060 in bf16.
    Cards differ in how fast they multiply; how fast bytes come and kernels start is the PC's."""
    factor = REFERENCE_TFLOPS / tflops(kind, precision) if kind else 1.0
    return replace(CARD, operations=CARD.operations * factor, evaluated_operations=CARD.evaluated_operations * factor)


def records_of(cards: Sequence[Card], *, on_card: bool) -> dict[str, CardRecord | None]:
    """Return name of a card -> what was measured of its kind, if it was; virtual cards have this machine's CPU."""
    return {name: card_record(name) if on_card else cpu_record() for name in {card.name for card in cards}}


def expected_seconds(
    spec: JobSpec,
    work: Work,
    *,
    on_card: bool,
    record: CardRecord | None = None,
    link: Link | None = None,
    kind: CardKind | None = None,
) -> float:
    """Return how long a job takes by the costs that were measured, else by those guessed for a kind of card.

    `link` is what its ranks talk by where they are on several PCs.
    """
    content = spec.deepspeed if isinstance(spec.deepspeed, dict) else {}
    zero = content.get("zero_optimization") or {}

    def offloads(key: str) -> bool:
        return str((zero.get(key) or {}).get("device", "none")) != "none"

    shape = Shape(
        work=work, quantization=spec.model.quantization, dtype=work.dtype, stage=int(zero.get("stage", 0)),
        num_ranks=spec.num_ranks, recomputes=spec.training.gradient_checkpointing,
        offloads_optimizer=offloads("offload_optimizer"), offloads_base=on_card and offloads("offload_param"),
    )  # fmt: skip
    costs = measured_costs(spec, work, record) or (costs_on(kind, work.dtype) if on_card else CPU)
    amounts = job_amounts(spec, shape)
    return seconds(costs, amounts) + (0.0 if link is None else seconds_on_link(costs, amounts, spec, link))


def seconds_on_link(costs: Quantities, amounts: Quantities, spec: JobSpec, link: Link) -> float:
    """Return how much longer a job takes where its ranks send over a link between PCs: base and gradients.

    By NCCL's rings: a rank receives what others hold of the base once, and a sum of gradients twice.
    """
    a_byte = 1.0 / link.bytes_per_second
    gradients = 2 * (spec.num_ranks - 1) / spec.num_ranks * GRADIENT_BYTES * amounts.weights_updated
    return amounts.bytes_gathered * max(0.0, a_byte - costs.bytes_gathered) + gradients * a_byte


def measured_costs(spec: JobSpec, work: Work, record: CardRecord | None) -> Quantities | None:
    """Return what was measured for a job's precision and quantization, if it was."""
    return record.costs.get(kind_of(work.dtype, spec.model.quantization)) if record else None
