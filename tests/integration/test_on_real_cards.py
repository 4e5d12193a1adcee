"""Studies on PCs with one GPU, two, unequal ones and none: NVML's figures of real cards, the ranks on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import CHECKOUT, environment, read_report, write_study

STAND_INS = CHECKOUT / "tests" / "stand_ins" / "site"


def shoal(words: Sequence[str], stand_ins: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command of Shoal on a PC that the stand-ins make."""
    path = os.pathsep.join([str(STAND_INS), str(CHECKOUT), os.environ.get("PYTHONPATH", "")])
    env = {**environment(), "PYTHONPATH": path, "SHOAL_STAND_INS": stand_ins}
    env.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "launcher.cli", *words]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("cards", "fits"), [("3060", {11.8}), ("3060+3060", {11.8}), ("3060+4090", {11.8, 23.6}), ("none", {8.0})]
)
def test_every_job_of_the_demo_fits(cards: str, fits: set[float], tmp_path: Path) -> None:
    study = CHECKOUT / "studies" / "demo.yaml"
    run = shoal(["plan", str(study), "--json"], f"nvml={cards}", tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    jobs = json.loads(run.stdout)
    assert len(jobs) == 6 and {job["status"] for job in jobs} == {"to run"}
    for job in jobs:
        assert {round(size, 1) for size in job["fits_gib"]} == fits


JOBS = [{"name": "whole"}, {"name": "sharded", "deepspeed": "ds_configs/zero3_offload_param.json"}]


def run_small_study(workplace: Path, cards: str, **changes: Any) -> subprocess.CompletedProcess[str]:
    """Run a study like the demo, of a ZeRO-2 and a ZeRO-3 job, on these cards; DeepSpeed asks about them as on CUDA."""
    study = write_study(workplace, deepspeed="ds_configs/zero2.json", sweep={"jobs": JOBS}, **changes)
    return shoal(["run", str(study)], f"nvml={cards},cuda_accelerator={cards}", workplace)


def test_a_study_uses_the_cards_there_are(workplace: Path) -> None:
    run = run_small_study(workplace, "3060+4090")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "2 cards (RTX 3060, 11.7 GiB, RTX 4090, 23.6 GiB)" in run.stdout
    assert "RTX 3060 is not measured" in run.stdout  # the PyTorch here has no CUDA, which no job minds
    assert [job["status"] for job in read_report(workplace)["jobs"]] == ["succeeded"] * 2


def test_a_study_that_asks_for_virtual_cards_gets_them(workplace: Path) -> None:
    """The driver is too old for the cards there are, and nobody minds."""
    run = run_small_study(workplace, "4090@535.54.03", virtual_cards=True, cards_gib=[8])
    assert run.returncode == 0, run.stdout + run.stderr
    assert "1 cards (8 GiB)" in run.stdout or "1 card (8 GiB)" in run.stdout
