"""Texts with several labels: read from every form, parted, checked, trained on and measured by a baseline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

from training.baseline import tfidf_baseline
from training.corpus.load import Corpus, load_corpus
from training.corpus.quality import check_data
from training.errors import UserError
from training.loss import TrainingLoss, require_fitting
from training.spec import MULTI_LABEL, SINGLE_LABEL, DataSpec, TrainingSpec

ROWS: list[tuple[str, list[str]]] = [
    *((f"a boat number {number} at sea", ["boat", "sea"]) for number in range(20)),
    *((f"the salt water number {number}", ["sea"]) for number in range(20)),
    *((f"a quiet room number {number}", []) for number in range(10)),
]


def jsonl(path: Path, rows: list[Any]) -> DataSpec:
    path.write_text("".join(json.dumps({"text": text, "label": labels}) + "\n" for text, labels in rows))
    return DataSpec(train_file=str(path))


def named(corpus: Corpus) -> dict[str, list[str]]:
    splits = [corpus.train, corpus.validation, *([corpus.test] if corpus.test else [])]
    return {
        text: [corpus.label_names[index] for index in labels]
        for split in splits
        for text, labels in zip(split.texts, split.labels, strict=True)
    }


def test_lists_and_delimited_strings_are_the_same_data(tmp_path: Path) -> None:
    of_json = load_corpus(jsonl(tmp_path / "t.jsonl", ROWS))
    assert of_json.problem_type == of_json.facts["problem_type"] == MULTI_LABEL
    assert of_json.label_names == ["boat", "sea"] and named(of_json) == dict(ROWS)
    (tmp_path / "t.csv").write_text("text,label\n" + "".join(f"{text},{'|'.join(names)}\n" for text, names in ROWS))
    of_csv = load_corpus(DataSpec(train_file=str(tmp_path / "t.csv"), label_delimiter="|"))
    pq.write_table(
        pa.table({"text": [text for text, _ in ROWS], "label": [names for _, names in ROWS]}), tmp_path / "t.parquet"
    )
    of_parquet = load_corpus(DataSpec(train_file=str(tmp_path / "t.parquet")))
    for other in (of_csv, of_parquet):
        assert (other.train, other.validation, other.label_names) == (
            of_json.train,
            of_json.validation,
            of_json.label_names,
        )
        assert other.facts["sha256"] == of_json.facts["sha256"]


def test_a_list_of_class_labels_of_the_hub_keeps_its_names(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.List(datasets.ClassLabel(names=["calm", "boat", "sea"]))}
    )
    rows = {"text": [f"text {number}" for number in range(12)], "label": [[2, 1], [0], []] * 4}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "t.parquet"))
    for spec in (DataSpec(dataset_name=str(tmp_path / "saved")), DataSpec(train_file=str(tmp_path / "t.parquet"))):
        corpus = load_corpus(spec)
        assert corpus.label_names == ["calm", "boat", "sea"]
        assert [named(corpus)[f"text {number}"] for number in range(3)] == [["boat", "sea"], ["calm"], []]


def test_numbers_are_labels_and_one_twice_is_one(tmp_path: Path) -> None:
    corpus = load_corpus(
        jsonl(tmp_path / "t.jsonl", [(f"t{number}", [10, 2, 10] if number % 2 else [2]) for number in range(20)])
    )
    assert corpus.label_names == ["2", "10"] and named(corpus)["t1"] == ["2", "10"]


def test_validation_is_a_random_part_that_leaves_each_label_in_train(tmp_path: Path) -> None:
    rare = [(f"rare {number}", ["sea", f"rare{number}"]) for number in range(10)]
    corpus = load_corpus(jsonl(tmp_path / "t.jsonl", [*ROWS, *rare]))
    assert len(corpus.validation.labels) == 6 and len(corpus.train.labels) == 54
    assert {index for labels in corpus.train.labels for index in labels} == set(range(12))
    assert "random" in corpus.facts["validation"] and corpus.facts["rows_per_class"]["train"]["rare0"] == 1
    spec = DataSpec(train_file=str(tmp_path / "t.jsonl"), max_train_samples=20)
    assert len(load_corpus(spec).train.labels) == 20
    assert load_corpus(spec).train == load_corpus(spec).train


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("a", ["x", "y"]), ("b", None)], ["line 2", "None", "no list", "[] for a text without"]),
        ([("a", ["x", "y"]), ("b", "x")], ["line 2", "'x'"]),
        ([("a", ["x", "y"]), ("b", [None])], ["line 2", "[None]"]),
        ([("a", ["x"]), ("b", [])], ["every label is 'x'", "two classes"]),
        ([("a", []), ("b", [])], ["no text has a label", "two classes"]),
    ],
)  # fmt: skip
def test_what_is_no_list_of_labels_is_refused(tmp_path: Path, rows: list[Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_corpus(jsonl(tmp_path / "t.jsonl", rows))
    for word in words:
        assert word in str(caught.value)


def test_a_label_that_train_lacks_is_refused(tmp_path: Path) -> None:
    jsonl(tmp_path / "test.jsonl", [("a", ["sea"]), ("b", ["boat", "seaa"])])
    spec = jsonl(tmp_path / "t.jsonl", ROWS)
    with pytest.raises(UserError, match=r"line 2: test has label 'seaa' in 1 row.*did you mean 'sea'"):
        load_corpus(DataSpec(train_file=spec.train_file, test_file=str(tmp_path / "test.jsonl")))


def test_the_data_check_counts_labels(tmp_path: Path) -> None:
    jsonl(tmp_path / "test.jsonl", [("a", ["sea"]), ("b", ["boat", "seaa"]), ("b", ["boat"]), ("c", None)])
    spec = jsonl(tmp_path / "t.jsonl", ROWS)
    check = check_data(DataSpec(train_file=spec.train_file, test_file=str(tmp_path / "test.jsonl")))
    assert check.splits["train"]["rows_per_class"] == {"boat": 20, "sea": 40}
    found = {(finding.code, finding.split): finding for finding in check.findings}
    assert found["unknown_label", "test"].count == found["missing_label", "test"].count == 1
    assert "seaa" in found["unknown_label", "test"].message and "boat" not in found["unknown_label", "test"].message
    assert found["conflicting_labels", "test"].count == 1
    assert ("missing_label", "train") not in found


def test_the_loss_is_that_of_transformers() -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = TrainingLoss.of(TrainingSpec(), ["a", "b", "c"], [], "cpu", MULTI_LABEL)
    labels: list[tuple[int, ...]] = [(), (0, 2), (1,), (0, 1, 2), (2,)]
    targets = torch.tensor([[0, 0, 0], [1, 0, 1], [0, 1, 0], [1, 1, 1], [0, 0, 1]], dtype=torch.float32)
    expected = F.binary_cross_entropy_with_logits(logits, targets)
    found = loss.sum(logits, torch.from_numpy(loss.targets(labels, 3))) / 5
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, logits), torch.autograd.grad(expected, logits))


@pytest.mark.parametrize("spec", [TrainingSpec(class_weights="balanced"), TrainingSpec(focal_gamma=2.0)])
def test_weights_of_classes_do_not_go_with_several_labels(spec: TrainingSpec) -> None:
    with pytest.raises(UserError, match=r"several labels a text.*Leave it out"):
        require_fitting(spec, ["a", "b"], MULTI_LABEL)
    require_fitting(spec, ["a", "b"], SINGLE_LABEL)


def test_the_baseline_is_one_classifier_a_label(tmp_path: Path) -> None:
    corpus = load_corpus(jsonl(tmp_path / "t.jsonl", ROWS))
    tfidf, majority = tfidf_baseline(corpus)
    assert (
        tfidf["name"] == "TF-IDF (1-2 words) + LinearSVC, one a label" and tfidf["accuracy"] == tfidf["macro_f1"] == 1
    )
    assert majority["name"] == "Majority of each label" and majority["accuracy"] < 1
    assert tfidf["predictions"]["prediction"] == tfidf["predictions"]["label"]
    assert {tuple(names) for names in majority["predictions"]["prediction"]} == {("sea",)}
