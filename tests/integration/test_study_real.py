"""A study with real training on a real local Ray: one-rank and two-rank jobs, one of which cannot work at first."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from conftest import environment

CHECKOUT = Path(__file__).resolve().parents[2]


def launch(study: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, str(CHECKOUT / "launcher" / "launch.py"), str(study)]
    env = {key: value for key, value in environment().items() if key != "RAY_ADDRESS"}
    return subprocess.run(program, cwd=cwd, env=env, capture_output=True, text=True)


def report_of(cwd: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((cwd / "outputs/mixed/report.json").read_text())
    return content


def test_a_study_finishes_around_a_job_that_cannot_work(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    content: dict[str, Any] = {
        "cards_gib": [8, 12],
        "model": {"model_name_or_path": str(tiny_model)},
        "data": {
            "train_file": str(corpus / "train.jsonl"),
            "test_file": str(corpus / "test.jsonl"),
            "max_seq_length": 32,
        },
        "training": {"learning_rate": 1e-2, "num_train_epochs": 2},
        "seed": [0],
        "sweep": {
            "jobs": [
                {"name": "plain", "deepspeed": "ds_configs/zero2_offload.json"},
                {
                    "name": "wide",
                    "model": {"quantization": "nf4"},
                    "deepspeed": "ds_configs/zero3_offload.json",
                    "num_ranks": 2,
                },
                {"name": "bad", "data": {"text_column_names": ["headline"]}},
            ]
        },
    }
    study = tmp_path / "mixed.yaml"
    study.write_text(yaml.safe_dump(content))
    run = launch(study, tmp_path)
    # A job of two ranks gets equal cards; 8 and 12 GiB are not.
    assert run.returncode == 2, run.stdout + run.stderr
    assert "wide-seed0" in run.stderr and "Traceback" not in run.stderr

    content["cards_gib"] = [8, 8]
    study.write_text(yaml.safe_dump(content))
    run = launch(study, tmp_path)
    assert run.returncode == 1, run.stdout + run.stderr
    first = {job["name"]: job for job in report_of(tmp_path)["jobs"]}
    assert {name: job["status"] for name, job in first.items()} == {
        "plain-seed0": "succeeded", "wide-seed0": "succeeded", "bad-seed0": "failed",
    }  # fmt: skip
    assert "headline" in first["bad-seed0"]["error"]["message"]
    assert first["wide-seed0"]["num_ranks"] == 2 and first["wide-seed0"]["model"]["zero_stage"] == 3
    for name in ("plain-seed0", "wide-seed0"):
        folder = tmp_path / "outputs/mixed/jobs" / name
        assert [path.name.split(".")[:3] for path in (folder / "tensorboard").iterdir()] == [
            ["events", "out", "tfevents"]
        ]
        assert f"# {name}\n" in (folder / "adapter/README.md").read_text()
    names = {item["name"] for item in report_of(tmp_path)["baselines"]}
    assert any("TF-IDF" in name for name in names)

    content["sweep"]["jobs"][2] = {"name": "bad", "data": {"text_column_names": ["text"]}}
    study.write_text(yaml.safe_dump(content))
    run = launch(study, tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "1 of 3 jobs to run" in run.stdout
    report = report_of(tmp_path)
    second = {job["name"]: job for job in report["jobs"]}
    assert second["bad-seed0"]["status"] == "succeeded"
    assert second["plain-seed0"] == first["plain-seed0"] and second["wide-seed0"] == first["wide-seed0"]
    assert {group["num_seeds"] for group in report["groups"]} == {1}
    assert "Best setting" in (tmp_path / "outputs/mixed/report.md").read_text()
