"""Does a job in fp16 reach the accuracy of the same job in fp32?

    python benchmarks/accuracy_fp16.py            # cells that are not in benchmarks/results/accuracy_fp16.json yet
    python benchmarks/accuracy_fp16.py --fresh    # all anew, after a change to the trainer

1,500 rows of TREC-6, two epochs, seeds 0 to 2, each job in a fresh process. On a CPU, where fp16's products are those
of benchmarks/fp16_products.py: as a card's tensor cores multiply, fp32 sums rounded to fp16 once. Loss scaling, ZeRO,
evaluation and verification are the trainer's own. Writes accuracy_fp16.json and accuracy_fp16.md into
benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# The script puts benchmarks/ first on the path; the checkout must come before an installed one.
sys.path.insert(0, str(ROOT))

from benchmarks.accuracy import (  # noqa: E402
    BATCH_SIZE,
    METRICS,
    PACKAGES,
    RESULTS,
    SEEDS,
    SETTINGS,
    compare,
    hardware,
    trec6,
    write_whole,
)

DTYPES = ("fp32", "fp16")
SIZES = {"num_train_epochs": "2", "max_train_samples": "1500", "max_eval_samples": "300"}
TRAIN = "--train"
"""First argument of a process that runs one job; training/main.py's flags follow."""

Cell = dict[str, Any]


def train(flags: list[str]) -> int:
    """Run training/main.py in this process, whose fp16 products go by way of fp32."""
    from benchmarks.fp16_products import multiply_fp16_by_way_of_fp32
    from training.main import main as train_main

    multiply_fp16_by_way_of_fp32()
    return train_main(flags)


def run_cell(dtype: str, seed: int, model: Path, folder: Path) -> Cell:
    """Train one cell in a fresh process; exit 1 with the end of its log where it fails."""
    out = Path(tempfile.mkdtemp(dir=folder))
    flags = {
        **SETTINGS, **SIZES, "seed": str(seed), "model_name_or_path": str(model.resolve()), "output_dir": str(out),
        "per_device_train_batch_size": BATCH_SIZE, "deepspeed": "ds_configs/zero2.json", "report_to": "none",
        **{f"{split}_file": str(folder / f"{split}.jsonl") for split in ("train", "validation", "test")},
    }  # fmt: skip
    words = [part for name, value in flags.items() for part in (f"--{name}", value)]
    command = [sys.executable, str(Path(__file__).resolve()), TRAIN, *words, f"--fp16={str(dtype == 'fp16').lower()}"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise SystemExit(f"{run.stderr[-3000:]}\n\n{dtype}, seed {seed} failed with status {run.returncode}.")
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    events = [json.loads(line) for line in (out / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    overflows = sum("is made again" in event.get("message", "") for event in events if event["kind"] == "log")
    assert result["model"]["dtype"] == {"fp16": "float16", "fp32": "float32"}[dtype]
    return {
        "dtype": dtype,
        "seed": seed,
        "settings": {**SETTINGS, **SIZES, "batch_size": BATCH_SIZE},
        "model": model.resolve().name,
        "test": {name: result["test"][name] for name in METRICS},
        "steps": result["train"]["steps"],
        "steps_made_again": overflows,
        "max_logit_difference": result["adapter"]["max_logit_difference"],
        "date": str(date.today()),
        "hardware": hardware(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }


def comparison(cells: list[Cell], metric: str) -> dict[str, Any]:
    """Return mean and deviation of each precision, and how far apart they are."""
    values = {dtype: [cell["test"][metric] for cell in cells if cell["dtype"] == dtype] for dtype in DTYPES}
    row: dict[str, Any] = {"metric": metric}
    for dtype, scores in values.items():
        row[dtype] = {"mean": statistics.mean(scores), "std": statistics.stdev(scores)}
    return row | compare(values["fp32"], values["fp16"])


def report(cells: list[Cell], rows: list[dict[str, Any]]) -> str:
    """Return accuracy_fp16.md."""
    lines = [
        f"| {METRICS[row['metric']]} | "
        + " | ".join(f"{row[dtype]['mean']:.2%} ± {row[dtype]['std']:.2%}" for dtype in DTYPES)
        + f" | {row['difference'] * 100:+.2f} points | {row['standard_error'] * 100:.2f} | "
        + ("yes |" if row["within_2_standard_errors"] else "NO |")
        for row in rows
    ]
    fp16 = [cell for cell in cells if cell["dtype"] == "fp16"]
    last = cells[-1]
    versions = ", ".join(f"{name} {number}" for name, number in last["versions"].items())
    settings = ", ".join(f"{name} {value}" for name, value in last["settings"].items())
    return f"""# Accuracy in fp16 and in fp32

| TREC-6, test | fp32 | fp16 | difference | its standard error | within 2 |
|---|---|---|---|---|---|
{chr(10).join(lines)}

Mean ± sample standard deviation over seeds {", ".join(map(str, SEEDS))}; "within 2" as in accuracy.md. Of the
{fp16[0]["steps"]} steps of each fp16 job, {" / ".join(str(cell["steps_made_again"]) for cell in fp16)} were made again
after an overflow. No card has run this: a CPU did, with products as a card's tensor cores make them
(benchmarks/fp16_products.py).

- Command: `python benchmarks/accuracy_fp16.py`
- Model: {last["model"]}, LoRA on all linear layers, head trained in full, ds_configs/zero2.json
- Settings: {settings}, linear decay
- Run on {" and ".join(sorted({cell["hardware"] for cell in cells}))}, {max(cell["date"] for cell in cells)}
- Versions: {versions}
"""


def parse_arguments() -> argparse.Namespace:
    """Read the command line; refuse data or a model that is not there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of trec6")
    parser.add_argument("--model", type=Path, default=Path("../shared/models/llama-12m"), help="base model folder")
    parser.add_argument("--fresh", action="store_true", help="run again what is already in the results")
    arguments = parser.parse_args()
    for path in (arguments.data / "trec6", arguments.model / "config.json"):
        if not path.exists():
            parser.error(f"{path} does not exist. Point --data and --model at the folders.")
    return arguments


def main() -> int:
    """Run the cells that are missing, write what there is after each."""
    if sys.argv[1:2] == [TRAIN]:
        return train(sys.argv[2:])
    arguments = parse_arguments()
    stored = RESULTS / "accuracy_fp16.json"
    cells: list[Cell] = []
    if stored.exists() and not arguments.fresh:
        cells = json.loads(stored.read_text(encoding="utf-8"))["cells"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for split, rows in trec6(arguments.data).items():
            rows.to_json(folder / f"{split}.jsonl", orient="records", lines=True, force_ascii=False)
        for seed in SEEDS:
            for dtype in DTYPES:
                if any((cell["dtype"], cell["seed"]) == (dtype, seed) for cell in cells):
                    continue
                cells.append(run_cell(dtype, seed, arguments.model, folder))
                print(f"{dtype}, seed {seed}: {cells[-1]['test']}", flush=True)
                texts = {"accuracy_fp16.json": json.dumps({"cells": cells}, indent=1) + "\n"}
                if len(cells) == len(DTYPES) * len(SEEDS):
                    rows = [comparison(cells, metric) for metric in METRICS]
                    texts["accuracy_fp16.md"] = report(cells, rows)
                write_whole(texts, RESULTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
