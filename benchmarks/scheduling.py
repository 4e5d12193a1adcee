"""The scheduler on simulated clusters: how close to the shortest possible study, and how long it takes to decide.

    python benchmarks/scheduling.py             # two clusters, about a minute; writes benchmarks/results/scheduling.*

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
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from launcher.board import Board, Placement, Request  # noqa: E402
from launcher.cards import Card, Node  # noqa: E402
from launcher.schedule import Scheduler  # noqa: E402

MOST_OVER_BOUND = 1.10
MOST_SECONDS_A_JOB = 0.002

# A rank of a LLaMA-1B in nf4 ... of an 8B in bf16 with its layers recomputed; the share of jobs that take it.
JOB_GIB = {2.2: 0.2, 3.4: 0.2, 4.6: 0.15, 5.5: 0.1, 7.2: 0.15, 9.5: 0.1, 11.4: 0.05, 17.8: 0.05}
NUM_RANKS = {1: 0.85, 2: 0.12, 4: 0.03}
HOST_GIB = (1.5, 6.0)
MEDIAN_SECONDS, SIGMA = 900.0, 0.7
MISJUDGED = 0.2
"""Standard deviation of the logarithm of real over expected time."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What a study runs on: nodes of up to four cards of one size."""

    name: str
    num_jobs: int
    cards: dict[int, int]
    """GiB -> number."""

    def build(self) -> tuple[list[Card], dict[str, Node]]:
        cards: list[Card] = []
        nodes: dict[str, Node] = {}
        for size, number in self.cards.items():
            for first in range(0, number, 4):
                name = f"pc{len(nodes):04d}"
                nodes[name] = Node(node_id=name, host=name, total_gib=64.0, host_gib=64.0, cores=16)
                cards += [
                    Card(node_id=name, host=name, index=index, size=size, gib=float(size), num_threads=4)
                    for index in range(min(4, number - first))
                ]
        return cards, nodes


CLUSTERS = [
    Cluster(name="1,000 jobs on 20 cards", num_jobs=1000, cards={8: 8, 12: 4, 16: 4, 24: 4}),
    Cluster(name="10,000 jobs on 1,000 cards", num_jobs=10_000, cards={8: 400, 12: 300, 16: 150, 24: 150}),
]


def draw_jobs(number: int, seed: int) -> tuple[list[Request], dict[str, float]]:
    """Return jobs in the order they are submitted, and how long each really runs."""
    rng = random.Random(seed)
    jobs, real = [], {}
    for index in range(number):
        expected = rng.lognormvariate(math.log(MEDIAN_SECONDS), SIGMA)
        jobs.append(
            Request(
                job=f"job{index:05d}",
                num_ranks=rng.choices(list(NUM_RANKS), list(NUM_RANKS.values()))[0],
                card_gib=rng.choices(list(JOB_GIB), list(JOB_GIB.values()))[0],
                host_gib=round(rng.uniform(*HOST_GIB), 0),
                seconds=expected,
            )
        )
        real[jobs[-1].job] = expected * rng.lognormvariate(0.0, MISJUDGED)
    return jobs, real


def lower_bound(jobs: Sequence[Request], real: dict[str, float], cards: Sequence[Card]) -> tuple[float, float]:
    """Return the volume bound in seconds and the longest job; no schedule is shorter than either.

    The volume, GiB x seconds, of the jobs that need more than some size has only the cards of that size and above.
    """
    volume = 0.0
    for least in {0.0, *(float(card.size) for card in cards)}:
        space = sum(card.gib for card in cards if card.size > least)
        needed = sum(job.num_ranks * job.card_gib * real[job.job] for job in jobs if job.card_gib > least)
        volume = max(volume, needed / space if space else 0.0)
    return volume, max(real.values())


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
            cards = self.board.find(self.queue[0], lambda key: self.board.num_jobs[key] == 0)
            if not cards:
                break
            placement = Placement(request=self.queue.pop(0), cards=cards)
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


def simulate(scheduler: Any, jobs: Sequence[Request], real: dict[str, float]) -> tuple[list[Run], float]:
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
            end = now + real[placement.job]
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
    jobs, real = draw_jobs(cluster.num_jobs, seed)
    volume, longest = lower_bound(jobs, real, cards)
    row: dict[str, Any] = {
        "cluster": asdict(cluster), "seed": seed, "volume_seconds": volume, "longest_seconds": longest,
        "schedulers": {},
    }  # fmt: skip
    all_runs = {}
    for name, scheduler in (("shoal", Scheduler(cards, nodes)), ("fcfs", FirstComeFirstServed(cards, nodes))):
        runs, spent = simulate(scheduler, jobs, real)
        makespan = max(run.end for run in runs)
        all_runs[name] = runs
        row["schedulers"][name] = {
            "jobs": len(runs), "makespan_seconds": makespan, "over_bound": makespan / max(volume, longest),
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
