"""Forecasts of the memory that jobs need, asked of a process of the trainer's: the launcher knows no torch."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from launcher.expand import CHECKOUT
from training.spec import JobSpec


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a rank of a job needs at its peak, in bytes by cause; or why that is not known."""

    card: dict[str, int]
    """Empty for a job on the CPU."""
    host: dict[str, int]
    error: str = ""
    """What the trainer refuses the job for."""

    @property
    def card_bytes(self) -> int:
        """All of a card's memory that the rank needs."""
        return sum(self.card.values())

    @property
    def host_bytes(self) -> int:
        """All of the host memory that the rank needs."""
        return sum(self.host.values())


def forecasts(specs: Sequence[JobSpec], *, on_card: bool) -> Iterator[Forecast]:
    """Yield the forecast of each job as it comes; ten seconds for the first of a large model, then it is known.

    Raises RuntimeError where the trainer's process fails.
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
                raise RuntimeError(f"the forecast failed: {reason[-1] if reason else 'no answer'}") from None
            if answer["ok"]:
                yield Forecast(card=answer["estimate"]["card"], host=answer["estimate"]["host"])
            else:
                yield Forecast(card={}, host={}, error=answer["error"])
        process.stdin.close()
