"""`shoal plan STUDY`: how a study's jobs would run, what they need and take, without Ray and without the cards."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from launcher.cards import GIB, Card, Node, local_cards
from launcher.choose import Choice
from launcher.fit import equal_cards
from launcher.folder import StudyFolder
from launcher.forecast import plan_jobs
from launcher.known_cards import as_planned, read_cards
from launcher.plan_text import PlannedJob, print_jobs
from launcher.run import OUTPUTS, read_jobs
from training.errors import EXIT_FAILED, EXIT_USER_ERROR, UserError


def print_plan(study_file: Path, cards_text: str | None, *, as_json: bool) -> int:
    """Print a study's jobs and how they would run; return the exit status, 2 where one is refused or fits nowhere.

    `cards_text` names the cards to plan for, as launcher.known_cards reads it, of a PC whose memory is not known;
    without it those of this machine, or the study's virtual ones.
    """
    named = read_cards(cards_text) if cards_text else []
    study, jobs = read_jobs(study_file, on_own_cards=not named)
    cards = named or as_planned(local_cards(study.cards_gib, virtual=study.virtual_cards))
    on_card = not cards[0].is_virtual
    host_gib = math.inf if named else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
    nodes = {"here": Node(node_id="here", host="here", total_gib=host_gib, host_gib=host_gib, cores=len(cards))}
    folder = StudyFolder(OUTPUTS / study.name)
    items = []
    with Console(stderr=True).status("planning ...") as status:
        for job, planned in plan_jobs(jobs, cards, nodes, on_card=on_card):
            fits = fitting_sizes(planned, cards) if isinstance(planned, Choice) else ()
            ended = folder.finished(job) or folder.stopped(job, study.early_stopping)
            runs = isinstance(planned, Choice) and planned.refusal is None
            refused = isinstance(planned, Choice | UserError)
            state = "finished" if ended else "to run" if runs else "refused" if refused else "not known"
            items.append(PlannedJob(job=job, planned=planned, status=state, fits=fits if runs else ()))
            status.update(f"planning: {len(items)} of {len(jobs)} jobs")
    items.sort(key=lambda item: [job.name for job in jobs].index(item.job.name))
    if as_json:
        print(json.dumps([item.to_dict() for item in items], indent=2))
    else:
        print_jobs(items, cards, host_gib, on_card=on_card)
    found = {item.status for item in items}
    return EXIT_FAILED if "not known" in found else EXIT_USER_ERROR if "refused" in found else 0


def fitting_sizes(choice: Choice, cards: Sequence[Card]) -> tuple[float, ...]:
    """Return the GiB of the cards that hold a rank, of which there are enough; of equal cards what the least has."""
    found: set[float] = set()
    for asked in choice.asked.options:
        hold = equal_cards(card for card in cards if card.gib >= asked.card_gib and asked.holds_on(card.kind))
        found |= {same[-1].gib for same in hold.values() if len(same) >= asked.num_ranks}
    return tuple(sorted(found))
