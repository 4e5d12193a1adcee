"""Settings measured in forked processes: torch and DeepSpeed join a group once, and all cores must be at work."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from training.calibration.steps import Row, Setting, measure
from training.forecast.memory_estimate import Work
from training.ranks import Ranks, free_port

Models = dict[tuple[int, int], tuple[Path, Work]]
Tell = Callable[[str], None]


def preload() -> None:
    """Load once what every fork needs, and have DeepSpeed's CPUAdam built (about a minute, once a machine)."""
    import bitsandbytes  # noqa: F401
    import deepspeed  # noqa: F401
    import peft  # noqa: F401
    import torch

    from training.engine import cpu_adam_obstacle
    from training.quiet import quiet_libraries

    quiet_libraries()
    torch.set_num_threads(1)  # no pool of threads that a fork would leave behind
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    cpu_adam_obstacle()


def measure_alone(settings: Sequence[Setting], models: Models, threads: int, number: int, tell: Tell) -> list[Row]:
    """Measure settings of one rank in `number` processes at once, each a job of its own; return the rows of all."""
    ranks = [Ranks(master_port=free_port(), num_threads=threads) for _ in range(number)]
    return _measure(settings, models, ranks, tell)


def measure_together(settings: Sequence[Setting], models: Models, threads: int, number: int, tell: Tell) -> list[Row]:
    """Measure settings of `number` ranks, which make one job; return the rows of the first."""
    port = free_port()
    ranks = [
        Ranks(
            rank=rank, world_size=number, local_rank=rank, local_world_size=number, master_port=port,
            num_threads=threads,
        )
        for rank in range(number)
    ]  # fmt: skip
    return _measure(settings, models, ranks, tell)


def _measure(settings: Sequence[Setting], models: Models, ranks: Sequence[Ranks], tell: Tell) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="shoal-calibrate-") as folder:
        pids = [
            _fork(settings, models, place, Path(folder) / str(number), tell if number == 0 else lambda _: None)
            for number, place in enumerate(ranks)
        ]
        try:
            for pid in pids:
                os.waitpid(pid, 0)
        except BaseException:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            raise
        files = [Path(folder) / str(number) / "rows.json" for number in range(len(pids))]
        found = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]
    return [row for rows in found for row in rows]


def _fork(settings: Sequence[Setting], models: Models, ranks: Ranks, workdir: Path, tell: Tell) -> int:
    """Measure in a forked process, which writes rows.json; return its id."""
    workdir.mkdir()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        rows = measure(settings, models, ranks, workdir, tell)
        if ranks.is_main:
            (workdir / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    except BaseException:
        traceback.print_exc()
    finally:  # whatever happens, the child must not return into the parent's program
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
