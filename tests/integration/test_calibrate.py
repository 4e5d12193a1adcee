"""`shoal calibrate` on this machine's CPU, in its short form, and a plan by what it measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CHECKOUT, environment, write_study

from training.calibration.record import read_record, this_cpu


def shoal(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launcher.cli", *words]
    path = {"PYTHONPATH": str(CHECKOUT)}
    return subprocess.run(command, env=environment() | path, capture_output=True, text=True)


def test_a_plan_goes_by_what_was_measured(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_CACHE", str(workplace / "cache"))  # of no other test
    study = write_study(workplace, model={"model_name_or_path": str(workplace / "model"), "dtype": "fp32"})
    measured = shoal("calibrate", "--short")
    assert measured.returncode == 0, measured.stderr[-3000:]
    record = read_record(*this_cpu())
    assert record is not None and str(record.path) in measured.stdout
    costs = record.costs["fp32 none"]
    for name in ("operations", "starts", "layers_built"):
        assert getattr(costs, name) > 0, name
    assert record.job["seconds"] > record.job["expected_seconds"] > 0  # without its start
    assert record.job["bytes"] > 100 << 20
    assert record.costs["fp32 nf4"].operations > 0 and record.kernels and not record.wrong

    planned = shoal("plan", str(study), "--json")
    assert planned.returncode == 0, planned.stderr[-3000:]
    (job,) = json.loads(planned.stdout)
    assert job["time_is_measured"] and job["expected_seconds"] > costs.starts - 0.1

    shown = shoal("calibrate", "--show")
    assert record.name in shown.stdout and "No job has been seen yet" in shown.stdout
