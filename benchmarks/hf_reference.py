"""The reference: one classifier by plain Hugging Face Trainer and PEFT, without any of Shoal.

    python benchmarks/hf_reference.py --model ../shared/models/llama-12m --train_file train.jsonl \
        --validation_file validation.jsonl --test_file test.jsonl --bf16 --output cell.json

One run a process. Files are CSV or JSON lines with the columns `text` and `label` (label names). The epoch with the
best validation macro-F1 is kept and evaluated on test once. Where there is no CUDA it runs on the CPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, DatasetDict, load_dataset
from peft import LoraConfig, TaskType, get_peft_model
from sklearn.metrics import accuracy_score, f1_score
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

PACKAGES = ("torch", "transformers", "peft", "datasets", "accelerate", "scikit-learn")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub name")
    parser.add_argument("--train_file", type=Path, required=True)
    parser.add_argument("--validation_file", type=Path, required=True)
    parser.add_argument("--test_file", type=Path, required=True)
    parser.add_argument("--num_train_epochs", type=float, default=3.0)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--warmup_steps", type=float, default=0.05, help="steps; below 1 the share of all steps")
    parser.add_argument("--lora_r", type=int, default=16)
    parser.add_argument("--lora_alpha", type=int, default=32)
    parser.add_argument("--lora_dropout", type=float, default=0.05)
    parser.add_argument("--max_seq_length", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="compute in bf16 (autocast); weights stay fp32")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    return parser.parse_args()


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer, padding on the right with a token that is not eos.

    The model pools the last token that is not padding, so with eos as padding it would lose a final eos.
    """
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
    return tokenizer


def load_splits(arguments: argparse.Namespace, tokenizer: PreTrainedTokenizerBase, cache: str) -> DatasetDict:
    """Return train, validation and test as token ids with integer labels."""
    files = {name: str(getattr(arguments, f"{name}_file")) for name in ("train", "validation", "test")}
    if arguments.train_file.suffix == ".csv":  # else a text such as "NA" would be read as a missing value
        rows = load_dataset("csv", data_files=files, cache_dir=cache, keep_default_na=False)
    else:
        rows = load_dataset("json", data_files=files, cache_dir=cache)
    names = sorted(rows["train"].unique("label"))
    rows = rows.cast_column("label", ClassLabel(names=names))
    return rows.map(
        lambda batch: tokenizer(batch["text"], truncation=True, max_length=arguments.max_seq_length),
        batched=True,
        remove_columns=["text"],
    )


def build_model(arguments: argparse.Namespace, tokenizer: PreTrainedTokenizerBase, names: list[str]) -> Any:
    """Return the classifier with LoRA on every linear layer and the head trained in full."""
    model = AutoModelForSequenceClassification.from_pretrained(
        arguments.model,
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.float32,  # a head trained in bf16 would round its small steps away
    )
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    lora = LoraConfig(
        task_type=TaskType.SEQ_CLS,  # this also trains and saves the head
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        target_modules="all-linear",
    )
    return get_peft_model(model, lora)


def training_arguments(arguments: argparse.Namespace, output_dir: str) -> TrainingArguments:
    """Return the Trainer's settings; what is not set is Hugging Face's default."""
    return TrainingArguments(
        output_dir=output_dir,
        num_train_epochs=arguments.num_train_epochs,
        per_device_train_batch_size=arguments.batch_size,
        per_device_eval_batch_size=64,
        learning_rate=arguments.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=arguments.warmup_steps,
        train_sampling_strategy="group_by_length",
        bf16=arguments.bf16,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        eval_strategy="epoch",
        save_strategy="epoch",
        save_only_model=True,
        load_best_model_at_end=True,
        metric_for_best_model="macro_f1",
        greater_is_better=True,
        report_to="none",
        seed=arguments.seed,
    )


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Return accuracy and macro-F1 (over every class, absent ones as 0) of one evaluation."""
    logits, labels = prediction.predictions, prediction.label_ids
    guesses = np.argmax(logits, axis=-1)
    classes = range(logits.shape[-1])
    return {
        "accuracy": float(accuracy_score(labels, guesses)),
        "macro_f1": float(f1_score(labels, guesses, labels=classes, average="macro", zero_division=0)),
    }


def picked(metrics: dict[str, float], prefix: str) -> dict[str, float]:
    """Return the two scores of one evaluation without the Trainer's prefix."""
    return {name: metrics[f"{prefix}_{name}"] for name in ("accuracy", "macro_f1")}


def main() -> None:
    arguments = parse_arguments()
    set_seed(arguments.seed)  # before the model, whose head and adapter start at random
    tokenizer = load_tokenizer(arguments.model)
    with tempfile.TemporaryDirectory() as folder:
        splits = load_splits(arguments, tokenizer, folder)
        names = splits["train"].features["label"].names
        trainer = Trainer(
            model=build_model(arguments, tokenizer, names),
            args=training_arguments(arguments, folder),
            train_dataset=splits["train"],
            eval_dataset=splits["validation"],
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=compute_metrics,
        )
        trained = trainer.train().metrics
        validation = picked(trainer.evaluate(), "eval")
        test = picked(trainer.evaluate(splits["test"], metric_key_prefix="test"), "test")
    result = {
        "test": test,
        "validation": validation,
        "best_validation_macro_f1": trainer.state.best_metric,
        "train": {  # the Trainer's own figures, its evaluation after each epoch included
            "seconds": trained["train_runtime"],
            "samples_per_second": trained["train_samples_per_second"],
            "steps": trainer.state.global_step,
        },
        "rows": {name: len(split) for name, split in splits.items()},
        "device": str(trainer.args.device),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
