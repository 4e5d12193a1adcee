"""Runs a job's loading, training steps and evaluation on fake tensors, DeepSpeed and all, and says what was alive."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial, wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from training import rank
from training.adapter import padded_batches
from training.batches import StepPlan
from training.card_memory import pinned
from training.card_memory.release import release
from training.cpu_attention import causal_mask
from training.deepspeed_config import fill_auto, read_deepspeed_config, zero_stage
from training.engine import release_gathered, trainable_parameters
from training.evaluation import to_device
from training.forecast.base import fake_base, fake_base_in_layers, stand_ins
from training.forecast.depth import Peaks, Simulation, mark_layers
from training.forecast.estimate import Shape
from training.forecast.live import LiveBytes
from training.forecast.world import CARD, PINNED, fake_world
from training.fused import plain_rotary
from training.loop import optimizer_step
from training.model import add_adapter
from training.optimizer_state import parameter_shape
from training.plan import Plan
from training.recorder import SilentRecorder
from training.spec import SINGLE_LABEL, JobSpec
from training.tokens import TokenizedSplit
from training.verification.verify import MOST_TEXTS, texts_of_a_pass

BASE, ADAPTER, OPTIMIZER = "base weights", "adapter and head", "optimizer states"
MASKS = "attention masks"
ACTIVATIONS, GRADIENTS, GATHERED, DEQUANTIZED = "activations", "gradients", "gathered weights", "dequantized weights"


def simulate(
    spec: JobSpec,
    plan: Plan,
    config: Any,
    dtype: torch.dtype,
    world_size: int,
    shape: Shape,
    *,
    on_card: bool,
    has_varlen: bool = True,
) -> Simulation:
    """Run the job's first two steps and an evaluation; without a card all of it is in host memory.

    `config` is the model's, as a classifier. Raises UserError for what the trainer would refuse.
    """
    content, source = read_deepspeed_config(spec.deepspeed)
    filled = fill_auto(content, source, spec.training, world_size=world_size, dtype=dtype, cuda=on_card)
    filled |= plan.deepspeed_sizes()
    live = LiveBytes(stand_ins(), causes())
    phases = _Phases(live)
    with fake_world(world_size, on_card=on_card, has_varlen=has_varlen) as (ranks, device), live:
        live.cause = ADAPTER
        material = fake_material(config, dtype, shape)
        follow_start(live)
        run, _ = rank.build_run(
            spec, plan, ranks, SilentRecorder(), Path(), material, filled, device, None, lambda _: None, None,
            _within(live.because(BASE), partial(fake_base, begin=live.enter)),
        )  # fmt: skip
        count_causes(live, run.engine)
        layers = [part for part in run.engine.module.modules() if isinstance(part, GradientCheckpointingLayer)]
        mark_layers(live, run.engine.module, layers)
        base_on_card = live.live[CARD, BASE]
        phases.end("loading")
        if not on_card and dtype == torch.bfloat16 and run.engine.module.packed:
            live.cause = MASKS
            for length in shape.masks:
                causal_mask(length, config.num_attention_heads // config.num_key_value_heads)
        live.cause = ACTIVATIONS
        _train(run, phases, list(largest_steps(shape, world_size)), shape, zero_stage(filled))
        trained = [parameter_shape(each).numel() for each in trainable_parameters(run.engine.module).values()]
        run.engine.destroy()
        release(run.engine)
        del run, layers
        live.restart()
        _verify(spec, config, dtype, shape, device, live)
        phases.end("verifying")
    return Simulation(
        peaks=phases.peaks, trained=sum(trained), largest_trained=max(trained), base_on_card=base_on_card,
        pinned=tuple(PINNED),
    )  # fmt: skip


class _Phases:
    """The peaks of a job, phase by phase."""

    def __init__(self, live: LiveBytes) -> None:
        self.live = live
        self.peaks: Peaks = {}

    def end(self, phase: str, part: str = "") -> None:
        """Keep the peaks since the last end as those of a phase; `part` tells its repetitions apart."""
        for (device, site), peak in self.live.peaks.items():
            known = self.peaks.setdefault(phase, {}).setdefault(f"{part} {site}", {})
            place = "card" if device == CARD else "host"
            causes = {cause: size for (where, cause), size in peak.items() if size and where == device}
            if sum(causes.values()) >= sum(known.get(place, {}).values()):
                known[place] = causes
        self.live.enter("")
        self.live.restart()


def _train(run: Any, phases: _Phases, steps: list[StepPlan], shape: Shape, stage: int) -> None:
    """Make each step twice: AdamW has its states from the second on. Evaluations come where they need most."""

    def evaluate() -> None:
        run.engine.eval()
        with torch.no_grad():
            inputs, _ = to_device(run.validation, list(range(len(shape.evaluation))), run.device)
            run.engine(*inputs)
        run.engine.train()
        phases.end("evaluation")
        release_gathered(run.engine)  # the persistent ones too, which the next pass fetches together with its first

    # They come between as in a job under ZeRO-3, which fetches ahead what it saw used before.
    if stage == 3:
        evaluate()
    for index, step in enumerate([*steps, *steps]):
        optimizer_step(run, step, index, 1e-3)
        phases.end("training", str(index))
        phases.end("saving")
        if stage == 3:
            evaluate()
    evaluate()  # under ZeRO-3 as the last one, of the best weights put back


def _verify(
    spec: JobSpec, config: Any, dtype: torch.dtype, shape: Shape, device: torch.device, live: LiveBytes
) -> None:
    """Do what training.verification does, with an adapter that was never saved."""
    budget = spec.training.per_device_eval_batch_size * spec.data.max_seq_length
    texts = texts_of(sorted(shape.evaluation, reverse=True)[:MOST_TEXTS])
    num_texts, batch_size = texts_of_a_pass(texts.lengths, budget)
    base = fake_base_in_layers(spec.model, "", config, dtype, device, live.because(BASE))
    with live.because(ADAPTER):
        model = add_adapter(base, spec.lora, dtype).to(device).eval()
    with torch.no_grad(), plain_rotary():
        for batch in padded_batches(texts, num_texts, device, batch_size, 0):
            model(**batch).logits.float().cpu()


START_ENGINE: Callable[..., Any] = rank.start_engine  # type: ignore[attr-defined]


def causes() -> dict[Any, str]:
    """Return operations whose outputs have a cause of their own."""
    collective = torch.ops.c10d
    gathers = (collective._allgather_base_, collective.allgather_, collective.allgather_into_tensor_coalesced_)
    return {torch.ops.bitsandbytes.dequantize_4bit: DEQUANTIZED} | dict.fromkeys(gathers, GATHERED)


def follow_start(live: LiveBytes) -> None:
    """Have what DeepSpeed makes at its start counted as such, and its partitioning of weights apart."""
    from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload as Offload

    start = _within(live.at("engine"), START_ENGINE)
    rank.start_engine = _within(live.because(OPTIMIZER), start)  # type: ignore[attr-defined]
    pinned.locked_pages = _within(live.because(BASE), pinned.locked_pages)
    Offload._convert_to_zero_parameters = _within(live.at("partitioning"), Offload._convert_to_zero_parameters)


def count_causes(live: LiveBytes, engine: Any) -> None:
    """Have gradients, gathered weights and what the optimizer makes counted as such."""
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator as Coordinator

    Coordinator.fetch_sub_module = _within(live.because(GATHERED), Coordinator.fetch_sub_module)
    engine.step = _within(live.at("step"), _within(live.because(OPTIMIZER), engine.step))
    engine.allreduce_gradients = _within(live.at("reduction"), engine.allreduce_gradients)
    for parameter in trainable_parameters(engine.module).values():
        parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
            lambda parameter: live.note(parameter.grad, GRADIENTS) if parameter.grad is not None else None
        )


def _within(context: AbstractContextManager[None], function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that runs in a context, which must be one that can be entered again."""

    @wraps(function)
    def inside(*arguments: Any, **options: Any) -> Any:
        with context:
            return function(*arguments, **options)

    return inside


def largest_steps(shape: Shape, world_size: int) -> Iterator[StepPlan]:
    """Yield a step of each of the largest micro-batches."""
    first = 0
    for texts in shape.training:
        micro_batches = [list(range(first, first + len(texts)))] * (2 if shape.accumulates else 1)
        yield StepPlan(micro_batches=micro_batches, num_samples=len(texts) * len(micro_batches) * world_size)
        first += len(texts)


def fake_material(config: Any, dtype: torch.dtype, shape: Shape) -> Any:
    """Return a Material of texts of these lengths."""
    splits = {
        "train": texts_of([length for texts in shape.training for length in texts]),
        "validation": texts_of(shape.evaluation),
    }
    corpus = SimpleNamespace(
        label_names=[str(label) for label in range(config.num_labels)],
        problem_type=SINGLE_LABEL,  # no other loss takes memory worth a name
        facts={"sha256": {"train": ""}},
    )
    return SimpleNamespace(checkpoint="", config=config, dtype=dtype, splits=splits, corpus=corpus)


def texts_of(lengths: list[int]) -> TokenizedSplit:
    """Return texts of these many tokens."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = [str(number) for number in range(len(lengths))]
    tokens = np.zeros(int(offsets[-1]), dtype=np.int32)
    return TokenizedSplit.of_texts(ids, [0] * len(lengths), tokens, offsets)
