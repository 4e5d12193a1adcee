"""The cluster files are what Ray takes, and their blanks are marked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
FILES = sorted((CHECKOUT / "cluster").glob("*.yaml"))
COMMANDS = ("setup_commands", "head_start_ray_commands", "worker_start_ray_commands")


def read(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


def test_there_are_files_to_check() -> None:
    assert [path.name for path in FILES] == ["cluster.yaml", "example_aws.yaml"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_ray_takes_it(path: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(read(path)))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_it_mounts_what_is_there_and_what_installing_needs(path: Path) -> None:
    mounts = read(path)["file_mounts"]
    assert all((CHECKOUT / local).exists() for local in mounts.values())
    assert all(remote == f"~/shoal/{local}" for remote, local in mounts.items())
    assert {"launcher", "training", "pyproject.toml", "README.md", "LICENSE"} <= set(mounts.values())


def test_both_run_the_same_commands() -> None:
    ours, cloud = (read(path) for path in FILES)
    assert {key: ours[key] for key in (*COMMANDS, "file_mounts")} == {
        key: cloud[key] for key in (*COMMANDS, "file_mounts")
    }
    assert cloud["head_setup_commands"][0] == ours["head_setup_commands"][0]


def test_the_blanks_are_marked_and_nothing_else_is_blank() -> None:
    lines = (CHECKOUT / "cluster" / "cluster.yaml").read_text(encoding="utf-8").splitlines()
    marked = [line.split(":")[0].strip() for line in lines if "# FILL IN" in line]
    assert marked == ["head_ip", "worker_ips", "ssh_user", "ssh_private_key"]
    blanks = re.compile(r"\b(HEAD|WORKER\d|USER)\b")
    assert all("# FILL IN" in line for line in lines if blanks.search(line.split(" #")[0]) and "$" not in line)
