"""A dozen kills at random places and moments: nothing is lost, and the harness would notice if something were."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.kills import CONFIGS, Job, faults

CHECKOUT = Path(__file__).resolve().parents[2]
COMMITTED = CHECKOUT / "benchmarks" / "results" / "kills.json"


def test_a_dozen_kills_lose_nothing(tmp_path: Path) -> None:
    program = [sys.executable, str(CHECKOUT / "benchmarks" / "kills.py"), "--kills=12", f"--output={tmp_path}"]
    run = subprocess.run(program, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    lives = json.loads((tmp_path / "kills.json").read_text())["lives"]
    assert sum(len(life["kills"]) for life in lives) == 12
    assert not any(life["wrong"] for life in lives)
    assert {life["num_ranks"] for life in lives} == {1, 2}
    assert "12 kills" in (tmp_path / "kills.md").read_text()


def test_the_committed_run_is_of_200_kills_in_every_configuration() -> None:
    lives = json.loads(COMMITTED.read_text(encoding="utf-8"))["lives"]
    assert sum(len(life["kills"]) for life in lives) >= 200
    assert {(life["config"], life["num_ranks"]) for life in lives} == set(CONFIGS)
    assert not any(life["wrong"] for life in lives)


def test_a_loss_would_be_noticed(tmp_path: Path) -> None:
    job = Job(config="zero0-none", num_ranks=1, flags=[], adapter=b"trained", seconds=1.0)
    (tmp_path / "adapter").mkdir()
    adapter = tmp_path / "adapter" / "adapter_model.safetensors"
    adapter.write_bytes(b"trained")
    (tmp_path / "events.jsonl").write_text('{"kind": "log", "message": "resuming"}\n{"kind": "st')
    steps = [{"step": step, "loss": 1 / step} for step in range(1, 21)]
    assert faults(job, tmp_path, steps, []) == []
    assert "steps made" in faults(job, tmp_path, steps[:-1], [])[0]
    assert "another loss" in faults(job, tmp_path, [*steps, {"step": 20, "loss": 0.0}], [])[0]
    assert "0 were reported" in faults(job, tmp_path, steps, ["step-000003/state.json"])[0]
    adapter.write_bytes(b"lost")
    assert "the adapter" in faults(job, tmp_path, steps, [])[0]
