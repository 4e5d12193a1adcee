"""Two ranks of which one is late: training/main.py with limits of seconds, run as a program of forked_jobs.

LATE=disk      the second rank comes late, and the first's checkpoint stays unwritten for longer than a call may take
LATE=nothing   nothing goes from the second rank to the first
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import training.saving
from training.main import main
from training.network import limits

LIMIT_SECONDS, LATE_SECONDS = 5.0, 8.0
RANK = os.environ["RANK"]


def main_with_a_slow_disk() -> int:
    write, written = training.saving.write_checkpoint, []

    def slowly(*arguments: Any) -> Path:
        written.append(arguments)
        if len(written) in (1, 3):  # a save waits for the one before it, the end for the last
            time.sleep(LATE_SECONDS)
        return write(*arguments)

    training.saving.write_checkpoint = slowly
    if RANK == "1":
        time.sleep(LATE_SECONDS)
    return main()


def main_without_a_way() -> int:
    if RANK == "1":
        limits.require_way = lambda *_: time.sleep(10 * LATE_SECONDS)  # type: ignore[assignment]
    return main()


if __name__ == "__main__":
    limits.TRAINING_MINUTES = limits.FIRST_MINUTES = LIMIT_SECONDS / 60
    import training.rank

    training.rank.TRAINING_MINUTES = limits.TRAINING_MINUTES
    sys.exit(main_with_a_slow_disk() if os.environ["LATE"] == "disk" else main_without_a_way())
