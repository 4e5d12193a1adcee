"""A job whose long texts are read in chunks: two ranks, its stored logits predicted again, padded or packed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import read_events
from forked_jobs import run_job

import training.predict
from launcher.cli import main
from training.finished import open_run
from training.predict import Predictor
from training.serving_app import Service

CHUNKS = ["--long_text", "chunk", "--max_seq_length", "9", "--chunk_overlap", "2", "--max_chunks", "3"]


def train(folder: Path, corpus: Path, model: Path, *flags: str, num_ranks: int) -> Path:
    run = run_job(
        "--model_name_or_path", str(model), "--train_file", str(corpus / "train.jsonl"),
        "--test_file", str(corpus / "test.jsonl"), "--output_dir", str(folder), "--max_steps", "4",
        "--per_device_train_batch_size", str(8 // num_ranks), "--learning_rate", "5e-3", "--bf16", "false",
        "--report_to", "none", *flags, num_ranks=num_ranks,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout
    return folder


def logits_of(folder: Path) -> Any:
    rows = pq.read_table(folder / "predictions.parquet").to_pylist()
    return np.array([row["logits"] for row in rows if row["split"] == "test"], dtype=np.float32)


def losses(folder: Path) -> list[float]:
    return [event["loss"] for event in read_events(folder, "step")]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory, corpus: Path, tiny_model: Path) -> Path:
    return train(tmp_path_factory.mktemp("chunks") / "job", corpus, tiny_model, *CHUNKS, num_ranks=2)


def test_predict_gives_the_logits_the_job_stored(
    two_ranks: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    texts = [json.loads(line)["text"] for line in (corpus / "test.jsonl").read_text().splitlines()]
    assert json.loads((two_ranks / "result.json").read_text())["adapter"]["verified"]
    for can_pack in (True, False):
        monkeypatch.setattr(training.predict, "can_pack", lambda *_, can=can_pack: can)
        predictor = Predictor.load(open_run(two_ranks), torch.device("cpu"))
        split = predictor.encode(texts)
        assert {len(chunks) for chunks in split.lengths} == {1, 2, 3} and predictor.classifier.packed == can_pack
        np.testing.assert_allclose(predictor.logits_of(split, lambda _: None), logits_of(two_ranks), atol=1e-5)
    requests = [predictor.encode(texts[:4]), predictor.encode(texts[4:])]
    served = np.concatenate(Service(predictor, "job", ["a"])._compute(requests))
    np.testing.assert_allclose(served, logits_of(two_ranks), atol=1e-5)
    assert main(["merge", str(two_ranks), "--output", str(tmp_path / "merged")]) == 0
    assert "up to 3 chunks of 9 tokens" in capsys.readouterr().out
    assert "up to 3 chunks of 9 tokens" in (two_ranks / "adapter" / "README.md").read_text()


def test_one_rank_and_other_micro_batches_learn_the_same(
    two_ranks: Path, corpus: Path, tiny_model: Path, tmp_path: Path
) -> None:
    alone = train(
        tmp_path / "job", corpus, tiny_model, *CHUNKS, "--per_device_train_batch_size", "1",
        "--gradient_accumulation_steps", "8", num_ranks=1,
    )  # fmt: skip
    assert len(losses(alone)) == len(losses(two_ranks)) == 4
    np.testing.assert_allclose(losses(alone), losses(two_ranks), atol=1e-4)
    np.testing.assert_allclose(logits_of(alone), logits_of(two_ranks), atol=1e-3)
