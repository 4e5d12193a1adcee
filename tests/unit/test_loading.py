"""The base that is streamed tensor by tensor is, bit by bit, the one transformers loads whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.errors import UserError
from training.loading import QUANTIZED_AT_ONCE, stream_base
from training.model import HEAD, PACKED_FAMILIES, load_base, quantization_config
from training.pretrained import load_config
from training.spec import ModelSpec, Quantization

SHAPE = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES = ["Llama", "Qwen2", "Qwen3", "Mistral", "Gemma", "Olmo2", "Phi3", "SmolLM3"]
LABELS = ["kitchen", "music", "sea"]
CPU = torch.device("cpu")


def write(folder: Path, family: str, head: str = "ForCausalLM", **changes: Any) -> Path:
    """Save a random model of the family."""
    config = getattr(transformers, f"{family}Config")(**{**SHAPE, **changes})
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}{head}")(config)
    model.save_pretrained(folder, max_shard_size="60KB")
    return folder


def streamed(folder: Path, quantization: Quantization = "none", dtype: torch.dtype = torch.float32) -> Any:
    spec = ModelSpec(model_name_or_path=str(folder), quantization=quantization)
    settings = quantization_config(quantization, dtype) if quantization != "none" else None
    torch.manual_seed(5)
    return stream_base(str(folder), "main", load_config(spec, str(folder), LABELS), dtype, CPU, HEAD, settings, None)


def whole(folder: Path, quantization: Quantization = "none", dtype: torch.dtype = torch.float32) -> Any:
    spec = ModelSpec(model_name_or_path=str(folder), quantization=quantization)
    options = {"quantization_config": quantization_config(quantization, dtype)} if quantization != "none" else {}
    torch.manual_seed(5)
    return transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, config=load_config(spec, str(folder), LABELS), dtype=dtype, **options
    )


def content(tensor: Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    """Return all of a tensor, comparable: packed codes read as floats may be NaN."""
    values = tensor.detach().contiguous()
    return values.dtype, values.shape, values.reshape(-1).view(torch.uint8).numpy().tobytes()


def everything(model: Any) -> dict[str, Any]:
    """Return the type and content of each parameter and buffer, with what bitsandbytes keeps beside them."""
    found: dict[str, Any] = {name: content(buffer) for name, buffer in model.named_buffers()}
    for name, parameter in model.named_parameters():
        found[name] = [type(parameter), *content(parameter)]
        if hasattr(parameter, "quant_state"):
            state = parameter.quant_state
            found[name] += [content(state.absmax), content(state.code), state.shape, state.dtype, state.blocksize]
            found[name] += [state.quant_type, state.nested, parameter.quant_storage, parameter.bnb_quantized]
            assert parameter.module.quant_state is state
        if hasattr(parameter, "SCB"):
            found[name] += [content(parameter.SCB), content(parameter.CB)]
    return found


def test_every_packed_family_is_among_these() -> None:
    assert {family.lower() for family in FAMILIES} == PACKED_FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_streamed_model_is_that_of_from_pretrained(family: str, quantization: Quantization, tmp_path: Path) -> None:
    folder = write(tmp_path, family)
    assert len(list(folder.glob("*.safetensors"))) > 1
    model, reference = streamed(folder, quantization), whole(folder, quantization)
    assert everything(model) == everything(reference)
    assert model.training is reference.training is False
    assert model.name_or_path == reference.name_or_path == str(folder)
    assert model.config.to_dict() == reference.config.to_dict()
    if quantization == "none":
        ids = torch.randint(3, 90, (2, 7))
        assert model(ids).logits.equal(reference(ids).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_in_every_precision(
    quantization: Quantization, stored: torch.dtype, dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = write(tmp_path, "Llama", tie_word_embeddings=True)
    for file in folder.glob("*.safetensors"):
        tensors = {name: tensor.to(stored) for name, tensor in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    model, reference = streamed(folder, quantization, dtype), whole(folder, quantization, dtype)
    assert everything(model) == everything(reference)
    for flag in ("is_loaded_in_4bit", "is_loaded_in_8bit", "is_quantized", "quantization_method"):
        assert getattr(model, flag, None) == getattr(reference, flag, None)


@pytest.mark.parametrize("head", ["Model", "ForSequenceClassification"])
def test_checkpoints_without_a_head_and_with_their_own(head: str, tmp_path: Path) -> None:
    folder = write(tmp_path, "Llama", head, num_labels=len(LABELS))
    assert everything(streamed(folder)) == everything(whole(folder))


def test_large_tensors_are_quantized_in_the_blocks_of_the_whole(tmp_path: Path) -> None:
    sizes = {"hidden_size": 1088, "intermediate_size": 1984, "num_attention_heads": 2}
    folder = write(tmp_path, "Llama", num_hidden_layers=1, **sizes)
    assert sizes["hidden_size"] * sizes["intermediate_size"] > 2 * QUANTIZED_AT_ONCE
    assert everything(streamed(folder, "nf4")) == everything(whole(folder, "nf4"))


def rewrite(folder: Path, change: str) -> None:
    """Make a checkpoint one that cannot be mapped name by name."""
    file = sorted(folder.glob("*.safetensors"))[-1]
    tensors = load_file(file)
    name = next(name for name in tensors if ".layers.1.mlp." in name)
    if change == "a weight lacks":
        del tensors[name]
    elif change == "a shape differs":
        tensors[name] = tensors[name][:-1].contiguous()
    elif change == "integers":
        tensors[name] = tensors[name].to(torch.int8)
    else:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **json.loads(change)}))
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("change", ["a weight lacks", "a shape differs"])
def test_broken_checkpoints_are_named(change: str, tmp_path: Path) -> None:
    folder = write(tmp_path, "Llama")
    rewrite(folder, change)
    assert streamed(folder) is None
    spec = ModelSpec(model_name_or_path=str(folder))
    with pytest.raises(UserError, match="lacks 1 of its weights" if "lacks" in change else "cannot be loaded"):
        load_base(spec, str(folder), load_config(spec, str(folder), LABELS), torch.float32, CPU)


@pytest.mark.parametrize(
    "change", ["integers", '{"auto_map": {"AutoModelForSequenceClassification": "own.Classifier"}}']
)
def test_what_does_not_map_is_left_to_from_pretrained(change: str, tmp_path: Path) -> None:
    folder = write(tmp_path, "Llama")
    rewrite(folder, change)
    assert streamed(folder) is None
    spec = ModelSpec(model_name_or_path=str(folder))
    torch.manual_seed(5)
    base = load_base(spec, str(folder), load_config(spec, str(folder), LABELS), torch.float32, CPU)
    assert everything(base) == everything(whole(folder))


def test_a_family_whose_keys_transformers_merges_is_left_to_from_pretrained(tmp_path: Path) -> None:
    folder = write(tmp_path, "Mixtral", num_local_experts=2)
    assert streamed(folder) is None
    spec = ModelSpec(model_name_or_path=str(folder))
    base = load_base(spec, str(folder), load_config(spec, str(folder), LABELS), torch.float32, CPU)
    assert not any(parameter.is_meta for parameter in base.parameters())


def test_a_partition_gets_all_but_the_head_the_largest_first(tmp_path: Path) -> None:
    folder = write(tmp_path, "Llama")
    spec = ModelSpec(model_name_or_path=str(folder))
    config = load_config(spec, str(folder), LABELS)
    sizes: list[int] = []
    model = stream_base(
        str(folder), "main", config, torch.float32, CPU, HEAD, None, lambda parameter: sizes.append(parameter.numel())
    )
    expected = [parameter.numel() for name, parameter in cast(Any, model).named_parameters() if HEAD not in name]
    assert sizes == sorted(expected, reverse=True)
