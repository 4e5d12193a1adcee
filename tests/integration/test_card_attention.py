"""Jobs in bf16 take a card's attention, PyTorch's variable-length kernel, stood in for on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CHECKOUT, read_events
from forked_jobs import run_job

from training.result import RunResult, read_result

PROGRAM = CHECKOUT / "tests" / "integration" / "small_card.py"


def train(flags: list[str], folder: Path, release: str, card: dict[str, Any], num_ranks: int) -> RunResult:
    words = [*flags, "--output_dir", str(folder)]
    variables = {"SHOAL_STAND_INS": f"varlen={release}", "SMALL_CARD": json.dumps(card)}
    run = run_job(*words, num_ranks=num_ranks, program=PROGRAM, **variables)
    assert run.returncode == 0, run.stderr[-3000:]
    result = read_result(folder)
    assert result is not None and result.model["attention"] == "varlen" and result.adapter["verified"]
    return result


def losses(folder: Path) -> dict[int, float]:
    return {event["step"]: event["loss"] for event in read_events(folder, "step")}


@pytest.fixture(scope="module")
def bf16_flags(job_flags: list[str]) -> list[str]:
    return [*job_flags, "--bf16=true", "--save_steps=2"]


@pytest.fixture(scope="module")
def fresh(bf16_flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """The losses of a job of one rank that keeps its activations, with the kernel of torch 2.10."""
    folder = tmp_path_factory.mktemp("fresh")
    result = train([*bf16_flags, "--per_device_train_batch_size=8"], folder, "2.10", {}, 1)
    assert not result.retries
    messages = [event["message"] for event in read_events(folder, "log")]
    assert "attention: PyTorch's variable-length kernel, texts end to end" in messages
    return losses(folder)


@pytest.mark.parametrize(
    ("config", "release", "num_ranks", "more"),
    [("zero3_offload", "", 2, ["--gradient_checkpointing"]), ("zero2", "2.11", 1, ["--gradient_checkpointing"])],
)
def test_it_goes_on_from_a_checkpoint_after_running_out_of_memory(
    config: str, release: str, num_ranks: int, more: list[str],
    fresh: dict[int, float], bf16_flags: list[str], tmp_path: Path,
) -> None:  # fmt: skip
    """The first pass of a resumed job is a training step, in layers whose activations are computed again."""
    flags = [*bf16_flags, *more, f"--deepspeed=ds_configs/{config}.json"]
    flags += [f"--per_device_train_batch_size={8 // num_ranks}", "--per_device_eval_batch_size=32"]
    result = train(flags, tmp_path, release, {"training": 60, "after": 6}, num_ranks)
    assert result.retries and result.retries[0]["step"] > 2
    assert any("resuming after step" in event["message"] for event in read_events(tmp_path, "log"))
    seen = losses(tmp_path)
    assert seen.keys() == fresh.keys()
    np.testing.assert_allclose(list(seen.values())[:6], list(fresh.values())[:6], rtol=2e-2)
