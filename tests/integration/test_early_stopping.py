"""A study whose hopeless settings are stopped, on a real Ray: the others finish, and nothing is repeated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fake_rank
import pytest
import yaml
from conftest import read_events, read_report, write_study
from forked_jobs import run_job

from launcher.run import run_study

GOOD, BAD, WORSE = 0.9, 0.3, 0.2


def study_of(workplace: Path, rates: list[float], seeds: list[int]) -> Path:
    """Write a study whose jobs are to run at once: a hopeless one waits for a good one."""
    return write_study(
        workplace,
        num_ranks=1,  # a last job would be spread over the cards that are free
        early_stopping={"grace_epochs": 1},
        lora={"r": fake_rank.REACHES_ITS_LEARNING_RATE},
        training={"num_train_epochs": 4},
        seed=seeds,
        sweep={"grid": {"training.learning_rate": rates}},
    )


def run(study: Path, cluster: str) -> dict[str, Any]:
    assert run_study(study, address=cluster, run_job=fake_rank.run_job) == 0
    return read_report(study.parent)


def test_hopeless_settings_are_stopped_and_a_second_run_repeats_nothing(
    workplace: Path, cluster: str, capsys: pytest.CaptureFixture[str]
) -> None:
    study = study_of(workplace, [GOOD, BAD, WORSE], [0, 1])
    report = run(study, cluster)
    shown = capsys.readouterr().out

    status = {job["name"]: job["status"] for job in report["jobs"]}
    assert {name for name, ended in status.items() if ended == "succeeded"} == {"lr0.9-seed0", "lr0.9-seed1"}
    stopped = [job for job in report["jobs"] if job["status"] == "stopped early"]
    assert len(stopped) == 4
    for job in stopped:
        verdict = job["stopped"]["verdict"]
        assert verdict["rung"] == 1.0 and verdict["value"] < verdict["needed"] <= GOOD
        assert job["stopped"]["num_steps"] == 4 and job["stopped"]["steps_saved"] >= 3
        assert f"needed at least {verdict['needed']:.4f}" in job["error"]["message"]
        assert f"{job['name']}: stopped early" in shown
    total = report["early_stopping"]
    assert total["num_jobs"] == 4 and total["num_steps"] == 16
    # A step of these takes 90 seconds, they say.
    assert total["card_hours_saved"] == pytest.approx(total["steps_saved"] * 90 / 3600)
    (group,) = report["groups"]
    assert (group["num_seeds"], group["num_stopped"]) == (2, 0)
    assert "2 of 6 jobs succeeded, 0 failed, 4 stopped early, 0 not run" in shown
    assert f"{total['steps_saved']} of their 16 steps were not trained, an estimated" in shown

    written = {path: path.stat().st_mtime_ns for path in workplace.glob("outputs/tiny/jobs/*/*.json*")}
    again = run(study, cluster)
    assert {job["name"]: job["status"] for job in again["jobs"]} == status
    assert len(written) >= 6 and {path: path.stat().st_mtime_ns for path in written} == written


def test_a_stopped_job_goes_on_from_its_checkpoint_where_the_study_is_changed(workplace: Path, cluster: str) -> None:
    study = study_of(workplace, [GOOD, BAD], [0])
    assert run(study, cluster)["early_stopping"]["steps_saved"] == 3
    content = yaml.safe_load(study.read_text())
    del content["early_stopping"]
    study.write_text(yaml.safe_dump(content))
    (workplace / "outputs/tiny/jobs/patience").touch()

    report = run(study, cluster)

    assert {job["status"] for job in report["jobs"]} == {"succeeded"} and report["early_stopping"] is None
    job = workplace / "outputs/tiny/jobs/lr0.3-seed0"
    assert any("resuming" in event["message"] for event in read_events(job, "log"))
    assert [event["step"] for event in read_events(job, "evaluation")] == [1, 2, 3, 4]  # none twice


def test_eval_steps_evaluate_and_save_between_the_ends_of_epochs(job_flags: list[str], tmp_path: Path) -> None:
    job = run_job(*job_flags, "--eval_steps=4", f"--output_dir={tmp_path}")
    assert job.returncode == 0, job.stderr[-3000:]
    assert [event["step"] for event in read_events(tmp_path, "evaluation")] == [0, 4, 8, 10]
    assert [event["step"] for event in read_events(tmp_path, "checkpoint")] == [4, 8, 10]
