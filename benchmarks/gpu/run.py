"""Everything that needs a CUDA GPU, in one command, without a network: checks, tests, speed, memory.

    python3 -m benchmarks.gpu.run --output FOLDER                     # all of it within 8 minutes
    python3 -m benchmarks.gpu.run --output FOLDER --only memory       # one part, which then has all the time
    python3 -m benchmarks.gpu.run --output FOLDER --smoke             # tiny shapes; also on a CPU

Each part runs in its own process for its share of the time that is left, and stops (or is stopped) at its end.
results.json and results.md are written after each part, beside the parts' logs. The same folder again: the speed and
memory parts go on where they ended.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.gpu.report import markdown

ROOT = Path(__file__).resolve().parents[2]
SHARES = {"checks": 0.20, "tests": 0.24, "speed": 0.30, "memory": 0.26}
RESTART = 75
GRACE_SECONDS = 5.0
"""Between the time a part is told and the time it is stopped."""
PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "deepspeed", "datasets")
OUTCOME = re.compile(r"^tests/gpu/(.+?) (PASSED|FAILED|SKIPPED|ERROR)", re.MULTILINE)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--only", nargs="+", choices=tuple(SHARES), default=list(SHARES))
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, to see that all of it runs")
    return parser.parse_args()


def command_of(part: str, output: Path, seconds: float, smoke: bool) -> list[str]:
    """Return the command of a part."""
    if part == "tests":
        words = [sys.executable, "-m", "pytest", "tests/gpu", "-vv", "-p", "no:cacheprovider"]
        return words + (["-k", "packed"] if smoke else [])
    words = [sys.executable, "-m", f"benchmarks.gpu.{part}", "--output", str(output / f"{part}.jsonl")]
    return [*words, "--seconds", f"{seconds - GRACE_SECONDS:.0f}", *(["--smoke"] if smoke else [])]


def run_part(part: str, output: Path, seconds: float, smoke: bool) -> dict[str, Any]:
    """Run a part to its end or until its time is up; return how it ended."""
    started = time.monotonic()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    if smoke:
        environment["SHOAL_TEST_DEVICE"] = "cpu"
    status: int | None = RESTART
    with (output / f"{part}.log").open("wb") as log:
        while status == RESTART and (left := seconds - (time.monotonic() - started)) > GRACE_SECONDS:
            words = command_of(part, output.resolve(), left, smoke)
            status = run_for(left, words, environment, log)
    endings: dict[int | None, str] = {0: "finished", None: "stopped", RESTART: "stopped"}
    return {
        "ending": endings.get(status, f"failed with status {status}"),
        "seconds": time.monotonic() - started,
        "limit_seconds": seconds,
    }


def run_for(seconds: float, words: list[str], environment: dict[str, str], log: Any) -> int | None:
    """Return the exit status of a command, or None after stopping it and all it has started."""
    process = subprocess.Popen(
        words, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError):  # what a dead process has left behind holds the card too
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def read_part(part: str, output: Path) -> dict[str, Any]:
    """Return what a part has written."""
    if part == "tests":
        log = (output / "tests.log").read_text(encoding="utf-8", errors="replace")
        return {"tests": dict(OUTCOME.findall(log))}
    file = output / f"{part}.jsonl"
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
    if part == "checks":
        return {"checks": list({line["check"]: line for line in lines}.values())}
    # The last line of a cell or build is its state.
    if part == "speed":
        return {"cells": list({(line["shape"], line["data"], line["side"]): line for line in lines}.values())}
    return {"builds": list({tuple(line["build"].values()): line for line in lines}.values())}


def describe_machine() -> dict[str, Any]:
    """Return card, hardware and versions; the card is asked for in a process of its own, to hold none of its memory."""
    code = "import torch; print(torch.cuda.get_device_name(0) if torch.cuda.is_available() else 'the CPU')"
    card = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    hardware = f"{card}, {len(os.sched_getaffinity(0))} CPU cores, {memory_gib:.0f} GiB of memory"
    return {"card": card, "hardware": hardware, "versions": versions, "date": str(date.today())}


def write(path: Path, text: str) -> None:
    """Put a whole file in place."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def main() -> None:
    arguments = parse_arguments()
    deadline = time.monotonic() + 60 * arguments.minutes
    output: Path = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python3 -m benchmarks.gpu.run", *sys.argv[1:]])
    results: dict[str, Any] = {"command": command, **describe_machine()}
    if (output / "results.json").exists():  # keep the parts that are not run this time
        before = json.loads((output / "results.json").read_text(encoding="utf-8"))
        results |= {part: before[part] for part in SHARES if part in before}
    parts = [part for part in SHARES if part in arguments.only]
    for number, part in enumerate(parts):
        share = SHARES[part] / sum(SHARES[later] for later in parts[number:])
        seconds = (deadline - time.monotonic()) * share
        results[part] = run_part(part, output, seconds, arguments.smoke)
        results[part] |= read_part(part, output)
        write(output / "results.json", json.dumps(results, indent=1) + "\n")
        write(output / "results.md", markdown(results))
    print(markdown(results))


if __name__ == "__main__":
    main()
