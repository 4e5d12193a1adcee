"""Where a job's events and files go. The rank program only knows the protocol; the launcher brings its own."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Protocol

from training.disk import append_line

EVENTS_FILE = "events.jsonl"

Event = dict[str, Any]
"""{"time": unix seconds, "kind": "log" | "data" | "model" | "step" | "evaluation" | "checkpoint" | "result", ...}"""


class Recorder(Protocol):
    """Receives what a job has to tell. Called on rank 0 only."""

    def event(self, kind: str, **values: Any) -> None:
        """Note one event; `values` are JSON values."""

    def save(self, relative_path: str, source: Path) -> None:
        """Keep the file or folder `source` as `relative_path` of the run folder, replacing what was there."""

    def remove(self, relative_path: str) -> None:
        """Drop a file or folder of the run folder; nothing happens where there is none."""


class FolderRecorder:
    """Writes straight into the run folder: `training/main.py` on one machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def event(self, kind: str, **values: Any) -> None:
        """Append one JSON line to events.jsonl."""
        line = json.dumps({"time": round(time.time(), 3), "kind": kind, **values}, ensure_ascii=False)
        append_line(self.folder / EVENTS_FILE, line)

    def save(self, relative_path: str, source: Path) -> None:
        """Do nothing: the rank works in the run folder itself."""

    def remove(self, relative_path: str) -> None:
        """Do nothing: the rank works in the run folder itself."""


class SilentRecorder:
    """Keeps nothing: for every rank but the first, and where memory is forecast."""

    def event(self, kind: str, **values: Any) -> None:
        """Do nothing."""

    def save(self, relative_path: str, source: Path) -> None:
        """Do nothing."""

    def remove(self, relative_path: str) -> None:
        """Do nothing."""
