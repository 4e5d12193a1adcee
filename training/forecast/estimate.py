"""Forecast of a job's peak memory, on its card and in host memory, by cause, before anything runs.

Needs no weights and no card: the model's config.json, the job's settings and the lengths of its texts are enough.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from training.batches import Lengths, cut_batch, group_lengths
from training.cache import cached
from training.forecast.memory_estimate import (
    CUDA_CONTEXT,
    NCCL_BUFFERS,
    SAFETY_MARGIN,
    Bytes,
    MemoryEstimate,
    code_hash,
)
from training.precision import AMPERE, Capability
from training.spec import JobSpec

if TYPE_CHECKING:  # torch is loaded only where a forecast is not known
    from training.forecast.depth import Simulation

MIB = 1 << 20
Result = TypeVar("Result")

CUBLAS_WORKSPACE = 33 * MIB
"""PyTorch's cuBLAS workspaces (CUBLAS_WORKSPACE_CONFIG :4096:2:16:8, and 32 MiB for cuBLASLt)."""
ALLOCATOR_SLACK, LEAST_SLACK = 0.04, 192 * MIB
"""What PyTorch's allocator holds beyond the tensors: a share of their bytes, for rounded blocks and gaps, and at least
the constant: segments come in 20 MiB and 2 MiB, for each stream and for large and small tensors of their own."""
PROCESS = 1024 * MIB
"""Host memory of a rank beyond its tensors: Python, the libraries, the data, kernels that oneDNN compiles. Jobs of
`make demo` peak at 0.82 to 0.95 GiB in all, with 0.03 GiB of tensors."""
MARGIN = "safety margin"

ROUNDED = "pinned memory, rounded up"
WRITTEN, KEPT = "checkpoint being written", "best weights kept"


def has_varlen(capability: Capability | None) -> bool:
    """Whether a card of this compute capability has PyTorch's kernel for texts of many lengths (FlashAttention 2)."""
    return capability is None or capability >= AMPERE


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What of a job's data its memory depends on: the largest micro-batches, as the tokens of each of their chunks.
    They need what as many texts would."""

    training: list[list[int]]
    evaluation: list[int]
    accumulates: bool
    """Whether a step adds up several micro-batches."""
    masks: list[int] = field(default_factory=list)
    """Lengths that `training.cpu_attention` keeps a mask for."""


def largest_micro_batch(
    lengths: Lengths,
    token_budget: int,
    most_texts: int,
    world_size: int,
    weigh: Callable[[Sequence[int]], int] = sum,
) -> list[int]:
    """Return the chunks, as their tokens, of the largest micro-batch that `training.batches` could cut for a rank.

    `most_texts` are in a step of all ranks. The largest, by `weigh`, come of texts that are neighbours in length. Texts
    of several chunks may fill the budget in any company, so there it is the longest chunks that it holds.
    """
    ordered = sorted(lengths, key=sum, reverse=True)
    best: list[int] = []
    if ordered and len(ordered[0]) > 1:
        chunks = sorted((length for text in ordered for length in text), reverse=True)
        best = chunks[: token_budget // chunks[0]]
    for first in range(max(1, len(ordered) - most_texts + 1)):
        if first and ordered[first - 1] == ordered[first]:
            continue
        batch = ordered[first : first + most_texts]
        for cut in cut_batch(range(len(batch)), batch, rank=0, world_size=world_size, token_budget=token_budget):
            micro_batch = [length for index in cut for length in batch[index]]
            if weigh(micro_batch) > weigh(best):
                best = micro_batch
    return best


def _attention_squares(lengths: Sequence[int]) -> int:
    """Return how many scores a head of `training.cpu_attention` keeps, which longer texts do without."""
    from training.cpu_attention import LONGEST

    return sum(texts * longest**2 for texts, longest in group_lengths(lengths) if longest < LONGEST)


def shape_of(spec: JobSpec, lengths: Lengths | None, evaluated: Lengths | None, world_size: int) -> Shape:
    """Return the shape of a job on texts of these many tokens (train; all others). Without them, all are longest."""
    from training.cpu_attention import LONGEST

    training, longest = spec.training, spec.data.max_seq_length
    step = training.per_device_train_batch_size * training.gradient_accumulation_steps
    budget, evaluation = training.per_device_train_batch_size * longest, training.per_device_eval_batch_size * longest
    whole = (longest,) * (spec.data.max_chunks if spec.data.long_text == "chunk" else 1)
    train = lengths or [whole] * step * world_size
    others = evaluated or [whole] * training.per_device_eval_batch_size * world_size
    largest = largest_micro_batch(train, budget, step * world_size, world_size)
    squares = largest_micro_batch(train, budget, step * world_size, world_size, _attention_squares)
    masks = {group_lengths([length])[0][1] for length in {length for text in train for length in text}}
    longest_step = sorted(map(len, train), reverse=True)[: step * world_size]
    return Shape(
        masks=sorted(length for length in masks if length < LONGEST),
        training=[largest, squares] if _attention_squares(squares) > _attention_squares(largest) else [largest],
        evaluation=largest_micro_batch(others, evaluation, len(others), world_size),
        accumulates=sum(longest_step) > len(largest) * world_size,
    )


def forecast(
    spec: JobSpec,
    config: dict[str, Any],
    shape: Shape,
    *,
    dtype: str,
    world_size: int,
    on_card: bool,
    capability: Capability | None = None,
) -> MemoryEstimate:
    """Return the peak memory of the first rank. `config` is config.json, `dtype` bf16, fp16 or fp32. A card whose
    compute `capability` is not known counts as one of the Ampere generation.

    Cached by content; else a forked process computes it. Raises UserError for what the trainer would refuse.
    """
    settings = spec.to_dict()
    used = {
        "model": {**settings["model"], "model_name_or_path": ""}, "lora": settings["lora"],
        "training": settings["training"], "max_seq_length": spec.data.max_seq_length, "deepspeed": _content(spec),
        "config": config, "shape": asdict(shape), "dtype": dtype, "world_size": world_size, "on_card": on_card,
        "has_varlen": has_varlen(capability), "code": code_hash(),
    }  # fmt: skip
    key = hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest()[:32]

    def make(target: Path) -> None:
        _load_libraries()
        simulation = _simulate(
            spec, config, shape, dtype=dtype, world_size=world_size, on_card=on_card, capability=capability
        )
        estimate = _add_up(simulation, spec, dtype=dtype, world_size=world_size, on_card=on_card)
        target.write_text(json.dumps(asdict(estimate)), encoding="utf-8")

    return MemoryEstimate(**json.loads(cached(f"forecast/{key}.json", make).read_text(encoding="utf-8")))


def _load_libraries() -> None:
    """Load what every fork needs once, before it, and not in each."""
    for name in ("training.forecast.simulate", "deepspeed", "peft", "bitsandbytes"):
        importlib.import_module(name)


def in_fork(function: Callable[..., Result], *arguments: Any, **options: Any) -> Result:
    """Call a function in a process of its own: torch and DeepSpeed join a group once, and forecasts change them.

    The caller must have run no backward pass itself: torch's autograd counts the devices of a process once, forks
    inherit the count, and a fake card is one more.
    """
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("fork")) as process:
        return process.submit(function, *arguments, **options).result()


def _content(spec: JobSpec) -> Any:
    from training.deepspeed_config import read_deepspeed_config

    return read_deepspeed_config(spec.deepspeed)[0]


def _simulate(
    spec: JobSpec,
    config: dict[str, Any],
    shape: Shape,
    *,
    dtype: str,
    world_size: int,
    on_card: bool,
    capability: Capability | None,
) -> Simulation:
    """Run the job on fake tensors; a deep model's twice, with few layers, for what it would show with all."""
    from transformers import AutoConfig

    from training.forecast import depth
    from training.forecast.simulate import simulate
    from training.plan import Plan
    from training.pretrained import TORCH_DTYPES

    model = AutoConfig.for_model(**config)
    kind = TORCH_DTYPES[dtype]

    def run(model: Any) -> Simulation:
        options = {"on_card": on_card, "has_varlen": has_varlen(capability)}
        return in_fork(simulate, spec, Plan.of(spec), model, kind, world_size, shape, **options)

    zero = _content(spec).get("zero_optimization", {})
    pair = depth.depths(model, kind.itemsize, spec.model.quantization, zero)
    if pair is not None and not depth.tells_layers_apart(spec.lora.target_modules):
        few, more = (run(depth.of_depth(model, layers)) for layers in pair)
        simulation = depth.extrapolate(few, more, pair[0], model.num_hidden_layers, depth.bucket_of(zero))
        if simulation is not None:
            return simulation
    return run(model)


def _add_up(simulation: Simulation, spec: JobSpec, *, dtype: str, world_size: int, on_card: bool) -> MemoryEstimate:
    """Add what a simulation does not show."""
    phases = simulation.largest()
    kept, written = (4 if dtype == "fp32" else 2) * simulation.trained, 12 * simulation.trained
    for name in ("training", "evaluation", "saving", "verifying"):
        phases[name].setdefault("host", {})[KEPT] = kept
    phases["saving"]["host"][WRITTEN] = written
    if dtype != "fp32" or _content(spec).get("zero_optimization", {}).get("stage"):
        # DeepSpeed puts a parameter and its moments together where they are, before they are copied.
        saving = phases["saving"].setdefault("card" if on_card else "host", {})
        saving[WRITTEN] = saving.get(WRITTEN, 0) + 12 * simulation.largest_trained
    if on_card and spec.model.quantization == "none":
        phases["loading"].setdefault("host", {})["weights on their way to the card"] = simulation.base_on_card
    # Blocks of a power of two are what PyTorch's allocator of pinned memory gives; they stay to the end.
    rounded = sum((1 << max(0, size - 1).bit_length()) - size for size in simulation.pinned)
    for causes in phases.values() if rounded else ():
        causes.setdefault("host", {})[ROUNDED] = rounded
    tensors = {
        name: {place: sum(causes.values()) for place, causes in places.items()} for name, places in phases.items()
    }
    for name in ("training", "evaluation"):
        phases[name]["host"][WRITTEN] = written  # beside the steps that follow
    card, card_phase = _largest(phases, "card")
    host, host_phase = _largest(phases, "host")
    card, host = (side | {MARGIN: round(SAFETY_MARGIN * sum(side.values()))} if side else {} for side in (card, host))
    if on_card:
        slack = max(LEAST_SLACK, round(ALLOCATOR_SLACK * sum(card.values())))
        card = card | {"allocator slack": slack, "CUDA context": CUDA_CONTEXT, "cuBLAS workspace": CUBLAS_WORKSPACE}
        if world_size > 1:
            card["NCCL buffers"] = NCCL_BUFFERS
    phase = card_phase if on_card else host_phase
    return MemoryEstimate(card=card, host=host | {"process": PROCESS}, phase=phase, tensors=tensors)


def _largest(phases: dict[str, dict[str, Bytes]], place: str) -> tuple[Bytes, str]:
    """Return what is alive in the phase that needs most of this memory, and its name."""
    name = max(phases, key=lambda name: sum(phases[name].get(place, {}).values()))
    return phases[name].get(place, {}), name
