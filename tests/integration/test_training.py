"""Real jobs through `training/main.py`: the deepspeed launcher, one and two ranks, every ZeRO stage, on the CPU."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from conftest import CHECKOUT, command, environment, read_events, run_program
from filelock import FileLock
from forked_jobs import run_job
from safetensors.torch import load_file

from training.result import RunResult, read_result


def train(flags: list[str], folder: Path, *more: str, num_ranks: int = 1, forked: bool = True) -> RunResult:
    words = [*flags, *more, "--output_dir", str(folder)]
    run = run_job(*words, num_ranks=num_ranks) if forked else run_program(*words, num_ranks=num_ranks)
    assert run.returncode == 0, run.stderr[-3000:]
    result = read_result(folder)
    assert result is not None
    return result


def losses(folder: Path) -> list[float]:
    return [event["loss"] for event in read_events(folder, "step")]


@pytest.fixture(scope="module")
def reference(job_flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], RunResult]:
    """The job without ZeRO on one rank."""
    folder = tmp_path_factory.mktemp("reference")
    result = train(job_flags, folder, "--per_device_train_batch_size=8", "--deepspeed=ds_configs/zero0.json")
    return losses(folder), result


@pytest.mark.parametrize(
    ("config", "num_ranks", "micro_batch", "accumulation"),
    [
        ("zero1", 1, 4, 2),
        ("zero2_offload", 1, 2, 4),
        ("zero3_offload", 1, 1, 8),
        ("zero0", 2, 4, 1),
        ("zero2", 2, 2, 2),
        ("zero3", 2, 1, 4),
        ("zero3_offload", 2, 4, 1),
    ],
)
def test_every_zero_stage_learns_the_same(
    config: str, num_ranks: int, micro_batch: int, accumulation: int,
    reference: tuple[list[float], RunResult], job_flags: list[str], tmp_path: Path,
) -> None:  # fmt: skip
    sizes = (f"--per_device_train_batch_size={micro_batch}", f"--gradient_accumulation_steps={accumulation}")
    result = train(job_flags, tmp_path, *sizes, f"--deepspeed=ds_configs/{config}.json", num_ranks=num_ranks)
    expected, first = reference
    assert len(expected) == 10
    np.testing.assert_allclose(losses(tmp_path), expected, rtol=1e-4)
    assert result.num_ranks == num_ranks
    assert result.validation["loss"] == pytest.approx(first.validation["loss"], rel=1e-4)
    assert result.test["accuracy"] == pytest.approx(first.test["accuracy"], abs=1e-9)
    assert result.adapter["verified"]


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_what_zero_3_fetches_ahead_in_an_evaluation_is_let_go(
    num_ranks: int, reference: tuple[list[float], RunResult], job_flags: list[str], tmp_path: Path
) -> None:
    """Adapters too large to stay gathered, as those of real models are: the best weights are read out in between."""
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_prefetch_bucket_size": 8_000}
    config = dict.fromkeys(("train_micro_batch_size_per_gpu", "gradient_accumulation_steps"), "auto")
    (tmp_path / "ahead.json").write_text(json.dumps({**config, "zero_optimization": zero}))
    sizes = (f"--per_device_train_batch_size={4 // num_ranks}", "--gradient_accumulation_steps=2")
    flags = [*job_flags, *sizes, f"--deepspeed={tmp_path / 'ahead.json'}", "--eval_steps=1"]
    train(flags, tmp_path / "out", num_ranks=num_ranks)
    np.testing.assert_allclose(losses(tmp_path / "out"), reference[0], rtol=1e-4)


@pytest.mark.parametrize(
    ("config", "num_ranks", "flags"),
    [
        ("zero2", 1, ()),
        ("zero3_offload", 2, ()),
        ("zero3", 2, ("--load_in_4bit", "--gradient_checkpointing")),
        ("zero3", 1, ("--load_in_8bit",)),
    ],
)
def test_a_streamed_base_trains_to_the_bit_as_one_loaded_whole(
    config: str, num_ranks: int, flags: tuple[str, ...], tiny_model: Path, job_flags: list[str], tmp_path: Path
) -> None:
    whole = tmp_path / "model"
    shutil.copytree(tiny_model, whole)
    # Code of its own, which is not trusted and so not run: enough for the checkpoint not to be streamed.
    remote = {"auto_map": {"AutoModelForSequenceClassification": "own.Classifier"}}
    (whole / "config.json").write_text(json.dumps({**json.loads((whole / "config.json").read_text()), **remote}))
    flags = (*flags, f"--per_device_train_batch_size={8 // num_ranks}", f"--deepspeed=ds_configs/{config}.json")
    for folder, model in (("streamed", tiny_model), ("whole", whole)):
        train([*job_flags, *flags], tmp_path / folder, f"--model_name_or_path={model}", num_ranks=num_ranks)
    assert losses(tmp_path / "streamed") == losses(tmp_path / "whole")
    weights, expected = (
        load_file(tmp_path / folder / "adapter" / "adapter_model.safetensors") for folder in ("streamed", "whole")
    )
    assert weights.keys() == expected.keys()
    assert all(weights[name].equal(tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("config", ["zero1", "zero2", "zero3_offload"])
def test_bf16_micro_batches_add_up_as_one_batch_does(
    config: str, reference: tuple[list[float], RunResult], job_flags: list[str], tmp_path: Path
) -> None:
    sizes = ("--per_device_train_batch_size=1", "--gradient_accumulation_steps=8")
    train(job_flags, tmp_path, "--bf16=true", *sizes, f"--deepspeed=ds_configs/{config}.json")
    # bf16 rounds each layer to 1 part in 256, and steps this large make more of it with each; a micro-batch left out or
    # counted twice differs by far more at once.
    np.testing.assert_allclose(losses(tmp_path)[:5], reference[0][:5], rtol=2e-2)


def test_a_job_learns_and_leaves_what_anybody_can_load(
    reference: tuple[list[float], RunResult], tiny_model: Path, job_flags: list[str], tmp_path: Path
) -> None:
    from peft import PeftModel
    from sklearn.metrics import accuracy_score
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    result = train(
        job_flags, tmp_path, "--load_in_4bit", "--gradient_checkpointing", "--num_train_epochs=4",
        "--per_device_train_batch_size=4", "--deepspeed=ds_configs/zero3_offload.json", num_ranks=2, forked=False,
    )  # fmt: skip
    assert result.test["accuracy"] > 0.9
    assert result.test["accuracy"] > result.untrained_validation["accuracy"]
    assert result.model["quantization"] == "nf4" and result.model["zero_stage"] == 3 and result.model["offload_param"]

    table = pq.read_table(tmp_path / "predictions.parquet")
    rows = [row for row in table.to_pylist() if row["split"] == "test"]
    assert len(rows) == 30 and all(len(row["text"].split()) > 2 for row in rows)
    assert accuracy_score([r["label"] for r in rows], [r["prediction"] for r in rows]) == result.test["accuracy"]

    config = AutoConfig.from_pretrained(tmp_path / "adapter")
    assert list(config.id2label.values()) == result.data["label_names"] == ["kitchen", "music", "sea"]
    base = AutoModelForSequenceClassification.from_pretrained(tiny_model, config=config)
    model = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    assert tokenizer.pad_token_id == config.pad_token_id != tokenizer.eos_token_id
    texts = [
        "the captain of the ship near the harbour",
        "butter and sugar with flour",
        "violin chord and melody of the orchestra choir",
    ]
    logits = model(**tokenizer(texts, return_tensors="pt", padding=True)).logits
    assert [config.id2label[int(index)] for index in logits.argmax(-1)] == ["sea", "kitchen", "music"]


@pytest.mark.parametrize(
    "flags",
    [
        ("--bf16",),
        ("--bf16", "--load_in_8bit"),
        ("--fp16", "--load_in_8bit"),
        ("--fp16", "--load_in_4bit"),
        ("--fp16", "--use_dora"),
        ("--use_dora",),
        ("--use_rslora", "--learning_rate=2e-3"),
    ],
)
def test_precisions_and_kinds_of_adapter(flags: tuple[str, ...], job_flags: list[str], tmp_path: Path) -> None:
    result = train(job_flags, tmp_path, *flags, "--deepspeed=ds_configs/zero2_offload.json")
    assert result.adapter["verified"]
    assert result.validation["loss"] < result.untrained_validation["loss"]


@pytest.mark.parametrize(
    ("config", "num_ranks", "precision"),
    [("zero2", 1, "--bf16"), ("zero3_offload", 2, "--bf16=false"), ("zero2_offload", 1, "--fp16")],
)
def test_a_killed_job_goes_on_and_ends_with_the_same_adapter(
    config: str, num_ranks: int, precision: str, job_flags: list[str], tmp_path: Path
) -> None:
    content = json.loads((CHECKOUT / "ds_configs" / f"{config}.json").read_text())
    file = tmp_path / "deepspeed.json"
    file.write_text(json.dumps({**content, "fp16": {"enabled": "auto", "loss_scale_window": 7}}))
    flags = [
        *job_flags, "--num_train_epochs=8", "--save_steps=5", "--lora_dropout=0.1", "--save_total_limit=3",
        f"--deepspeed={file}", f"--per_device_train_batch_size={8 // num_ranks}", precision,
    ]  # fmt: skip
    train(flags, tmp_path / "undisturbed", num_ranks=num_ranks)
    folder = tmp_path / "killed"
    running = psutil.Popen(
        command(*flags, "--output_dir", str(folder), num_ranks=num_ranks), env=environment(), stderr=subprocess.DEVNULL
    )
    while not list((folder / "checkpoints").glob("step-*")) and running.poll() is None:
        time.sleep(0.01)
    family = [running, *running.children(recursive=True)]
    for process in family:
        with suppress(psutil.NoSuchProcess):  # the launcher may have ended it by now
            process.kill()
    psutil.wait_procs(family)
    assert not (folder / "result.json").exists(), "the job ended before it could be killed"
    result = train(flags, folder, num_ranks=num_ranks)
    assert any("resuming after step" in event["message"] for event in read_events(folder, "log"))
    weights, expected = (
        load_file(path / "adapter" / "adapter_model.safetensors") for path in (folder, tmp_path / "undisturbed")
    )
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        assert weights[name].equal(tensor), name
    assert len(list((folder / "checkpoints").iterdir())) <= 3
    assert result.train["steps"] == 80
    scales = [
        json.loads((path / "checkpoints" / "step-000080" / "state.json").read_text())["progress"].get("loss_scale")
        for path in (folder, tmp_path / "undisturbed")
    ]
    assert scales[0] == scales[1] and (scales[0] is not None) == (precision == "--fp16")


def test_sigterm_saves_and_the_same_command_goes_on(job_flags: list[str], tmp_path: Path) -> None:
    flags = [*job_flags, "--num_train_epochs=8", "--per_device_train_batch_size=4"]
    words = command(*flags, "--output_dir", str(tmp_path), num_ranks=2)
    running = psutil.Popen(words, env=environment(), stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "events.jsonl").exists() or not read_events(tmp_path, "step"):
        assert running.poll() is None
        time.sleep(0.01)
    ranks = [process for process in [running, *running.children(recursive=True)] if "--output_dir" in process.cmdline()]
    ranks[-1].terminate()  # one is enough: the others hear of it
    _, errors = running.communicate()
    assert running.returncode != 0 and "Traceback" not in errors, errors
    said = re.search(r"stopped after step (\d+) of 80, which is saved", errors)
    assert said is not None, errors
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()][-1] == f"step-{int(said[1]):06d}"
    train(flags, tmp_path, num_ranks=2)
    steps = [event["step"] for event in read_events(tmp_path, "step")]
    assert steps == list(range(1, 81))  # nothing twice, nothing left out


def test_a_checkpoint_goes_on_under_other_ranks_and_stages(job_flags: list[str], tmp_path: Path) -> None:
    flags = [*job_flags, "--save_steps=4", "--per_device_train_batch_size=8", "--save_total_limit=10"]
    train(flags, tmp_path / "one", "--deepspeed=ds_configs/zero2.json")
    checkpoint = tmp_path / "one" / "checkpoints" / "step-000004"
    folder = tmp_path / "three"
    shutil.copytree(checkpoint, folder / "checkpoints" / "step-000099")  # of a path now left
    train(
        flags, folder, "--deepspeed=ds_configs/zero3_offload.json", f"--resume_from_checkpoint={checkpoint}",
        num_ranks=3,  # by which hardly a tensor divides
    )  # fmt: skip
    np.testing.assert_allclose(losses(folder), losses(tmp_path / "one")[4:], rtol=1e-4)
    assert any("keeping the checkpoint's global batch of 8" in e["message"] for e in read_events(folder, "log"))
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-000008", "step-000010"]


def test_a_checkpoint_does_not_go_on_with_other_rows(job_flags: list[str], corpus: Path, tmp_path: Path) -> None:
    rows = tmp_path / "train.jsonl"
    shutil.copy(corpus / "train.jsonl", rows)
    flags = [*job_flags, f"--train_file={rows}", "--max_steps=2"]
    train(flags, tmp_path / "out")
    (tmp_path / "out" / "result.json").unlink()
    lines = rows.read_text().splitlines()
    rows.write_text("\n".join(lines[1:]) + "\n")
    run = run_job(*flags, "--output_dir", str(tmp_path / "out"))
    assert run.returncode == 2 and "training rows are not those" in run.stderr, run.stderr
    assert (tmp_path / "out" / "checkpoints" / "step-000002").exists()


def test_a_finished_job_is_not_repeated_or_overwritten(job_flags: list[str], tmp_path: Path) -> None:
    train(job_flags, tmp_path)
    written = (tmp_path / "result.json").read_bytes()
    again = run_job(*job_flags, "--output_dir", str(tmp_path))
    assert again.returncode == 0 and "nothing to do" in again.stdout
    other = run_job(*job_flags, "--lora_r=4", "--output_dir", str(tmp_path))
    assert other.returncode == 2 and "Choose another --output_dir" in other.stderr
    assert (tmp_path / "result.json").read_bytes() == written


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model_name_or_path", "../no/such/model"], ["../no/such/model", "does not exist"]),
        (["--text_column_names", "headline"], ["train.jsonl", "headline", "text"]),
        (["--deepspeed", "{misspelt}"], ["zero_optimisation", "zero_optimization"]),
        (["--lora_target_modules", "q_proj", "query"], ["'query'", "k_proj"]),
        (["--text_column_names", "text", "label"], ["label column", "'label'"]),
        (["--learning_rat", "1"], ["--learning_rat", "--learning_rate"]),
        (["--resume_from_checkpoint", "nowhere"], ["nowhere", "state.json"]),
        (["--use_dora", "--load_in_4bit", "--deepspeed=ds_configs/zero3.json"], ["use_dora", "nf4", "stage 2"]),
    ],
)
def test_bad_input_gets_one_message_and_status_2(
    flags: list[str], words: list[str], job_flags: list[str], tmp_path: Path
) -> None:
    misspelt = tmp_path / "misspelt.json"
    misspelt.write_text(json.dumps({"zero_optimisation": {"stage": 3}}))
    flags = [flag.format(misspelt=misspelt) for flag in flags]
    run = run_job(*job_flags, *flags, "--output_dir", str(tmp_path / "out"))
    assert run.returncode == 2, run.stderr
    assert "Traceback" not in run.stderr
    message = next(line for line in run.stderr.splitlines() if line.startswith("shoal: "))
    for word in words:
        assert word in message
    assert not (tmp_path / "out" / "result.json").exists()


def test_weights_that_are_missing_are_not_made_up(tiny_model: Path, job_flags: list[str], tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3, "layer_types": None}))
    run = run_job(*job_flags, "--model_name_or_path", str(model), "--output_dir", str(tmp_path / "out"))
    assert run.returncode == 2 and "lacks" in run.stderr and "layers.2" in run.stderr, run.stderr


def test_a_folder_in_use_is_left_alone(job_flags: list[str], tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock"):
        run = run_job(*job_flags, "--output_dir", str(tmp_path))
    assert run.returncode == 2 and "another job is working" in run.stderr, run.stderr
    assert not (tmp_path / "job.yaml").exists()


def test_bad_input_under_the_deepspeed_launcher(job_flags: list[str], tmp_path: Path) -> None:
    run = run_program(*job_flags, "--label_column_name=class", "--output_dir", str(tmp_path), num_ranks=2)
    assert run.returncode == 2, run.stderr
    assert run.stderr.count("shoal: ") == 1 and "'class'" in run.stderr
    assert "Traceback" not in run.stderr


def test_a_diverging_job_fails_and_says_why(job_flags: list[str], tmp_path: Path) -> None:
    run = run_job(*job_flags, "--learning_rate=1e30", "--max_grad_norm=0", "--output_dir", str(tmp_path))
    assert run.returncode == 1
    assert "training diverged" in run.stderr and "training.learning_rate" in run.stderr
    assert not (tmp_path / "result.json").exists()
