"""A job on its cards: its ranks as Ray actors, and what their ends say of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from launcher.board import TOLERANCE, Board, Placement, Request
from launcher.cards import Card
from launcher.choose import Choice
from launcher.cluster import Cluster
from launcher.expand import StudyJob
from launcher.folder import fingerprint
from launcher.forecast import Planned
from launcher.worker import Outcome, RankActor, RunJob
from training.plan import Plan
from training.redact import redact
from training.result import RunResult
from training.spec import JobSpec


@dataclass(frozen=True, kw_only=True)
class Unwanted:
    """Why a job is ended before its time."""

    status: Literal["cancelled", "stopped early"]
    message: str
    stopped: dict[str, Any] = field(default_factory=dict)
    """RunResult.stopped."""


CANCELLED = Unwanted(status="cancelled", message="cancelled by the user")


@dataclass(kw_only=True, eq=False)
class RunningJob:
    """A job on its cards, or waiting for Ray to reserve them."""

    job: StudyJob
    spec: JobSpec
    """The job as it was planned."""
    placement: Placement
    workdir: str
    group: Any
    """Ray's placement group, which holds the job's part of the cards."""
    reservation: Any
    """Ready once it does."""
    give_up_at: float
    """When to stop waiting for that."""
    actors: list[Any] = field(default_factory=list)
    refs: list[Any] = field(default_factory=list)
    """Of each rank's outcome, in rank order."""
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    """Rank -> how it ended, for those that have."""
    resumes: bool = False
    """Whether it goes on from a checkpoint."""
    began_at: float = 0.0
    seconds: float = 0.0
    """From the start of its ranks to their end, once they have ended."""
    goes_on: bool = False
    """Whether the job tries again already: only its logs are still wanted of this try."""
    unwanted: Unwanted | None = None
    """Why nobody wants more of it, where that is so."""

    def open_refs(self) -> list[Any]:
        """Return the references of the ranks that have not ended."""
        return [ref for rank, ref in enumerate(self.refs) if rank not in self.outcomes]


LEAST_JOB_GIB = 0.7
"""What any job takes of a card: CUDA's context, cuBLAS's workspace and the least slack of PyTorch's allocator."""


def limit_of(placement: Placement, card: Card, board: Board) -> float | None:
    """Return the GiB that a rank of a job on the board may use of its card; None for all of it.

    A job that is alone on a card which has no room for another is not limited: what no other could use is no other's,
    and a forecast that is a little low does not fail beside it.
    """
    alone = board.num_jobs.get(card.key, 0) <= 1 and card.gib >= card.size - TOLERANCE
    crowded = board.free_gib.get(card.key, card.gib) < LEAST_JOB_GIB
    return None if alone and crowded else placement.request.card_gib


def start_ranks(cluster: Cluster, running: RunningJob, inbox: Any, run_job: RunJob | None, board: Board) -> None:
    """Start the actors of a job, one a rank; the board has the job on its cards."""
    placement = running.placement
    nodes = [card.node_id for card in placement.cards]
    one_node = len(set(nodes)) == 1
    address = None
    for rank, card in enumerate(placement.cards):
        actor = cluster.rank_actor(
            RankActor, running.workdir, rank, placement=placement, group=running.group, rank=rank
        )
        address = actor.address.remote(one_node) if address is None else address
        ranks = {
            "rank": rank,
            "world_size": len(nodes),
            "local_rank": nodes[:rank].count(card.node_id),
            "local_world_size": nodes.count(card.node_id),
            "num_threads": card.num_threads,
            "card_gib": limit_of(placement, card, board),
            "card_most_gib": min(each.size for each in placement.cards),
        }
        running.actors.append(actor)
        run = actor.run.options(name=f"{running.job.name}: rank {rank}")
        running.refs.append(run.remote(running.spec, ranks, address, inbox, run_job))


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a try of a job failed."""

    message: str
    log_tail: str
    died: bool = False
    """A rank was killed or its PC has gone: not the job's fault."""
    is_user_error: bool = False

    def may_pass(self, earlier: list[str]) -> bool:
        """Whether another try may fare better; what a job raises twice it will raise again."""
        return self.died or (not self.is_user_error and self.message not in earlier)


def failure_of(running: RunningJob) -> Failure | None:
    """Return why a job that has ended failed; None where it ended well."""
    failed = [(rank, answer) for rank, answer in sorted(running.outcomes.items()) if not answer["ok"]]
    if failed:
        # A user's mistake says most, then a rank that was killed; what the others met is its consequence.
        rank, answer = min(failed, key=lambda item: (not item[1].get("is_user_error"), not item[1].get("died")))
        prefix = "" if answer.get("is_user_error") or len(running.refs) == 1 else f"rank {rank}: "
        return Failure(
            message=prefix + answer["error"],
            log_tail=answer.get("log_tail", ""),
            died=bool(answer.get("died")),
            is_user_error=bool(answer.get("is_user_error")),
        )
    if running.outcomes.get(0, {}).get("result") is None:
        log_tail = running.outcomes.get(0, {}).get("log_tail", "")
        return Failure(message="rank 0 ended without a result", log_tail=log_tail)
    return None


def smaller_plan(running: RunningJob) -> Plan | None:
    """Return what a job that ran out of memory goes on with, from its newest checkpoint."""
    return next((Plan(**answer["plan"]) for _, answer in sorted(running.outcomes.items()) if "plan" in answer), None)


def asked_again(running: RunningJob) -> Request:
    """Return what a job that tries again asks for: what it had, or more of each card where it ran out of that."""
    # In no other way than it ran: its checkpoint and its plan are of that precision.
    asked, plan = replace(running.placement.request, instead=()), smaller_plan(running)
    if plan is None or plan.card_gib <= asked.card_gib:
        return asked
    return replace(asked, card_gib=min(plan.card_gib, *(card.size for card in running.placement.cards)))


def result_of(running: RunningJob, planned: Planned, restarts: list[str]) -> RunResult:
    """Return the result of a job that ended well, with what the head knows of it."""
    known: dict[str, Any] = {}
    expected: dict[str, float] = {}
    if isinstance(planned, Choice):
        expected = {"expected_seconds": round(running.placement.seconds, 2)}
        memory = planned.forecast.memory
        known = {"forecast": {"card": memory.card, "host": memory.host}, "setting": planned.setting.to_dict()}
    return replace(
        RunResult(**running.outcomes[0]["result"]),
        name=running.job.name,
        settings=running.job.written.to_dict(),
        fingerprint=fingerprint(running.job),
        restarts=restarts,
        **known,
        placement={**running.placement.to_dict(), "seconds": round(running.seconds, 2), **expected},
    )


def unsuccessful(
    job: StudyJob,
    status: Literal["failed", "cancelled", "stopped early"],
    message: str,
    log_tail: str,
    restarts: list[str],
    stopped: dict[str, Any] | None = None,
) -> RunResult:
    """Return what is kept of a job that has no result."""
    return RunResult(
        name=job.name,
        status=status,
        settings=job.written.to_dict(),
        fingerprint=fingerprint(job),
        num_ranks=job.written.num_ranks,
        restarts=restarts,
        stopped=stopped or {},
        error={"message": redact(message), "log_tail": redact(log_tail)},
    )
