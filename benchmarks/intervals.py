"""Do the report's intervals hold what they should, and how often are equal settings called different?

    python benchmarks/intervals.py              # minutes on one core; writes benchmarks/results/intervals.*
    python benchmarks/intervals.py --rounds 2000 # longer, and more sure

Simulated studies with a known truth: a text is more or less hard, a seed makes all texts easier or harder, and what is
left is chance. The functions are those of the report (launcher/report/).

Exit status 1 where an interval's coverage, in the mean over its cells, is outside 94 to 96 %, or in any cell more than
5 % of comparisons of equal settings find a difference (each with the noise of the simulation added).
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import ndtr

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from launcher.report.comparison import LEVEL, Side, compare  # noqa: E402
from launcher.report.intervals import interval_of_difference, interval_of_mean, intervals_of_model  # noqa: E402

COVERAGE = (0.94, 0.96)
NUM_SEEDS = (3, 5, 10)
NUM_TEXTS = (200, 1000)
SEED_EFFECTS = (0.05, 0.15, 0.4)
"""Standard deviation of a seed's effect; 1 is that of chance."""
HARDNESS, EASE = 1.5, 1.7
"""Standard deviation of the texts' hardness, and their mean."""
OWN_HARDNESS = 0.5
"""Standard deviation of what is hard for one setting alone."""
DRAWS = 2026
"""Seed; not the one with which the methods were chosen among others."""

Row = dict[str, Any]


def correct(hardness: np.ndarray, num_seeds: int, effect: float, generator: np.random.Generator) -> np.ndarray:
    """Draw what the seeds of one setting get right, [texts, seeds]."""
    latent = (
        hardness[:, None] + generator.normal(0, effect, num_seeds) + generator.normal(size=(len(hardness), num_seeds))
    )
    return (latent > 0).astype(float)


def holds(interval: list[float], truth: float) -> bool:
    return interval[0] - 1e-12 <= truth <= interval[1] + 1e-12


def seeds(rounds: int, generator: np.random.Generator) -> Iterator[Row]:
    """Coverage of the mean over seeds on given texts."""
    for texts in NUM_TEXTS:
        for num_seeds in NUM_SEEDS:
            for effect in SEED_EFFECTS:
                hits = 0
                for _ in range(rounds):
                    hardness = generator.normal(EASE, HARDNESS, texts)
                    truth = float(ndtr(hardness / (1 + effect**2) ** 0.5).mean())
                    accuracies = correct(hardness, num_seeds, effect, generator).mean(axis=0)
                    hits += holds(interval_of_mean(list(accuracies)), truth)
                yield {"texts": texts, "seeds": num_seeds, "seed_effect": effect, "share": hits / rounds}


def one_model(rounds: int, generator: np.random.Generator) -> Iterator[Row]:
    """Coverage of one model's accuracy and macro F1 on new texts; each round has another model."""
    for texts in NUM_TEXTS:
        for classes in (2, 4, 8, 20):
            hits = {"accuracy": 0, "macro_f1": 0}
            for _ in range(rounds):
                table = draw_table(classes, generator)
                confusion = generator.multinomial(texts, table.ravel()).reshape(classes, classes)
                right = np.diagonal(table)
                f1 = 2 * right / (table.sum(axis=0) + table.sum(axis=1))
                found = intervals_of_model(confusion)
                for name, truth in (("accuracy", right.sum()), ("macro_f1", f1.mean())):
                    hits[name] += holds(found[name], float(truth))
            for name, count in hits.items():
                yield {"texts": texts, "classes": classes, "metric": name, "share": count / rounds}


def draw_table(classes: int, generator: np.random.Generator) -> np.ndarray:
    """Draw the probabilities of label and prediction of one model, [classes, classes]."""
    recall = np.clip(generator.uniform(0.6, 0.93) + generator.normal(0, 0.08, classes), 0.3, 0.98)
    priors = generator.dirichlet(np.full(classes, 20.0))
    table = np.diag(recall)
    for row in range(classes):
        others = np.arange(classes) != row
        table[row, others] = (1 - recall[row]) * generator.dirichlet(np.ones(classes - 1))
    return table * priors[:, None]


def two_models(rounds: int, generator: np.random.Generator) -> Iterator[Row]:
    """Coverage of the difference of two models on new texts."""
    for texts in NUM_TEXTS:
        hits = 0
        for _ in range(rounds):
            better = generator.uniform(0, 0.5)
            spread = (1 + HARDNESS**2) ** 0.5
            truth = float(ndtr((EASE + better) / spread) - ndtr(EASE / spread))
            hardness = generator.normal(EASE, HARDNESS, texts)
            a, b = (correct(hardness + shift, 1, 0.0, generator)[:, 0] for shift in (better, 0.0))
            hits += holds(interval_of_difference(a - b), truth)
        yield {"texts": texts, "share": hits / rounds}


def false_positives(rounds: int, generator: np.random.Generator) -> Iterator[Row]:
    """How often equal settings, or a setting and a baseline that is as good, are called different (one comparison)."""
    cells = [(1, 1, 0.0), (1, 0, 0.0)]
    cells += [(seeds, other, effect) for seeds in (2, *NUM_SEEDS) for other in (seeds, 1, 0) for effect in SEED_EFFECTS]
    for texts in NUM_TEXTS:
        for num_seeds, other, effect in cells:
            found = 0
            for _ in range(rounds):
                a, b = equal_sides(texts, num_seeds, other, effect, generator)
                found += compare(a, b)["p_value"] < LEVEL
            against = "baseline" if other == 0 else other
            yield {
                "texts": texts,
                "seeds": num_seeds,
                "against": against,
                "seed_effect": effect,
                "share": found / rounds,
            }


def equal_sides(
    texts: int, num_seeds: int, other: int, effect: float, generator: np.random.Generator
) -> tuple[Side, Side]:
    """Draw two sides of equal accuracy over all texts and seeds; `other` is 0 for a baseline, which has no seed."""
    hardness = generator.normal(EASE, HARDNESS, texts)
    own = (hardness + generator.normal(0, OWN_HARDNESS, texts) for _ in range(2))
    without = (1 + HARDNESS**2 + OWN_HARDNESS**2) ** 0.5
    # What a seed adds to the spread draws a setting towards 50 %: a baseline has to be that much worse.
    shift = EASE * (without / (without**2 + effect**2) ** 0.5 - 1) if other == 0 else 0.0
    a = Side(name="a", correct=correct(next(own), num_seeds, effect, generator))
    b = correct(next(own) + shift, max(1, other), effect if other else 0.0, generator)
    return a, Side(name="b", correct=b, is_random=other > 0)


PARTS: dict[str, Callable[[int, np.random.Generator], Iterator[Row]]] = {
    "mean over seeds, Student's t: coverage": seeds,
    "one model, BCa bootstrap over texts: coverage": one_model,
    "difference of two models, paired bootstrap over texts: coverage": two_models,
    "comparison of equals: called different": false_positives,
}


def judge(name: str, rows: list[Row], rounds: int) -> Row:
    """Return the mean and extremes over the cells of a part, and whether it reaches what it should.

    Noise is three standard errors of the mean over cells, and 3.5 of one cell, of which there are many.
    """
    shares = [row["share"] for row in rows]
    mean = float(np.mean(shares))
    error = (LEVEL * (1 - LEVEL) / rounds) ** 0.5
    noise = 3 * error / len(rows) ** 0.5
    if name.endswith("coverage"):
        met = COVERAGE[0] - noise <= mean <= COVERAGE[1] + noise
    else:
        met = max(shares) <= LEVEL + 3.5 * error
    return {"mean": mean, "least": min(shares), "most": max(shares), "error_of_a_cell": error, "met": bool(met)}


def render(content: Row) -> str:
    """Return results/intervals.md."""
    lines = ["# Intervals and comparisons: simulated studies with a known truth", ""]
    lines += ["| what | cells | mean | least | most | to reach |", "| --- | --- | --- | --- | --- | --- |"]
    for name, part in content["parts"].items():
        goal = "94 to 96 %" if name.endswith("coverage") else "at most 5 %"
        figures = " | ".join(f"{100 * part['summary'][key]:.1f} %" for key in ("mean", "least", "most"))
        lines.append(f"| {name} | {len(part['rows'])} | {figures} | {goal} |")
    error = 100 * next(iter(content["parts"].values()))["summary"]["error_of_a_cell"]
    lines += ["", f"{content['rounds']} studies a cell: the standard error of a cell is {error:.1f} points. To reach"]
    lines += [f"within its noise, the mean over cells, and every cell of the last: {_outcome(content['all_met'])}."]
    for name, part in content["parts"].items():
        header = list(part["rows"][0])
        lines += ["", f"## {name}", "", f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
        lines += [f"| {' | '.join(_cell(key, row[key]) for key in header)} |" for row in part["rows"]]
    lines += [
        "",
        "seed_effect: standard deviation of a seed's effect, beside 1 of chance. Against 1: one seed of the other.",
    ]
    lines += ["", f"{content['date']}, Python {content['python']}, {content['machine']}: `{content['command']}`."]
    return "\n".join(lines) + "\n"


def _outcome(met: bool) -> str:
    return "reached" if met else "NOT reached"


def _cell(key: str, value: Any) -> str:
    return f"{100 * value:.1f} %" if key == "share" else str(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=400, help="studies a cell (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "intervals")
    options = parser.parse_args()
    parts = {}
    for number, (name, simulate) in enumerate(PARTS.items()):
        rows = []
        for row in simulate(options.rounds, np.random.default_rng([DRAWS, number])):
            print(name, row, flush=True)
            rows.append(row)
        parts[name] = {"summary": judge(name, rows, options.rounds), "rows": rows}
    more = f" --rounds {options.rounds}" if options.rounds != parser.get_default("rounds") else ""
    content = {
        "date": date.today().isoformat(), "command": f"python benchmarks/intervals.py{more}",
        "python": platform.python_version(), "machine": platform.machine(), "rounds": options.rounds,
        "all_met": all(part["summary"]["met"] for part in parts.values()), "parts": parts,
    }  # fmt: skip
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    options.output.with_suffix(".md").write_text(render(content))
    print(options.output.with_suffix(".md").read_text().split("\n## ")[0])
    return 0 if content["all_met"] else 1


if __name__ == "__main__":
    sys.exit(main())
