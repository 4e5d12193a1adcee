"""What a calibration keeps and what is planned by it; steps are measured by tests/integration/test_calibrate.py."""

from __future__ import annotations

import json
import os
import random
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from launcher.cards import GIB
from launcher.cost import CPU, expected_seconds
from launcher.seen import show
from training.calibration.costs import Quantities, Shape, evaluation_amounts, job_amounts, seconds, step_amounts
from training.calibration.fit import fit
from training.calibration.record import CardRecord, kind_of, read_record, records, this_cpu
from training.calibration.seen import SeenJob, note, seen_jobs
from training.forecast.memory_estimate import Work
from training.spec import DataSpec, JobSpec, ModelSpec, TrainingSpec

WORK = Work(
    parameters=10**6, layers=4, tokens=64_000, evaluated_tokens=6_400, steps=100, hidden=128, weights=1_200_000,
    trained=40_000, activations=2_500, pairs=4_000_000, evaluated_pairs=400_000, evaluations=3,
)  # fmt: skip
SHAPE = Shape(
    work=WORK, quantization="none", dtype="fp32", stage=1, num_ranks=1, recomputes=False, offloads_optimizer=False,
    offloads_base=False,
)  # fmt: skip
SPEC = JobSpec(
    data=DataSpec(train_file="texts.csv", max_seq_length=64), training=TrainingSpec(per_device_train_batch_size=16),
    deepspeed={"zero_optimization": {"stage": 1}},
)  # fmt: skip
COSTS = replace(CPU, activations=1e-9, attended=1e-10, weights_updated=1e-9)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path))


def record(**values: Any) -> CardRecord:
    name, driver = this_cpu()
    known: dict[str, Any] = {
        "name": name, "driver": driver, "torch": "2.13.0", "date": "2026-12-01", "num_threads": 1, "seconds": 50.0,
        "costs": {kind_of("fp32", "none"): COSTS},
    }  # fmt: skip
    return CardRecord(**(known | values))


def test_a_record_is_read_as_it_was_kept() -> None:
    path = record().save()
    assert path.is_relative_to(Path(path).parents[1]) and records() == [record()]
    assert read_record(record().name, record().driver, "2.13.0") == record()


@pytest.mark.parametrize("other", [{"torch": "2.14.0"}, {"driver": "570.1"}, {"name": "NVIDIA GeForce RTX 3060"}])
def test_what_was_measured_holds_for_that_card_driver_and_torch_alone(other: dict[str, str]) -> None:
    record().save()
    known = {"name": record().name, "driver": record().driver, "torch": "2.13.0"} | other
    assert read_record(**known) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: "",
        lambda text: text[: len(text) // 2],
        lambda _: "[]",
        lambda text: json.dumps({**json.loads(text), "schema": 0}),
        lambda text: json.dumps({**json.loads(text), "costs": {"fp32 none": {"operations": "fast"}}}),
        lambda text: json.dumps({**json.loads(text), "costs": {"fp32 none": {"speed": 1}}}),
        lambda text: json.dumps({key: value for key, value in json.loads(text).items() if key != "costs"}),
    ],
)
def test_a_damaged_record_is_a_card_that_is_not_measured(damage: Any) -> None:
    path = record().save()
    path.write_text(damage(path.read_text(encoding="utf-8")), encoding="utf-8")
    assert read_record(record().name, record().driver, "2.13.0") is None and records() == []


def rows(kind: str, costs: Quantities, draw: random.Random) -> list[dict[str, Any]]:
    """Rows as training.calibration.steps measures them, each a little off, one in twelve disturbed."""
    found = []
    dtype, quantization = kind.split()
    for hidden, layers in ((128, 6), (256, 2), (512, 2)):
        work = replace(WORK, parameters=12 * hidden**2 * layers, layers=layers, hidden=hidden,
                       activations=20 * hidden * layers, trained=320 * hidden * layers)  # fmt: skip
        shape = replace(SHAPE, work=work, dtype=dtype, quantization=quantization)
        for number, (texts, length) in enumerate(((1, 16), (8, 32), (2, 256), (16, 64), (1, 512), (32, 64)) * 2):
            size = {"tokens": texts * length, "pairs": texts * length**2, "micro_batches": 1}
            for what, amounts in (("step", step_amounts(shape, **size)),
                                  ("evaluation", evaluation_amounts(shape, **size))):  # fmt: skip
                noise = draw.uniform(0.95, 1.05) * (4 if number == 5 else 1)
                found.append(
                    {"kind": kind, "what": what, "amounts": asdict(amounts), "seconds": noise * seconds(costs, amounts)}
                )
    return found


def test_costs_are_found_in_rows_of_which_some_were_disturbed() -> None:
    draw = random.Random(0)
    slow = replace(COSTS, operations=2e-10, evaluated_operations=1e-10)
    measured = [*rows("fp32 none", COSTS, draw), *rows("bf16 none", slow, draw)]
    found = fit(measured, {"fp32": 4e-11})
    for kind, costs in (("fp32 none", COSTS), ("bf16 none", slow)):
        shape = replace(SHAPE, dtype=kind.split()[0])
        other = step_amounts(shape, tokens=5_000, pairs=500_000, micro_batches=3, steps=2)  # none of those measured
        assert seconds(found[kind], other) == pytest.approx(seconds(costs, other), rel=0.1)
    assert all(cost >= 0 for costs in found.values() for cost in vars(costs).values())


def test_no_operation_is_faster_than_in_large_products() -> None:
    measured = rows("fp32 none", replace(COSTS, operations=0.0), random.Random(0))
    assert fit(measured, {"fp32": 3e-11})["fp32 none"].operations >= 3e-11


def test_what_a_job_does_is_cut_over_its_ranks() -> None:
    alone = job_amounts(SPEC, SHAPE)
    two = job_amounts(SPEC, replace(SHAPE, num_ranks=2, stage=3))
    assert two.operations == alone.operations / 2 and two.attended == alone.attended / 2
    assert (alone.other_ranks, two.other_ranks, alone.layers_stage3) == (0, 1, 0) and two.layers_stage3 > 0
    assert alone.bytes_gathered == 0 < two.bytes_gathered and (alone.starts, two.starts) == (1, 1)


@pytest.mark.parametrize("name", [item.name for item in fields(Quantities)])
def test_what_costs_time_is_in_some_job(name: str) -> None:
    shapes = [
        SHAPE,
        replace(SHAPE, stage=3, num_ranks=2, offloads_optimizer=True, offloads_base=True, quantization="nf4"),
    ]
    assert any(getattr(job_amounts(SPEC, shape), name) > 0 for shape in shapes)


def test_jobs_are_planned_by_what_was_measured_and_else_by_guesses() -> None:
    slow = record(costs={kind_of("fp32", "none"): replace(COSTS, starts=1000.0)})
    guessed = expected_seconds(SPEC, WORK, on_card=False)
    assert guessed < 1000 < expected_seconds(SPEC, WORK, on_card=False, record=slow)
    nf4 = replace(SPEC, model=ModelSpec(quantization="nf4"))
    assert expected_seconds(nf4, WORK, on_card=False, record=slow) < 1000  # that kind was not measured


def seen(**values: Any) -> SeenJob:
    known: dict[str, Any] = {
        "time": 1.0, "card": "CPU", "job": "study/job", "kind": "fp32 none", "num_ranks": 1, "forecast_bytes": 2 * GIB,
        "bytes": GIB, "expected_seconds": 20.0, "seconds": 30.0, "time_was_measured": True,
    }  # fmt: skip
    return SeenJob(**(known | values))


def test_jobs_seen_are_shown_by_card(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert show() == 0 and "No job has been seen yet" in capsys.readouterr().out
    other = seen(card="NVIDIA GeForce RTX 3060", job="other/one", time_was_measured=False, seconds=10.0)
    for job in (seen(), seen(job="study/went-on", seconds=0.0), other):
        note(job)
    path = Path(os.environ["SHOAL_CACHE"]) / "calibration" / "jobs.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write('{"card": "half a line\n')  # a power cut
    assert seen_jobs() == [seen(), seen(job="study/went-on", seconds=0.0), other]
    assert show() == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "CPU: 2 jobs seen" in text and "NVIDIA GeForce RTX 3060: 1 jobs seen" in text
    assert "study/went-on 1 fp32 none 2.00 1.00 20.0 went on measured" in text
    assert "memory, measured over forecast: median 0.50, 0.50 to 0.50" in text
    assert "taken over expected by measured costs: median 1.50, 1.50 to 1.50" in text
    assert "taken over expected by assumed costs: median 0.50, 0.50 to 0.50" in text
