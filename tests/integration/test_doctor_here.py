"""`shoal doctor` of this machine, as typed, where DeepSpeed's CPUAdam cannot be built."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def test_a_machine_without_a_compiler(tmp_path: Path, checkout: Path) -> None:
    nothing_built, programs = tmp_path / "extensions", tmp_path / "bin"
    programs.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "CXX"}
    environment |= {"PATH": str(programs), "TORCH_EXTENSIONS_DIR": str(nothing_built), "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "launcher.cli", "doctor", "--json"]
    run = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    printed = json.loads(run.stdout)
    assert run.returncode == (1 if printed["counts"]["error"] else 0), run.stderr
    (cpu_adam,) = (finding for finding in printed["findings"] if finding["check"] == "cpu_adam")
    assert cpu_adam["level"] == "warning" and "apt install g++" in cpu_adam["fix"]
    assert "CPUAdam" in run.stderr  # what takes a minute is said before
    assert {"versions", "disk", "memory", "cpu_adam", "all_reduce"} <= {
        finding["check"] for finding in printed["findings"]
    }
