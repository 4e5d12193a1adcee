"""Study files: what they expand to, and what is said of those that are wrong."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.expand import StudyJob, expand
from launcher.folder import data_key, fingerprint
from launcher.study import load_study
from training.errors import UserError

CHECKOUT = Path(__file__).resolve().parents[2]
STUDIES = sorted((CHECKOUT / "studies").glob("*.yaml"))


def jobs_of(folder: Path, **content: Any) -> list[StudyJob]:
    path = folder / "some.yaml"
    path.write_text(yaml.safe_dump({"data": {"dataset_name": "builtin:docstrings"}, **content}))
    return expand(load_study(path))


def test_shipped_studies_expand_and_begin_with_their_command() -> None:
    assert len(STUDIES) >= 3
    for path in STUDIES:
        jobs = expand(load_study(path))
        assert len(jobs) >= 6
        assert f"shoal run studies/{path.name}" in path.read_text().splitlines()[0]


def test_the_demo_has_an_offloaded_nf4_job_with_three_seeds_and_none_that_needs_a_second_card() -> None:
    jobs = [job.spec for job in expand(load_study(CHECKOUT / "studies/demo.yaml"))]
    assert {job.num_ranks for job in jobs} == {1}
    low = [job for job in jobs if job.model.quantization == "nf4"]
    assert sorted(job.seed for job in low) == [0, 1, 2]
    assert all(isinstance(job.deepspeed, dict) for job in low)
    assert {job.deepspeed["zero_optimization"]["offload_param"]["device"] for job in low} == {"cpu"}  # type: ignore[index]


def test_grid_and_seeds_make_every_combination_with_readable_names(tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path, seed=[0, 1], sweep={"grid": {"lora.r": [8, 16]}})
    assert [job.name for job in jobs] == ["r8-seed0", "r8-seed1", "r16-seed0", "r16-seed1"]
    assert [(job.spec.lora.r, job.spec.seed) for job in jobs] == [(8, 0), (8, 1), (16, 0), (16, 1)]


def test_listed_jobs_overlay_the_shared_settings_and_meet_the_grid(tmp_path: Path) -> None:
    jobs = jobs_of(
        tmp_path,
        lora={"r": 4, "lora_alpha": 8},
        sweep={"grid": {"seed": [5]}, "jobs": [{"name": "big", "lora": {"r": 64}}, {"model.quantization": "nf4"}]},
    )
    assert [job.name for job in jobs] == ["big-seed5", "nf4-seed5"]
    assert [(job.spec.lora.r, job.spec.lora.lora_alpha) for job in jobs] == [(64, 8), (4, 8)]


def test_weights_of_classes_are_swept_as_a_whole(tmp_path: Path) -> None:
    weights: list[Any] = ["none", "balanced", {"spam": 5, 0: 2}]
    jobs = jobs_of(tmp_path, sweep={"grid": {"training.class_weights": weights, "training.focal_gamma": [2]}})
    assert [job.name.split("-focal")[0] for job in jobs] == ["class_weights-none", "balanced", "class_weights"]
    assert [job.spec.training.class_weights for job in jobs] == ["none", "balanced", {"spam": 5.0, "0": 2.0}]


def test_paths_are_found_beside_the_study_and_shown_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    (tmp_path / "train.csv").write_text("text,label\n")
    (job,) = jobs_of(tmp_path, data={"train_file": "train.csv"}, deepspeed="ds_configs/zero3.json")
    assert job.spec.data.train_file == str(tmp_path / "train.csv")
    assert job.spec.deepspeed["zero_optimization"]["stage"] == 3  # type: ignore[index]
    assert (job.written.data.train_file, job.written.deepspeed) == ("train.csv", "ds_configs/zero3.json")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"sweeep": {}}, ["sweeep", "did you mean 'sweep'"]),
        ({"lora": {"rr": 4}}, ["some.yaml", "'lora.rr'"]),
        ({"sweep": {"grid": {"lora.rank": [1]}}}, ["sweep.grid.lora.rank"]),
        ({"sweep": {"grid": {"lora.r": []}}}, ["sweep.grid.lora.r", "at least one value"]),
        ({"sweep": {"grid": {"lora.r": 8}}}, ["sweep.grid.lora.r is 8", "list of values"]),
        ({"sweep": {"jobs": [{"output_dir": "/tmp/x"}]}}, ["sweep.jobs[0]", "'output_dir'"]),
        ({"sweep": {"jobs": [{"lora": 5}]}}, ["sweep.jobs[0].lora is 5"]),
        ({"sweep": {"jobs": [{"name": None}]}}, ["sweep.jobs[0].name is None"]),
        ({"sweep": {"jobs": [3]}}, ["sweep.jobs[0] is 3"]),
        ({"name": "n" * 300}, ["120 bytes at most"]),
        ({"name": "../up"}, ["'../up'", "names a folder"]),
        ({"deepspeed": {"steps_per_print": datetime.date(2020, 1, 1)}}, ["deepspeed holds a value JSON does not"]),
        ({"seed": 10**30}, ["seed is 1000", "between 0 and"]),
        ({"sweep": {"grid": {"lora.r": [0, -1]}}}, ["lora.r is 0", "lora.r is -1"]),
        ({"sweep": {"grid": {"seed": [1, 1]}}}, ["same settings"]),
        ({"data": {"train_file": "missing.csv"}}, ["data.train_file", "missing.csv", "does not exist"]),
        ({"deepspeed": "missing.json"}, ["deepspeed", "missing.json"]),
        ({"deepspeed": 5}, ["deepspeed is 5. Input should be a valid string or a valid dictionary."]),
        ({"model": {"model_name_or_path": 5, "model_revision": 5}}, ["model_name_or_path is 5", "model_revision is 5"]),
        ({"str": 1}, ["unknown key 'str'"]),
        ({"training": {"str": 1}}, ["unknown key 'training.str'"]),
        ({"name": False}, ["name is False", "YAML reads an unquoted off", "quote it"]),
        ({"cards_gib": [0]}, ["cards_gib"]),
        ({"cards_gib": [1e30]}, ["cards_gib"]),
    ],
)
def test_mistakes_are_named_with_file_key_and_mend(tmp_path: Path, content: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        jobs_of(tmp_path, **content)
    for word in words:
        assert word in str(caught.value)


def test_a_wrong_value_in_a_mapping_is_one_mistake(tmp_path: Path) -> None:
    """Where a word could stand too: that the mapping is no word is no second one."""
    with pytest.raises(UserError) as caught:
        jobs_of(tmp_path, training={"class_weights": {"spam": "x"}})
    message = str(caught.value)
    assert "training.class_weights.spam is 'x'. Input should be a valid number" in message and "\n" not in message


@pytest.mark.parametrize("key", ["train_file", "validation_file"])
def test_a_study_that_would_choose_by_its_test_split_is_refused(tmp_path: Path, key: str) -> None:
    for name, text in (("train", "a"), ("validation", "b"), ("test", "c")):
        (tmp_path / f"{name}.csv").write_text(f"text,label\n{text},x\n")
    files = {f"{name}_file": f"{name}.csv" for name in ("train", "validation", "test")}
    assert jobs_of(tmp_path, data=files)
    with pytest.raises(UserError, match=rf"data\.{key} and data\.test_file hold the same"):
        jobs_of(tmp_path, data=files | {key: "./test.csv"})
    (tmp_path / "copy.csv").write_bytes((tmp_path / "test.csv").read_bytes())
    with pytest.raises(UserError, match=rf"data\.{key} and data\.test_file hold the same"):
        jobs_of(tmp_path, data=files | {key: "copy.csv"})


def test_paths_that_end_alike_keep_their_names_in_any_order(tmp_path: Path) -> None:
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "train.csv").write_text(f"text,label\n{place},x\n")
    files = [str(tmp_path / place / "train.csv") for place in ("a", "b")]
    names = []
    for order in (files, files[::-1]):
        jobs = jobs_of(tmp_path, data={}, sweep={"grid": {"data.train_file": order}})
        names.append({job.spec.data.train_file: job.name for job in jobs})
    assert names[0] == names[1] and len(set(names[0].values())) == 2


@pytest.mark.parametrize("is_folder", [False, True])
def test_data_mended_under_its_name_is_other_data_and_a_moved_study_is_the_same(
    is_folder: bool, tmp_path: Path
) -> None:
    def marks(place: str, text: str) -> tuple[str, str]:
        folder = tmp_path / place
        file = folder / "texts/cat/1.txt" if is_folder else folder / "texts"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        (job,) = jobs_of(folder, data={"train_file": "texts"})
        return fingerprint(job), data_key(job)

    first = marks("here", "a,b")
    assert marks("there", "a,b") == first
    assert not set(marks("there", "a,b,c")) & set(first)


def test_data_is_the_same_however_its_long_texts_are_read(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,label\na,x\n")
    ways = {"data.long_text": ["head", "tail", "head+tail", "chunk"]}
    jobs = jobs_of(tmp_path, data={"train_file": "t.csv"}, sweep={"grid": ways})
    assert len({job.name for job in jobs}) == len({fingerprint(job) for job in jobs}) == 4
    assert len({data_key(job) for job in jobs}) == 1
