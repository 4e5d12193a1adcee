"""The proof of a saved adapter reads the base a layer at a time, and finds what is wrong in any of its layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_material import write_tiny_model
from torch import Tensor

from training import fused
from training.adapter import compare_logits, padded_logits, reloaded_logits
from training.errors import VerificationError
from training.model import add_adapter, load_base
from training.pretrained import load_config
from training.spec import DataSpec, JobSpec, LoraSpec, ModelSpec, Quantization
from training.tokens import TokenizedSplit
from training.verification.verify import base_in_layers, texts_of_a_pass

CPU = torch.device("cpu")
FILE = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_tiny_model(folder, num_hidden_layers=3)
    return folder


@pytest.fixture(scope="module")
def split() -> TokenizedSplit:
    lengths = [5, 3, 9]
    tokens = np.random.default_rng(0).integers(1, 60, sum(lengths)).astype(np.int32)
    return TokenizedSplit.of_texts(["0", "1", "2"], [0, 1, 2], tokens, np.cumsum([0, *lengths]).astype(np.int64))


def spec_of(model: Path, quantization: Quantization = "none", *, use_dora: bool = False) -> JobSpec:
    return JobSpec(
        model=ModelSpec(model_name_or_path=str(model), quantization=quantization),
        lora=LoraSpec(r=4, use_dora=use_dora), data=DataSpec(train_file="t.csv"),
    )  # fmt: skip


def config_of(spec: JobSpec) -> Any:
    config = load_config(spec.model, spec.model.model_name_or_path, ["a", "b", "c"])
    config.pad_token_id = 0
    return config


def save(spec: JobSpec, split: TokenizedSplit, folder: Path) -> Any:
    """Save an adapter of random values; return its model's logits."""
    base = load_base(spec.model, spec.model.model_name_or_path, config_of(spec), torch.float32, CPU)
    adapted = add_adapter(base, spec.lora, torch.float32)
    torch.manual_seed(3)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(str(folder))
    return padded_logits(adapted.eval(), split, 3, CPU, 3)


def layered(spec: JobSpec) -> Any:
    return base_in_layers(spec, spec.model.model_name_or_path, config_of(spec), torch.float32, CPU)


@pytest.mark.parametrize(
    ("quantization", "use_dora"), [("none", False), ("none", True), ("nf4", False), ("int8", False)]
)
def test_a_base_in_layers_computes_what_the_whole_one_does(
    quantization: Quantization, use_dora: bool, model: Path, split: TokenizedSplit, tmp_path: Path
) -> None:
    spec = spec_of(model, quantization, use_dora=use_dora)
    trained = save(spec, split, tmp_path)
    np.testing.assert_allclose(reloaded_logits(layered(spec), tmp_path, split, 3, CPU, 3), trained, atol=1e-5)


def test_the_weights_of_one_layer_at_a_time_are_there(model: Path, split: TokenizedSplit) -> None:
    base = layered(spec_of(model))

    def held() -> int:
        """Return the bytes of all weights but the head's; one that is absent is a single value."""
        weights: list[Tensor] = [value for name, value in base.named_parameters() if "score" not in name]
        return sum(weight.untyped_storage().nbytes() for weight in weights)

    absent = held()
    assert absent == 4 * len(list(base.model.parameters()))
    seen: list[int] = []
    for part in base.model.layers:
        part.mlp.register_forward_hook(lambda *_: seen.append(held()))
    padded_logits(base, split, 3, CPU, 3)
    layer = 4 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96 + 2 * 64)
    assert seen == [layer + absent - 4 * 9] * 3
    assert held() == absent


@pytest.mark.parametrize("part", ["layers.0.self_attn.k_proj.lora_B", "layers.2.mlp.down_proj.lora_A", "score"])
@pytest.mark.parametrize("change", ["wrong", "missing"])
def test_a_wrong_or_missing_part_of_one_layer_is_found(
    part: str, change: str, model: Path, split: TokenizedSplit, tmp_path: Path
) -> None:
    spec = spec_of(model)
    trained = save(spec, split, tmp_path)
    tensors = load_file(tmp_path / FILE)
    (hit,) = (name for name in tensors if part in name)
    value = tensors.pop(hit)
    if change == "wrong":
        tensors[hit] = value.flip(0)
    save_file(tensors, tmp_path / FILE)
    with pytest.raises(VerificationError, match=r"other logits|does not load"):
        compare_logits(reloaded_logits(layered(spec), tmp_path, split, 3, CPU, 3), trained, torch.float32)


def test_the_proof_rotates_with_the_familys_own_function(
    model: Path, split: TokenizedSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fused layers change the rotation for the whole process; a fault in ours must not hide itself."""
    spec = spec_of(model)
    trained = save(spec, split, tmp_path)
    monkeypatch.setattr(fused, "rotate", lambda query, key, cos, sin: (query, key))
    base = layered(spec)
    fused.fuse_layers(load_base(spec.model, str(model), config_of(spec), torch.float32, CPU))
    try:
        assert np.abs(reloaded_logits(base, tmp_path, split, 3, CPU, 3) - trained).max() > 0.01
        with fused.plain_rotary():
            np.testing.assert_allclose(reloaded_logits(layered(spec), tmp_path, split, 3, CPU, 3), trained, atol=1e-5)
    finally:
        monkeypatch.undo()
        with fused.plain_rotary():
            pass  # leaves our own rotation in place


@pytest.mark.parametrize(
    ("lengths", "budget", "expected"),
    [
        ([(10,)] * 20, 160, (8, 8)),
        ([(10,), (16,), (10,)], 16, (1, 1)),
        ([(10,), (16,), (10,)], 32, (2, 2)),
        ([(4, 4, 4)], 8, (1, 2)),
        ([(9,)], 8, (1, 1)),
    ],
)
def test_one_pass_holds_as_many_texts_as_the_budget(
    lengths: list[tuple[int, ...]], budget: int, expected: tuple[int, int]
) -> None:
    assert texts_of_a_pass(lengths, budget) == expected
