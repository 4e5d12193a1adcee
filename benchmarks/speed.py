"""How fast does Shoal train beside what people would run instead: Hugging Face Trainer + PEFT, and ms-swift?

    python benchmarks/speed.py                 # all cells that are not in benchmarks/results/speed.json yet (hours)
    python benchmarks/speed.py --only shoal hf-usual --data-sets ag_news --models ../shared/models/llama-12m
    python benchmarks/speed.py --only shoal --fresh       # Shoal's cells anew, after a change to the trainer
    python benchmarks/speed.py --quick                    # seconds a cell, into outputs/speed_quick: does it run?

Each cell (data set, model, side, ZeRO, batch size, repetition) trains a fixed number of steps in a fresh process;
sides that are compared run one after the other, in turned order every other time. hf-tuned takes the batch size of 16,
32 and 64 that was fastest in a short calibration, once a data set, model and ZeRO, which goes up as long as that makes
it faster. Shoal runs at the batch size of each peer. Writes speed.json (every cell) and speed.md (the tables). ms-swift
is installed into a virtual environment in Shoal's cache.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # training/, of which only small parts are used

from speed_cells import DEEPSPEED, ROOT, Cell, CellFailed, Work, num_threads, run_cell
from speed_material import (
    DATA_SETS,
    MODELS,
    RANDOM_MODEL,
    ROWS,
    DataSet,
    Model,
    get_model,
    token_lengths,
    write_data_set,
)
from speed_report import read_cells, write_results

SIDES = ("shoal", "hf-usual", "hf-tuned", "ms-swift")
USUAL_BATCH_SIZE = 8
TUNED_BATCH_SIZES = (16, 32, 64)
CELL_FLOPS, CALIBRATION_FLOPS = 2.5e12, 0.8e12
"""Arithmetic of the measured steps: half a minute of the slowest side on two cores. Less than MIN_STEPS is not run."""
MIN_STEPS, MIN_CALIBRATION_STEPS, MAX_STEPS = 4, 2, 300
QUICK_ROWS, QUICK_STEPS, QUICK_BATCH_SIZES = 128, 3, (8, 16)


def parse_arguments() -> argparse.Namespace:
    """Read the command line; refuse data or a model that is not there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the data sets' folders")
    parser.add_argument("--data-sets", nargs="+", choices=tuple(DATA_SETS), default=list(DATA_SETS))
    models = [str(MODELS / "llama-12m"), RANDOM_MODEL]
    parser.add_argument("--models", nargs="+", default=models, help=f"model folders, or {RANDOM_MODEL}")
    parser.add_argument("--only", nargs="+", choices=SIDES, default=list(SIDES), metavar="SIDE", help="these sides")
    parser.add_argument("--zero", nargs="+", choices=tuple(DEEPSPEED), default=list(DEEPSPEED), help="of the peers")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="repetitions (default: 3)")
    parser.add_argument("--fresh", action="store_true", help="run again what is already in the results")
    parser.add_argument("--quick", action="store_true", help="three steps a cell; the figures mean nothing")
    parser.add_argument("--output", type=Path, help="folder of the results (default: benchmarks/results)")
    arguments = parser.parse_args()
    arguments.output = arguments.output or ROOT / ("outputs/speed_quick" if arguments.quick else "benchmarks/results")
    needed = [arguments.data / name / DATA_SETS[name][1] for name in arguments.data_sets]
    needed += [MODELS / "llama-12m" if model == RANDOM_MODEL else Path(model) for model in arguments.models]
    for path in needed:
        if not path.exists():
            parser.error(f"{path} does not exist. Point --data and --models at the folders.")
    return arguments


class Runner:
    """Runs the cells of one data set and model that are not in the results yet."""

    def __init__(self, arguments: argparse.Namespace, data_set: DataSet, model: Model, folder: Path) -> None:
        self.arguments, self.data_set, self.model, self.folder = arguments, data_set, model, folder
        self.lengths = token_lengths(data_set, model)

    def run(self) -> None:
        """Calibrate, then run every repetition."""
        sizes = self.tuned_batch_sizes()
        for repetition in range(self.arguments.repeat):
            asked = self.arguments
            cells = [cell for cell in ordered_cells(sizes) if cell[0] in asked.only and cell[1] in asked.zero]
            for side, zero, batch_size in cells if repetition % 2 == 0 else reversed(cells):
                self.result(self.work(side, zero, batch_size, repetition))

    def tuned_batch_sizes(self) -> dict[str, int]:
        """Return hf-tuned's best batch size under each ZeRO; without hf-tuned, those of earlier calibrations."""
        sizes: dict[str, int] = {}
        for zero in self.arguments.zero:
            rates: dict[int, float] = {}
            for size in QUICK_BATCH_SIZES if self.arguments.quick else TUNED_BATCH_SIZES:
                work = self.work("hf-tuned", zero, size, 0, kind="calibration")
                try:
                    cell = self.result(work) if "hf-tuned" in self.arguments.only else self.stored(work)
                except CellFailed as error:  # most likely out of memory
                    print(f"hf-tuned cannot take batches of {size}: {error}", flush=True)
                    break
                if cell is None:
                    continue
                rates[size] = cell["tokens_per_second"]
                if rates[size] < max(rates.values()):
                    break
            if rates:
                sizes[zero] = max(rates, key=rates.__getitem__)
        return sizes

    def work(self, side: str, zero: str, batch_size: int, repetition: int, kind: str = "cell") -> Work:
        """Return a cell with its number of steps: the same arithmetic for every side and batch size."""
        step_flops = batch_size * self.model.flops_per_token * sum(self.lengths) / len(self.lengths)
        total, least = (CELL_FLOPS, MIN_STEPS) if kind == "cell" else (CALIBRATION_FLOPS, MIN_CALIBRATION_STEPS)
        steps = min(max(round(total / step_flops), least), MAX_STEPS)
        return Work(
            side=side,
            data_set=self.data_set,
            model=self.model,
            zero=zero,
            batch_size=batch_size,
            measured_steps=QUICK_STEPS if self.arguments.quick else steps,
            repetition=repetition,
            kind=kind,
        )

    def stored(self, work: Work) -> Cell | None:
        """Return the stored result of just this cell."""
        key = work.key()
        for cell in read_cells(self.arguments.output):
            if all(cell.get(name) == value for name, value in key.items()):
                return cell
        return None

    def result(self, work: Work) -> Cell:
        """Return a cell's result, running it if need be."""
        known = None if self.arguments.fresh else self.stored(work)
        if known is not None:
            return known
        cell = run_cell(work, self.lengths, self.folder)
        place = work.place()
        others = [c for c in read_cells(self.arguments.output) if any(c[name] != place[name] for name in place)]
        write_results([*others, cell], self.arguments.output)
        print(
            f"{self.data_set.title}, {self.model.name}, {work.kind}: {work.side} {work.zero} batch {work.batch_size}: "
            f"{cell['samples_per_second']:.1f} samples/s, {cell['tokens_per_second']:,.0f} tokens/s, "
            f"{cell['share_of_matmul']:.0%} of the matrix products' rate, {cell['process_seconds']:.0f} s",
            flush=True,
        )
        return cell


def ordered_cells(tuned: dict[str, int]) -> list[tuple[str, str, int]]:
    """Return side, ZeRO and batch size of every cell of a repetition, those that are compared side by side."""
    cells: list[tuple[str, str, int]] = []
    for zero in DEEPSPEED:
        cells += [("hf-usual", zero, USUAL_BATCH_SIZE), ("shoal", zero, USUAL_BATCH_SIZE)]
        if zero == "plain":
            cells.append(("ms-swift", zero, USUAL_BATCH_SIZE))
        if zero in tuned:
            cells += [("hf-tuned", zero, tuned[zero]), ("shoal", zero, tuned[zero])]
    return list(dict.fromkeys(cells))


def combinations(arguments: argparse.Namespace, folder: Path) -> Iterator[Runner]:
    """Yield a Runner for every data set and model."""
    models = [get_model(name, folder) for name in arguments.models]
    for name in arguments.data_sets:
        data_set = write_data_set(name, arguments.data, folder, QUICK_ROWS if arguments.quick else ROWS)
        for model in models:
            yield Runner(arguments, data_set, model, folder)


def main() -> None:
    arguments = parse_arguments()
    print(f"{num_threads()} threads a process; results in {arguments.output}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        for runner in combinations(arguments, Path(temporary)):
            try:
                runner.run()
            except CellFailed as error:
                raise SystemExit(str(error)) from error
    print((arguments.output / "speed.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
