"""The flags people know from Hugging Face's run_classification.py, TrainingArguments and TRL, as a JobSpec.

    --job job.yaml [--set lora.r=8 ...]         a job file, with single values changed
    --model_name_or_path X --train_file Y ...   or everything by flags
Both may be mixed: flags win over `--set`, which wins over the file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from training.errors import UserError, nearest
from training.parse import NestedDict, build, deep_merge, load_job, parse_assignment, set_key
from training.spec import JobSpec

TRUE, FALSE = ("true", "1", "yes"), ("false", "0", "no")

MODEL = ("model_name_or_path", "model_revision")
DATA = (
    "dataset_name", "dataset_config_name", "train_file", "validation_file", "test_file", "text_column_delimiter",
    "label_column_name", "label_delimiter", "max_seq_length", "long_text", "chunk_overlap", "max_chunks",
    "max_train_samples", "validation_fraction",
)  # fmt: skip
TRAINING = (
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "learning_rate",
    "num_train_epochs", "max_steps", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm",
    "metric_for_best_model", "early_stopping_patience", "eval_steps", "save_steps", "save_total_limit",
    "class_weights", "focal_gamma",
)  # fmt: skip
TOP = ("seed", "output_dir", "resume_from_checkpoint", "deepspeed")

FLAG_TO_KEY = {
    **{name: f"model.{name}" for name in MODEL},
    **{name: f"data.{name}" for name in DATA},
    **{name: f"training.{name}" for name in TRAINING},
    **{name: name for name in TOP},
    "max_eval_samples": "data.max_validation_samples",
    "max_predict_samples": "data.max_test_samples",
    "lora_r": "lora.r",
    "lora_alpha": "lora.lora_alpha",
    "lora_dropout": "lora.lora_dropout",
}
"""Flags that take one value."""

LIST_FLAGS = {
    "text_column_names": "data.text_column_names",
    "lora_target_modules": "lora.target_modules",
    "remove": "data.remove",
    "report_to": "training.report_to",
}
"""Flags that take one or more values."""

SWITCHES: dict[str, tuple[str, Any, Any]] = {
    "bf16": ("model.dtype", "bf16", "fp32"),
    "fp16": ("model.dtype", "fp16", "fp32"),
    "load_in_4bit": ("model.quantization", "nf4", "none"),
    "load_in_8bit": ("model.quantization", "int8", "none"),
    "gradient_checkpointing": ("training.gradient_checkpointing", True, False),
    "trust_remote_code": ("model.trust_remote_code", True, False),
    "use_rslora": ("lora.use_rslora", True, False),
    "use_dora": ("lora.use_dora", True, False),
}
"""Flags alone or with true/false: key, value when true, value when false."""

OLD_FLAGS = {
    "warmup_ratio": ("warmup_steps", "transformers 5 dropped it; a --warmup_steps below 1 is the share of all steps"),
    "max_length": ("max_seq_length", "its name here is --max_seq_length"),
    "text_column_name": ("text_column_names", "its name here is --text_column_names"),
    "model_name": ("model_name_or_path", "its name here is --model_name_or_path"),
    "max_test_samples": ("max_predict_samples", "its name here is --max_predict_samples"),
    "max_val_samples": ("max_eval_samples", "its name here is --max_eval_samples"),
}
"""Old name -> (flag it means, why)."""

NEEDLESS_FLAGS = {
    "group_by_length": "batches are packed without padding, so there is nothing to group",
    "overwrite_output_dir": "an unfinished job goes on in its folder, and a finished one is never overwritten",
    "do_train": "a job always trains",
    "do_eval": "a job always evaluates on validation",
    "do_predict": "a job always evaluates test, once, at the end",
    "use_peft": "a job always trains an adapter",
    "pad_to_max_length": "batches are packed without padding",
    "evaluation_strategy": "validation is evaluated after each epoch, and every --eval_steps",
    "eval_strategy": "validation is evaluated after each epoch, and every --eval_steps",
    "save_strategy": "a checkpoint is written after each epoch, and every --save_steps",
    "load_best_model_at_end": "the best adapter is always kept",
    "logging_steps": "each step is logged",
}
"""Flags of the peers that change nothing here, with the reason said."""


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are UserErrors."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"flags: {message}. See --help.")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of training/main.py."""
    parser = _Parser(
        prog="training/main.py",
        description="Train one classifier: deepspeed [--num_gpus N] training/main.py ...",
        epilog="Each flag is documented at its key in training/spec.py.",
        allow_abbrev=False,
    )
    parser.add_argument("--job", type=Path, metavar="FILE", help="job file (YAML)")
    parser.add_argument(
        "--set", action="append", default=[], dest="assignments", metavar="KEY=VALUE", help="e.g. lora.r=8"
    )
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    for name, key in FLAG_TO_KEY.items():
        parser.add_argument(f"--{name}", metavar="VALUE", help=key)
    for name, key in LIST_FLAGS.items():
        parser.add_argument(f"--{name}", nargs="+", metavar="VALUE", help=key)
    for name, (key, on, off) in SWITCHES.items():
        parser.add_argument(f"--{name}", nargs="?", const="true", metavar="BOOL", help=f"{key}: {on} or {off}")
    for name in (*OLD_FLAGS, *NEEDLESS_FLAGS):
        parser.add_argument(f"--{name}", nargs="*", help=argparse.SUPPRESS)
    return parser


def parse_flags(arguments: Sequence[str], warn: Any = None) -> JobSpec:
    """Return the job of a command line; notes on old and needless flags go to `warn` (default: standard error)."""
    warn = warn or (lambda message: print(f"shoal: {message}", file=sys.stderr))
    parser = build_parser()
    known, unknown = parser.parse_known_args(list(arguments))
    if unknown:
        flag = unknown[0].split("=")[0]
        options = [option for action in parser._actions for option in action.option_strings]
        raise UserError(f"flags: unknown flag {flag}{nearest(flag, options) or '. See --help.'}")
    given = {name: value for name, value in vars(known).items() if value is not None}
    overrides = flag_values(given, warn)
    if known.job is not None:
        return load_job(known.job, known.assignments, overrides)
    content: NestedDict = {}
    for assignment in known.assignments:
        content = set_key(content, *parse_assignment(assignment))
    content = deep_merge(content, overrides)
    if "data" not in content:
        raise UserError("no data given. Use --job FILE, --dataset_name NAME or --train_file FILE.")
    return build(JobSpec, content, "flags")


def flag_values(given: dict[str, Any], warn: Any) -> NestedDict:
    """Turn the flags that were given into nested settings."""
    for name, reason in NEEDLESS_FLAGS.items():
        if name in given:
            warn(f"--{name} is not needed: {reason}.")
    values: dict[str, Any] = dict(given)
    for old, (new, reason) in OLD_FLAGS.items():
        if old in given and new in given:
            warn(f"--{old} is left aside, since --{new} is given too.")
        elif old in given:
            warn(f"--{old} is taken as --{new} {' '.join(given[old])}: {reason}.")
            values.setdefault(new, given[old] if new in LIST_FLAGS else " ".join(given[old]))
    switches = {name: _truth(name, values[name]) for name in SWITCHES if name in values}
    if switches.get("load_in_4bit") and switches.get("load_in_8bit"):
        raise UserError("flags: --load_in_4bit and --load_in_8bit exclude each other. Give one.")
    if switches.get("bf16") and switches.get("fp16"):
        raise UserError("flags: --bf16 and --fp16 exclude each other. Give one.")
    content: NestedDict = {}
    for name, key in {**FLAG_TO_KEY, **LIST_FLAGS}.items():
        if name in values:
            content = set_key(content, key, values[name])
    if values.get("lora_target_modules") == ["all-linear"]:
        content = set_key(content, "lora.target_modules", "all-linear")
    if values.get("report_to") == ["none"]:  # the peers' word
        content = set_key(content, "training.report_to", [])
    # Those set to false first, so that --load_in_4bit --load_in_8bit false means 4 bits, and --fp16 --bf16 false fp16.
    for name, is_on in sorted(switches.items(), key=lambda item: item[1]):
        key, on, off = SWITCHES[name]
        content = set_key(content, key, on if is_on else off)
    return content


def _truth(name: str, value: str) -> bool:
    """Read a switch's value."""
    if value.lower() in TRUE:
        return True
    if value.lower() in FALSE:
        return False
    raise UserError(f"flags: --{name} is {value!r}. Give true or false, or the flag alone.")
