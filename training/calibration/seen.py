"""All jobs that a launcher has seen succeed, beside what was forecast: calibration/jobs.jsonl in Shoal's cache.

Light: the launcher reads and writes it. A line that is damaged is left out.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field

from training.cache import cache_dir
from training.disk import append_line


@dataclass(frozen=True, kw_only=True)
class SeenJob:
    """A job that succeeded: forecast and measured."""

    time: float
    """Of its end, in Unix seconds."""
    card: str
    """NVML's name; of virtual cards "CPU"."""
    job: str
    """Study and job."""
    kind: str
    """Precision and quantization, as record.kind_of names them."""
    num_ranks: int
    forecast_bytes: int
    """Of a rank: on its card, else in host memory."""
    bytes: int
    """The peak of the same that was measured."""
    expected_seconds: float
    seconds: float
    """From its start to its end; 0 where it went on from a checkpoint, which is not what was expected."""
    time_was_measured: bool
    """Whether the expected time was by a calibration."""
    memory: dict[str, int] = field(default_factory=dict)
    """All that its result says of memory."""


def note(job: SeenJob) -> None:
    """Keep a line for a job; where the disk is full, it is not kept."""
    with suppress(OSError):
        path = cache_dir() / "calibration" / "jobs.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        append_line(path, json.dumps(asdict(job), ensure_ascii=False))


def seen_jobs() -> list[SeenJob]:
    """Return all jobs seen, the oldest first."""
    found = []
    with suppress(OSError):
        path = cache_dir() / "calibration" / "jobs.jsonl"
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, TypeError):
                found.append(SeenJob(**json.loads(line)))
    return found
