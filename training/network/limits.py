"""How the ranks of a job join, and how long a collective call may take before they give up on each other."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from training.errors import ShoalError
from training.ranks import Ranks

START_MINUTES = 120.0
"""While ranks start: one PC may have to download the base that another has already."""
TRAINING_MINUTES = 10.0
"""Within a step. Where a rank may be late for good reason they meet (training.network.meeting) before they call."""
FIRST_MINUTES = 2.0
"""For finding the way to each other, in the first sum: a second or two."""
POLL_SECONDS = 0.005


class NoWay(ShoalError):
    """The ranks have found each other, and nothing goes from one to the other: their group cannot be left in order."""


def limit(minutes: float, environment: Mapping[str, str] = os.environ) -> timedelta:
    """Return a limit, which is DeepSpeed's own variable (in minutes) where that is set."""
    return timedelta(minutes=float(environment.get("DEEPSPEED_TIMEOUT", minutes)))


def join(ranks: Ranks, device: torch.device, backend: str) -> None:
    """Make the group of the job's ranks, once all of them are there. Raises NoWay where it does not connect them."""
    import deepspeed

    first = limit(FIRST_MINUTES)
    with _all_here(ranks):
        try:
            deepspeed.init_distributed(backend, verbose=False, timeout=first)
        except RuntimeError as error:
            if ranks.world_size == 1:
                raise
            raise _no_way(ranks, error) from error
        require_way(ranks, device, first)
    limit_collectives(limit(START_MINUTES))


@contextmanager
def _all_here(ranks: Ranks) -> Iterator[None]:
    """Enter this context once all ranks have, however late: the group that is then made may have a short limit.

    Within it the first rank holds the group's key-value store, which torch then finds there and takes.
    """
    store = None
    if ranks.world_size > 1 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True):
        try:
            store = TCPStore(
                ranks.master_addr, ranks.master_port, ranks.world_size, ranks.is_main,
                timeout=limit(START_MINUTES), multi_tenant=True,
            )  # fmt: skip
        except RuntimeError as error:
            where = f"{ranks.master_addr}:{ranks.master_port}"
            raise NoWay(f"not all of {ranks.world_size} ranks came to {where}: {_said(error)}. {advice()}") from error
    yield
    del store


def limit_collectives(time_limit: timedelta) -> None:
    """Give the calls of all groups there are this limit: DeepSpeed makes some of its own, with torch's default."""
    from torch.distributed.distributed_c10d import _set_pg_timeout, _world

    if dist.is_initialized():
        for group in list(_world.pg_map):
            _set_pg_timeout(time_limit, group)


def require_way(ranks: Ranks, device: torch.device, time_limit: timedelta) -> None:
    """Add up a number over all ranks, soon after they have joined. Raises NoWay where that does not end in time.

    A wrong interface, a firewall or too little shared memory shows here, and not after minutes of loading.
    """
    if ranks.world_size == 1:
        return
    try:
        work = dist.all_reduce(torch.ones((), device=device), async_op=True)
        assert work is not None
        deadline = time.monotonic() + time_limit.total_seconds()
        while not work.is_completed() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        if work.is_completed():
            work.wait()  # raises what it met
            return
    except RuntimeError as error:
        raise _no_way(ranks, error) from error
    raise NoWay(f"a first sum over {ranks.world_size} ranks did not end within {time_limit}. {advice()}")


def _no_way(ranks: Ranks, error: RuntimeError) -> NoWay:
    """Return what is raised in place of what torch says of ranks that do not connect."""
    return NoWay(f"{ranks.world_size} ranks could not connect to each other: {_said(error)}. {advice()}")


def _said(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def advice(environment: Mapping[str, str] = os.environ) -> str:
    """Return by what the ranks tried to reach each other, and what to look at."""
    names = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "NCCL_IB_DISABLE", "NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE")
    used = ", ".join(f"{name}={environment[name]}" for name in names if name in environment) or "no variable set"
    return (
        f"The ranks talked by: {used}. Run `shoal doctor` (with several PCs: --cluster cluster/cluster.yaml), which "
        "tries the same. Let the PCs reach each other on all ports. Where an interface is the wrong one, put e.g. "
        "`export NCCL_SOCKET_IFNAME==eth0 GLOO_SOCKET_IFNAME=eth0` in that PC's ~/.profile and start Ray again; "
        "NCCL_DEBUG=INFO has NCCL say more in the rank's log."
    )
