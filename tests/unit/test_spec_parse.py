"""Settings become a JobSpec at one place, and each fault names the file, the key, the value and the mend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from training.errors import UserError
from training.parse import all_dotted_keys, load_job, parse_assignment, read_yaml, set_key
from training.spec import DataSpec, JobSpec, TrainingSpec

DATA = "data: {dataset_name: imdb}\n"


def job_file(folder: Path, content: str | bytes) -> Path:
    path = folder / "job.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def fault(folder: Path, content: str | bytes, assignments: list[str] | None = None) -> str:
    """Return the message a job file is refused with; it must name the file."""
    path = job_file(folder, content)
    with pytest.raises(UserError) as caught:
        load_job(path, assignments)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_job_file_gives_its_values_and_the_defaults(tmp_path: Path) -> None:
    spec = load_job(job_file(tmp_path, DATA + "lora: {r: 4}\ndeepspeed: {zero_optimization: {stage: 2}}\n"))
    assert (spec.data.dataset_name, spec.lora.r, spec.lora.lora_alpha) == ("imdb", 4, 32)
    assert spec.deepspeed == {"zero_optimization": {"stage": 2}}


def test_what_a_job_writes_down_reads_back_as_itself(tmp_path: Path) -> None:
    spec = JobSpec(data=DataSpec(train_file="a.csv", text_column_names=["x", "y"]), seed=7)
    assert load_job(job_file(tmp_path, yaml.safe_dump(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (DATA + "lora: {rr: 8}\n", ["unknown key 'lora.rr'"]),
        (DATA + "lora: {lora_alhpa: 8}\n", ["unknown key 'lora.lora_alhpa'", "did you mean 'lora_alpha'"]),
        (DATA + "trainig: {max_steps: 3}\n", ["unknown key 'trainig'", "did you mean 'training'"]),
        (DATA + "training: {zzz: 3}\n", ["unknown key 'training.zzz'", "Remove it"]),
        ("data: {dataset_nam: imdb, train_file: t.csv}\n", ["unknown key 'data.dataset_nam'", "'dataset_name'"]),
        (DATA + "learning_rate: 1e-4\n", ["unknown key 'learning_rate'", "belongs at 'training.learning_rate'"]),
        (DATA + "lora: {max_seq_length: 9}\n", ["'lora.max_seq_length'", "belongs at 'data.max_seq_length'"]),
        (DATA + "training: {seed: 9}\n", ["unknown key 'training.seed'", "belongs at 'seed'"]),
    ],
)
def test_an_unknown_key_is_refused_with_its_path_and_the_nearest_name(
    tmp_path: Path, content: str, parts: list[str]
) -> None:
    message = fault(tmp_path, content)
    for part in parts:
        assert part in message


def test_every_fault_of_a_file_is_told_at_once(tmp_path: Path) -> None:
    message = fault(tmp_path, DATA + "loraa: {}\nmodel: {dtyp: fp32}\n")
    assert "'loraa'" in message and "'model.dtyp'" in message


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (DATA + "seed: 1\nseed: 2\n", ["line 3", "'seed' is given twice"]),
        (DATA + "lora:\n  r: 1\n  lora_alpha: 2\n  r: 3\n", ["line 5", "'r' is given twice"]),
        (DATA + "seed: [1\n", ["line"]),
        (DATA + "[a, b]: 1\n", ["line 2", "no plain word"]),
        (DATA + "seed: 2001-01-01\n", ["seed is", "valid integer"]),
        ("- 1\n- 2\n", ["must be a mapping"]),
        ("", ["holds no settings"]),
        ("seed: 1\n", ["'data' is missing"]),
        (DATA.encode() + b"name: caf\xe9\n", ["not UTF-8", "0xe9", f"offset {len(DATA) + 9}", "iconv"]),
    ],
)
def test_a_file_that_is_no_job_is_refused_with_the_place(
    tmp_path: Path, content: str | bytes, parts: list[str]
) -> None:
    message = fault(tmp_path, content)
    for part in parts:
        assert part in message


def test_anchors_and_merge_keys_work_as_in_any_yaml(tmp_path: Path) -> None:
    content = DATA + "lora: &small {r: 4, lora_alpha: 8}\nother: {inner: {<<: *small, r: 5}}\n"
    read = read_yaml(job_file(tmp_path, content), "job file")
    assert read["other"]["inner"] == {"r": 5, "lora_alpha": 8}


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"job file .*none\.yaml does not exist"):
        load_job(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="is a folder"):
        load_job(tmp_path)


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    assert read_yaml(job_file(tmp_path, b"\xef\xbb\xbfseed: 1\n"), "job file") == {"seed": 1}


@pytest.mark.parametrize("written", ["1e-4", "1E-4", "0.0001", "'1e-4'"])
def test_a_learning_rate_is_a_number_however_it_is_written(tmp_path: Path, written: str) -> None:
    # PyYAML reads 1e-4 as a string.
    assert load_job(job_file(tmp_path, DATA + f"training: {{learning_rate: {written}}}\n")).training.learning_rate == (
        1e-4
    )


@pytest.mark.parametrize("written", [".nan", ".inf", "nan", "inf"])
def test_no_number_is_refused(tmp_path: Path, written: str) -> None:
    message = fault(tmp_path, DATA + f"training: {{learning_rate: {written}}}\n")
    assert "training.learning_rate" in message and "finite" in message


@pytest.mark.parametrize(
    ("section", "key", "value", "mend"),
    [
        ("model", "dtype", "fp8", "'bf16'"),
        ("model", "quantization", "int4", "'nf4'"),
        ("model", "model_name_or_path", "''", "Give"),
        ("data", "max_seq_length", "1", "at least 2"),
        ("data", "max_chunks", "0", "at least 1"),
        ("data", "chunk_overlap", "-1", "not be negative"),
        ("data", "validation_fraction", "0", "between 0 and 1"),
        ("data", "validation_fraction", "1", "between 0 and 1"),
        ("data", "max_train_samples", "0", "at least 1"),
        ("data", "max_validation_samples", "-3", "at least 1"),
        ("data", "max_test_samples", "0", "at least 1"),
        ("data", "remove", "[headers]", "20newsgroups only"),
        ("lora", "r", "0", "at least 1"),
        ("lora", "r", "many", "valid integer"),
        ("lora", "r", "2.5", "valid integer"),
        ("lora", "lora_alpha", "0", "at least 1"),
        ("lora", "lora_dropout", "1", "below 1"),
        ("lora", "lora_dropout", "-0.1", "at least 0"),
        ("training", "per_device_train_batch_size", "0", "at least 1"),
        ("training", "per_device_eval_batch_size", "0", "at least 1"),
        ("training", "gradient_accumulation_steps", "0", "at least 1"),
        ("training", "learning_rate", "-1", "negative"),
        ("training", "weight_decay", "-1", "negative"),
        ("training", "max_grad_norm", "-1", "negative"),
        ("training", "warmup_steps", "-1", "negative"),
        ("training", "focal_gamma", "-1", "negative"),
        ("training", "class_weights", "balance", "balanced"),
        ("training", "num_train_epochs", "0", "above 0"),
        ("training", "lr_scheduler_type", "polynomial", "'cosine'"),
        ("training", "metric_for_best_model", "f1", "'macro_f1'"),
        ("training", "early_stopping_patience", "0", "at least 1"),
        ("training", "save_steps", "0", "at least 1"),
        ("training", "save_total_limit", "0", "at least 1"),
    ],
)
def test_a_value_out_of_range_is_refused(tmp_path: Path, section: str, key: str, value: str, mend: str) -> None:
    content = yaml.safe_load(DATA)
    content.setdefault(section, {})[key] = yaml.safe_load(value)
    message = fault(tmp_path, yaml.safe_dump(content))
    assert f"{section}.{key} is " in message
    assert mend in message


@pytest.mark.parametrize(
    ("content", "mend"),
    [
        (DATA + "seed: -1\n", "seed is -1. It must lie between 0"),
        (DATA + "num_ranks: 0\n", "num_ranks is 0. It must be at least 1"),
        (DATA + "name: ../up\n", "'../up'"),
        (DATA + "name: .hidden\n", "'.hidden'"),
        (DATA + "name: ''\n", "''"),
        ("data: {}\n", "data.dataset_name and data.train_file"),
        ("data: {dataset_name: imdb, train_file: t.csv}\n", "'imdb' and 't.csv'"),
        ("data: imdb\n", "data is 'imdb'"),
    ],
)
def test_a_job_that_contradicts_itself_is_refused(tmp_path: Path, content: str, mend: str) -> None:
    assert mend in fault(tmp_path, content)


def test_max_steps_stands_in_for_epochs(tmp_path: Path) -> None:
    job = load_job(job_file(tmp_path, DATA + "training: {num_train_epochs: 0, max_steps: 5}\n"))
    assert job.training.max_steps == 5


def test_set_wins_over_the_file_and_leaves_the_rest(tmp_path: Path) -> None:
    path = job_file(tmp_path, DATA + "lora: {r: 4, lora_alpha: 8}\n")
    spec = load_job(path, ["lora.r=2", "seed=5", "lora.target_modules=[q_proj, v_proj]", "training.learning_rate=1e-3"])
    assert (spec.lora.r, spec.lora.lora_alpha, spec.seed) == (2, 8, 5)
    assert spec.lora.target_modules == ["q_proj", "v_proj"]
    assert spec.training.learning_rate == 1e-3


def test_set_takes_null_and_overrides_win_over_it(tmp_path: Path) -> None:
    path = job_file(tmp_path, DATA)
    spec = load_job(path, ["data.dataset_name=null", "data.train_file=a.csv", "seed=5"], {"seed": 6})
    assert (spec.data.dataset_name, spec.data.train_file, spec.seed) == (None, "a.csv", 6)


@pytest.mark.parametrize("text", ["lora.r", "=3", " =3"])
def test_an_assignment_without_key_or_value_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"no assignment.*lora\.r=8"):
        parse_assignment(text)


def test_faults_of_set_are_told_like_those_of_the_file(tmp_path: Path) -> None:
    assert "did you mean 'lora'" in fault(tmp_path, DATA, ["lorra.r=2"])
    assert "lora.r is 0" in fault(tmp_path, DATA, ["lora.r=0"])
    with pytest.raises(UserError, match="no YAML value"):
        parse_assignment("seed=[1")


def test_set_key_changes_nothing_it_was_given() -> None:
    content = {"lora": {"r": 1}}
    assert set_key(content, "lora.lora_alpha", 2) == {"lora": {"r": 1, "lora_alpha": 2}}
    assert content == {"lora": {"r": 1}}


def test_every_setting_has_one_dotted_key() -> None:
    keys = all_dotted_keys(JobSpec)
    assert {"seed", "data.train_file", "training.learning_rate", "deepspeed"} <= set(keys)
    assert len(keys) == len(set(keys))


def test_the_fingerprint_follows_what_changes_the_result_and_nothing_else() -> None:
    job = JobSpec(data=DataSpec(train_file="a.csv"))
    same = JobSpec(name="other", output_dir="elsewhere", resume_from_checkpoint="x", data=DataSpec(train_file="a.csv"))
    assert job.fingerprint() == same.fingerprint()
    assert job.fingerprint() != JobSpec(seed=1, data=DataSpec(train_file="a.csv")).fingerprint()
    assert job.fingerprint() != JobSpec(data=DataSpec(train_file="b.csv")).fingerprint()
    for training in (TrainingSpec(class_weights="balanced"), TrainingSpec(focal_gamma=2.0)):
        assert job.fingerprint() != JobSpec(data=DataSpec(train_file="a.csv"), training=training).fingerprint()


def test_weights_of_classes_are_named_as_labels_are(tmp_path: Path) -> None:
    spec = load_job(job_file(tmp_path, DATA + "training: {class_weights: {0: 1, 10: 2.5, spam: 3}}\n"))
    assert spec.training.class_weights == {"0": 1.0, "10": 2.5, "spam": 3.0}
    assert load_job(job_file(tmp_path, yaml.safe_dump(spec.to_dict()))) == spec
    for weight in ("0", "-2", ".nan", "many"):
        message = fault(tmp_path, DATA + f"training: {{class_weights: {{spam: {weight}}}}}\n")
        assert "class_weights" in message and "spam" in message


def test_the_fingerprint_follows_how_long_texts_are_read() -> None:
    def fingerprint(**data: Any) -> str:
        return JobSpec(data=DataSpec(train_file="a.csv", **data)).fingerprint()

    ways = [{"long_text": way} for way in ("head", "tail", "head+tail", "chunk")]
    ways += [{"long_text": "chunk", "chunk_overlap": 9}, {"long_text": "chunk", "max_chunks": 9}]
    assert len({fingerprint(**way) for way in ways}) == 6
    assert fingerprint(long_text="tail", max_chunks=9) == fingerprint(long_text="tail")
    assert fingerprint(max_chunks=9, chunk_overlap=9) == fingerprint()
