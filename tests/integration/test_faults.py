"""What may befall a study's head: its launcher killed, its disk full. Ray is real, the rank program a stand-in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fake_rank
import psutil
import pytest
from conftest import CHECKOUT, python_path, read_report, write_study

from launcher.run import run_study

MIB = 1 << 20


def start(study: Path, out: Path, **variables: str) -> subprocess.Popen[bytes]:
    """Start the study in a process of its own, as `shoal run` does."""
    env = {**os.environ, "PYTHONPATH": python_path(CHECKOUT, Path(__file__).parent), **variables}
    with out.open("w") as file:
        return subprocess.Popen([sys.executable, "-m", "fake_rank", str(study)], env=env, stdout=file, stderr=file)


def wait_until(launcher: subprocess.Popen[bytes], out: Path, *paths: Path, said: str = "") -> None:
    while not all(path.exists() for path in paths) or said not in out.read_text():
        assert launcher.poll() is None, out.read_text()
        time.sleep(0.1)


def test_a_killed_launcher_leaves_no_process_and_the_same_command_goes_on(workplace: Path, cluster: str) -> None:
    jobs = [{"name": "short"}, {"name": "long", "lora": {"r": fake_rank.WAITS}}]
    study, out = write_study(workplace, sweep={"jobs": jobs}), workplace / "out.txt"
    launcher = start(study, out)
    folder = workplace / "outputs/tiny/jobs"
    wait_until(launcher, out, folder / "short/result.json", folder / "long/checkpoints/step-000001/state.json")
    family = psutil.Process(launcher.pid).children(recursive=True)
    launcher.kill()
    launcher.wait()
    _, alive = psutil.wait_procs(family, timeout=120)
    assert [process.cmdline() for process in alive] == []
    finished = (folder / "short/result.json").stat().st_mtime_ns

    assert run_study(study, address=cluster, run_job=fake_rank.run_job) == 0

    assert (folder / "short/result.json").stat().st_mtime_ns == finished
    assert "resuming after step 1" in (folder / "long/events.jsonl").read_text()
    assert {job["status"] for job in read_report(workplace)["jobs"]} == {"succeeded"}


@pytest.fixture
def small_disk(workplace: Path) -> Iterator[Path]:
    """A study folder on a disk of 24 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    outputs = workplace / "outputs"
    outputs.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", outputs], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"no small disk can be mounted here: {mount.stderr.strip()}")
    yield outputs
    subprocess.run(["umount", "--lazy", outputs], check=True)


def test_a_full_disk_is_waited_for(workplace: Path, small_disk: Path, cluster: str) -> None:
    """The adapter of 10 MB finds no room beside what somebody else has put there, until that goes."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(18 * MIB))
    study, out = write_study(workplace), workplace / "out.txt"
    launcher = start(study, out, RAY_ADDRESS=cluster)
    wait_until(launcher, out, said="the head's disk is full; the job waits with adapter")
    job = small_disk / "tiny/jobs/job"
    assert not (job / "adapter").exists() and not (job / "result.json").exists()
    ballast.unlink()
    assert launcher.wait(timeout=300) == 0, out.read_text()
    assert (job / "adapter/weights.bin").read_bytes() == fake_rank.ADAPTER_BYTES
    events = [json.loads(line) for line in (job / "events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["kind"] == "step"] == [1, 2]
    (result,) = read_report(workplace)["jobs"]
    assert result["status"] == "succeeded" and result["restarts"] == []
