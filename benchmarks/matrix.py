"""Which settings work together: train, save, reload without Shoal, and find the same logits again.

    python benchmarks/matrix.py                              # all cells, ten to twenty minutes on two cores
    python benchmarks/matrix.py --quick --output /tmp/quick  # a few cells, the same each time; README is left alone

{none, nf4, int8} x ZeRO {0, 1, 2, 3} x offload {none, optimizer, optimizer+param} x {1, 2} ranks x {2, 4, 20} classes,
then DoRA, rsLoRA and bf16. Each cell trains a tiny random LLaMA for five steps; a new process puts the adapter on a
fresh base with transformers and PEFT alone and compares the logits of the test split with predictions.parquet.
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
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# `python benchmarks/matrix.py` puts benchmarks/ first on the path; the checkout must come before an installed one.
sys.path.insert(0, str(ROOT))

from benchmarks.forked import preload, run_forked  # noqa: E402
from benchmarks.matrix_job import CLASSES, Cell, run_cell, write_inputs  # noqa: E402
from benchmarks.matrix_report import OFFLOADS, QUANTIZATIONS, STAGES, header, report, write_readme  # noqa: E402

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
    return cells + [Cell(quantization="none", stage=stage, dtype="bf16") for stage in STAGES]


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


def run_cells(cells: list[Cell]) -> list[dict[str, Any]]:
    """Run each cell in forked processes; say what came out as it comes."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        os.environ["SHOAL_CACHE"] = str(work / "cache")
        inputs = work / "inputs"
        inputs.mkdir()
        if run_forked(partial(write_inputs, inputs), work / "inputs.log") != 0:
            raise SystemExit((work / "inputs.log").read_text(encoding="utf-8"))
        results = []
        for number, cell in enumerate(cells, 1):
            result = run_cell(cell, inputs, work)
            results.append(result)
            said = result.get("message") or f"difference {result['difference']:.1e}"
            print(f"{number}/{len(cells)} {cell.name}: {result['outcome']}, {said}", flush=True)
            if result["outcome"] == "failed":
                print((work / f"{cell.name}.log").read_text(encoding="utf-8", errors="replace")[-3000:], flush=True)
        return results


def main() -> int:
    """Run the cells, write the results; exit status 1 where a cell failed or gave other logits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few cells; README.md is left as it is")
    parser.add_argument("--output", type=Path, help="folder of the results (default: benchmarks/results)")
    arguments = parser.parse_args()
    if arguments.quick and arguments.output is None:
        parser.error("--quick needs --output FOLDER, so that the whole matrix is not overwritten.")
    preload()
    results = run_cells(quick_cells() if arguments.quick else all_cells())
    content = {**header("python benchmarks/matrix.py" + (" --quick" if arguments.quick else "")), "cells": results}
    output = arguments.output or RESULTS
    output.mkdir(parents=True, exist_ok=True)
    (output / "matrix.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (output / "matrix.md").write_text(report(content), encoding="utf-8")
    if output == RESULTS:
        write_readme(results, ROOT / "README.md")
    bad = [result for result in results if result["outcome"] not in ("yes", "refused")]
    print(f"{len(results)} cells, {len(bad)} of them failed or differ")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
