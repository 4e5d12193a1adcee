"""Reads a saved adapter back onto its base and compares what it computes with what the trained model did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from training.adapter import compare_logits, reloaded_logits
from training.batches import Lengths
from training.fused import plain_rotary
from training.loading import fill, open_base, read_stored
from training.material import Material
from training.model import HEAD, load_base, quantization_config
from training.pretrained import hub_options, load_config
from training.spec import JobSpec
from training.verification.layers import hold_one_layer

MOST_TEXTS = 8
"""Texts whose logits are compared."""


def verify_adapter(
    spec: JobSpec,
    material: Material,
    folder: Path,
    trained: Any,
    device: torch.device,
    token_budget: int,
    *,
    is_cut: bool,
) -> dict[str, Any]:
    """Reload the saved adapter onto a fresh base and compare logits; raise VerificationError on a difference.

    `trained` are the trained model's logits [texts, num_labels] of validation, of whose first texts as many are
    compared as `token_budget` tokens hold, padded. The base is read from its checkpoint anew, a layer at a time; where
    that cannot be it comes whole, and of a model that was trained in slices (`is_cut`) into host memory.
    """
    split = material.splits["validation"]
    num_texts, batch_size = texts_of_a_pass(split.lengths, token_budget)
    config = load_config(spec.model, material.checkpoint, material.corpus.label_names, material.corpus.problem_type)
    config.pad_token_id = material.tokenizer.pad_token_id
    base = base_in_layers(spec, material.checkpoint, config, material.dtype, device)
    if base is None:
        device = torch.device("cpu") if is_cut else device
        base = load_base(spec.model, material.checkpoint, config, material.dtype, device)
    with plain_rotary():
        reloaded = reloaded_logits(base, folder, split, num_texts, device, batch_size)
    return compare_logits(reloaded, np.asarray(trained[:num_texts]), material.dtype)


def texts_of_a_pass(lengths: Lengths, token_budget: int) -> tuple[int, int]:
    """Return how many of the first texts one padded forward pass of so many tokens holds, and of how many rows.

    Each pass reads the base anew, so the texts are as many as need one; the chunks of one text may need several.
    """
    most = lengths[:MOST_TEXTS]
    for num_texts in range(len(most), 0, -1):
        rows = [length for chunks in most[:num_texts] for length in chunks]
        if len(rows) * max(rows) <= token_budget or num_texts == 1:
            return num_texts, min(len(rows), max(1, token_budget // max(rows)))
    raise AssertionError("a validation split has texts")


def base_in_layers(spec: JobSpec, checkpoint: str, config: Any, dtype: torch.dtype, device: torch.device) -> Any | None:
    """Return the frozen base on `device`, which holds the weights of one layer at a time; None where it cannot."""
    model_spec = spec.model
    if model_spec.trust_remote_code or (spec.lora.use_dora and model_spec.quantization != "none"):
        return None  # DoRA on a quantized base reads its weights when it is made
    quantization = None
    if model_spec.quantization != "none":
        quantization = quantization_config(model_spec.quantization, dtype)
    revision = hub_options(model_spec)["revision"]
    base = open_base(checkpoint, revision, config, dtype, device, HEAD, quantization, device)
    if base is None:
        return None

    def bring(owner: nn.Module, attribute: str, name: str) -> None:
        fill(owner, attribute, read_stored(base.sources[name], None), dtype, device)

    hold_one_layer(base.model, base.sources, bring, device)
    return prepared(base.model)


def prepared(model: Any) -> Any:
    """Return a base as evaluation wants it."""
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False  # it would repack weights whose widths it cannot
    return model.requires_grad_(False).eval()
