"""What the speed benchmark trains on, made on the spot: random models, texts of real lengths, the card's matrix rate.

    python -m benchmarks.gpu.inputs FOLDER --shapes 1B 100M --rows 1024

Writes FOLDER/<shape>/ (a checkpoint with a tokenizer whose tokens are words), FOLDER/<data>.jsonl, and
FOLDER/inputs.json with the mean tokens a text and the measured rate of bf16 matrix products.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from benchmarks.gpu.shapes import NUM_LABELS, SHAPES, llama_config

WORDS = 30_000


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Tokens of a corpus's texts: log-normal, cut to 8 tokens below and max_seq_length above."""

    median: int
    sigma: float
    max_seq_length: int

    def draw(self, generator: np.random.Generator, count: int) -> list[int]:
        drawn = generator.lognormal(np.log(self.median), self.sigma, count)
        return np.clip(drawn, 8, self.max_seq_length).astype(int).tolist()  # type: ignore[no-any-return]


DATA = {
    "ag_news": Lengths(median=48, sigma=0.3, max_seq_length=128),
    "imdb": Lengths(median=225, sigma=0.6, max_seq_length=512),
}
"""Lengths like those of the two corpora in tokens of a LLaMA; the words themselves mean nothing."""


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """Write a tokenizer of the words w3, w4, ..., which puts <s> before each text."""
    words = [f"w{number}" for number in range(3, min(WORDS, vocab_size))]
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<s>", "</s>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)


def write_model(folder: Path, shape: str, device: torch.device) -> None:
    """Write a random classifier in bf16."""
    torch.manual_seed(0)
    with device:
        model = AutoModelForSequenceClassification.from_config(llama_config(shape), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    write_tokenizer(folder, SHAPES[shape]["vocab_size"])


def write_texts(path: Path, lengths: list[int], vocab_size: int) -> None:
    """Write texts of that many tokens, <s> included, with labels in turn."""
    generator = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for row, length in enumerate(lengths):
            words = generator.integers(3, min(WORDS, vocab_size), length - 1)
            text = " ".join(f"w{word}" for word in words)
            file.write(json.dumps({"text": text, "label": f"class {row % NUM_LABELS}"}) + "\n")


def matrix_rate(device: torch.device, size: int) -> float:
    """Return the floating-point operations a second of bf16 products of two square matrices; the best of 5 tries."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(5):
        synchronize(device)
        started = time.perf_counter()
        for _ in range(10):
            left @ right
        synchronize(device)
        best = max(best, 10 * 2 * size**3 / (time.perf_counter() - started))
    return best


def synchronize(device: torch.device) -> None:
    """Wait for the card."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shapes", nargs="+", choices=tuple(SHAPES), required=True)
    parser.add_argument("--rows", type=int, required=True)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "matrix_flops": matrix_rate(device, 8192 if device.type == "cuda" else 256),
        "mean_tokens": {},
    }
    smallest = min(SHAPES[shape]["vocab_size"] for shape in arguments.shapes)
    for name, corpus in DATA.items():
        lengths = corpus.draw(np.random.default_rng(0), arguments.rows)
        write_texts(arguments.folder / f"{name}.jsonl", lengths, smallest)
        content["mean_tokens"][name] = float(np.mean(lengths))
    write_texts(arguments.folder / "validation.jsonl", [16] * 8, smallest)
    for shape in arguments.shapes:
        write_model(arguments.folder / shape, shape, device)
    (arguments.folder / "inputs.json").write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    main()
