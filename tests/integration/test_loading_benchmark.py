"""benchmarks/loading.py runs, and what it measures on a small model holds the promise of training/loading.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import environment

CASES = ("nf4, ZeRO-3",)


@pytest.fixture(scope="module")
def cells(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Any]]:
    folder = tmp_path_factory.mktemp("loading")
    run = subprocess.run(
        [sys.executable, "benchmarks/loading.py", "--small", "--only", *CASES, "--output", str(folder)],
        cwd=checkout, env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    content = json.loads((folder / "loading.json").read_text())
    report = (folder / "loading.md").read_text()
    assert content["command"] in report and str(content["versions"]["deepspeed"]) in report
    common = {"num_parameters": content["num_parameters"]}
    return {(cell["case"], cell["side"]): {**cell, **common} for cell in content["cells"]}


def test_every_case_is_measured_on_every_side(cells: dict[tuple[str, str], dict[str, Any]]) -> None:
    assert {case for case, _ in cells} == set(CASES) and len(cells) == 2
    assert all(cell["peak_anonymous_bytes"] >= cell["stays_anonymous_bytes"] > 0 for cell in cells.values())
    for (case, side), cell in cells.items():
        assert bool(cell["partitioned"]) == ("ZeRO-3" in case), (case, side)


def test_no_rank_holds_the_whole_model_beside_what_it_keeps(cells: dict[tuple[str, str], dict[str, Any]]) -> None:
    for (case, side), cell in cells.items():
        if side == "shoal":
            # Allocators keep some for themselves. A bf16 copy of the model on each rank would take twice that.
            assert cell["peak_anonymous_bytes"] - cell["stays_anonymous_bytes"] < 2 * cell["num_parameters"], case
