"""Is the setting that the planner picks the fastest? Every setting of a grid is measured, and its costs are fitted.

    python benchmarks/planner.py                # about 35 minutes; writes benchmarks/results/planner.*

Trains a random LLaMA for a few steps under each combination of precision, DeepSpeed file, gradient checkpointing and
micro-batch, one rank and two, with `training/main.py`. The grid is gone through twice, the second time backwards, and a
cell's time is the shorter of its two medians: whatever else the machine does only adds to it. `launcher.cost` says what
a job does under each; what one of each costs is fitted (non-negative least squares, SciPy) to every other cell, and the
pick is checked on all of them: for each precision, whatever part of the grid fits a card, the cell with the least
expected time against the fastest.

Exit status 1 where a pick is more than 10 % slower than the best.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.word_tokenizer import save_word_tokenizer  # noqa: E402
from launcher.cost import CPU  # noqa: E402
from training.calibration.costs import Quantities, Shape, step_amounts  # noqa: E402
from training.calibration.costs import seconds as expected  # noqa: E402
from training.forecast.memory_estimate import Work  # noqa: E402
from training.ranks import free_port  # noqa: E402

FILES = ("zero1", "zero2_offload", "zero3", "zero3_offload_param")
CUTS = ((16, 1), (4, 4))
"""Texts of a micro-batch x micro-batches of a step."""
STEPS, SKIPPED = 9, 3
MAX_LENGTH = 64
HIDDEN, LAYERS = 256, 8
MOST_OVER_BEST = 1.10


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One setting of the grid."""

    quantization: str
    file: str
    checkpointing: bool
    per_device: int
    accumulation: int
    num_ranks: int

    @property
    def name(self) -> str:
        recompute = ", checkpointing" if self.checkpointing else ""
        sizes = f"{self.per_device} x {self.accumulation}"
        return f"{self.quantization}, {self.file}, {sizes}, {self.num_ranks} rank(s){recompute}"


def grid() -> Iterator[Cell]:
    for quantization, file, checkpointing, (size, steps) in itertools.product(
        ("none", "nf4"), FILES, (False, True), CUTS
    ):
        yield Cell(
            quantization=quantization, file=file, checkpointing=checkpointing, per_device=size, accumulation=steps,
            num_ranks=1,
        )  # fmt: skip
    for quantization, file in itertools.product(("none", "nf4"), ("zero1", "zero3")):
        yield Cell(
            quantization=quantization, file=file, checkpointing=False, per_device=8, accumulation=1, num_ranks=2
        )  # fmt: skip


def make_material(folder: Path) -> int:
    """Write model and data; return the weights of the model without its embeddings."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    words = [f"word{number}" for number in range(500)]
    draw = random.Random(0)
    for name, rows in (("train", 16 * STEPS), ("validation", 8)):
        lines = [
            json.dumps({"text": " ".join(draw.choices(words, k=draw.randint(20, MAX_LENGTH - 2))), "label": row % 2})
            for row in range(rows)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    save_word_tokenizer(words, folder / "model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=HIDDEN, intermediate_size=704, num_hidden_layers=LAYERS, num_attention_heads=8,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder / "model")
    return sum(parameter.numel() for parameter in model.model.layers.parameters())


def measure(cell: Cell, material: Path) -> float:
    """Train a few steps in fresh processes; return the median seconds of a step after the first ones."""
    with tempfile.TemporaryDirectory() as out:
        flags = [
            f"--model_name_or_path={material / 'model'}", f"--train_file={material / 'train.jsonl'}",
            f"--validation_file={material / 'validation.jsonl'}", f"--max_seq_length={MAX_LENGTH}", "--bf16=false",
            f"--max_steps={STEPS}", f"--per_device_train_batch_size={cell.per_device}",
            f"--gradient_accumulation_steps={cell.accumulation}", f"--deepspeed=ds_configs/{cell.file}.json",
            f"--gradient_checkpointing={str(cell.checkpointing).lower()}", f"--output_dir={out}/job",
            *(["--load_in_4bit"] if cell.quantization == "nf4" else []),
        ]  # fmt: skip
        command = [sys.executable, "training/main.py", *flags]
        # As on the launcher's virtual cards: a rank has one core.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        if cell.num_ranks > 1:
            launcher = str(Path(sys.executable).parent / "deepspeed")
            ports = ["--num_gpus", str(cell.num_ranks), "--master_port", str(free_port())]
            command = [launcher, *ports, "training/main.py", *flags]
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if run.returncode:
            raise RuntimeError(f"{cell.name}: {run.stdout[-1000:]}{run.stderr[-2000:]}")
        lines = (Path(out) / "job" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    times = [event["time"] for event in map(json.loads, lines) if event["kind"] == "step"]
    return statistics.median(later - earlier for earlier, later in itertools.pairwise(times[SKIPPED - 1 :]))


def amounts_of(cell: Cell, parameters: int) -> Quantities:
    """Return what a rank does in one step of a cell."""
    tokens = 16 * (20 + MAX_LENGTH) // 2
    work = Work(parameters=parameters, layers=LAYERS, tokens=tokens, evaluated_tokens=0, steps=1)
    zero = json.loads((ROOT / f"ds_configs/{cell.file}.json").read_text())["zero_optimization"]
    shape = Shape(
        work=work, quantization=cell.quantization, dtype="fp32", stage=zero["stage"], num_ranks=cell.num_ranks,
        recomputes=cell.checkpointing, offloads_optimizer="offload_optimizer" in zero,
        offloads_base=False,  # all memory is the host's here
    )  # fmt: skip
    budget = cell.per_device * MAX_LENGTH
    micro_batches = max(1, math.ceil(tokens / cell.num_ranks / budget))
    return step_amounts(shape, tokens=tokens / cell.num_ranks, pairs=0.0, micro_batches=micro_batches)


def fit(cells: Sequence[Cell], seconds: Sequence[float], parameters: int) -> Quantities:
    """Return the costs that give the measured times with the least squared relative error; none is negative."""
    import numpy as np
    from scipy.optimize import nnls

    rows = np.array([astuple(amounts_of(cell, parameters)) for cell in cells]) / np.array(seconds)[:, None]
    scale = np.where(rows.max(axis=0) > 0, rows.max(axis=0), 1.0)
    found, _ = nnls(rows / scale, np.ones(len(cells)))
    return Quantities(
        **dict(zip([item.name for item in fields(Quantities)], (float(x) for x in found / scale), strict=True))
    )


def picks(rows: Sequence[dict[str, Any]], by: str) -> Iterator[dict[str, Any]]:
    """Yield, for each part of the grid that may be all that fits, the pick and the best.

    `by` is what of a row the pick goes by: "expected_seconds", or "shipped_seconds" of launcher.cost's own guesses.
    """
    for quantization, files, checkpointing, sizes in itertools.product(
        ("none", "nf4"),
        [some for number in range(1, len(FILES) + 1) for some in itertools.combinations(FILES, number)],
        ((False, True), (True,)),
        ((16, 8, 4), (4,)),
    ):
        part = [
            row for row in rows
            if row["cell"]["quantization"] == quantization and row["cell"]["file"] in files
            and row["cell"]["checkpointing"] in checkpointing and row["cell"]["per_device"] in sizes
        ]  # fmt: skip
        pick = min(part, key=lambda row: float(row[by]))
        best = min(part, key=lambda row: float(row["seconds"]))
        yield {"pick": pick["name"], "best": best["name"], "ratio": pick["seconds"] / best["seconds"], "of": len(part)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--cells", type=int, help="at most so many cells, for a quick look; nothing is judged")
    options = parser.parse_args()
    cells = list(grid())[: options.cells]
    with tempfile.TemporaryDirectory() as folder:
        parameters = make_material(Path(folder))
        medians: dict[str, list[float]] = {cell.name: [] for cell in cells}
        for number, cell in enumerate([*cells, *reversed(cells)], start=1):
            medians[cell.name].append(measure(cell, Path(folder)))
            print(f"{number}/{2 * len(cells)} {cell.name}: {medians[cell.name][-1]:.3f} s a step", flush=True)
    seconds = [min(medians[cell.name]) for cell in cells]
    costs = fit(cells[::2], seconds[::2], parameters)
    rows = [
        {"name": cell.name, "cell": asdict(cell), "seconds": measured, "medians": medians[cell.name],
         "expected_seconds": expected(costs, amounts_of(cell, parameters)),
         "shipped_seconds": expected(CPU, amounts_of(cell, parameters))}
        for cell, measured in zip(cells, seconds, strict=True)
    ]  # fmt: skip
    ways = ("expected_seconds", "shipped_seconds") if options.cells is None else ()
    chosen = {by: list(picks(rows, by)) for by in ways}
    worst = {by: max(pick["ratio"] for pick in found) for by, found in chosen.items()}
    content = {
        "date": date.today().isoformat(), "command": "python benchmarks/planner.py", "machine": _machine(),
        "parameters": parameters, "costs": asdict(costs), "cells": rows, "picks": chosen,
        "worst_pick": worst,
    }  # fmt: skip
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "planner.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (options.output / "planner.md").write_text(_markdown(content), encoding="utf-8")
    print(json.dumps(content["costs"]), f"worst pick: {content['worst_pick']}")
    return 0 if all(ratio <= MOST_OVER_BEST for ratio in worst.values()) else 1


def _machine() -> str:
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    import torch

    return f"{len(names)} cores of {names[0] if names else platform.processor()}, torch {torch.__version__}"


def _markdown(content: dict[str, Any]) -> str:
    lines = [
        "# The planner's picks against every setting measured", "",
        "| setting | seconds a step | the other time | expected | expected / measured |",
        "| --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for row in content["cells"]:
        ratio = row["expected_seconds"] / row["seconds"]
        times = [row["seconds"], max(row["medians"]), row["expected_seconds"]]
        lines.append(f"| {row['name']} | {' | '.join(f'{time:.3f}' for time in times)} | {ratio:.2f} |")
    said = {"expected_seconds": "these costs", "shipped_seconds": "the guesses that stand in `launcher/cost.py`"}
    for by, found in content["picks"].items():
        right = sum(pick["ratio"] == 1.0 for pick in found)
        lines += [
            "",
            f"By {said[by]}: of {len(found)} parts of the grid (some files, with or without checkpointing, large "
            f"micro-batches or not: what may be all that fits) the pick was the fastest in {right}; "
            f"the worst took {content['worst_pick'][by]:.3f} x the time of the best. To reach: 1.10.",
        ]
    costs = ", ".join(f"{name} {value:.2g}" for name, value in content["costs"].items())
    lines += [
        "", f"Costs, fitted to every other cell: {costs}.",
        "", f"{content['date']}, {content['machine']}: `{content['command']}`.", "",
    ]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
