"""Real jobs through training/main.py on the card. All start at once: most of their time is imports."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from card import DEVICE, NEEDS_CARD

sys.path.append(str(Path(__file__).resolve().parents[1] / "integration"))  # what its conftest imports lies beside it
from integration.conftest import (  # noqa: F401
    CHECKOUT,
    command,
    corpus,
    environment,
    job_flags,
    read_events,
    tiny_model,
)

from training.result import RunResult, read_result

pytestmark = NEEDS_CARD

ON_CPU, OFFLOADED = "fp32 on the CPU", "bf16 zero2 offloaded optimizer"
JOBS = {
    "bf16 zero2": ["--bf16=true", "--deepspeed=ds_configs/zero2.json"],
    "nf4 zero3 offload_param": [
        "--bf16=true", "--load_in_4bit", "--gradient_checkpointing", "--deepspeed=ds_configs/zero3_offload_param.json",
    ],
    "int8 zero2": ["--bf16=true", "--load_in_8bit", "--deepspeed=ds_configs/zero2.json"],
    "fp32": ["--deepspeed=ds_configs/zero0.json"],
    ON_CPU: ["--deepspeed=ds_configs/zero0.json"],
    OFFLOADED: ["--bf16=true", "--deepspeed=ds_configs/zero2_offload.json"],
}  # fmt: skip
"""The last one may compile DeepSpeed's optimizer first, so all else is looked at before it."""
OUT_OF_MEMORY = "out of memory"
CAPPED = """
import sys, torch
total = torch.cuda.get_device_properties(0).total_memory
torch.cuda.set_per_process_memory_fraction(16 * 2**20 / total)  # less than the first matrix product's work space
from training.main import main
sys.exit(main(sys.argv[1:]))
"""


@dataclass(frozen=True, kw_only=True)
class Job:
    process: subprocess.Popen[bytes]
    folder: Path

    def end(self) -> tuple[int, str]:
        """Wait for its end; return exit status and standard error."""
        status = self.process.wait(timeout=300)
        return status, self.folder.with_suffix(".log").read_text(errors="replace")

    @property
    def result(self) -> RunResult:
        status, stderr = self.end()
        result = read_result(self.folder)
        assert status == 0 and result is not None, stderr[-3000:]
        return result

    @property
    def losses(self) -> list[float]:
        assert self.result
        return [event["loss"] for event in read_events(self.folder, "step")]


def start(words: list[str], folder: Path, *, sees_card: bool) -> Job:
    env = environment() if sees_card else {**environment(), "CUDA_VISIBLE_DEVICES": ""}
    with folder.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(
            [*words, "--output_dir", str(folder)], cwd=CHECKOUT, env=env, stdout=subprocess.DEVNULL, stderr=log
        )
    return Job(process=process, folder=folder)


@pytest.fixture(scope="module")
def jobs(job_flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Job]]:  # noqa: F811
    folder = tmp_path_factory.mktemp("jobs")
    commands = {name: command(*job_flags, *flags) for name, flags in JOBS.items()}
    if DEVICE.type == "cuda":
        small = ["--per_device_train_batch_size=1", "--per_device_eval_batch_size=1", "--gradient_checkpointing"]
        commands[OUT_OF_MEMORY] = [sys.executable, "-c", CAPPED, *job_flags, *JOBS["bf16 zero2"], *small]
    jobs = {}
    try:
        for name, words in commands.items():
            jobs[name] = start(words, folder / name.replace(" ", "_"), sees_card=name != ON_CPU)
            if DEVICE.type == "cpu":  # few cores: one after the other
                jobs[name].end()
        yield jobs
    finally:
        for job in jobs.values():
            job.process.kill()


def test_nf4_weights_were_offloaded(jobs: dict[str, Job]) -> None:
    facts = jobs["nf4 zero3 offload_param"].result.model
    assert facts["quantization"] == "nf4" and facts["zero_stage"] == 3 and facts["offload_param"]


def test_the_card_and_the_cpu_learn_the_same_in_fp32(jobs: dict[str, Job]) -> None:
    assert jobs[ON_CPU].result.model["device"] == "cpu"
    np.testing.assert_allclose(jobs["fp32"].losses, jobs[ON_CPU].losses, rtol=2e-3)


@pytest.mark.skipif(DEVICE.type == "cpu", reason="needs a CUDA GPU")
def test_out_of_gpu_memory_is_said_plainly(jobs: dict[str, Job]) -> None:
    status, stderr = jobs[OUT_OF_MEMORY].end()
    assert status == 1
    assert "out of memory" in stderr and "Traceback" not in stderr, stderr[-3000:]


@pytest.mark.parametrize("name", ["bf16 zero2", OFFLOADED])
def test_bf16_learns_nearly_the_same(name: str, jobs: dict[str, Job]) -> None:
    # The steps are large, so rounding makes more of a difference with each.
    np.testing.assert_allclose(jobs[name].losses[:5], jobs["fp32"].losses[:5], rtol=2e-2)


def test_the_optimizer_was_offloaded(jobs: dict[str, Job]) -> None:
    assert jobs[OFFLOADED].result.model["offload_optimizer"]
    logs = [event["message"] for event in read_events(jobs[OFFLOADED].folder, "log")]
    assert any("in host memory" in message for message in logs)


@pytest.mark.parametrize("name", [name for name in JOBS if name != ON_CPU])
def test_a_job_learns_on_the_card_and_is_verified(name: str, jobs: dict[str, Job]) -> None:
    result = jobs[name].result
    assert result.adapter["verified"]
    assert result.validation["loss"] < result.untrained_validation["loss"]
    if DEVICE.type == "cuda":
        assert result.model["device"] == torch.cuda.get_device_name()
        assert result.peak_memory["gpu_bytes"] > 0
