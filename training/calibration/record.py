"""The record of a calibration, what was measured of a card or CPU: JSON in Shoal's cache, which the launcher reads.

calibration/<name>-<key>.json; the key holds all that the figures depend on: card, driver and torch, or CPU, cores and
torch. A file that is missing, damaged or of another schema is a card that is not measured yet.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from training.cache import cache_dir
from training.calibration.costs import Quantities
from training.cpu import cpu_flags
from training.result import write_json

SCHEMA = 1
"""Raise it when what is measured or its meaning changes: older records are then no longer read."""
MOST_RANKS = 2
"""Ranks that a CPU is measured with at once, and the virtual cards that it has by default."""
MATTER = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
"""Flags of a CPU by which products run at another speed."""


@dataclass(frozen=True, kw_only=True)
class CardRecord:
    """What was measured of one kind of card, or of a CPU as the card of virtual cards."""

    name: str
    """NVML's, or the CPU's model name."""
    driver: str
    """The card's driver; of a CPU its cores, and the flags that matter."""
    torch: str
    date: str
    num_threads: int
    """Of a rank while it was measured; all cores had such ranks."""
    seconds: float
    """That the calibration took."""
    costs: dict[str, Quantities] = field(default_factory=dict)
    """Precision and quantization, as `kind_of` names them -> seconds."""
    kernels: dict[str, float] = field(default_factory=dict)
    """Kernel -> largest error against fp32, as a share of the largest value; infinite where it does not run."""
    wrong: list[str] = field(default_factory=list)
    """Kernels whose error is too large: they are not used on this card."""
    memory: dict[str, int] = field(default_factory=dict)
    """What takes memory beyond tensors -> bytes."""
    speed: dict[str, float] = field(default_factory=dict)
    """Name with its unit -> figure."""
    job: dict[str, float] = field(default_factory=dict)
    """One small real job: "expected_seconds", "seconds", "forecast_bytes", "bytes"."""

    @property
    def path(self) -> Path:
        """Where it is kept."""
        return record_path(self.name, self.driver, self.torch)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON holds them."""
        return {"schema": SCHEMA, **asdict(self)}

    @staticmethod
    def from_dict(content: dict[str, Any]) -> CardRecord:
        """Return the record. Raises ValueError or TypeError for what is none."""
        values = dict(content)
        if values.pop("schema", None) != SCHEMA:
            raise ValueError("a record of another schema")
        costs = {kind: Quantities(**dict(each)) for kind, each in values.pop("costs").items()}
        known = CardRecord(**values, costs=costs)
        if not all(
            isinstance(cost, float | int) and cost >= 0 for each in costs.values() for cost in vars(each).values()
        ):
            raise ValueError("a cost that is no number of seconds")
        return known

    def save(self) -> Path:
        """Keep it in the cache; return where."""
        write_json(self.path, self.to_dict())
        return self.path


def kind_of(dtype: str, quantization: str) -> str:
    """Return what names the costs of a precision and a quantization."""
    return f"{dtype} {quantization}"


def record_path(name: str, driver: str, torch: str) -> Path:
    """Return where the record of such a card is kept."""
    key = hashlib.sha256(f"{name} {driver} {torch}".encode()).hexdigest()[:12]
    return cache_dir() / "calibration" / f"{_plain(name)[:40]}-{key}.json"


def read_record(name: str, driver: str, torch: str | None = None) -> CardRecord | None:
    """Return what was measured of such a card under the installed torch, if it was."""
    path = record_path(name, driver, torch or version("torch"))
    try:
        return CardRecord.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def records() -> list[CardRecord]:
    """Return all records in the cache that can be read."""
    found = []
    for path in sorted((cache_dir() / "calibration").glob("*.json")):
        try:
            found.append(CardRecord.from_dict(json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            continue
    return found


def card_record(name: str) -> CardRecord | None:
    """Return what was measured last, under the installed torch, of a card that NVML or a Ray label calls so."""
    torch = version("torch")
    found = [each for each in records() if _plain(each.name) == _plain(name) and each.torch == torch]
    return max(found, key=lambda each: (each.date, each.driver), default=None)


def _plain(name: str) -> str:
    """Return a card's name as it is in file names; Ray's labels leave out other characters too."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()


def this_cpu() -> tuple[str, str]:
    """Return name and "driver" of this machine's CPU."""
    name = "CPU"
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    flags = " ".join(flag for flag in MATTER if flag in cpu_flags())
    return name, f"{len(os.sched_getaffinity(0))} cores {flags}".strip()
