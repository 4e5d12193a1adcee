"""The logs of tries that have ended, on their way from the nodes they ran on to the study's folder."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from launcher.cluster import Cluster
from launcher.running import RunningJob
from launcher.worker import collect_logs

COLLECT_SECONDS = 10.0
"""How long an interrupted study waits for logs."""


class LogCollector:
    """Has logs sent home, and says when the last of a try are there."""

    def __init__(self, cluster: Cluster, inbox: Any) -> None:
        self.cluster, self.inbox = cluster, inbox
        self.open: dict[Any, RunningJob] = {}
        """Reference of what a node sends -> the try that it is of."""

    def begin(self, running: RunningJob) -> None:
        """Start; where the job tries again already, its logs get the time before their names, that none is lost."""
        name = running.job.name
        prefix = f"{datetime.now():%Y-%m-%dT%H-%M-%S}." if running.goes_on else ""
        for node_id in dict.fromkeys(card.node_id for card in running.placement.cards):
            arguments = (name, running.workdir, self.inbox, prefix)
            title = f"{name}: collect logs"
            ref = self.cluster.task(collect_logs, *arguments, name=title, node_id=node_id, is_light=True)
            self.open[ref] = running

    def take(self, ref: Any) -> RunningJob | None:
        """Keep the ends of a node's logs; return the try where it has waited for these to be settled."""
        running = self.open.pop(ref)
        outcome = self.cluster.outcome(ref)
        tails: dict[str, str] = outcome["result"] if outcome["ok"] else {}
        running.outcomes = {
            rank: {**answer, "log_tail": tails.get(f"rank{rank}.log", answer.get("log_tail", ""))}
            for rank, answer in running.outcomes.items()
        }
        return None if running.goes_on or running in self.open.values() else running

    def waiting(self, job: str) -> RunningJob | None:
        """Return a job's try that is settled once its logs are there."""
        return next((each for each in self.open.values() if each.job.name == job and not each.goes_on), None)

    def finish(self) -> None:
        """Wait for what is on its way, for a while."""
        if self.open:
            self.cluster.ray.wait(list(self.open), num_returns=len(self.open), timeout=COLLECT_SECONDS)
