"""One cell of `speed.py`: Hugging Face Trainer + PEFT, a few training steps and nothing else.

    python benchmarks/speed_hf.py --model ../shared/models/llama-12m --train_file train.jsonl --batch_size 8 \
        --max_steps 20 --max_seq_length 128 --output clock.json [--tuned] [--deepspeed ds_configs/zero2.json]

Without --tuned as most people run it: pad to the longest of a random batch, activation checkpointing. With --tuned as
well as we can: grouped by length, no checkpointing. Writes the step clock (speed_clock.py) to --output.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import ClassLabel, Dataset, load_dataset
from hf_reference import load_tokenizer
from peft import LoraConfig, TaskType, get_peft_model
from speed_clock import WARMUP_STEPS, StepClock
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--train_file", type=Path, required=True, help="JSON lines of text and label")
    parser.add_argument("--batch_size", type=int, required=True)
    parser.add_argument("--max_steps", type=int, required=True)
    parser.add_argument("--max_seq_length", type=int, required=True)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--lora_r", type=int, default=16)
    parser.add_argument("--lora_alpha", type=int, default=32)
    parser.add_argument("--tuned", action="store_true")
    parser.add_argument("--deepspeed", help="DeepSpeed JSON file")
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def representative(order: list[int], lengths: list[int], batch_size: int, num_batches: int) -> list[int]:
    """Return `num_batches` whole batches of an epoch in length-grouped order, evenly spread over batch lengths.

    Within a group of 50 batches the longest come first, so that the first few steps of an epoch tell little of it.
    """
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    batches = [batch for batch in batches if len(batch) == batch_size]
    batches.sort(key=lambda batch: max(lengths[index] for index in batch))
    chosen = [batches[int((place + 0.5) * len(batches) / num_batches)] for place in range(num_batches)]
    random.Random(0).shuffle(chosen)
    return [index for batch in chosen for index in batch]


class TunedTrainer(Trainer):
    """The Trainer, on an even sample of the batches that its own grouping by length makes of the whole data."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        order, size = list(sampler), self.args.train_batch_size
        warmup = representative(order, sampler.lengths, size, WARMUP_STEPS)
        return warmup + representative(order, sampler.lengths, size, self.args.max_steps - WARMUP_STEPS)


def load_rows(arguments: argparse.Namespace, tokenizer: Any, cache: str) -> Dataset:
    """Return the rows as token ids with integer labels."""
    rows = load_dataset("json", data_files=str(arguments.train_file), cache_dir=cache, split="train")
    rows = rows.cast_column("label", ClassLabel(names=sorted(rows.unique("label"))))
    return rows.map(
        lambda batch: tokenizer(batch["text"], truncation=True, max_length=arguments.max_seq_length),
        batched=True,
        remove_columns=["text"],
    )


def training_arguments(arguments: argparse.Namespace, output_dir: str) -> TrainingArguments:
    """Return the Trainer's settings; what is not set is Hugging Face's default."""
    if arguments.tuned:
        own: dict[str, Any] = {"train_sampling_strategy": "group_by_length"}
    else:
        own = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    return TrainingArguments(
        output_dir=output_dir,
        max_steps=arguments.max_steps,
        per_device_train_batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        deepspeed=arguments.deepspeed,
        save_strategy="no",
        report_to="none",
        **own,
    )


def build_model(arguments: argparse.Namespace, tokenizer: Any, num_labels: int) -> Any:
    """Return the classifier with LoRA on every linear layer and the head trained in full."""
    model = AutoModelForSequenceClassification.from_pretrained(arguments.model, num_labels=num_labels)
    model.config.pad_token_id = tokenizer.pad_token_id
    if len(tokenizer) > model.config.vocab_size:  # a pad token was added
        model.resize_token_embeddings(len(tokenizer))
    lora = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,
        target_modules="all-linear",
    )
    # DeepSpeed keeps the fp32 copies itself; under ZeRO-3 PEFT's fp32 head would meet bf16 states and fail.
    return get_peft_model(model, lora, autocast_adapter_dtype=arguments.deepspeed is None)


def main() -> None:
    arguments = parse_arguments()
    tokenizer = load_tokenizer(str(arguments.model))
    with tempfile.TemporaryDirectory() as folder:
        settings = training_arguments(arguments, folder)  # before the model: ZeRO-3 partitions it as it is loaded
        rows = load_rows(arguments, tokenizer, folder)
        trainer = (TunedTrainer if arguments.tuned else Trainer)(
            model=build_model(arguments, tokenizer, rows.features["label"].num_classes),
            args=settings,
            train_dataset=rows,
            processing_class=tokenizer,
            callbacks=[StepClock(arguments.output)],
        )
        trainer.train()


if __name__ == "__main__":
    main()
