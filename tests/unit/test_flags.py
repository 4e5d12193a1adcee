"""The flags of Hugging Face and TRL mean the same job as a job file."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from training.errors import UserError
from training.flags import FLAG_TO_KEY, LIST_FLAGS, NEEDLESS_FLAGS, OLD_FLAGS, SWITCHES, parse_flags
from training.parse import all_dotted_keys, load_job
from training.spec import JobSpec

FLAGS_AND_KEYS = [
    ("--model_name_or_path some/model", "model.model_name_or_path", "some/model"),
    ("--dataset_name ag_news", "data.dataset_name", "ag_news"),
    ("--train_file a.csv", "data.train_file", "a.csv"),
    ("--validation_file b.csv", "data.validation_file", "b.csv"),
    ("--test_file c.csv", "data.test_file", "c.csv"),
    ("--text_column_names title body", "data.text_column_names", ["title", "body"]),
    ("--report_to tensorboard mlflow", "training.report_to", ["tensorboard", "mlflow"]),
    ("--report_to none", "training.report_to", []),
    ("--label_column_name topic", "data.label_column_name", "topic"),
    ("--label_delimiter ;", "data.label_delimiter", ";"),
    ("--max_seq_length 64", "data.max_seq_length", 64),
    ("--long_text head+tail", "data.long_text", "head+tail"),
    ("--chunk_overlap 5", "data.chunk_overlap", 5),
    ("--max_chunks 4", "data.max_chunks", 4),
    ("--per_device_train_batch_size 3", "training.per_device_train_batch_size", 3),
    ("--gradient_accumulation_steps 5", "training.gradient_accumulation_steps", 5),
    ("--learning_rate 1e-4", "training.learning_rate", 1e-4),
    ("--num_train_epochs 1.5", "training.num_train_epochs", 1.5),
    ("--max_steps 9", "training.max_steps", 9),
    ("--lr_scheduler_type cosine", "training.lr_scheduler_type", "cosine"),
    ("--warmup_steps 10", "training.warmup_steps", 10.0),
    ("--weight_decay 0.01", "training.weight_decay", 0.01),
    ("--max_grad_norm 0.5", "training.max_grad_norm", 0.5),
    ("--class_weights balanced", "training.class_weights", "balanced"),
    ("--focal_gamma 2", "training.focal_gamma", 2.0),
    ("--seed 11", "seed", 11),
    ("--bf16", "model.dtype", "bf16"),
    ("--fp16", "model.dtype", "fp16"),
    ("--gradient_checkpointing", "training.gradient_checkpointing", True),
    ("--lora_r 2", "lora.r", 2),
    ("--lora_alpha 4", "lora.lora_alpha", 4),
    ("--lora_dropout 0.2", "lora.lora_dropout", 0.2),
    ("--lora_target_modules q_proj v_proj", "lora.target_modules", ["q_proj", "v_proj"]),
    ("--load_in_4bit", "model.quantization", "nf4"),
    ("--load_in_8bit", "model.quantization", "int8"),
    ("--deepspeed ds_configs/zero3.json", "deepspeed", "ds_configs/zero3.json"),
    ("--output_dir out", "output_dir", "out"),
    ("--resume_from_checkpoint out/checkpoints/step-000001", "resume_from_checkpoint", "out/checkpoints/step-000001"),
]


def parse(line: str) -> JobSpec:
    """Parse a command line of which no note is expected."""
    notes: list[str] = []
    spec = parse_flags(line.split(), notes.append)
    assert notes == []
    return spec


def with_data(line: str) -> str:
    """Add a data flag where there is none."""
    return line if any(flag in line for flag in ("--train_file", "--dataset_name")) else f"--train_file t.csv {line}"


def value_of(spec: JobSpec, dotted_key: str) -> object:
    value: object = spec
    for part in dotted_key.split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize(("line", "key", "expected"), FLAGS_AND_KEYS)
def test_each_flag_sets_its_key(line: str, key: str, expected: object) -> None:
    assert value_of(parse(with_data(line)), key) == expected


def test_flags_and_job_file_build_the_same_job(tmp_path: Path) -> None:
    left_out = ("--dataset_name", "--load_in_8bit", "--fp16")
    chosen = [item for item in FLAGS_AND_KEYS if not item[0].startswith(left_out)]
    content: dict[str, object] = {}
    for _, key, value in chosen:
        section, _, name = key.rpartition(".")
        inner = content.setdefault(section, {}) if section else content
        assert isinstance(inner, dict)
        inner[name] = value
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(content))
    assert parse(" ".join(line for line, _, _ in chosen)) == load_job(path) == parse(f"--job {path}")


def test_every_flag_leads_to_a_setting_there_is() -> None:
    keys = [*FLAG_TO_KEY.values(), *LIST_FLAGS.values(), *(key for key, _, _ in SWITCHES.values())]
    assert set(keys) <= set(all_dotted_keys(JobSpec))
    assert {new for new, _ in OLD_FLAGS.values()} <= {*FLAG_TO_KEY, *LIST_FLAGS, *SWITCHES}


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize(
    ("written", "is_on"),
    [("", True), (" true", True), (" True", True), (" 1", True), ("=yes", True), (" false", False), (" False", False),
     (" 0", False), ("=no", False)],
)  # fmt: skip
def test_a_switch_stands_alone_or_with_its_value(name: str, written: str, is_on: bool) -> None:
    key, on, off = SWITCHES[name]
    assert value_of(parse(f"--train_file t.csv --{name}{written}"), key) == (on if is_on else off)


def test_a_switch_of_another_value_is_refused() -> None:
    with pytest.raises(UserError, match=r"--bf16 is 'maybe'.*true or false"):
        parse("--train_file t.csv --bf16 maybe")


def test_four_and_eight_bits_exclude_each_other() -> None:
    with pytest.raises(UserError, match="exclude each other"):
        parse("--train_file t.csv --load_in_4bit --load_in_8bit")
    assert parse("--train_file t.csv --load_in_4bit --load_in_8bit false").model.quantization == "nf4"
    assert parse("--train_file t.csv --load_in_4bit false --load_in_8bit").model.quantization == "int8"


def test_all_linear_is_one_word() -> None:
    assert parse("--train_file t.csv --lora_target_modules all-linear").lora.target_modules == "all-linear"


@pytest.mark.parametrize(
    ("line", "new", "key", "expected"),
    [
        ("--warmup_ratio 0.1", "--warmup_steps 0.1", "training.warmup_steps", 0.1),
        ("--max_length 32", "--max_seq_length 32", "data.max_seq_length", 32),
        ("--text_column_name body", "--text_column_names body", "data.text_column_names", ["body"]),
        ("--model_name x", "--model_name_or_path x", "model.model_name_or_path", "x"),
        ("--max_test_samples 5", "--max_predict_samples 5", "data.max_test_samples", 5),
        ("--max_val_samples 5", "--max_eval_samples 5", "data.max_validation_samples", 5),
    ],
)
def test_an_old_name_is_taken_and_said(line: str, new: str, key: str, expected: object) -> None:
    notes: list[str] = []
    spec = parse_flags(["--train_file", "t.csv", *line.split()], notes.append)
    assert value_of(spec, key) == expected
    assert len(notes) == 1 and line.split(maxsplit=1)[0] in notes[0] and new in notes[0]


@pytest.mark.parametrize("name", NEEDLESS_FLAGS)
@pytest.mark.parametrize("value", [[], ["true"]])
def test_a_flag_that_changes_nothing_is_said_to(name: str, value: list[str]) -> None:
    notes: list[str] = []
    spec = parse_flags(["--train_file", "t.csv", f"--{name}", *value], notes.append)
    assert spec == parse("--train_file t.csv")
    assert notes == [f"--{name} is not needed: {NEEDLESS_FLAGS[name]}."]


@pytest.mark.parametrize(
    ("flag", "nearest"),
    [("--lora_rr", "--lora_r"), ("--learning_rat=3", "--learning_rate"), ("--trainfile", "--train_file")],
)
def test_an_unknown_flag_is_refused_with_the_nearest(flag: str, nearest: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(f"--dataset_name x {flag} 3")
    assert f"unknown flag {flag.partition('=')[0]}" in str(caught.value)
    assert f"did you mean '{nearest}'" in str(caught.value)


def test_an_abbreviation_is_no_flag() -> None:
    with pytest.raises(UserError, match="unknown flag --learning"):
        parse("--train_file t.csv --learning 1e-3")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--seed 3", "no data given"),
        ("--train_file t.csv --lora_r", "--lora_r"),
        ("--train_file t.csv --lora_r many", "flags: lora.r is 'many'"),
        ("--train_file t.csv --dataset_name x", "data.dataset_name and data.train_file"),
        ("--train_file t.csv stray", "unknown flag stray"),
    ],
)
def test_a_bad_command_line_is_refused_in_words(line: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(line)
    assert message in str(caught.value)


def test_flags_win_over_set_which_wins_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("data: {train_file: a.csv}\nlora: {r: 1, lora_alpha: 1}\nseed: 1\n")
    spec = parse(f"--job {path} --set lora.r=2 --set lora.lora_alpha=2 --lora_r 3")
    assert (spec.lora.r, spec.lora.lora_alpha, spec.seed) == (3, 2, 1)


def test_flags_win_over_set_without_a_file() -> None:
    spec = parse("--train_file t.csv --set lora.r=2 --set lora.lora_alpha=2 --lora_r 3")
    assert (spec.lora.r, spec.lora.lora_alpha) == (3, 2)


def test_what_the_deepspeed_launcher_adds_is_no_setting() -> None:
    assert parse("--local_rank=1 --train_file t.csv") == parse("--train_file t.csv")
