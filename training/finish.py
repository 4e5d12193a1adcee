"""What a trained model leaves behind: adapter, predictions, result, and the proof that the adapter loads."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from training import __version__
from training.adapter import check_saved_values, save_adapter
from training.card_memory.release import release
from training.engine import load_trainable
from training.evaluation import compute_metrics
from training.material import Material
from training.memory import memory_watched, peak_memory_bytes
from training.model_card import write_model_card
from training.plan import Plan
from training.predictions import write_predictions
from training.ranks import Ranks
from training.recorder import Recorder
from training.result import RunResult, write_json
from training.run import TrainingRun, TrainingState
from training.spec import JobSpec
from training.verification.verify import verify_adapter

ADAPTER = "adapter"

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "deepspeed", "datasets", "scikit-learn")


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
    with memory_watched("evaluation", state.step):
        logits = {name: run.logits(split) for name, split in material.splits.items() if name != "train"}
    peaks = peak_memory_bytes()
    memory = torch.tensor(list(peaks.values()), device=run.device)
    if run.ranks.world_size > 1:
        dist.all_reduce(memory, op=dist.ReduceOp.MAX)
    if run.ranks.is_main:
        weights = {name.removeprefix("classifier."): value for name, value in state.best_weights.items()}
        save_adapter(run.engine.module.classifier, weights, material.tokenizer, material.config, run.workdir / ADAPTER)
        check_saved_values(run.workdir / ADAPTER, weights)
    run.engine.destroy()
    release(run.engine)  # the base comes once more to verify the adapter, and ZeRO-3 would keep this one
    samples = min(state.step * run.global_batch_size, round(state.step / run.steps_per_epoch * len(run.train)))
    return Outcome(
        logits=logits,
        peak_memory=dict(zip(peaks, memory.tolist(), strict=True)),
        train_facts={
            "steps": state.step,
            "epochs": round(state.step / run.steps_per_epoch, 4),
            "best_epoch": state.best_epoch,
            "stopped_early": state.step < run.num_steps,
            "final_loss": state.last_loss,
            "seconds": state.seconds,
            "samples_per_second": samples / state.seconds if state.seconds else 0.0,
            **({"energy_joules": state.energy_joules} if state.energy_joules > 0 else {}),
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
    plan: Plan,
    device: torch.device,
) -> RunResult:
    """Prove that the saved adapter loads, write predictions and result. Rank 0 alone, the model gone from memory."""
    folder = workdir / ADAPTER
    token_budget = (
        plan.per_device_eval_batch_size * spec.data.max_seq_length
    )  # what fits; padded it takes about as much
    verified = verify_adapter(
        spec, material, folder, outcome.logits["validation"], device, token_budget, is_cut=facts["zero_stage"] == 3
    )
    peak_memory = {name: max(size, outcome.peak_memory[name]) for name, size in peak_memory_bytes().items()}
    corpus = material.corpus
    texts = {"validation": corpus.validation, "test": corpus.test}
    evaluated = {name: (split, outcome.logits[name]) for name, split in texts.items() if split is not None}
    write_predictions(workdir / "predictions.parquet", evaluated, corpus.label_names)
    metrics = {
        name: compute_metrics(logits, material.splits[name].labels, corpus.problem_type)
        for name, logits in outcome.logits.items()
    }
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
        peak_memory=peak_memory,
        data=material.corpus.facts,
        model=facts,
        adapter=verified,
        retries=plan.retries,
        versions={"shoal": __version__, **{package: version(package) for package in PACKAGES}},
    )
    write_model_card(folder, result)
    write_json(workdir / "result.json", result.to_dict())
    recorder.save(ADAPTER, folder)
    recorder.save("predictions.parquet", workdir / "predictions.parquet")
    recorder.event("result", validation=result.validation, test=result.test)
    recorder.save("result.json", workdir / "result.json")
    return result
