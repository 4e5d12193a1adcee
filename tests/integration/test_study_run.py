"""A study on a real local Ray, from its file to its report. The rank program is a stand-in: no model is trained."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_rank
import psutil
import pytest
from conftest import CHECKOUT, python_path, read_report, write_study

from launcher.run import run_study
from training.calibration.seen import seen_jobs
from training.errors import UserError


def test_a_failing_job_stops_no_other_and_a_second_run_repeats_only_it(workplace: Path, cluster: str) -> None:
    jobs = [
        {"name": "good", "seed": [0, 1]},
        {"name": "wide", "num_ranks": 2},
        {"name": "bad-column", "data": {"text_column_names": ["headline"]}},
        {"name": "raises", "lora": {"r": fake_rank.RAISES}},
        {"name": "killed", "num_ranks": 2, "lora": {"r": fake_rank.SECOND_RANK_IS_KILLED}},
        {"name": "killed-once", "num_ranks": 2, "lora": {"r": fake_rank.KILLED_ONCE}},
    ]
    study = write_study(workplace, max_failures=1, sweep={"jobs": jobs})

    assert run_study(study, address=cluster, run_job=fake_rank.run_job) == 1

    report = read_report(workplace)
    by_name = {job["name"]: job for job in report["jobs"]}
    assert {name: job["status"] for name, job in by_name.items()} == {
        "good-seed0": "succeeded", "good-seed1": "succeeded", "wide": "succeeded",
        "bad-column": "failed", "raises": "failed", "killed": "failed", "killed-once": "succeeded",
    }  # fmt: skip
    assert "headline" in by_name["bad-column"]["error"]["message"]
    assert "ValueError: the stand-in fails" in by_name["raises"]["error"]["message"]
    assert "about to fail" in by_name["raises"]["error"]["log_tail"]
    assert by_name["killed"]["error"]["message"].startswith("rank 1: its process died")
    jobs_seen = {job.job: job for job in seen_jobs()}
    assert {"tiny/good-seed0", "tiny/good-seed1", "tiny/wide", "tiny/killed-once"} <= set(jobs_seen)
    good = jobs_seen["tiny/good-seed0"]
    assert good.seconds > 0 and good.expected_seconds > 0 and good.forecast_bytes > 0 and not good.time_was_measured
    assert jobs_seen["tiny/killed-once"].seconds == 0  # of its last try alone
    assert "tiny/killed" not in jobs_seen
    restarts = {name: len(job["restarts"]) for name, job in by_name.items()}
    assert restarts == dict.fromkeys(by_name, 0) | {"killed": 1, "killed-once": 1, "raises": 1}
    for rank in (0, 1):  # of the try that was killed, named after its time, and of the last
        earlier, last = sorted(workplace.glob(f"outputs/tiny/jobs/killed-once/*rank{rank}.log"))
        assert re.fullmatch(rf"\d{{4}}-\d\d-\d\dT\d\d-\d\d-\d\d\.rank{rank}\.log", earlier.name), earlier
        assert last.name == f"rank{rank}.log" and f"this is rank {rank} of 2" in earlier.read_text()
    assert by_name["wide"]["settings"]["deepspeed"] == "ds_configs/zero0.json"
    assert any("TF-IDF" in baseline["name"] for baseline in report["baselines"])
    (item,) = report["data_checks"]
    assert item["check"]["splits"]["train"]["rows"] > 0
    assert item["check"]["tokenizer"]
    two_seeds = next(group for group in report["groups"] if group["num_seeds"] == 2)
    assert two_seeds["accuracy_mean"] == pytest.approx(0.805)

    wide = workplace / "outputs/tiny/jobs/wide"
    assert (wide / "adapter/weights.bin").read_bytes() == fake_rank.ADAPTER_BYTES
    assert "this is rank 1 of 2" in (wide / "rank1.log").read_text()
    assert (wide / "checkpoints/step-000002/state.json").exists()
    assert not (wide / "checkpoints/step-000001").exists()

    before = {path: path.stat().st_mtime_ns for path in workplace.glob("outputs/tiny/jobs/*/result.json")}
    jobs[2]["data"] = {"text_column_names": ["text"], "max_train_samples": 20}
    jobs[3]["lora"] = {"r": 7}
    del jobs[4]
    study = write_study(workplace, sweep={"jobs": jobs})

    assert run_study(study, address=cluster, run_job=fake_rank.run_job) == 0

    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert all(job["status"] == "succeeded" for job in read_report(workplace)["jobs"])
    assert (workplace / "outputs/tiny/jobs/raises.old-1/failure.json").exists()


def test_a_job_out_of_memory_goes_on_in_fresh_processes(workplace: Path, cluster: str) -> None:
    study = write_study(workplace, lora={"r": fake_rank.OUT_OF_MEMORY}, training={"per_device_train_batch_size": 8})
    assert run_study(study, address=cluster, run_job=fake_rank.run_job) == 0
    (job,) = read_report(workplace)["jobs"]
    assert job["status"] == "succeeded"
    assert [retry["changes"]["per_device_train_batch_size"] for retry in job["retries"]] == [[8, 4]]
    assert job["settings"]["training"]["per_device_train_batch_size"] == 8
    assert "per_device_train_batch_size 8 → 4" in (workplace / "outputs/tiny/report.md").read_text()


def _hear_ctrl_c() -> None:
    """Undo what a script that runs the tests in the background leaves to its children: SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_leaves_no_process(workplace: Path) -> None:
    study = write_study(workplace, lora={"r": fake_rank.WAITS}, num_ranks=2)
    environment = {**os.environ, "PYTHONPATH": python_path(CHECKOUT, Path(__file__).parent)}
    command = [sys.executable, "-m", "fake_rank", str(study)]
    with (workplace / "out.txt").open("w") as out:
        launcher = subprocess.Popen(
            command, env=environment, stdout=out, stderr=out, start_new_session=True, preexec_fn=_hear_ctrl_c
        )
    checkpoint = workplace / "outputs/tiny/jobs/job/checkpoints/step-000001/state.json"
    while not checkpoint.exists():
        assert launcher.poll() is None, (workplace / "out.txt").read_text()
        time.sleep(0.1)
    family = psutil.Process(launcher.pid).children(recursive=True)
    assert family
    launcher.send_signal(signal.SIGINT)

    assert launcher.wait(timeout=300) == 130, (workplace / "out.txt").read_text()

    _, alive = psutil.wait_procs(family, timeout=120)
    assert [process.cmdline() for process in alive] == []
    assert "Run the same command to go on" in (workplace / "out.txt").read_text()
    assert "this is rank 0 of 2" in (workplace / "outputs/tiny/jobs/job/rank0.log").read_text()


def test_an_address_where_nobody_listens_is_refused_at_once(workplace: Path) -> None:
    study = write_study(workplace)
    with pytest.raises(UserError, match="no Ray cluster answers"):
        run_study(study, address="127.0.0.1:1")
