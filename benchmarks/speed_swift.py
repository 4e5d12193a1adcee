"""ms-swift for `speed.py`: an environment of its own, made on demand in Shoal's cache, and its command."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from speed_material import LORA_R, DataSet, Model

from training.cache import cache_dir

REQUIREMENTS = ("ms-swift==4.6.0", "torch<=2.13")
PACKAGES = ("ms-swift", "torch", "transformers", "peft", "accelerate")
CLOCK = Path(__file__).resolve().with_name("speed_clock.py")


def swift_environment() -> Path:
    """Return the environment's folder; install it first where it is missing or half made."""
    folder = cache_dir() / "benchmarks" / REQUIREMENTS[0].replace("==", "-")
    finished = folder / "installed"
    if not finished.exists():
        print(f"installing {' '.join(REQUIREMENTS)} into {folder} (minutes, once) ...", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", *REQUIREMENTS], check=True)
        finished.touch()
    return folder


def swift_versions(environment: Path) -> dict[str, str]:
    """Return the versions of the packages that matter in ms-swift's environment."""
    code = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {PACKAGES}}}))"
    run = subprocess.run([environment / "bin" / "python", "-c", code], check=True, capture_output=True, text=True)
    versions: dict[str, str] = json.loads(run.stdout)
    return versions


def swift_command(
    environment: Path, data_set: DataSet, model: Model, batch_size: int, max_steps: int, out: Path, settings: Any
) -> list[str]:
    """Return the command; what is not set is ms-swift's default, among it activation checkpointing."""
    flags = {
        "model": model.folder,
        "model_type": "llama",
        "template": "dummy",  # the text alone, without a chat's turns
        "task_type": "seq_cls",
        "num_labels": data_set.num_labels,
        "tuner_type": "lora",
        "target_modules": "all-linear",
        "lora_rank": LORA_R,
        "lora_dropout": 0,  # as on the other sides
        "dataset": data_set.swift_file,
        "split_dataset_ratio": 0,
        "max_length": data_set.max_seq_length,
        "truncation_strategy": "right",
        "torch_dtype": "bfloat16",
        "bf16": "true",
        "use_cpu": str(not torch.cuda.is_available()).lower(),
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": 1,
        "max_steps": max_steps,
        "save_strategy": "no",
        "report_to": "none",
        "check_model": "false",
        "use_hf": "true",
        "output_dir": out,
        "external_plugins": CLOCK,
        "callbacks": "step_clock",
        **settings,
    }
    parts = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    return [str(environment / "bin" / "swift"), "sft", *parts]
