"""Costs from measured rows: non-negative least squares on relative errors, disturbed rows counting little."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt

from training.calibration.costs import Quantities

BY_KIND = (
    "operations", "activations", "attended", "layers", "weights_dequantized", "weights_quantized", "layers_built",
    "evaluated_operations", "evaluated_layers", "evaluations",
)  # fmt: skip
"""Things that cost another time in each precision and quantization; the others cost the same in all."""
PARTS = ("step", "loading", "evaluation")
"""What rows tell of, each fitted with the costs that those before it gave."""
CONSTANT = "constant"
"""A column that takes what building a model costs beside its size: a job's start has it."""
USUAL = 0.15
"""Relative error up to which a row counts fully; beyond, it counts the less the farther it is off (Huber)."""
ROUNDS = 6

Table = dict[str, Quantities]
"""Kind -> costs."""
Numbers = npt.NDArray[np.float64]


def fit(rows: Sequence[dict[str, Any]], product_costs: Mapping[str, float]) -> Table:
    """Return the costs, by kind, of rows of training.calibration.steps; none is negative.

    `product_costs` (precision -> seconds) are what an operation of a large matrix product takes: none takes less,
    however little the small ones of the rows tell of it. A thing that no row has costs nothing.
    """
    kinds = sorted({row["kind"] for row in rows})
    columns = _columns(kinds)
    found = np.zeros(len(columns))
    least = np.array([_least(column, product_costs) for column in columns])
    for part in PARTS:
        some = [row for row in rows if row["what"] == part]
        if some:
            matrix = np.array([_numbers(row, columns) for row in some])
            free = (matrix.max(axis=0) > 0) & (found == 0)
            seconds = np.array([row["seconds"] for row in some])
            left = seconds - matrix[:, ~free] @ found[~free]
            found[free] = solve(matrix[:, free], left, seconds, least[free])
    costs = dict(zip(columns, found.tolist(), strict=True))
    names = [item.name for item in fields(Quantities)]
    return {kind: Quantities(**{name: costs[_column(name, kind)] for name in names}) for kind in kinds}


def solve(matrix: Numbers, left: Numbers, seconds: Numbers, least: Numbers) -> Numbers:
    """Return costs, of each at least so much, for which [rows, things] x costs is nearest to what is `left` of the
    rows' `seconds`, by squares of relative errors."""
    from scipy.optimize import nnls

    relative = matrix / seconds[:, None]
    scale = relative.max(axis=0)
    wanted = left / seconds - relative @ least
    weights = np.ones(len(seconds))
    for _ in range(ROUNDS):
        found, _ = nnls(relative / scale * weights[:, None], wanted * weights)
        error = np.abs(relative / scale @ found - wanted)
        weights = np.sqrt(USUAL / np.maximum(error, USUAL))
    return np.asarray(found / scale + least)


def _least(column: str, product_costs: Mapping[str, float]) -> float:
    """Return the least that a column costs: int8's products are none of its precision's."""
    name, _, kind = column.partition(" ")
    dtype, _, quantization = kind.partition(" ")
    return product_costs.get(dtype, 0.0) if name == "operations" and quantization != "int8" else 0.0


def _column(name: str, kind: str) -> str:
    return f"{name} {kind}" if name in BY_KIND else name


def _columns(kinds: Sequence[str]) -> list[str]:
    names = [item.name for item in fields(Quantities)]
    found = [_column(name, kind) for name in names for kind in kinds]
    return [*dict.fromkeys(found), CONSTANT]


def _numbers(row: dict[str, Any], columns: Sequence[str]) -> list[float]:
    """Return a row's numbers in the order of the columns."""
    values = {_column(name, row["kind"]): number for name, number in row["amounts"].items()}
    values[CONSTANT] = float(row["what"] == "loading")
    return [values.get(column, 0.0) for column in columns]
