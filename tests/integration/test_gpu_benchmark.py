"""The benchmark for a CUDA GPU, run small on the CPU: all of it but CUDA itself."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from conftest import CHECKOUT, environment

from benchmarks.gpu.fits import Peak, largest_batches
from benchmarks.gpu.report import markdown
from benchmarks.gpu.slim_wheel import slim


def test_every_part_runs_and_is_reported(tmp_path: Path) -> None:
    words = ["-m", "benchmarks.gpu.run", "--output", str(tmp_path / "out"), "--smoke", "--minutes", "20"]
    env = {**environment(), "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run([sys.executable, *words], cwd=CHECKOUT, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    logs = {
        part: (tmp_path / "out" / f"{part}.log").read_text()[-2000:] for part in ("checks", "tests", "speed", "memory")
    }
    assert {part: results[part]["ending"] for part in logs} == dict.fromkeys(logs, "finished"), logs
    checks = results["checks"]["checks"]
    assert len(checks) == 2 and all(check["ok"] for check in checks), checks
    assert set(results["tests"]["tests"].values()) == {"PASSED"} and len(results["tests"]["tests"]) == 4
    cells = {cell["side"]: cell for cell in results["speed"]["cells"]}
    assert set(cells) == {"shoal", "hf-tuned"}
    assert all(cell["tokens_per_second"] > 0 and cell["samples"] == 64 for cell in cells.values()), cells
    builds = results["memory"]["builds"]
    assert [build["state"] for build in builds] == ["done", "done"]
    assert {(fit["cap_gib"], fit["batch"]) for build in builds for fit in build["fits"]} == {(8, 8), (12, 8), (24, 8)}
    report = (tmp_path / "out" / "results.md").read_text()
    assert report == markdown(results) and "| tiny | nf4 | zero3_offload_param | yes |" in report


def card(weights: int, per_text: int, waste: int, runs: list[tuple[int, int]]) -> Any:
    """A card whose allocator takes `waste` more than it needs, where there is room."""

    def run(batch: int, cap: int) -> Peak | None:
        runs.append((batch, cap))
        needed = weights + batch * per_text
        return Peak(allocated_bytes=needed, reserved_bytes=min(cap, needed + waste)) if needed <= cap else None

    return run


@pytest.mark.parametrize("waste", [0, 3, 10])
def test_the_largest_batch_under_each_cap_is_found(waste: int) -> None:
    runs: list[tuple[int, int]] = []
    found = largest_batches([8, 12, 24], [1, 2, 4, 8], card(6, 2, waste, runs))
    assert {cap: fit and fit[0] for cap, fit in found.items()} == {8: 1, 12: 2, 24: 8}
    assert all(fit and fit[1].reserved_bytes <= cap for cap, fit in found.items())
    assert len(runs) == len(set(runs)) <= 6


def test_a_cap_under_the_smallest_batch_gets_none_and_costs_one_run_out_of_memory() -> None:
    runs: list[tuple[int, int]] = []
    found = largest_batches([8, 24], [1, 2, 4, 8], card(23, 2, 0, runs))
    assert found == {24: None, 8: None}
    assert len(runs) <= 6


def test_a_slimmed_wheel_keeps_the_libraries_asked_for(tmp_path: Path) -> None:
    wheel = tmp_path / "bitsandbytes-1-py3-none-any.whl"
    names = [f"bitsandbytes/libbitsandbytes_{name}.so" for name in ("cpu", "cuda118", "cuda130", "rocm70")]
    record = "bitsandbytes-1.dist-info/RECORD"
    with zipfile.ZipFile(wheel, "w") as file:
        for name in (*names, "bitsandbytes/__init__.py"):
            file.writestr(name, name)
        file.writestr(record, "".join(f"{name},sha256=x,1\n" for name in (*names, "bitsandbytes/__init__.py")))
    slim(wheel, ["cpu", "cuda130"])
    with zipfile.ZipFile(wheel) as file:
        kept = {names[0], names[2], "bitsandbytes/__init__.py"}
        assert set(file.namelist()) == {*kept, record}
        assert {line.split(",")[0] for line in file.read(record).decode().splitlines()} == kept
    with pytest.raises(SystemExit, match="holds no bitsandbytes"):
        slim(wheel, ["cuda999"])
