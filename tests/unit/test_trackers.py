"""Trackers get the figures of a job, at their steps; one that fails costs the job nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.errors import UserError
from training.ranks import free_port
from training.recorder import FolderRecorder
from training.result import write_json
from training.spec import DataSpec, JobSpec, TrainingSpec
from training.stop import Stopped
from training.trackers import MLFLOW_SETTINGS, TRACKERS_FILE, TrackingRecorder, figures_of, require_trackers, tracking

METRICS = {"accuracy": 0.5, "macro_f1": 0.25, "loss": 1.5, "num_samples": 8.0}


def job(*trackers: Any) -> JobSpec:
    return JobSpec(
        name="some-job", data=DataSpec(train_file="train.csv"), training=TrainingSpec(report_to=list(trackers))
    )


class Kept(FolderRecorder):
    """A run folder that also notes what it is told to keep, as a head on another machine would."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.saved: set[str] = set()

    def save(self, relative_path: str, source: Path) -> None:
        assert source.exists()
        self.saved.add(relative_path)


def train(recorder: Any, first: int, last: int) -> None:
    """Tell of some steps and the evaluation after them, as the loop does."""
    for step in range(first, last + 1):
        recorder.event("step", step=step, num_steps=9, loss=1.0 / step, learning_rate=0.1, eta_seconds=3.0)
    recorder.event("evaluation", split="validation", step=last, epoch=1.0, **{**METRICS, "accuracy": last / 10})


def test_figures_of_events() -> None:
    assert figures_of("step", {"step": 3, "loss": 2, "eta_seconds": 4.0}) == {"train/loss": 2.0}
    assert figures_of("evaluation", {"split": "validation", "step": 1, **METRICS}) == {
        "validation/accuracy": 0.5, "validation/macro_f1": 0.25, "validation/loss": 1.5,
    }  # fmt: skip
    assert set(figures_of("result", {"validation": METRICS, "test": {}})) == {
        "result/validation_accuracy", "result/validation_macro_f1", "result/validation_loss",
    }  # fmt: skip
    assert figures_of("phase", {"phase": "training"}) == {}


def test_where_a_job_reports_to_changes_nothing_of_what_it_is() -> None:
    assert job().fingerprint() == job("tensorboard", "mlflow").fingerprint()
    assert job().fingerprint() != replace(job(), seed=1).fingerprint()


def test_tensorboard_files_hold_the_curve_of_a_job_that_was_stopped_and_went_on(tmp_path: Path) -> None:
    recorder = Kept(tmp_path)
    with pytest.raises(Stopped), tracking(recorder, job("tensorboard"), tmp_path) as first:
        train(first, 1, 3)
        first.event("step", step=4, loss=99.0, learning_rate=0.1)  # after the checkpoint: lost with the stop
        raise Stopped
    with tracking(recorder, job("tensorboard"), tmp_path) as second:
        train(second, 4, 6)
        second.event("result", validation=METRICS, test=METRICS)
    files = [path.name for path in (tmp_path / "tensorboard").iterdir()]
    assert len(files) == 2 and recorder.saved == {f"tensorboard/{name}" for name in files}
    read = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    losses = [(event.step, event.value) for event in read.Scalars("train/loss")]
    assert losses == [(step, pytest.approx(1 / step)) for step in range(1, 7)]
    accuracies = [(event.step, event.value) for event in read.Scalars("validation/accuracy")]
    assert accuracies == [(3, pytest.approx(0.3)), (6, pytest.approx(0.6))]
    assert [(event.step, event.value) for event in read.Scalars("result/test_macro_f1")] == [(6, 0.25)]
    assert len((tmp_path / "events.jsonl").read_text().splitlines()) == 5 + 5


def test_a_tracker_that_fails_is_left_and_the_job_goes_on(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("a file where a folder should be")
    with tracking(Kept(tmp_path), job("tensorboard"), tmp_path) as recorder:
        train(recorder, 1, 2)
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [event["kind"] for event in events] == ["step", "log", "step", "evaluation"]
    assert "tensorboard gets no more figures" in events[1]["message"]


def test_a_library_or_address_that_is_missing_is_said_before_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "wandb" else object())
    with pytest.raises(UserError, match=r"wandb, whose library is not installed.*\[wandb\]"):
        require_trackers(["wandb"])
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI is not set"):
        require_trackers(["tensorboard", "mlflow"])
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI"):
        TrackingRecorder(Kept(tmp_path), job("mlflow"), tmp_path)


@pytest.fixture
def mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """MLflow with a store of its own in a folder."""
    module = pytest.importorskip("mlflow", reason="needs MLflow: pip install -e '.[mlflow]'")
    before = module.get_tracking_uri()
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    module.set_tracking_uri((tmp_path / "mlflow").as_uri())
    yield module
    while module.active_run():
        module.end_run()
    module.set_tracking_uri(before)


def test_mlflow_has_one_run_of_a_job_that_went_on(tmp_path: Path, mlflow: Any) -> None:
    recorder = Kept(tmp_path)
    with pytest.raises(Stopped), tracking(recorder, job("mlflow"), tmp_path) as first:
        train(first, 1, 3)
        raise Stopped
    run_id = json.loads((tmp_path / TRACKERS_FILE).read_text())["mlflow"]
    client = mlflow.MlflowClient()
    assert client.get_run(run_id).info.status == "KILLED" and TRACKERS_FILE in recorder.saved
    with tracking(recorder, replace(job("mlflow"), num_ranks=2), tmp_path) as second:
        train(second, 4, 5)
        second.event("result", validation=METRICS, test=METRICS)
    [experiment] = [found for found in client.search_experiments() if found.name == "shoal"]
    [run] = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.run_name, run.info.status) == (run_id, "some-job", "FINISHED")
    losses = [(metric.step, metric.value) for metric in client.get_metric_history(run_id, "train/loss")]
    assert losses == [(step, pytest.approx(1 / step)) for step in range(1, 6)]  # in this order
    assert run.data.metrics["result/test_accuracy"] == 0.5
    assert run.data.params["lora.r"] == "16" and run.data.params["data.train_file"] == "train.csv"


def test_what_the_users_environment_says_of_mlflow_is_kept(
    tmp_path: Path, mlflow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    user, ours = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_ASYNC_LOGGING_THREADPOOL_SIZE"
    monkeypatch.setenv(user, "7")
    monkeypatch.delenv(ours, raising=False)
    with tracking(Kept(tmp_path), job("mlflow"), tmp_path):
        assert (os.environ[user], os.environ[ours]) == ("7", MLFLOW_SETTINGS[ours])


def test_a_job_that_fails_is_a_failed_run(tmp_path: Path, mlflow: Any) -> None:
    with pytest.raises(ValueError, match="no good"), tracking(Kept(tmp_path), job("mlflow"), tmp_path) as recorder:
        train(recorder, 1, 1)
        raise ValueError("no good")
    run_id = json.loads((tmp_path / TRACKERS_FILE).read_text())["mlflow"]
    assert mlflow.MlflowClient().get_run(run_id).info.status == "FAILED"


def test_a_run_the_server_does_not_have_is_said_before_the_job(tmp_path: Path, mlflow: Any) -> None:
    write_json(tmp_path / TRACKERS_FILE, {"mlflow": "0" * 32})
    with pytest.raises(UserError, match="names mlflow, which cannot be used"):
        TrackingRecorder(Kept(tmp_path), job("mlflow"), tmp_path)


def test_a_server_that_is_not_there_is_said_before_the_job_without_its_password(
    tmp_path: Path, mlflow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"http://me:secret@127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    mlflow.set_tracking_uri(address)
    with pytest.raises(UserError, match="names mlflow, which cannot be used") as caught:
        TrackingRecorder(Kept(tmp_path), job("mlflow"), tmp_path)
    assert "secret" not in str(caught.value) and not (tmp_path / TRACKERS_FILE).exists()


def test_wandb_offline_files_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs Weights & Biases: pip install -e '.[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    recorder = Kept(tmp_path)
    with tracking(recorder, job("wandb"), tmp_path) as told:
        train(told, 1, 3)
    [kept] = recorder.saved - {TRACKERS_FILE}
    assert kept.startswith("wandb/offline-run-")
    assert any(path.suffix == ".wandb" and path.stat().st_size for path in (tmp_path / kept).iterdir())


def test_the_libraries_are_imported_only_where_a_job_reports_to_them() -> None:
    """They take seconds."""
    libraries = "{'mlflow', 'wandb', 'tensorboard', 'torch'}"
    script = f"import sys, training.trackers; sys.exit(bool({libraries} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).resolve().parents[2]).returncode == 0
