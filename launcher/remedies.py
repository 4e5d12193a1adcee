"""What would make a job fit that fits no card: each change to its study is tried, and named only where it does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol

from launcher.choose import Choice
from launcher.expand import StudyJob
from launcher.settings import Setting, deepspeed_source
from training.errors import ShoalError, UserError

BATCH = frozenset({"training.per_device_train_batch_size", "training.gradient_accumulation_steps"})
FREED = (
    frozenset({"training.gradient_checkpointing"}), BATCH, frozenset({"deepspeed"}), frozenset({"num_ranks"}) | BATCH,
)  # fmt: skip
"""Settings that a study may leave to the planner, those that belong together in one."""
QUANTIZATION, LENGTH, CHUNKS = "model.quantization", "data.max_seq_length", "data.max_chunks"
EVALUATION_BATCH = "training.per_device_eval_batch_size"
MOST = 3
"""Changes that are named."""
SHORTEST = 16
"""Tokens; shorter texts are not suggested."""


class Search(Protocol):
    """Plans a job; see `launcher.choose.choose` for `least`. Raises ShoalError where that fails."""

    def __call__(self, job: StudyJob, *, least: bool) -> Choice:
        """Return how it runs."""


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """A change to a study under which a job fits."""

    text: str
    choice: Choice
    """How the job could run then."""

    def __str__(self) -> str:
        gib = f"{self.choice.asked.card_gib:.2f} GiB"
        if self.choice.forecast.memory.card:  # the host's memory may be what decided
            gib += f" of card memory and {self.choice.asked.host_gib:.2f} GiB of host memory"
        return f"{self.text} ({gib} a rank are enough then)"


class _Trials:
    """Tries variants of a job."""

    def __init__(self, search: Search) -> None:
        self.search = search
        self.has_failed = False
        """Whether a forecast failed; then it is not known that nothing else fits."""
        self.quantized = False
        """Whether the trainer took an nf4 base."""

    def fitting(self, job: StudyJob, *, least: bool = True) -> Choice | None:
        """Return how a job runs where it fits; what the trainer would refuse is no remedy."""
        try:
            choice = self.search(job, least=least)
        except UserError:
            return None
        except ShoalError:
            self.has_failed = True
            return None
        self.quantized |= job.spec.model.quantization == "nf4"
        return choice if choice.refusal is None else None


def remedies(job: StudyJob, search: Search) -> str:
    """Return in a sentence what would make a job fit: the least change there is, in the order below, and its rivals.

    Empty where that is not known: forecasts failed, or what fits cannot be told from the study by its words.
    """
    trials = _Trials(search)
    found: list[Remedy] = []
    fits = any(trials.fitting(_shortened(base)) for base in _bases(job))
    if fits:
        # A big model's forecast takes seconds, so what changes more is tried only where less does not do.
        for ways in (_freed_and_quantized, _all_freed, _shorter, _all_at_once):
            found = found or list(islice(ways(job, trials), MOST))
    if found:
        return f"It fits with {'; or with '.join(map(str, found))}."
    if fits or trials.has_failed:
        return ""
    nf4 = "an nf4 base, " if trials.quantized and job.spec.model.quantization != "nf4" else ""
    return (
        f"Nor does it fit with {nf4}the shortest texts, one at a time, and all else left to the planner: "
        "take a smaller model, or more memory."
    )


def _bases(job: StudyJob) -> Iterator[StudyJob]:
    """Yield the job with all left to the planner, as it is and on an nf4 base, then with what the planner would not try
    by itself: the study's own DeepSpeed file and ranks."""
    own = job.fixed & {"deepspeed", "num_ranks"}
    kept = [frozenset[str](), *([own] if own else []), *(frozenset({key}) for key in sorted(own) if len(own) > 1)]
    for fixed in kept:
        free = replace(job, fixed=fixed)
        yield free
        if job.spec.model.quantization != "nf4":
            yield _with(free, QUANTIZATION, "nf4")


def _freed_and_quantized(job: StudyJob, trials: _Trials) -> Iterator[Remedy]:
    """Yield what the study has set and would better leave to the planner, and an nf4 base."""
    yield from _freed(job, trials)
    if job.spec.model.quantization != "nf4" and (choice := trials.fitting(_with(job, QUANTIZATION, "nf4"))):
        yield Remedy(text=f"{QUANTIZATION}: nf4", choice=choice)


def _freed(job: StudyJob, trials: _Trials) -> Iterator[Remedy]:
    """Yield each setting, or those that belong together, that the planner would choose otherwise."""
    seen = set()
    for keys in FREED:
        if not keys & job.fixed or ("num_ranks" in keys and "num_ranks" not in job.fixed):
            continue
        least = not keys & BATCH  # a batch is named as it is: the largest that fits
        choice = trials.fitting(replace(job, fixed=job.fixed - keys), least=least)
        text = _written(choice.setting, job, keys & job.fixed) if choice else ""
        if choice and text and text not in seen:
            seen.add(text)
            yield Remedy(text=text, choice=choice)


def _all_freed(job: StudyJob, trials: _Trials) -> Iterator[Remedy]:
    """Yield all that the study has set, as the planner would choose it."""
    choice = trials.fitting(replace(job, fixed=frozenset()), least=False)
    if choice and (text := _written(choice.setting, job, job.fixed)):
        yield Remedy(text=text, choice=choice)


def _shorter(job: StudyJob, trials: _Trials) -> Iterator[Remedy]:
    """Yield the largest evaluation batch, the longest texts and the most chunks that fit, each by itself."""
    for key, (_, *smaller) in reversed(_sizes(job).items()):
        if found := _largest(job, key, smaller, trials):
            variant, choice = found
            yield Remedy(text=_changed(variant, job), choice=choice)


def _all_at_once(job: StudyJob, trials: _Trials) -> Iterator[Remedy]:
    """Yield what fits where one change is not enough: an nf4 base, and with it or not texts as long as may be."""
    bases = list(_bases(job))
    for base in (*bases, *map(_shortened, bases)):
        if not trials.fitting(base):
            continue
        variant = _grown(base, job, trials)
        if choice := trials.fitting(variant, least=False):
            text = " and ".join(filter(None, (_written(choice.setting, job, job.fixed), _changed(variant, job))))
            if text:
                yield Remedy(text=text, choice=choice)
                return


def _grown(variant: StudyJob, job: StudyJob, trials: _Trials) -> StudyJob:
    """Return a variant that fits with each size, one after the other, as near the job's own as fits."""
    for key, sizes in _sizes(job).items():
        if _value(variant, key) != sizes[0] and (found := _largest(variant, key, sizes, trials)):
            variant, _ = found
    return variant


def _largest(job: StudyJob, key: str, sizes: Sequence[int], trials: _Trials) -> tuple[StudyJob, Choice] | None:
    """Return a job with the first of these descending sizes of a setting that fits, and how it runs; by halving.

    The last is tried first: where it does not fit, none does.
    """

    def trial(size: int) -> tuple[StudyJob, Choice] | None:
        variant = _with(job, key, size)
        choice = trials.fitting(variant)
        return (variant, choice) if choice else None

    best = trial(sizes[-1]) if sizes else None
    if best is None:
        return None
    first, last = 0, len(sizes) - 1
    while first < last:
        middle = (first + last) // 2
        if found := trial(sizes[middle]):
            best, last = found, middle
        else:
            first = middle + 1
    return best


def _sizes(job: StudyJob) -> dict[str, list[int]]:
    """Return the settings that can be made smaller -> the job's own size and its halves.

    Texts come first: they are the last that should be cut. Chunks must be longer than their overlap.
    """
    data = job.spec.data
    is_chunked = data.long_text == "chunk"
    shortest = max(SHORTEST, 2 * data.chunk_overlap) if is_chunked else SHORTEST
    sizes = {LENGTH: _halves(data.max_seq_length, shortest)}
    if is_chunked:
        sizes[CHUNKS] = _halves(data.max_chunks, 1)
    return {**sizes, EVALUATION_BATCH: _halves(job.spec.training.per_device_eval_batch_size, 1)}


def _halves(size: int, smallest: int) -> list[int]:
    """Return a size and its halves down to the smallest that is suggested."""
    return [size, *(size >> cut for cut in range(1, size.bit_length()) if size >> cut >= smallest)]


def _shortened(job: StudyJob) -> StudyJob:
    """Return a job with the smallest of all sizes."""
    for key, sizes in _sizes(job).items():
        job = _with(job, key, sizes[-1])
    return job


def _written(setting: Setting, job: StudyJob, keys: frozenset[str]) -> str:
    """Return, as a study writes it, what of these keys a setting has otherwise than the job."""
    global_batch = BATCH | {"num_ranks"}
    named = keys | (global_batch if keys & global_batch else frozenset())  # they change together, or it would change
    written, training = job.written, job.written.training
    before = {
        "deepspeed": deepspeed_source(job), "num_ranks": written.num_ranks,
        "training.gradient_checkpointing": training.gradient_checkpointing,
        "training.per_device_train_batch_size": training.per_device_train_batch_size,
        "training.gradient_accumulation_steps": training.gradient_accumulation_steps,
    }  # fmt: skip
    planned = {key: setting.to_dict()[key.removeprefix("training.")] for key in before}
    changed = {key: value for key, value in planned.items() if key in named and value != before[key]}
    return " and ".join(f"{key}: {str(value).lower()}" for key, value in changed.items())


def _changed(variant: StudyJob, job: StudyJob) -> str:
    """Return, as a study writes it, what a variant has otherwise than the job, but for what may be planned."""
    values = {key: _value(variant, key) for key in (QUANTIZATION, *_sizes(job))}
    return " and ".join(f"{key}: {value}" for key, value in values.items() if value != _value(job, key))


def _value(job: StudyJob, key: str) -> Any:
    """Return a setting of a section by its dotted key."""
    section, name = key.split(".")
    return getattr(getattr(job.spec, section), name)


def _with(job: StudyJob, key: str, value: Any) -> StudyJob:
    """Return a job with another value of a setting."""
    section, name = key.split(".")
    changed: dict[str, Any] = {section: replace(getattr(job.spec, section), **{name: value})}
    return replace(job, spec=replace(job.spec, **changed))
