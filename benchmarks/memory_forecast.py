"""Is the memory forecast right? Random jobs, forecast and then run, two steps each, on the CPU.

    python benchmarks/memory_forecast.py                 # 300 jobs; goes on where it was stopped
    python benchmarks/memory_forecast.py --jobs 12 --output outputs/memory_forecast

What is compared: the largest sum of bytes of all tensors that are alive in the first rank, from the loading of the
model to the last evaluation. A job's is what PyTorch's allocator told its profiler; the forecast's comes from
config.json, the texts' lengths and the settings. Beside it what DeepSpeed's `estimate_zero*_model_states_mem_needs` and
`accelerate estimate-memory` say of the same jobs. Writes memory_forecast.json, .md and .png.
A CPU without bf16 instructions multiplies in fp32 (bf16_products.py); the bytes are the same.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.forked import fork, preload, run_forked, wait  # noqa: E402
from benchmarks.memory_forecast_job import (  # noqa: E402
    Job,
    draw_job,
    forecast_job,
    say_peers,
    write_inputs,
)
from benchmarks.memory_forecast_report import write_results  # noqa: E402
from benchmarks.memory_measurement import measure_job  # noqa: E402

Row = dict[str, Any]
PARTS = ".memory_forecast_*.jsonl"
"""What the workers of a run write, job by job."""


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=300, metavar="N", help="how many (default: 300)")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="jobs at a time")
    parser.add_argument("--fresh", action="store_true", help="run again what is in the results")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    return parser.parse_args()


def run_job(job: Job, folder: Path) -> Row:
    """Forecast, run and ask the peers about one job; return its row."""
    folder.mkdir()
    log = folder / "log.txt"
    row: Row = {"job": job.to_dict()}
    tasks: dict[str, Callable[[], int]] = {
        "inputs": lambda: write_inputs(job, folder),
        "forecast": lambda: forecast_job(job, folder),
        "peers": lambda: say_peers(job, folder),
    }
    for name, task in tasks.items():
        started = time.monotonic()
        if run_forked(task, log) != 0:
            return row | {"error": f"{name}: {_tail(log)}"}
        row[f"{name}_seconds"] = round(time.monotonic() - started, 1)
    if any(measure_job(job, folder, log)):
        return row | {"error": f"job: {_tail(log)}"}
    for name in ("forecast", "peers", "measured"):
        row[name] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return row


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])


def work(jobs: list[Job], file: Path) -> int:
    """Run jobs one after the other; append each one's row to `file`."""
    with tempfile.TemporaryDirectory() as temporary:
        for job in jobs:
            row = run_job(job, Path(temporary) / job.name)
            with file.open("a", encoding="utf-8") as rows:
                rows.write(json.dumps(row) + "\n")
            if "error" in row:
                print(f"{job.name} FAILED {job.to_dict()}\n{row['error']}", flush=True)
            else:
                error = row["forecast"]["bytes"] / row["measured"]["bytes"] - 1
                print(f"{job.name}: {row['measured']['bytes'] / 2**20:,.1f} MiB, forecast {error:+.2%}", flush=True)
    return 0


def main() -> int:
    """Run the jobs and write the results; 1 where a job failed or the forecasts miss their bounds."""
    arguments = parse_arguments()
    arguments.output.mkdir(parents=True, exist_ok=True)
    preload()
    known = {} if arguments.fresh else latest([*read_results(arguments.output), *read_parts(arguments.output)])
    remove_parts(arguments.output)
    parts = [arguments.output / f".memory_forecast_{number}.jsonl" for number in range(arguments.workers)]
    with parts[0].open("w", encoding="utf-8") as file:  # what is known stays known where this run is stopped too
        file.writelines(json.dumps(row) + "\n" for row in known.values())
    jobs = [job for job in map(draw_job, range(arguments.jobs)) if "measured" not in known.get(job.name, {})]
    shares = [jobs[number :: len(parts)] for number in range(len(parts))]
    workers = [fork(partial(work, share, part), Path("/dev/stdout")) for share, part in zip(shares, parts, strict=True)]
    wait(workers, timeout_seconds=24 * 3600)
    status = write_results(list(latest(read_parts(arguments.output)).values()), arguments.output)
    remove_parts(arguments.output)
    return status


def read_results(folder: Path) -> list[Row]:
    """Return the rows of an earlier run that ended."""
    results = folder / "memory_forecast.json"
    return json.loads(results.read_text(encoding="utf-8"))["rows"] if results.exists() else []


def read_parts(folder: Path) -> list[Row]:
    """Return the rows of this run, or of one that was stopped."""
    return [json.loads(line) for part in folder.glob(PARTS) for line in part.open(encoding="utf-8")]


def latest(rows: list[Row]) -> dict[str, Row]:
    """Return a row for each job by name, the last that has not failed; none whose settings another draw had."""
    numbers = {row["job"]["name"]: int(row["job"]["name"].removeprefix("job")) for row in rows}
    drawn = {name: draw_job(number).to_dict() for name, number in numbers.items()}
    known = [row for row in rows if row["job"] == drawn[row["job"]["name"]]]
    return {row["job"]["name"]: row for row in sorted(known, key=lambda row: "measured" in row)}


def remove_parts(folder: Path) -> None:
    """Drop what each worker has written; it stands in the results."""
    for part in folder.glob(PARTS):
        part.unlink()


if __name__ == "__main__":
    sys.exit(main())
