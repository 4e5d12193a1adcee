"""A saved adapter is proven by reading it back: whole files pass, lost heads and emptied tensors do not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

from training.adapter import check_saved_values, compare_logits, reloaded_logits, save_adapter
from training.engine import trainable_parameters
from training.errors import VerificationError
from training.evaluation import to_device
from training.model import HEAD, add_adapter
from training.packing import PackedClassifier
from training.spec import LoraSpec
from training.tokens import TokenizedSplit

FILE = "adapter_model.safetensors"


def base() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, num_labels=3,
    )  # fmt: skip
    return LlamaForSequenceClassification(config).requires_grad_(False).eval()


@pytest.fixture
def split() -> TokenizedSplit:
    lengths = [5, 3, 9]
    tokens = np.random.default_rng(0).integers(1, 50, sum(lengths)).astype(np.int32)
    return TokenizedSplit.of_texts(["0", "1", "2"], [0, 1, 2], tokens, np.cumsum([0, *lengths]).astype(np.int64))


@pytest.fixture
def saved(tmp_path: Path, split: TokenizedSplit) -> tuple[Path, dict[str, torch.Tensor], Any]:
    """A trained adapter on disk, its weights, and the logits of the model that was saved."""
    model: PeftModel = add_adapter(base(), LoraSpec(r=4), torch.float32)
    torch.manual_seed(1)
    for parameter in trainable_parameters(model).values():
        torch.nn.init.normal_(parameter, std=0.3)
    weights = {name: value.detach().clone() for name, value in trainable_parameters(model).items()}
    from tokenizers import Tokenizer, models

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    save_adapter(model, weights, tokenizer, model.config, tmp_path / "adapter")
    with torch.no_grad():
        logits = PackedClassifier(model, packed=False)(*to_device(split, [0, 1, 2], torch.device("cpu"))[0])
    return tmp_path / "adapter", weights, logits.numpy()


def test_what_was_saved_gives_the_same_logits(saved: Any, split: TokenizedSplit) -> None:
    folder, weights, trained = saved
    check_saved_values(folder, weights)
    reloaded = reloaded_logits(base(), folder, split, 3, torch.device("cpu"), 2)
    facts = compare_logits(reloaded, trained, torch.float32)
    assert facts["verified"] and facts["max_logit_difference"] < 1e-5


@pytest.mark.parametrize("part", [HEAD, "lora_B"])
def test_lost_weights_are_found(part: str, saved: Any, split: TokenizedSplit) -> None:
    folder, weights, trained = saved
    tensors = load_file(folder / FILE)
    hit = [name for name in tensors if part in name]
    assert hit
    save_file({name: value * 0 if name in hit else value for name, value in tensors.items()}, folder / FILE)
    with pytest.raises(VerificationError, match="as they were trained"):
        check_saved_values(folder, weights)
    with pytest.raises(VerificationError, match="other logits"):
        compare_logits(reloaded_logits(base(), folder, split, 3, torch.device("cpu"), 3), trained, torch.float32)


def test_the_chunks_of_a_text_are_pooled_after_reloading_too(saved: Any, split: TokenizedSplit) -> None:
    folder, _, trained = saved
    chunked = replace(split, ids=["0", "1"], labels=[0, 1], first_chunks=np.array([0, 1, 3]))
    logits = reloaded_logits(base(), folder, chunked, 2, torch.device("cpu"), 2)
    np.testing.assert_allclose(logits, [trained[0], trained[1:].mean(axis=0)], atol=1e-5)


def test_missing_and_empty_tensors_are_found(saved: Any) -> None:
    folder, weights, _ = saved
    tensors = load_file(folder / FILE)
    name = next(name for name in tensors if HEAD in name)
    save_file({key: value for key, value in tensors.items() if key != name}, folder / FILE)
    with pytest.raises(VerificationError, match="as they were trained"):
        check_saved_values(folder, weights)
    save_file({**tensors, name: torch.empty(0)}, folder / FILE)
    with pytest.raises(VerificationError, match="as they were trained"):
        check_saved_values(folder, weights)


def test_logits_that_are_not_numbers_do_not_pass() -> None:
    trained = np.ones((2, 3), dtype=np.float32)
    with pytest.raises(VerificationError):
        compare_logits(np.full_like(trained, np.nan), trained, torch.float32)
