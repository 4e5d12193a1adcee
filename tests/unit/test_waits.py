"""In an optimizer step the host waits for the card only where DeepSpeed does: counted on the fake card.

As a program it makes the steps and prints, for each, the copies from host to card and the waits with who made them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

CHECKOUT = Path(__file__).resolve().parents[2]
CASES: dict[str, dict[str, Any]] = {
    "packed, bf16": {},
    "packed, fp32, weights and focal": {"dtype": "float32", "loss": {"class_weights": {"0": 2.0}, "focal_gamma": 2.0}},
    "chunks": {"split": {"ids": ["a", "b"], "labels": [0, 1], "first_chunks": np.array([0, 2, 4])}},
    "several labels": {"split": {"labels": [(), (0, 2), (1,), (0,)]}},
    "padded": {"window": 8},
    "packed, recomputed, ZeRO-3 from host memory": {
        "zero": "zero3_offload",
        "recomputed": True,
    },  # last: it changes torch
}
MICRO_BATCHES = 2
LENGTHS = [40, 30, 20, 9]


@pytest.fixture(scope="module")
def counted() -> dict[str, Any]:
    program = [sys.executable, __file__]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    run = subprocess.run(program, cwd=CHECKOUT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])  # type: ignore[no-any-return]


@pytest.mark.parametrize("case", CASES)
def test_each_micro_batch_comes_in_one_copy_that_nobody_waits_for(case: str, counted: dict[str, Any]) -> None:
    found = counted[case]
    assert found["copies"] == MICRO_BATCHES
    assert [wait for wait in found["waits"] if "/training/" in wait] == []


@pytest.mark.parametrize("case", CASES)
def test_deepspeed_waits_in_its_update_alone(case: str, counted: dict[str, Any]) -> None:
    """For the norm of the gradients, by which it cuts them; with weights or gradients in host memory it copies more."""
    waits = counted[case]["waits"]
    assert any("is_invalid_grad_norm" in wait for wait in waits) or "ZeRO-3" in case
    assert "ZeRO-3" in case or [wait for wait in waits if "in_step" not in wait] == []


@dataclass
class Counted:
    """What was seen."""

    copies: int = 0
    waits: list[str] = field(default_factory=list)


@contextmanager
def counting(counted: Counted) -> Iterator[None]:
    """Count copies to the card and what waits for it."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from training import host_copies
    from training.forecast.world import CARD

    pinned: list[Tensor] = []

    def pin_memory(tensor: Tensor) -> Tensor:
        pinned.append(tensor.clone())
        return pinned[-1]

    class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            output = func(*args, **kwargs)
            packet, aten = func.overloadpacket, torch.ops.aten
            if packet is aten._local_scalar_dense and args[0].device.type == CARD:
                counted.waits.append(f"read {who()}")
            if packet in (aten._to_copy, aten.copy_):
                source, target = args[-1 if packet is aten._to_copy else 1], output
                free = kwargs.get("non_blocking") or (packet is aten.copy_ and len(args) > 2 and args[2])
                if (source.device.type == CARD) != (target.device.type == CARD):
                    host = source if target.device.type == CARD else target
                    if free and (any(host is each for each in pinned) or host is target):
                        counted.copies += target.device.type == CARD
                    else:
                        counted.waits.append(f"copy {source.device.type} to {target.device.type} {who()}")
            return output

    host_copies.PINNED_FOR.add(CARD)
    usual, torch.Tensor.pin_memory = torch.Tensor.pin_memory, pin_memory  # type: ignore[method-assign,assignment]
    try:
        with Counting():
            yield
    finally:
        torch.Tensor.pin_memory = usual  # type: ignore[method-assign]
        host_copies.PINNED_FOR.remove(CARD)


def who() -> str:
    """Return the innermost line of the trainer or of DeepSpeed, and whether it is within the engine's step."""
    stack = traceback.extract_stack()
    ours = [
        frame
        for frame in stack
        if "/deepspeed/" in frame.filename or ("/training/" in frame.filename and "/forecast/" not in frame.filename)
    ]
    within = any(frame.name == "step" and "/deepspeed/" in frame.filename for frame in stack)
    last = ours[-1]
    return f"{last.filename}:{last.lineno} {last.name} {'in_step' if within else ''}"


def steps() -> Iterator[tuple[str, Counted]]:
    """Make two steps of each case, and yield what the second did."""
    from transformers import LlamaConfig, MistralConfig

    from training import rank
    from training.batches import StepPlan
    from training.deepspeed_config import fill_auto, read_deepspeed_config
    from training.forecast.base import fake_base, stand_ins
    from training.forecast.live import LiveBytes
    from training.forecast.simulate import fake_material
    from training.forecast.world import fake_world
    from training.loop import optimizer_step
    from training.meter import StepMeter
    from training.plan import Plan
    from training.recorder import SilentRecorder
    from training.run import TrainingState
    from training.spec import MULTI_LABEL, DataSpec, JobSpec, TrainingSpec

    shape: dict[str, Any] = {
        "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_labels": 3, "pad_token_id": 0,
    }  # fmt: skip
    with fake_world(1, on_card=True) as (ranks, device):
        for name, case in CASES.items():
            config = MistralConfig(**shape, sliding_window=case["window"]) if "window" in case else LlamaConfig(**shape)
            training = TrainingSpec(
                per_device_train_batch_size=4,
                gradient_checkpointing=case.get("recomputed", False),
                **case.get("loss", {}),
            )
            zero = str(CHECKOUT / "ds_configs" / f"{case.get('zero', 'zero2')}.json")
            spec = JobSpec(data=DataSpec(train_file="t.csv", max_seq_length=64), training=training, deepspeed=zero)
            plan = Plan.of(spec)
            dtype = getattr(torch, case.get("dtype", "bfloat16"))
            content, source = read_deepspeed_config(zero)
            filled = fill_auto(content, source, training, world_size=1, dtype=dtype, cuda=True) | plan.deepspeed_sizes()
            material = fake_material(config, dtype, SimpleNamespace(training=[LENGTHS], evaluation=[40]))  # type: ignore[arg-type]
            material.splits["train"] = replace(material.splits["train"], **case.get("split", {}))
            if "several" in name:
                material.corpus.problem_type = MULTI_LABEL
            texts = list(range(len(material.splits["train"])))
            step = StepPlan(micro_batches=[texts] * MICRO_BATCHES, num_samples=len(texts) * MICRO_BATCHES)
            counted = Counted()
            with LiveBytes(stand_ins(), {}) as live:
                run, _ = rank.build_run(
                    spec, plan, ranks, SilentRecorder(), Path(), material, filled, device, None, lambda _: None, None,
                    partial(fake_base, begin=live.enter),
                )  # fmt: skip
                optimizer_step(run, step, 0, 1e-3)
                meter = StepMeter(run, TrainingState(step=1))
                meter.late = True  # as on a card
                with counting(counted):  # in a second step, in which all has its place
                    meter.start()
                    meter.add(optimizer_step(run, step, 1, 1e-3), step, 1e-3, None, due=False)  # type: ignore[arg-type]
                run.engine.destroy()
            yield name, counted


if __name__ == "__main__":
    print(json.dumps({name: counted.__dict__ for name, counted in steps()}), flush=True)
    os._exit(0)  # torch's backend of a device in Python may not survive its own end
