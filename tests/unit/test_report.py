"""From results to report.json and report.md."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import pytest

from launcher.report import build_report, current
from launcher.report_markdown import answer, render_markdown
from training.result import RunResult
from training.spec import DataSpec, JobSpec, LoraSpec

ROWS = {"train": "1a", "test": "2b"}
BASELINE = {
    "name": "TF-IDF + LinearSVC", "data": "imdb", "split": "test", "sha256": ROWS, "accuracy": 0.7, "macro_f1": 0.69,
    "seconds": 1.0,
}  # fmt: skip


def result(r: int, seed: int, validation: float, test: float | None, **changes: Any) -> RunResult:
    spec = JobSpec(
        name=f"r{r}-seed{seed}", seed=seed, data=DataSpec(dataset_name="imdb"), lora=LoraSpec(r=r),
        output_dir=f"outputs/s/jobs/r{r}-seed{seed}",
    )  # fmt: skip

    def metrics(value: float) -> dict[str, float]:
        return {"accuracy": value, "macro_f1": value, "loss": 1 - value, "num_samples": 10}

    values: dict[str, Any] = {
        "name": spec.name, "status": "succeeded", "settings": spec.to_dict(), "fingerprint": spec.fingerprint(),
        "data": {"source": "imdb", "sha256": ROWS}, "validation": metrics(validation),
        "test": metrics(test) if test is not None else {}, **changes,
    }  # fmt: skip
    return RunResult(**values)


def test_jobs_that_differ_in_their_seed_are_one_group_with_sample_deviation() -> None:
    tests = [0.80, 0.82, 0.87]
    report = build_report("s", [result(8, seed, 0.8, test) for seed, test in enumerate(tests)], [], num_jobs=3)
    (group,) = report["groups"]
    assert group["num_seeds"] == 3
    assert group["settings"] == {}
    assert group["accuracy_mean"] == pytest.approx(0.83)
    assert group["accuracy_std"] == pytest.approx(statistics.stdev(tests))


def test_validation_chooses_the_best_setting_and_test_does_not() -> None:
    jobs = [result(8, 0, 0.9, 0.6), result(16, 0, 0.7, 0.95)]
    report = build_report("s", jobs, [BASELINE], num_jobs=2)
    assert report["groups"][report["best"][0]]["settings"] == {"lora.r": 8}
    assert report["groups"][0]["accuracy_std"] is None
    text = answer(report)
    assert "**Best setting: r8**" in text
    assert "60.0 %" in text
    assert "not worth it here: -10.0 points" in text


def test_a_difference_within_the_spread_of_seeds_is_called_none() -> None:
    jobs = [result(8, 0, 0.9, 0.66), result(8, 1, 0.9, 0.78)]
    assert "No clear difference" in answer(build_report("s", jobs, [BASELINE], num_jobs=2))


def test_without_a_test_split_validation_is_reported_and_said() -> None:
    report = build_report("s", [result(8, 0, 0.9, None)], [], num_jobs=1)
    assert report["groups"][0]["split"] == "validation"
    assert "validation accuracy 90.0 %" in answer(report)


def test_a_failure_stands_in_the_report_with_its_log_and_in_no_group() -> None:
    error = {"message": "train.csv: no column 'x'", "log_tail": "line one\nline two"}
    failed = replace(result(8, 1, 0.0, None), status="failed", error=error, validation={})
    jobs = [result(8, 0, 0.9, 0.9), failed]
    report = build_report("s", jobs, [BASELINE], num_jobs=3)
    assert report["groups"][0]["num_seeds"] == 1
    text = render_markdown(report)
    assert "train.csv: no column 'x'" in text
    assert "    line two" in text
    assert "1 of 3 jobs succeeded, 1 failed, 1 not run" in text
    cancelled = replace(failed, status="cancelled")
    text = render_markdown(build_report("s", [jobs[0], cancelled], [], num_jobs=3))
    assert "1 of 3 jobs succeeded, 0 failed, 1 cancelled, 1 not run" in text and "## Failures" not in text


def test_a_study_without_any_success_has_a_report_too() -> None:
    report = build_report("s", [], [BASELINE], num_jobs=2)
    assert report["best"] == []
    assert "no answer" in render_markdown(report)


def test_each_data_has_its_own_answer_and_baseline() -> None:
    news = {"train": "3c", "test": "4d"}
    other = result(16, 0, 0.8, 0.6, data={"source": "ag_news", "sha256": news})
    rival = {**BASELINE, "name": "TF-IDF", "data": "ag_news", "sha256": news, "accuracy": 0.5}
    report = build_report("s", [result(8, 0, 0.99, 0.6), other], [BASELINE, rival], num_jobs=2)
    first, second = answer(report).split("\n\n")
    assert first.startswith("imdb: ") and "against 70.0 %" in first and "is not worth it here: -10.0" in first
    assert second.startswith("ag_news: ") and "against 50.0 %" in second and "is worth it here: +10.0" in second


def test_baselines_of_data_no_job_uses_any_more_are_left_out() -> None:
    old = {**BASELINE, "sha256": {"train": "5e", "test": "6f"}}
    assert current({"new": [BASELINE], "old": [old]}, [result(8, 0, 0.9, 0.6)]) == [BASELINE]
    assert current({"old": [old]}, []) == [old]
