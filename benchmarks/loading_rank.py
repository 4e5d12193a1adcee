"""One rank that loads a classifier, for benchmarks/loading.py to watch. Started by it, not by hand.

Says "ready" when all is imported and the ranks have met, loads on the next line it is given, says how long that took
and what it holds, and stays until its input closes.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # python puts benchmarks/ there

from training.deepspeed_config import fill_auto, offloads_optimizer, read_deepspeed_config
from training.engine import build_optimizer, cpu_adam_obstacle, start_engine, start_process_group, zero3_partition
from training.model import add_adapter, build_classifier, quantization_config
from training.packing import PackedClassifier
from training.pretrained import load_config
from training.quiet import quiet_libraries
from training.ranks import Ranks
from training.spec import LoraSpec, ModelSpec, TrainingSpec

LABELS = ["negative", "positive"]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", choices=("shoal", "hf"), required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--quantization", choices=("none", "nf4"), required=True)
    parser.add_argument("--deepspeed", required=True)
    return parser.parse_args()


def say(**values: Any) -> None:
    """Tell the parent one JSON line."""
    os.write(int(os.environ["SAY_FD"]), (json.dumps(values) + "\n").encode())


def load_shoal(spec: ModelSpec, config: Any, deepspeed: dict[str, Any], device: torch.device) -> nn.Module:
    partition = zero3_partition(deepspeed)
    checkpoint = spec.model_name_or_path
    return build_classifier(spec, LoraSpec(), checkpoint, config, torch.bfloat16, device, partition)


def load_hugging_face(spec: ModelSpec, config: Any, device: torch.device) -> nn.Module:
    """The documented way; both sides get the same adapter and engine."""
    from transformers import AutoModelForSequenceClassification

    options: dict[str, Any] = {"dtype": torch.bfloat16}
    if spec.quantization != "none":
        options["quantization_config"] = quantization_config(spec.quantization, torch.bfloat16)
        options["device_map"] = {"": device}
    base = AutoModelForSequenceClassification.from_pretrained(spec.model_name_or_path, config=config, **options)
    return add_adapter(base.requires_grad_(False), LoraSpec(), torch.bfloat16)


def warm_up(spec: ModelSpec, device: torch.device, deepspeed: dict[str, Any]) -> None:
    """Import, compile and connect what stays in memory whatever is loaded."""
    import bitsandbytes as bnb

    bnb.nn.Linear4bit(64, 64).to(device)
    if offloads_optimizer(deepspeed):
        cpu_adam_obstacle()
    dist.all_reduce(torch.zeros(1 << 20))
    load_config(spec, spec.model_name_or_path, LABELS)


def tidy() -> None:
    """Give back garbage, and what the C library's allocator keeps for later."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def main() -> None:
    arguments = parse_arguments()
    quiet_libraries()
    ranks = Ranks.from_environment()
    device = start_process_group(ranks)
    content, source = read_deepspeed_config(arguments.deepspeed)
    deepspeed = fill_auto(
        content, source, TrainingSpec(), world_size=ranks.world_size, dtype=torch.bfloat16, cuda=device.type == "cuda"
    )
    spec = ModelSpec(model_name_or_path=arguments.model, quantization=arguments.quantization)
    warm_up(spec, device, deepspeed)
    config = load_config(spec, arguments.model, LABELS)
    tidy()
    say(ready=True)
    sys.stdin.readline()
    torch.manual_seed(0)
    started = time.perf_counter()
    if arguments.side == "shoal":
        model = load_shoal(spec, config, deepspeed, device)
    else:
        model = load_hugging_face(spec, config, device)
    classifier = PackedClassifier(model, packed=True)
    engine = start_engine(classifier, build_optimizer(classifier, TrainingSpec(), deepspeed, lambda _: None), deepspeed)
    dist.barrier()
    seconds = time.perf_counter() - started
    tidy()
    say(seconds=seconds, partitioned=sum(hasattr(p, "ds_id") for p in engine.module.parameters()))
    sys.stdin.readline()
    dist.barrier()


if __name__ == "__main__":
    main()
