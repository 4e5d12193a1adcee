"""The model card: its figures are the result's, and what comes from data stays text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from training.model_card import model_card, plain, shown_name, wilson_interval, write_model_card
from training.result import RunResult
from training.spec import DataSpec, JobSpec, LongText

METRICS = {"accuracy": 0.9, "macro_f1": 0.89, "loss": 0.3, "num_samples": 50.0}


def result(label_names: list[str], long_text: LongText = "head", **data: Any) -> RunResult:
    rows = dict.fromkeys(label_names, 10)
    spec = JobSpec(name="some-job", data=DataSpec(train_file="train.csv", long_text=long_text))
    return RunResult(
        name="some-job",
        status="succeeded",
        settings=spec.to_dict(),
        fingerprint=spec.fingerprint(),
        untrained_validation={**METRICS, "accuracy": 0.1},
        validation=METRICS,
        test={**METRICS, "accuracy": 0.8},
        train={"steps": 20, "epochs": 2.0, "best_epoch": 1.0},
        data={
            "source": "/home/me/secret/train.csv", "text_columns": ["text"], "label_column": "label",
            "label_names": label_names, "num_rows": {"train": 30, "validation": 50, "test": 50},
            "rows_per_class": {"train": rows, "validation": rows, "test": rows}, "validation": "as given",
            "removed": {"train: rows without text": 3}, "num_texts_in_train_and_test": 0, **data,
        },
        model={
            "dtype": "float32", "quantization": "none", "global_batch_size": 8, "optimizer": "AdamW", "zero_stage": 1,
            "trained_parameters": 1234, "device": "cpu",
        },
        versions={"shoal": "1.0", "peft": "0.21"},
    )  # fmt: skip


# Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
@pytest.mark.parametrize(
    ("right", "of", "interval"),
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611)), (1, 29, (0.0061, 0.1718))],
)
def test_the_interval_is_wilsons(right: int, of: int, interval: tuple[float, float]) -> None:
    assert wilson_interval(right, of) == pytest.approx(interval, abs=5e-5)


def test_the_front_matter_is_what_the_hub_reads() -> None:
    metadata = ModelCard(model_card(result(["no", "yes"]))).data
    assert metadata.base_model == "builtin:tiny-llama"
    assert metadata.library_name == "peft" and metadata.pipeline_tag == "text-classification"
    assert metadata.metrics == ["accuracy", "f1"]
    assert [(item.dataset_split, item.metric_type, item.metric_value) for item in metadata.eval_results or []] == [
        ("validation", "accuracy", 0.9), ("validation", "f1", 0.89), ("test", "accuracy", 0.8), ("test", "f1", 0.89),
    ]  # fmt: skip


def test_it_says_what_is_read_of_long_texts_and_what_transformers_alone_does_not() -> None:
    head, tail, chunk = (model_card(result(["no", "yes"], way)) for way in ("head", "tail", "chunk"))
    assert "AutoTokenizer.from_pretrained(ADAPTER)\ninputs" in head
    assert 'from_pretrained(ADAPTER, truncation_side="left")\ninputs' in tail and "the last 512 tokens" in tail
    assert "up to 8 chunks of 512 tokens that overlap by 32" in chunk and "| long\\_text | chunk |" in chunk
    assert "# Long texts are cut otherwise here than in training" in chunk
    assert "cut otherwise" not in head + tail


def test_the_text_holds_figures_intervals_data_settings_and_limits() -> None:
    card = model_card(result(["no", "yes"]))
    assert "| validation | 50 | 90.00% | 78.64% to 95.65% | 0.8900 | 0.3000 |" in card
    assert "Wilson" in card and "right in 10.00% of validation" in card
    assert "left out: 3 × train: rows without text" in card and "| no | 10 | 10 | 10 |" in card
    assert "| learning\\_rate | 0.0002 |" in card and "| lora r | 16 |" in card
    assert "the first 512 tokens" in card and "/home/me" not in card


def test_a_job_without_a_test_split_and_with_shared_texts_says_so() -> None:
    some = result(["no", "yes"], num_texts_in_train_and_test=4)
    assert "stand in train too" in model_card(some)
    some.test.clear()
    assert "There was no test split." in model_card(some) and "| test | 50 |" not in model_card(some)


def test_of_many_classes_the_first_are_listed() -> None:
    card = model_card(result([f"class {index}" for index in range(60)]))
    assert "| class 49 |" in card and "| class 50 |" not in card and "and 10 more classes" in card


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("a | b", "a \\| b"),
        ("[x](http://evil)", "\\[x\\](http\\://evil)"),
        ("two\nlines\r\n# more", "two lines # more"),
        ("`code` *bold* www.evil", "\\`code\\` \\*bold\\* www\\.evil"),
        ("right\u202eleft", "right left"),
        ("情感 positive & more", "情感 positive &amp; more"),
        ("x" * 200, "x" * 79 + "…"),
    ],
)
def test_what_comes_from_data_stays_text(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_a_wicked_class_name_breaks_neither_table_nor_front_matter(tmp_path: Path) -> None:
    wicked = "---\n|<img src=x>|```\nbase_model: other"
    (tmp_path / "README.md").write_text("PEFT's own")
    write_model_card(tmp_path, result([wicked, "yes"], source="owner/data\n---\nx: [", label_column="```"))
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    front, body = card.removeprefix("---\n").split("\n---\n", maxsplit=1)
    assert yaml.safe_load(front)["base_model"] == "builtin:tiny-llama"
    assert "<img" not in body and body.count("```") == 2
    widths = {line.count("|") - line.count("\\|") for line in body.splitlines() if line.startswith("| yes")}
    assert widths == {line.count("|") - line.count("\\|") for line in body.splitlines() if "img" in line} == {5}


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B"),
        ("/data/models/tiny", "tiny"),
        ("../x/train.csv", "train.csv"),
        ("builtin:docstrings", "builtin:docstrings"),
    ],
)
def test_paths_are_shown_by_their_last_part(name: str, shown: str) -> None:
    assert shown_name(name) == shown
