"""The learning rates are those of transformers.get_scheduler."""

from __future__ import annotations

import pytest
import torch
from transformers import get_scheduler

from training.schedule import learning_rate, warmup_steps
from training.spec import Schedule, TrainingSpec

PEAK = 3e-4


def rates_of_transformers(name: str, num_steps: int, warmup: int) -> list[float]:
    """Return the rate each optimizer step would see."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=num_steps)
    rates = []
    for _ in range(num_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("name", ["linear", "cosine", "constant", "constant_with_warmup"])
@pytest.mark.parametrize("warmup", [0, 1, 7, 40, 60])
@pytest.mark.parametrize("num_steps", [1, 40])
def test_each_schedule_is_that_of_transformers(name: Schedule, warmup: int, num_steps: int) -> None:
    training = TrainingSpec(learning_rate=PEAK, lr_scheduler_type=name, warmup_steps=float(warmup))
    ours = [learning_rate(step, num_steps, training) for step in range(num_steps)]
    assert ours == pytest.approx(rates_of_transformers(name, num_steps, warmup), rel=1e-9, abs=1e-15)


def test_every_schedule_of_the_settings_is_compared() -> None:
    assert set(Schedule.__args__) == {"linear", "cosine", "constant", "constant_with_warmup"}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("value", "num_steps", "expected"),
    [(0.0, 100, 0), (0.1, 100, 10), (0.1, 95, 10), (0.99, 10, 10), (1.0, 100, 1), (30, 100, 30)],
)
def test_warm_up_below_one_is_a_share(value: float, num_steps: int, expected: int) -> None:
    assert warmup_steps(TrainingSpec(warmup_steps=value), num_steps) == expected
