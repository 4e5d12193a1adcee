"""One job of memory_forecast.py: drawn at random, its model and texts, Shoal's forecast and its peers'."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.word_tokenizer import save_word_tokenizer

MAX_PARAMETERS = 120e6
WORDS = 400


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job's settings."""

    name: str
    hidden_size: int
    head_dim: int
    kv_heads: int
    intermediate_size: int
    layers: int
    vocab_size: int
    quantization: str
    dtype: str
    stage: int
    offload: str
    """none, optimizer, param, or optimizer+param."""
    num_ranks: int
    r: int
    target_modules: list[str] | str
    checkpointing: bool
    batch_size: int
    accumulation: int
    eval_batch_size: int
    max_seq_length: int
    lengths: str
    """full, or uniform: from a few tokens to the longest."""
    classes: int
    max_live: int
    """ZeRO-3: how many gathered values may wait for their next use."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @property
    def texts(self) -> int:
        """Training texts: one step's."""
        return self.batch_size * self.accumulation * self.num_ranks

    def config(self) -> dict[str, Any]:
        """Return the model's config.json."""
        return {
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size, "intermediate_size": self.intermediate_size, "head_dim": self.head_dim,
            "num_hidden_layers": self.layers, "num_attention_heads": self.hidden_size // self.head_dim,
            "num_key_value_heads": self.kv_heads, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
            "tie_word_embeddings": False, "max_position_embeddings": 2048,
        }  # fmt: skip

    def deepspeed(self) -> dict[str, Any]:
        """Return the DeepSpeed configuration."""
        parts = [part for part in self.offload.split("+") if part != "none"]
        zero: dict[str, Any] = {"stage": self.stage} | {f"offload_{part}": {"device": "cpu"} for part in parts}
        if self.stage == 3:
            zero |= {"stage3_max_live_parameters": self.max_live, "stage3_max_reuse_distance": self.max_live}
        return {"bf16": {"enabled": "auto"}, "zero_optimization": zero}

    def settings(self, folder: Path) -> dict[str, Any]:
        """Return the job file."""
        return {
            "model": {
                "model_name_or_path": str(folder / "model"), "quantization": self.quantization, "dtype": self.dtype,
            },
            "data": {
                "train_file": str(folder / "train.jsonl"), "validation_file": str(folder / "validation.jsonl"),
                "max_seq_length": self.max_seq_length,
            },
            "lora": {"r": self.r, "target_modules": self.target_modules},
            "training": {
                "per_device_train_batch_size": self.batch_size, "gradient_accumulation_steps": self.accumulation,
                "per_device_eval_batch_size": self.eval_batch_size, "max_steps": 2,
                "gradient_checkpointing": self.checkpointing,
            },
            "deepspeed": self.deepspeed(),
        }  # fmt: skip


def draw_job(number: int) -> Job:
    """Return job `number` of the draw; shapes from tiny to MAX_PARAMETERS, about evenly in the logarithm."""
    draw = random.Random(f"0 {number}")
    stage = draw.choice([0, 1, 2, 3])
    offloads = {0: ["none"], 1: ["none", "optimizer"], 2: ["none", "optimizer"]}
    while True:
        head_dim = draw.choice([32, 64, 128])
        heads = draw.choice([2, 4, 6, 8, 12, 16])
        hidden = heads * head_dim
        intermediate = 64 * max(1, round(hidden * draw.uniform(1.5, 4) / 64))
        layers = draw.choice([1, 2, 3, 4, 6, 8, 12])
        vocab = draw.choice([512, 1000, 8000, 32000])
        parameters = vocab * hidden + layers * (4 * hidden**2 + 3 * hidden * intermediate)
        if 1e5 * 10 ** draw.uniform(0, 1.5) < parameters < MAX_PARAMETERS:
            break
    length = draw.choice([16, 32, 64, 128, 256, 512])
    job = Job(
        name=f"job{number}", hidden_size=hidden, head_dim=head_dim,
        kv_heads=draw.choice([k for k in (1, 2, 4, heads) if heads % k == 0]), intermediate_size=intermediate,
        layers=layers, vocab_size=vocab, quantization=draw.choice(["none", "none", "nf4", "int8"]),
        dtype=draw.choice(["bf16", "fp32"]), stage=stage,
        offload=draw.choice(offloads.get(stage, ["none", "optimizer", "param", "optimizer+param"])),
        num_ranks=draw.choice([1, 2]), r=draw.choice([1, 4, 8, 16, 64]),
        target_modules=draw.choice(["all-linear", ["q_proj", "v_proj"]]), checkpointing=draw.random() < 0.25,
        batch_size=draw.choice([b for b in (1, 2, 4, 8, 16) if b * length <= 2048]),
        accumulation=draw.choice([1, 1, 2, 3]),
        eval_batch_size=draw.choice([b for b in (1, 4, 16, 32) if b * length <= 4096]), max_seq_length=length,
        lengths=draw.choice(["full", "uniform"]), classes=draw.choice([2, 4, 20]),
        max_live=draw.choice([100_000, 10**9]),
    )  # fmt: skip
    # At least a text a class: the texts are one step's, so that the step that is measured has the largest of them.
    fitting = max(job.accumulation, -(-job.classes // (job.batch_size * job.num_ranks)))
    return replace(job, accumulation=fitting)


def text_lengths(job: Job, number: int, seed: int) -> list[int]:
    """Return the tokens of `number` texts, the beginning token included."""
    draw = random.Random(f"{job.name} {seed}")
    longest = job.max_seq_length
    return [longest if job.lengths == "full" else draw.randint(3, longest) for _ in range(number)]


def write_inputs(job: Job, folder: Path) -> int:
    """Write model, tokenizer and texts. Weights are stored in fp16, so that whatever the job holds is its own."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    save_word_tokenizer((f"w{index}" for index in range(WORDS)), folder / "model")
    config = LlamaConfig(**job.config())
    config.save_pretrained(folder / "model")
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in LlamaForCausalLM(config).state_dict().items()}
    weights = {name: torch.empty(shape).normal_(0, 0.02).half() for name, shape in shapes.items()}
    save_file(weights, folder / "model" / "model.safetensors", metadata={"format": "pt"})
    for name, lengths in all_lengths(job).items():
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for index, length in enumerate(lengths):
                words = " ".join(f"w{(index * 31 + place) % WORDS}" for place in range(length - 1))
                file.write(json.dumps({"text": words, "label": index % job.classes}) + "\n")
    return 0


def all_lengths(job: Job) -> dict[str, list[int]]:
    """Return the tokens of each text of each split."""
    return {name: text_lengths(job, job.texts, seed) for seed, name in enumerate(("train", "validation"))}


def forecast_job(job: Job, folder: Path) -> int:
    """Write what Shoal forecasts."""
    from training.forecast.estimate import forecast, shape_of
    from training.parse import build
    from training.spec import JobSpec

    spec = build(JobSpec, job.settings(folder), "job")
    lengths = {name: [(length,) for length in split] for name, split in all_lengths(job).items()}
    shape = shape_of(spec, lengths["train"], lengths["validation"], job.num_ranks)
    estimate = forecast(
        spec, {**job.config(), "num_labels": job.classes}, shape,
        dtype=job.dtype, world_size=job.num_ranks, on_card=False,
    )  # fmt: skip
    phases = {name: places["host"] for name, places in estimate.tensors.items()}
    row = {"bytes": max(phases.values()), "phases": phases, "causes": estimate.host}
    (folder / "forecast.json").write_text(json.dumps(row), encoding="utf-8")
    return 0


def say_peers(job: Job, folder: Path) -> int:
    """Write what DeepSpeed's and accelerate's estimators say, card and host memory of one rank together."""
    import torch
    from accelerate.utils import calculate_maximum_sizes
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs
    from transformers import AutoConfig, AutoModelForSequenceClassification

    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**job.config()))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    largest = max(sum(p.numel() for p in part.parameters(recurse=False)) for part in model.modules())
    offloads = "optimizer" in job.offload
    deepspeed = None
    if job.stage == 3:
        host, card, _ = estimate_zero3_model_states_mem_needs(
            parameters, largest, job.num_ranks, cpu_offload=offloads, cpu_offload_params="param" in job.offload
        )
        deepspeed = card + host // job.num_ranks * offloads
    elif job.stage:
        host, card = estimate_zero2_model_states_mem_needs(parameters, job.num_ranks, cpu_offload=offloads)
        deepspeed = card + host // job.num_ranks * offloads
    total, _ = calculate_maximum_sizes(model)
    width = {"none": 2 if job.dtype == "bf16" else 4, "int8": 1, "nf4": 0.5}[job.quantization]
    accelerate = 4 * total * width / 4  # "training using Adam": four times the model in that type
    row = {"DeepSpeed estimate_zero*": deepspeed, "accelerate estimate-memory": accelerate}
    (folder / "peers.json").write_text(json.dumps(row), encoding="utf-8")
    return 0
