"""What a calibration trains: small random LLaMAs and texts of random words."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path

from training.forecast.memory_estimate import Work

VOCABULARY = 512


def save_word_tokenizer(words: Iterable[str], folder: Path) -> None:
    """Write a Hugging Face tokenizer: <pad> <s> </s> <unk> are 0 to 3, then the words; <s> begins every text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def save_model(folder: Path, hidden: int, layers: int) -> Work:
    """Write a random LLaMA with its tokenizer; return its figures, with no work done."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=-(-hidden * 8 // 3 // 32) * 32,
        num_hidden_layers=layers, num_attention_heads=max(1, hidden // 64), max_position_embeddings=1024,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    save_word_tokenizer((f"word{number}" for number in range(VOCABULARY - 4)), folder)
    base = model.model
    weights = sum(parameter.numel() for parameter in base.parameters())
    linear = [module for module in base.modules() if isinstance(module, torch.nn.Linear)]
    activations = sum(module.in_features + module.out_features for module in linear)
    return Work(
        parameters=weights - base.embed_tokens.weight.numel(), layers=layers, tokens=0, evaluated_tokens=0, steps=0,
        hidden=hidden, weights=weights, trained=16 * activations, activations=activations,
    )  # fmt: skip


def save_texts(path: Path, rows: int, words: int, seed: int) -> None:
    """Write texts of so many words and two classes as a JSONL file."""
    draw = random.Random(seed)
    lines = [
        json.dumps({"text": " ".join(f"word{draw.randrange(VOCABULARY - 4)}" for _ in range(words)), "label": row % 2})
        for row in range(rows)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
