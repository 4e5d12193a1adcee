"""The settings that a job could run with: all that leave what the user wrote, and the global batch, as they are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from launcher.expand import CHECKOUT, StudyJob
from training.spec import JobSpec

ONE_RANK = ("zero1", "zero2_offload", "zero3_offload_param")
MORE_RANKS = ("zero1", "zero3", "zero3_offload", "zero3_offload_param")
"""Files of ds_configs/ that are tried where the study names none."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is planned of a job."""

    deepspeed: str
    """Name of its DeepSpeed file."""
    gradient_checkpointing: bool
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    num_ranks: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON holds them."""
        return asdict(self)

    @property
    def pair(self) -> tuple[int, str]:
        """Return ranks and DeepSpeed file: what decides how the base is held."""
        return (self.num_ranks, self.deepspeed)

    @property
    def smallness(self) -> tuple[int, bool]:
        """Return what orders settings of the same file and ranks by the memory they need."""
        return (self.per_device_train_batch_size, not self.gradient_checkpointing)

    def __str__(self) -> str:
        ranks = f"{self.num_ranks} ranks" if self.num_ranks > 1 else "one rank"
        sizes = f"{self.per_device_train_batch_size} x {self.gradient_accumulation_steps}"
        recompute = ", gradient checkpointing" if self.gradient_checkpointing else ""
        file = self.deepspeed.removeprefix("ds_configs/").removesuffix(".json")
        return f"{file}, batch {sizes}, {ranks}{recompute}"


def settings(job: StudyJob, num_cards: int) -> Iterator[tuple[Setting, JobSpec]]:
    """Yield the settings that keep what the study fixed, its own first."""
    training, fixed = job.spec.training, job.fixed
    recompute = [training.gradient_checkpointing]
    if "training.gradient_checkpointing" not in fixed:
        recompute = [False, True]
    for num_ranks, per_device, accumulation in cuts(job, num_cards):
        for name, content in files(job, num_ranks):
            for checkpointing in recompute:
                setting = Setting(
                    deepspeed=name, gradient_checkpointing=checkpointing, per_device_train_batch_size=per_device,
                    gradient_accumulation_steps=accumulation, num_ranks=num_ranks,
                )  # fmt: skip
                sizes = replace(
                    training, gradient_checkpointing=checkpointing, per_device_train_batch_size=per_device,
                    gradient_accumulation_steps=accumulation,
                )  # fmt: skip
                yield setting, replace(job.spec, training=sizes, deepspeed=content, num_ranks=num_ranks)


def cuts(job: StudyJob, num_cards: int) -> Iterator[tuple[int, int, int]]:
    """Yield (ranks, texts of a micro-batch, micro-batches of a step) that give the job's global batch."""
    training, fixed = job.spec.training, job.fixed
    global_batch = training.per_device_train_batch_size * training.gradient_accumulation_steps * job.spec.num_ranks
    ranks = [job.spec.num_ranks] if "num_ranks" in fixed else [n for n in (1, 2, 4, 8) if n <= num_cards]
    for num_ranks in ranks or [1]:
        size = training.per_device_train_batch_size
        sizes = [size]
        if "training.per_device_train_batch_size" not in fixed:
            sizes = sorted({1, *(size // cut for cut in (1, 2, 4, 8, 16, 32) if size % cut == 0)}, reverse=True)
        for per_device in sizes:
            accumulation, rest = divmod(global_batch, num_ranks * per_device)
            as_written = accumulation == training.gradient_accumulation_steps
            if accumulation and not rest and (as_written or "training.gradient_accumulation_steps" not in fixed):
                yield num_ranks, per_device, accumulation


def files(job: StudyJob, num_ranks: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and content of the DeepSpeed files to try."""
    assert isinstance(job.spec.deepspeed, dict)
    if "deepspeed" in job.fixed:
        yield deepspeed_source(job), job.spec.deepspeed
        return
    for name in ONE_RANK if num_ranks == 1 else MORE_RANKS:
        path = f"ds_configs/{name}.json"
        yield path, json.loads((CHECKOUT / path).read_text(encoding="utf-8"))


def deepspeed_source(job: StudyJob) -> str:
    """Return what messages call the job's DeepSpeed settings."""
    return job.written.deepspeed if isinstance(job.written.deepspeed, str) else "the study's deepspeed"
