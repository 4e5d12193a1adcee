"""A study whose hopeless settings are stopped, on a real Ray: the others finish, and nothing is repeated."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import fake_rank
import pytest
import yaml
from conftest import read_events, read_report, write_study

from launcher.run import run_study

GOOD, BAD, WORSE = 0.9, 0.3, 0.2


def run(study: Path) -> dict[str, Any]:
    assert run_study(study, run_job=fake_rank.run_job) == 0
    return read_report(study.parent)


def test_hopeless_settings_end_and_go_on_where_the_study_is_changed(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write_study(
        workplace,
        early_stopping={"grace_epochs": 1},
        lora={"r": fake_rank.REACHES_ITS_LEARNING_RATE},
        training={"num_train_epochs": 4},
        seed=[0, 1],
        sweep={"grid": {"training.learning_rate": [GOOD, BAD, WORSE]}},
    )
    report = run(study)

    status = {job["name"]: job["status"] for job in report["jobs"]}
    good = {f"lr{GOOD:g}-seed{seed}" for seed in (0, 1)}
    assert {name for name, ended in status.items() if ended == "succeeded"} == good
    stopped = [job for job in report["jobs"] if job["status"] == "stopped early"]
    assert len(stopped) == 4
    for job in stopped:
        verdict = job["stopped"]["verdict"]
        assert verdict["rung"] == 1.0 and verdict["value"] < verdict["needed"] <= GOOD
        assert job["stopped"]["num_steps"] == 4 and job["stopped"]["steps_saved"] >= 3
        assert f"needed at least {verdict['needed']:.4f}" in job["error"]["message"]
    total = report["early_stopping"]
    assert total["num_jobs"] == 4 and total["num_steps"] == 16
    # A step of these takes 90 seconds, they say.
    assert total["card_hours_saved"] == pytest.approx(total["steps_saved"] * 90 / 3600)
    (group,) = report["groups"]
    assert (group["num_seeds"], group["num_stopped"]) == (2, 0)
    shown = capsys.readouterr().out
    assert "2 of 6 jobs succeeded, 0 failed, 4 stopped early, 0 not run" in shown
    assert f"lr{BAD:g}-seed0: stopped early" in shown
    assert f"{total['steps_saved']} of their 16 steps were not trained, an estimated" in shown
    assert "Stopped early" in (workplace / "outputs/tiny/report.html").read_text()

    written = {path: path.stat().st_mtime_ns for path in workplace.glob("outputs/tiny/jobs/*/*.json*")}
    assert len(written) >= 12
    again = run(study)
    assert {job["name"]: job["status"] for job in again["jobs"]} == status
    assert {path: path.stat().st_mtime_ns for path in written} == written

    content = yaml.safe_load(study.read_text())
    del content["early_stopping"]
    study.write_text(yaml.safe_dump(content))
    (workplace / "outputs/tiny/jobs/patience").touch()
    whole = run(study)
    assert Counter(job["status"] for job in whole["jobs"]) == {"succeeded": 6}
    assert whole["early_stopping"] is None
    decider = workplace / "outputs/tiny/jobs" / stopped[0]["stopped"]["verdict"]["job"]
    assert any("resuming" in event["message"] for event in read_events(decider, "log"))
    events = [json.loads(line)["kind"] for line in (decider / "events.jsonl").read_text().splitlines()]
    assert events.count("evaluation") == 4  # none twice
