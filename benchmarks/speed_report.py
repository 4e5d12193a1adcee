"""The results of `speed.py`: speed.json holds every cell, speed.md the tables made of them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

from speed_cells import DEEPSPEED, SETTINGS, Cell
from speed_clock import WARMUP_STEPS
from speed_material import DATA_SETS, LORA_R

PEERS = {
    "hf-usual": "Hugging Face Trainer + PEFT as most people run it: random batches of 8 padded to the longest, "
    "activation checkpointing, bf16",
    "hf-tuned": "the same as well as we can: bf16, grouped by length, no checkpointing, the fastest batch size of "
    "16, 32 and 64",
    "ms-swift": "`swift sft --task_type seq_cls` with its defaults (activation checkpointing), batch 8, bf16",
}
TARGETS = {
    ("hf-usual", "ag_news"): 3.0,
    ("hf-tuned", "ag_news"): 1.5,
    ("hf-tuned", "imdb"): 1.3,
    ("hf-tuned", "newsgroups20"): 1.3,
}
"""Tokens/s of Shoal over those of the peer; elsewhere 1: never slower."""
GROUP = ("data_set", "model", "side", "zero", "batch_size")

Row = dict[str, Any]


def read_cells(folder: Path) -> list[Cell]:
    """Return the stored cells."""
    file = folder / "speed.json"
    cells: list[Cell] = json.loads(file.read_text(encoding="utf-8"))["cells"] if file.exists() else []
    return cells


def grouped(cells: list[Cell]) -> dict[tuple[Any, ...], dict[int, Cell]]:
    """Return (data set, model, side, ZeRO, batch size) -> repetition -> cell."""
    groups: dict[tuple[Any, ...], dict[int, Cell]] = {}
    for cell in cells:
        if cell["kind"] == "cell":
            groups.setdefault(tuple(cell[name] for name in GROUP), {})[cell["repetition"]] = cell
    return groups


def medians(cells: dict[int, Cell]) -> Row:
    """Return the medians over repetitions of every measured figure."""
    names = (
        "samples_per_second", "tokens_per_second", "padding", "share_of_matmul", "matmul_flops", "start_up_seconds",
        "process_seconds", "peak_rss_bytes",
    )  # fmt: skip
    return {name: statistics.median(cell[name] for cell in cells.values()) for name in names}


def comparisons(cells: list[Cell]) -> Iterator[Row]:
    """Yield a row for every peer's cells whose partners of Shoal are there; ratios are of the same repetition."""
    groups = grouped(cells)
    for (data_set, model, side, zero, batch_size), theirs in sorted(groups.items(), key=lambda item: sort_key(item[0])):
        ours = groups.get((data_set, model, "shoal", zero, batch_size), {})
        both = theirs.keys() & ours.keys()
        if side == "shoal" or not both:
            continue
        ratios = [ours[r]["tokens_per_second"] / theirs[r]["tokens_per_second"] for r in sorted(both)]
        target = TARGETS.get((side, data_set), 1.0)
        yield {
            "data_set": data_set, "model": model, "peer": side, "zero": zero, "batch_size": batch_size,
            "theirs": medians({r: theirs[r] for r in both}), "ours": medians({r: ours[r] for r in both}),
            "ratio": statistics.median(ratios), "ratios": ratios, "target": target,
            "met": statistics.median(ratios) >= target,
        }  # fmt: skip


def sort_key(group: tuple[Any, ...]) -> tuple[Any, ...]:
    """Order groups as the command line does, not by letter."""
    data_set, model, side, zero, batch_size = group
    sides, zeros = ["shoal", *PEERS], list(DEEPSPEED)
    return (model, list(DATA_SETS).index(data_set), sides.index(side), zeros.index(zero), batch_size)


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def ratio_table(rows: list[Row]) -> str:
    """Return Shoal beside each peer, medians over repetitions."""
    header = ["model", "data", "peer", "its ZeRO", "batch", "samples/s: peer", "Shoal", "tokens/s: peer", "Shoal"]
    header += ["Shoal / peer (least to most)", "target"]
    lines = []
    for row in rows:
        theirs, ours = row["theirs"], row["ours"]
        spread = f" ({min(row['ratios']):.2f} to {max(row['ratios']):.2f})" if len(row["ratios"]) > 1 else ""
        lines.append([
            row["model"], DATA_SETS[row["data_set"]][0], row["peer"], row["zero"], str(row["batch_size"]),
            f"{theirs['samples_per_second']:.1f}", f"{ours['samples_per_second']:.1f}",
            f"{theirs['tokens_per_second']:,.0f}", f"{ours['tokens_per_second']:,.0f}",
            f"**{row['ratio']:.2f}**{spread}", f"{row['target']:g}: {'met' if row['met'] else 'MISSED'}",
        ])  # fmt: skip
    return table(header, lines)


def cell_table(cells: list[Cell]) -> str:
    """Return what was recorded beside, medians over repetitions."""
    header = ["model", "data", "side", "ZeRO", "batch", "tokens/s", "padding", "share of matrix products", "start-up"]
    header += ["whole process", "peak RSS", "runs"]
    lines = []
    for group, runs in sorted(grouped(cells).items(), key=lambda item: sort_key(item[0])):
        data_set, model, side, zero, batch_size = group
        row = medians(runs)
        lines.append([
            model, DATA_SETS[data_set][0], side, zero, str(batch_size), f"{row['tokens_per_second']:,.0f}",
            f"{row['padding']:.0%}", f"{row['share_of_matmul']:.0%}", f"{row['start_up_seconds']:.0f} s",
            f"{row['process_seconds']:.0f} s", f"{row['peak_rss_bytes'] / 2**30:.1f} GiB", str(len(runs)),
        ])  # fmt: skip
    return table(header, lines)


def calibration_table(cells: list[Cell]) -> str:
    """Return the calibrations that chose hf-tuned's batch size."""
    found = [cell for cell in cells if cell["kind"] == "calibration"]
    found.sort(key=lambda cell: sort_key(tuple(cell[name] for name in GROUP)))
    lines = [
        [cell["model"], DATA_SETS[cell["data_set"]][0], cell["zero"], str(cell["batch_size"]),
         f"{cell['tokens_per_second']:,.0f}"]
        for cell in found
    ]  # fmt: skip
    return table(["model", "data", "ZeRO", "batch", "tokens/s"], lines)


def report(cells: list[Cell], rows: list[Row], command: str) -> str:
    """Return speed.md."""
    versions = {tuple(cell["versions"].items()) for cell in cells}
    version_lines = "\n".join(f"- Versions: {', '.join(f'{n} {v}' for n, v in pairs)}" for pairs in sorted(versions))
    days = sorted({cell["date"] for cell in cells})
    rates = sorted(cell["matmul_flops"] for cell in cells)
    lengths = ", ".join(f"{length} for {title}" for title, _, length in DATA_SETS.values())
    peers = "\n".join(f"- `{name}`: {what}" for name, what in PEERS.items())
    return f"""# Speed: training steps of Shoal and of its peers

{ratio_table(rows)}

Tokens are real ones, padding not counted. The ratio is of tokens/s, which do not depend on the texts a cell happens to
draw: the median over repetitions of the ratio of two runs of the same repetition. Shoal runs `python training/main.py`
with its defaults (ds_configs/zero1.json) at the peer's batch size against peers without DeepSpeed ("plain"), and under
the same file of ds_configs/ against peers with one.

{peers}

## Beside it

{cell_table(cells)}

- tokens/s: of the steps after the first {WARMUP_STEPS}, from the end of one step to the end of the last. Shoal's are
  the step events of events.jsonl; the peers' are taken by a TrainerCallback at `on_step_end` (ms-swift's trainer is
  built on the same one). Imports, tokenization, evaluation and saving are not in it; evaluation and saving are
  in Shoal's whole process and not in the peers'.
- share of matrix products: (4 P + 6 A) FLOPs a token x tokens/s, over the rate of 2048 x 2048 products measured
  right before the cell on as many threads ({rates[0] / 1e9:,.0f} to {rates[-1] / 1e9:,.0f} GFLOP/s here). P: weights of
  the frozen linear layers (2 P forward, 2 P backward, for the gradient of the inputs alone); A: weights of the adapters
  (2 A forward, 4 A backward). Attention scores, norms and what is computed twice are not counted.
- start-up: from the start of the process to the end of its first step (Shoal's evaluation of the untrained model
  included). peak RSS: of the largest process of the run.
- hf-tuned trains on whole batches of the Trainer's own grouping by length, evenly spread over their lengths, since
  within a group of 50 the longest come first.

## Calibration of hf-tuned

{calibration_table(cells)}

## How

- Command: `{command}`
- LoRA r {LORA_R} on all linear layers, head trained, {", ".join(f"{n} {v}" for n, v in SETTINGS.items())}, bf16
- max_seq_length: {lengths}; rows a side sees: {max(cell["num_rows"] for cell in cells):,} at most, the same for all
- Run {" to ".join(sorted({days[0], days[-1]}))} on {" and ".join(sorted({cell["hardware"] for cell in cells}))}, \
{" and ".join(sorted({str(cell["num_threads"]) for cell in cells}))} threads a process
{version_lines}
"""


def write_results(cells: list[Cell], folder: Path, command: str = "python benchmarks/speed.py") -> None:
    """Write speed.json and speed.md, each by renaming a whole file into place."""
    rows = list(comparisons(cells))
    content = {"date": str(date.today()), "command": command, "comparisons": rows, "cells": cells}
    texts = {
        "speed.json": json.dumps(content, indent=1, ensure_ascii=False) + "\n",
        "speed.md": report(cells, rows, command),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        temporary = folder / f".{name}.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(folder / name)
