"""What a finished job says of itself. `result.json` is the proof of success; its absence is failure."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from training.errors import UserError

Metrics = dict[str, float]
"""Metric name -> value; always holds "accuracy", "macro_f1", "loss" and "num_samples"."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The job object of `result.json` and of the study's `report.json`."""

    name: str
    status: Literal["succeeded", "failed", "cancelled", "stopped early"]
    settings: dict[str, Any]
    """The resolved JobSpec."""
    fingerprint: str
    """JobSpec.fingerprint() of those settings."""
    num_ranks: int = 1
    untrained_validation: Metrics = field(default_factory=dict)
    """The same model on validation before its first step."""
    validation: Metrics = field(default_factory=dict)
    """Of the adapter that was kept."""
    test: Metrics = field(default_factory=dict)
    """Of the adapter that was kept; evaluated once. Empty where there is no test split."""
    train: dict[str, Any] = field(default_factory=dict)
    """steps, epochs, best_epoch, seconds, samples_per_second, final_loss, energy_joules (where GPUs tell), ..."""
    peak_memory: dict[str, int] = field(default_factory=dict)
    """The largest of any rank: gpu_bytes (tensors) and host_bytes; gpu_reserved_bytes (PyTorch's allocator),
    gpu_process_bytes (the driver's count of a rank) and gpu_used_bytes (of all on its card). Of a card 0 on a CPU."""
    data: dict[str, Any] = field(default_factory=dict)
    """Corpus.facts: source, rows of each split, label names, what was removed or set aside."""
    model: dict[str, Any] = field(default_factory=dict)
    """Trained parameters, precision, quantization, optimizer, ZeRO stage, offload, device."""
    adapter: dict[str, Any] = field(default_factory=dict)
    """Whether it was verified by reloading, and the largest difference of a logit."""
    retries: list[dict[str, Any]] = field(default_factory=list)
    """Each time the job ran out of memory: phase, step, error, and the sizes it went on with (Plan.retries)."""
    restarts: list[str] = field(default_factory=list)
    """Why a rank died or crashed, each time the launcher let the job go on from its newest checkpoint."""
    forecast: dict[str, dict[str, int]] = field(default_factory=dict)
    """"card" and "host" -> cause -> bytes, of a rank; empty where it ran without the launcher."""
    setting: dict[str, Any] = field(default_factory=dict)
    """What it ran with of what the launcher may plan: deepspeed, num_ranks, gradient_checkpointing, batch sizes."""
    placement: dict[str, Any] = field(default_factory=dict)
    """The launcher's: "cards" of the ranks, what each rank had reserved, "card_gib" and "host_gib", "seconds" from the
    start of the ranks to their end, and "expected_seconds"."""
    versions: dict[str, str] = field(default_factory=dict)
    """Package -> version."""
    error: dict[str, str] = field(default_factory=dict)
    """For a job that did not succeed: "message" and "log_tail"."""
    stopped: dict[str, Any] = field(default_factory=dict)
    """For a job that was stopped early by the study: "verdict" (launcher.halving.Verdict), "step", "num_steps",
    "steps_saved", "card_hours_saved" (an estimate; None where no speed is known), and "rule" (of the study file)."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON holds them."""
        return asdict(self)


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that `path` holds either the old or the whole new content, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file, ensure_ascii=False, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_result(folder: Path, name: str = "result.json") -> RunResult | None:
    """Return the result a run folder holds, or None where the job has not finished. Raises UserError where damaged."""
    path = folder / name
    try:
        return RunResult(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}). Delete it: the job then goes on from its checkpoints.") from None
