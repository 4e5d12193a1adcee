"""A model of a few thousand weights and a small corpus, so that real training runs in seconds."""

from __future__ import annotations

import json
import random
from pathlib import Path

from benchmarks.word_tokenizer import save_word_tokenizer

TOPICS = {
    "sea": "ship sailor harbour wave anchor tide captain deck sail island",
    "music": "violin chord melody rhythm orchestra drum song choir piano tune",
    "kitchen": "oven flour butter recipe spoon pan sugar bake onion pepper",
}
FILLERS = ["the", "a", "of", "and", "with", "under", "near", "old", "new", "quiet", "very", "then", "some", "every"]


def write_corpus(path: Path, rows: int, seed: int) -> None:
    """Write sentences whose words tell their topic, of 3 to 25 words."""
    draw = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for index in range(rows):
            label = sorted(TOPICS)[index % len(TOPICS)]
            words = [
                draw.choice(TOPICS[label].split() if draw.random() < 0.5 else FILLERS)
                for _ in range(draw.randint(3, 25))
            ]
            file.write(json.dumps({"text": " ".join(words), "label": label}) + "\n")


def write_tiny_model(folder: Path, **changes: int) -> None:
    """Write a LLaMA of two layers with random weights and a tokenizer of words, in Hugging Face layout.

    `changes` are of its configuration.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    save_word_tokenizer(sorted({word for text in TOPICS.values() for word in text.split()} | set(FILLERS)), folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, **changes}
    config = LlamaConfig(
        vocab_size=64, num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
