"""The lower bound that benchmarks/scheduling.py measures against: no schedule of its jobs is shorter.

A linear program. Each job is cut over the kinds of cards that it may have, in shares that add up to one; on each kind
the volume of these shares (ranks x GiB x seconds there) fits into the kind's GiB times the length of the study; no job
takes longer than the study. That jobs are not cut, that their ranks start together and that memory has gaps is left
out, so real schedules are longer. Where all cards are equally fast it is the well-known bound by volume.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_array

from launcher.board import Request
from launcher.cards import Card


def shortest(jobs: Sequence[Request], misjudged: Mapping[str, float], cards: Sequence[Card]) -> float:
    """Return the seconds that no schedule of these jobs on these cards undercuts.

    `misjudged` is job -> what it really takes over what was expected.
    """
    kinds = sorted({card.kind for card in cards}, key=str)
    space = {kind: sum(card.gib for card in cards if card.kind == kind) for kind in kinds}
    largest = {kind: max(card.gib for card in cards if card.kind == kind) for kind in kinds}
    shares = [
        (index, place, option.num_ranks * option.card_gib, option.expected(kind) * misjudged[job.job])
        for index, job in enumerate(jobs)
        for option in job.options
        for place, kind in enumerate(kinds)
        if option.holds_on(kind) and option.card_gib <= largest[kind]
    ]
    return _solve(shares, len(jobs), [space[kind] for kind in kinds])


def _solve(shares: Sequence[tuple[int, int, float, float]], num_jobs: int, space: Sequence[float]) -> float:
    """Minimize the last variable, the length in hours; `shares` are (job, kind, GiB of all ranks, seconds)."""
    columns = np.arange(len(shares))
    job, kind = (np.array([share[place] for share in shares]) for place in (0, 1))
    gib, hours = np.array([share[2] for share in shares]), np.array([share[3] for share in shares]) / 3600
    length, num_kinds = len(shares), len(space)
    rows = np.concatenate([kind, num_kinds + job, np.arange(num_kinds + num_jobs)])
    values = np.concatenate([gib * hours, hours, -np.array(space), -np.ones(num_jobs)])
    places = np.concatenate([columns, columns, np.full(num_kinds + num_jobs, length)])
    limits = coo_array((values, (rows, places)), shape=(num_kinds + num_jobs, length + 1)).tocsr()
    whole = coo_array((np.ones(length), (job, columns)), shape=(num_jobs, length + 1)).tocsr()
    aim = np.zeros(length + 1)
    aim[-1] = 1.0
    found = linprog(
        aim, A_ub=limits, b_ub=np.zeros(num_kinds + num_jobs), A_eq=whole, b_eq=np.ones(num_jobs), method="highs"
    )
    assert found.status == 0, found.message
    return float(found.fun) * 3600
