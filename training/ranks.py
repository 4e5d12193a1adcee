"""Which rank this process is."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among those of the job, as torch.distributed's environment variables say it."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    """Ranks of this job on this host."""
    master_addr: str = "127.0.0.1"
    master_port: int
    num_threads: int
    """CPU threads of this rank."""
    card_gib: float | None = None
    """What of its card this rank may use; None where nothing limits it."""
    card_most_gib: float | None = None
    """What a job can have of such a card at most."""

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes."""
        return self.rank == 0

    def environment(self) -> dict[str, str]:
        """Return the variables torch.distributed and DeepSpeed read."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_world_size),
            "LOCAL_SIZE": str(self.local_world_size),
            "MASTER_ADDR": self.master_addr,
            "MASTER_PORT": str(self.master_port),
        }

    @staticmethod
    def from_environment() -> Ranks:
        """Read what the `deepspeed` launcher set, or be the only rank."""
        local_world_size = int(os.environ.get("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1")))
        cores = len(os.sched_getaffinity(0))
        return Ranks(
            rank=int(os.environ.get("RANK", "0")),
            world_size=int(os.environ.get("WORLD_SIZE", "1")),
            local_rank=int(os.environ.get("LOCAL_RANK", "0")),
            local_world_size=local_world_size,
            master_addr=os.environ.get("MASTER_ADDR", "127.0.0.1"),
            master_port=int(os.environ.get("MASTER_PORT", "0")) or free_port(),
            num_threads=int(os.environ.get("OMP_NUM_THREADS", "0")) or max(1, cores // local_world_size),
        )


def free_port() -> int:
    """Return a TCP port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
