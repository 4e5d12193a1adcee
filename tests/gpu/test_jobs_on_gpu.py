"""Real jobs through training/main.py on the card. All start at once: most of their time is imports."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from integration.conftest import CHECKOUT, command, environment, read_events

from training.result import RunResult, read_result

JOBS = {
    "bf16 zero2": ["--bf16=true", "--deepspeed=ds_configs/zero2.json"],
    "nf4 zero3 offload_param": [
        "--bf16=true", "--load_in_4bit", "--gradient_checkpointing", "--deepspeed=ds_configs/zero3_offload_param.json",
    ],
    "bf16 zero2 offloaded optimizer": ["--bf16=true", "--deepspeed=ds_configs/zero2_offload.json"],
    "int8 zero2": ["--bf16=true", "--load_in_8bit", "--deepspeed=ds_configs/zero2.json"],
    "fp32": ["--deepspeed=ds_configs/zero0.json"],
    "fp32 on the CPU": ["--deepspeed=ds_configs/zero0.json"],
}  # fmt: skip
OUT_OF_MEMORY = "out of memory"
CAPPED = """
import sys, torch
total = torch.cuda.get_device_properties(0).total_memory
torch.cuda.set_per_process_memory_fraction(16 * 2**20 / total)  # less than the first matrix product's work space
from training.main import main
sys.exit(main(sys.argv[1:]))
"""


@dataclass(frozen=True, kw_only=True)
class Finished:
    status: int
    stderr: str
    folder: Path

    @property
    def result(self) -> RunResult:
        result = read_result(self.folder)
        assert self.status == 0 and result is not None, self.stderr[-3000:]
        return result

    @property
    def losses(self) -> list[float]:
        assert self.result
        return [event["loss"] for event in read_events(self.folder, "step")]


@pytest.fixture(scope="module")
def jobs(
    job_flags: list[str], tmp_path_factory: pytest.TempPathFactory, device: torch.device
) -> Iterator[dict[str, Finished]]:
    folders, running = {}, {}
    commands = {name: command(*job_flags, *flags) for name, flags in JOBS.items()}
    if device.type == "cuda":
        small = ["--per_device_train_batch_size=1", "--per_device_eval_batch_size=1", "--gradient_checkpointing"]
        commands[OUT_OF_MEMORY] = [sys.executable, "-c", CAPPED, *job_flags, *JOBS["bf16 zero2"], *small]
    for name, words in commands.items():
        folders[name] = tmp_path_factory.mktemp("job")
        env = {**environment(), "CUDA_VISIBLE_DEVICES": ""} if name == "fp32 on the CPU" else environment()
        with (folders[name] / "stderr").open("wb") as log:
            running[name] = subprocess.Popen(
                [*words, "--output_dir", str(folders[name] / "job")], cwd=CHECKOUT, env=env, stderr=log,
                stdout=subprocess.DEVNULL,
            )  # fmt: skip
        while device.type == "cpu" and running[name].poll() is None:  # few cores: one after the other
            time.sleep(0.1)
    finished = {}
    try:
        for name, process in running.items():
            process.wait(timeout=300)
            stderr = (folders[name] / "stderr").read_text(errors="replace")
            finished[name] = Finished(status=process.returncode, stderr=stderr, folder=folders[name] / "job")
        yield finished
    finally:
        for process in running.values():
            process.kill()


@pytest.mark.parametrize("name", [name for name in JOBS if name != "fp32 on the CPU"])
def test_a_job_learns_on_the_card_and_is_verified(name: str, jobs: dict[str, Finished], device: torch.device) -> None:
    result = jobs[name].result
    assert result.adapter["verified"]
    assert result.validation["loss"] < result.untrained_validation["loss"]
    if device.type == "cuda":
        assert result.model["device"] == torch.cuda.get_device_name()
        assert result.peak_memory["gpu_bytes"] > 0


def test_what_was_asked_for_was_done(jobs: dict[str, Finished]) -> None:
    offloaded = jobs["nf4 zero3 offload_param"].result.model
    assert offloaded["quantization"] == "nf4" and offloaded["zero_stage"] == 3 and offloaded["offload_param"]
    assert jobs["bf16 zero2 offloaded optimizer"].result.model["offload_optimizer"]
    logs = [event["message"] for event in read_events(jobs["bf16 zero2 offloaded optimizer"].folder, "log")]
    assert any("in host memory" in message for message in logs)


def test_the_card_and_the_cpu_learn_the_same_in_fp32(jobs: dict[str, Finished]) -> None:
    assert jobs["fp32 on the CPU"].result.model["device"] == "cpu"
    np.testing.assert_allclose(jobs["fp32"].losses, jobs["fp32 on the CPU"].losses, rtol=2e-3)


@pytest.mark.parametrize("name", ["bf16 zero2", "bf16 zero2 offloaded optimizer"])
def test_bf16_learns_nearly_the_same(name: str, jobs: dict[str, Finished]) -> None:
    # The steps are large, so rounding makes more of a difference with each.
    np.testing.assert_allclose(jobs[name].losses[:5], jobs["fp32"].losses[:5], rtol=2e-2)


@pytest.mark.skipif(os.environ.get("SHOAL_TEST_DEVICE") == "cpu", reason="needs a CUDA GPU")
def test_out_of_gpu_memory_is_said_plainly(jobs: dict[str, Finished]) -> None:
    job = jobs[OUT_OF_MEMORY]
    assert job.status == 1
    assert "out of memory" in job.stderr and "Traceback" not in job.stderr, job.stderr[-3000:]
