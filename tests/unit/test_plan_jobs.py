"""A study's jobs planned one after the other: what is refused comes last, and is never lost. No forecast is made."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from launcher import forecast
from launcher.cards import GIB, Card, Node
from launcher.choose import Choice
from launcher.expand import CHECKOUT, StudyJob
from training.errors import ShoalError, UserError
from training.forecast.memory_estimate import JobForecast, MemoryEstimate, Work
from training.spec import DataSpec, JobSpec, LoraSpec, ModelSpec

LARGE = 64
"""Rank of the adapter of a job that fits no card."""


CARD = Card(node_id="a", host="a", index=0, size=8, gib=8.0, num_threads=1)
NODES = {"a": Node(node_id="a", host="a", total_gib=64, host_gib=64, cores=4)}
DEADLY = 63
"""Of one whose forecast kills the process."""


class FakeProcess:
    """In the place of the trainer's process: large jobs need 20 GiB, others 1; the forecast of an nf4 base fails."""

    def __init__(self, **_: Any) -> None:
        pass

    def __enter__(self) -> FakeProcess:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def work(self, spec: JobSpec, _: str, data_content: Any = ()) -> Work:
        return Work(parameters=10**9, layers=16, tokens=10**7, evaluated_tokens=10**6, steps=500)

    def forecast(
        self, spec: JobSpec, source: str, data_content: Any = (), capability: Any = None
    ) -> JobForecast | UserError:
        if spec.lora.r == DEADLY:
            raise forecast.ForecastDied("the memory forecast failed: no answer")
        if spec.model.quantization == "nf4":
            raise ShoalError("the memory forecast failed: RuntimeError: nf4")
        size = (20 if spec.lora.r == LARGE else 1) * GIB
        memory = MemoryEstimate(card={"all": size}, host={"all": GIB})
        return JobForecast(memory=memory, work=self.work(spec, source), dtype="bf16")


def job(name: str, rank: int, quantization: Any = "none") -> StudyJob:
    content = json.loads((CHECKOUT / "ds_configs/zero1.json").read_text())
    spec = JobSpec(
        name=name, output_dir=f"outputs/s/jobs/{name}", data=DataSpec(dataset_name="imdb"), lora=LoraSpec(r=rank),
        model=ModelSpec(model_name_or_path="m", quantization=quantization),
    )  # fmt: skip
    return StudyJob(written=spec, spec=replace(spec, deepspeed=content), data_content=[])


def test_a_failing_forecast_of_what_might_help_leaves_the_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "ForecastProcess", FakeProcess)
    jobs = [job("large", LARGE), job("small", 8), job("fails", 8, "nf4")]
    planned = list(forecast.plan_jobs(jobs, [CARD], NODES, on_card=True))
    assert [done.name for done, _ in planned] == ["small", "fails", "large"]  # the refused one keeps nobody waiting
    small, fails, large = (choice for _, choice in planned)
    assert isinstance(small, Choice) and small.refusal is None
    assert isinstance(fails, ShoalError) and "RuntimeError: nf4" in str(fails)
    assert isinstance(large, Choice)
    assert large.refusal == "It needs 20.00 GiB a rank and the largest card it could have has 8."


def test_a_process_that_dies_takes_no_refusal_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "ForecastProcess", FakeProcess)
    planned = forecast.plan_jobs([job("large", LARGE), job("deadly", DEADLY)], [CARD], NODES, on_card=True)
    done, choice = next(planned)
    assert done.name == "large" and isinstance(choice, Choice) and choice.refusal
    with pytest.raises(forecast.ForecastDied):
        next(planned)


def test_without_remedies_a_refusal_is_all_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def advice(*_: Any) -> str:
        return "It fits with less."

    monkeypatch.setattr(forecast, "ForecastProcess", FakeProcess)
    monkeypatch.setattr(forecast, "remedies", advice)
    for with_remedies, end in ((True, "has 8. It fits with less."), (False, "has 8.")):
        planned = forecast.plan_jobs([job("large", LARGE)], [CARD], NODES, on_card=True, with_remedies=with_remedies)
        ((_, choice),) = planned
        assert isinstance(choice, Choice) and str(choice.refusal).endswith(end)
