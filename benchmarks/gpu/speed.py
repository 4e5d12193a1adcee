"""Training speed of Shoal and of the Hugging Face Trainer on the same random models and texts, a fresh process a cell.

    python -m benchmarks.gpu.speed --output speed.jsonl --seconds 200

Every side makes the same update: 32 texts a step. Cells come in order of interest until the time is up; what is in the
output already is not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.inputs import DATA
from benchmarks.gpu.shapes import flops_per_token

ROOT = Path(__file__).resolve().parents[2]
TEXTS_PER_STEP = 32
LORA_R = 16


@dataclass(frozen=True, kw_only=True)
class Side:
    """One way to train."""

    program: str
    batch_size: int
    gradient_checkpointing: bool = False
    group_by_length: bool = False


SIDES = {
    "shoal": Side(program="shoal", batch_size=8),
    "hf-usual": Side(program="hf", batch_size=8, gradient_checkpointing=True),
    "shoal-32": Side(program="shoal", batch_size=32),
    "hf-tuned": Side(program="hf", batch_size=32, group_by_length=True),
}
"""hf-usual is what most people run; hf-tuned the best the Trainer has; shoal its defaults; shoal-32 uses a large card's
room as hf-tuned does."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is run."""

    shapes: tuple[str, ...]
    data: tuple[str, ...]
    sides: tuple[str, ...]
    steps: int
    warmup: int
    """Steps that are not timed."""
    rows: int


# 50 steps, since the Trainer sorts by length within 50 batches at a time, where there are enough rows.
FULL = Size(shapes=("1B", "100M"), data=tuple(DATA), sides=tuple(SIDES), steps=50, warmup=5, rows=6400)
SMOKE = Size(shapes=("tiny",), data=("ag_news",), sides=("shoal", "hf-tuned"), steps=3, warmup=1, rows=100)


def command(side: Side, shape: str, data: str, inputs: Path, folder: Path, size: Size) -> list[str]:
    """Return the command of a cell; it writes into `folder`."""
    flags: dict[str, object] = {
        "train_file": inputs / f"{data}.jsonl",
        "max_seq_length": DATA[data].max_seq_length,
        "gradient_accumulation_steps": TEXTS_PER_STEP // side.batch_size,
        "max_steps": size.steps,
        "lora_r": LORA_R,
    }
    if side.program == "hf":
        words = [sys.executable, "-m", "benchmarks.gpu.hf_trainer"]
        flags |= {"model": inputs / shape, "batch_size": side.batch_size, "warmup": size.warmup}
        flags["output"] = folder / "cell.json"
        words += ["--group_by_length"] if side.group_by_length else []
    else:
        words = [sys.executable, "training/main.py", "--bf16"]
        flags |= {"model_name_or_path": inputs / shape, "per_device_train_batch_size": side.batch_size}
        flags |= {"validation_file": inputs / "validation.jsonl", "lora_alpha": 2 * LORA_R, "learning_rate": 1e-4}
        flags |= {"deepspeed": "ds_configs/zero2.json", "output_dir": folder}
    words += ["--gradient_checkpointing"] if side.gradient_checkpointing else []
    return words + [part for name, value in flags.items() for part in (f"--{name}", str(value))]


def read_shoal(folder: Path, mean_tokens: float, size: Size) -> dict[str, Any]:
    """Return what Shoal's step events say; each comes after the step's loss has been read from the card."""
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    times = {event["step"]: event["time"] for event in events if event["kind"] == "step"}
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    samples = (size.steps - size.warmup) * TEXTS_PER_STEP
    return {
        "seconds": times[size.steps] - times[size.warmup],
        "samples": samples,
        "tokens": round(samples * mean_tokens),
        "padding_share": 0.0,
        "peak_memory_bytes": result["peak_memory"]["gpu_bytes"],
    }


def run_cell(name: str, shape: str, data: str, inputs: Path, size: Size, seconds: float) -> dict[str, Any]:
    """Train one cell; return what was measured, or its error."""
    side, facts = SIDES[name], json.loads((inputs / "inputs.json").read_text(encoding="utf-8"))
    key = {"side": name, "shape": shape, "data": data}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        words = command(side, shape, data, inputs, folder, size)
        started = time.monotonic()
        try:
            run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            return {**key, "error": "not finished when the time was up"}
        print(run.stdout[-500:], run.stderr[-3000:], sep="\n", flush=True)
        if run.returncode:
            return {**key, "error": (run.stderr.strip().splitlines() or ["no message"])[-1][:300]}
        if side.program == "hf":
            measured = json.loads((folder / "cell.json").read_text(encoding="utf-8"))
        else:
            measured = read_shoal(folder, facts["mean_tokens"][data], size)
    rate = measured["tokens"] / measured["seconds"]
    return {
        **key,
        **measured,
        "process_seconds": round(time.monotonic() - started, 1),
        "tokens_per_second": rate,
        "samples_per_second": measured["samples"] / measured["seconds"],
        "share_of_matrix_rate": rate * flops_per_token(shape, LORA_R) / facts["matrix_flops"],
        "matrix_flops": facts["matrix_flops"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON lines, one a cell; added to")
    parser.add_argument("--seconds", type=float, required=True, help="stop after this time")
    parser.add_argument("--smoke", action="store_true", help="a tiny shape and few steps")
    arguments = parser.parse_args()
    deadline = time.monotonic() + arguments.seconds
    size = SMOKE if arguments.smoke else FULL
    done = [json.loads(line) for line in arguments.output.read_text().splitlines()] if arguments.output.exists() else []
    finished = {(cell["side"], cell["shape"], cell["data"]) for cell in done if "error" not in cell}
    with tempfile.TemporaryDirectory() as temporary:
        inputs = Path(temporary)
        words = [sys.executable, "-m", "benchmarks.gpu.inputs", str(inputs), "--rows", str(size.rows), "--shapes"]
        subprocess.run([*words, *size.shapes], cwd=ROOT, check=True, timeout=arguments.seconds)
        os.environ["SHOAL_CACHE"] = str(inputs / "cache")
        for shape, data, side in itertools.product(size.shapes, size.data, size.sides):
            left = deadline - time.monotonic()
            if (side, shape, data) in finished or left < 5:
                continue
            cell = run_cell(side, shape, data, inputs, size, left)
            with arguments.output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(cell) + "\n")


if __name__ == "__main__":
    main()
