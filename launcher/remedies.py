"""What would make a job fit that fits no card: each change to its study is tried, and named only where it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from launcher.choose import Choice
from launcher.expand import StudyJob
from launcher.settings import Setting
from training.errors import UserError

Search = Callable[[StudyJob], Choice]
"""Plans a job; may raise UserError."""

BATCH = frozenset({"training.per_device_train_batch_size", "training.gradient_accumulation_steps"})
FREED = (
    frozenset({"training.gradient_checkpointing"}), BATCH, frozenset({"deepspeed"}), frozenset({"num_ranks"}) | BATCH,
)  # fmt: skip
"""Settings that a study may leave to the planner, those that belong together in one."""
MOST = 3
"""Changes that are named."""
SHORTEST = 16
"""Tokens; shorter texts are not suggested."""


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """A change to a study under which a job fits."""

    text: str
    choice: Choice
    """How the job runs then."""


def remedies(job: StudyJob, search: Search) -> str:
    """Return in a sentence what would make a job fit: the least change there is, in the order below, and its rivals."""
    if _fitting(_with_least(_shortened(_as_nf4(replace(job, fixed=frozenset())))), search) is None:
        return "No setting of this model fits: take a smaller model, or larger cards."
    found: list[Remedy] = []
    # A big model's forecast takes seconds, so what changes more is tried only where less does not do.
    for ways in (_freed_and_quantized, _shorter, _all_at_once):
        found = found or list(islice(ways(job, search), MOST))
    named = "; or with ".join(f"{remedy.text} ({_needs(remedy.choice)})" for remedy in found)
    return f"It fits with {named}."


def _needs(choice: Choice) -> str:
    return f"from {choice.asked.card_gib:.2f} GiB a rank"


def _freed_and_quantized(job: StudyJob, search: Search) -> Iterator[Remedy]:
    yield from _freed(job, search)
    yield from _quantized(job, search)


def _freed(job: StudyJob, search: Search) -> Iterator[Remedy]:
    """Yield what the study has set and would better leave to the planner."""
    seen = set()
    for keys in FREED:
        if not keys & job.fixed:
            continue
        freed = replace(job, fixed=job.fixed - keys)
        choice = _fitting(freed if keys & BATCH else _with_least(freed), search)
        text = _written(choice.setting, job, keys & job.fixed) if choice else ""
        if choice and text not in seen:
            seen.add(text)
            yield Remedy(text=text, choice=choice)


def _written(setting: Setting, job: StudyJob, keys: frozenset[str]) -> str:
    """Return, as a study writes it, what of these keys a setting has otherwise than the job."""
    named = keys | (BATCH if keys & (BATCH | {"num_ranks"}) else frozenset())  # else the global batch would change
    written, training = job.written, job.written.training
    before = {
        "deepspeed": written.deepspeed, "num_ranks": written.num_ranks,
        "training.gradient_checkpointing": training.gradient_checkpointing,
        "training.per_device_train_batch_size": training.per_device_train_batch_size,
        "training.gradient_accumulation_steps": training.gradient_accumulation_steps,
    }  # fmt: skip
    planned = {key: setting.to_dict()[key.removeprefix("training.")] for key in before}
    changed = {key: value for key, value in planned.items() if key in named and value != before[key]}
    return " and ".join(f"{key}: {str(value).lower()}" for key, value in changed.items())


def _quantized(job: StudyJob, search: Search) -> Iterator[Remedy]:
    if job.spec.model.quantization != "nf4" and (choice := _fitting(_with_least(_as_nf4(job)), search)):
        yield Remedy(text="model.quantization: nf4", choice=choice)


def _shorter(job: StudyJob, search: Search) -> Iterator[Remedy]:
    """Yield the longest texts that fit, by halves, and the most chunks."""
    data = job.spec.data
    lengths = _shorter_lengths(job)
    chunks = [data.max_chunks >> cut for cut in (1, 2, 3) if data.long_text == "chunk" and data.max_chunks >> cut]
    for key, values in (("max_seq_length", lengths), ("max_chunks", chunks)):
        # The smallest first: where it does not help the others are not worth their forecasts.
        if not values or _fitting(_with_least(_with_data(job, key, values[-1])), search) is None:
            continue
        for value in values:
            if choice := _fitting(_with_data(job, key, value), search):
                yield Remedy(text=f"data.{key}: {value}", choice=choice)
                break


def _all_at_once(job: StudyJob, search: Search) -> Iterator[Remedy]:
    """Yield what fits where one change is not enough: everything left to the planner, an nf4 base, short texts."""
    free = replace(job, fixed=frozenset())
    quantized = _as_nf4(free)
    shortened = _shortened(quantized)
    for variant in (free, quantized, shortened):
        if choice := _fitting(_with_least(variant), search):
            changes = [_written(choice.setting, job, job.fixed)]
            if variant is not free and quantized is not free:
                changes.append("model.quantization: nf4")
            if variant is shortened and shortened is not quantized:
                changes.append(f"data.max_seq_length: {shortened.spec.data.max_seq_length}")
                changes += ["data.max_chunks: 1"] if job.spec.data.long_text == "chunk" else []
            yield Remedy(text=" and ".join(filter(None, changes)), choice=choice)
            return


def _with_least(job: StudyJob) -> StudyJob:
    """Return a job that needs least of what its study leaves open, so that one forecast a file says whether it fits."""
    training, fixed = job.spec.training, job.fixed
    if not fixed & BATCH:
        texts = training.per_device_train_batch_size * training.gradient_accumulation_steps
        training = replace(training, per_device_train_batch_size=1, gradient_accumulation_steps=texts)
    if "training.gradient_checkpointing" not in fixed:
        training = replace(training, gradient_checkpointing=True)
    spec = replace(job.spec, training=training)
    # Accumulation stays open: it follows from the number of ranks.
    named = {"training.per_device_train_batch_size", "training.gradient_checkpointing"}
    return replace(job, spec=spec, fixed=fixed | named)


def _as_nf4(job: StudyJob) -> StudyJob:
    if job.spec.model.quantization == "nf4":
        return job
    return replace(job, spec=replace(job.spec, model=replace(job.spec.model, quantization="nf4")))


def _shortened(job: StudyJob) -> StudyJob:
    """Return a job with the shortest texts that are suggested, of one chunk."""
    lengths = _shorter_lengths(job)
    shorter = _with_data(job, "max_seq_length", lengths[-1]) if lengths else job
    return _with_data(shorter, "max_chunks", 1) if job.spec.data.long_text == "chunk" else shorter


def _shorter_lengths(job: StudyJob) -> list[int]:
    """Return the lengths of texts that are tried, the longest first; chunks must be longer than their overlap."""
    data = job.spec.data
    shortest = max(SHORTEST, 2 * data.chunk_overlap) if data.long_text == "chunk" else SHORTEST
    return [data.max_seq_length >> cut for cut in (1, 2, 3, 4) if data.max_seq_length >> cut >= shortest]


def _with_data(job: StudyJob, key: str, value: int) -> StudyJob:
    changed: dict[str, Any] = {key: value}
    return replace(job, spec=replace(job.spec, data=replace(job.spec.data, **changed)))


def _fitting(job: StudyJob, search: Search) -> Choice | None:
    """Return how a job runs where it fits; what the trainer would refuse is no remedy."""
    try:
        choice = search(job)
    except UserError:
        return None
    return choice if choice.refusal is None else None
