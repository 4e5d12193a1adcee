"""What a study does before its jobs start, and what it leaves out the second time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from launcher import preparation
from launcher.expand import StudyJob
from launcher.folder import StudyFolder, data_key
from launcher.preparation import Preparation
from launcher.state import JobState
from training.errors import ShoalError, UserError
from training.spec import DataSpec, JobSpec, ModelSpec

FAILED = Mock()
"""Told of jobs that fail."""


class Tasks(list[str]):
    """A cluster that only notes what it is asked to run."""

    cards, nodes, on_card = (), None, False

    def task(self, function: Any, *arguments: Any, name: str) -> str:
        self.append(function.__name__)
        return name


class NoPlanner:
    """Says at once that nothing can be forecast."""

    def __init__(self, jobs: list[StudyJob], *_: Any, **__: Any) -> None:
        self.names = [job.name for job in jobs]

    def take(self) -> dict[str, ShoalError]:
        return {name: ShoalError("no forecast.") for name in self.names}


def job(name: str, file: str = "train.csv") -> StudyJob:
    spec = JobSpec(name=name, model=ModelSpec(model_name_or_path="m"), data=DataSpec(train_file=file), deepspeed={})
    return StudyJob(written=spec, spec=replace(spec), data_content=[])


class RefusingPlanner(NoPlanner):
    """Says at once that the trainer would refuse each job."""

    def take(self) -> dict[str, ShoalError]:
        return {name: UserError("no such layer.") for name in self.names}


def begin(
    monkeypatch: pytest.MonkeyPatch, folder: StudyFolder, jobs: list[StudyJob], planner: type[NoPlanner] = NoPlanner
) -> tuple[Preparation, Tasks]:
    monkeypatch.setattr(preparation, "Planner", planner)
    monkeypatch.setattr(preparation, "unreserved", lambda *_: ((), {}))
    cluster, states = Tasks(), {each.name: JobState(name=each.name) for each in jobs}
    found = Preparation(
        cluster,  # type: ignore[arg-type]
        folder, states, SimpleNamespace(), lambda _: None, FAILED,
    )  # fmt: skip
    found.begin(jobs, jobs)
    return found, cluster


def test_a_job_that_has_a_checkpoint_goes_on_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, new, old = StudyFolder(tmp_path), job("new"), job("old", "other.csv")
    (tmp_path / "jobs/old/checkpoints/step-10").mkdir(parents=True)
    (tmp_path / "jobs/new/checkpoints").mkdir(parents=True)
    found, tasks = begin(monkeypatch, folder, [new, old])
    assert [ready.name for ready, _ in found.ready()] == ["old"]
    assert found.states["new"].status == "preparing" and found.states["old"].status == "waiting"
    # The data of the one that goes on are looked at now, those of the other when they have proved good.
    assert tasks == ["prepare_jobs", "compute_baselines"]


def test_what_is_known_of_the_data_is_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, old = StudyFolder(tmp_path), job("old")
    (tmp_path / "jobs/old/checkpoints/step-10").mkdir(parents=True)
    folder.add_baselines(data_key(old), [])
    folder.write_data_checks({data_key(old): {}})
    _, tasks = begin(monkeypatch, folder, [old])
    assert tasks == []


def test_what_the_trainer_would_refuse_gets_no_cards_unless_it_has_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, old = job("new"), job("old", "other.csv")
    (tmp_path / "jobs/old/checkpoints/step-10").mkdir(parents=True)
    found, _ = begin(monkeypatch, StudyFolder(tmp_path), [new, old], RefusingPlanner)
    found.prepared.append(new)  # its preparation has found nothing amiss
    assert [ready.name for ready, _ in found.ready()] == ["old"] and found.prepared == []
    FAILED.assert_called_once_with(new, "no such layer.", "", is_user_error=True)
