"""Runs jobs in ranks forked from a process that has imported everything, which a job in fresh processes takes 10 s for.

    run = run_job("--model_name_or_path=...", "--output_dir=...", num_ranks=2)

Run as a program it is that process: a line of JSON in for each job, a line with its ranks' statuses out.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT))

from benchmarks.forked import preload, run_ranks  # noqa: E402


def run_job(
    *flags: str, num_ranks: int = 1, program: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run training/main.py, or another program, with these flags to its end; status and output are of all ranks.

    `variables` are added to the environment.
    """
    server = _server()
    assert server.stdin and server.stdout
    with tempfile.NamedTemporaryFile("r", suffix=".log", encoding="utf-8", errors="replace") as log:
        job = {
            "flags": flags, "num_ranks": num_ranks, "log": log.name, "program": program and str(program),
            "variables": variables,
        }  # fmt: skip
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        answer = server.stdout.readline()
        output = log.read()
    assert answer, f"the process that forks jobs has ended\n{output}"
    status = next((status for status in json.loads(answer) if status), 0)
    return subprocess.CompletedProcess(flags, status, stdout=output, stderr=output)


@functools.cache
def _server() -> subprocess.Popen[str]:
    """Start the process that forks, once for the tests of one process; it ends with its input."""
    process = subprocess.Popen(
        [sys.executable, __file__], cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(process.kill)
    return process


def serve() -> None:
    """Fork the ranks of each job that is asked for."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print on being imported is no answer
    preload()
    for line in sys.stdin:
        job = json.loads(line)
        program = job["program"] and Path(job["program"])
        os.environ |= job["variables"]
        statuses = run_ranks(job["flags"], job["num_ranks"], Path(job["log"]), program=program)
        for name in job["variables"]:
            del os.environ[name]
        print(json.dumps(statuses), file=answers)


if __name__ == "__main__":
    serve()
