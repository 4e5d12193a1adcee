"""A job that runs out of memory goes on by itself, with smaller micro-batches and the same losses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CHECKOUT, read_events
from forked_jobs import run_job

from training.result import RunResult, read_result

SMALL_CARD = CHECKOUT / "tests" / "integration" / "small_card.py"


def run_on_small_card(flags: list[str], folder: Path, card: dict[str, Any], num_ranks: int) -> Any:
    words = [*flags, "--output_dir", str(folder)]
    return run_job(*words, num_ranks=num_ranks, program=SMALL_CARD, SMALL_CARD=json.dumps(card))


def result_of(folder: Path) -> RunResult:
    result = read_result(folder)
    assert result is not None
    return result


def losses(folder: Path) -> dict[int, float]:
    return {event["step"]: event["loss"] for event in read_events(folder, "step")}


@pytest.fixture(scope="module")
def plain(job_flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same job on a card that is large enough."""
    folder = tmp_path_factory.mktemp("plain")
    run = run_job(*job_flags, "--output_dir", str(folder))
    assert run.returncode == 0
    return folder


@pytest.mark.parametrize(
    ("config", "num_ranks", "card", "retried"),
    [
        ("zero2", 1, {"training": 60}, ["training"]),
        # The second rank alone runs out, in the middle of a step whose collective calls the first is waiting in.
        ("zero3_offload", 2, {"training": 60, "rank": 1}, ["training"]),
        ("zero2", 1, {"evaluation": 100}, ["evaluation"]),
    ],
)
def test_it_goes_on_with_less_at_a_time(
    config: str, num_ranks: int, card: dict[str, Any], retried: list[str],
    plain: Path, job_flags: list[str], tmp_path: Path,
) -> None:  # fmt: skip
    flags = [
        *job_flags, f"--deepspeed=ds_configs/{config}.json", f"--per_device_train_batch_size={8 // num_ranks}",
        "--save_steps=2", "--per_device_eval_batch_size=16",
    ]  # fmt: skip
    run = run_on_small_card(flags, tmp_path, card, num_ranks)
    assert run.returncode == 0, run.stderr[-3000:]
    result, expected = result_of(tmp_path), result_of(plain)
    assert result.retries and {retry["phase"] for retry in result.retries} == set(retried)
    assert "CUDA out of memory" in result.retries[0]["error"]
    assert result.settings["training"]["per_device_train_batch_size"] == 8 // num_ranks
    assert result.model["global_batch_size"] == 8
    assert "trying again with per_device_" in run.stderr
    seen, wanted = losses(tmp_path), losses(plain)
    assert seen.keys() == wanted.keys()
    np.testing.assert_allclose(list(seen.values()), list(wanted.values()), rtol=1e-4)
    assert result.test["accuracy"] == expected.test["accuracy"]


def test_layers_are_recomputed_last_and_then_it_says_what_would_help(job_flags: list[str], tmp_path: Path) -> None:
    flags = [*job_flags, "--per_device_train_batch_size=2"]
    run = run_on_small_card(flags, tmp_path, {"training": 2}, 1)
    assert run.returncode == 1, run.stderr[-3000:]
    assert "Traceback" not in run.stderr
    assert "quantization: nf4" in run.stderr and "recomputed_layers 0.5 -> 1.0" in run.stderr
    assert not (tmp_path / "result.json").exists()


def test_sigterm_in_the_step_that_runs_out_ends_the_job_and_keeps_the_plan(
    job_flags: list[str], tmp_path: Path
) -> None:
    flags = [*job_flags, "--per_device_train_batch_size=8"]
    run = run_on_small_card(flags, tmp_path, {"training": 60, "terminated": True}, 1)
    assert run.returncode == 143, run.stderr[-3000:]
    assert "trying again" in run.stderr and "stopped; the same command goes on" in run.stderr
    run = run_on_small_card(flags, tmp_path, {"training": 60}, 1)
    assert run.returncode == 0, run.stderr[-3000:]
    assert result_of(tmp_path).retries[0]["changes"]["per_device_train_batch_size"][0] == 8
