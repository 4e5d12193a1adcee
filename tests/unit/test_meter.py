"""What a step event says of speed, and when it comes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from training.batches import StepPlan
from training.errors import ShoalError
from training.meter import StepMeter


class Recorder:
    """Keeps the step events."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def event(self, kind: str, **values: Any) -> None:
        self.events.append({"kind": kind, **values})


def meter_of(recorder: Recorder, *, num_steps: int, step: int = 0, world_size: int = 1) -> StepMeter:
    run: Any = SimpleNamespace(
        num_steps=num_steps, steps_per_epoch=500, global_batch_size=4, device=torch.device("cpu"), recorder=recorder,
        ranks=SimpleNamespace(world_size=world_size, is_main=True), stop=SimpleNamespace(requested=False),
        spec=SimpleNamespace(training=SimpleNamespace(learning_rate=1e-3)),
    )  # fmt: skip
    return StepMeter(run, SimpleNamespace(step=step, seconds=0.0, last_loss=None))  # type: ignore[arg-type]


def make_step(meter: StepMeter, loss: float, *, due: bool = False) -> None:
    meter.start()
    meter.state.step += 1
    progress: Any = SimpleNamespace(step=lambda event: None)
    meter.add(torch.tensor(loss), StepPlan(micro_batches=[], num_samples=4), meter.state.step * 0.1, progress, due=due)


def test_speeds_are_of_samples_and_tokens_and_a_step_is_that_of_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, now = Recorder(), [0.0]
    monkeypatch.setattr("training.meter.time", SimpleNamespace(perf_counter=lambda: now[0]))
    meter = meter_of(recorder, num_steps=1000, step=10)
    state = meter.state
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


def test_on_a_card_a_report_comes_a_step_late_and_before_a_save_at_once() -> None:
    recorder = Recorder()
    meter = meter_of(recorder, num_steps=20)
    meter.late = True
    seen = []
    for step in range(1, 6):
        make_step(meter, 4.0 * step, due=step == 4)
        seen.append([event["step"] for event in recorder.events])
    assert seen == [[], [1], [1, 2], [1, 2, 3, 4], [1, 2, 3, 4]]
    assert [event["loss"] for event in recorder.events] == [1.0, 2.0, 3.0, 4.0]
    assert [event["learning_rate"] for event in recorder.events] == pytest.approx([0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize("due", [False, True])
def test_what_has_diverged_is_found_before_it_is_saved(due: bool) -> None:
    meter = meter_of(Recorder(), num_steps=20)
    meter.late = True
    make_step(meter, 4.0)
    if due:
        with pytest.raises(ShoalError, match="loss is nan at step 2"):
            make_step(meter, float("nan"), due=True)
        return
    make_step(meter, float("nan"))
    with pytest.raises(ShoalError, match="loss is nan at step 2"):
        make_step(meter, 4.0)


@pytest.mark.parametrize(("num_steps", "agreed_at", "reported"), [(20, 3, [1, 2, 3]), (1500, 4, [3, 4])])
def test_ranks_agree_on_a_stop_a_step_late_and_all_steps_are_reported(
    num_steps: int, agreed_at: int, reported: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other rank was asked to stop within the second step."""
    stops = {"asked": 0.0}
    monkeypatch.setattr("training.meter.dist", SimpleNamespace(all_reduce=lambda sums: sums[1].add_(stops["asked"])))
    recorder = Recorder()
    meter = meter_of(recorder, num_steps=num_steps, world_size=2)
    meter.late = True
    while not meter.stop_agreed:
        stops["asked"] = float(meter.state.step >= 1)
        make_step(meter, 4.0)
    assert meter.state.step == agreed_at
    assert [event["step"] for event in recorder.events] == reported
    assert recorder.events[-1]["loss"] == 1.0


def test_the_only_rank_need_not_ask() -> None:
    recorder = Recorder()
    meter = meter_of(recorder, num_steps=20)
    meter.late = True
    make_step(meter, 4.0)
    meter.run.stop.requested = True  # type: ignore[misc]
    make_step(meter, 4.0)
    assert meter.stop_agreed and [event["step"] for event in recorder.events] == [1, 2]
