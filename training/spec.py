"""One job, complete in itself: everything `training/main.py` needs to know, as frozen dataclasses.

Names are Hugging Face's for training, PEFT's for LoRA, DeepSpeed's for ZeRO. The doc of a field stands under it.
Values are checked here, where their type lives; `training.parse` turns YAML and flags into these types.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from training.errors import UserError

DType = Literal["auto", "bf16", "fp16", "fp32"]
Quantization = Literal["none", "nf4", "int8"]
Metric = Literal["accuracy", "macro_f1", "loss"]
Schedule = Literal["linear", "cosine", "constant", "constant_with_warmup"]
NewsgroupPart = Literal["headers", "footers", "quotes"]
ProblemType = Literal["single_label_classification", "multi_label_classification"]
SINGLE_LABEL: ProblemType = "single_label_classification"
MULTI_LABEL: ProblemType = "multi_label_classification"
"""As transformers names them. The data say which it is: a text with a list of labels is multi-label."""
LongText = Literal["head", "tail", "head+tail", "chunk"]
TrackerName = Literal["tensorboard", "mlflow", "wandb"]
LabelName = Annotated[str, Field(coerce_numbers_to_str=True)]
"""YAML reads a label that is a number as one."""

TINY_LLAMA = "builtin:tiny-llama"
DOCSTRINGS = "builtin:docstrings"
"""The model and the data set that need no download."""

MAX_NAME_BYTES = 120
"""Of a job's or study's name; file systems take 255, and Shoal adds to it."""

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
"""pydantic reads this off each dataclass: a key nobody knows is an error, and so is NaN."""


def require(ok: bool, message: str) -> None:
    """Raise `UserError(message)` unless `ok`."""
    if not ok:
        raise UserError(message)


def require_folder_name(name: str) -> None:
    """Raise UserError unless `name` can name a folder on any file system."""
    safe = name.replace("-", "").replace("_", "").replace(".", "")
    require(
        safe.isalnum() and name[0] != "." and len(name.encode()) <= MAX_NAME_BYTES,
        f"name {name!r:.120} names a folder. Use letters, digits, '-', '_' and '.', beginning with none of '.', "
        f"{MAX_NAME_BYTES} bytes at most.",
    )


def _is_json(value: Any) -> bool:
    """Whether a value can be written as JSON."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The base model and the precision it is held in."""

    __pydantic_config__ = STRICT

    model_name_or_path: str = TINY_LLAMA
    """Hub name, local folder, or `builtin:tiny-llama`."""
    model_revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: DType = "auto"
    """Compute precision. auto: bf16 where the card or CPU multiplies it faster; fp16 on cards that have it and no bf16
    (V100, T4, RTX 20, GTX 16), with dynamic loss scaling; else fp32."""
    quantization: Quantization = "none"
    """How the frozen base is stored: nf4 (4 bits, QLoRA), int8 (LLM.int8), or none (as `dtype`)."""
    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint. Off unless you read that code."""

    def __post_init__(self) -> None:
        require(bool(self.model_name_or_path.strip()), "model.model_name_or_path is empty. Give a hub name or a path.")


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Where the texts come from and how they are cut."""

    __pydantic_config__ = STRICT

    dataset_name: str | None = None
    """Hub name, a `save_to_disk` folder, a folder with one subfolder a class, a preset
    (`imdb`, `ag_news`, `20newsgroups`) or `builtin:docstrings`."""
    dataset_config_name: str | None = None
    """Configuration of the hub dataset."""
    train_file: str | None = None
    """CSV, TSV, JSON, JSONL (each also .gz) or Parquet, or a folder with one subfolder a class."""
    validation_file: str | None = None
    """Same formats. Without one, a stratified part of train is set aside; never of test."""
    test_file: str | None = None
    """Same formats. Without one the job reports validation only."""
    text_column_names: list[str] | None = None
    """Columns joined by `text_column_delimiter`. Default: `text`, or the only other column there is."""
    text_column_delimiter: str = " "
    """Between the text columns."""
    label_column_name: str = "label"
    """Column of the class, or of a list of them (JSON, Parquet, hub): multi-label, where a text may have none."""
    label_delimiter: str | None = None
    """Between the labels of a text in a column of strings, as in a CSV: makes the job multi-label. "" is no label."""
    remove: list[NewsgroupPart] = field(default_factory=list)
    """20newsgroups only: parts scikit-learn strips from each post."""
    max_seq_length: int = 512
    """Tokens the model reads at once, those the tokenizer puts around a text included."""
    long_text: LongText = "head"
    """What is read of a text of more tokens. head: the first ones; tail: the last ones; head+tail: of each some, in the
    proportion 128 to 382 (Sun et al. 2019, arXiv:1905.05583); chunk: chunks of `max_seq_length` tokens that overlap,
    each read by itself. The mean of their logits is the text's, in training as in prediction: one loss a text."""
    chunk_overlap: int = 32
    """With chunk: tokens that a chunk shares with the one before it."""
    max_chunks: int = 8
    """With chunk: read of a text at most; its rest is cut. A text's chunks are computed in one micro-batch, so this is
    what bounds memory: 8 are as many tokens as the default micro-batch holds."""
    max_train_samples: int | None = None
    """Use a seeded random part of train."""
    max_validation_samples: int | None = None
    """Use a seeded random part of validation."""
    max_test_samples: int | None = None
    """Use a seeded random part of test."""
    validation_fraction: float = 0.1
    """Part of train set aside where there is no validation split."""
    split_seed: int = 0
    """Seed of the splits and parts above; apart from the job's seed, so that seeds share their data."""

    def __post_init__(self) -> None:
        require(
            (self.dataset_name is None) != (self.train_file is None),
            "Set one of data.dataset_name and data.train_file"
            f" (they are {self.dataset_name!r} and {self.train_file!r}).",
        )
        require(
            self.label_delimiter != "", "data.label_delimiter is empty. Give what stands between labels, such as |."
        )
        require(self.max_seq_length >= 2, f"data.max_seq_length is {self.max_seq_length}. It must be at least 2.")
        require(self.max_chunks >= 1, f"data.max_chunks is {self.max_chunks}. It must be at least 1.")
        require(self.chunk_overlap >= 0, f"data.chunk_overlap is {self.chunk_overlap}. It must not be negative.")
        require(
            self.long_text != "chunk" or self.chunk_overlap < self.max_seq_length,
            f"data.chunk_overlap is {self.chunk_overlap}. Set it below data.max_seq_length ({self.max_seq_length}).",
        )
        require(
            0 < self.validation_fraction < 1,
            f"data.validation_fraction is {self.validation_fraction}. It must lie between 0 and 1.",
        )
        for name in ("max_train_samples", "max_validation_samples", "max_test_samples"):
            value = getattr(self, name)
            require(value is None or value > 0, f"data.{name} is {value}. It must be at least 1.")
        require(
            not self.remove or self.dataset_name == "20newsgroups",
            f"data.remove is {self.remove}, which exists for dataset_name: 20newsgroups only. Leave it out.",
        )


@dataclass(frozen=True, kw_only=True)
class LoraSpec:
    """The adapter (PEFT's LoraConfig). The classification head is always trained and saved with it."""

    __pydantic_config__ = STRICT

    r: int = 16
    """Rank of the update."""
    lora_alpha: int = 32
    """Scale of the update: alpha / r, or alpha / sqrt(r) with `use_rslora`."""
    lora_dropout: float = 0.0
    """Dropout on the adapter's input."""
    target_modules: str | list[str] = "all-linear"
    """Names of the layers that get an adapter; `all-linear` means every linear layer but the head."""
    use_rslora: bool = False
    """Rank-stabilized scaling (Kalajdzievski 2023)."""
    use_dora: bool = False
    """Weight-decomposed LoRA (Liu et al. 2024)."""

    def __post_init__(self) -> None:
        require(self.r >= 1, f"lora.r is {self.r}. It must be at least 1.")
        require(self.lora_alpha >= 1, f"lora.lora_alpha is {self.lora_alpha}. It must be at least 1.")
        require(
            0 <= self.lora_dropout < 1, f"lora.lora_dropout is {self.lora_dropout}. It must be at least 0 and below 1."
        )


@dataclass(frozen=True, kw_only=True)
class TrainingSpec:
    """The optimization (Hugging Face's TrainingArguments)."""

    __pydantic_config__ = STRICT

    per_device_train_batch_size: int = 8
    """Samples of full length a rank works on at once; shorter ones share that room.
    Global batch = this x gradient_accumulation_steps x ranks."""
    per_device_eval_batch_size: int = 16
    """Samples of full length a rank evaluates at once; shorter ones share that room."""
    gradient_accumulation_steps: int = 1
    """Batches a rank adds up before each optimizer step."""
    learning_rate: float = 2e-4
    """Peak of the schedule."""
    num_train_epochs: float = 3.0
    """Passes over train; a fraction stops in the middle of one."""
    max_steps: int = -1
    """Optimizer steps; overrides num_train_epochs where positive."""
    lr_scheduler_type: Schedule = "linear"
    """Decay after the warm-up, to zero at the last step."""
    warmup_steps: float = 0.0
    """Steps of linear warm-up; below 1, the share of all steps."""
    weight_decay: float = 0.0
    """AdamW's decoupled decay."""
    max_grad_norm: float = 1.0
    """Global norm gradients are clipped to; 0 is off."""
    class_weights: str | dict[LabelName, float] = "none"
    """What a text's loss is multiplied by: none; balanced, rows / (classes x rows of its class) of train, as in
    scikit-learn; or label -> weight (1 for those left out). Of training's loss only; the stored ones stay plain."""
    focal_gamma: float = 0.0
    """Focal loss (Lin et al. 2017): multiplies a text's loss by (1 - p)^gamma, so that what is known counts less.
    0 is cross entropy. Of training's loss only, too."""
    gradient_checkpointing: bool = False
    """Recompute activations in backward: less memory, about a third slower."""
    metric_for_best_model: Metric = "macro_f1"
    """Validation metric that chooses the evaluation whose adapter is kept."""
    early_stopping_patience: int | None = None
    """Stop after this many evaluations without a better one."""
    eval_steps: int | None = None
    """Evaluate on validation, and write a checkpoint, every so many optimizer steps, besides each epoch's end."""
    save_steps: int | None = None
    """Write a checkpoint every so many optimizer steps, besides the one at each epoch's end."""
    save_total_limit: int = 2
    """Checkpoints kept, the newest ones."""
    report_to: list[TrackerName] = field(default_factory=lambda: ["tensorboard"])
    """Trackers that get the figures besides events.jsonl (training.trackers); [] is none. Changes no result."""

    def __post_init__(self) -> None:
        for name in (
            "per_device_train_batch_size", "per_device_eval_batch_size",
            "gradient_accumulation_steps", "save_total_limit",
        ):  # fmt: skip
            require(getattr(self, name) >= 1, f"training.{name} is {getattr(self, name)}. It must be at least 1.")
        for name in ("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps", "focal_gamma"):
            require(getattr(self, name) >= 0, f"training.{name} is {getattr(self, name)}. It must not be negative.")
        require(
            self.num_train_epochs > 0 or self.max_steps > 0,
            f"training.num_train_epochs is {self.num_train_epochs}. It must be above 0.",
        )
        for name in ("early_stopping_patience", "eval_steps", "save_steps"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"training.{name} is {value}. It must be at least 1.")
        weights = self.class_weights
        require(
            isinstance(weights, dict) or weights in ("none", "balanced"),
            f"training.class_weights is {weights!r}. Give none, balanced, or a mapping such as {{spam: 5, ham: 1}}.",
        )
        for label, weight in weights.items() if isinstance(weights, dict) else ():
            require(weight > 0, f"training.class_weights gives {label!r} {weight}. A weight must be above 0.")


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """One training job."""

    __pydantic_config__ = STRICT

    name: str = "job"
    """Name of the job and of its folder in a study."""
    seed: int = 42
    """Seed of the adapter's and head's first weights, of the data order and of dropout."""
    num_ranks: int = 1
    """Cards (processes) a study gives the job. `deepspeed --num_gpus N` decides it for one machine."""
    model: ModelSpec = field(default_factory=ModelSpec)
    data: DataSpec
    lora: LoraSpec = field(default_factory=LoraSpec)
    training: TrainingSpec = field(default_factory=TrainingSpec)
    deepspeed: str | dict[str, Any] = "ds_configs/zero1.json"
    """DeepSpeed JSON file, or its content. "auto" values are filled in; unknown keys are refused.

    Stage 1 is the fastest, and an adapter's gradients, which stage 2 would split too, are small."""
    output_dir: str = "outputs/job"
    """Folder of everything the job writes."""
    resume_from_checkpoint: str | None = None
    """Checkpoint folder to start from. Without it the newest in output_dir is used, if there is one."""

    def __post_init__(self) -> None:
        require_folder_name(self.name)
        require(bool(self.output_dir.strip()), "output_dir is empty. Give a folder.")
        require(self.num_ranks >= 1, f"num_ranks is {self.num_ranks}. It must be at least 1.")
        require(0 <= self.seed < 2**32, f"seed is {self.seed}. It must lie between 0 and {2**32 - 1}.")
        require(
            _is_json(self.deepspeed),
            "deepspeed holds a value JSON does not have, such as a date. Quote it, or name a file of ds_configs/.",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as `job.yaml` holds them."""
        return asdict(self)

    def fingerprint(self) -> str:
        """Return a hash of all that can change the result: not name, folder, where it resumes from or reports to."""
        content = self.to_dict()
        for key in ("name", "output_dir", "resume_from_checkpoint"):
            del content[key]
        del content["training"]["report_to"]
        data = content["data"]
        if data["long_text"] != "chunk":
            del data["chunk_overlap"], data["max_chunks"]
        if data["long_text"] == "head":
            del data["long_text"]  # jobs that finished when there was nothing else stay finished
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
