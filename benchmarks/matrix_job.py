"""One cell of benchmarks/matrix.py: its job, and the adapter reloaded without Shoal."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.forked import run_forked, run_ranks
from benchmarks.word_tokenizer import save_word_tokenizer

TOLERANCE = {"none": 1e-5, "nf4": 1e-5, "int8": 2e-2, "bf16": 2e-2, "fp16": 5e-3}
"""Largest difference of a logit, as a share of the largest logit (at least 1).

int8 rounds activations as well, in steps of 1/127 of a token's largest one, and a last bit of fp32 can turn a rounding
over. bf16 rounds to 1 part in 256, once a layer, fp16 to 1 in 2048.
"""
NF4_KERNEL_TOLERANCE = 2e-2
"""The same where bitsandbytes multiplies nf4 weights in bf16, as it does by itself on CPUs with AVX512-bf16 once a
model is evaluated. Shoal switches that kernel off; a user's program has it on. Compared both ways."""
MAX_SEQ_LENGTH = 32
CLASSES = (2, 4, 20)
WORDS_A_CLASS = 5
FILLERS = ["the", "a", "of", "and", "with", "under", "near", "old", "new", "quiet", "very", "then", "some", "every"]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One combination."""

    quantization: str
    stage: int
    offload: str = "none"
    """none, optimizer, or optimizer+param."""
    num_ranks: int = 1
    num_classes: int = 4
    dtype: str = "fp32"
    variant: str = "lora"
    """lora, dora or rslora."""

    @property
    def name(self) -> str:
        """Name of its folder and log."""
        return "-".join(str(value) for value in asdict(self).values())


def class_words(label: int) -> list[str]:
    """Return the words that tell a class."""
    return [f"class{label}word{number}" for number in range(WORDS_A_CLASS)]


def write_rows(path: Path, num_classes: int, rows: int, seed: int) -> None:
    """Write sentences of 3 to 25 words, half of them their class's."""
    draw = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for index in range(rows):
            label = index % num_classes
            words = [
                draw.choice(class_words(label) if draw.random() < 0.5 else FILLERS) for _ in range(draw.randint(3, 25))
            ]
            file.write(json.dumps({"text": " ".join(words), "label": f"class{label}"}) + "\n")


def write_inputs(folder: Path) -> int:
    """Write a LLaMA of two layers with random weights, the data of each number of classes, the DeepSpeed files."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    save_word_tokenizer(
        [word for label in range(max(CLASSES)) for word in class_words(label)] + FILLERS, folder / "model"
    )
    torch.manual_seed(0)
    # Widths are multiples of 64, a block of nf4.
    config = LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    for num_classes in CLASSES:
        write_rows(folder / f"train{num_classes}.jsonl", num_classes, 100, seed=1)
        write_rows(folder / f"test{num_classes}.jsonl", num_classes, 40, seed=2)
    for stage in range(4):
        for offload in ("none", "optimizer", "optimizer+param"):
            zero = {"stage": stage} | {
                f"offload_{part}": {"device": "cpu"} for part in offload.split("+") if part != "none"
            }
            text = json.dumps({"bf16": {"enabled": "auto"}, "zero_optimization": zero})
            (folder / f"zero{stage}-{offload}.json").write_text(text, encoding="utf-8")
    return 0


def flags_of(cell: Cell, inputs: Path, out: Path) -> list[str]:
    """Return the flags of training/main.py: five steps, the offered data, a folder of its own."""
    flags = [
        f"--model_name_or_path={inputs / 'model'}", f"--train_file={inputs / f'train{cell.num_classes}.jsonl'}",
        f"--test_file={inputs / f'test{cell.num_classes}.jsonl'}", "--validation_fraction=0.2",
        f"--deepspeed={inputs / f'zero{cell.stage}-{cell.offload}.json'}", f"--output_dir={out}",
        f"--max_seq_length={MAX_SEQ_LENGTH}", "--max_steps=5", "--per_device_train_batch_size=4",
        "--learning_rate=1e-2", "--bf16=false" if cell.dtype == "fp32" else f"--{cell.dtype}",
    ]  # fmt: skip
    quantization = {"nf4": ["--load_in_4bit"], "int8": ["--load_in_8bit"], "none": []}[cell.quantization]
    return [*flags, *quantization, *({"dora": ["--use_dora"], "rslora": ["--use_rslora"]}.get(cell.variant, []))]


def tolerance_of(cell: Cell) -> float:
    """Return the largest relative difference that is rounding."""
    return TOLERANCE[cell.quantization if cell.dtype == "fp32" else cell.dtype]


def load_plainly(cell: Cell, inputs: Path, adapter: Path) -> Any:
    """Return base and adapter loaded as a user would, with transformers, PEFT and bitsandbytes alone."""
    import torch
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForSequenceClassification, BitsAndBytesConfig

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[cell.dtype]
    four_bits = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype, "bnb_4bit_quant_storage": dtype}
    options: dict[str, Any] = {}
    if cell.quantization != "none":
        bits = {"load_in_4bit": True, **four_bits} if cell.quantization == "nf4" else {"load_in_8bit": True}
        options = {
            "quantization_config": BitsAndBytesConfig(llm_int8_skip_modules=["score"], **bits),
            "device_map": "cpu",
        }
    config = AutoConfig.from_pretrained(adapter)
    base = AutoModelForSequenceClassification.from_pretrained(inputs / "model", config=config, dtype=dtype, **options)
    return PeftModel.from_pretrained(base, str(adapter)).eval()


def reload_logits(cell: Cell, inputs: Path, out: Path) -> int:
    """Write how far the reloaded model's logits of the test texts are from those in predictions.parquet."""
    import numpy as np
    import pyarrow.parquet as pq
    import torch
    from transformers import AutoTokenizer

    model = load_plainly(cell, inputs, out / "adapter")
    rows = [json.loads(line) for line in (inputs / f"test{cell.num_classes}.jsonl").read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(out / "adapter")
    batch = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
    table = pq.read_table(out / "predictions.parquet")
    stored = [row for row in table.to_pylist() if row["split"] == "test"]
    names = json.loads(table.schema.metadata[b"label_names"])
    expected = np.array([row["logits"] for row in stored])

    def difference() -> float:
        with torch.no_grad():
            output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        logits = output.logits.float().numpy()
        return float(np.abs(logits - expected).max()) / max(1.0, float(np.abs(expected).max()))

    bf16_kernels = [part for part in model.modules() if getattr(part, "support_avx512bf16_for_cpu", False)]
    for part in bf16_kernels:
        part.support_avx512bf16_for_cpu = False
    facts: dict[str, Any] = {
        "same_labels": [model.config.id2label[index] for index in range(len(names))] == names
        and [row["label"] for row in stored] == [row["label"] for row in rows],
        "difference": difference(),
    }
    for part in bf16_kernels:
        part.support_avx512bf16_for_cpu = True
    if bf16_kernels:
        facts["difference_bf16_kernel"] = difference()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
    facts["difference_without_lora"] = difference()
    (out / "reloaded.json").write_text(json.dumps(facts), encoding="utf-8")
    return 0


def run_cell(cell: Cell, inputs: Path, work: Path) -> dict[str, Any]:
    """Train, reload, compare. Outcome: yes, refused (with its message), failed or differs (with why)."""
    out = work / cell.name
    log = work / f"{cell.name}.log"
    statuses = run_ranks(flags_of(cell, inputs, out), cell.num_ranks, log)
    result: dict[str, Any] = asdict(cell)
    if any(statuses):
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        message = next((line for line in lines if line.startswith("shoal: ")), lines[-1] if lines else "no output")
        outcome = "refused" if 2 in statuses else "failed"
        message = message.removeprefix("shoal: ").replace(f"{inputs}/", "")
        return {**result, "outcome": outcome, "status": max(statuses), "message": message[:300]}
    status = run_forked(partial(reload_logits, cell, inputs, out), log)
    if status != 0:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1]
        return {**result, "outcome": "failed", "message": f"reloading: {last[:300]}"}
    facts = json.loads((out / "reloaded.json").read_text(encoding="utf-8"))
    ran = json.loads((out / "result.json").read_text(encoding="utf-8"))["model"]
    facts |= {"optimizer": ran["optimizer"], "ignored": ignored_settings(cell, ran)}
    return {**result, **judge(facts, tolerance_of(cell)), **facts, "tolerance": tolerance_of(cell)}


def ignored_settings(cell: Cell, ran: dict[str, Any]) -> list[str]:
    """Return the settings that the job's result does not show as they were asked for."""
    wanted = {
        "quantization": cell.quantization,
        # In bf16 and fp16 Shoal takes stage 1 for 0 and says so.
        "zero_stage": cell.stage if cell.dtype == "fp32" else max(cell.stage, 1),
        "offload_optimizer": "optimizer" in cell.offload,
        "offload_param": "param" in cell.offload,
    }
    return [name for name, value in wanted.items() if ran[name] != value]


def judge(facts: dict[str, Any], tolerance: float) -> dict[str, str]:
    """Return the outcome of a reloaded adapter."""
    if not facts["same_labels"]:
        return {"outcome": "differs", "message": "labels in another order"}
    if facts["ignored"]:
        return {"outcome": "differs", "message": f"ignored: {', '.join(facts['ignored'])}"}
    if not facts["difference"] <= tolerance:
        return {"outcome": "differs", "message": f"logits differ by {facts['difference']:.1e}"}
    if not facts.get("difference_bf16_kernel", 0.0) <= NF4_KERNEL_TOLERANCE:
        return {"outcome": "differs", "message": f"bf16 kernel: logits differ by {facts['difference_bf16_kernel']:.1e}"}
    if not facts["difference_without_lora"] > 2 * tolerance:
        return {"outcome": "differs", "message": "the comparison would not notice a lost adapter"}
    return {"outcome": "yes"}
