"""One cell of `speed.py`: its command, a fresh process, and what its steps say.

What is timed: from the end of the last warm-up step to the end of the last step. Shoal's steps are those of its
events.jsonl, the peers' those of speed_clock.py. Tokens are real ones: padding is work, not progress.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accuracy import hardware
from speed_clock import WARMUP_STEPS
from speed_material import LORA_R, DataSet, Model
from speed_swift import swift_command, swift_environment, swift_versions

from training.batches import epoch_order
from training.ranks import free_port

ROOT = Path(__file__).resolve().parents[1]
DEEPSPEED = {"plain": None, "zero2": "ds_configs/zero2.json", "zero3_offload": "ds_configs/zero3_offload.json"}
SETTINGS = {"learning_rate": "1e-3", "lora_alpha": "32"}
"""Flags that all sides call alike."""
SHOAL_SEED = 42
"""The default of `training/main.py`."""
PACKAGES = ("torch", "transformers", "peft", "accelerate", "deepspeed")

Cell = dict[str, Any]


class CellFailed(Exception):
    """A cell's process ended with another status than 0."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one cell does."""

    side: str
    data_set: DataSet
    model: Model
    zero: str
    batch_size: int
    measured_steps: int
    repetition: int
    kind: str = "cell"
    """"cell", or "calibration": a short run that only chooses the batch size of hf-tuned."""

    @property
    def max_steps(self) -> int:
        """All steps, the warm-up too."""
        return WARMUP_STEPS + self.measured_steps

    def key(self) -> Cell:
        """Return what the result depends on; a stored cell with the same key is not run again."""
        return {
            **self.place(),
            "measured_steps": self.measured_steps,
            "warmup_steps": WARMUP_STEPS,
            "max_seq_length": self.data_set.max_seq_length,
            "lora_r": LORA_R,
            **SETTINGS,
            "num_rows": len(self.data_set.texts),
            "rows_sha256": self.data_set.sha256,
            "num_threads": num_threads(),
        }

    def place(self) -> Cell:
        """Return where the cell stands; a new one takes the place of an old one with other settings."""
        place = {name: getattr(self, name) for name in ("kind", "side", "zero", "batch_size", "repetition")}
        return {"data_set": self.data_set.name, "model": self.model.name, **place}


def num_threads() -> int:
    """Return the threads of every side: OMP_NUM_THREADS, else all cores."""
    return int(os.environ.get("OMP_NUM_THREADS", "0")) or len(os.sched_getaffinity(0))


def flag_list(flags: dict[str, Any]) -> list[str]:
    """Return {"a": 1} as ["--a", "1"]."""
    return [part for name, value in flags.items() for part in (f"--{name}", str(value))]


def command_of(work: Work, out: Path) -> list[str]:
    """Return the cell's command, which is to write what it does into `out`."""
    data_set, model = work.data_set, work.model
    if work.side == "ms-swift":
        settings = {"learning_rate": SETTINGS["learning_rate"], "lora_alpha": SETTINGS["lora_alpha"]}
        environment = swift_environment()
        return swift_command(environment, data_set, model, work.batch_size, work.max_steps, out, settings)
    shared = {
        **SETTINGS,
        "lora_r": LORA_R,
        "train_file": data_set.train_file,
        "max_seq_length": data_set.max_seq_length,
        "max_steps": work.max_steps,
    }
    config = DEEPSPEED[work.zero]
    if config is not None:
        shared["deepspeed"] = config
    if work.side == "shoal":
        own = {
            "model_name_or_path": model.folder,
            "validation_file": data_set.validation_file,
            "per_device_train_batch_size": work.batch_size,
            "output_dir": out,
        }
        return [sys.executable, "training/main.py", *flag_list({**shared, **own}), "--bf16"]
    own = {"model": model.folder, "batch_size": work.batch_size, "output": out / "clock.json"}
    tuned = ["--tuned"] if work.side == "hf-tuned" else []
    return [sys.executable, "benchmarks/speed_hf.py", *flag_list({**shared, **own}), *tuned]


def environment_of(work: Work, out: Path) -> dict[str, str]:
    """Return the cell's environment: as many threads on every side, and nothing from the hub."""
    # torch builds DeepSpeed's operators with ninja, which stands beside the interpreter.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {"OMP_NUM_THREADS": str(num_threads()), "HF_HUB_OFFLINE": "1", "STEP_CLOCK": str(out / "clock.json")}
    if work.side.startswith("hf-") and work.zero != "plain":  # what the deepspeed launcher sets for a single rank
        own |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        own["MASTER_PORT"] = str(free_port())
    return {**os.environ, "PATH": path, **own}


def matmul_rate() -> float:
    """Return the rate of matrix products of this moment, in FLOP/s (see speed_probe.py)."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(num_threads())}
    command = [sys.executable, str(ROOT / "benchmarks" / "speed_probe.py")]
    run = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(run.stdout)


def run_cell(work: Work, lengths: list[int], folder: Path) -> Cell:
    """Train one cell in a fresh process; raise CellFailed with the end of its log where it fails."""
    out = Path(tempfile.mkdtemp(dir=folder))
    command, environment = command_of(work, out), environment_of(work, out)
    rate = matmul_rate()
    log_file = folder / f"{out.name}.log"
    started = time.time()
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        Path(f"/proc/{process.pid}/oom_score_adj").write_text("1000")  # where memory runs out, this one is to go
        _, status, usage = os.wait4(process.pid, 0)
    process_seconds = time.time() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        tail = "\n".join(log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-30:])
        raise CellFailed(f"{tail}\n\n{work.place()} failed with status {process.returncode}.")
    clock = shoal_clock(out, lengths, work) if work.side == "shoal" else read_clock(out / "clock.json")
    assert len(clock["times"]) == len(clock["tokens"]) == work.max_steps, f"{work.place()}: {len(clock['times'])} steps"
    return {
        **work.key(),
        **figures(clock, work, rate),
        "start_up_seconds": round(clock["times"][0] - started, 1),
        "process_seconds": round(process_seconds, 1),
        "peak_rss_bytes": usage.ru_maxrss * 1024,
        "date": str(date.today()),
        "hardware": hardware(),
        "versions": versions(work.side),
    }


@functools.cache
def versions(side: str) -> dict[str, str]:
    """Return the versions a side runs on."""
    own = swift_versions(swift_environment()) if side == "ms-swift" else {name: version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **own}


def read_clock(file: Path) -> Cell:
    """Return what speed_clock.py wrote."""
    clock: Cell = json.loads(file.read_text(encoding="utf-8"))
    return clock


def shoal_clock(out: Path, lengths: list[int], work: Work) -> Cell:
    """Return Shoal's steps in the form of speed_clock.py; without padding, positions are tokens."""
    events = [json.loads(line) for line in (out / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    order = epoch_order(len(lengths), SHOAL_SEED, 0).tolist()
    batches = [order[step * work.batch_size : (step + 1) * work.batch_size] for step in range(work.max_steps)]
    tokens = [sum(lengths[index] for index in batch) for batch in batches]
    times = [event["time"] for event in events if event["kind"] == "step"]
    return {"times": times, "tokens": tokens, "positions": tokens}


def figures(clock: Cell, work: Work, rate: float) -> Cell:
    """Return the rates of the measured steps."""
    seconds = clock["times"][-1] - clock["times"][WARMUP_STEPS - 1]
    tokens, positions = (sum(clock[name][WARMUP_STEPS:]) for name in ("tokens", "positions"))
    return {
        "seconds": round(seconds, 3),
        "tokens": tokens,
        "padding": round(1 - tokens / positions, 4),
        "samples_per_second": work.batch_size * work.measured_steps / seconds,
        "tokens_per_second": tokens / seconds,
        "matmul_flops": rate,
        "share_of_matmul": tokens * work.model.flops_per_token / seconds / rate,
    }
