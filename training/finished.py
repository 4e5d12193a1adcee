"""A finished job, opened again: its settings, labels and adapter, and the model they make."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig

from training.corpus.stream import TextColumns
from training.errors import UserError
from training.model import HEAD, load_base
from training.parse import build, load_job
from training.pretrained import load_config, load_tokenizer, resolve_checkpoint
from training.result import read_result
from training.spec import MULTI_LABEL, SINGLE_LABEL, JobSpec, ModelSpec, ProblemType

WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """What a run folder says of its job."""

    folder: Path
    spec: JobSpec
    """As in result.json, but the base model where job.yaml says it lies now."""
    dtype: torch.dtype
    """The precision the job computed in."""
    text_columns: TextColumns
    label_names: list[str]
    """In the order of the logits."""
    problem_type: ProblemType
    pad_token_id: int

    @property
    def adapter(self) -> Path:
        """Folder of adapter, head, tokenizer and configuration."""
        return self.folder / "adapter"


def open_run(folder: Path) -> FinishedRun:
    """Return what a run folder holds. Raises UserError where no job has finished there or its adapter is not whole."""
    result = read_result(folder)
    if result is None:
        raise UserError(_why_no_run(folder))
    job_file = folder / "job.yaml"
    spec = build(JobSpec, result.settings, str(folder / "result.json"))
    written = load_job(job_file).model.model_name_or_path
    adapter = folder / "adapter"
    _check_adapter(adapter)
    model = replace(spec.model, model_name_or_path=_base(written, spec.model.model_name_or_path, adapter))
    config = _read_config(adapter, model)
    return FinishedRun(
        folder=folder,
        spec=replace(spec, model=model),
        dtype=getattr(torch, result.model["dtype"]),
        text_columns=TextColumns(names=result.data["text_columns"], delimiter=spec.data.text_column_delimiter),
        label_names=[config.id2label[index] for index in range(config.num_labels)],
        problem_type=MULTI_LABEL if config.problem_type == MULTI_LABEL else SINGLE_LABEL,
        pad_token_id=config.pad_token_id,
    )


def _why_no_run(folder: Path) -> str:
    """Return what is wrong with a folder without result.json, and what to give instead."""
    if not folder.is_dir():
        return f"run folder {folder} does not exist. Give the output_dir of a job, or outputs/<study>/jobs/<name>."
    if (folder / "study.yaml").exists():
        return f"{folder} is a study's folder. Give that of one of its jobs: {folder / 'jobs' / '<name>'}."
    if (folder / "job.yaml").exists():
        return f"{folder} holds no result.json: its job has not finished. Run it to its end first."
    return f"{folder} is no run folder: it holds no result.json. Give the output_dir of a finished job."


def _check_adapter(folder: Path) -> None:
    """Refuse an adapter that lacks a file or the head."""
    for name in ("adapter_config.json", WEIGHTS, "config.json"):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder / name} does not exist, so there is no adapter to use. Copy adapter/ there again; if it is "
                f"lost, delete {folder.parent / 'result.json'} and run the job again: it goes on from its checkpoint."
            )
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            names = list(file.keys())
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder / WEIGHTS} is damaged ({error}). Copy adapter/ there again.") from None
    if not any(f".{HEAD}." in name for name in names):
        raise UserError(
            f"{folder / WEIGHTS} holds no classification head ({HEAD}.weight): the labels would be random. Use the "
            "adapter as the job wrote it; PEFT saves the head where task_type is SEQ_CLS."
        )


def _read_config(adapter: Path, model: ModelSpec) -> Any:
    """Return the adapter's configuration of its classifier."""
    try:
        return AutoConfig.from_pretrained(str(adapter), trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{adapter / 'config.json'} cannot be read: {reason} Copy adapter/ there again.") from None


def _base(written: str, trained: str, adapter: Path) -> str:
    """Return where the base lies: where the adapter says, unless job.yaml has been changed since.

    A study writes paths as its file has them, and trains with absolute ones, which stand in the adapter.
    """
    try:
        absolute = PeftConfig.from_pretrained(str(adapter)).base_model_name_or_path
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{adapter / 'adapter_config.json'} is damaged ({error}). Copy adapter/ there again.") from None
    local = not written.startswith("builtin:") and absolute is not None
    if written == trained and local and Path(absolute).is_absolute() and Path(absolute).is_dir():
        return str(absolute)
    return written


def load_finished(
    run: FinishedRun, model: ModelSpec, device: torch.device, report: Callable[[str], None]
) -> tuple[PeftModel, Any]:
    """Return base + adapter + head in the job's precision, and the tokenizer; `model` says how the base is held."""
    report(f"loading {model.model_name_or_path}")
    try:
        checkpoint = resolve_checkpoint(model, report)
        config = load_config(model, checkpoint, run.label_names, run.problem_type)
    except UserError as error:
        raise UserError(
            f"the base model of {run.folder}: {error} "
            f"If it lies elsewhere now, set model.model_name_or_path in {run.folder / 'job.yaml'}."
        ) from None
    config.pad_token_id = run.pad_token_id
    base = load_base(model, checkpoint, config, run.dtype, device)
    peft_model = _put_adapter(base, run, checkpoint).to(device).eval()
    tokenizer = load_tokenizer(replace(model, model_revision=None), str(run.adapter))
    return peft_model, tokenizer


def _put_adapter(base: Any, run: FinishedRun, checkpoint: str) -> PeftModel:
    """Put the saved adapter and head on the base; refuse those of another base."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*[Mm]issing adapter keys")  # else they would be random
            # As it was trained: PEFT would turn a bf16 adapter into fp32.
            return PeftModel.from_pretrained(base, str(run.adapter), autocast_adapter_dtype=False)
    except (RuntimeError, ValueError, UserWarning) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{run.adapter} does not fit the base {checkpoint}: {reason}. Put the base back that the job was trained "
            f"with, or name it as model.model_name_or_path in {run.folder / 'job.yaml'}."
        ) from None
