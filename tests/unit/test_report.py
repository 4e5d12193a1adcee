"""From results to report.json and report.md."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launcher.folder import StudyFolder
from launcher.report.answer import answer
from launcher.report.build import Report, Stored, build_report, current
from launcher.report.markdown_page import render_markdown
from launcher.report.write import write_report
from training.predictions import Predictions, write_columns
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


NUM_TEXTS = 400


def predicted(accuracy: float, offset: int = 0) -> Predictions:
    """Predictions of NUM_TEXTS texts of two classes; which ones are wrong, `offset` moves."""
    labels = np.arange(NUM_TEXTS) % 2
    wrong = (np.arange(round(NUM_TEXTS * (1 - accuracy))) * 7 + offset) % NUM_TEXTS
    guesses = labels.copy()
    guesses[wrong] = 1 - guesses[wrong]
    ids = [f"test:{row}" for row in range(NUM_TEXTS)]
    return Predictions(label_names=["no", "yes"], ids=ids, labels=labels, predicted=guesses, logits=np.eye(2)[guesses])


def report_of(jobs: Sequence[RunResult], baselines: Sequence[dict[str, Any]] = (BASELINE,)) -> Report:
    """Report jobs and baselines with predictions that have the accuracies of their results."""
    of_jobs = {
        job.name: {"test": predicted(job.test["accuracy"], 3 * number)} for number, job in enumerate(jobs) if job.test
    }
    of_baselines = [predicted(item["accuracy"], 1) for item in baselines]
    stored = Stored(predictions=of_jobs, of_baselines=of_baselines, adapter_bytes={jobs[0].name: 4096})
    return build_report("s", jobs, baselines, stored, num_jobs=len(jobs))


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
    report = report_of(jobs)
    assert report["groups"][report["best"][0]]["settings"] == {"lora.r": 8}
    assert report["selection"] == {"metric": "macro_f1", "split": "validation", "num_tried": 2, "num_jobs": 2}
    assert report["groups"][0]["accuracy_std"] is None
    text = answer(report)
    assert "**Best setting: r8**" in text
    assert "60.0 %" in text
    assert "not worth it here: -10.0 points" in text
    assert "chosen among 2 settings by validation macro F1" in text and "The test split chose nothing." in text


def test_a_difference_within_the_spread_of_seeds_is_called_none() -> None:
    jobs = [result(8, seed, 0.9, accuracy) for seed, accuracy in enumerate((0.66, 0.72, 0.80))]
    text = answer(report_of(jobs))
    assert "No real difference: +2.7 points (95 % interval -" in text and "worth it" not in text


def test_a_difference_between_single_models_is_tested_on_their_texts() -> None:
    assert "A LLaMA is worth it here: +20.0 points" in answer(report_of([result(8, 0, 0.9, 0.9)]))
    assert "No real difference: +1.0 points" in answer(report_of([result(8, 0, 0.9, 0.71)]))


def test_what_has_no_predictions_is_not_called_different() -> None:
    text = answer(build_report("s", [result(8, 0, 0.9, 0.99)], [BASELINE], num_jobs=1))
    assert "+29.0 points, untested" in text and "worth it" not in text


def test_settings_are_compared_with_each_other_and_the_best_with_the_baseline() -> None:
    jobs = [result(8, 0, 0.9, 0.9), result(16, 0, 0.8, 0.89), result(32, 0, 0.7, 0.5)]
    report = report_of(jobs)
    pairs = {(item["a"], item["b"]): item for item in report["comparisons"]}
    assert set(pairs) == {("r8", "r16"), ("r8", "r32"), ("r16", "r32"), ("r8", BASELINE["name"])}
    assert {pair for pair, item in pairs.items() if not item["real"]} == {("r8", "r16")}
    assert "No real difference to r16." in answer(report)
    assert pairs["r8", "r32"]["difference"] == pytest.approx(0.4)
    assert (pairs["r8", "r32"]["effect"], pairs["r8", "r32"]["test"]) == ("large", "McNemar exact")
    assert "| r8 | r32 | +40.0 |" in render_markdown(report)


def test_intervals_and_costs_stand_in_the_report() -> None:
    jobs = [
        replace(job, num_ranks=2, train={"seconds": 1800.0, "samples_per_second": 9.0})
        for job in (result(8, 0, 0.9, 0.9), result(16, 0, 0.8, 0.8), result(16, 1, 0.8, 0.84))
    ]
    report = report_of(jobs)
    one, two = report["groups"]
    assert one["interval_method"] == "BCa bootstrap over texts"
    assert 0.86 < one["interval"]["accuracy"][0] < 0.9 < one["interval"]["accuracy"][1] < 0.94
    assert two["interval_method"] == "Student's t over seeds"
    cost = report["jobs"][0]["cost"]
    assert (cost["card_hours"], cost["gpu_hours"], cost["energy_joules"], cost["shipped_bytes"]) == (
        1.0,
        None,
        None,
        4096,
    )
    assert report["jobs"][0]["scores"]["test"]["confusion"] == [[180, 20], [20, 180]]
    assert report["baselines"][0]["scores"]["accuracy"] == pytest.approx(0.7)
    assert "## Classes: r8-seed0 on test" in render_markdown(report)


def test_the_same_rows_as_validation_of_one_job_are_no_test_of_another() -> None:
    swapped = {"source": "imdb", "sha256": {"train": "1a", "validation": ROWS["test"]}}
    jobs = [result(8, 0, 0.6, 0.6), result(16, 0, 0.9, None, data=swapped)]
    assert [report["name"] for report in build_report("s", jobs, [], num_jobs=2)["groups"]] == ["r8", "r16"]
    assert len(build_report("s", jobs, [], num_jobs=2)["best"]) == 2


def test_the_report_comes_from_stored_files_alone(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    job = result(8, 0, 0.9, 0.9)
    (tmp_path / "study.yaml").write_text(f"name: s\njobs: [{{name: {job.name}}}]\n")
    folder.write_result(job)
    of_job, of_baseline = predicted(0.9), predicted(0.7, 1)
    columns = {name: columns_of(item) for name, item in (("job", of_job), ("baseline", of_baseline))}
    logits = {"logits": list(np.asarray(of_job.logits))}
    write_columns(tmp_path / "jobs" / job.name / "predictions.parquet", columns["job"] | logits, of_job.label_names)
    (tmp_path / "jobs" / job.name / "adapter").mkdir()
    (tmp_path / "jobs" / job.name / "adapter" / "weights").write_bytes(bytes(100))
    baseline = {**BASELINE, "kind": "tfidf", "label_names": ["no", "yes"], "predictions": columns["baseline"]}
    folder.add_baselines("some", [baseline])

    write_report(folder)

    written = json.loads((tmp_path / "report.json").read_text())
    assert written == report_of([job]) | {"baselines": written["baselines"], "jobs": written["jobs"]} | {
        "data_checks": [],
        "comparisons": written["comparisons"],
    }
    (tested,) = written["comparisons"]
    assert tested["real"] and tested["difference"] == pytest.approx(0.2)
    assert written["jobs"][0]["scores"]["test"]["log_loss"] == pytest.approx(np.log(1 + np.e) - 0.9)
    assert written["jobs"][0]["cost"]["shipped_bytes"] == 100
    assert written["baselines"][0]["predictions"] == "baselines/some/tfidf.parquet"
    assert written["baselines"][0]["scores"]["log_loss"] is None


def columns_of(predictions: Predictions) -> dict[str, list[Any]]:
    names = np.array(predictions.label_names)
    return {
        "split": ["test"] * len(predictions.ids), "id": predictions.ids,
        "label": names[predictions.labels].tolist(), "prediction": names[predictions.predicted].tolist(),
    }  # fmt: skip


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
    report = report_of([result(8, 0, 0.99, 0.6), other], [BASELINE, rival])
    first, second = answer(report).split("\n\n")
    assert first.startswith("imdb: ") and "against 70.0 %" in first and "is not worth it here: -10.0" in first
    assert second.startswith("ag_news: ") and "against 50.0 %" in second and "is worth it here: +10.0" in second


def test_baselines_of_data_no_job_uses_any_more_are_left_out() -> None:
    old = {**BASELINE, "sha256": {"train": "5e", "test": "6f"}}
    assert current({"new": [BASELINE], "old": [old]}, [result(8, 0, 0.9, 0.6)]) == [BASELINE]
    assert current({"old": [old]}, []) == [old]
