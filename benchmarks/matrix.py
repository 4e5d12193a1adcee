"""Which settings work together: train, save, reload without Shoal, and find the same logits again.

    python benchmarks/matrix.py                              # all cells not in matrix.json yet: 10 to 20 minutes
    python benchmarks/matrix.py --fresh                      # all cells anew, after a change to the trainer
    python benchmarks/matrix.py --quick --output /tmp/quick  # a few cells, the same each time; README is left alone

{none, nf4, int8} x ZeRO {0, 1, 2, 3} x offload {none, optimizer, optimizer+param} x {1, 2} ranks x {2, 4, 20} classes,
then DoRA, rsLoRA, bf16 and fp16. Each cell trains a tiny random LLaMA for five steps; a new process puts the adapter
on a fresh base with transformers and PEFT alone and compares the logits of the test split with predictions.parquet.
Writes matrix.json and matrix.md into the output folder, and the tables into README.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# `python benchmarks/matrix.py` puts benchmarks/ first on the path; the checkout must come before an installed one.
sys.path.insert(0, str(ROOT))

from benchmarks.forked import preload, run_forked  # noqa: E402
from benchmarks.matrix_job import CLASSES, Cell, run_cell, write_inputs  # noqa: E402
from benchmarks.matrix_report import OFFLOADS, QUANTIZATIONS, STAGES, header, readme_part, report, select  # noqa: E402
from benchmarks.readme_part import write_part  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
QUICK_CELLS = 2
"""Cells of each quantization in a quick run."""


def all_cells() -> list[Cell]:
    """Return every cell of the matrix."""
    cells = [
        Cell(quantization=quantization, stage=stage, offload=offload, num_ranks=num_ranks, num_classes=num_classes)
        for quantization, stage, offload, num_ranks, num_classes in itertools.product(
            QUANTIZATIONS, STAGES, OFFLOADS, (1, 2), CLASSES
        )
    ]
    for variant, quantization, stage in itertools.product(("dora", "rslora"), ("none", "nf4"), (2, 3)):
        cells.append(Cell(quantization=quantization, stage=stage, variant=variant))
    cells += [Cell(quantization="none", stage=stage, dtype="bf16") for stage in STAGES]
    cells += [Cell(quantization="none", stage=stage, dtype="fp16") for stage in STAGES]
    return cells + [Cell(quantization="nf4", stage=stage, dtype="fp16") for stage in (2, 3)]


def quick_cells() -> list[Cell]:
    """Return a few cells of each quantization, the same each time, and one whose offload is refused."""
    draw = random.Random(0)
    runnable = [cell for cell in all_cells() if cell.offload == "none" or cell.stage == max(STAGES)]
    chosen = [
        cell
        for quantization in QUANTIZATIONS
        for cell in draw.sample([cell for cell in runnable if cell.quantization == quantization], QUICK_CELLS)
    ]
    return [*chosen, Cell(quantization="none", stage=0, offload="optimizer", num_ranks=2)]


def stored_cells(file: Path, versions: dict[str, str]) -> list[dict[str, Any]]:
    """Return the cells of an earlier run with the same versions that are right or refused; others are run again."""
    if not file.exists():
        return []
    content = json.loads(file.read_text(encoding="utf-8"))
    good = [cell for cell in content["cells"] if cell["outcome"] in ("yes", "refused")]
    return good if content["versions"] == versions else []


def run_cells(cells: list[Cell]) -> Iterator[dict[str, Any]]:
    """Run each cell in forked processes; say what came out as it comes."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        os.environ["SHOAL_CACHE"] = str(work / "cache")
        inputs = work / "inputs"
        inputs.mkdir()
        if run_forked(partial(write_inputs, inputs), work / "inputs.log") != 0:
            raise SystemExit((work / "inputs.log").read_text(encoding="utf-8"))
        for number, cell in enumerate(cells, 1):
            result = run_cell(cell, inputs, work)
            said = result.get("message") or f"difference {result['difference']:.1e}"
            print(f"{number}/{len(cells)} {cell.name}: {result['outcome']}, {said}", flush=True)
            if result["outcome"] == "failed":
                print((work / f"{cell.name}.log").read_text(encoding="utf-8", errors="replace")[-3000:], flush=True)
            yield result


def write_results(content: dict[str, Any], output: Path) -> None:
    """Write matrix.json and matrix.md, each by renaming a whole file into place."""
    texts = {
        "matrix.json": json.dumps(content, indent=1, ensure_ascii=False) + "\n",
        "matrix.md": report(content),
    }
    output.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        temporary = output / f".{name}.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(output / name)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few cells; README.md is left as it is")
    parser.add_argument("--fresh", action="store_true", help="run again what is already in the results")
    parser.add_argument("--output", type=Path, help="folder of the results (default: benchmarks/results)")
    arguments = parser.parse_args()
    if arguments.quick and arguments.output is None:
        parser.error("--quick needs --output FOLDER, so that the whole matrix is not overwritten.")
    return arguments


def main() -> int:
    """Run the cells, write the results; exit status 1 where a cell failed or gave other logits."""
    arguments = parse_arguments()
    output = arguments.output or RESULTS
    content = header("python benchmarks/matrix.py" + (" --quick" if arguments.quick else ""))
    wanted = quick_cells() if arguments.quick else all_cells()
    stored = [] if arguments.fresh else stored_cells(output / "matrix.json", content["versions"])
    results = {cell: result for cell in wanted for result in select(stored, **asdict(cell))}
    left = [cell for cell in wanted if cell not in results]
    if left:
        preload()
        for cell, result in zip(left, run_cells(left), strict=True):
            results[cell] = result
            write_results({**content, "cells": [results[cell] for cell in wanted if cell in results]}, output)
    if output == RESULTS:
        write_part("matrix", readme_part([results[cell] for cell in wanted]), ROOT / "README.md")
    bad = [result for result in results.values() if result["outcome"] not in ("yes", "refused")]
    print(f"{len(results)} cells, {len(bad)} of them failed or differ")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
