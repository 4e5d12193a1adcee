"""On the card, packed texts give the logits and gradients that padded rows give in plain Hugging Face."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from card import DEVICE, NEEDS_CARD
from torch import Tensor
from transformers import LlamaConfig, LlamaForSequenceClassification

from training.model import add_adapter, use_packed_attention
from training.packing import PackedClassifier
from training.spec import LoraSpec

pytestmark = NEEDS_CARD

PAD, NUM_LABELS = 0, 3
LENGTHS = [5, 1, 300, 128, 2, 64, 65]
TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 3e-2}
"""Largest difference as a share of the largest value; bf16 rounds to 1 part in 256 at each of many places."""


def classifier(dtype: torch.dtype, key_value_heads: int) -> Any:
    config = LlamaConfig(
        vocab_size=500, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=key_value_heads, max_position_embeddings=512, pad_token_id=PAD, bos_token_id=1,
        eos_token_id=2, num_labels=NUM_LABELS,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForSequenceClassification._from_config(config, dtype=dtype)
    model.requires_grad_(False)
    model = add_adapter(model, LoraSpec(), dtype)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at first, which would leave lora_A without a gradient
            torch.nn.init.normal_(parameter, std=0.05)
    return model.to(DEVICE).eval()


def gradients(model: Any, logits: Tensor) -> dict[str, Tensor]:
    labels = torch.arange(len(logits), device=logits.device) % NUM_LABELS
    model.zero_grad()
    F.cross_entropy(logits.float(), labels, reduction="sum").backward()
    return {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}


def difference(ours: Tensor, expected: Tensor) -> float:
    return ((ours - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("key_value_heads", [4, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_texts_give_what_padded_ones_give(dtype: torch.dtype, key_value_heads: int) -> None:
    model = classifier(dtype, key_value_heads)
    texts = [torch.randint(3, 500, (length,), device=DEVICE) for length in LENGTHS]
    rows = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=PAD)
    expected = model(input_ids=rows, attention_mask=(rows != PAD).long()).logits
    expected_gradients = gradients(model, expected)
    assert len(expected_gradients) > 20
    use_packed_attention(model)
    logits = PackedClassifier(model, packed=True)(torch.cat(texts), LENGTHS)
    assert difference(logits, expected.float()) < TOLERANCE[dtype]
    ours = gradients(model, logits)
    assert set(ours) == set(expected_gradients)
    worst = max((difference(ours[name], gradient), name) for name, gradient in expected_gradients.items())
    assert worst[0] < 2 * TOLERANCE[dtype], worst
