"""The classifier: base model in its precision, adapter, head.

Any checkpoint that transformers' AutoModelForSequenceClassification knows and that pools the last token (LLaMA, Qwen,
Mistral, SmolLM, TinyLlama, ...).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors import SafetensorError
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from training.errors import UserError
from training.linear_4bit import adapt_4_bit_layers
from training.loading import Partition, stream_base
from training.packing import PACKED_ATTENTION
from training.pretrained import how_to_convert, hub_options
from training.spec import LoraSpec, ModelSpec

HEAD = "score"
"""Name transformers gives the classification head of decoder-only models."""
LoadBase = Callable[[ModelSpec, str, Any, torch.dtype, torch.device, Partition | None], Any]
"""`load_base`, or what takes its place where memory is forecast."""
PACKED_FAMILIES = {"gemma", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3"}
"""Model types whose packed logits and gradients a test holds equal to padded ones. Others are padded: some add sinks,
caps or a state of their own to attention, which packing would leave out or mix up."""


def can_pack(config: Any, max_seq_length: int) -> bool:
    """Whether packed attention is this model's: plain causal attention, no window narrower than the texts."""
    window = getattr(config, "sliding_window", None)
    narrow = window is not None and getattr(config, "use_sliding_window", True) and window < max_seq_length
    return config.model_type in PACKED_FAMILIES and not narrow


def load_base(
    spec: ModelSpec,
    checkpoint: str,
    config: Any,
    dtype: torch.dtype,
    device: torch.device,
    partition: Partition | None = None,
) -> Any:
    """Return the frozen base with a fresh head, quantized as asked, on `device`; cut by ZeRO-3's `partition`, if any.

    Where the checkpoint cannot be streamed the base comes whole: DeepSpeed partitions it later.
    """
    quantization = quantization_config(spec.quantization, dtype) if spec.quantization != "none" else None
    if spec.quantization == "int8":
        partition = None  # bitsandbytes holds a second reference to its int8 weights
    missing: list[str] = []
    try:
        model = None
        if not spec.trust_remote_code:
            revision = hub_options(spec)["revision"]
            model = stream_base(checkpoint, revision, config, dtype, device, HEAD, quantization, partition)
        if model is None:
            model, missing = _load_whole(spec, checkpoint, config, dtype, device, quantization)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        mend = "Check that config.json and the .safetensors files are whole and belong together."
        if isinstance(error, OSError) and "safetensors" in str(error):  # transformers found no such file
            mend += (
                " Pickled weights (.bin) are not loaded: of a hub model, run "
                f"`hf download {checkpoint} --local-dir FOLDER`, convert them, and give that folder: "
                f"{how_to_convert('FOLDER')}"
            )
        first_line = str(error).splitlines()[0]
        raise UserError(
            f"model {spec.model_name_or_path!r} cannot be loaded as a classifier: {first_line} {mend}"
        ) from None
    require_head(model, spec, config)
    if missing:
        raise UserError(
            f"model {spec.model_name_or_path!r} lacks {len(missing)} of its weights ({', '.join(missing[:3])}, ...): "
            "they would be random. Check that config.json and the .safetensors files belong together."
        )
    adapt_4_bit_layers(model)
    model.requires_grad_(False)
    return model


def _load_whole(
    spec: ModelSpec,
    checkpoint: str,
    config: Any,
    dtype: torch.dtype,
    device: torch.device,
    quantization: BitsAndBytesConfig | None,
) -> tuple[Any, list[str]]:
    """Return transformers' own load, and the names of weights the checkpoint lacks apart from the head's."""
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, **hub_options(spec)}
    if quantization is not None:
        options |= {"quantization_config": quantization, "device_map": {"": device}}
    model, loading = AutoModelForSequenceClassification.from_pretrained(
        checkpoint, config=config, output_loading_info=True, **options
    )
    return model, sorted(name for name in loading["missing_keys"] if not name.startswith(f"{HEAD}."))


def require_head(model: Any, spec: ModelSpec, config: Any) -> None:
    """Raise UserError for a model whose classification head is not that of decoder-only models."""
    if not hasattr(model, HEAD):
        raise UserError(
            f"model {spec.model_name_or_path!r} is a {config.model_type}, which has no {HEAD!r} head. "
            "Use a decoder-only model (LLaMA, Qwen, Mistral, SmolLM, ...)."
        )


def quantization_config(quantization: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    """Return bitsandbytes' settings; the storage type equals the compute type so that ZeRO-3 can partition it."""
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=[HEAD])
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype,
        llm_int8_skip_modules=[HEAD],
    )


def add_adapter(model: Any, spec: LoraSpec, dtype: torch.dtype) -> PeftModel:
    """Put LoRA on the base; adapter and head train in `dtype`, their fp32 copies live in the optimizer."""
    names = [name for name, _ in model.named_modules()]
    for target in spec.target_modules if isinstance(spec.target_modules, list) else []:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise UserError(f"lora.target_modules names {target!r}, {_linear_layers(model)}")
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=spec.r,
        lora_alpha=spec.lora_alpha,
        lora_dropout=spec.lora_dropout,
        target_modules=spec.target_modules,
        use_rslora=spec.use_rslora,
        use_dora=spec.use_dora,
        modules_to_save=[HEAD],
    )
    try:
        peft_model = get_peft_model(model, config, autocast_adapter_dtype=False)
    except ValueError:
        raise UserError(f"lora.target_modules is {spec.target_modules!r}, {_linear_layers(model)}") from None
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    return peft_model


def _linear_layers(model: Any) -> str:
    """Return the end of a message about layers that are not there."""
    parts = {name.split(".")[-1] for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
    return f"and this model has no such layer. Its linear layers are {', '.join(sorted(parts - {HEAD}))}."


def build_classifier(
    model_spec: ModelSpec,
    lora: LoraSpec,
    checkpoint: str,
    config: Any,
    dtype: torch.dtype,
    device: torch.device,
    partition: Partition | None = None,
    load: LoadBase = load_base,
) -> PeftModel:
    """Return base + adapter + head. Same seed, same first weights, whatever the number of ranks."""
    if lora.use_dora:
        partition = None  # DoRA's magnitudes are computed from whole weights
    return add_adapter(load(model_spec, checkpoint, config, dtype, device, partition), lora, dtype)


def use_packed_attention(model: Any) -> None:
    """Switch a loaded model to packed attention."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    inner.set_attn_implementation(PACKED_ATTENTION)


def recompute_activations(model: Any, share: float) -> None:
    """Have backward recompute the activations of this share (0 to 1) of the layers, the first ones, not keep them."""
    if not share:
        return
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    layers = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
    for layer in layers[math.ceil(share * len(layers)) :]:
        layer.gradient_checkpointing = False
