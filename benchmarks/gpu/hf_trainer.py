"""One run of plain Hugging Face Trainer + PEFT, for its speed alone.

    python -m benchmarks.gpu.hf_trainer --model FOLDER --train_file FILE --max_seq_length 128 --batch_size 8 \
        --gradient_accumulation_steps 4 --max_steps 40 --warmup 5 --gradient_checkpointing --output cell.json

bf16 weights and autocast, LoRA on all linear layers, default collator that pads to the longest text of a batch.
Timed from the end of step `warmup` to the end of the last one; tokens are counted as the model sees them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks.gpu.inputs import synchronize


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--train_file", type=Path, required=True)
    parser.add_argument("--max_seq_length", type=int, required=True)
    parser.add_argument("--batch_size", type=int, required=True)
    parser.add_argument("--gradient_accumulation_steps", type=int, required=True)
    parser.add_argument("--max_steps", type=int, required=True)
    parser.add_argument("--warmup", type=int, required=True, help="steps before the timing begins")
    parser.add_argument("--lora_r", type=int, default=16)
    parser.add_argument("--group_by_length", action="store_true")
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def load_rows(arguments: argparse.Namespace, tokenizer: Any) -> list[dict[str, Any]]:
    """Return token ids and integer labels."""
    rows = [json.loads(line) for line in arguments.train_file.read_text(encoding="utf-8").splitlines()]
    names = sorted({row["label"] for row in rows})
    tokens = tokenizer([row["text"] for row in rows], truncation=True, max_length=arguments.max_seq_length)["input_ids"]
    return [{"input_ids": ids, "labels": names.index(row["label"])} for ids, row in zip(tokens, rows, strict=True)]


class Clock(TrainerCallback):  # type: ignore[misc]
    """Notes the time and the tokens at the end of the warm-up and of the last step, the card having caught up."""

    def __init__(self, model: torch.nn.Module, device: torch.device, warmup: int, max_steps: int) -> None:
        self.device, self.marks = device, (warmup, max_steps)
        self.real, self.padded = torch.zeros((), dtype=torch.long, device=device), 0
        self.notes: list[tuple[float, int, int]] = []
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _model: torch.nn.Module, _inputs: Any, kwargs: dict[str, Tensor]) -> None:
        self.real += kwargs["attention_mask"].sum()
        self.padded += kwargs["attention_mask"].numel()

    def on_step_end(self, _arguments: Any, state: Any, _control: Any, **_: Any) -> None:
        if state.global_step in self.marks:
            synchronize(self.device)
            self.notes.append((time.perf_counter(), int(self.real), self.padded))


def main() -> None:
    arguments = parse_arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForSequenceClassification.from_pretrained(arguments.model, dtype=torch.bfloat16)
    lora = LoraConfig(
        task_type=TaskType.SEQ_CLS, r=arguments.lora_r, lora_alpha=2 * arguments.lora_r, target_modules="all-linear"
    )
    model = get_peft_model(model, lora).to(device)
    clock = Clock(model, device, arguments.warmup, arguments.max_steps)
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            max_steps=arguments.max_steps,
            per_device_train_batch_size=arguments.batch_size,
            gradient_accumulation_steps=arguments.gradient_accumulation_steps,
            gradient_checkpointing=arguments.gradient_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            learning_rate=1e-4,
            bf16=True,
            use_cpu=device.type == "cpu",
            dataloader_pin_memory=device.type == "cuda",
            train_sampling_strategy="group_by_length" if arguments.group_by_length else "random",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            report_to="none",
        )
        trainer = Trainer(
            model=model,
            args=settings,
            train_dataset=load_rows(arguments, tokenizer),
            data_collator=DataCollatorWithPadding(tokenizer),
            callbacks=[clock],
        )
        trainer.train()
    (start, real_before, padded_before), (end, real, padded) = clock.notes
    steps = arguments.max_steps - arguments.warmup
    result = {
        "seconds": end - start,
        "samples": steps * arguments.batch_size * arguments.gradient_accumulation_steps,
        "tokens": real - real_before,
        "padding_share": 1 - (real - real_before) / (padded - padded_before),
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else 0,
    }
    arguments.output.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
