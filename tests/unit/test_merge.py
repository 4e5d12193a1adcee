"""What a merge is checked on, and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from training.errors import UserError
from training.merge import NUM_TEXTS, fixed_texts, refuse_quantized, require_room
from training.spec import ModelSpec


class Tokenizer:
    all_special_ids = (1, 2)
    pad_token_id = 0

    def __len__(self) -> int:
        return 40


def test_the_texts_are_the_same_every_time_and_hold_no_special_token() -> None:
    texts = fixed_texts(Tokenizer(), 32, 20)
    assert len(texts) == NUM_TEXTS and min(texts.lengths) == (2,) and max(texts.lengths) == (20,)
    assert set(texts.tokens.tolist()) <= set(range(3, 32))
    assert texts.tokens.tolist() == fixed_texts(Tokenizer(), 32, 20).tokens.tolist()


def test_a_checkpoint_stored_quantized_is_refused() -> None:
    spec = ModelSpec(model_name_or_path="owner/model-4bit")
    refuse_quantized(SimpleNamespace(config=SimpleNamespace()), spec)
    with pytest.raises(UserError, match="owner/model-4bit is stored quantized"):
        refuse_quantized(SimpleNamespace(config=SimpleNamespace(quantization_config={})), spec)


def test_a_disk_without_room_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = torch.nn.Linear(16, 16)
    require_room(model, tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=16))
    with pytest.raises(UserError, match="Make room"):
        require_room(model, tmp_path)
