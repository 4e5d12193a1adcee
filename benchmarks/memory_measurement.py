"""Runs a job of memory_forecast.py with every allocation of its first rank counted."""

from __future__ import annotations

import bisect
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.bf16_products import multiply_bf16_by_way_of_fp32
from benchmarks.forked import fork, wait
from benchmarks.memory_forecast_job import Job

JOB_SECONDS = 1800.0
"""How long a job may take: a large one of many micro-batches needs minutes."""
PHASES = ("loading model", "training", "testing")
"""Of a job's events: what is measured. What follows, the proof that the adapter loads, begins from an empty memory."""
GLOO_SECONDS = 0.01
COLLECTIVES = (
    "all_gather_into_tensor", "all_gather", "all_reduce", "broadcast", "reduce", "reduce_scatter_tensor",
    "_all_gather_base", "_reduce_scatter_base",
)  # fmt: skip


def measure_job(job: Job, folder: Path, log: Path) -> list[int]:
    """Run the job, every allocation of the first rank counted; return the ranks' exit statuses."""
    from training.ranks import Ranks, free_port

    (folder / "job.json").write_text(json.dumps({**job.settings(folder), "output_dir": str(folder / "out")}))
    port = free_port()
    pids = []
    for rank in range(job.num_ranks):
        ranks = Ranks(
            rank=rank, world_size=job.num_ranks, local_rank=rank, local_world_size=job.num_ranks,
            master_port=port, num_threads=1,
        )  # fmt: skip
        pids.append(fork(lambda rank=rank: _run_rank(folder, rank), log, ranks.environment()))  # type: ignore[misc]
    return wait(pids, timeout_seconds=JOB_SECONDS)


def _run_rank(folder: Path, rank: int) -> int:
    """Run one rank; the first writes what it measured."""
    import torch

    import training.main
    from training.checkpoint_writer import CheckpointWriter
    from training.recorder import FolderRecorder

    arguments = ["--job", str(folder / "job.json")]
    multiply_bf16_by_way_of_fp32()
    if rank:
        return training.main.main(arguments)
    marks: list[tuple[int, str]] = []
    event, submit = FolderRecorder.event, CheckpointWriter.submit

    def noted(self: Any, kind: str, **values: Any) -> None:
        if kind == "phase":
            marks.append((time.time_ns(), values["phase"]))
        event(self, kind, **values)

    def waited(self: Any, write: Any) -> None:
        submit(self, write)
        self.wait()  # else it would be luck whether a checkpoint is still being written at the peak

    FolderRecorder.event, CheckpointWriter.submit = noted, waited  # type: ignore[method-assign]
    let_gloo_go()
    profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
    profiler.start()
    status = training.main.main(arguments)
    profiler.stop()
    mapped = (folder / "model" / "model.safetensors").stat().st_size
    peaks = peak_by_phase(profiler, marks, mapped)
    row = {"bytes": max(peaks.get(phase, 0) for phase in PHASES), "phases": peaks}
    (folder / "measured.json").write_text(json.dumps(row), encoding="utf-8")
    return status


def let_gloo_go() -> None:
    """Have every collective call end a moment after gloo's thread has let its tensors go, one that is asynchronous too.

    Else it would be luck beside which of the rank's own tensors gloo's receive buffers are alive.
    """
    import torch.distributed as dist

    def slowly(call: Any) -> Any:
        def inside(*arguments: Any, async_op: bool = False, **options: Any) -> Any:
            work = call(*arguments, async_op=True, **options)
            if work is not None:
                work.wait()
                time.sleep(GLOO_SECONDS)
            return work if async_op else None

        return inside

    for name in COLLECTIVES:
        if hasattr(dist, name):
            setattr(dist, name, slowly(getattr(dist, name)))


def peak_by_phase(profiler: Any, marks: list[tuple[int, str]], mapped: int) -> dict[str, int]:
    """Return the most bytes that PyTorch's CPU allocator had given out in each phase.

    The profiler is told of the mapped checkpoint too, a file of `mapped` bytes, which is no memory of the process.
    """
    from torch._C._profiler import _EventType

    allocations = []
    events = list(profiler.profiler.kineto_results.experimental_event_tree())
    while events:
        found = events.pop()
        events += found.children
        if found.tag == _EventType.Allocation and abs(found.extra_fields.alloc_size) != mapped:
            fields = found.extra_fields
            allocations.append((found.start_time_ns, fields.alloc_size, fields.ptr))
    peaks: dict[str, int] = {}
    times = [when for when, _ in marks]
    sizes: dict[int, int] = {}
    live = 0
    for when, size, address in sorted(allocations):
        live -= sizes.pop(address, 0)  # also where another thread freed what was there
        if size > 0:
            sizes[address] = size
            live += size
        place = bisect.bisect_right(times, when) - 1
        if place >= 0:
            phase = marks[place][1]
            peaks[phase] = max(peaks.get(phase, 0), live)
    return peaks
