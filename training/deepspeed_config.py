"""DeepSpeed's JSON: read, checked against what DeepSpeed knows, "auto" values filled in.

DeepSpeed accepts a misspelt section in silence and then trains without it; here an unknown key is an error.
"""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import Any

import torch

from training.errors import UserError, nearest
from training.parse import read_text
from training.spec import JobSpec, TrainingSpec

CHECKOUT = Path(__file__).resolve().parent.parent

AUTO = "auto"

OWN_SECTIONS = {
    "optimizer": "Shoal builds AdamW itself. Remove the section and set training.learning_rate and weight_decay.",
    "scheduler": "Shoal builds the schedule itself. Remove the section and set training.lr_scheduler_type.",
    "amp": "Mixed precision is bf16 or fp16 here. Remove the section and set model.dtype.",
    "dataloader_drop_last": "Every sample is used once an epoch. Remove the key.",
    "managed_gradient_accumulation": "Shoal sets the accumulation boundary itself. Remove the key.",
}
"""Keys DeepSpeed knows and Shoal does not take, with what to do instead."""
FP16_KEYS = {
    "enabled", "loss_scale", "initial_scale_power", "loss_scale_window", "hysteresis", "min_loss_scale",
    "consecutive_hysteresis", "auto_cast",
}  # fmt: skip
"""Of the section fp16. Its last key is taken where it is off, its loss_scale where it is 0, the dynamic one."""
OLD_NAMES = {"cpu_offload": "offload_optimizer", "cpu_offload_param": "offload_param"}
"""ZeRO's keys of earlier DeepSpeeds -> the sections that have taken their place."""

KNOWN_SECTIONS = {
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping", "bf16",
    "fp16",
    "zero_optimization", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "communication_data_type",
    "prescale_gradients", "gradient_predivide_factor", "steps_per_print", "wall_clock_breakdown", "memory_breakdown",
    "activation_checkpointing", "comms_logger", "flops_profiler", "data_types", "torch_autocast", "aio", "compile",
    "log_level", "disable_python_gc",
}  # fmt: skip
"""Top-level keys passed on (https://www.deepspeed.ai/docs/config-json/)."""


def read_deepspeed_config(value: str | dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the configuration's content and its name for messages.

    A relative file is looked for in the current directory, then in Shoal's checkout.
    """
    if isinstance(value, dict):
        content, source = value, "deepspeed"
    else:
        path = Path(value).expanduser()
        if not path.exists() and (CHECKOUT / path).exists():
            path = CHECKOUT / path
        source = str(value)
        text = read_text(path, "DeepSpeed config")
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{source} line {error.lineno}: {error.msg}. Mend the JSON there.") from None
        if not isinstance(content, dict):
            raise UserError(f"{source} holds no settings. See ds_configs/ for examples.")
    check_deepspeed_config(content, source)
    return content, source


def check_deepspeed_config(content: dict[str, Any], source: str) -> None:
    """Refuse keys DeepSpeed does not know, keys that are Shoal's, and ZeRO stages that do not exist."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import (
        DeepSpeedZeroOffloadOptimizerConfig,
        DeepSpeedZeroOffloadParamConfig,
    )

    for key in content:
        if key in OWN_SECTIONS:
            raise UserError(f"{source}: key {key!r}: {OWN_SECTIONS[key]}")
    _refuse_unknown(content, KNOWN_SECTIONS, source, "")
    _refuse_unknown(content.get("bf16", {}), {"enabled", "check_grad_overflow"}, source, "bf16.")
    _check_fp16(content.get("fp16", {}), source)
    zero = content.get("zero_optimization", {})
    _refuse_unknown(zero, _names(DeepSpeedZeroConfig), source, "zero_optimization.")
    sections = {
        "offload_optimizer": DeepSpeedZeroOffloadOptimizerConfig,
        "offload_param": DeepSpeedZeroOffloadParamConfig,
    }
    for name, cls in sections.items():
        section = zero.get(name) or {}
        _refuse_unknown(section, _names(cls), source, f"zero_optimization.{name}.")
        if section.get("device", "none") not in ("none", "cpu"):
            raise UserError(
                f"{source}: zero_optimization.{name}.device is {section['device']!r}. Use 'cpu' or 'none'; "
                "a LoRA job's optimizer state is too small for NVMe to help."
            )
    stage = zero.get("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise UserError(f"{source}: zero_optimization.stage is {stage!r}. Use 0, 1, 2 or 3.")
    if _offloads(zero, "offload_param") and stage != 3:
        raise UserError(f"{source}: offload_param needs ZeRO stage 3 and the stage is {stage}. Set stage: 3.")
    if _offloads(zero, "offload_optimizer") and stage == 0:
        raise UserError(f"{source}: offload_optimizer needs ZeRO stage 1, 2 or 3 and the stage is 0. Set stage: 2.")
    _refuse_old_and_wrong(zero, source)


def _refuse_old_and_wrong(zero: dict[str, Any], source: str) -> None:
    """Raise for an old name of a ZeRO key, and for a value that DeepSpeed would refuse when it starts."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    for old, new in OLD_NAMES.items():
        if zero.get(old):
            raise UserError(
                f'{source}: zero_optimization.{old} is an old name. Write "{new}": {{"device": "cpu"}} in its place.'
            )
    try:
        DeepSpeedZeroConfig(**{key: value for key, value in zero.items() if value != AUTO})
    except ValidationError as error:
        found = error.errors()[0]
        key = ".".join(map(str, ("zero_optimization", *found["loc"])))
        raise UserError(f"{source}: {key} is {found['input']!r}. DeepSpeed says: {found['msg']}.") from None


def _check_fp16(section: Any, source: str) -> None:
    """Refuse a section fp16 that asks for another loss scaling than Shoal's: dynamic, of a model that is in fp16."""
    from deepspeed.runtime.precision_config import DeepSpeedFP16Config
    from pydantic import ValidationError

    _refuse_unknown(section, FP16_KEYS, source, "fp16.")
    for key, needed, why in (
        ("loss_scale", 0, "Set 0: a fixed scale cannot give way where gradients overflow"),
        ("auto_cast", False, "Remove it: the model itself is in fp16"),
    ):
        if section.get(key, needed) != needed:
            raise UserError(f"{source}: fp16.{key} is {section[key]!r}. {why}.")
    try:
        DeepSpeedFP16Config(**{key: value for key, value in section.items() if value != AUTO})
    except ValidationError as error:
        found = error.errors()[0]
        raise UserError(
            f"{source}: fp16.{found['loc'][0]} is {found['input']!r}. DeepSpeed says: {found['msg']}."
        ) from None


def _names(section: Any) -> set[str]:
    """Return the keys that one of DeepSpeed's sections takes: its fields, and the names its documentation has."""
    return {name for key, field in section.model_fields.items() for name in (key, field.alias) if name}


def _refuse_unknown(section: Any, known: set[str], source: str, prefix: str) -> None:
    """Raise for a section that is no mapping or holds a key not in `known`."""
    if not isinstance(section, dict):
        raise UserError(f"{source}: {prefix.rstrip('.')} is {section!r}. It must be a mapping.")
    for key in section:
        if key not in known:
            raise UserError(f"{source}: unknown key {prefix + key!r}{nearest(key, known) or '. Remove it.'}")


def _offloads(zero: dict[str, Any], name: str) -> bool:
    """Whether a ZeRO section moves that part to the CPU."""
    return bool((zero.get(name) or {}).get("device", "none") == "cpu")


def zero_stage(content: dict[str, Any]) -> int:
    """Return the ZeRO stage of a checked configuration."""
    return int(content.get("zero_optimization", {}).get("stage", 0))


def offloads_optimizer(content: dict[str, Any]) -> bool:
    """Whether optimizer states live in host memory."""
    return _offloads(content.get("zero_optimization", {}), "offload_optimizer")


def offloads_parameters(content: dict[str, Any]) -> bool:
    """Whether the model's weights live in host memory between uses."""
    return _offloads(content.get("zero_optimization", {}), "offload_param")


def fill_auto(
    content: dict[str, Any],
    source: str,
    training: TrainingSpec,
    *,
    world_size: int,
    dtype: torch.dtype,
    cuda: bool,
) -> dict[str, Any]:
    """Return a configuration with every "auto" replaced and nothing that contradicts the job."""
    micro, accumulation = training.per_device_train_batch_size, training.gradient_accumulation_steps
    wanted = {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": micro * accumulation * world_size,
        "gradient_clipping": training.max_grad_norm,
    }
    filled: dict[str, Any] = json.loads(json.dumps(content))
    for key, value in wanted.items():
        if filled.get(key, AUTO) not in (AUTO, value):
            raise UserError(f'{source}: {key} is {filled[key]} and the job says {value}. Write "auto" there.')
        filled[key] = value
    bf16, fp16 = dtype == torch.bfloat16, dtype == torch.float16
    for name, is_on in (("bf16", bf16), ("fp16", fp16)):
        if filled.get(name, {}).get("enabled", AUTO) not in (AUTO, is_on):
            raise UserError(f'{source}: {name}.enabled contradicts the job\'s dtype. Write "auto" there.')
    # A step with infinite gradients is not left out in silence: the loss that follows stops the job with a message.
    filled["bf16"] = {"check_grad_overflow": False, **filled.get("bf16", {}), "enabled": bf16}
    section = filled.pop("fp16", {})
    if fp16:
        # A step that overflows is tried again (training.loss_scale): patience with the scale would only repeat it.
        filled["fp16"] = {"hysteresis": 1, **{k: v for k, v in section.items() if v != AUTO}, "enabled": True}
    # DeepSpeed would refuse torch's AdamW under offload, which is the fallback where CPUAdam does not compile.
    filled.setdefault("zero_force_ds_cpu_optimizer", False)
    filled.setdefault("steps_per_print", 10**9)
    zero = filled.setdefault("zero_optimization", {})
    if bf16 or fp16:
        # Many micro-batches, each far smaller than their sum, would be rounded to 8 bits (fp16: 11) as they add up.
        filled.setdefault("data_types", {}).setdefault("grad_accum_dtype", "fp32")
    if (bf16 or fp16) and zero.get("stage", 0) == 0:
        # Without ZeRO DeepSpeed trains the bf16 weights themselves: updates below 1/256 of a weight are lost. And its
        # fp16 keeps weights apart from the checkpoint's. Stage 1 has fp32 copies and all weights on every rank, too.
        zero["stage"] = 1
    if zero.get("reduce_bucket_size") == AUTO:
        del zero["reduce_bucket_size"]  # filled by fit_buckets, once the trained values can be counted
    zero.update({key: _auto_zero_value(key) for key, value in zero.items() if value == AUTO})
    for name in ("offload_optimizer", "offload_param"):
        if _offloads(zero, name):
            zero[name].setdefault("pin_memory", cuda)
    return filled


def refuse_impossible(spec: JobSpec, content: dict[str, Any]) -> None:
    """Raise UserError for what the libraries cannot do together."""
    if zero_stage(content) == 3 and spec.lora.use_dora and spec.model.quantization != "none":
        raise UserError(
            f"lora.use_dora on an {spec.model.quantization} base does not run under ZeRO stage 3: PEFT swaps quantized "
            "weights that DeepSpeed has partitioned. Use stage 2, quantization: none, or use_dora: false."
        )


def fit_buckets(content: dict[str, Any], num_trained: int) -> dict[str, Any]:
    """Return the configuration with gradient buckets no larger than the gradients of `num_trained` values.

    DeepSpeed's default of 500 million elements is allocated in full, a GiB of bf16 on a card that trains a few million.
    """
    zero = {"reduce_bucket_size": num_trained, **content["zero_optimization"]}
    return {**content, "zero_optimization": zero}


def _auto_zero_value(key: str) -> Any:
    """Return DeepSpeed's own default for a ZeRO key written as "auto"."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    fields = DeepSpeedZeroConfig.model_fields
    field = next(field for name, field in fields.items() if key in (name, field.alias))
    return field.get_default(call_default_factory=True)


def blames_settings(error: Exception) -> bool:
    """Whether DeepSpeed has raised an error about its configuration, and not about what it met while it worked.

    By where it comes from: its modules of settings, or the engine's functions that check them.
    """
    of_deepspeed = [
        (frame.f_globals.get("__name__", ""), frame.f_code.co_name)
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__", "")).startswith("deepspeed.")
    ]
    if not of_deepspeed:
        return False
    module, function = of_deepspeed[-1]
    return "config" in module.rpartition(".")[2] or function.endswith(("_sanity_check", "_config"))
