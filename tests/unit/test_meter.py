"""What a step event says of speed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from training.batches import StepPlan
from training.meter import StepMeter


class Recorder:
    """Keeps the step events."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def event(self, kind: str, **values: Any) -> None:
        self.events.append({"kind": kind, **values})


def test_speeds_are_of_samples_and_tokens_and_a_step_is_that_of_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, now = Recorder(), [0.0]
    monkeypatch.setattr("training.meter.time", SimpleNamespace(perf_counter=lambda: now[0]))
    run: Any = SimpleNamespace(
        num_steps=1000, steps_per_epoch=500, global_batch_size=4, device=torch.device("cpu"), recorder=recorder,
        ranks=SimpleNamespace(world_size=1, is_main=True), stop=SimpleNamespace(requested=False),
    )  # fmt: skip
    state: Any = SimpleNamespace(step=10, seconds=0.0, last_loss=None)
    meter = StepMeter(run, state)
    progress: Any = SimpleNamespace(step=lambda event: None)
    for seconds in (1.0, 2.0, 5.0, 6.0):
        meter.start()
        now[0] += seconds
        state.step += 1
        plan = StepPlan(micro_batches=[], num_samples=4, num_tokens=70)
        meter.add(torch.tensor(8.0), plan, 1e-3, progress, due=False)
        now[0] += 100.0  # an evaluation, which is no step

    first, second = recorder.events
    assert (first["step"], second["step"]) == (12, 14)
    assert (first["step_seconds"], second["step_seconds"]) == (1.5, 5.5)
    assert first["samples_per_second"] == pytest.approx(8 / 3)
    assert second["tokens_per_second"] == pytest.approx(280 / 14)
    assert first["loss"] == second["loss"] == 2.0
