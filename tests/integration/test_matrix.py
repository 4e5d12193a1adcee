"""The round-trip matrix: a few of its cells come out as they should, and the README shows the committed results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.matrix_report import MAIN, OFFLOADS, QUANTIZATIONS, STAGES, readme_part, report, select
from benchmarks.readme_part import read_part

CHECKOUT = Path(__file__).resolve().parents[2]
RESULTS = CHECKOUT / "benchmarks" / "results"
COMMITTED = json.loads((RESULTS / "matrix.json").read_text(encoding="utf-8"))


def test_a_few_cells(tmp_path: Path) -> None:
    program = [sys.executable, str(CHECKOUT / "benchmarks" / "matrix.py"), "--quick", "--output", str(tmp_path)]
    run = subprocess.run(program, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    cells = json.loads((tmp_path / "matrix.json").read_text())["cells"]
    assert {cell["quantization"] for cell in cells} == set(QUANTIZATIONS)
    assert [cell["outcome"] for cell in cells].count("yes") == len(cells) - 1 > 0
    [refused] = [cell for cell in cells if cell["outcome"] == "refused"]
    assert "offload_optimizer needs ZeRO stage" in refused["message"]
    assert refused["message"] in (tmp_path / "matrix.md").read_text()


def test_the_committed_matrix_is_whole() -> None:
    for quantization in QUANTIZATIONS:
        for stage in STAGES:
            for offload in OFFLOADS:
                cells = select(COMMITTED["cells"], quantization=quantization, stage=stage, offload=offload, **MAIN)
                plain = {(cell["num_ranks"], cell["num_classes"]) for cell in cells}
                assert plain >= {(ranks, classes) for ranks in (1, 2) for classes in (2, 4, 20)}


def test_readme_and_report_show_the_committed_matrix() -> None:
    assert read_part("matrix", CHECKOUT / "README.md") == readme_part(COMMITTED["cells"])
    assert (RESULTS / "matrix.md").read_text(encoding="utf-8") == report(COMMITTED)
