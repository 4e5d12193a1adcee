"""A checkpoint is whole or not there, and only its own job goes on from it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from training.checkpoint import (
    FREE_SETTINGS,
    Checkpoint,
    find_checkpoint,
    folder_name,
    identity,
    list_checkpoints,
    read_checkpoint,
    write_checkpoint,
)
from training.errors import UserError
from training.spec import DataSpec, JobSpec, LoraSpec, TrainingSpec

SPEC = JobSpec(data=DataSpec(train_file="t.csv"))


def checkpoint_of(step: int, **changes: Any) -> Checkpoint:
    content: dict[str, Any] = {
        "step": step,
        "global_batch_size": 16,
        "state": {"score.weight": torch.full((2, 3), float(step)), "step": torch.tensor(step)},
        "best": {"score.weight": torch.tensor([[math.pi]])},
        "progress": {"best": {"accuracy": 0.5}, "stale_evaluations": 1},
    }
    return Checkpoint(**{**content, **changes})


def find(folder: Path, spec: JobSpec = SPEC) -> tuple[Checkpoint | None, list[str]]:
    """Return what there is to go on from, and what was reported."""
    reports: list[str] = []
    return find_checkpoint(folder, spec, reports.append), reports


def test_what_was_written_reads_back(tmp_path: Path) -> None:
    written = checkpoint_of(3)
    folder = write_checkpoint(tmp_path, written, SPEC)
    assert folder == tmp_path / folder_name(3) == tmp_path / "checkpoints/step-000003"
    read = read_checkpoint(folder, SPEC)
    assert (read.step, read.global_batch_size, read.progress) == (3, 16, written.progress)
    for ours, theirs in ((written.state, read.state), (written.best, read.best)):
        assert set(ours) == set(theirs)
        for name, tensor in ours.items():
            assert theirs[name].dtype == tensor.dtype and torch.equal(theirs[name], tensor)


def test_before_the_first_evaluation_there_is_no_best(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, checkpoint_of(1, best={}), SPEC)
    assert not (folder / "best.safetensors").exists()
    assert read_checkpoint(folder, SPEC).best == {}


def test_the_newest_is_taken(tmp_path: Path) -> None:
    assert find(tmp_path) == (None, [])
    for step in (9, 100, 20):
        write_checkpoint(tmp_path, checkpoint_of(step), SPEC)
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["step-000009", "step-000020", "step-000100"]
    found, reports = find(tmp_path)
    assert found is not None and found.step == 100 and reports == []


def test_writing_a_step_again_replaces_it(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, checkpoint_of(3), SPEC)
    write_checkpoint(tmp_path, checkpoint_of(3, global_batch_size=5, best={}), SPEC)
    found, _ = find(tmp_path)
    assert found is not None and found.global_batch_size == 5 and found.best == {}
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000003"]


def test_one_that_was_never_finished_is_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path, checkpoint_of(1), SPEC)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("training.checkpoint.write_json", die)
        with pytest.raises(KeyboardInterrupt):
            write_checkpoint(tmp_path, checkpoint_of(2), SPEC)
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["step-000001"]
    write_checkpoint(tmp_path, checkpoint_of(2), SPEC)
    found, _ = find(tmp_path)
    assert found is not None and found.step == 2
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def delete(path: Path) -> None:
    path.unlink()


DAMAGES = [
    (damage, name)
    for damage in (flip_a_byte, cut_off, empty, delete)
    for name in ("state.safetensors", "best.safetensors", "state.json")
    if (damage, name) != (flip_a_byte, "state.json")  # its last byte is a line break
]


@pytest.mark.parametrize(("damage", "name"), DAMAGES)
def test_a_damaged_one_is_said_and_the_one_before_it_taken(
    tmp_path: Path, damage: Callable[[Path], None], name: str
) -> None:
    write_checkpoint(tmp_path, checkpoint_of(1), SPEC)
    damage(write_checkpoint(tmp_path, checkpoint_of(2), SPEC) / name)
    found, reports = find(tmp_path)
    assert found is not None and found.step == 1
    assert len(reports) == 1 and "step-000002 cannot be read" in reports[0]


@pytest.mark.parametrize("content", ["{}", '{"step": 2}', '{"step": 2, "sha256": {"gone": ""}}'])
def test_a_state_that_is_no_state_is_said_too(tmp_path: Path, content: str) -> None:
    write_checkpoint(tmp_path, checkpoint_of(1), SPEC)
    (write_checkpoint(tmp_path, checkpoint_of(2), SPEC) / "state.json").write_text(content)
    found, reports = find(tmp_path)
    assert found is not None and found.step == 1
    assert len(reports) == 1 and "step-000002" in reports[0]


def test_where_all_are_damaged_the_job_begins_anew(tmp_path: Path) -> None:
    for step in (1, 2):
        cut_off(write_checkpoint(tmp_path, checkpoint_of(step), SPEC) / "state.safetensors")
    found, reports = find(tmp_path)
    assert found is None and len(reports) == 2


OTHER_JOBS = [
    (replace(SPEC, seed=1), "seed was 42 and is 1"),
    (replace(SPEC, lora=LoraSpec(r=8)), "lora.r was 16 and is 8"),
    (replace(SPEC, data=DataSpec(train_file="u.csv")), "data.train_file was 't.csv' and is 'u.csv'"),
    (replace(SPEC, training=TrainingSpec(learning_rate=1.0)), "training.learning_rate was 0.0002 and is 1.0"),
    (replace(SPEC, training=TrainingSpec(max_steps=5)), "training.max_steps was -1 and is 5"),
]


@pytest.mark.parametrize(("other", "message"), OTHER_JOBS)
def test_another_jobs_is_refused(tmp_path: Path, other: JobSpec, message: str) -> None:
    folder = write_checkpoint(tmp_path, checkpoint_of(1), SPEC)
    for spec in (other, replace(other, resume_from_checkpoint=str(folder))):
        with pytest.raises(UserError) as caught:
            find(tmp_path, spec)
        assert str(folder) in str(caught.value)
        assert message in str(caught.value)
        assert "output_dir" in str(caught.value)


def test_it_goes_on_with_any_ranks_stage_and_micro_batch(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, checkpoint_of(1), SPEC)
    training = TrainingSpec(per_device_train_batch_size=1, gradient_accumulation_steps=8, save_steps=1)
    elsewhere = replace(
        SPEC, name="again", output_dir="x", num_ranks=2, deepspeed={"zero_optimization": {}}, training=training
    )
    found, reports = find(tmp_path, elsewhere)
    assert found is not None and found.step == 1 and reports == []


def test_every_free_setting_is_a_setting() -> None:
    flat = {
        f"{key}.{name}" if isinstance(value, dict) else key
        for key, value in SPEC.to_dict().items()
        for name in (value if isinstance(value, dict) else [""])
    }
    assert set(FREE_SETTINGS) <= flat
    assert set(identity(SPEC)) == flat - set(FREE_SETTINGS)


def test_the_one_asked_for_is_taken(tmp_path: Path) -> None:
    first = write_checkpoint(tmp_path / "a", checkpoint_of(1), SPEC)
    write_checkpoint(tmp_path / "b", checkpoint_of(2), SPEC)
    found, _ = find(tmp_path / "b", replace(SPEC, resume_from_checkpoint=str(first)))
    assert found is not None and found.step == 1


def test_one_asked_for_that_is_not_there_or_damaged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"which holds no state\.json"):
        find(tmp_path, replace(SPEC, resume_from_checkpoint=str(tmp_path)))
    write_checkpoint(tmp_path, checkpoint_of(1), SPEC)
    folder = write_checkpoint(tmp_path, checkpoint_of(2), SPEC)
    cut_off(folder / "state.safetensors")
    with pytest.raises(UserError, match=r"step-000002 cannot be read.*the one before it"):
        find(tmp_path, replace(SPEC, resume_from_checkpoint=str(folder)))


def test_an_endless_number_survives_the_way_through_json(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, checkpoint_of(1, progress={"last_loss": math.nan}), SPEC)
    assert math.isnan(read_checkpoint(folder, SPEC).progress["last_loss"])
    assert json.loads((folder / "state.json").read_text())["step"] == 1
