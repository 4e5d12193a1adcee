"""What a study file may ask of early stopping, who is compared with whom, and what is kept of a stopped job."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.early_stopping import EarlyStops, check_early_stopping, members_of, reason
from launcher.expand import StudyJob, expand
from launcher.folder import StudyFolder
from launcher.running import unsuccessful
from launcher.state import JobState
from launcher.study import EarlyStopping, Study, load_study
from training.errors import UserError

THREE_RATES = {"grid": {"training.learning_rate": [0.1, 0.2, 0.3]}}


def read(folder: Path, rule: dict[str, Any], training: dict[str, Any], **content: Any) -> tuple[Study, list[StudyJob]]:
    path = folder / "some.yaml"
    whole = {
        "data": {"dataset_name": "builtin:docstrings"}, "early_stopping": rule, "training": training,
        "sweep": THREE_RATES, **content,
    }  # fmt: skip
    path.write_text(yaml.safe_dump(whole))
    study = load_study(path)
    jobs = expand(study, folder / "outputs")
    check_early_stopping(study, jobs)
    return study, jobs


@pytest.mark.parametrize(
    ("rule", "training"),
    [
        ({}, {"num_train_epochs": 3}),
        ({"grace_epochs": 0.2}, {"num_train_epochs": 1, "eval_steps": 50}),
        ({"metric": "loss", "reduction_factor": 2}, {"num_train_epochs": 1.5}),
        ({"grace_epochs": 5}, {"max_steps": 100, "eval_steps": 20}),
    ],
)
def test_what_evaluates_before_its_end_is_accepted(
    tmp_path: Path, rule: dict[str, Any], training: dict[str, Any]
) -> None:
    study, _ = read(tmp_path, rule, training)
    assert study.early_stopping is not None


@pytest.mark.parametrize(
    ("rule", "training", "content", "words"),
    [
        ({}, {"num_train_epochs": 1}, {}, ["grace_epochs is 1", "num_train_epochs is 1", "training.eval_steps"]),
        ({"grace_epochs": 0.5}, {"num_train_epochs": 1}, {}, ["evaluated once", "Set training.eval_steps"]),
        ({"grace_epochs": 2.5}, {"num_train_epochs": 3}, {}, ["evaluated once", "Set training.eval_steps"]),
        ({}, {"max_steps": 100}, {}, ["training.max_steps is 100", "eval_steps is not set"]),
        ({}, {"max_steps": 100, "eval_steps": 100}, {}, ["eval_steps 100", "below max_steps"]),
        ({}, {}, {"sweep": {}, "seed": [0, 1]}, ["there are no two", "remove early_stopping"]),
        ({}, {}, {"sweep": {"grid": {"data.max_train_samples": [500, 1000]}}}, ["on the same data", "no two"]),
        (
            {},
            {},
            {"sweep": {"grid": {"training.metric_for_best_model": ["loss", "accuracy"]}}},
            ["different metrics (accuracy, loss)", "early_stopping.metric"],
        ),
        ({"grace_epochs": 0}, {}, {}, ["early_stopping.grace_epochs is 0"]),
        ({"reduction_factor": 1}, {}, {}, ["early_stopping.reduction_factor is 1", "at least 2"]),
        ({"grace_steps": 1}, {}, {}, ["early_stopping.grace_steps"]),
    ],
)
def test_what_could_stop_nothing_is_a_mistake(
    tmp_path: Path, rule: dict[str, Any], training: dict[str, Any], content: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, rule, training, **content)
    for word in words:
        assert word in str(caught.value)


def test_seeds_share_a_setting_and_only_jobs_of_the_same_data_and_length_an_arena(tmp_path: Path) -> None:
    grid = {"training.learning_rate": [0.1, 0.2], "training.num_train_epochs": [2, 3], "data.max_seq_length": [32, 64]}
    study, jobs = read(tmp_path, {}, {}, seed=[0, 1], sweep={"grid": grid})
    assert study.early_stopping is not None
    members = members_of(study.early_stopping, jobs)
    assert len(members) == 16 and len({member.setting for member in members.values()}) == 8
    lengths = {
        arena: {job.spec.training.num_train_epochs for job in jobs if members[job.name].arena == arena}
        for arena in {member.arena for member in members.values()}
    }
    assert sorted(lengths.values(), key=str) == [{2.0}, {3.0}]


def evaluation(step: int, value: float) -> dict[str, Any]:
    metrics = {"accuracy": value, "macro_f1": value, "loss": 1 - value}
    return {"kind": "evaluation", "split": "validation", "step": step, "epoch": step / 10, **metrics}


CHECKPOINT = {"kind": "checkpoint", "step": 10}


def ready(tmp_path: Path) -> tuple[EarlyStops, StudyFolder, list[StudyJob], dict[str, JobState]]:
    study, jobs = read(tmp_path, {}, {"num_train_epochs": 3}, seed=[0, 1])
    folder = StudyFolder(tmp_path / "outputs/some")
    states = {job.name: JobState(name=job.name, num_steps=30) for job in jobs}
    return EarlyStops(study.early_stopping, jobs, folder), folder, jobs, states


def test_a_hopeless_job_ends_once_its_checkpoint_is_there_and_its_other_seeds_at_once(tmp_path: Path) -> None:
    stops, _, _, states = ready(tmp_path)
    low, high, other = "lr0.1-seed0", "lr0.2-seed0", "lr0.1-seed1"
    assert stops.take(high, evaluation(10, 0.9), states[high]) == []
    assert stops.take(low, evaluation(0, 0.1), states[low]) == []  # untrained
    seeds = stops.take(low, evaluation(10, 0.2), states[low])
    assert [stop.job for stop in seeds] == [other]
    assert stops.take(low, {"kind": "checkpoint", "step": 5}, states[low]) == []
    (stop,) = stops.take(low, CHECKPOINT, states[low])
    assert stop.job == low and "after 1 epochs it had validation macro F1 0.2000" in reason(stop)
    states[low].step, states[low].eta_seconds = 10, 3600.0
    kept = stops.unwanted(stop, states, {}).stopped
    assert (kept["steps_saved"], kept["card_hours_saved"]) == (20, pytest.approx(1.0))
    idle = stops.unwanted(seeds[0], states, {})
    assert idle.stopped["card_hours_saved"] == pytest.approx(1.5)  # by the speed of its sister
    assert f"its setting ({low})" in idle.message
    json.dumps(kept)


def test_the_last_evaluation_stops_nobody_and_the_test_split_is_not_heard(tmp_path: Path) -> None:
    stops, _, _, states = ready(tmp_path)
    stops.take("lr0.2-seed0", evaluation(10, 0.9), states["lr0.2-seed0"])
    low = states["lr0.1-seed0"]
    assert stops.take(low.name, {**evaluation(10, 0.0), "split": "test"}, low) == []
    assert stops.take(low.name, evaluation(30, 0.0), low) == []
    assert not stops.pending


def test_a_later_run_knows_who_was_stopped_and_what_others_reached(tmp_path: Path) -> None:
    stops, folder, jobs, states = ready(tmp_path)
    low, high = "lr0.1-seed0", "lr0.2-seed0"
    (folder.jobs / high).mkdir(parents=True)
    (folder.jobs / high / "events.jsonl").write_text(json.dumps(evaluation(10, 0.9)) + "\n")
    rule = EarlyStopping()
    stops = EarlyStops(rule, jobs, folder)
    stops.take(low, evaluation(10, 0.2), states[low])
    (stop,) = stops.take(low, CHECKPOINT, states[low])
    why = stops.unwanted(stop, states, {})
    job = next(job for job in jobs if job.name == low)
    folder.write_result(unsuccessful(job, why.status, why.message, "", [], why.stopped))

    assert folder.stopped(job, rule) is not None
    assert folder.stopped(job, None) is None and folder.stopped(job, EarlyStopping(reduction_factor=2)) is None
    later = EarlyStops(rule, jobs, folder)
    (seed,) = later.take("lr0.1-seed1", evaluation(0, 0.1), states["lr0.1-seed1"])
    assert seed.job == "lr0.1-seed1" and asdict(seed.verdict) == why.stopped["verdict"]


def test_without_a_rule_nobody_is_stopped(tmp_path: Path) -> None:
    _, folder, jobs, states = ready(tmp_path)
    none = EarlyStops(None, jobs, folder)
    for name, state in states.items():
        assert none.take(name, evaluation(10, 0.0), state) == []
