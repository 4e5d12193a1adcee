"""A pretrained checkpoint without its weights: where it lies, its configuration, its tokenizer, its precision.

Imports nothing of PEFT and DeepSpeed, which take seconds: a forecast that is known already needs this alone.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import SAFE_WEIGHTS_NAME

from training.errors import UserError
from training.precision import auto_precision
from training.spec import SINGLE_LABEL, TINY_LLAMA, ModelSpec, ProblemType
from training.tiny_llama import ensure_tiny_llama

TORCH_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""`ModelSpec.dtype` -> torch's type."""


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the torch type of `ModelSpec.dtype`; auto is the narrow one that the hardware multiplies natively."""
    if dtype == "auto":
        dtype = auto_precision(torch.cuda.get_device_capability(device) if device.type == "cuda" else None)
    return TORCH_DTYPES[dtype]


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


def how_to_convert(folder: str) -> str:
    """Return the command that writes a checkpoint's pickled weights anew as safetensors, without running the pickle."""
    code = (
        "import glob, torch; from safetensors.torch import save_file; "
        f"files = glob.glob(glob.escape({folder!r}) + '/pytorch_model*.bin'); "
        "weights = {k: v.clone() for f in files for k, v in torch.load(f, weights_only=True).items()}; "
        f"save_file(weights, {folder + '/' + SAFE_WEIGHTS_NAME!r}, {{'format': 'pt'}})"
    )
    return f"python -c {shlex.quote(code)}"


def hub_options(spec: ModelSpec) -> dict[str, Any]:
    """Return what every `from_pretrained` call gets."""
    return {"revision": spec.model_revision or "main", "trust_remote_code": spec.trust_remote_code}


def load_config(
    spec: ModelSpec, checkpoint: str, label_names: list[str], problem_type: ProblemType = SINGLE_LABEL
) -> Any:
    """Return the checkpoint's configuration as a classifier of these labels."""
    try:
        config = AutoConfig.from_pretrained(checkpoint, **hub_options(spec))
    except (OSError, ValueError, StrictDataclassError) as error:
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
    lines = [line.strip() for line in str(error).strip().splitlines()]
    if isinstance(error, StrictDataclassError):  # a config.json whose values do not go together: its cause comes last
        return f"{lines[-1]} Mend its config.json."
    return f"{lines[0]} {mend}"


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
