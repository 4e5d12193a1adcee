"""Real jobs take the memory that was forecast, and `shoal plan` says it for cards that are not there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import CHECKOUT, environment

from benchmarks import largest
from benchmarks.readme_part import read_part


def test_jobs_take_what_was_forecast(tmp_path: Path) -> None:
    """benchmarks/memory_forecast.py on one of its jobs; its exit status says whether all its bounds hold."""
    command = [sys.executable, "benchmarks/memory_forecast.py", "--jobs", "1", "--output", str(tmp_path)]
    run = subprocess.run(command, cwd=CHECKOUT, env=environment(), capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-2000:]
    rows = json.loads((tmp_path / "memory_forecast.json").read_text())["rows"]
    assert len(rows) == 1 and all(row["measured"] for row in rows)
    assert (tmp_path / "memory_forecast.png").stat().st_size > 10_000


@pytest.fixture
def study(job_flags: list[str], tmp_path: Path) -> Path:
    """A study of two settings and two seeds on the tests' data and a model without weights."""
    flags = dict(flag.removeprefix("--").split("=", 1) for flag in job_flags if "=" in flag)
    model = tmp_path / "model"
    shutil.copytree(flags["model_name_or_path"], model, ignore=shutil.ignore_patterns("*.safetensors"))
    path = tmp_path / "planned.yaml"
    path.write_text(
        f"model: {{model_name_or_path: {model}}}\n"
        f"data: {{train_file: {flags['train_file']}, max_seq_length: 32}}\nseed: [0, 1]\n"
        "sweep: {jobs: [{name: plain}, {name: nf4, model: {quantization: nf4}, num_ranks: 2}]}\n"
    )
    return path


def plan(study: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launcher.cli", "plan", str(study), *options]
    return subprocess.run(command, cwd=CHECKOUT, env=environment(), capture_output=True, text=True, timeout=300)


def test_plan_says_what_fits_on_cards_that_are_not_here(study: Path) -> None:
    run = plan(study, "--cards", "8,12,12", "--json")
    assert run.returncode == 0, run.stderr
    jobs: list[dict[str, Any]] = json.loads(run.stdout)
    assert [job["job"] for job in jobs] == ["plain-seed0", "plain-seed1", "nf4-seed0", "nf4-seed1"]
    assert [job["fits_gib"] for job in jobs] == [[7.7, 11.7], [7.7, 11.7], [11.7], [11.7]]
    plain, nf4 = jobs[0]["card"], jobs[2]["card"]
    assert nf4["base weights"] < plain["base weights"] and nf4["NCCL buffers"]
    assert {"activations", "optimizer states", "CUDA context"} <= set(plain)


def test_plan_refuses_what_fits_nowhere(study: Path) -> None:
    run = plan(study, "--cards", "0.5")
    assert run.returncode == 2
    text = " ".join(run.stdout.split())
    assert "2 refused" in text and "to run" not in text and "a PC of any memory" in text
    assert (
        "card, GiB: CUDA context" in text and "not zero1, batch 1 x 8, one rank, gradient checkpointing: needs" in text
    )
    assert "largest card it could have has 0.5" in text
    assert "num_ranks is 2 and no more than 1 of the cards are equal" in text
    assert "Nor does it fit with an nf4 base, the shortest" in text and "Nor does it fit with the shortest" in text
    assert plan(study, "--cards", "eight").returncode == 2


def test_a_file_of_the_users_is_named_where_it_contradicts_and_its_micro_batch_is_planned(study: Path) -> None:
    mine = study.with_name("mine.json")
    settings = study.read_text() + f"deepspeed: {mine}\n"
    for content, status, said in (
        ({"gradient_clipping": 5}, 2, f"{mine}: gradient_clipping is 5 and the job says 1.0."),
        ({"train_micro_batch_size_per_gpu": 4}, 0, "mine, batch 4 x 2, one rank"),
    ):
        mine.write_text(json.dumps({**content, "zero_optimization": {"stage": 1}}))
        study.write_text(settings)
        run = plan(study, "--cards", "8,12,12")
        assert run.returncode == status and said in " ".join(run.stdout.split()), run.stdout + run.stderr


def test_the_largest_model_by_card_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """benchmarks/largest.py on a model that is small, in the place of those of its table."""
    monkeypatch.setattr(largest, "MODELS", {"tiny": (64, 128, 2, 4, 2, 500)})
    monkeypatch.setattr(sys, "argv", ["largest.py", "--cards", "8", "--output", str(tmp_path)])
    assert largest.main() == 0
    rows = json.loads((tmp_path / "largest.json").read_text())["rows"]
    assert len(rows) == 4 and all(row["fits"] and row["needs_card_gib"] <= row["card_gib"] for row in rows)
    assert "| 1 x 8 GB | tiny |" in (tmp_path / "largest.md").read_text()


def test_readme_shows_the_committed_table() -> None:
    """Of every model, on every card and on two, in both precisions."""
    rows = json.loads((largest.RESULTS / "largest.json").read_text(encoding="utf-8"))["rows"]
    assert len(rows) == len(largest.MODELS) * len(largest.SIZES) * 2 * 2
    assert read_part("largest", CHECKOUT / "README.md") == largest.table(rows) + "\n"
