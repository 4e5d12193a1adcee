"""Measured steps: small models trained for a few steps of many sizes, by the code that trains every job.

Each measurement is a row: what was done, as `training.calibration.costs` counts it, and the seconds it took.
"""

from __future__ import annotations

import random
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from training.batches import LENGTH_MULTIPLE, StepPlan
from training.calibration.costs import (
    Quantities,
    Shape,
    evaluation_amounts,
    evaluations_amounts,
    loading_amounts,
    step_amounts,
)
from training.calibration.products import DTYPES
from training.calibration.record import kind_of
from training.checkpoint_writer import CheckpointWriter
from training.deepspeed_config import (
    fill_auto,
    offloads_optimizer,
    offloads_parameters,
    read_deepspeed_config,
    zero_stage,
)
from training.engine import process_group
from training.evaluation import compute_metrics
from training.forecast.memory_estimate import Work
from training.loop import note_evaluation, optimizer_step
from training.plan import Plan
from training.pretrained import load_config
from training.rank import build_run
from training.ranks import Ranks
from training.recorder import SilentRecorder
from training.run import TrainingRun, TrainingState
from training.saving import save
from training.spec import SINGLE_LABEL, DataSpec, JobSpec, ModelSpec, TrainingSpec
from training.tokens import TokenizedSplit

MAX_LENGTH = 512
REPEATS = 2
LONGER = (96,) * 16
"""Tokens of the texts of an evaluation without its checkpoint."""
MOST_SECONDS = 0.3
"""A step that takes longer is the last of its setting: the larger ones are not needed to tell what it costs."""
Row = dict[str, Any]
"""{"kind": see kind_of, "what": "step" | "evaluation" | "loading", "amounts": Quantities as a dict, "seconds"}."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A model and how it is trained."""

    hidden: int
    layers: int
    dtype: str = "fp32"
    quantization: str = "none"
    file: str = "zero1"
    recomputes: bool = False
    num_ranks: int = 1
    sizes: tuple[tuple[int, int], ...] = ((1, 16), (8, 32), (2, 256), (16, 64), (1, 512), (32, 64))
    """(texts, most tokens of one) of each step measured, the least work first."""

    def __str__(self) -> str:
        base = "" if self.quantization == "none" else f" on {self.quantization}"
        recompute = ", checkpointing" if self.recomputes else ""
        ranks = f", {self.num_ranks} ranks" if self.num_ranks > 1 else ""
        return f"{self.dtype}{base}, hidden {self.hidden}, {self.file}{recompute}{ranks}"

    def spec(self, model: Path) -> JobSpec:
        """Return a job of this setting."""
        return JobSpec(
            model=ModelSpec(model_name_or_path=str(model), dtype=self.dtype, quantization=self.quantization),  # type: ignore[arg-type]
            data=DataSpec(train_file="none.jsonl", max_seq_length=MAX_LENGTH),
            training=TrainingSpec(gradient_checkpointing=self.recomputes, per_device_train_batch_size=32),
            deepspeed=f"ds_configs/{self.file}.json",
            num_ranks=self.num_ranks,
        )


def measure(
    settings: Sequence[Setting], models: dict[tuple[int, int], tuple[Path, Work]], ranks: Ranks, workdir: Path,
    tell: Callable[[str], None],
) -> list[Row]:  # fmt: skip
    """Measure settings of as many ranks as `ranks` says, in this process; all ranks must call it.

    `models` holds folder and figures by hidden size and layers; `tell` is told each setting before it is measured.
    What cannot be measured here is left out, and its traceback printed.
    """
    rows: list[Row] = []
    with process_group(ranks) as device:
        for setting in settings:
            tell(str(setting))
            try:
                rows += list(_measure_one(setting, *models[setting.hidden, setting.layers], ranks, device, workdir))
            except Exception:  # of this kind alone: a kernel may be missing
                traceback.print_exc()
                if ranks.world_size > 1:  # the others may be waiting for it
                    break
    return rows


def _measure_one(
    setting: Setting, model: Path, work: Work, ranks: Ranks, device: torch.device, workdir: Path
) -> Iterator[Row]:
    """Yield the rows of one setting."""
    spec = setting.spec(model)
    config, source = read_deepspeed_config(spec.deepspeed)
    dtype = DTYPES[setting.dtype]
    plan = Plan.of(spec)
    filled = fill_auto(
        config, source, spec.training, world_size=ranks.world_size, dtype=dtype, cuda=device.type == "cuda"
    )
    filled |= plan.deepspeed_sizes()
    shape = Shape(
        work=work, quantization=setting.quantization, dtype=setting.dtype, stage=zero_stage(filled),
        num_ranks=ranks.world_size, recomputes=setting.recomputes, offloads_optimizer=offloads_optimizer(filled),
        offloads_base=device.type == "cuda" and offloads_parameters(filled),
    )  # fmt: skip
    kind = kind_of(setting.dtype, setting.quantization)
    lengths = _lengths(setting)
    material: Any = _material(spec, model, dtype, [length for step in lengths for length in step])

    def row(what: str, amounts: Quantities, started: float) -> Row:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return {
            "kind": kind, "what": what, "amounts": asdict(amounts), "seconds": time.perf_counter() - started,
            "setting": str(setting),
        }  # fmt: skip

    started = time.perf_counter()
    run, _ = build_run(
        spec, plan, ranks, SilentRecorder(), workdir, material, filled, device, None, lambda _: None, None
    )
    yield row("loading", loading_amounts(shape), started)
    try:
        yield from _steps(run, shape, lengths, row)
        yield from _evaluations(run, shape, row)
    finally:
        run.engine.destroy()


def _lengths(setting: Setting) -> list[list[int]]:
    """Return the tokens of the texts of each step, the first twice, since it warms up."""
    draw = random.Random(0)
    sizes = [setting.sizes[0], *(size for size in setting.sizes for _ in range(REPEATS))]
    steps = [[draw.randint(most // 2, most) for _ in range(texts)] for texts, most in sizes]
    return [sorted(step, reverse=True) for step in steps]  # as training.batches deals them


def _steps(run: TrainingRun, shape: Shape, lengths: list[list[int]], row: Callable[..., Row]) -> Iterator[Row]:
    """Yield a row for each step; every rank works on the same texts."""
    first, longest = 0, 0.0
    for number, texts in enumerate(lengths):
        indices = list(range(first, first + len(texts)))
        first += len(texts)
        if longest > MOST_SECONDS and run.ranks.world_size == 1:
            return
        amounts = step_amounts(shape, tokens=sum(texts), pairs=_pairs(texts), micro_batches=1)
        started = time.perf_counter()
        plan = StepPlan(micro_batches=[indices], num_samples=len(indices) * run.ranks.world_size)
        optimizer_step(run, plan, number, 1e-3)
        measured = row("step", amounts, started)
        longest = max(longest, measured["seconds"]) if number else 0.0
        if number:
            yield measured


def _evaluations(run: TrainingRun, shape: Shape, row: Callable[..., Row]) -> Iterator[Row]:
    """Yield rows of evaluations, each with its checkpoint, as the loop makes them."""
    texts = [length for (length,) in run.validation.lengths]
    ranks = run.ranks.world_size
    amounts = evaluation_amounts(shape, tokens=sum(texts) / ranks, pairs=_pairs(texts) / ranks, micro_batches=1)
    amounts += evaluations_amounts(shape, 1.0)
    for step in range(REPEATS):
        started = time.perf_counter()
        state = TrainingState(step=step)
        with CheckpointWriter() as writer:
            metrics = compute_metrics(run.logits(run.validation), run.validation.labels, run.loss.problem_type)
            note_evaluation(run, state, metrics)
            save(run, state, writer)
        yield row("evaluation", amounts, started)
    longer = evaluation_amounts(
        shape, tokens=sum(LONGER) / ranks, pairs=_pairs(LONGER) / ranks, micro_batches=1
    )  # fmt: skip
    for _ in range(REPEATS):
        started = time.perf_counter()
        run.logits(_texts(list(LONGER)))
        yield row("evaluation", longer, started)


def _pairs(texts: Sequence[int]) -> int:
    """Return the pairs of positions, as training.forecast counts them."""
    return sum((length + -length % LENGTH_MULTIPLE) ** 2 for length in texts)


def _material(spec: JobSpec, model: Path, dtype: torch.dtype, lengths: list[int]) -> Any:
    """Return a Material of texts of these lengths, and 16 of validation."""
    names = ["0", "1"]
    config = load_config(spec.model, str(model), names)
    corpus = SimpleNamespace(label_names=names, problem_type=SINGLE_LABEL, facts={"sha256": {"train": ""}})
    splits = {"train": _texts(lengths), "validation": _texts([32] * 16)}
    return SimpleNamespace(checkpoint=str(model), config=config, dtype=dtype, splits=splits, corpus=corpus)


def _texts(lengths: list[int]) -> TokenizedSplit:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = np.random.default_rng(0).integers(4, 500, int(offsets[-1])).astype(np.int32)
    labels = [number % 2 for number in range(len(lengths))]
    return TokenizedSplit.of_texts([str(number) for number in range(len(lengths))], labels, tokens, offsets)
