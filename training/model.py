"""The classifier: tokenizer, base model in its precision, adapter, head.

Any checkpoint that transformers' AutoModelForSequenceClassification knows and that pools the last token (LLaMA, Qwen,
Mistral, SmolLM, TinyLlama, ...).
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from training.errors import UserError
from training.loading import Partition, how_to_convert, stream_base
from training.packing import PACKED_ATTENTION
from training.spec import SINGLE_LABEL, TINY_LLAMA, LoraSpec, ModelSpec, ProblemType
from training.tiny_llama import ensure_tiny_llama

HEAD = "score"
"""Name transformers gives the classification head of decoder-only models."""
LoadBase = Callable[[ModelSpec, str, Any, torch.dtype, torch.device, Partition | None], Any]
"""`load_base`, or what takes its place where memory is forecast."""
PACKED_FAMILIES = {"gemma", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3"}
"""Model types whose packed logits and gradients a test holds equal to padded ones. Others are padded: some add sinks,
caps or a state of their own to attention, which packing would leave out or mix up."""


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the torch type of `ModelSpec.dtype`; auto is bf16 where the hardware multiplies it natively."""
    if dtype == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            cpu_info = Path("/proc/cpuinfo")
            flags = cpu_info.read_text() if platform.system() == "Linux" and cpu_info.exists() else ""
            fast = "avx512_bf16" in flags or "amx_bf16" in flags
        dtype = "bf16" if fast else "fp32"
    return torch.bfloat16 if dtype == "bf16" else torch.float32


def resolve_checkpoint(spec: ModelSpec, report: Callable[[str], None], *, weights: bool = True) -> str:
    """Return the folder or hub name to load; builds the built-in model where that is asked for.

    A folder must hold `weights` but where its configuration is enough.
    """
    name = spec.model_name_or_path
    if name == TINY_LLAMA:
        return str(ensure_tiny_llama(report))
    if name.startswith("builtin:"):
        raise UserError(f"model.model_name_or_path is {name!r}. The only built-in model is {TINY_LLAMA!r}.")
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(
                f"model folder {folder} holds no config.json. Give the folder of a Hugging Face checkpoint."
            )
        if weights and not any(folder.glob("*.safetensors")):
            mend = "Give the folder of a whole checkpoint."
            if any(folder.glob("*.bin")):
                mend = f"Pickled weights can run code and are not loaded. Convert them: {how_to_convert(str(folder))}"
            raise UserError(f"model folder {folder} holds no .safetensors file. {mend}")
        return str(folder)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"model folder {name} does not exist. Give an existing folder or a hub name (owner/model).")
    return name


def hub_options(spec: ModelSpec) -> dict[str, Any]:
    """Return what every `from_pretrained` call gets."""
    return {"revision": spec.model_revision or "main", "trust_remote_code": spec.trust_remote_code}


def load_config(
    spec: ModelSpec, checkpoint: str, label_names: list[str], problem_type: ProblemType = SINGLE_LABEL
) -> Any:
    """Return the checkpoint's configuration as a classifier of these labels."""
    try:
        config = AutoConfig.from_pretrained(checkpoint, **hub_options(spec))
    except (OSError, ValueError) as error:
        mend = "Check the name, the network, and `hf auth login` for gated models, or give a local folder."
        raise UserError(f"model {spec.model_name_or_path!r} cannot be read: {_reason(error, mend)}") from None
    config.num_labels = len(label_names)
    config.id2label = dict(enumerate(label_names))
    config.label2id = {name: index for index, name in enumerate(label_names)}
    config.problem_type = problem_type
    return config


def _reason(error: Exception, mend: str) -> str:
    """Return what transformers says of a checkpoint, and the mend, which is another for a checkpoint's own code."""
    if "trust_remote_code" in str(error):
        mend = "It may do anything: read that code, then set model.trust_remote_code: true."
    return f"{str(error).strip().splitlines()[0]} {mend}"


def load_tokenizer(spec: ModelSpec, checkpoint: str) -> Any:
    """Return the checkpoint's tokenizer, padding right with a token that no text ends in.

    The pad token matters to whoever uses the adapter later: transformers reads the right-most token that is not
    `pad_token_id`, so a pad token equal to eos would pool the wrong position of a text that ends in eos.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, **hub_options(spec))
    except (OSError, ValueError) as error:
        mend = "Put the tokenizer's files (tokenizer.json, tokenizer_config.json) beside the model."
        raise UserError(f"tokenizer of {spec.model_name_or_path!r} cannot be read: {_reason(error, mend)}") from None
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        tokenizer.pad_token = _spare_token(tokenizer)
    return tokenizer


def _spare_token(tokenizer: Any) -> str:
    """Return a token of the vocabulary that ordinary text does not produce."""
    vocabulary = tokenizer.get_vocab()
    named = ["<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<|pad|>", "<|endoftext|>", "<|reserved_special_token_0|>"]
    taken = {tokenizer.eos_token, tokenizer.bos_token}
    for token in [*named, tokenizer.unk_token]:
        if token is not None and token in vocabulary and token not in taken:
            return str(token)
    raise UserError(
        f"the tokenizer in {tokenizer.name_or_path} has no token to pad with beside eos and bos. "
        "Add one to tokenizer_config.json (pad_token), e.g. a reserved special token of its vocabulary."
    )


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
    keep_4_bit_layout(model)
    model.requires_grad_(False)
    return model


def keep_4_bit_layout(model: Any) -> None:
    """Keep 4-bit layers as they are.

    On CPUs with bf16 instructions bitsandbytes repacks them in place the first time they are evaluated, which fails on
    widths that are no multiple of 32 and would change weights ZeRO-3 has partitioned.
    """
    for part in model.modules():
        if hasattr(part, "support_avx512bf16_for_cpu"):
            part.support_avx512bf16_for_cpu = False


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
