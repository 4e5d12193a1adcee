"""The model card of an adapter: `adapter/README.md`, as the Hugging Face hub shows it.

Says what the adapter was trained on and with, what came out and how sure that is, and what it is not for. Built from
the result alone, so that each figure is one of result.json. https://huggingface.co/docs/hub/model-cards
"""

from __future__ import annotations

import html
import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from training.disk import flush
from training.long_text import what_is_read
from training.result import Metrics, RunResult
from training.spec import MULTI_LABEL, DataSpec

CARD = "README.md"

MARKDOWN = re.compile(r"([\\`*_\[\]|~$@]|:(?=//)|(?<=www)\.)")
"""What is markup within a line, and what makes a link of an address."""
MAX_CHARACTERS, MAX_SETTING_CHARACTERS = 80, 400
"""Of a name from the data, and of a setting, that is shown."""
MAX_CLASSES = 50
"""Listed with their rows; the rest is counted."""

TRAINING_SETTINGS = (
    "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "class_weights",
    "focal_gamma", "metric_for_best_model",
)  # fmt: skip
LORA_SETTINGS = ("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora")

Rows = list[tuple[str, ...]]


def write_model_card(folder: Path, result: RunResult) -> None:
    """Write the card into an adapter's folder, replacing the empty one that PEFT puts there."""
    temporary = folder / f".{CARD}.tmp"
    temporary.write_text(model_card(result), encoding="utf-8")
    flush(temporary)
    temporary.replace(folder / CARD)


def wilson_interval(num_right: int, num_texts: int) -> tuple[float, float]:
    """Return the 95 % interval of a share by its counts (Wilson 1927), which stays within 0 and 1 and is no point at
    either end."""
    from scipy.stats import binomtest

    interval = binomtest(num_right, num_texts).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def model_card(result: RunResult) -> str:
    """Return the card of a job that succeeded: YAML front matter, then Markdown."""
    parts = [
        f"---\n{_front_matter(result)}\n---",
        _introduction(result),
        _results(result),
        _data(result),
        _training(result),
        _use(result),
        _limits(result),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(result: RunResult) -> str:
    """Return the metadata the hub reads, as YAML."""
    source = shown_name(result.data["source"])
    measured = [
        EvalResult(
            task_type="text-classification", task_name="Text Classification", dataset_type=source,
            dataset_name=source, dataset_split=split, metric_type=kind, metric_value=round(metrics[name], 6),
        )
        for split, metrics in _splits(result)
        for kind, name in (("accuracy", "accuracy"), ("f1", "macro_f1"))
    ]  # fmt: skip
    base = shown_name(result.settings["model"]["model_name_or_path"])
    card = ModelCardData(
        base_model=base, library_name="peft", pipeline_tag="text-classification", metrics=["accuracy", "f1"],
        tags=["lora", "shoal"], model_name=result.name, eval_results=measured,
    )  # fmt: skip
    return str(card.to_yaml())


def is_multi_label(result: RunResult) -> bool:
    """Whether a text may have several labels: then accuracy is of all labels of a text."""
    return bool(result.data.get("problem_type") == MULTI_LABEL)


def _introduction(result: RunResult) -> str:
    base = plain(shown_name(result.settings["model"]["model_name_or_path"]))
    num_classes = len(result.data["label_names"])
    does = f"Puts a text into one of {num_classes} classes"
    if is_multi_label(result):
        does = f"Gives a text any of {num_classes} labels, or none"
    return (
        f"# {plain(result.name)}\n\n{does}: a LoRA adapter "
        f"and a classification head for {base}, trained with Shoal {plain(result.versions['shoal'])}."
    )


def _results(result: RunResult) -> str:
    accuracy = "subset accuracy" if is_multi_label(result) else "accuracy"
    rows: Rows = [("split", "texts", accuracy, "95 % interval", "macro F1", "log loss")]
    for split, metrics in _splits(result):
        num_texts = round(metrics["num_samples"])
        low, high = wilson_interval(round(metrics["accuracy"] * num_texts), num_texts)
        rows.append(
            (
                split, f"{num_texts:,}", f"{metrics['accuracy']:.2%}", f"{low:.2%} to {high:.2%}",
                f"{metrics['macro_f1']:.4f}", f"{metrics['loss']:.4f}",
            )
        )  # fmt: skip
    lines = [
        _table(rows),
        "",
        "The interval is Wilson's, of the accuracy, from the counts of right and all texts. It says how far chance in "
        "the choice of these texts reaches, and nothing of other seeds or other data.",
        "Validation chose the epoch that was kept, which flatters it."
        + (" Test was evaluated once, at the end." if result.test else " There was no test split."),
        f"Before its first step the model was right in {result.untrained_validation['accuracy']:.2%} of validation.",
    ]
    return "## Results\n\n" + "\n".join(lines)


def _data(result: RunResult) -> str:
    data = result.data
    columns = ", ".join(plain(name) for name in data["text_columns"])
    splits = list(data["num_rows"])
    rows: Rows = [("class", *splits)]
    for name in data["label_names"][:MAX_CLASSES]:
        rows.append((plain(name), *(f"{data['rows_per_class'][split].get(name, 0):,}" for split in splits)))
    hidden = len(data["label_names"]) - MAX_CLASSES
    if hidden > 0:
        rows.append((f"and {hidden:,} more classes", *([""] * len(splits))))
    rows.append(("all", *(f"{data['num_rows'][split]:,}" for split in splits)))
    lines = [
        f"- source: {plain(shown_name(data['source']))}",
        f"- text: {columns}; class: {plain(data['label_column'])}",
        f"- validation: {plain(data['validation'])}",
        *(f"- left out: {count:,} × {plain(what)}" for what, count in data["removed"].items() if count),
        f"- texts in both train and test: {data['num_texts_in_train_and_test']:,}",
    ]
    return "## Data\n\n" + "\n".join(lines) + "\n\n" + _table(rows)


def _training(result: RunResult) -> str:
    model, train = result.model, result.train
    settings = result.settings
    rows: Rows = [
        ("setting", "value"),
        ("base held in", f"{model['dtype']}, quantization {model['quantization']}"),
        *((f"lora {name}", str(settings["lora"][name])) for name in LORA_SETTINGS),
        *((name, str(settings["training"][name])) for name in TRAINING_SETTINGS),
        ("max_seq_length", str(settings["data"]["max_seq_length"])),
        ("long_text", str(settings["data"]["long_text"])),
        ("seed", str(settings["seed"])),
        ("global batch", f"{model['global_batch_size']} texts"),
        ("optimizer", f"{model['optimizer']}, ZeRO stage {model['zero_stage']}"),
        ("steps", f"{train['steps']:,} (epochs: {train['epochs']:g}; kept: epoch {train['best_epoch']:g})"),
        ("trained parameters", f"{model['trained_parameters']:,}"),
        ("hardware", f"{result.num_ranks} × {model['device']}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in result.versions.items())),
    ]
    return "## Training\n\n" + _table(
        [rows[0], *((plain(name), plain(value, MAX_SETTING_CHARACTERS)) for name, value in rows[1:])]
    )


def _use(result: RunResult) -> str:
    base = shown_name(result.settings["model"]["model_name_or_path"])
    read = "print([config.id2label[int(index)] for index in model(**inputs).logits.argmax(-1)])"
    if is_multi_label(result):
        read = "print([[config.id2label[int(index)] for index in row.nonzero()] for row in model(**inputs).logits > 0])"
    long_text = result.settings["data"]["long_text"]
    tail = ', truncation_side="left"' if long_text == "tail" else ""
    others = "# Long texts are cut otherwise here than in training (see Limits); `shoal predict` cuts them as there.\n"
    others = others if long_text in ("head+tail", "chunk") else ""
    return f"""## Use

```python
from peft import PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

BASE = {_code(base)}  # hub name, or where the base lies
ADAPTER = "adapter"  # where this folder lies
config = AutoConfig.from_pretrained(ADAPTER)
base = AutoModelForSequenceClassification.from_pretrained(BASE, config=config)
model = PeftModel.from_pretrained(base, ADAPTER).eval()
tokenizer = AutoTokenizer.from_pretrained(ADAPTER{tail})
{others}inputs = tokenizer(["a text"], truncation=True, max_length={result.settings["data"]["max_seq_length"]},
                   padding=True, return_tensors="pt")
{read}
```

Or `shoal predict`, `shoal serve` and `shoal merge` with the folder this one lies in."""


def _limits(result: RunResult) -> str:
    knows = "any text gets one of them" if not is_multi_label(result) else "a text may get none"
    lines = [
        f"It knows the classes above and no other: {knows}.",
        f"Read of a long text: {what_is_read(DataSpec(**result.settings['data']))}.",
        "The figures hold for texts like those it was tested on. Check it on yours, and by group where its mistakes "
        "weigh on people.",
        "Its probabilities have not been calibrated.",
        "What bias and which licence the base and the data have, this adapter has too.",
    ]
    if result.model["quantization"] != "none":
        lines.append(
            f"It was trained and measured on a base in {result.model['quantization']}; on one held otherwise its "
            "logits differ a little."
        )
    if result.data["num_texts_in_train_and_test"]:
        lines.append("Some texts of test stand in train too, so the test figures are too good.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _splits(result: RunResult) -> list[tuple[str, Metrics]]:
    """Return the splits that were evaluated."""
    return [(name, metrics) for name, metrics in (("validation", result.validation), ("test", result.test)) if metrics]


def _table(rows: Rows) -> str:
    """Return a Markdown table; the first row is its head."""
    lines = [rows[0], ("---",) * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def plain(text: Any, max_characters: int = MAX_CHARACTERS) -> str:
    """Return text from outside as Markdown that shows it and does nothing else: one line, no markup, no HTML."""
    line = " ".join("".join(character if character.isprintable() else " " for character in str(text)).split())
    if len(line) > max_characters:
        line = line[: max_characters - 1] + "…"
    return MARKDOWN.sub(r"\\\1", html.escape(line, quote=False))


def _code(text: str) -> str:
    """Return text as a Python string that cannot end the block of code it stands in."""
    return ascii(text).replace("`", "\\x60")


def shown_name(name: str) -> str:
    """Return a hub name as it is, and of a file or folder its own name: where it lay concerns nobody else."""
    local = name.startswith(("/", ".", "~")) or (os.sep in name and Path(name).exists())
    return Path(name).name if local else name
