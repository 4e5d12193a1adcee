"""The scheduler on simulated clusters: how close to the shortest possible study, and how long it takes to decide.

    python benchmarks/scheduling.py             # four clusters; writes benchmarks/results/scheduling.*

A discrete-event simulation around the launcher's own `Scheduler`: jobs draw their memory from what LLaMA-1B to 8B jobs
take and their time from a log-normal distribution; how long one really runs differs from what was expected. Beside it
first come, first served on whole cards, which is what a queue without memory per card does. Memory is what jobs share
a card by: that several on a card slow each other is not simulated, for neither side.

Exit status 1 where the makespan is more than 1.10 x the lower bound, a card or host was over-booked, or deciding took
more than 2 ms a job.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import platform
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.scheduling_bound import shortest  # noqa: E402
from launcher.board import Board, Placement, Request  # noqa: E402
from launcher.cards import Card, CardKind, Node  # noqa: E402
from launcher.known_cards import read_cards  # noqa: E402
from launcher.schedule import Scheduler  # noqa: E402
from launcher.speed import planned_precision, relative_speed  # noqa: E402

MOST_OVER_BOUND = 1.10
MOST_SECONDS_A_JOB = 0.002

# A rank of a LLaMA-1B in nf4 ... of an 8B in bf16 with its layers recomputed; the share of jobs that take it.
JOB_GIB = {2.2: 0.2, 3.4: 0.2, 4.6: 0.15, 5.5: 0.1, 7.2: 0.15, 9.5: 0.1, 11.4: 0.05, 17.8: 0.05}
NUM_RANKS = {1: 0.85, 2: 0.12, 4: 0.03}
HOST_GIB = (1.5, 6.0)
MEDIAN_SECONDS, SIGMA = 900.0, 0.7
IN_FP32 = 1.6
"""What a job needs of a card in fp32, where one in 16 bits needs 1."""
MISJUDGED = 0.2
"""Standard deviation of the logarithm of real over expected time."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What a study runs on: nodes of up to four cards of one kind."""

    name: str
    num_jobs: int
    cards: dict[str, int]
    """Model, or size of cards that are all as fast -> number."""

    def build(self) -> tuple[list[Card], dict[str, Node]]:
        cards: list[Card] = []
        nodes: dict[str, Node] = {}
        for card, number in self.cards.items():
            for first in range(0, number, 4):
                name = f"pc{len(nodes):04d}"
                nodes[name] = Node(node_id=name, host=name, total_gib=64.0, host_gib=64.0, cores=16)
                cards += [
                    replace(self._card(card), node_id=name, host=name, index=index)
                    for index in range(min(4, number - first))
                ]
        return cards, nodes

    def _card(self, name: str) -> Card:
        """Return a card by its model, or one of so many GiB that is as fast as all others."""
        if name.endswith(" GiB"):
            size = float(name.removesuffix(" GiB"))
            return Card(node_id="", host="", index=0, size=size, gib=size, num_threads=4)
        return read_cards(name)[0]


CLUSTERS = [
    Cluster(
        name="1,000 jobs on 20 cards", num_jobs=1000, cards={"8 GiB": 8, "12 GiB": 4, "16 GiB": 4, "24 GiB": 4}
    ),
    Cluster(
        name="1,000 jobs on 20 cards of unequal speed", num_jobs=1000,
        cards={"2060": 5, "3060": 5, "4070": 5, "4090": 5},
    ),
    Cluster(
        name="10,000 jobs on 1,000 cards", num_jobs=10_000,
        cards={"8 GiB": 400, "12 GiB": 300, "16 GiB": 150, "24 GiB": 150},
    ),
    Cluster(
        name="10,000 jobs on 1,000 cards of unequal speed", num_jobs=10_000,
        cards={"2060": 250, "3060": 250, "4070": 250, "4090": 250},
    ),
]  # fmt: skip


def draw_jobs(number: int, seed: int, kinds: Collection[CardKind]) -> tuple[list[Request], dict[str, float]]:
    """Return jobs in the order they are submitted, and what each really takes over what is expected."""
    rng = random.Random(seed)
    jobs, misjudged = [], {}
    for index in range(number):
        expected = rng.lognormvariate(math.log(MEDIAN_SECONDS), SIGMA)
        drawn = Request(
            job=f"job{index:05d}",
            num_ranks=rng.choices(list(NUM_RANKS), list(NUM_RANKS.values()))[0],
            card_gib=rng.choices(list(JOB_GIB), list(JOB_GIB.values()))[0],
            host_gib=round(rng.uniform(*HOST_GIB), 0),
            seconds=expected,
        )
        jobs.append(planned(drawn, kinds))
        misjudged[drawn.job] = rng.lognormvariate(0.0, MISJUDGED)
    return jobs, misjudged


def planned(job: Request, kinds: Collection[CardKind]) -> Request:
    """Return a job as it is planned for kinds of cards: for each precision what it needs and how long it takes.

    It takes the time that was drawn on an RTX 3060, and elsewhere by what a card multiplies in its precision.
    """
    if not any(kind.capability for kind in kinds):
        return job
    options: dict[str, Request] = {}
    for kind in sorted(kinds, key=relative_speed, reverse=True):
        precision = planned_precision(kind)
        gib = round(job.card_gib * (IN_FP32 if precision == "fp32" else 1.0), 1)
        option = options.get(precision) or replace(job, precision=precision, card_gib=gib, seconds_on={})
        seconds = {**option.seconds_on, str(kind): job.seconds / relative_speed(kind)}
        options[precision] = replace(option, seconds_on=seconds, seconds=min(seconds.values()))
    first, *others = options.values()
    return replace(first, instead=tuple(others))


class FirstComeFirstServed:
    """Whole cards, jobs strictly in their order: the next one waits for cards, and all behind it do."""

    def __init__(self, cards: Sequence[Card], nodes: dict[str, Node]) -> None:
        self.board = Board(cards, nodes)
        self.queue: list[Request] = []
        self.running: dict[str, Placement] = {}

    def submit(self, request: Request) -> None:
        self.queue.append(request)

    def end(self, job: str) -> None:
        self.board.give(self.running.pop(job))

    def start(self, now: float) -> list[Placement]:
        placements = []
        while self.queue:
            placement = self.board.find(self.queue[0], lambda key: self.board.num_jobs[key] == 0)
            if placement is None:
                break
            self.queue.pop(0)
            self.board.take(placement)
            self.running[placement.job] = placement
            placements.append(placement)
        return placements


@dataclass(frozen=True, kw_only=True)
class Run:
    """One job of a simulated study."""

    placement: Placement
    begin: float
    end: float


def simulate(scheduler: Any, jobs: Sequence[Request], misjudged: Mapping[str, float]) -> tuple[list[Run], float]:
    """Run a study; return its jobs as they ran and the seconds that deciding took."""
    runs: list[Run] = []
    ends: list[tuple[float, str]] = []
    now, spent = 0.0, 0.0

    def timed(call: Callable[[], Any]) -> Any:
        nonlocal spent
        begin = time.perf_counter()
        answer = call()
        spent += time.perf_counter() - begin
        return answer

    for job in jobs:
        timed(partial(scheduler.submit, job))
    while True:
        for placement in timed(partial(scheduler.start, now)):
            end = now + placement.seconds * misjudged[placement.job]
            heapq.heappush(ends, (end, placement.job))
            runs.append(Run(placement=placement, begin=now, end=end))
        if not ends:
            return runs, spent
        now, job = heapq.heappop(ends)
        timed(partial(scheduler.end, job))


def over_booked(runs: Sequence[Run], nodes: dict[str, Node]) -> int:
    """Return how often a card or a host held more than it has, from the record of the runs alone."""
    changes: dict[tuple[str, Any], list[tuple[float, float]]] = defaultdict(list)
    limits: dict[tuple[str, Any], float] = {}
    for run in runs:
        for card in run.placement.cards:
            limits["card", card.key] = card.gib
            limits["host", card.node_id] = nodes[card.node_id].host_gib
            for key, gib in ((("card", card.key), run.placement.request.card_gib),
                             (("host", card.node_id), run.placement.request.host_gib)):  # fmt: skip
                changes[key] += [(run.begin, gib), (run.end, -gib)]
    times = 0
    for key, events in changes.items():
        held = 0.0
        for _, gib in sorted(events):  # at one moment, what ends goes before what begins
            held += gib
            times += held > limits[key] + 1e-6
    return times


def measure(cluster: Cluster, seed: int) -> tuple[dict[str, Any], dict[str, list[Run]]]:
    """Return the figures of both schedulers on one cluster, and how their jobs ran."""
    cards, nodes = cluster.build()
    jobs, misjudged = draw_jobs(cluster.num_jobs, seed, {card.kind for card in cards})
    bound = shortest(jobs, misjudged, cards)
    row: dict[str, Any] = {"cluster": asdict(cluster), "seed": seed, "bound_seconds": bound, "schedulers": {}}
    all_runs = {}
    for name, scheduler in (("shoal", Scheduler(cards, nodes)), ("fcfs", FirstComeFirstServed(cards, nodes))):
        runs, spent = simulate(scheduler, jobs, misjudged)
        makespan = max(run.end for run in runs)
        all_runs[name] = runs
        row["schedulers"][name] = {
            "jobs": len(runs), "makespan_seconds": makespan, "over_bound": makespan / bound,
            "over_booked": over_booked(runs, nodes), "milliseconds_a_job": 1000 * spent / len(jobs),
        }  # fmt: skip
    return row, all_runs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--seeds", type=int, default=3, help="draws of the jobs (default: 3)")
    parser.add_argument("--jobs", type=int, help="at most so many jobs a cluster, for a quick look")
    options = parser.parse_args()
    rows, gantt = [], None
    for cluster in CLUSTERS:
        size = min(cluster.num_jobs, options.jobs or cluster.num_jobs)
        for seed in range(options.seeds):
            row, runs = measure(Cluster(name=cluster.name, num_jobs=size, cards=cluster.cards), seed)
            rows.append(row)
            gantt = gantt or runs
            ours, theirs = row["schedulers"]["shoal"], row["schedulers"]["fcfs"]
            print(
                f"{cluster.name}, seed {seed}: {ours['over_bound']:.3f} x the bound (first come, first served "
                f"{theirs['over_bound']:.2f} x), {ours['milliseconds_a_job']:.2f} ms a job, "
                f"over-booked {ours['over_booked']} times",
                flush=True,
            )
    from benchmarks.scheduling_report import write

    assert gantt is not None
    good = [
        row["schedulers"]["shoal"]["over_bound"] <= MOST_OVER_BOUND
        and row["schedulers"]["shoal"]["over_booked"] == 0
        and row["schedulers"]["shoal"]["jobs"] == row["cluster"]["num_jobs"]
        and row["schedulers"]["shoal"]["milliseconds_a_job"] <= 1000 * MOST_SECONDS_A_JOB
        for row in rows
    ]
    head = {
        "date": date.today().isoformat(), "command": "python benchmarks/scheduling.py",
        "python": platform.python_version(), "machine": platform.machine(), "all_met": all(good),
    }  # fmt: skip
    write(options.output, json.loads(json.dumps({**head, "rows": rows})), gantt)
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
