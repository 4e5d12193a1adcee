"""Checkpoints that know nothing of ranks: the whole state in safetensors and JSON, whole or not there at all.

checkpoints/step-000120/
    state.safetensors   fp32 weights of adapter and head, AdamW's moments
    best.safetensors    adapter and head of the best evaluation so far (only after one)
    state.json          step, global batch size, the job's identity, best metrics, SHA-256 of the files above
Random states need no room: dropout is seeded by (seed, step, rank) and the data order by (seed, epoch).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from training.disk import flush, flush_entry, sha256
from training.errors import UserError
from training.result import write_json
from training.spec import JobSpec

FOLDER = "checkpoints"

FREE_SETTINGS = (
    "name", "output_dir", "resume_from_checkpoint", "num_ranks", "deepspeed",
    "training.per_device_train_batch_size", "training.gradient_accumulation_steps",
    "training.per_device_eval_batch_size", "training.gradient_checkpointing",
    "training.eval_steps", "training.save_steps", "training.save_total_limit", "training.early_stopping_patience",
    "training.report_to",
)  # fmt: skip
"""Settings that may differ on resuming, since they do not change what is learnt (the global batch is kept)."""


@dataclass(kw_only=True)
class Checkpoint:
    """Everything that changes while a job trains."""

    step: int
    """Optimizer steps made."""
    global_batch_size: int
    state: dict[str, Tensor] = field(default_factory=dict)
    """What training.optimizer_state reads and writes."""
    best: dict[str, Tensor] = field(default_factory=dict)
    """Adapter and head of the best evaluation."""
    progress: dict[str, Any] = field(default_factory=dict)
    """JSON values of TrainingState."""
    rows_sha256: str = ""
    """Of the training rows (Corpus.facts): the order of the samples is of these."""


def identity(spec: JobSpec) -> dict[str, Any]:
    """Return the settings two runs must share to continue each other, as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in spec.to_dict().items():
        inner = value if isinstance(value, dict) and key != "deepspeed" else None
        flat.update({f"{key}.{name}": item for name, item in inner.items()} if inner is not None else {key: value})
    return {key: value for key, value in flat.items() if key not in FREE_SETTINGS}


def folder_name(step: int) -> str:
    """Return the relative path of the checkpoint after `step` steps."""
    return f"{FOLDER}/step-{step:06d}"


def write_checkpoint(workdir: Path, checkpoint: Checkpoint, spec: JobSpec) -> Path:
    """Write a checkpoint beside its place, flush it to disk, rename it; return its folder."""
    target = workdir / folder_name(checkpoint.step)
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    digests = {}
    for name, tensors in (("state.safetensors", checkpoint.state), ("best.safetensors", checkpoint.best)):
        if tensors:
            save_file(tensors, temporary / name)
            digests[name] = sha256(temporary / name)
    write_json(
        temporary / "state.json",
        {
            "step": checkpoint.step,
            "global_batch_size": checkpoint.global_batch_size,
            "identity": identity(spec),
            "progress": checkpoint.progress,
            "rows_sha256": checkpoint.rows_sha256,
            "sha256": digests,
        },
    )
    flush(temporary)
    put_in_place(temporary, target)
    return target


def put_in_place(temporary: Path, target: Path) -> None:
    """Give a written and flushed folder its name; whoever looks finds the whole of it or nothing."""
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    flush_entry(target.parent)


def list_checkpoints(workdir: Path) -> list[Path]:
    """Return the checkpoint folders, oldest first."""
    return sorted((workdir / FOLDER).glob("step-*"), key=step_of)


def step_of(folder: Path) -> int:
    """Return the steps a checkpoint folder's name says."""
    return int(folder.name.removeprefix("step-"))


def read_checkpoint(folder: Path, spec: JobSpec) -> Checkpoint:
    """Read one checkpoint.

    Raises UserError where it belongs to another job; ValueError or OSError where it is torn or corrupt.
    """
    content = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    for name, digest in content["sha256"].items():
        if sha256(folder / name) != digest:
            raise ValueError(f"{name} is not what was written (its SHA-256 differs)")
    here = identity(spec)
    there = content["identity"]
    different = [key for key in here if here[key] != there.get(key)]
    if different:
        changes = ", ".join(f"{key} was {there.get(key)!r} and is {here[key]!r}" for key in different[:4])
        raise UserError(
            f"checkpoint {folder} belongs to another job: {changes}. Set it back, or start anew in another output_dir."
        )
    best = folder / "best.safetensors"
    return Checkpoint(
        step=content["step"],
        global_batch_size=content["global_batch_size"],
        state=load_file(folder / "state.safetensors"),
        best=load_file(best) if best.name in content["sha256"] else {},
        progress=content["progress"],
        rows_sha256=content["rows_sha256"],
    )


def find_checkpoint(workdir: Path, spec: JobSpec, report: Callable[[str], None]) -> Checkpoint | None:
    """Return the checkpoint to go on from: the one asked for, or the newest whole one, or None."""
    if spec.resume_from_checkpoint is not None:
        folder = Path(spec.resume_from_checkpoint).expanduser()
        if not (folder / "state.json").is_file():
            raise UserError(f"resume_from_checkpoint is {folder}, which holds no state.json. Give a step-... folder.")
        try:
            return read_checkpoint(folder, spec)
        except (ValueError, OSError, KeyError) as error:
            raise UserError(f"checkpoint {folder} cannot be read: {error}. Give the one before it.") from None
    for folder in reversed(list_checkpoints(workdir)):
        try:
            return read_checkpoint(folder, spec)
        except (ValueError, OSError, KeyError) as error:
            report(f"checkpoint {folder.name} cannot be read ({error}); trying the one before it")
    return None
