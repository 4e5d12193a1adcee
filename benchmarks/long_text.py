"""What does reading the head, the tail, both, or all of long texts in chunks change, at the same length limit?

    python benchmarks/long_text.py                  # the cells that are not in benchmarks/results/long_text.json yet
    python benchmarks/long_text.py --seeds 0 1 2    # on three seeds

Each cell (data set, seed, `data.long_text`) trains in a fresh process, on the same rows with the same settings. Writes
long_text.json (every cell, with which test texts it had right) and long_text.md into benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from sklearn.model_selection import train_test_split

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.accuracy import PACKAGES, hardware, write_whole  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
WAYS = ("head", "tail", "head+tail", "chunk")
DATA_SETS = {"newsgroups20": "20 Newsgroups", "imdb": "IMDb"}
ROWS = {"train": 3000, "validation": 300, "test": 1000}
SETTINGS = {
    "max_seq_length": "128", "chunk_overlap": "16", "max_chunks": "8", "num_train_epochs": "3", "learning_rate": "1e-3",
    "warmup_steps": "0.05", "lora_r": "16", "lora_alpha": "32", "per_device_train_batch_size": "16",
    "per_device_eval_batch_size": "16", "report_to": "none",
}  # fmt: skip

Cell = dict[str, Any]


def parse_arguments() -> argparse.Namespace:
    """Read the command line; refuse data or a model that is not there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of imdb and newsgroups20")
    parser.add_argument("--model", type=Path, default=Path("../shared/models/llama-12m"), help="base model folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of adapter, head and order (default: 0)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--fresh", action="store_true", help="run again what is already in the results")
    arguments = parser.parse_args()
    for path in (*(arguments.data / name for name in DATA_SETS), arguments.model / "config.json"):
        if not path.exists():
            parser.error(f"{path} does not exist. Point --data and --model at the folders.")
    return arguments


def write_rows(data: Path, name: str, folder: Path) -> dict[str, Path]:
    """Write fixed stratified parts of a data set as JSON lines; return split -> file."""
    whole = {split: pd.read_json(data / name / f"{split}.jsonl.gz", lines=True) for split in ("train", "test")}
    options = {"random_state": 0, "stratify": whole["train"]["label"]}
    train, validation = train_test_split(
        whole["train"], train_size=ROWS["train"], test_size=ROWS["validation"], **options
    )
    test, _ = train_test_split(
        whole["test"], train_size=ROWS["test"], random_state=0, stratify=whole["test"]["label"]
    )  # fmt: skip
    files = {}
    for split, rows in {"train": train, "validation": validation, "test": test}.items():
        files[split] = folder / f"{name}_{split}.jsonl"
        rows.to_json(files[split], orient="records", lines=True, force_ascii=False)
    return files


def run_cell(key: Cell, model: Path, files: dict[str, Path], folder: Path) -> Cell:
    """Train one cell in a fresh process; exit 1 with the end of its log where it fails."""
    out = Path(tempfile.mkdtemp(dir=folder))
    flags = {
        **key["settings"], "long_text": key["long_text"], "seed": key["seed"], "model_name_or_path": model.resolve(),
        "output_dir": out, **{f"{split}_file": path for split, path in files.items()},
    }  # fmt: skip
    words = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    started = time.monotonic()
    run = subprocess.run(
        [sys.executable, "training/main.py", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if run.returncode != 0:
        raise SystemExit(f"{run.stderr[-3000:]}\n\n{key} failed with status {run.returncode}.")
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    predictions = pd.read_parquet(out / "predictions.parquet")
    test = predictions[predictions["split"] == "test"]
    right = (test["label"] == test["prediction"]).astype(int)
    return {
        **key,
        "accuracy": result["test"]["accuracy"],
        "macro_f1": result["test"]["macro_f1"],
        "right": "".join(map(str, right)),
        **tokens_read(key, model, files),
        "train_seconds": round(result["train"]["seconds"], 1),
        "process_seconds": round(time.monotonic() - started, 1),
        "dtype": result["model"]["dtype"],
        "date": str(date.today()),
        "hardware": hardware(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }  # fmt: skip


def tokens_read(key: Cell, model: Path, files: dict[str, Path]) -> dict[str, float]:
    """Return what is read of the test texts: tokens a text, and the share of the texts that are cut or in chunks."""
    from transformers import AutoTokenizer

    from training.spec import DataSpec
    from training.tokens import encode_texts

    sizes = {name: int(key["settings"][name]) for name in ("max_seq_length", "chunk_overlap", "max_chunks")}
    data = DataSpec(train_file="x", long_text=key["long_text"], **sizes)
    tokenizer = AutoTokenizer.from_pretrained(model)
    with files["test"].open(encoding="utf-8") as rows:  # not splitlines: texts hold other characters that end lines
        texts = [json.loads(row)["text"] for row in rows]
    lengths = [len(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]]
    return {
        "tokens_read": round(len(encode_texts(texts, tokenizer, data)["tokens"]) / len(texts), 1),
        "tokens_there": round(statistics.mean(lengths), 1),
        "share_longer": round(sum(length > data.max_seq_length for length in lengths) / len(lengths), 4),
    }


def difference(head: list[Cell], other: list[Cell]) -> tuple[float, float]:
    """Return how much more of the texts `other` has right than `head`, and half of its 95 % interval.

    Paired: of each text the difference of its means over the seeds. The interval is of the choice of texts alone.
    """
    means = [
        [statistics.mean(map(int, marks)) for marks in zip(*(cell["right"] for cell in cells), strict=True)]
        for cells in (head, other)
    ]
    differences = [b - a for a, b in zip(*means, strict=True)]
    return statistics.mean(differences), 1.96 * statistics.stdev(differences) / len(differences) ** 0.5


def table(cells: list[Cell]) -> str:
    """Return a row for each data set and way."""
    lines = [
        "| data | long_text | tokens read of a text | test accuracy by seed | mean | against head (95 %) | macro-F1 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, title in DATA_SETS.items():
        of = {way: [cell for cell in cells if (cell["data"], cell["long_text"]) == (name, way)] for way in WAYS}
        for way, found in of.items():
            if not found:
                continue
            accuracies = [cell["accuracy"] for cell in found]
            against = "–"
            if way != "head" and [cell["seed"] for cell in of["head"]] == [cell["seed"] for cell in found]:
                mean, half = difference(of["head"], found)
                against = f"{100 * mean:+.1f} ± {100 * half:.1f} points"
            each = ", ".join(f"{value:.1%}" for value in accuracies)
            f1 = statistics.mean(cell["macro_f1"] for cell in found)
            lines.append(
                f"| {title} | {way} | {found[0]['tokens_read']:g} of {found[0]['tokens_there']:g} | {each} "
                f"| {statistics.mean(accuracies):.1%} | {against} | {f1:.1%} |"
            )
    return "\n".join(lines)


def report(cells: list[Cell]) -> str:
    """Return long_text.md."""
    last = cells[-1]
    settings = ", ".join(f"{name} {value}" for name, value in last["settings"].items())
    longer = "; ".join(
        f"{title}: {cell['share_longer']:.0%}"
        for name, title in DATA_SETS.items()
        for cell in [cell for cell in cells if cell["data"] == name][:1]
    )
    return f"""# Long texts: head, tail, both, or chunks whose logits are averaged

{table(cells)}

"Against head" is paired, on the same texts: of each text the difference of its means over the seeds. Its interval is of
the choice of test texts alone and says nothing of other seeds; settings were tuned for none of the four. A chunk job
computes as much more as it reads more. The parts and the model are small: a trend, and no figure of these data sets.
Test texts of more tokens than max_seq_length: {longer}.

- Command: `python benchmarks/long_text.py`
- Model: {last["model"]}, {last["dtype"]}, LoRA on all linear layers, head trained in full
- Settings: {settings}; the epoch with the best validation macro-F1 is kept, test is evaluated once
- Rows (train / validation / test): {" / ".join(f"{number:,}" for number in last["rows"].values())} of each, stratified
- Run {" to ".join(sorted({min(c["date"] for c in cells), max(c["date"] for c in cells)}))} on \
{" and ".join(sorted({cell["hardware"] for cell in cells}))}
- Versions: {", ".join(f"{name} {number}" for name, number in last["versions"].items())}
"""


def write_results(cells: list[Cell], folder: Path) -> None:
    """Write long_text.json and long_text.md."""
    content = {"date": str(date.today()), "command": "python benchmarks/long_text.py", "cells": cells}
    texts = {"long_text.json": json.dumps(content, indent=1, ensure_ascii=False) + "\n", "long_text.md": report(cells)}
    write_whole(texts, folder)


def main() -> None:
    arguments = parse_arguments()
    stored = arguments.output / "long_text.json"
    cells: list[Cell] = json.loads(stored.read_text(encoding="utf-8"))["cells"] if stored.exists() else []
    with tempfile.TemporaryDirectory() as temporary:
        files = {name: write_rows(arguments.data, name, Path(temporary)) for name in DATA_SETS}
        for seed in arguments.seeds:
            for name in DATA_SETS:
                for way in WAYS:
                    key: Cell = {
                        "data": name, "long_text": way, "seed": seed, "model": arguments.model.resolve().name,
                        "rows": ROWS, "settings": SETTINGS,
                    }  # fmt: skip
                    same = [cell for cell in cells if all(cell.get(part) == value for part, value in key.items())]
                    if same and not arguments.fresh:
                        continue
                    cell = run_cell(key, arguments.model, files[name], Path(temporary))
                    place = (name, way, seed)
                    cells = [c for c in cells if (c["data"], c["long_text"], c["seed"]) != place] + [cell]
                    print(f"{place}: {cell['accuracy']:.1%}, {cell['process_seconds']} s", flush=True)
                    write_results(cells, arguments.output)
    print(table(cells))


if __name__ == "__main__":
    main()
