"""A model that cannot read what the tokenizer makes of the texts is refused before torch says "index out of range"."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import GPT2Config, LlamaConfig

from training.errors import UserError
from training.pretrained import load_config
from training.readable import beyond_trained, require_positions, require_vocabulary, vocabulary_size
from training.spec import DataSpec, ModelSpec
from training.tokens import TokenizedSplit

MODEL = ModelSpec(model_name_or_path="m")


def split_of(*texts: list[int]) -> TokenizedSplit:
    offsets = np.cumsum([0, *map(len, texts)])
    ids = [f"train:{row}" for row in range(1, len(texts) + 1)]
    return TokenizedSplit.of_texts(ids, [0] * len(texts), np.concatenate(texts), offsets)


def test_a_token_beyond_the_models_is_named_with_its_row() -> None:
    splits = {"train": split_of([1, 5], [7, 3], [1, 2])}
    assert vocabulary_size(LlamaConfig(vocab_size=8)) == 8
    require_vocabulary(8, MODEL, splits)
    with pytest.raises(UserError, match=r"'m' makes token 7 of row train:2, and the model's tokens end at 6 "):
        require_vocabulary(7, MODEL, splits)
    chunks = {"train": replace(split_of([1, 5], [1, 2], [7, 3], [1]), first_chunks=np.array([0, 1, 4]))}
    with pytest.raises(UserError, match=r"row train:2"):
        require_vocabulary(7, MODEL, chunks)


def test_texts_longer_than_a_table_of_positions_are_refused() -> None:
    gpt2 = GPT2Config(n_positions=64)
    require_positions(gpt2, DataSpec(train_file="t.csv", max_seq_length=64))
    with pytest.raises(UserError, match=r"max_seq_length is 65 and this gpt2 has 64 positions. Set it to 64"):
        require_positions(gpt2, DataSpec(train_file="t.csv", max_seq_length=65))


def test_rotary_models_read_longer_texts_with_a_warning() -> None:
    llama = LlamaConfig(max_position_embeddings=4)
    require_positions(llama, DataSpec(train_file="t.csv", max_seq_length=65))
    assert beyond_trained(llama, {"train": split_of([1] * 4), "test": split_of([1])}) is None
    warning = beyond_trained(llama, {"train": split_of([1] * 4), "test": split_of([1], [1] * 5)})
    assert warning is not None and "up to 5 tokens and the model was trained with 4" in warning


def test_a_config_whose_values_do_not_go_together_is_a_users_mistake(tmp_path: Path) -> None:
    config = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 33}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match=r"hidden size \(64\) is not a multiple.*\(33\)\. Mend its config\.json\."):
        load_config(ModelSpec(model_name_or_path=str(tmp_path)), str(tmp_path), ["a", "b"])
