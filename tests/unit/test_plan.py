"""A smaller plan keeps the global batch, and there is an end to it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from training.plan import PLAN_FILE, Plan, RetryWith, read_plan, write_plan
from training.spec import DataSpec, JobSpec, TrainingSpec


def spec_of(micro_batch: int, accumulation: int = 1, checkpointing: bool = False) -> JobSpec:
    training = TrainingSpec(
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=accumulation,
        gradient_checkpointing=checkpointing,
    )
    return JobSpec(data=DataSpec(train_file="t.csv"), training=training)


def sizes_tried(plan: Plan | None) -> list[tuple[int, int, float]]:
    tried = []
    while plan is not None:
        tried.append((plan.per_device_train_batch_size, plan.gradient_accumulation_steps, plan.recomputed_layers))
        plan = plan.smaller("training", 7, "CUDA out of memory")
    return tried


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 6, 7, 8, 12, 32])
@pytest.mark.parametrize("accumulation", [1, 2, 3])
def test_the_global_batch_stays_to_the_last(micro_batch: int, accumulation: int) -> None:
    tried = sizes_tried(Plan.of(spec_of(micro_batch, accumulation)))
    assert {micro * steps for micro, steps, _ in tried} == {micro_batch * accumulation}
    assert tried[-1] == (1, micro_batch * accumulation, 1.0)
    for (before, _, _), (after, _, _) in itertools.pairwise(tried):
        assert after <= max(1, before // 2)


def test_layers_are_recomputed_once_a_micro_batch_is_one_text() -> None:
    assert sizes_tried(Plan.of(spec_of(4))) == [(4, 1, 0), (2, 2, 0), (1, 4, 0), (1, 4, 0.5), (1, 4, 1.0)]
    assert sizes_tried(Plan.of(spec_of(2, checkpointing=True))) == [(2, 1, 1.0), (1, 2, 1.0)]


def test_evaluation_gives_up_its_own_batch_alone() -> None:
    plan = Plan.of(spec_of(8))
    smaller = plan.smaller("evaluation", 3, "CUDA out of memory")
    assert smaller is not None
    assert smaller == replace(plan, per_device_eval_batch_size=8, retries=smaller.retries)
    assert smaller.retries == [
        {
            "phase": "evaluation", "step": 3, "error": "CUDA out of memory",
            "changes": {"per_device_eval_batch_size": [16, 8]},
        }
    ]  # fmt: skip
    assert str(RetryWith(smaller)) == (
        "out of memory in evaluation, step 3; trying again with per_device_eval_batch_size 16 -> 8"
    )
    assert replace(plan, per_device_eval_batch_size=1).smaller("evaluation", 3, "") is None


def test_a_plan_is_kept_for_the_same_settings_and_ranks_only(tmp_path: Path) -> None:
    spec = spec_of(8)
    assert read_plan(tmp_path, spec, 1) == Plan.of(spec)
    smaller = Plan.of(spec).smaller("training", 1, "CUDA out of memory")
    assert smaller is not None
    write_plan(tmp_path, spec, 1, smaller)
    assert read_plan(tmp_path, spec, 1) == smaller
    assert read_plan(tmp_path, spec, 2) == Plan.of(spec)
    assert read_plan(tmp_path, spec_of(4), 1) == Plan.of(spec_of(4))
    (tmp_path / PLAN_FILE).write_text("{")
    assert read_plan(tmp_path, spec, 1) == Plan.of(spec)
