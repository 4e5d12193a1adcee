"""Cards of several generations: a job is planned for each precision that they would train it in.

`model.dtype: auto` is bf16 on one card and fp32 on another, which takes twice the memory. So the setting, the memory
and the time are found for the cards of each precision by themselves; the job may then go to any of them, and its ranks
are told the precision it was planned in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from launcher.cards import Card
from launcher.choose import Choice
from launcher.expand import StudyJob
from launcher.speed import planned_precision, relative_speed
from training.errors import UserError

ChooseAmong = Callable[[StudyJob, Sequence[Card], str], Choice]
"""Returns the setting of a job on some of the cards, all of this precision; of any, where that is empty."""


def by_precision(job: StudyJob, cards: Sequence[Card], *, on_card: bool) -> Mapping[str, list[Card]]:
    """Return precision -> the cards that a job is to be planned for in it, those of the fastest card first; "" where
    the cards do not decide on it: the study does, or the ranks run on the CPU."""
    if not on_card or not cards or job.spec.model.dtype != "auto":
        return {"": list(cards)}
    found: dict[str, list[Card]] = {}
    for card in sorted(cards, key=lambda card: -relative_speed(card.kind)):
        found.setdefault(planned_precision(card.kind), []).append(card)
    return found


def in_precision(job: StudyJob, precision: str) -> StudyJob:
    """Return a job that is told its precision; as it was where that is none."""
    if not precision:
        return job
    told: dict[str, Any] = {"dtype": precision}
    return replace(job, spec=replace(job.spec, model=replace(job.spec.model, **told)))


def choose_for_each(job: StudyJob, cards: Sequence[Card], choose_among: ChooseAmong, *, on_card: bool) -> Choice:
    """Return how a job runs where it ends soonest, with how it runs `instead` on cards of other precisions.

    Raises UserError for what the trainer refuses on all of them.
    """
    choices: list[Choice] = []
    refused: UserError | None = None
    for precision, some in by_precision(job, cards, on_card=on_card).items():
        try:
            choices.append(choose_among(in_precision(job, precision), some, precision))
        except UserError as error:  # as a DeepSpeed file that says bf16, of cards without it
            refused = refused or error
    if not choices:
        assert refused is not None
        raise refused
    best, *others = sorted(choices, key=lambda choice: (choice.refusal is not None, choice.seconds))
    return best.or_else([other for other in others if other.refusal is None])
