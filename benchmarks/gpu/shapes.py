"""LLaMA shapes, from their public config.json files, and what they weigh."""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig

NUM_LABELS = 4

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 512,
    },
    "100M": {
        "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12,
        "num_key_value_heads": 12, "vocab_size": 32000,
    },
    "1B": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256,
    },
    "3B": {
        "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
        "num_key_value_heads": 8, "vocab_size": 128256,
    },
    "8B": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256,
    },
    "13B": {
        "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40,
        "num_key_value_heads": 40, "vocab_size": 32000,
    },
    "34B": {
        "hidden_size": 8192, "intermediate_size": 22016, "num_hidden_layers": 48, "num_attention_heads": 64,
        "num_key_value_heads": 8, "vocab_size": 32000,
    },
    "70B": {
        "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8, "vocab_size": 128256,
    },
}  # fmt: skip
"""Llama 3.2 1B and 3B, Llama 3 8B and 70B, Llama 2 13B, Code Llama 34B; 100M is GPT-2's width and depth."""


def llama_config(name: str) -> LlamaConfig:
    """Return the configuration of a classifier of that shape."""
    return LlamaConfig(
        **SHAPES[name],
        max_position_embeddings=2048,
        num_labels=NUM_LABELS,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def linear_shapes(name: str) -> list[tuple[int, int]]:
    """Return (in, out) of each linear layer of one decoder layer."""
    shape = SHAPES[name]
    width, inner = shape["hidden_size"], shape["intermediate_size"]
    key_width = width // shape["num_attention_heads"] * shape["num_key_value_heads"]
    attention = [(width, width), (width, key_width), (width, key_width), (width, width)]
    return [*attention, (width, inner), (width, inner), (inner, width)]


def num_layers(name: str) -> int:
    """Return the number of decoder layers."""
    return int(SHAPES[name]["num_hidden_layers"])


def linear_parameters(name: str) -> int:
    """Return the weights of all linear layers: the frozen ones that LoRA adapts."""
    return num_layers(name) * sum(rows * columns for rows, columns in linear_shapes(name))


def adapter_parameters(name: str, r: int) -> int:
    """Return LoRA's weights on all linear layers."""
    return num_layers(name) * sum(r * (rows + columns) for rows, columns in linear_shapes(name))


def weight_bytes(name: str, quantization: str) -> int:
    """Return the bytes of the frozen weights: bf16, or nf4 with an fp32 scale for each 64 weights."""
    embeddings = int(2 * SHAPES[name]["vocab_size"] * SHAPES[name]["hidden_size"])
    linear = linear_parameters(name)
    return embeddings + (linear // 2 + linear // 16 if quantization == "nf4" else 2 * linear)


def flops_per_token(name: str, r: int) -> float:
    """Return what training one token takes: 2 a weight forward, 2 backward through it, 2 more for trained ones.

    Attention's products and anything computed twice (gradient checkpointing) are left out.
    """
    return 4.0 * linear_parameters(name) + 6.0 * adapter_parameters(name, r)
