"""A study whose rank, node, launcher and disk are struck gives the answer of one that was left alone, to the byte.

The first strikes are those of benchmarks/chaos.py; they come by progress here, so that no machine is too slow for them.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.chaos import KINDS, Nodes, compare, launch, nodes, rank_processes, run, strike, study_of

STEPS, BETWEEN = 160, 30
FULL = re.compile("(disk|The disk of .*) is full")
"""What a job says, and what the launcher says where it is the first to write."""
STUDY = study_of(seeds=2, steps=STEPS, rows=400)
DISK_MIB = 48


@pytest.fixture(scope="module")
def where() -> Iterator[Nodes]:
    """A Ray of three nodes, two of them with a card."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "token")
        with nodes() as found:
            yield found


@pytest.fixture(scope="module")
def calm(where: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the study that is left alone."""
    folder = tmp_path_factory.mktemp("strikes") / "calm"
    run(folder, STUDY, where)
    return folder


def newest_step(folder: Path) -> int:
    """Return the step of the newest checkpoint of any job."""
    checkpoints = (folder / "outputs/chaos/jobs").glob("*/checkpoints/step-*")
    return max((int(path.name.split("-")[1]) for path in checkpoints), default=0)


def wait_for(step: int, folder: Path, launcher: subprocess.Popen[bytes]) -> None:
    """Return once a job has a checkpoint of that step, and a rank goes on."""
    while newest_step(folder) < step or not rank_processes():
        assert launcher.poll() is None, (folder / "out.txt").read_text()[-3000:]
        time.sleep(0.1)


def test_a_full_disk_leaves_the_answer_as_it_is(where: Nodes, calm: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    folder = tmp_path / "full"
    outputs = folder / "outputs"
    outputs.mkdir(parents=True)
    size = f"size={DISK_MIB}m"
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", outputs], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"no small disk can be mounted here: {mount.stderr.strip()}")
    try:
        launcher = launch(folder, STUDY, where.cluster.address)
        wait_for(BETWEEN, folder, launcher)
        ballast = outputs / "ballast"
        fill(ballast)
        while not FULL.search((folder / "out.txt").read_text()):
            assert launcher.poll() is None, (folder / "out.txt").read_text()[-3000:]
            time.sleep(0.1)
        ballast.unlink()
        assert launcher.wait() == 0, (folder / "out.txt").read_text()[-3000:]
        assert compare(calm, folder, STEPS) == []
    finally:
        subprocess.run(["umount", "--lazy", outputs], check=True)


def fill(ballast: Path) -> None:
    """Write until the disk has no room."""
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 10):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass


def test_each_kind_of_strike_leaves_the_answer_as_it_is(where: Nodes, calm: Path, tmp_path: Path) -> None:
    """A rank is killed, a node with another in its place, the launcher, and last a node for good."""
    folder, draw = tmp_path / "struck", random.Random(0)
    launcher = launch(folder, STUDY, where.cluster.address)
    for number, kind in enumerate(KINDS, start=1):
        wait_for(BETWEEN * number, folder, launcher)
        launcher = strike(kind, folder, STUDY, where, launcher, draw)
    wait_for(BETWEEN * (len(KINDS) + 1), folder, launcher)
    where.cluster.remove_node(where.workers.pop(), allow_graceful=False)
    assert launcher.wait() == 0, (folder / "out.txt").read_text()[-3000:]
    assert compare(calm, folder, STEPS) == []
