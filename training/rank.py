"""One rank of one job, from its spec to its result. `training/main.py` and the launcher's Ray actors call `run_job`."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml

from training.calibration.switches import switched_off
from training.card_memory.cap import card_space, more_gib
from training.checkpoint import Checkpoint
from training.deepspeed_config import (
    fill_auto,
    offloads_optimizer,
    offloads_parameters,
    read_deepspeed_config,
    refuse_impossible,
    zero_stage,
)
from training.engine import build_optimizer, process_group, start_engine, zero3_partition
from training.errors import ShoalError
from training.finish import conclude, finish
from training.fused import fuse_layers
from training.loop import train
from training.loss import TrainingLoss
from training.material import Material, load_material
from training.memory import OutOfMemory, memory_watched
from training.model import LoadBase, build_classifier, can_pack, load_base, recompute_activations, use_packed_attention
from training.network.limits import TRAINING_MINUTES, limit, limit_collectives
from training.network.meeting import Meeting
from training.packing import PackedClassifier
from training.plan import Plan, RetryWith
from training.pretrained import resolve_checkpoint
from training.quiet import quiet_libraries
from training.ranks import Ranks
from training.recorder import Recorder
from training.result import RunResult
from training.resume import restore, shared_start
from training.run import TrainingRun, TrainingState
from training.spec import JobSpec
from training.stop import StopRequest
from training.trackers import tracking
from training.varlen import describe_attention


def run_job(
    spec: JobSpec,
    ranks: Ranks,
    recorder: Recorder,
    workdir: Path,
    *,
    stop: StopRequest | None = None,
    joined: Callable[[], None] = lambda: None,
) -> RunResult | None:
    """Run this rank's share of a job; every rank of the job must call it.

    `workdir` holds checkpoints to resume from, if any, and gets what the job writes; `recorder` is told of it. `stop`
    is asked after each step; `joined` is called once the ranks have found each other.
    Returns the result on rank 0. Raises UserError for bad input, VerificationError for a bad save, RetryWith where
    memory ran out and a smaller plan may do (the process must then be left: its group is in an unknown state),
    Stopped where the job was asked to end and has saved.
    """
    quiet_libraries()
    with tracking(recorder, spec, workdir) if ranks.is_main else nullcontext(recorder) as told:
        return _run_job(spec, ranks, told, workdir, stop, joined)


def _run_job(
    spec: JobSpec,
    ranks: Ranks,
    recorder: Recorder,
    workdir: Path,
    stop: StopRequest | None,
    joined: Callable[[], None],
) -> RunResult | None:
    """Run this rank's share, as run_job says."""

    def report(message: str) -> None:
        if ranks.is_main:
            recorder.event("log", message=message)

    config, source = read_deepspeed_config(spec.deepspeed)
    refuse_impossible(spec, config)
    # Before the ranks join: transformers saves a model on rank 0 of a group only, and any rank may be the first here.
    resolve_checkpoint(spec.model, lambda message: recorder.event("log", message=message))
    plan = Plan.of(spec)
    try:
        with process_group(ranks) as device:
            joined()
            _phase(recorder, ranks, "loading data")
            material = load_material(spec, device, report)
            plan, checkpoint = shared_start(spec, ranks, workdir, material.corpus.facts["sha256"]["train"], report)
            on_card = device.type == "cuda"
            filled = fill_auto(
                config, source, spec.training, world_size=ranks.world_size, dtype=material.dtype, cuda=on_card
            )
            filled |= plan.deepspeed_sizes()
            if ranks.is_main:  # not before, so that a refused job leaves an earlier one's in place
                text = yaml.safe_dump(spec.to_dict(), sort_keys=False, allow_unicode=True)
                (workdir / "job.yaml").write_text(text, encoding="utf-8")
            _phase(recorder, ranks, "loading model")
            with memory_watched("loading the model", 0):
                run, facts = build_run(
                    spec, plan, ranks, recorder, workdir, material, filled, device, checkpoint, report, stop
                )
            state = TrainingState()
            if checkpoint is not None:
                with memory_watched("training", checkpoint.step):
                    state = restore(run, checkpoint)
                report(f"resuming after step {checkpoint.step} of {run.num_steps}")
                del checkpoint  # three fp32 copies of what is trained
            _phase(recorder, ranks, "training")
            limit_collectives(limit(TRAINING_MINUTES))
            train(run, state)
            _phase(recorder, ranks, "testing")
            outcome = finish(run, state, material)
    except OutOfMemory as error:
        raise retry_or_give_up(plan, error, ranks) from error
    if not ranks.is_main:
        return None
    _phase(recorder, ranks, "verifying")
    del run
    gc.collect()
    return conclude(spec, ranks, recorder, workdir, material, state, outcome, facts, plan, device)


def retry_or_give_up(plan: Plan, error: OutOfMemory, ranks: Ranks) -> ShoalError:
    """Return the error to raise after running out of memory: one that says how to go on, or that there is no way.

    First more of the card is asked for, where it has room beyond what this job may use of it: a forecast was too low.
    """
    more = more_gib(ranks, card_space()) if torch.cuda.is_available() else None
    if more is not None and ranks.card_gib is not None:
        return RetryWith(plan.with_more(error.phase, error.step, str(error), ranks.card_gib, more))
    smaller = plan.smaller(error.phase, error.step, str(error))
    if smaller is not None:
        return RetryWith(smaller)
    return ShoalError(
        f"{error} Nothing is left to make smaller: the model does not fit, or not with one text at a time. Set "
        "model.quantization: nf4, deepspeed: ds_configs/zero3_offload_param.json, or a lower data.max_seq_length (with "
        "data.long_text: chunk, a lower data.max_chunks)."
    )


def _phase(recorder: Recorder, ranks: Ranks, phase: str) -> None:
    if ranks.is_main:
        recorder.event("phase", phase=phase)


def build_run(
    spec: JobSpec,
    plan: Plan,
    ranks: Ranks,
    recorder: Recorder,
    workdir: Path,
    material: Material,
    deepspeed_config: dict[str, Any],
    device: torch.device,
    checkpoint: Checkpoint | None,
    report: Callable[[str], None],
    stop: StopRequest | None,
    load: LoadBase = load_base,
) -> tuple[TrainingRun, dict[str, Any]]:
    """Build model and engine; return the run and the facts about the model that stand in the result.

    `load` is another than `load_base` where memory is forecast.
    """
    torch.manual_seed(spec.seed)
    peft_model = build_classifier(
        spec.model, spec.lora, material.checkpoint, material.config, material.dtype, device,
        zero3_partition(deepspeed_config), load,
    )  # fmt: skip
    packed = can_pack(material.config, spec.data.max_seq_length)
    if packed:
        use_packed_attention(peft_model)
    off = switched_off(device)
    if off:
        report(
            f"wrong on this device by its calibration, so not used where there is another way: {', '.join(sorted(off))}"
        )
    fuse_layers(peft_model, off)
    recompute_activations(peft_model, plan.recomputed_layers)
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
    # Before the first layer runs: the kernel is tried here.
    obstacle = classifier.varlen_obstacle(device)
    facts["attention"] = "varlen" if obstacle is None else "sdpa"
    report(f"attention: {describe_attention(obstacle)}")
    if zero_stage(read_deepspeed_config(spec.deepspeed)[0]) == 0 < zero_stage(deepspeed_config):
        report(f"ZeRO stage 1 instead of 0: {facts['dtype']} needs its fp32 copies, or small updates are lost")
    optimizer = build_optimizer(classifier, spec.training, deepspeed_config, report)
    facts["optimizer"] = type(optimizer).__name__
    engine = start_engine(classifier, optimizer, deepspeed_config, report)
    global_batch_size = plan.per_device_train_batch_size * plan.gradient_accumulation_steps * ranks.world_size
    if checkpoint is not None and checkpoint.global_batch_size != global_batch_size:
        report(f"keeping the checkpoint's global batch of {checkpoint.global_batch_size} (now {global_batch_size})")
        global_batch_size = checkpoint.global_batch_size
    facts["global_batch_size"] = global_batch_size
    corpus, train_split = material.corpus, material.splits["train"]
    run = TrainingRun(
        spec=spec,
        plan=plan,
        ranks=ranks,
        meeting=Meeting(ranks),
        device=device,
        engine=engine,
        train=train_split,
        validation=material.splits["validation"],
        num_labels=len(corpus.label_names),
        dtype=facts["dtype"],
        loss=TrainingLoss.of(spec.training, corpus.label_names, train_split.labels, device, corpus.problem_type),
        global_batch_size=global_batch_size,
        rows_sha256=material.corpus.facts["sha256"]["train"],
        recorder=recorder,
        workdir=workdir,
        stop=stop or StopRequest(),
    )
    return run, facts
