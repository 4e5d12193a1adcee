"""The benchmarks run, in their smallest form on the tiny model. What they measure there means nothing."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CHECKOUT


@pytest.fixture
def data(corpus: Path, tmp_path: Path) -> Path:
    """The sentences of the tests in the place of AG News."""
    file = tmp_path / "data" / "ag_news" / "train.csv"
    file.parent.mkdir(parents=True)
    rows = [json.loads(line) for line in (corpus / "train.jsonl").read_text().splitlines()]
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, ["text", "label"])
        writer.writeheader()
        writer.writerows(rows)
    return tmp_path / "data"


def test_speed_measures_both_sides_and_repeats_nothing(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "benchmarks/speed.py", "--quick", "--repeat", "1", "--data", str(data),
        "--data-sets", "ag_news", "--models", str(tiny_model), "--only", "shoal", "hf-usual", "--zero", "plain",
        "--output", str(tmp_path / "out"),
    ]  # fmt: skip
    run = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    results = tmp_path / "out" / "speed.json"
    content = json.loads(results.read_text())
    shoal, usual = sorted(content["cells"], key=lambda cell: cell["side"] == "hf-usual")
    assert (shoal["side"], shoal["zero"], usual["side"], usual["zero"]) == ("shoal", "plain", "hf-usual", "plain")
    for cell in (shoal, usual):
        assert cell["batch_size"] == 8 and cell["measured_steps"] == 3 and cell["model"] == tiny_model.name
        # 24 texts of 3 to 25 words and a beginning
        assert 24 * 4 <= cell["tokens"] <= 24 * 26
        assert cell["tokens_per_second"] == pytest.approx(cell["tokens"] / cell["seconds"], rel=1e-2)
        assert cell["process_seconds"] > cell["start_up_seconds"] > 0 and cell["peak_rss_bytes"] > 2**27
        assert 0 < cell["share_of_matmul"] < 1 and cell["matmul_flops"] > 0
    assert shoal["padding"] == 0 < usual["padding"]
    (comparison,) = content["comparisons"]
    assert comparison["peer"] == "hf-usual" and comparison["target"] == 3.0
    assert comparison["ratio"] == pytest.approx(shoal["tokens_per_second"] / usual["tokens_per_second"])
    assert "| tiny | AG News | hf-usual | plain | 8 |" in (tmp_path / "out" / "speed.md").read_text()

    written = results.stat().st_mtime_ns
    again = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    assert again.returncode == 0 and results.stat().st_mtime_ns == written


def test_a_steps_time_is_divided(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    words = ["--data", str(data), "--data-sets", "ag_news", "--model", str(tiny_model), "--cells", "zero2"]
    words += ["--output", str(tmp_path / "out")]
    run = subprocess.run(
        [sys.executable, "benchmarks/step_profile.py", *words], cwd=CHECKOUT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    (row,) = json.loads((tmp_path / "out" / "step_profile.json").read_text())["rows"]
    times, kernels = row["milliseconds"], row["under_the_profiler"]
    assert 0 < sum(times[name] for name in ("forward", "backward", "step")) <= times["all"]
    assert 0 < sum(kernels.pop("largest others").values()) <= kernels["other operators"]
    assert min(kernels.values()) > 0 and row["tokens"] > 8 * 4
    assert f"| tiny | AG News | 8 | zero2 | {row['dtype']} |" in (tmp_path / "out" / "step_profile.md").read_text()


def test_scheduling_is_simulated_with_the_launchers_own_scheduler(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/scheduling.py", "--jobs", "60", "--seeds", "1", "--output", str(tmp_path)]
    run = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    content = json.loads((tmp_path / "scheduling.json").read_text())
    for row in content["rows"]:
        ours, theirs = row["schedulers"]["shoal"], row["schedulers"]["fcfs"]
        assert ours["jobs"] == theirs["jobs"] == 60 and ours["over_booked"] == theirs["over_booked"] == 0
        assert ours["makespan_seconds"] >= row["bound_seconds"] * (1 - 1e-6)
    assert run.returncode in (0, 1), run.stderr
    assert "| 1,000 jobs on 20 cards | 0 | Shoal |" in (tmp_path / "scheduling.md").read_text()
    assert (tmp_path / "scheduling.png").stat().st_size > 10_000


def test_the_planners_grid_is_measured_and_its_costs_fitted(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/planner.py", "--cells", "1", "--output", str(tmp_path)]
    run = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    content = json.loads((tmp_path / "planner.json").read_text())
    assert len(content["cells"]) == 1 and all(cell["seconds"] > 0 for cell in content["cells"])
    assert all(cost >= 0 for cost in content["costs"].values()) and any(content["costs"].values())
    assert "Costs, fitted" in (tmp_path / "planner.md").read_text()


def test_intervals_are_judged_on_simulated_studies(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/intervals.py", "--rounds", "4", "--output", str(tmp_path / "intervals")]
    run = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    content = json.loads((tmp_path / "intervals.json").read_text())
    assert run.returncode == (0 if content["all_met"] else 1), run.stderr[-3000:]  # four rounds say nothing
    assert {"mean", "least", "most"} <= set(
        content["parts"]["one model, BCa bootstrap over texts: coverage"]["summary"]
    )
