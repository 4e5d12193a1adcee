"""Weights in host memory: pinned in blocks of their own size, as forecast, and gone when the adapter is verified."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import CHECKOUT
from forked_jobs import run_job
from small_material import write_tiny_model
from transformers import AutoConfig

from training.forecast.estimate import forecast, shape_of
from training.spec import DataSpec, JobSpec, LoraSpec, ModelSpec, TrainingSpec

PROGRAM = CHECKOUT / "tests" / "integration" / "counted_memory.py"
ZERO = {
    "stage": 3, "offload_param": {"device": "cpu", "pin_memory": True}, "stage3_param_persistence_threshold": 100,
}  # fmt: skip
SIZES = {"train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with layers of 1.7 times a power of two: what rounding costs shows."""
    folder = tmp_path_factory.mktemp("wide") / "model"
    write_tiny_model(folder, hidden_size=72, intermediate_size=264)
    return folder


@pytest.mark.parametrize("precision", ["none", "nf4"])
def test_offloaded_weights_take_their_own_size_and_are_gone_when_the_adapter_is_verified(
    precision: str, model: Path, job_flags: list[str], tmp_path: Path
) -> None:
    counted = tmp_path / "counted.json"
    (tmp_path / "zero3.json").write_text(json.dumps({**SIZES, "zero_optimization": ZERO}))
    flags = [flag for flag in job_flags if not flag.startswith("--model_name_or_path")]
    flags += [f"--model_name_or_path={model}", f"--deepspeed={tmp_path / 'zero3.json'}", f"--output_dir={tmp_path}"]
    flags += ["--load_in_4bit"] * (precision == "nf4") + ["--max_steps=2"]
    run = run_job(*flags, program=PROGRAM, COUNTED_MEMORY=str(counted))
    assert run.returncode == 0, run.stderr[-3000:]
    seen = json.loads(counted.read_text())

    config = AutoConfig.from_pretrained(model, num_labels=3).to_dict()
    spec = JobSpec(
        model=ModelSpec(quantization=precision),  # type: ignore[arg-type]
        data=DataSpec(train_file="t.csv", max_seq_length=32), lora=LoraSpec(), training=TrainingSpec(max_steps=2),
        deepspeed={**SIZES, "zero_optimization": ZERO},
    )  # fmt: skip
    estimate = forecast(spec, config, shape_of(spec, None, None, 1), dtype="fp32", world_size=1, on_card=True)
    assert seen["locked"] <= estimate.host["base weights"] <= seen["locked"] + 4096
    trained = json.loads((tmp_path / "result.json").read_text())["model"]["trained_parameters"]
    assert seen["rounded"] <= 2 * 4 * trained  # one buffer, of DeepSpeed's own

    # What is left are the best weights, and one buffer of DeepSpeed's with the trained values: none of the base.
    assert seen["alive"] <= seen["rounded"] + 4 * trained + 16384
