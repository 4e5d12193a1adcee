"""launch.py on a cluster's head: what it needs there, what it says where that is missing, whom it waits for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import training
from launcher import joining, launch

CHECKOUT = Path(__file__).resolve().parents[2]
STUDY = Path("studies/demo.yaml")


def install(home: Path, version: str) -> Path:
    """Lay in a home what the check looks at; return the checkout there."""
    checkout = home / "shoal"
    (checkout / "training").mkdir(parents=True)
    (checkout / "training" / "__init__.py").write_text(f'"""Doc."""\n\n__version__ = "{version}"\n')
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    return checkout


def test_the_version_in_the_file_is_shoals() -> None:
    assert training.__version__ == launch.VERSION


def test_equal_versions_pass(tmp_path: Path) -> None:
    assert launch.check_installed(install(tmp_path, launch.VERSION), STUDY) is None


def test_another_version_and_a_bare_head_say_how_to_mend_it(tmp_path: Path) -> None:
    mend = "ray submit --start cluster/cluster.yaml launcher/launch.py -- studies/demo.yaml"
    other = launch.check_installed(install(tmp_path, "0.0.1"), STUDY)
    assert other is not None and f"Shoal {launch.VERSION}" in other and "Shoal 0.0.1" in other and mend in other
    bare = launch.check_installed(tmp_path / "nothing", STUDY)
    assert bare is not None and "has no Shoal" in bare and mend in bare


@pytest.mark.parametrize("version", [launch.VERSION, "0.0.1"])
def test_alone_in_a_home_it_ends_with_2_and_no_traceback(tmp_path: Path, version: str) -> None:
    """As `ray submit` starts it: nothing of Shoal beside it, on a head that has no such study, or another version."""
    install(tmp_path, version)
    shutil.copy(CHECKOUT / "launcher" / "launch.py", tmp_path)
    command = [sys.executable, str(tmp_path / "launch.py"), "studies/mine.yaml"]
    run = subprocess.run(command, cwd=tmp_path, env={"HOME": str(tmp_path)}, capture_output=True, text=True)
    assert run.returncode == 2, run.stderr
    assert run.stderr.startswith("shoal: ") and "Traceback" not in run.stderr


def test_a_ray_job_writes_to_the_heads_outputs(tmp_path: Path) -> None:
    """Twice in one working folder, as Ray keeps it between jobs; the first time it holds outputs of the user's own."""
    here, kept = tmp_path / "job" / "outputs", tmp_path / "shoal" / "outputs"
    here.mkdir(parents=True)
    for name in ("first", "second"):
        launch._keep_outputs(here, kept)
        (here / name).touch()
    assert {path.name for path in kept.iterdir()} == {"first", "second"}


LOCAL = {"cluster_name": "test", "provider": {"type": "local", "worker_ips": ["10.0.0.2", "10.0.0.3"]}}
CLOUD = {
    "cluster_name": "test", "provider": {"type": "aws"}, "head_node_type": "head",
    "available_node_types": {"head": {}, "worker": {"min_workers": 2}},
}  # fmt: skip


def node(address: str, *, alive: bool = True) -> dict[str, Any]:
    return {"NodeManagerAddress": address, "Alive": alive}


def test_who_is_missing() -> None:
    head, one = node("10.0.0.1"), node("10.0.0.2")
    assert joining.missing(LOCAL, [head, one, node("10.0.0.3", alive=False)]) == ["10.0.0.3 (not started)"]
    assert joining.missing(LOCAL, [head, one, node("10.0.0.3")]) == []
    assert joining.missing(CLOUD, [head, one]) == ["1 of 2"]
    assert joining.missing(CLOUD, [head, one, node("10.0.0.3")]) == []


def test_no_cluster_file_no_waiting(tmp_path: Path) -> None:
    assert joining.read_bootstrap(tmp_path / "none.yaml") is None
