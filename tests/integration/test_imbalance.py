"""Class weights and focal loss in real training: a rare class is found more often; no cut changes what is learnt."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import read_events
from forked_jobs import run_job
from small_material import FILLERS, TOPICS

from training.result import RunResult, read_result

NUM_RARE = 3
"""Of twenty texts about the sea; no others are rare. What is likelier of such a text is "common", by 17 to 3, and with
balanced weights "rare", by about 3 to 1: the best a classifier can do is known, and it is far from the other."""


@pytest.fixture(scope="module")
def imbalanced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """480 rows of which 24 are rare; the words of a text do not tell more."""
    path = tmp_path_factory.mktemp("imbalanced") / "train.jsonl"
    draw = random.Random(4)
    with path.open("w", encoding="utf-8") as file:
        for row in range(480):
            about_sea = row % 3 == 0
            text = " ".join(draw.choices(TOPICS["sea"].split() if about_sea else FILLERS, k=draw.randint(4, 8)))
            label = "rare" if about_sea and row // 3 % 20 < NUM_RARE else "common"
            file.write(json.dumps({"text": text, "label": label}) + "\n")
    return path


@pytest.fixture(scope="module")
def imbalanced_flags(imbalanced: Path, job_flags: list[str]) -> list[str]:
    without_test = [flag for flag in job_flags if not flag.startswith("--test_file")]
    return [*without_test, f"--train_file={imbalanced}"]


def train(flags: list[str], folder: Path, *more: str, num_ranks: int = 1) -> RunResult:
    run = run_job(*flags, *more, "--output_dir", str(folder), num_ranks=num_ranks)
    assert run.returncode == 0, run.stderr[-3000:]
    result = read_result(folder)
    assert result is not None
    return result


def recall_of_rare(folder: Path) -> float:
    rows = pq.read_table(folder / "predictions.parquet").to_pylist()
    found = [row["prediction"] == "rare" for row in rows if row["label"] == "rare"]
    assert len(found) == 5
    return float(np.mean(found))


def test_weights_raise_the_recall_of_a_rare_class(imbalanced_flags: list[str], tmp_path: Path) -> None:
    flags = [*imbalanced_flags, "--per_device_train_batch_size=32", "--num_train_epochs=2", "--learning_rate=3e-3"]
    given = ("--set", "training.class_weights={rare: 20}")
    settings = {"none": (), "balanced": ("--class_weights=balanced",), "given": given}
    results = {name: train(flags, tmp_path / name, *more) for name, more in settings.items()}
    recall = {name: recall_of_rare(tmp_path / name) for name in settings}
    assert recall["none"] <= 0.2 and recall["balanced"] >= 0.8 and recall["given"] >= 0.8, recall
    assert len({result.fingerprint for result in results.values()}) == 3
    # Before training all are the same model, and so is what evaluation says of it: its loss knows no weights.
    assert len({result.untrained_validation["loss"] for result in results.values()}) == 1


def test_ranks_and_cuts_learn_the_same_by_weights(imbalanced_flags: list[str], tmp_path: Path) -> None:
    flags = [*imbalanced_flags, "--class_weights=balanced", "--focal_gamma=2", "--max_steps=4"]
    one = train(flags, tmp_path / "one", "--per_device_train_batch_size=8")
    cut = train(flags, tmp_path / "cut", "--per_device_train_batch_size=2", "--gradient_accumulation_steps=4")
    sizes = ("--per_device_train_batch_size=2", "--gradient_accumulation_steps=2")
    ranks = train(flags, tmp_path / "ranks", *sizes, "--deepspeed=ds_configs/zero3.json", num_ranks=2)
    losses = {
        name: [event["loss"] for event in read_events(tmp_path / name, "step")] for name in ("one", "cut", "ranks")
    }
    assert len(losses["one"]) == 4
    for name, result in (("cut", cut), ("ranks", ranks)):
        np.testing.assert_allclose(losses[name], losses["one"], rtol=1e-4)
        assert result.validation["loss"] == pytest.approx(one.validation["loss"], rel=1e-4)


def test_a_weight_of_no_class_ends_the_job_at_once(imbalanced_flags: list[str], tmp_path: Path) -> None:
    run = run_job(*imbalanced_flags, "--set", "training.class_weights={rar: 2}", "--output_dir", str(tmp_path))
    assert run.returncode == 2 and "'rar'" in run.stderr and "did you mean 'rare'" in run.stderr, run.stderr
