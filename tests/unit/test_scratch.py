"""Where ranks keep their files on a node, and that a launcher which was killed leaves none for good."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from launcher.worker import collect_logs, scratch_folder


def test_what_a_killed_launcher_left_goes_with_a_try_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    study, another = tmp_path / "outputs/one", tmp_path / "outputs/two"
    killed, ours, others = scratch_folder(study), scratch_folder(study), scratch_folder(another)
    for left in (killed / "job-1/checkpoints", ours / "job-1", ours / "job-2", others / "job-1"):
        left.mkdir(parents=True)

    assert collect_logs("job", str(ours / "job-1"), None, "") == {}

    assert not killed.exists()
    assert [path.name for path in ours.iterdir()] == ["job-2"]  # it runs
    assert (others / "job-1").exists()  # another study's
