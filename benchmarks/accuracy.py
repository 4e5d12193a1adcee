"""Does Shoal reach the accuracy of plain Hugging Face Trainer + PEFT on the same rows, model and settings?

    python benchmarks/accuracy.py              # all cells that are not in benchmarks/results/accuracy.json yet
    python benchmarks/accuracy.py --only hf    # the reference's half
    python benchmarks/accuracy.py --only shoal --fresh   # Shoal's half anew, after a change to the trainer

Each cell (data set, seed, side) trains in a fresh process; the sides take turns. Both sides read the same files.
Writes accuracy.json (every cell) and accuracy.md (the table) into benchmarks/results.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from sklearn.model_selection import train_test_split

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SIDES = {"hf": "Hugging Face Trainer + PEFT", "shoal": "Shoal"}
SEEDS = (0, 1, 2)
EPOCHS = {"TREC-6": 3, "AG News, 5,000 rows": 1}
METRICS = {"accuracy": "accuracy", "macro_f1": "macro-F1"}
SETTINGS = {
    "learning_rate": "1e-3",
    "warmup_steps": "0.05",
    "lora_r": "16",
    "lora_alpha": "32",
    "lora_dropout": "0.05",
    "max_seq_length": "128",
}
"""Flags that both sides call alike. Linear decay, batch 16 and bf16 are set for each below."""
BATCH_SIZE = "16"
PACKAGES = ("torch", "transformers", "peft", "datasets", "accelerate", "deepspeed", "scikit-learn")

Cell = dict[str, Any]
Splits = dict[str, pd.DataFrame]


def parse_arguments() -> argparse.Namespace:
    """Read the command line; refuse data or a model that is not there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of trec6 and ag_news")
    parser.add_argument("--model", type=Path, default=Path("../shared/models/llama-12m"), help="base model folder")
    parser.add_argument("--only", choices=tuple(SIDES), help="run this side alone")
    parser.add_argument("--fresh", action="store_true", help="run again what is already in the results")
    arguments = parser.parse_args()
    for path in (arguments.data / "trec6", arguments.data / "ag_news", arguments.model / "config.json"):
        if not path.exists():
            parser.error(f"{path} does not exist. Point --data and --model at the folders.")
    return arguments


# --- the rows ---------------------------------------------------------------------------------------------------


def read_rows(path: Path) -> pd.DataFrame:
    """Read a CSV of text and label; a text such as "NA" stays a text."""
    return pd.read_csv(path, dtype=str, keep_default_na=False)[["text", "label"]]


def trec6(data: Path) -> Splits:
    """A fixed stratified tenth of train is validation; the 500 test rows are all used."""
    rows = read_rows(data / "trec6" / "train.csv")
    train, validation = train_test_split(rows, test_size=0.1, stratify=rows["label"], random_state=0)
    return {"train": train, "validation": validation, "test": read_rows(data / "trec6" / "test.csv")}


def ag_news(data: Path) -> Splits:
    """Fixed stratified parts: 5,000 rows of train, 500 others of train for validation, 2,000 of test."""
    rows = read_rows(data / "ag_news" / "train.csv")
    train, validation = train_test_split(rows, train_size=5000, test_size=500, stratify=rows["label"], random_state=0)
    test = read_rows(data / "ag_news" / "test.csv")
    test, _ = train_test_split(test, train_size=2000, stratify=test["label"], random_state=0)
    return {"train": train, "validation": validation, "test": test}


def write_splits(data: Path, folder: Path) -> dict[str, dict[str, Path]]:
    """Write each data set's splits as JSON lines, once; return data set -> split -> file."""
    files: dict[str, dict[str, Path]] = {}
    for name, make in zip(EPOCHS, (trec6, ag_news), strict=True):
        files[name] = {}
        for split, rows in make(data).items():
            path = folder / f"{make.__name__}_{split}.jsonl"
            rows.to_json(path, orient="records", lines=True, force_ascii=False)
            files[name][split] = path
    return files


# --- one cell ---------------------------------------------------------------------------------------------------


def cell_key(dataset: str, side: str, seed: int, model: Path, files: dict[str, Path]) -> Cell:
    """Return what a cell's result depends on; a stored cell with the same key is not run again."""
    return {
        "dataset": dataset,
        "side": side,
        "seed": seed,
        "model": model.resolve().name,
        "num_train_epochs": EPOCHS[dataset],
        "batch_size": int(BATCH_SIZE),
        "settings": SETTINGS,
        "rows": {name: path.read_bytes().count(b"\n") for name, path in files.items()},
        "rows_sha256": {name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for name, path in files.items()},
    }


def command_of(side: str, key: Cell, model: Path, files: dict[str, Path], out: Path) -> tuple[list[str], Path]:
    """Return the command that runs a cell and the JSON file it will write."""
    shared = {**SETTINGS, "seed": key["seed"], "num_train_epochs": key["num_train_epochs"]}
    shared |= {f"{split}_file": path for split, path in files.items()}
    result = out / "result.json"
    if side == "hf":
        program = "benchmarks/hf_reference.py"
        own = {"model": model.resolve(), "batch_size": BATCH_SIZE, "output": result}
    else:
        program = "training/main.py"
        own = {
            "model_name_or_path": model.resolve(),
            "per_device_train_batch_size": BATCH_SIZE,
            "lr_scheduler_type": "linear",
            "deepspeed": "ds_configs/zero2.json",
            "output_dir": out,
        }
    flags = [part for name, value in {**shared, **own}.items() for part in (f"--{name}", str(value))]
    return [sys.executable, program, *flags, "--bf16"], result


def run_cell(key: Cell, model: Path, files: dict[str, Path], folder: Path) -> Cell:
    """Train one cell in a fresh process; exit 1 with the end of its log where it fails."""
    out = Path(tempfile.mkdtemp(dir=folder))
    command, result_file = command_of(key["side"], key, model, files, out)
    log_file = folder / f"{out.name}.log"
    started = time.monotonic()
    with log_file.open("wb") as log:
        code = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    seconds = time.monotonic() - started
    if code != 0 or not result_file.exists():
        tail = "\n".join(log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-30:])
        raise SystemExit(f"{tail}\n\n{key['dataset']}, {key['side']}, seed {key['seed']} failed with status {code}.")
    result = json.loads(result_file.read_text(encoding="utf-8"))
    scores = {split: {name: result[split][name] for name in METRICS} for split in ("validation", "test")}
    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    facts = {"process_seconds": round(seconds, 1), "date": str(date.today()), "hardware": hardware()}
    return {**key, **scores, **facts, "versions": versions}


# --- the results ------------------------------------------------------------------------------------------------


def is_cell(cell: Cell, key: Cell) -> bool:
    """Tell whether a stored cell was run with just these settings on just these rows."""
    return all(cell.get(name) == value for name, value in key.items())


def hardware() -> str:
    """Return the CPU's model name and the number of cores this process may use."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {len(os.sched_getaffinity(0))} cores"


def compare(reference: list[float], ours: list[float]) -> dict[str, Any]:
    """Return means, sample deviations, and the difference of means with its standard error (Welch)."""
    deviations = [statistics.stdev(values) for values in (reference, ours)]
    error = (deviations[0] ** 2 / len(reference) + deviations[1] ** 2 / len(ours)) ** 0.5
    difference = statistics.mean(ours) - statistics.mean(reference)
    return {"difference": difference, "standard_error": error, "within_2_standard_errors": abs(difference) <= 2 * error}


def comparisons(cells: list[Cell]) -> Iterator[dict[str, Any]]:
    """Yield one row a data set and metric: mean and deviation of each side, and the comparison once both are whole."""
    for dataset in EPOCHS:
        for metric in METRICS:
            values = {
                side: [cell["test"][metric] for cell in cells if (cell["dataset"], cell["side"]) == (dataset, side)]
                for side in SIDES
            }
            row: dict[str, Any] = {"dataset": dataset, "metric": metric}
            for side, scores in values.items():
                if len(scores) == len(SEEDS):
                    row[side] = {"mean": statistics.mean(scores), "std": statistics.stdev(scores)}
            if all(side in row for side in SIDES):
                row |= compare(values["hf"], values["shoal"])
            yield row


def table(rows: list[dict[str, Any]]) -> str:
    """Return the comparisons as a Markdown table, in per cent."""
    lines = [
        f"| data | test metric | {' | '.join(SIDES.values())} | difference | its standard error | within 2 |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        sides = [f"{row[s]['mean']:.2%} ± {row[s]['std']:.2%}" if s in row else "not run" for s in SIDES]
        rest = ["–", "–", "–"]
        if "difference" in row:
            rest = [f"{row['difference'] * 100:+.2f} points", f"{row['standard_error'] * 100:.2f}"]
            rest.append("yes" if row["within_2_standard_errors"] else "NO")
        lines.append(f"| {' | '.join([row['dataset'], METRICS[row['metric']], *sides, *rest])} |")
    return "\n".join(lines)


def report(cells: list[Cell], rows: list[dict[str, Any]], command: str) -> str:
    """Return accuracy.md."""
    versions = ", ".join(f"{name} {number}" for name, number in cells[-1]["versions"].items())
    settings = ", ".join(f"{name} {value}" for name, value in SETTINGS.items())
    epochs = ", ".join(f"{dataset}: {count}" for dataset, count in EPOCHS.items())
    sizes = "; ".join(
        f"{dataset}: {' / '.join(f'{count:,}' for count in cell['rows'].values())}"
        for dataset in EPOCHS
        for cell in [cell for cell in cells if cell["dataset"] == dataset][:1]
    )
    return f"""# Accuracy: Shoal and the Hugging Face Trainer on the same rows

{table(rows)}

Mean ± sample standard deviation over seeds {", ".join(map(str, SEEDS))}. "within 2": whether the means differ by
at most 2 standard errors (Welch), that is, by no more than the seed noise. Both sides keep the epoch with the best
validation macro-F1 and evaluate test once.

- Command: `{command}`
- Model: {cells[-1]["model"]}, bf16, LoRA on all linear layers, head trained in full
- Settings: {settings}, batch_size {BATCH_SIZE}, linear decay; epochs: {epochs}; Shoal with ds_configs/zero2.json
- Rows (train / validation / test): {sizes}
- Run {" to ".join(sorted({min(c["date"] for c in cells), max(c["date"] for c in cells)}))} \
on {" and ".join(sorted({cell["hardware"] for cell in cells}))} (accuracy.json says which cell)
- Versions: {versions}
"""


def write_results(cells: list[Cell], command: str) -> None:
    """Write accuracy.json and accuracy.md, each by renaming a whole file into place."""
    rows = list(comparisons(cells))
    content = {
        "date": str(date.today()),
        "command": command,
        "comparisons": rows,
        "cells": cells,
    }
    texts = {
        "accuracy.json": json.dumps(content, indent=1, ensure_ascii=False) + "\n",
        "accuracy.md": report(cells, rows, command),
    }
    write_whole(texts, RESULTS)


def write_whole(texts: dict[str, str], folder: Path) -> None:
    """Write files of these names, each by renaming a whole one into place; the folder is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        temporary = folder / f".{name}.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(folder / name)


def main() -> None:
    arguments = parse_arguments()
    stored_file = RESULTS / "accuracy.json"
    cells: list[Cell] = json.loads(stored_file.read_text(encoding="utf-8"))["cells"] if stored_file.exists() else []
    with tempfile.TemporaryDirectory() as temporary:
        files = write_splits(arguments.data, Path(temporary))
        for dataset in EPOCHS:
            for seed in SEEDS:
                for side in [arguments.only] if arguments.only else SIDES:
                    key = cell_key(dataset, side, seed, arguments.model, files[dataset])
                    if not arguments.fresh and any(is_cell(cell, key) for cell in cells):
                        continue
                    cell = run_cell(key, arguments.model, files[dataset], Path(temporary))
                    place = (dataset, side, seed)
                    cells = [c for c in cells if (c["dataset"], c["side"], c["seed"]) != place] + [cell]
                    print(f"{dataset}, {side}, seed {seed}: {cell['test']}, {cell['process_seconds']} s", flush=True)
                    write_results(cells, "python benchmarks/accuracy.py")
    print(table(list(comparisons(cells))))


if __name__ == "__main__":
    main()
