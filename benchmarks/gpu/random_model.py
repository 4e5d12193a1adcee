"""A classifier with random weights, made on the card a layer at a time: no checkpoint, no whole bf16 model anywhere.

What Shoal's loader gives, by the same steps: skeleton without weights, each layer filled, quantized, and under ZeRO-3
partitioned at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from training.fused import fuse_layers
from training.model import HEAD, add_adapter, use_packed_attention
from training.packing import PackedClassifier
from training.spec import LoraSpec

STD = 0.02


def random_classifier(
    config: Any, lora: LoraSpec, quantization: str, dtype: torch.dtype, device: torch.device,
    place: Callable[[nn.Module], None],
) -> PackedClassifier:  # fmt: skip
    """Return base + adapter + head. `place` is given each part once its weights are there."""
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config, dtype=dtype)
    backbone = getattr(model, model.base_model_prefix)
    for part in (backbone.embed_tokens, *backbone.layers, backbone.norm):
        fill(part, quantization, dtype, device)
        place(part)
    # The head is copied by PEFT, so it must be whole; ZeRO-3 partitions it with the adapter.
    fill(model.get_submodule(HEAD), "none", dtype, device)
    with device:
        backbone.rotary_emb = type(backbone.rotary_emb)(config=config)
    model.requires_grad_(False)
    model.is_loaded_in_4bit = quantization == "nf4"  # PEFT asks for it
    peft_model = add_adapter(model, lora, dtype)
    use_packed_attention(peft_model)
    fuse_layers(peft_model)
    return PackedClassifier(peft_model, packed=True)


def fill(part: nn.Module, quantization: str, dtype: torch.dtype, device: torch.device) -> None:
    """Give every weight of a part random values on `device`; linear layers become nf4 ones where asked."""
    for name, module in list(part.named_modules()):
        if quantization == "nf4" and type(module) is nn.Linear:
            part.set_submodule(name, nf4_linear(module, dtype, device))
            continue
        for parameter_name, parameter in list(module.named_parameters(recurse=False)):
            value = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
            if value.dim() == 1:
                value.fill_(1.0)
            else:
                value.normal_(std=STD)
            setattr(module, parameter_name, nn.Parameter(value, requires_grad=False))


def nf4_linear(layer: nn.Linear, dtype: torch.dtype, device: torch.device) -> Any:
    """Return a random nf4 layer of the same shape, set up as training.model does it."""
    import bitsandbytes as bnb

    with torch.device("meta"):
        quantized = bnb.nn.Linear4bit(
            layer.in_features, layer.out_features, bias=False, compute_dtype=dtype, compress_statistics=False,
            quant_type="nf4", quant_storage=dtype,
        )  # fmt: skip
    values = torch.empty(layer.out_features, layer.in_features, dtype=dtype, device=device).normal_(std=STD)
    quantized.weight = bnb.nn.Params4bit(
        values, requires_grad=False, compress_statistics=False, quant_type="nf4", quant_storage=dtype, module=quantized
    ).to(device)
    quantized.support_avx512bf16_for_cpu = False  # as training.model: it would repack partitioned weights
    return quantized


def partitioner(config: dict[str, Any]) -> Callable[[nn.Module], None]:
    """Return what puts a part where ZeRO keeps it: under stage 3 partitioned, in host memory with offload_param."""
    if config["zero_optimization"]["stage"] != 3:
        return lambda _part: None

    def partition(part: nn.Module) -> None:
        import deepspeed

        deepspeed.zero.Init(module=part, config_dict_or_path=config)

    return partition
