"""What the report says of jobs that were stopped early, and that it calls no setting best that lacks seeds."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from study_on_disk import StudyOnDisk

from launcher.folder import StudyFolder
from launcher.report.answer import answer
from launcher.report.write import write_report
from launcher.state import JobState
from launcher.status import StudyStatus
from launcher.table import describe
from training.result import RunResult, read_result, write_json

VERDICT = {
    "job": "r64-seed0", "rung": 1.0, "epoch": 1.0, "metric": "macro_f1", "value": 0.25, "needed": 0.5,
    "num_rivals": 2, "num_seeds": 1,
}  # fmt: skip


def stop(study: StudyOnDisk, r: int, seed: int, *, step: int = 5, hours: float | None = 0.25) -> RunResult:
    """Add a job that was stopped early."""
    spec = study.add(r, seed, 0.0, error="after 1 epochs it had validation macro F1 0.2500")
    folder = study.root / "jobs" / spec.name
    failure = read_result(folder, "failure.json")
    assert failure is not None
    stopped = {
        "verdict": VERDICT, "step": step, "num_steps": 20, "steps_saved": 20 - step, "card_hours_saved": hours,
        "rule": {},
    }  # fmt: skip
    result = replace(failure, status="stopped early", stopped=stopped)
    write_json(folder / "failure.json", result.to_dict())
    return result


def report_of(study: StudyOnDisk) -> dict[str, Any]:
    write_report(StudyFolder(study.root))
    return json.loads((study.root / "report.json").read_text())


def test_what_was_saved_stands_in_every_report(tmp_path: Path) -> None:
    study = StudyOnDisk(tmp_path / "some")
    study.add(8, 0, 3.0)
    study.add(16, 0, 2.0)
    stop(study, 64, 0)
    stop(study, 64, 1, step=0, hours=1.0)
    report = report_of(study)
    assert report["early_stopping"] == {"num_jobs": 2, "num_steps": 40, "steps_saved": 35, "card_hours_saved": 1.25}
    sentence = (
        "Early stopping ended 2 hopeless jobs: 35 of their 40 steps were not trained, an estimated 1.2 card-hours at "
        "their own measured speed. Validation alone decided."
    )
    markdown, page = ((study.root / f"report.{kind}").read_text() for kind in ("md", "html"))
    for text in (markdown, page):
        assert sentence in text and "Stopped early" in text and "it had validation macro F1 0.2500" in text
        assert "2 of 4 jobs succeeded, 0 failed, 2 stopped early, 0 not run." in text
    assert sentence in markdown.split("\n## ")[0]  # what the terminal shows
    assert "**Best setting: r8**" in answer(report)
    with (study.root / "tables/jobs.csv").open() as file:
        rows = {row["job"]: row for row in csv.DictReader(file)}
    assert rows["r64-seed0"]["status"] == "stopped early" and rows["r64-seed0"]["stopped_steps_saved"] == "15"


def test_no_speed_no_estimate(tmp_path: Path) -> None:
    study = StudyOnDisk(tmp_path / "some")
    study.add(8, 0, 3.0)
    stop(study, 64, 0, hours=None)
    report = report_of(study)
    assert report["early_stopping"]["card_hours_saved"] is None
    text = (study.root / "report.md").read_text()
    assert "ended 1 hopeless job: 15 of its 20 steps were not trained. Validation" in text


def test_a_setting_that_lacks_stopped_seeds_is_not_the_best(tmp_path: Path) -> None:
    study = StudyOnDisk(tmp_path / "some")
    study.add(8, 0, 6.0)  # by far the best seed, of a setting whose other was stopped
    stop(study, 8, 1)
    for seed in (0, 1):
        study.add(16, seed, 1.0)
    report = report_of(study)
    lucky, whole = sorted(report["groups"], key=lambda group: group["name"] == "r16")
    assert (lucky["num_seeds"], lucky["num_stopped"]) == (1, 1)
    assert lucky["validation_macro_f1_mean"] > whole["validation_macro_f1_mean"]
    assert [report["groups"][index]["name"] for index in report["best"]] == ["r16"]
    assert "**Best setting: r16**" in answer(report)
    markdown, page = ((study.root / f"report.{kind}").read_text() for kind in ("md", "html"))
    assert "| r8 | 1 (1 stopped) |" in markdown and "1 (1 stopped)" in page
    assert markdown.index("| r16 | 2 |") < markdown.index("| r8 | 1 (1 stopped) |")


def test_where_every_setting_lacks_seeds_none_is_called_best(tmp_path: Path) -> None:
    study = StudyOnDisk(tmp_path / "some")
    study.add(8, 0, 3.0)
    stop(study, 8, 1)
    text = answer(report_of(study))
    assert "**No setting has all its seeds; the best of the rest: r8**" in text and "Best setting" not in text
    assert "1 of its 2 seeds were stopped early, so this mean is too good." in text


@pytest.mark.parametrize("earlier", [False, True])
def test_status_and_terminal_say_why(tmp_path: Path, earlier: bool) -> None:
    result = stop(StudyOnDisk(tmp_path / "some"), 64, 0)
    state = JobState(name=result.name)
    state.end(result, earlier=earlier)
    assert describe(state) == "r64-seed0: stopped early  after 1 epochs it had validation macro F1 0.2500"
    assert (state.step, state.num_steps) == (5, 20)
    status = StudyStatus(
        study="some", folder="", host="", pid=1, priority=0, started=0.0, time=1.0, state="finished", jobs=[state],
        waiting=[],
    )  # fmt: skip
    assert "0 of 1 jobs done, 1 stopped early" in status.headline()
