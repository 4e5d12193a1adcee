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

BATCH_SIZE = frozenset({"training.per_device_train_batch_size"})
BATCH = BATCH_SIZE | {"training.gradient_accumulation_steps"}
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
    free = replace(job, fixed=frozenset())
    if all(_fitting(_with_least(_shortened(base)), search) is None for base in (free, _as_nf4(free))):
        return (
            "Nor does it fit with an nf4 base, short texts, one text at a time and all else left to the planner: take "
            "a smaller model, or more memory."
        )
    found: list[Remedy] = []
    # A big model's forecast takes seconds, so what changes more is tried only where less does not do.
    for ways in (_freed_and_quantized, _all_freed, _shorter, _all_at_once):
        found = found or list(islice(ways(job, search), MOST))
    named = "; or with ".join(f"{remedy.text} ({_needs(remedy.choice)})" for remedy in found)
    return f"It fits with {named}."


def _needs(choice: Choice) -> str:
    """Return what a rank needs; on a card the host's memory may be what decided."""
    host = f" and {choice.asked.host_gib:.2f} GiB of host memory" if choice.forecast.memory.card else ""
    return f"from {choice.asked.card_gib:.2f} GiB{host} a rank"


def _freed_and_quantized(job: StudyJob, search: Search) -> Iterator[Remedy]:
    yield from _freed(job, search)
    yield from _quantized(job, search)


def _freed(job: StudyJob, search: Search) -> Iterator[Remedy]:
    """Yield what the study has set and would better leave to the planner."""
    seen = set()
    for keys in FREED:
        if not keys & job.fixed or ("num_ranks" in keys and "num_ranks" not in job.fixed):
            continue
        freed = replace(job, fixed=job.fixed - keys)
        choice = _fitting(freed if keys & BATCH else _with_least(freed), search)
        text = _written(choice.setting, job, keys & job.fixed) if choice else ""
        if choice and text not in seen:
            seen.add(text)
            yield Remedy(text=text, choice=choice)


def _written(setting: Setting, job: StudyJob, keys: frozenset[str]) -> str:
    """Return, as a study writes it, what of these keys a setting has otherwise than the job."""
    global_batch = BATCH | {"num_ranks"}
    named = keys | (global_batch if keys & global_batch else frozenset())  # they change together, or it would change
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


def _all_freed(job: StudyJob, search: Search) -> Iterator[Remedy]:
    if choice := _fitting(_with_least(replace(job, fixed=frozenset())), search):
        yield Remedy(text=_written(choice.setting, job, job.fixed | BATCH), choice=choice)


def _shorter(job: StudyJob, search: Search) -> Iterator[Remedy]:
    """Yield a smaller evaluation batch, the longest texts that fit, by halves, and the most chunks."""
    if choice := _fitting(_with_least(_evaluated_singly(job)), search):
        yield Remedy(text=_changed(_evaluated_singly(job), job), choice=choice)
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
    for variant in (_as_nf4(free), _shortened(free), _shortened(_as_nf4(free))):
        if choice := _fitting(_with_least(variant), search):
            text = " and ".join(filter(None, (_written(choice.setting, job, job.fixed), _changed(variant, job))))
            yield Remedy(text=text, choice=choice)
            return


def _changed(variant: StudyJob, job: StudyJob) -> str:
    """Return, as a study writes it, what a variant has otherwise than the job, but for what may be planned."""
    values = [
        {
            "model.quantization": spec.model.quantization, "data.max_seq_length": spec.data.max_seq_length,
            "data.max_chunks": spec.data.max_chunks,
            "training.per_device_eval_batch_size": spec.training.per_device_eval_batch_size,
        }
        for spec in (variant.spec, job.spec)
    ]  # fmt: skip
    return " and ".join(f"{key}: {value}" for key, value in values[0].items() if value != values[1][key])


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
    named = {"training.gradient_checkpointing"} | (BATCH_SIZE if not fixed & BATCH else set())
    return replace(job, spec=spec, fixed=fixed | named)


def _evaluated_singly(job: StudyJob) -> StudyJob:
    training = replace(job.spec.training, per_device_eval_batch_size=1)
    return replace(job, spec=replace(job.spec, training=training))


def _as_nf4(job: StudyJob) -> StudyJob:
    if job.spec.model.quantization == "nf4":
        return job
    return replace(job, spec=replace(job.spec, model=replace(job.spec.model, quantization="nf4")))


def _shortened(job: StudyJob) -> StudyJob:
    """Return a job with the shortest texts that are suggested, of one chunk, each evaluated by itself."""
    lengths = _shorter_lengths(job)
    shorter = _evaluated_singly(_with_data(job, "max_seq_length", lengths[-1]) if lengths else job)
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
