"""The frozen base from safetensors, one tensor at a time: read, brought to its precision, cut to this rank's slice.

transformers' `from_pretrained` quantizes whole layers and leaves every rank with the whole model, which DeepSpeed cuts
afterwards. Here a rank never holds more than what it keeps and one tensor. What does not map name by name (remote
code, checkpoints quantized already, keys that transformers renames or merges, weights that are missing) is left to
`from_pretrained`.
"""

from __future__ import annotations

import copy
import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.quantizers import AutoHfQuantizer
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils.hub import get_checkpoint_shard_files

Partition = Callable[[nn.Parameter], None]
"""Leaves this rank's slice of a parameter, as ZeRO-3 keeps it."""

FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""The types weights come in, by safetensors' names."""

QUANTIZED_AT_ONCE = 1 << 18
"""Weights in one call of bitsandbytes, which takes 16 bytes of working memory for each on a CPU. A multiple of every
block size, so that the blocks are those of the whole tensor."""


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where a tensor of the checkpoint lies."""

    file: str
    key: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, kw_only=True)
class OpenBase:
    """A base of which no weight has been read, and where in the checkpoint each of them lies."""

    model: Any
    """The classifier; its stored weights are on the meta device, all else is there."""
    sources: dict[str, StoredTensor]
    """Parameter of the model -> its tensor in the checkpoint."""
    dtype: torch.dtype

    def owner(self, name: str) -> tuple[nn.Module, str]:
        """Return the module that holds a parameter, and the parameter's name in it."""
        module, _, attribute = name.rpartition(".")
        return self.model.get_submodule(module), attribute


def open_base(
    checkpoint: str,
    revision: str,
    config: Any,
    dtype: torch.dtype,
    device: torch.device,
    head: str,
    quantization: BitsAndBytesConfig | None,
    place: torch.device,
) -> OpenBase | None:
    """Return a base to be read from its checkpoint, its fresh head and its buffers on `place`.

    Layers are prepared to be quantized on `device`. Returns None for what cannot be read weight by weight.
    """
    if not _is_plain(checkpoint, config):
        return None
    files = _checkpoint_files(checkpoint, revision)
    model = skeleton(checkpoint, config, dtype, device, quantization)
    sources = _match(model, _stored_tensors(files), head) if files and _is_plain_model(model, head) else None
    if sources is None:
        return None
    _initialize_rest(model, set(sources), place)
    return OpenBase(model=model, sources=sources, dtype=dtype)


def stream_base(
    checkpoint: str,
    revision: str,
    config: Any,
    dtype: torch.dtype,
    device: torch.device,
    head: str,
    quantization: BitsAndBytesConfig | None,
    partition: Partition | None,
) -> Any | None:
    """Return what `AutoModelForSequenceClassification.from_pretrained` returns, with the same random head.

    With `partition` all weights but the head's are cut as they come. Returns None for what this cannot load.
    """
    # As from_pretrained has it: DeepSpeed or the caller moves what is not quantized.
    place = torch.device("cpu") if quantization is None else device
    base = open_base(checkpoint, revision, config, dtype, device, head, quantization, place)
    if base is None:
        return None
    model, sources = base.model, base.sources
    open_files: dict[str, Any] = {}
    for name in sorted(sources, key=lambda name: -model.get_parameter(name).numel()):
        # The largest first: what a conversion takes for a moment adds to the little that is there yet.
        source = sources[name]
        is_large = model.get_parameter(name).numel() > QUANTIZED_AT_ONCE
        plain = type(model.get_parameter(name)) is nn.Parameter  # not bitsandbytes'
        stays_mapped = plain and partition is None and FLOATS[source.dtype] == dtype
        tensor = read_stored(source, open_files if stays_mapped else None)
        parameter = fill(*base.owner(name), tensor, dtype, place)
        if partition is not None and not name.startswith(f"{head}."):
            partition(parameter)
        if is_large:
            _give_back()
    if partition is not None:
        for buffer in model.buffers():  # DeepSpeed takes a model with slices in it for one that is placed already
            buffer.data = buffer.data.to(device)
    return model.eval()


def _is_plain(checkpoint: str, config: Any) -> bool:
    """Whether a configuration asks for nothing beyond transformers' own classes and plain weights."""
    special = ("auto_map", "quantization_config", "transformers_weights", "fusion_config")
    extra = getattr(type(config), "extra_files", None)
    adapter = (Path(checkpoint) / "adapter_config.json").exists()
    return not adapter and not extra and not any(getattr(config, name, None) for name in special)


def _checkpoint_files(checkpoint: str, revision: str) -> list[str]:
    """Return the safetensors files of a folder or hub name, downloaded if need be; none where there are none."""
    options: dict[str, Any] = {"revision": revision, "_raise_exceptions_for_missing_entries": False}
    single = cached_file(checkpoint, SAFE_WEIGHTS_NAME, **options)
    if single is not None:
        return [single]
    index = cached_file(checkpoint, SAFE_WEIGHTS_INDEX_NAME, **options)
    return [] if index is None else list(get_checkpoint_shard_files(checkpoint, index, revision=revision)[0])


def _stored_tensors(files: list[str]) -> dict[str, StoredTensor]:
    """Return all tensors of the files by key."""
    found = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (a safetensors file is no mapping)
                stored = file.get_slice(key)
                shape = tuple(stored.get_shape())
                found[key] = StoredTensor(file=path, key=key, shape=shape, dtype=stored.get_dtype())
    return found


def skeleton(
    checkpoint: str, config: Any, dtype: torch.dtype, device: torch.device, quantization: BitsAndBytesConfig | None
) -> Any:
    """Return the classifier without a weight, its linear layers replaced where they will be quantized."""
    config = copy.deepcopy(config)
    config.name_or_path = checkpoint
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config, dtype=dtype)
    if quantization is not None:
        quantizer = AutoHfQuantizer.from_config(quantization, pre_quantized=False)
        quantizer.validate_environment(device_map={"": device})
        quantizer.preprocess_model(model, dtype=dtype, device_map={"": device})
        model.hf_quantizer = quantizer
        quantizer.postprocess_model(model)
    return model


def _is_plain_model(model: Any, head: str) -> bool:
    """Whether a checkpoint's tensors are the model's parameters, one by one and all in one precision."""
    return (
        hasattr(model, head)
        and model.state_dict().keys() == dict(model.named_parameters()).keys()
        and not model.all_tied_weights_keys
        and not model._keep_in_fp32_modules_strict
        and not get_model_conversion_mapping(model, add_legacy=False)
        and all(getattr(part, "source_cls", nn.Linear) is nn.Linear for part in model.modules())
    )


def _match(model: Any, stored: dict[str, StoredTensor], head: str) -> dict[str, StoredTensor] | None:
    """Return the stored tensor of each parameter but a fresh head's, or None where one lacks or does not fit.

    A causal model's checkpoint has the names of the classifier and an lm_head; a headless one's lack the prefix.
    """
    sources = {}
    for name, parameter in model.named_parameters():
        source = stored.get(name) or stored.get(name.removeprefix(f"{model.base_model_prefix}."))
        if source is None and name.startswith(f"{head}."):
            continue
        if source is None or source.shape != tuple(parameter.shape) or source.dtype not in FLOATS:
            return None
        sources[name] = source
    return sources


def _initialize_rest(model: Any, stored: set[str], place: torch.device) -> None:
    """Make what the checkpoint does not hold, as transformers initializes it: a fresh head, rotary frequencies."""
    for name, parameter in list(model.named_parameters()):
        if name in stored:
            parameter._is_hf_initialized = True  # transformers' mark of what it must leave alone
        else:
            _set(model, name, nn.Parameter(torch.empty_like(parameter, device=place)))
    for name, buffer in list(model.named_buffers()):
        owner, _, attribute = name.rpartition(".")
        model.get_submodule(owner)._buffers[attribute] = torch.empty_like(buffer, device=place)
    model.initialize_weights()


def read_stored(source: StoredTensor, open_files: dict[str, Any] | None) -> Tensor:
    """Return a tensor as a view of the mapped file.

    A weight that is used as it is stored stays such a view, as with from_pretrained: pages that all ranks share. For
    any other (no `open_files`) the file is mapped anew, so that the pages read go with the tensor.
    """
    if open_files is None:
        open_files = {}
    if source.file not in open_files:
        open_files[source.file] = safe_open(source.file, framework="pt")
    return open_files[source.file].get_tensor(source.key)  # type: ignore[no-any-return]


def fill(layer: nn.Module, name: str, tensor: Tensor, dtype: torch.dtype, place: torch.device) -> nn.Parameter:
    """Put a tensor of the checkpoint in its place in a layer, in the precision the layer holds it in."""
    from bitsandbytes.nn import Int8Params, Linear4bit, Linear8bitLt

    is_weight = name == "weight"
    if is_weight and isinstance(layer, Linear4bit):
        parameter = _quantize_4bit(layer, tensor, dtype, place)
    elif is_weight and isinstance(layer, Linear8bitLt):
        parameter = Int8Params(tensor.to(dtype), requires_grad=False, has_fp16_weights=False).to(place)
    else:
        parameter = nn.Parameter(tensor.to(place, dtype), requires_grad=False)
    setattr(layer, name, parameter)
    return parameter


def _quantize_4bit(layer: Any, tensor: Tensor, dtype: torch.dtype, place: torch.device) -> nn.Parameter:
    """Return a layer's weight in 4 bits, bit by bit what bitsandbytes makes of the whole tensor at once."""
    from bitsandbytes.functional import QuantState, quantize_4bit
    from bitsandbytes.nn import Params4bit

    empty = layer.weight
    kind = {"blocksize": empty.blocksize, "quant_type": empty.quant_type}
    values = tensor.reshape(-1)
    packed = torch.empty((values.numel() + 1) // 2, dtype=torch.uint8, device=place)
    absmax = torch.empty(-(-values.numel() // empty.blocksize), dtype=torch.float32, device=place)
    for start in range(0, values.numel(), QUANTIZED_AT_ONCE):
        part = values[start : start + QUANTIZED_AT_ONCE].to(place, dtype)
        codes, state = quantize_4bit(part, **kind)
        packed[start // 2 :][: codes.numel()] = codes.view(-1)
        absmax[start // empty.blocksize :][: state.absmax.numel()] = state.absmax
    layer.quant_state = QuantState(absmax=absmax, shape=tensor.shape, dtype=dtype, code=state.code, **kind)
    return Params4bit(  # type: ignore[no-any-return]
        packed.view(empty.quant_storage).unsqueeze(1),
        quant_state=layer.quant_state,
        compress_statistics=False,
        quant_storage=empty.quant_storage,
        module=layer,
        bnb_quantized=True,
        **kind,
    )


def _give_back() -> None:
    """Return the C library's spare memory: what each tensor took for a moment lies scattered between what is kept."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def _set(model: Any, name: str, parameter: nn.Parameter) -> None:
    """Replace the parameter of that name."""
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, parameter)
