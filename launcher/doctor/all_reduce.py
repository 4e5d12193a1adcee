"""One of two ranks that add up numbers as the ranks of a job do, in a process of its own on each side.

    python launcher/doctor/all_reduce.py RANK RANKS_HERE ADDRESS PORT BACKEND

run in the checkout; the doctor sends this file's text. BACKEND is nccl, on this rank's card, or gloo. Prints JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from datetime import timedelta
from typing import TypedDict

SECONDS = 60
"""Until the other rank must be there, and once more for the sums; importing PyTorch is part of the first."""
NUMBERS = 2 << 20
"""8 MiB in fp32: a tenth of a second on 1 Gbit Ethernet."""
SUMS = 3


class Summed(TypedDict):
    """What came of it."""

    seconds: float
    """Of one sum."""
    variables: dict[str, str]
    """NCCL's and gloo's, as they were used."""


def add_up(rank: int, ranks_here: int, address: str, port: int, backend: str) -> Summed:
    """Join the other rank and add up. Raises RuntimeError, or training's NoWay, where that fails."""
    import torch
    import torch.distributed as dist

    from training.network.interface import network_variables
    from training.network.limits import require_way
    from training.ranks import Ranks

    ranks = Ranks(
        rank=rank, world_size=2, local_rank=rank % ranks_here, local_world_size=ranks_here, master_addr=address,
        master_port=port, num_threads=1,
    )  # fmt: skip
    os.environ.update(ranks.environment())
    os.environ.update(network_variables(ranks, os.environ))
    device = torch.device("cuda", ranks.local_rank) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)
    time_limit = timedelta(seconds=SECONDS)
    dist.init_process_group(backend, timeout=time_limit)
    require_way(ranks, device, time_limit)
    numbers = torch.ones(NUMBERS, device=device)
    start = time.monotonic()
    for _ in range(SUMS):
        dist.all_reduce(numbers)
    if numbers.min().item() != 2**SUMS or numbers.max().item() != 2**SUMS:
        raise RuntimeError(f"the sum is wrong: {numbers.max().item()} for {2**SUMS}")
    return {"seconds": (time.monotonic() - start) / SUMS, "variables": used_variables()}


def used_variables() -> dict[str, str]:
    """Return what gloo and NCCL were told."""
    return {key: value for key, value in os.environ.items() if key.startswith(("NCCL_", "GLOO_"))}


def main() -> int:
    """Print what came of it; one line on standard error where it failed."""
    signal.alarm(2 * SECONDS)  # a rank that hangs must not stay on the PC
    rank, ranks_here, address, port, backend = sys.argv[1:]
    try:
        answer = add_up(int(rank), int(ranks_here), address, int(port), backend)
    except Exception as error:  # whatever it is, a job would end with it
        said = " ".join(str(error).split()).partition(" The ranks talked by")[0] or type(error).__name__
        used = ", ".join(f"{key}={value}" for key, value in used_variables().items()) or "no variable set"
        print(f"{said[:400]} ({used})", file=sys.stderr, flush=True)
        return 1
    print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    os._exit(main())  # a group that hangs cannot be left otherwise
