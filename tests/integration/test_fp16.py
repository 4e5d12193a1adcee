"""Jobs in fp16 on the CPU: a step that overflows leaves no trace, whatever ZeRO makes of the gradients."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from conftest import CHECKOUT, read_events
from forked_jobs import run_job
from safetensors.torch import load_file, save_file

STEPS = 4


def deepspeed_file(folder: Path, config: str, **section: int) -> Path:
    """Write a file of ds_configs/ with a section fp16 as Hugging Face's documentation has it."""
    content = json.loads((CHECKOUT / "ds_configs" / f"{config}.json").read_text())
    path = folder / f"{config}-{'-'.join(map(str, section.values()))}.json"
    path.write_text(json.dumps({**content, "fp16": {"enabled": "auto", "loss_scale": 0, **section}}))
    return path


def state_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "checkpoints" / f"step-{STEPS:06d}" / "state.json").read_text())


@pytest.mark.parametrize(
    ("config", "num_ranks"),
    [("zero0", 2), ("zero2", 1), ("zero2_offload", 2), ("zero3", 2), ("zero3_offload_param", 1)],
)
def test_a_step_that_overflows_is_made_again_and_leaves_no_trace(
    config: str, num_ranks: int, job_flags: list[str], tmp_path: Path
) -> None:
    flags = [
        *job_flags, "--fp16", f"--max_steps={STEPS}", "--lora_dropout=0.1",
        "--per_device_train_batch_size=2", "--gradient_accumulation_steps=2",
    ]  # fmt: skip

    def train(name: str, power: int) -> list[str]:
        file = deepspeed_file(tmp_path, config, initial_scale_power=power, loss_scale_window=1, hysteresis=2)
        run = run_job(*flags, f"--deepspeed={file}", f"--output_dir={tmp_path / name}", num_ranks=num_ranks)
        assert run.returncode == 0, run.stderr[-3000:]
        return [event["message"] for event in read_events(tmp_path / name, "log") if "made again" in event["message"]]

    overflows = [message for message in train("overflowing", 26) if message.startswith("step 1 is")]
    assert len(overflows) > 3  # the first takes the patience of `hysteresis` only
    scale = int(overflows[-1].split()[-2])
    assert not [message for message in train("calm", int(math.log2(scale))) if message.startswith("step 1 is")]

    overflowing, calm = (
        [(event["step"], event["loss"], event["learning_rate"]) for event in read_events(tmp_path / name, "step")]
        for name in ("overflowing", "calm")
    )
    assert overflowing == calm and [step for step, *_ in calm] == list(range(1, STEPS + 1))
    weights, expected = (
        load_file(tmp_path / name / "checkpoints" / f"step-{STEPS:06d}" / "state.safetensors")
        for name in ("overflowing", "calm")
    )
    assert all(weights[name].equal(tensor) for name, tensor in expected.items())
    # A window of one step: it grows with each step after the first, and falls again where that is too much.
    grown = [state_of(tmp_path / name)["progress"]["loss_scale"] for name in ("overflowing", "calm")]
    assert grown[0] == grown[1] and grown[0]["scale"] > 1


def test_activations_beyond_fp16_are_said_and_what_helps(
    tiny_model: Path, job_flags: list[str], tmp_path: Path
) -> None:
    """Products of weights too large, which fp32 and bf16 take; no loss scale mends them."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny_model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    for name, tensor in weights.items():
        if name.endswith("down_proj.weight"):
            tensor *= 1e7
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    flags = [*job_flags, "--fp16", f"--model_name_or_path={folder}", "--max_steps=1"]
    run = run_job(*flags, f"--output_dir={tmp_path / 'out'}")
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert "overflow fp16" in run.stderr and "Set model.dtype: fp32" in run.stderr
