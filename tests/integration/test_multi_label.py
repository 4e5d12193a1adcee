"""A whole job whose texts have several labels: trained, stored, reloaded with transformers and PEFT, predicted."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import read_events
from fastapi.testclient import TestClient
from forked_jobs import run_job
from sklearn import metrics
from small_material import FILLERS, TOPICS

from launcher.report.build import Stored, build_report
from launcher.report.markdown_page import render_markdown
from launcher.report.material import read_material
from launcher.report.page import render_page
from launcher.report.tables import csv_tables
from training.baseline import tfidf_baseline
from training.corpus.load import load_corpus
from training.finished import open_run
from training.predict import Predictor, predict
from training.predictions import read_predictions, write_columns
from training.result import RunResult, read_result
from training.serving_app import Service, create_app
from training.spec import DataSpec

NAMES = sorted(TOPICS)


def write_rows(path: Path, rows: int, seed: int) -> None:
    """Write sentences about none to all of the topics."""
    draw = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            labels = [name for name in NAMES if draw.random() < 0.45]
            words = [draw.choice(TOPICS[name].split()) for name in labels for _ in range(3)]
            words += draw.choices(FILLERS, k=draw.randint(2, 8))
            draw.shuffle(words)
            file.write(json.dumps({"text": " ".join(words), "label": labels}) + "\n")


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory, job_flags: list[str]) -> list[str]:
    folder = tmp_path_factory.mktemp("several")
    for name, rows, seed in (("train", 400, 1), ("test", 40, 2)):
        write_rows(folder / f"{name}.jsonl", rows, seed)
    files = [f"--{name}_file={folder / name}.jsonl" for name in ("train", "test")]
    return [*job_flags, *files, "--label_delimiter=|"]


@pytest.fixture(scope="module")
def job(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunResult]:
    folder = tmp_path_factory.mktemp("jobs") / "several"
    run = run_job(*flags, "--num_train_epochs=6", "--per_device_train_batch_size=16", "--output_dir", str(folder))
    assert run.returncode == 0, run.stderr[-3000:]
    result = read_result(folder)
    assert result is not None
    return folder, result


def hot(rows: list[list[str]]) -> np.ndarray:
    return np.array([[name in row for name in NAMES] for row in rows])


def test_it_learns_and_its_figures_are_those_of_the_stored_predictions(job: tuple[Path, RunResult]) -> None:
    folder, result = job
    assert result.data["problem_type"] == "multi_label_classification" and result.data["label_names"] == NAMES
    assert result.test["macro_f1"] > 0.75 and result.test["macro_f1"] > result.untrained_validation["macro_f1"]
    rows = [row for row in pq.read_table(folder / "predictions.parquet").to_pylist() if row["split"] == "test"]
    truth, predicted = (hot([row[name] for row in rows]) for name in ("label", "prediction"))
    assert len(rows) == 40 and not truth.any(axis=1).all()
    expected = {f"{name}_f1": metrics.f1_score(truth, predicted, average=name, zero_division=0)
                for name in ("macro", "micro", "weighted", "samples")}  # fmt: skip
    expected["accuracy"] = metrics.accuracy_score(truth, predicted)
    assert {name: result.test[name] for name in expected} == pytest.approx(expected)
    validated = [event["macro_f1"] for event in read_events(folder, "evaluation") if event["step"]]
    assert result.validation["macro_f1"] == pytest.approx(max(validated))


def test_transformers_and_peft_load_it_as_multi_label(job: tuple[Path, RunResult], tiny_model: Path) -> None:
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    folder, _ = job
    config = AutoConfig.from_pretrained(folder / "adapter")
    assert config.problem_type == "multi_label_classification" and list(config.id2label.values()) == NAMES
    base = AutoModelForSequenceClassification.from_pretrained(tiny_model, config=config)
    model = PeftModel.from_pretrained(base, folder / "adapter").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "adapter")
    corpus = {split: read_predictions(folder / "predictions.parquet")[split] for split in ("test",)}["test"]
    texts = [row["text"] for row in pq.read_table(folder / "predictions.parquet").to_pylist() if row["split"] == "test"]
    inputs = tokenizer(texts, truncation=True, max_length=32, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs, labels=torch.from_numpy(corpus.labels).float())
    assert corpus.logits is not None
    np.testing.assert_allclose(output.logits.numpy(), corpus.logits, atol=1e-4)
    _, result = job
    assert output.loss.item() == pytest.approx(result.test["loss"], rel=1e-4)  # plain transformers' own loss


def test_two_ranks_learn_the_same(flags: list[str], tmp_path: Path) -> None:
    for name, ranks, sizes in (("one", 1, (8, 1)), ("two", 2, (2, 2))):
        words = (f"--per_device_train_batch_size={sizes[0]}", f"--gradient_accumulation_steps={sizes[1]}")
        run = run_job(*flags, *words, "--max_steps=4", "--output_dir", str(tmp_path / name), num_ranks=ranks)
        assert run.returncode == 0, run.stderr[-3000:]
    one, two = ([event["loss"] for event in read_events(tmp_path / name, "step")] for name in ("one", "two"))
    np.testing.assert_allclose(two, one, rtol=1e-4)


def test_weights_of_classes_are_refused_before_training(flags: list[str], tmp_path: Path) -> None:
    run = run_job(*flags, "--class_weights=balanced", "--output_dir", str(tmp_path))
    assert run.returncode == 2 and "several labels a text" in run.stderr, run.stderr


def test_predict_gives_all_labels_over_the_threshold(
    job: tuple[Path, RunResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = job
    texts = ["ship harbour tide the old captain", "the quiet and old", "ship tide sail violin chord melody oven flour"]
    predict(folder, texts=texts, probabilities=True)
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    for row in rows:
        over = [name for name in NAMES if float(row[f"probability_{name}"]) > 0.5]
        assert row["prediction"] == "|".join(over) and "probability" not in row
    assert rows[0]["prediction"] == "sea" and len({row["prediction"] for row in rows}) == 3
    for extension in ("jsonl", "parquet"):
        predict(folder, texts=texts, output=tmp_path / f"out.{extension}")
    written = [json.loads(line)["prediction"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert written == [row["prediction"].split("|") if row["prediction"] else [] for row in rows]
    assert pq.read_table(tmp_path / "out.parquet")["prediction"].to_pylist() == written


def test_serve_answers_with_lists_of_labels(job: tuple[Path, RunResult]) -> None:
    folder, _ = job
    run = open_run(folder)
    service = Service(Predictor.load(run, torch.device("cpu")), run.spec.name, run.label_names, run.problem_type)
    with TestClient(create_app(service)) as client:
        plain = client.post("/predict", json={"texts": ["ship harbour tide the old captain"]}).json()
        assert plain == [{"labels": ["sea"]}]
        (full,) = client.post("/predict", json={"texts": ["the quiet and old"], "probabilities": True}).json()
        assert full["labels"] == [name for name in NAMES if full["probabilities"][name] > 0.5]
        assert "any of: kitchen, music, sea" in client.get("/openapi.json").json()["info"]["description"]


def test_the_report_shows_it_beside_the_baseline(job: tuple[Path, RunResult], tmp_path: Path) -> None:
    folder, result = job
    baselines: list[dict[str, Any]] = tfidf_baseline(load_corpus(DataSpec(**result.settings["data"])))
    of_baselines = []
    for item in baselines:
        write_columns(tmp_path / f"{item['kind']}.parquet", item["predictions"], item["label_names"])
        of_baselines.append(read_predictions(tmp_path / f"{item['kind']}.parquet")["test"])
    predictions = {result.name: read_predictions(folder / "predictions.parquet")}
    stored = Stored(predictions=predictions, of_baselines=of_baselines)
    report = build_report("several", [result], baselines, stored, num_jobs=1)
    json.dumps(report, allow_nan=False)
    scores = report["jobs"][0]["scores"]["test"]
    assert scores["map"] == pytest.approx(result.test["map"]) and "confusion" not in scores
    assert {item["test"] for item in report["comparisons"]} == {"McNemar exact"}
    low, high = report["groups"][0]["interval"]["accuracy"]
    assert low <= result.test["accuracy"] <= high
    page = render_page(read_material(report, {result.name: folder}, []))
    text = render_markdown(report)
    assert "subset accuracy" in page and "mean average precision" in page and "confuses" not in page
    assert "subset accuracy" in text and "Mean average precision" in text.replace("mean", "Mean")
    assert {"per_class.csv", "leaderboard.csv"} <= set(csv_tables(report)) and "confusion.csv" not in csv_tables(report)
    card = (folder / "adapter" / "README.md").read_text()
    assert "any of 3 labels, or none" in card and "subset accuracy" in card
