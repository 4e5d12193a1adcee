"""Where does the time of a training step of Shoal go? For the cells of `speed.py` that miss their target.

    python benchmarks/step_profile.py     # a minute a cell; writes benchmarks/results/step_profile.*

Each cell trains in a fresh process as `speed.py` trains it, in bf16 where the CPU multiplies bf16 natively and in
fp32 elsewhere. First some steps are timed by what the engine is asked for (forward, backward, step), then some more run
under torch.profiler, which says how much of a step its operators take: matrix products, what else reads and writes
tensors, and the rest, in which no operator runs (Python: DeepSpeed, PEFT, autograd).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(1, str(ROOT))

WARMUP, TIMED, PROFILED = 3, 8, 4
"""Steps."""
PRODUCTS = {
    "aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm", "mkldnn::_linear_pointwise",
    "aten::mkldnn_linear",
}  # fmt: skip
PHASES = ("forward", "backward", "step")
CELLS = ("plain", "zero2", "zero3_offload")
BATCH_SIZES = {"ag_news": 8, "newsgroups20": 16}
"""Data set -> batch size. Of AG News the cells miss; of 20 Newsgroups they came closest."""
NUM_LARGEST = 5

Profile = dict[str, Any]


class Clock:
    """Times what the engine is asked for, step by step."""

    def __init__(self, result: Path) -> None:
        self.result = result
        self.steps: list[dict[str, float]] = []
        self.kernels: dict[str, float] = {}
        self.profiler: Any = None
        self.profiled_seconds = 0.0

    def watch(self, engine_class: Any) -> None:
        """Time these methods of every engine."""
        for name in PHASES:
            setattr(engine_class, name, self._timed(name, getattr(engine_class, name)))

    def _timed(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            answer = method(*arguments, **options)
            if self.steps:
                self.steps[-1][name] += time.perf_counter() - started
            return answer

        return timed

    def around(self, optimizer_step: Callable[..., Any]) -> Callable[..., Any]:
        """Return the trainer's step with the clock around it."""
        from torch.profiler import ProfilerActivity, profile

        def step(run: Any, plan: Any, number: int, rate: float) -> Any:
            if number == WARMUP + TIMED:
                self.profiler = profile(activities=[ProfilerActivity.CPU])
                self.profiler.start()
            self.steps.append(defaultdict(float))
            started = time.perf_counter()
            answer = optimizer_step(run, plan, number, rate)
            seconds = time.perf_counter() - started
            self.steps[-1]["all"] = seconds
            self.steps[-1]["tokens"] = sum(sum(run.train.lengths[i]) for batch in plan.micro_batches for i in batch)
            if self.profiler is not None:
                self.profiled_seconds += seconds
            if number + 1 == WARMUP + TIMED + PROFILED:
                self.profiler.stop()
                self.write()
            return answer

        return step

    def write(self) -> None:
        """Keep means a step, in milliseconds."""
        timed = self.steps[WARMUP : WARMUP + TIMED]
        means = {name: 1e3 * sum(step[name] for step in timed) / TIMED for name in ("all", *PHASES)}
        kernels = {"matrix products": 0.0, "other operators": 0.0}
        others: dict[str, float] = {}
        for event in self.profiler.key_averages():
            kind = "matrix products" if event.key in PRODUCTS else "other operators"
            if event.key.startswith(("aten::", "mkldnn::", "bitsandbytes::")):
                milliseconds = event.self_cpu_time_total / 1e3 / PROFILED
                kernels[kind] += milliseconds
                if kind == "other operators":
                    others[event.key] = milliseconds
        largest = sorted(others, key=lambda name: -others[name])[:NUM_LARGEST]
        profiled = 1e3 * self.profiled_seconds / PROFILED
        content = {
            "milliseconds": {name: round(value, 2) for name, value in means.items()},
            "tokens": sum(step["tokens"] for step in timed) / TIMED,
            "under_the_profiler": {
                "all": round(profiled, 2), **{name: round(value, 2) for name, value in kernels.items()},
                "no operator": round(profiled - sum(kernels.values()), 2),
                "largest others": {name: round(others[name], 2) for name in largest},
            },
        }  # fmt: skip
        self.result.write_text(json.dumps(content))


def train(result: Path, arguments: list[str]) -> int:
    """Train in this process with the clock around; the arguments are those of training/main.py."""
    import deepspeed

    import training.loop
    from training.main import main as train_main

    clock = Clock(result)
    clock.watch(deepspeed.DeepSpeedEngine)
    training.loop.optimizer_step = clock.around(training.loop.optimizer_step)
    return train_main(arguments)


def measure(options: argparse.Namespace) -> list[Profile]:
    """Return a row for each cell."""
    import torch
    from speed_cells import Work, command_of, environment_of
    from speed_material import ROWS, get_model, write_data_set

    from training.pretrained import resolve_dtype

    native = resolve_dtype("auto", torch.device("cpu")) == torch.bfloat16
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data_sets = [write_data_set(name, options.data, folder, ROWS) for name in options.data_sets]
        model = get_model(options.model, folder)
        for data_set, zero in itertools.product(data_sets, options.cells):
            work = Work(
                side="shoal", data_set=data_set, model=model, zero=zero, batch_size=BATCH_SIZES[data_set.name],
                measured_steps=TIMED + PROFILED, repetition=0,
            )  # fmt: skip
            result = folder / f"{data_set.name}-{zero}.json"
            _, _, *flags = command_of(work, folder / result.stem)
            flags[flags.index("--max_steps") + 1] = str(WARMUP + TIMED + PROFILED)
            flags = flags if native else [flag for flag in flags if flag != "--bf16"]
            command = [sys.executable, __file__, "--train", str(result), *flags]
            subprocess.run(command, cwd=ROOT, env=environment_of(work, folder), check=True, stdout=subprocess.DEVNULL)
            row = {"model": model.name, "data": data_set.title, "batch_size": work.batch_size, "zero": zero}
            row["dtype"] = "bf16" if native else "fp32"
            rows.append({**row, **json.loads(result.read_text())})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def report(rows: list[Profile], head: str) -> str:
    """Return the Markdown text."""
    lines = [
        "# Where the time of a training step goes", "", head, "",
        "| model | data | batch | ZeRO | precision | tokens | ms a step | forward | backward | step | between "
        "| matrix products | other operators | no operator | the largest others |",
        "| " + " | ".join(["---"] * 15) + " |",
    ]  # fmt: skip
    for row in rows:
        times, kernels = row["milliseconds"], row["under_the_profiler"]
        between = times["all"] - sum(times[name] for name in PHASES)
        parts = ("matrix products", "other operators", "no operator")
        shares = [f"{kernels[name] / kernels['all']:.0%}" for name in parts]
        cells = [row["model"], row["data"], str(row["batch_size"]), row["zero"], row["dtype"]]
        cells += [f"{row['tokens']:.0f}", f"{times['all']:.0f}"]
        cells += [*(f"{times[name]:.0f}" for name in PHASES), f"{between:.0f}", *shares]
        largest = kernels["largest others"].items()
        cells.append(", ".join(f"{name.removeprefix('aten::')} {each / kernels['all']:.0%}" for name, each in largest))
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "The last four columns are shares of the time under the profiler, which itself costs some."]
    return "\n".join(lines) + "\n"


def main() -> int:
    if sys.argv[1:2] == ["--train"]:
        return train(Path(sys.argv[2]), sys.argv[3:])
    from accuracy import hardware
    from speed_material import RANDOM_MODEL

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the data sets' folders")
    parser.add_argument("--data-sets", nargs="+", choices=tuple(BATCH_SIZES), default=["ag_news"])
    parser.add_argument("--model", default=RANDOM_MODEL, help=f"model folder, or {RANDOM_MODEL}")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=CELLS, help="ZeRO files")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    rows = measure(options)
    versions = {name: version(name) for name in ("torch", "deepspeed", "peft", "transformers")}
    about = {"date": date.today().isoformat(), "hardware": hardware()}
    about["command"] = shlex.join(["python", "benchmarks/step_profile.py", *sys.argv[1:]])
    about |= {"versions": versions, "threads": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))}
    options.output.mkdir(parents=True, exist_ok=True)
    content = json.dumps({**about, "rows": rows}, indent=1)
    (options.output / "step_profile.json").write_text(content + "\n", encoding="utf-8")
    named = ", ".join(f"{name} {number}" for name, number in versions.items())
    head = f"{about['date']}: `{about['command']}`, {about['hardware']}; {named}."
    (options.output / "step_profile.md").write_text(report(rows, head), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
