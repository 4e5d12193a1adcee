"""One job of memory_forecast.py: drawn at random, forecast, run with every allocation counted, asked of the peers."""

from __future__ import annotations

import bisect
import json
import random
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.bf16_products import multiply_bf16_by_way_of_fp32
from benchmarks.forked import fork, wait
from benchmarks.word_tokenizer import save_word_tokenizer

MAX_PARAMETERS = 120e6
WORDS = 400
JOB_SECONDS = 1800.0
"""How long a job may take: a large one of many micro-batches needs minutes."""
PHASES = ("loading model", "training", "testing")
"""Of a job's events: what is measured. What follows, the proof that the adapter loads, begins from an empty memory."""


GLOO_SECONDS = 0.01
COLLECTIVES = (
    "all_gather_into_tensor", "all_gather", "all_reduce", "broadcast", "reduce", "reduce_scatter_tensor",
    "_all_gather_base", "_reduce_scatter_base",
)  # fmt: skip


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


def measure_job(job: Job, folder: Path, log: Path) -> list[int]:
    """Run the job, every allocation of the first rank counted; return the ranks' exit statuses."""
    from training.ranks import Ranks, free_port

    (folder / "job.json").write_text(json.dumps({**job.settings(folder), "output_dir": str(folder / "out")}))
    port = free_port()
    pids = []
    for rank in range(job.num_ranks):
        ranks = Ranks(
            rank=rank, world_size=job.num_ranks, local_rank=rank, local_world_size=job.num_ranks,
            master_port=port, num_threads=1,
        )  # fmt: skip
        pids.append(fork(lambda rank=rank: _run_rank(folder, rank), log, ranks.environment()))  # type: ignore[misc]
    return wait(pids, timeout_seconds=JOB_SECONDS)


def _run_rank(folder: Path, rank: int) -> int:
    """Run one rank; the first writes what it measured."""
    import torch

    import training.main
    from training.checkpoint_writer import CheckpointWriter
    from training.recorder import FolderRecorder

    arguments = ["--job", str(folder / "job.json")]
    multiply_bf16_by_way_of_fp32()
    if rank:
        return training.main.main(arguments)
    marks: list[tuple[int, str]] = []
    event, submit = FolderRecorder.event, CheckpointWriter.submit

    def noted(self: Any, kind: str, **values: Any) -> None:
        if kind == "phase":
            marks.append((time.time_ns(), values["phase"]))
        event(self, kind, **values)

    def waited(self: Any, write: Any) -> None:
        submit(self, write)
        self.wait()  # else it would be luck whether a checkpoint is still being written at the peak

    FolderRecorder.event, CheckpointWriter.submit = noted, waited  # type: ignore[method-assign]
    let_gloo_go()
    profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
    profiler.start()
    status = training.main.main(arguments)
    profiler.stop()
    mapped = (folder / "model" / "model.safetensors").stat().st_size
    peaks = peak_by_phase(profiler, marks, mapped)
    row = {"bytes": max(peaks.get(phase, 0) for phase in PHASES), "phases": peaks}
    (folder / "measured.json").write_text(json.dumps(row), encoding="utf-8")
    return status


def let_gloo_go() -> None:
    """Have every collective call end a moment after gloo's thread has let its tensors go.

    The profiler hears of what its own thread frees, and else it would be luck which of the two is the last to.
    """
    import torch.distributed as dist

    class Handle:
        def __init__(self, work: Any) -> None:
            self.work = work

        def __getattr__(self, name: str) -> Any:
            return getattr(self.work, name)

        def wait(self, *arguments: Any) -> Any:
            done = self.work.wait(*arguments)
            time.sleep(GLOO_SECONDS)
            return done

    def slowly(call: Any) -> Any:
        def inside(*arguments: Any, async_op: bool = False, **options: Any) -> Any:
            work = call(*arguments, async_op=True, **options)
            if async_op or work is None:
                return None if work is None else Handle(work)
            Handle(work).wait()
            return None

        return inside

    for name in COLLECTIVES:
        if hasattr(dist, name):
            setattr(dist, name, slowly(getattr(dist, name)))


def peak_by_phase(profiler: Any, marks: list[tuple[int, str]], mapped: int) -> dict[str, int]:
    """Return the most bytes that PyTorch's CPU allocator had given out in each phase.

    The profiler is told of the mapped checkpoint too, a file of `mapped` bytes, which is no memory of the process.
    """
    from torch._C._profiler import _EventType

    allocations = []
    events = list(profiler.profiler.kineto_results.experimental_event_tree())
    while events:
        found = events.pop()
        events += found.children
        if found.tag == _EventType.Allocation and abs(found.extra_fields.alloc_size) != mapped:
            fields = found.extra_fields
            allocations.append((found.start_time_ns, fields.alloc_size, fields.ptr))
    peaks: dict[str, int] = {}
    times = [when for when, _ in marks]
    sizes: dict[int, int] = {}
    live = 0
    for when, size, address in sorted(allocations):
        live -= sizes.pop(address, 0)  # also where another thread freed what was there
        if size > 0:
            sizes[address] = size
            live += size
        place = bisect.bisect_right(times, when) - 1
        if place >= 0:
            phase = marks[place][1]
            peaks[phase] = max(peaks.get(phase, 0), live)
    return peaks


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
