"""benchmarks/chaos.py notices what a study lost, and says what it measured. What strikes it is not tested here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.chaos import all_met, compare, memory_at, redone_of, seconds_of
from benchmarks.chaos_report import markdown

ABOUT = {"date": "2026-11-28", "hardware": "some CPU", "versions": {"ray": "2"}}


def write_job(study: Path, steps: int, adapter: bytes = b"a", predictions: bytes = b"p") -> None:
    job = study / "outputs/chaos/jobs/seed0"
    (job / "adapter").mkdir(parents=True)
    (job / "adapter/adapter_model.safetensors").write_bytes(adapter)
    (job / "predictions.parquet").write_bytes(predictions)
    (job / "result.json").write_text(json.dumps({"train": {"steps": steps}}))
    write_report(study)


def write_report(study: Path, accuracy: float = 0.5, seconds: float = 1.0) -> None:
    job = dict.fromkeys(("status", "untrained_validation", "validation", "test", "scores"), "same") | {"name": "seed0"}
    groups = [{"name": "all", "accuracy_mean": accuracy, "seconds_mean": seconds, "seconds_std": None}]
    report = {"jobs": [job], "groups": groups, "selection": {}, "best": [], "comparisons": [], "data_checks": []}
    (study / "outputs/chaos/report.json").write_text(json.dumps(report))


@pytest.mark.parametrize(
    ("steps", "adapter", "predictions", "wrong"),
    [
        (3, b"a", b"p", []),
        (2, b"a", b"p", ["seed0: it made another number of steps"]),
        (3, b"b", b"p", ["seed0: adapter/adapter_model.safetensors is another"]),
        (3, b"a", b"q", ["seed0: predictions.parquet is another"]),
    ],
)
def test_a_loss_is_noticed(tmp_path: Path, steps: int, adapter: bytes, predictions: bytes, wrong: list[str]) -> None:
    write_job(tmp_path / "calm", 3)
    write_job(tmp_path / "struck", steps, adapter, predictions)
    assert compare(tmp_path / "calm", tmp_path / "struck", 3) == wrong
    (tmp_path / "nothing/outputs/chaos").mkdir(parents=True)
    write_report(tmp_path / "nothing")
    assert compare(tmp_path / "calm", tmp_path / "nothing", 3)[0].startswith("jobs [] succeeded")


def test_another_answer_is_noticed_and_another_duration_is_none(tmp_path: Path) -> None:
    for study in ("calm", "struck"):
        write_job(tmp_path / study, 1)
    write_report(tmp_path / "struck", seconds=7.0)
    assert compare(tmp_path / "calm", tmp_path / "struck", 1) == []
    write_report(tmp_path / "struck", accuracy=0.25)
    assert compare(tmp_path / "calm", tmp_path / "struck", 1) == ["the report gives another answer"]


def test_a_jobs_time_is_all_of_its_tries_and_steps_made_again_are_counted(tmp_path: Path) -> None:
    write_job(tmp_path, 30)
    events = [
        {"time": 10.0, "kind": "phase", "phase": "starting"}, {"time": 14.0, "kind": "step", "step": 16},
        {"time": 20.0, "kind": "log", "message": "resuming after step 10 of 30"},
        {"time": 22.0, "kind": "step", "step": 18}, {"time": 30.0, "kind": "phase", "phase": "saving"},
    ]  # fmt: skip
    job = tmp_path / "outputs/chaos/jobs/seed0"
    (job / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    assert redone_of(job) == 6 and seconds_of(tmp_path) == 20.0


def test_the_bounds_and_the_report() -> None:
    strikes = ABOUT | {
        "steps": 100, "every_seconds": 60.0, "undisturbed_seconds": 900.0, "struck_seconds": 1000.0,
        "useful": 0.9, "useful_of_study": 0.88,
        "strikes": ["rank", "node"], "redone_steps": 10, "restarts": 2, "wrong": [],
    }  # fmt: skip
    samples = [(1, 100 << 20), (2, 110 << 20)]
    short = ABOUT | {
        "jobs": 2, "succeeded": 2, "seconds": 60.0, "seconds_a_job": 30.0, "training_seconds_a_job": 1.0,
        "launcher_bytes": samples, "growth": 1.1,
    }  # fmt: skip
    content = {"strikes": strikes, "short": short}
    assert all_met(content) and memory_at(samples, 1.5) == 110 << 20
    text = markdown({**content, "all_met": True})
    assert (
        "| time lost, a strike | 50 s |" in text and "| steps made again, a strike (of those reported) | 5.0 |" in text
    )
    assert "| 2 | 110 |" in text
    for changed in (
        {"strikes": {**strikes, "useful": 0.89}}, {"strikes": {**strikes, "wrong": ["x"]}},
        {"short": {**short, "succeeded": 1}}, {"short": {**short, "growth": 1.2}},
    ):  # fmt: skip
        assert not all_met({**content, **changed})
