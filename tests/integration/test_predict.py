"""`shoal predict` gives the logits the job stored, and `shoal merge` a model that plain transformers loads."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import CHECKOUT, PRECISIONS, Train, environment
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import training.merge
import training.predict
from launcher.cli import main
from training.finished import open_run
from training.predict import Predictor, softmax

CLOSE = {"fp32": 1e-5, "bf16": 0.03, "fp16": 0.005, "nf4": 0.03, "int8": 0.01}
"""Largest difference of a logit, of which the largest is about 2. bf16 rounds to 1 part in 256, int8 the activations
too; on the same threads all are equal to the last bit."""


@pytest.fixture
def run_folder(trained: Train) -> Path:
    return trained("fp32")


def stored(folder: Path) -> dict[str, Any]:
    """Return what the job predicted of its test texts."""
    rows = pq.read_table(folder / "predictions.parquet").to_pylist()
    rows = [row for row in rows if row["split"] == "test"]
    logits = np.array([row["logits"] for row in rows], dtype=np.float32)
    return {"prediction": [row["prediction"] for row in rows], "logits": logits}


def read_texts(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_logits_are_those_the_job_stored(precision: str, trained: Train, corpus: Path) -> None:
    folder = trained(precision)
    predictor = Predictor.load(open_run(folder), torch.device("cpu"))
    assert predictor.classifier.packed
    logits = predictor.logits(read_texts(corpus / "test.jsonl"), lambda _: None)
    np.testing.assert_allclose(logits, stored(folder)["logits"], atol=CLOSE[precision], rtol=0)


def test_rows_come_out_in_their_order_from_every_kind_of_input(
    run_folder: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = stored(run_folder)
    texts = read_texts(corpus / "test.jsonl")
    table = tmp_path / "texts.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("id", "text"), *((f"t{number}", text) for number, text in enumerate(texts))])
    monkeypatch.setattr(training.predict, "WINDOW_ROWS", 7)  # five windows of the 30 rows

    def predict(*arguments: str) -> list[dict[str, str]]:
        assert main(["predict", str(run_folder), *arguments]) == 0
        rows = read_csv(capsys.readouterr().out)
        assert [row["prediction"] for row in rows] == expected["prediction"][: len(rows)]
        assert [row["row"] for row in rows] == [str(number) for number in range(1, len(rows) + 1)]
        np.testing.assert_allclose(
            [float(row["probability"]) for row in rows],
            softmax(expected["logits"]).max(axis=1)[: len(rows)],
            atol=1e-5,
        )
        return rows

    assert len(predict("--input", str(corpus / "test.jsonl"))) == 30
    assert [row["id"] for row in predict("--input", str(table))] == [f"t{number}" for number in range(30)]
    assert list(predict("--text", *texts[:3])[0]) == ["row", "prediction", "probability"]


def test_output_files_hold_all_probabilities(
    run_folder: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = softmax(stored(run_folder)["logits"])
    arguments = ["predict", str(run_folder), "--input", str(corpus / "test.jsonl"), "--probabilities", "--output"]
    for name in ("p.csv", "p.jsonl", "p.parquet"):
        assert main([*arguments, str(tmp_path / name)]) == 0
    assert "30 rows" in capsys.readouterr().out
    table = pq.read_table(tmp_path / "p.parquet").to_pylist()
    assert [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()] == table
    assert [float(row["probability"]) for row in read_csv((tmp_path / "p.csv").read_text())] == [
        row["probability"] for row in table
    ]
    labels = ["kitchen", "music", "sea"]
    found = np.array([[row[f"probability_{label}"] for label in labels] for row in table])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.csv", "p.jsonl", "p.parquet"]


@pytest.mark.parametrize("as_json", [False, True], ids=["texts", "records"])
def test_a_pipe(as_json: bool, run_folder: Path, corpus: Path) -> None:
    """Nothing but the CSV comes out, though libraries are loaded."""
    piped = (corpus / "test.jsonl").read_text()
    if not as_json:
        piped = "\n".join(read_texts(corpus / "test.jsonl"))
    words = [sys.executable, "-m", "launcher.cli", "predict", str(run_folder), "--input", "-"]
    run = subprocess.run(words, cwd=CHECKOUT, env=environment(), input=piped, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert [row["prediction"] for row in read_csv(run.stdout)] == stored(run_folder)["prediction"]


def test_a_reader_that_goes_away_is_no_error(run_folder: Path, corpus: Path) -> None:
    words = [sys.executable, "-m", "launcher.cli", "predict", str(run_folder), "--input", str(corpus / "test.jsonl")]
    command = f"{' '.join(words)} | true; exit ${{PIPESTATUS[0]}}"
    run = subprocess.run(["bash", "-c", command], cwd=CHECKOUT, env=environment(), capture_output=True, text=True)
    assert run.returncode == 0 and "Traceback" not in run.stderr, run.stderr


def copy_of(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))


def drop(part: str) -> Callable[[Path], None]:
    """Return what drops the tensors with this in their name from an adapter."""

    def damage(folder: Path) -> None:
        path = folder / "adapter" / "adapter_model.safetensors"
        save_file({name: value for name, value in load_file(path).items() if part not in name}, path)

    return damage


def name_base(folder: Path, base: str, file: str = "job.yaml") -> None:
    """Let a run's file name another base model."""
    path = folder / file
    path.write_text(re.sub(r'(model_name_or_path"?: ).*?(,?)\n', rf'\1"{base}"\2\n', path.read_text(), count=1))


def with_a_narrow_base(folder: Path) -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4
    )
    LlamaForCausalLM(config).save_pretrained(folder / "narrow")
    name_base(folder, str(folder / "narrow"))


@pytest.mark.parametrize("command", ["predict", "merge"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: shutil.rmtree(folder), ["does not exist", "outputs/<study>/jobs/<name>"]),
        (lambda folder: (folder / "result.json").unlink(), ["result.json", "has not finished"]),
        (lambda folder: shutil.rmtree(folder / "adapter"), ["adapter/adapter_config.json", "does not exist"]),
        (lambda folder: (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"x"), ["damaged"]),
        (drop(".score."), ["adapter_model.safetensors", "score.weight", "SEQ_CLS"]),
        (drop("layers.1.mlp"), ["does not fit the base", "layers.1.mlp", "job.yaml"]),
        (with_a_narrow_base, ["does not fit the base", "narrow", "job.yaml"]),
        (lambda folder: name_base(folder, "../no/such"), ["../no/such", "does not exist", "job.yaml"]),
    ],
    ids=["no run", "unfinished", "no adapter", "damaged", "no head", "no layer", "narrow base", "no base"],
)
def test_a_run_that_cannot_be_used_is_named_with_the_mend(
    command: str,
    damage: Callable[[Path], object],
    words: list[str],
    run_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = copy_of(run_folder, tmp_path / "run")
    damage(folder)
    more = ["--text", "a ship"] if command == "predict" else ["--output", str(tmp_path / "merged")]
    assert main([command, str(folder), *more]) == 2
    message = capsys.readouterr().err
    for word in words:
        assert word in message
    assert not (tmp_path / "merged").exists()


def test_a_fault_in_the_last_row_costs_no_computation(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.csv").write_text("text\n" + "a ship\n" * 50 + '" "\n')
    output = tmp_path / "out.csv"
    assert main(["predict", str(run_folder), "--input", str(tmp_path / "in.csv"), "--output", str(output)]) == 2
    message = capsys.readouterr().err
    assert "line 52" in message and "loading" not in message
    assert not output.exists()


def test_a_base_that_moved_is_named_in_job_yaml(
    run_folder: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_of(run_folder, tmp_path / "run")
    moved = copy_of(tiny_model, tmp_path / "moved")
    name_base(folder, str(moved))
    assert main(["predict", str(folder), "--text", "a ship"]) == 0
    assert str(moved) in capsys.readouterr().err


def test_a_studys_job_finds_the_base_its_file_names_from_elsewhere(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A study writes the path as its file has it and trains with the absolute one."""
    folder = copy_of(run_folder, tmp_path / "run")
    trained_with = json.loads((folder / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    for file in ("job.yaml", "result.json"):
        name_base(folder, "../models/tiny", file)
    assert main(["predict", str(folder), "--text", "a ship"]) == 0
    assert Path(trained_with).is_absolute() and trained_with in capsys.readouterr().err


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "nf4"])
def test_a_merged_model_is_an_ordinary_one(
    precision: str, trained: Train, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, merged = trained(precision), tmp_path / "new" / "merged"
    assert main(["merge", str(folder), "--output", str(merged)]) == 0
    said = capsys.readouterr().out
    assert "verified by reloading" in said
    assert ("trained on a base in nf4" in said) == (precision == "nf4")
    assert [path.name for path in merged.parent.iterdir()] == ["merged"]

    tokenizer = AutoTokenizer.from_pretrained(merged)
    model = AutoModelForSequenceClassification.from_pretrained(merged).eval()
    assert model.dtype == {"fp32": torch.float32, "fp16": torch.float16}.get(precision, torch.bfloat16)
    assert [model.config.id2label[index] for index in range(3)] == ["kitchen", "music", "sea"]
    assert model.config.pad_token_id == tokenizer.pad_token_id == 0
    inputs = tokenizer(
        read_texts(corpus / "test.jsonl"), padding=True, truncation=True, max_length=32, return_tensors="pt"
    )
    with torch.no_grad():
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits.float().numpy()
    expected = stored(folder)
    close = {"fp32": 1e-4, "bf16": 0.1, "fp16": 0.02, "nf4": 1.0}[precision]  # of nf4 it differs by the quantization
    np.testing.assert_allclose(logits, expected["logits"], atol=close, rtol=0)
    if precision == "fp32":
        names = [model.config.id2label[index] for index in logits.argmax(axis=1)]
        assert names == expected["prediction"]


def test_merge_refuses_a_folder_that_exists(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["merge", str(run_folder), "--output", str(tmp_path)]) == 2
    assert "exists" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_merged_model_that_is_another_fails_and_leaves_nothing(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = training.merge._load_plain

    def spoilt(*arguments: Any) -> Any:
        model = honest(*arguments)
        with torch.no_grad():
            model.model.layers[0].mlp.down_proj.weight.mul_(-1)
        return model

    monkeypatch.setattr(training.merge, "_load_plain", spoilt)
    assert main(["merge", str(run_folder), "--output", str(tmp_path / "merged")]) == 1
    assert "other logits than base and adapter" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
