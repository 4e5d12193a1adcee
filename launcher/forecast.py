"""Forecasts of the memory that jobs need, asked of a process of the trainer's: the launcher knows no torch."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence

from launcher.expand import CHECKOUT
from training.errors import ShoalError, UserError
from training.forecast.memory_estimate import MemoryEstimate
from training.spec import JobSpec


def forecasts(specs: Sequence[JobSpec], *, on_card: bool) -> Iterator[MemoryEstimate | UserError]:
    """Yield the forecast of each job, or what the trainer refuses it for, as it comes.

    Seconds for each that is new, then it is known. Raises ShoalError where the trainer's process fails.
    """
    command = [sys.executable, "-m", "training.forecast"]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        assert process.stdin is not None and process.stdout is not None
        for spec in specs:
            try:
                process.stdin.write(json.dumps({"spec": spec.to_dict(), "on_card": on_card}) + "\n")
                process.stdin.flush()
                answer = json.loads(process.stdout.readline())
            except (BrokenPipeError, json.JSONDecodeError):
                process.wait()
                log.seek(0)
                reason = log.read().strip().splitlines()
                raise ShoalError(f"the memory forecast failed: {reason[-1] if reason else 'no answer'}") from None
            yield MemoryEstimate(**answer["estimate"]) if answer["ok"] else UserError(answer["error"])
        process.stdin.close()
