"""What the cells of `speed.py` train on: the rows, the models, and how much arithmetic a token is."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from hf_reference import load_tokenizer
from transformers import AutoConfig, AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

MODELS = Path("../shared/models")
RANDOM_MODEL = "random-100m"
DATA_SETS = {
    "ag_news": ("AG News", "train.csv", 128),
    "imdb": ("IMDb", "train.jsonl.gz", 512),
    "newsgroups20": ("20 Newsgroups", "train.jsonl.gz", 512),
}
"""Folder -> title, file, max_seq_length."""
ROWS = 12_800
"""Rows a side sees. From 4 x 50 x 64 rows on, the Trainer groups by length as it would on any more."""
VALIDATION_ROWS = 16
"""Shoal evaluates before and after training; outside the steps that are timed, so as little as possible."""
LORA_R = 16


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """The rows of one data set as each side reads them."""

    name: str
    title: str
    max_seq_length: int
    train_file: Path
    validation_file: Path
    swift_file: Path
    texts: list[str]
    num_labels: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Model:
    """A base model and the arithmetic of training a LoRA classifier on it."""

    name: str
    folder: Path
    num_parameters: int
    flops_per_token: float
    """See `flops_per_token`."""


def read_rows(file: Path) -> pd.DataFrame:
    """Read a CSV or JSON lines file of text and label; a text such as "NA" stays a text."""
    if file.suffix == ".csv":
        return pd.read_csv(file, dtype=str, keep_default_na=False)[["text", "label"]]
    return pd.read_json(file, lines=True, dtype=False)[["text", "label"]].astype(str)


def write_data_set(name: str, data: Path, folder: Path, num_rows: int) -> DataSet:
    """Draw the rows, seeded, and write them as JSON lines; those for ms-swift have integer labels."""
    title, file_name, max_seq_length = DATA_SETS[name]
    rows = read_rows(data / name / file_name)
    rows = rows[rows["text"].str.strip() != ""]
    rows = rows.sample(n=min(num_rows, len(rows)), random_state=0)
    files = {kind: folder / f"{name}_{kind}.jsonl" for kind in ("train", "validation", "swift")}
    rows.to_json(files["train"], orient="records", lines=True, force_ascii=False)
    rows.head(VALIDATION_ROWS).to_json(files["validation"], orient="records", lines=True, force_ascii=False)
    number = {label: index for index, label in enumerate(sorted(rows["label"].unique()))}
    with files["swift"].open("w", encoding="utf-8") as file:
        for text, label in zip(rows["text"], rows["label"], strict=True):
            message = {"role": "user", "content": text}
            file.write(json.dumps({"messages": [message], "label": number[label]}, ensure_ascii=False) + "\n")
    return DataSet(
        name=name,
        title=title,
        max_seq_length=max_seq_length,
        train_file=files["train"],
        validation_file=files["validation"],
        swift_file=files["swift"],
        texts=rows["text"].tolist(),
        num_labels=len(number),
        sha256=hashlib.sha256(files["train"].read_bytes()).hexdigest()[:16],
    )


def token_lengths(data_set: DataSet, model: Model) -> list[int]:
    """Return the tokens of each text, cut as in training."""
    tokenizer = load_tokenizer(str(model.folder))
    lengths: list[int] = []
    for start in range(0, len(data_set.texts), 1000):
        texts = data_set.texts[start : start + 1000]
        batch = tokenizer(texts, truncation=True, max_length=data_set.max_seq_length)
        lengths += [len(row) for row in batch["input_ids"]]
    return lengths


def get_model(name: str, folder: Path) -> Model:
    """Return a model by its folder, or make the random one in `folder`."""
    path = make_random_model(folder / RANDOM_MODEL) if name == RANDOM_MODEL else Path(name).resolve()
    base = classifier_without_weights(path)
    return Model(
        name=path.name,
        folder=path,
        num_parameters=sum(parameter.numel() for parameter in base.parameters()),
        flops_per_token=flops_per_token(base),
    )


def make_random_model(folder: Path) -> Path:
    """Save a LLaMA of about 100 M random parameters with the tokenizer of llama-12m."""
    tokenizer = load_tokenizer(str(MODELS / "llama-12m"))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=768,
        intermediate_size=2816,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def classifier_without_weights(folder: Path) -> Any:
    """Return the classifier's modules, none of whose weights take memory."""
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(folder))


def flops_per_token(base: Any) -> float:
    """Return what a LoRA training step must at least compute for a token: 4 P + 6 A.

    P are the weights of the frozen linear layers: 2 P forward, 2 P backward for the gradient of their inputs (their own
    is not needed). A are the adapters' weights: 2 A forward, 4 A backward. Attention scores, norms, the head (one token
    a text) and whatever a side computes twice are left out.
    """
    layers = [part for name, part in base.named_modules() if isinstance(part, torch.nn.Linear) and name != "score"]
    frozen = sum(layer.in_features * layer.out_features for layer in layers)
    adapters = sum(LORA_R * (layer.in_features + layer.out_features) for layer in layers)
    return 4.0 * frozen + 6.0 * adapters
