"""One rank of one job, from its spec to its result. `training/main.py` and the launcher's Ray actors call `run_job`."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import yaml

from training import __version__
from training.adapter import check_saved_values, compare_logits, reloaded_logits, save_adapter
from training.checkpoint import Checkpoint, find_checkpoint
from training.deepspeed_config import (
    fill_auto,
    offloads_optimizer,
    offloads_parameters,
    read_deepspeed_config,
    refuse_impossible,
    zero_stage,
)
from training.engine import (
    build_optimizer,
    load_trainable,
    start_engine,
    start_process_group,
    stop_process_group,
    zero3_partition,
)
from training.errors import UserError
from training.evaluation import compute_metrics
from training.loop import TrainingRun, TrainingState, restore, train
from training.material import Material, load_material
from training.memory import peak_memory_bytes
from training.model import (
    build_classifier,
    can_pack,
    load_base,
    load_config,
    resolve_checkpoint,
    use_packed_attention,
)
from training.packing import PackedClassifier
from training.predictions import write_predictions
from training.ranks import Ranks
from training.recorder import Recorder
from training.result import RunResult, write_json
from training.spec import JobSpec

ADAPTER = "adapter"

VERIFIED_TEXTS = 8
"""Texts whose logits are compared after reloading the adapter."""

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "deepspeed", "datasets", "scikit-learn")


def run_job(spec: JobSpec, ranks: Ranks, recorder: Recorder, workdir: Path) -> RunResult | None:
    """Run this rank's share of a job; every rank of the job must call it.

    `workdir` holds checkpoints to resume from, if any, and gets what the job writes; `recorder` is told of it.
    Returns the result on rank 0. Raises UserError for bad input, VerificationError for a bad save.
    """
    quiet_libraries()

    def report(message: str) -> None:
        if ranks.is_main:
            recorder.event("log", message=message)

    config, source = read_deepspeed_config(spec.deepspeed)
    refuse_impossible(spec, config)
    # Before the ranks join: transformers saves a model on rank 0 of a group only, and any rank may be the first here.
    resolve_checkpoint(spec.model, lambda message: recorder.event("log", message=message))
    device = start_process_group(ranks)
    try:
        _phase(recorder, ranks, "loading data")
        material = load_material(spec, device, report)
        checkpoint = _shared_checkpoint(spec, ranks, workdir, material.corpus.facts["sha256"]["train"], report)
        filled = fill_auto(
            config, source, spec.training, world_size=ranks.world_size, dtype=material.dtype, cuda=device.type == "cuda"
        )
        if ranks.is_main:  # not before, so that a refused job leaves an earlier one's in place
            text = yaml.safe_dump(spec.to_dict(), sort_keys=False, allow_unicode=True)
            (workdir / "job.yaml").write_text(text, encoding="utf-8")
        _phase(recorder, ranks, "loading model")
        run, facts = build_run(spec, ranks, recorder, workdir, material, filled, device, checkpoint, report)
        state = TrainingState()
        if checkpoint is not None:
            state = restore(run, checkpoint)
            report(f"resuming after step {checkpoint.step} of {run.num_steps}")
            del checkpoint  # three fp32 copies of what is trained
        _phase(recorder, ranks, "training")
        train(run, state)
        _phase(recorder, ranks, "testing")
        outcome = finish(run, state, material)
    finally:
        stop_process_group()
    if not ranks.is_main:
        return None
    _phase(recorder, ranks, "verifying")
    del run
    gc.collect()
    return conclude(spec, ranks, recorder, workdir, material, state, outcome, facts, device)


def quiet_libraries() -> None:
    """Keep the libraries' progress bars and advice out of the log; errors still come as exceptions."""
    import datasets
    import transformers

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed warns where it has to find out itself
    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()


def _phase(recorder: Recorder, ranks: Ranks, phase: str) -> None:
    if ranks.is_main:
        recorder.event("phase", phase=phase)


def _shared_checkpoint(
    spec: JobSpec, ranks: Ranks, workdir: Path, rows_sha256: str, report: Callable[[str], None]
) -> Checkpoint | None:
    """Return rank 0's checkpoint on every rank: the others may run on hosts that do not have the file."""
    found: list[Any] = [None]
    if ranks.is_main:
        try:
            found = [find_checkpoint(workdir, spec, report)]
            if found[0] is not None and found[0].rows_sha256 != rows_sha256:
                raise UserError(
                    f"the training rows are not those the checkpoint after step {found[0].step} in {workdir} was made "
                    "with. Put the data back as it was, or start anew in another output_dir."
                )
        except Exception as error:  # passed on, so that no rank waits for one that has gone
            found = [error]
    if ranks.world_size > 1:
        dist.broadcast_object_list(found, src=0)
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]  # type: ignore[no-any-return]


def build_run(
    spec: JobSpec,
    ranks: Ranks,
    recorder: Recorder,
    workdir: Path,
    material: Material,
    deepspeed_config: dict[str, Any],
    device: torch.device,
    checkpoint: Checkpoint | None,
    report: Callable[[str], None],
) -> tuple[TrainingRun, dict[str, Any]]:
    """Build model and engine; return the run and the facts about the model that stand in the result."""
    torch.manual_seed(spec.seed)
    peft_model = build_classifier(
        spec.model, spec.lora, material.checkpoint, material.config, material.dtype, device,
        zero3_partition(deepspeed_config),
    )  # fmt: skip
    packed = can_pack(material.config, spec.data.max_seq_length)
    if packed:
        use_packed_attention(peft_model)
    if spec.training.gradient_checkpointing:
        peft_model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    parameters = list(peft_model.parameters())
    facts = {
        "trained_parameters": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        "model_type": material.config.model_type,
        "dtype": str(material.dtype).removeprefix("torch."),
        "quantization": spec.model.quantization,
        "packed_without_padding": packed,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "zero_stage": zero_stage(deepspeed_config),
        "offload_optimizer": offloads_optimizer(deepspeed_config),
        "offload_param": offloads_parameters(deepspeed_config),
    }
    classifier = PackedClassifier(peft_model, packed=packed)
    if zero_stage(read_deepspeed_config(spec.deepspeed)[0]) == 0 < zero_stage(deepspeed_config):
        report("ZeRO stage 1 instead of 0: bf16 needs its fp32 copies, or small updates are lost")
    optimizer = build_optimizer(classifier, spec.training, deepspeed_config, report)
    facts["optimizer"] = type(optimizer).__name__
    engine = start_engine(classifier, optimizer, deepspeed_config)
    training = spec.training
    global_batch_size = training.per_device_train_batch_size * training.gradient_accumulation_steps * ranks.world_size
    if checkpoint is not None and checkpoint.global_batch_size != global_batch_size:
        report(f"keeping the checkpoint's global batch of {checkpoint.global_batch_size} (now {global_batch_size})")
        global_batch_size = checkpoint.global_batch_size
    facts["global_batch_size"] = global_batch_size
    run = TrainingRun(
        spec=spec,
        ranks=ranks,
        device=device,
        engine=engine,
        train=material.splits["train"],
        validation=material.splits["validation"],
        num_labels=len(material.corpus.label_names),
        global_batch_size=global_batch_size,
        rows_sha256=material.corpus.facts["sha256"]["train"],
        recorder=recorder,
        workdir=workdir,
    )
    return run, facts


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a trained model leaves behind."""

    logits: dict[str, Any]
    """Split -> [texts, num_labels]."""
    peak_memory: dict[str, int]
    train_facts: dict[str, Any]


def finish(run: TrainingRun, state: TrainingState, material: Material) -> Outcome:
    """Put the best weights back, save them, evaluate validation and, once, test. All ranks call it."""
    load_trainable(run.engine.module, state.best_weights)
    logits = {name: run.logits(split) for name, split in material.splits.items() if name != "train"}
    memory = torch.tensor(list(peak_memory_bytes().values()), device=run.device)
    if run.ranks.world_size > 1:
        dist.all_reduce(memory, op=dist.ReduceOp.MAX)
    gpu, host = memory.tolist()
    if run.ranks.is_main:
        weights = {name.removeprefix("classifier."): value for name, value in state.best_weights.items()}
        save_adapter(run.engine.module.classifier, weights, material.tokenizer, material.config, run.workdir / ADAPTER)
        check_saved_values(run.workdir / ADAPTER, weights)
    run.engine.destroy()
    samples = min(state.step * run.global_batch_size, round(state.step / run.steps_per_epoch * len(run.train)))
    return Outcome(
        logits=logits,
        peak_memory={"gpu_bytes": gpu, "host_bytes": host},
        train_facts={
            "steps": state.step,
            "epochs": round(state.step / run.steps_per_epoch, 4),
            "best_epoch": state.best_epoch,
            "stopped_early": state.step < run.num_steps,
            "final_loss": state.last_loss,
            "seconds": state.seconds,
            "samples_per_second": samples / state.seconds if state.seconds else 0.0,
        },
    )


def conclude(
    spec: JobSpec,
    ranks: Ranks,
    recorder: Recorder,
    workdir: Path,
    material: Material,
    state: TrainingState,
    outcome: Outcome,
    facts: dict[str, Any],
    device: torch.device,
) -> RunResult:
    """Prove that the saved adapter loads, write predictions and result. Rank 0 alone, the model gone from memory."""
    folder = workdir / ADAPTER
    # A base that was trained in slices or from host memory may not fit a card whole.
    place = torch.device("cpu") if facts["zero_stage"] == 3 else device
    verified = verify_adapter(spec, material, folder, outcome.logits["validation"], place)
    evaluated = {name: (material.splits[name], logits) for name, logits in outcome.logits.items()}
    write_predictions(workdir / "predictions.parquet", evaluated, material.corpus.label_names)
    metrics = {name: compute_metrics(logits, material.splits[name].labels) for name, logits in outcome.logits.items()}
    result = RunResult(
        name=spec.name,
        status="succeeded",
        settings=spec.to_dict(),
        fingerprint=spec.fingerprint(),
        num_ranks=ranks.world_size,
        untrained_validation=state.untrained,
        validation=metrics["validation"],
        test=metrics.get("test", {}),
        train=outcome.train_facts,
        peak_memory=outcome.peak_memory,
        data=material.corpus.facts,
        model=facts,
        adapter=verified,
        versions={"shoal": __version__, **{package: version(package) for package in PACKAGES}},
    )
    write_json(workdir / "result.json", result.to_dict())
    recorder.save(ADAPTER, folder)
    recorder.save("predictions.parquet", workdir / "predictions.parquet")
    recorder.event("result", validation=result.validation, test=result.test)
    recorder.save("result.json", workdir / "result.json")
    return result


def verify_adapter(
    spec: JobSpec, material: Material, folder: Path, trained: Any, device: torch.device
) -> dict[str, Any]:
    """Reload the saved adapter onto a fresh base and compare logits; raise VerificationError on a difference."""
    split = material.splits["validation"]
    num_texts = min(VERIFIED_TEXTS, len(split))
    config = load_config(spec.model, material.checkpoint, material.corpus.label_names)
    config.pad_token_id = material.tokenizer.pad_token_id
    torch.cuda.empty_cache()
    base = load_base(spec.model, material.checkpoint, config, material.dtype, device)
    reloaded = reloaded_logits(base, folder, split, num_texts, device)
    return compare_logits(reloaded, np.asarray(trained[:num_texts]), material.dtype)
