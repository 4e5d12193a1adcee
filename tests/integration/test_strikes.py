"""A study whose rank, node and launcher are killed in turn gives the answer of one that was left alone, to the byte.

The strikes are those of benchmarks/chaos.py; they come by progress here, so that no machine is too slow for them.
"""

from __future__ import annotations

import random
import subprocess
import time
from pathlib import Path

import pytest

from benchmarks.chaos import KINDS, compare, launch, nodes, rank_processes, run, strike, study_of

STEPS, BETWEEN = 160, 30


def newest_step(folder: Path) -> int:
    """Return the step of the newest checkpoint of any job."""
    checkpoints = (folder / "outputs/chaos/jobs").glob("*/checkpoints/step-*")
    return max((int(path.name.split("-")[1]) for path in checkpoints), default=0)


def wait_for(step: int, folder: Path, launcher: subprocess.Popen[bytes]) -> None:
    """Return once a job has a checkpoint of that step, and a rank goes on."""
    while newest_step(folder) < step or not rank_processes():
        assert launcher.poll() is None, (folder / "out.txt").read_text()[-3000:]
        time.sleep(0.1)


def test_each_kind_of_strike_leaves_the_answer_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    study = study_of(seeds=2, steps=STEPS, rows=400)
    calm, struck, draw = tmp_path / "calm", tmp_path / "struck", random.Random(0)
    with nodes() as where:
        run(calm, study, where)
        launcher = launch(struck, study, where.cluster.address)
        for number, kind in enumerate(KINDS, start=1):
            wait_for(BETWEEN * number, struck, launcher)
            launcher = strike(kind, struck, study, where, launcher, draw)
        assert launcher.wait() == 0, (struck / "out.txt").read_text()[-3000:]
    assert compare(calm, struck, STEPS) == []
