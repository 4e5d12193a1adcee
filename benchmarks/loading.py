"""How much host memory does it take to load a model, beside what it keeps? Shoal and Hugging Face, two ranks.

    python benchmarks/loading.py            # a random LLaMA of 1.2 billion parameters; 5 GB of disk, 10 GB of memory
    python benchmarks/loading.py --small    # 54 million parameters

Each way of loading runs in fresh processes, two ranks over gloo on the CPU. Their memory is read every 20 ms from
/proc/PID/smaps_rollup while they load and is given above what they held before, with all imported and the ranks met.
Writes loading.json and loading.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SIDES = {"shoal": "Shoal", "hf": "from_pretrained, then deepspeed.initialize"}
CASES = {
    "nf4, ZeRO-2": ("nf4", "ds_configs/zero2.json"),
    "nf4, ZeRO-3": ("nf4", "ds_configs/zero3.json"),
    "bf16, ZeRO-3": ("none", "ds_configs/zero3.json"),
    "bf16, ZeRO-3, offload_param": ("none", "ds_configs/zero3_offload.json"),
}
SHAPES = {
    "full": {
        "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8,
    },
    "small": {
        "vocab_size": 16000, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
        "num_attention_heads": 8, "num_key_value_heads": 2,
    },
}  # fmt: skip
"""The full one is that of Llama 3.2 1B."""
LAYERS_A_SHARD = 4
NUM_RANKS = 2
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "safetensors", "deepspeed")
SECONDS_BETWEEN_SAMPLES = 0.02
KINDS = {"Anonymous": "anonymous", "Pss": "pss"}
"""Lines of smaps_rollup. Anonymous: what no file holds. Pss: that, and each rank's share of mapped files."""

Cell = dict[str, Any]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a small shape, for tests")
    parser.add_argument("--only", nargs="+", choices=tuple(CASES), metavar="CASE", help="run these cases alone")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the results")
    return parser.parse_args()


# --- the checkpoint ---------------------------------------------------------------------------------------------


def write_checkpoint(folder: Path, shape: dict[str, int]) -> int:
    """Write a causal LLaMA with random bf16 weights in shards of a few layers; return its number of parameters."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**shape, tie_word_embeddings=True, pad_token_id=0, dtype="bfloat16")
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in LlamaForCausalLM(config).named_parameters()}
    torch.manual_seed(0)
    shards: dict[int, list[str]] = {}
    for name in shapes:
        layer = int(name.split(".")[2]) if ".layers." in name else -LAYERS_A_SHARD
        shards.setdefault(layer // LAYERS_A_SHARD, []).append(name)
    weight_map = {}
    for number, names in shards.items():
        file = f"model-{number + 2:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: torch.randn(shapes[name], dtype=torch.bfloat16).mul_(0.02) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    return sum(shape.numel() for shape in shapes.values())


# --- one cell ---------------------------------------------------------------------------------------------------


def memory_bytes(pids: list[int]) -> dict[str, int]:
    """Return the processes' memory of each kind, added up."""
    total = dict.fromkeys(KINDS.values(), 0)
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            name, _, rest = line.partition(":")
            if name in KINDS:
                total[KINDS[name]] += int(rest.split()[0]) * 1024
    return total


class Sampler(threading.Thread):
    """Reads the ranks' memory until it is stopped, and keeps the largest of each kind."""

    def __init__(self, pids: list[int]) -> None:
        super().__init__(daemon=True)
        self.pids = pids
        self.peak = memory_bytes(pids)
        self.num_samples = 1
        self.stopping = threading.Event()

    def run(self) -> None:
        while not self.stopping.wait(SECONDS_BETWEEN_SAMPLES):
            now = memory_bytes(self.pids)
            self.peak = {kind: max(self.peak[kind], now[kind]) for kind in now}
            self.num_samples += 1

    def stop(self) -> None:
        self.stopping.set()
        self.join()


class Rank:
    """One rank's process: a line to its input lets it go on, a JSON line on a pipe says how far it is."""

    def __init__(self, arguments: list[str], rank: int, port: int, log: Path) -> None:
        ours, theirs = os.pipe()
        environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": NUM_RANKS, "LOCAL_SIZE": NUM_RANKS}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1, "SAY_FD": theirs}
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "benchmarks/loading_rank.py", *arguments], cwd=ROOT, stdin=subprocess.PIPE,
                stdout=output, stderr=subprocess.STDOUT, pass_fds=(theirs,),
                env={**os.environ, **{name: str(value) for name, value in environment.items()}},
            )  # fmt: skip
        os.close(theirs)
        self.said = os.fdopen(ours)

    def hear(self) -> Cell:
        """Wait for what the rank says next; exit 1 with the end of its log where it says no more."""
        line = self.said.readline()
        if not line:
            tail = "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-30:])
            raise SystemExit(f"{tail}\n\nA rank failed.")
        heard: Cell = json.loads(line)
        return heard

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()


def run_cell(case: str, side: str, model: Path, folder: Path) -> Cell:
    """Load in fresh processes; return what they held at most, what stays, and how long it took."""
    sys.path.insert(0, str(ROOT))
    from training.ranks import free_port

    quantization, deepspeed = CASES[case]
    flags = {"side": side, "model": model, "quantization": quantization, "deepspeed": deepspeed}
    arguments = [f"--{name}={value}" for name, value in flags.items()]
    port = free_port()
    ranks = [Rank(arguments, rank, port, folder / f"rank{rank}.log") for rank in range(NUM_RANKS)]
    try:
        for rank in ranks:
            rank.hear()
        time.sleep(0.5)
        pids = [rank.process.pid for rank in ranks]
        before = memory_bytes(pids)
        sampler = Sampler(pids)
        sampler.start()
        for rank in ranks:
            rank.go_on()
        loaded = [rank.hear() for rank in ranks]
        sampler.stop()
        stays = memory_bytes(pids)
        for rank in ranks:
            rank.go_on()
        for rank in ranks:
            rank.process.wait()
    finally:
        for rank in ranks:
            rank.process.kill()
            rank.said.close()
    cell: Cell = {"case": case, "side": side, "seconds": max(said["seconds"] for said in loaded)}
    for kind in KINDS.values():
        cell[f"peak_{kind}_bytes"] = sampler.peak[kind] - before[kind]
        cell[f"stays_{kind}_bytes"] = stays[kind] - before[kind]
        cell[f"{kind}_ratio"] = cell[f"peak_{kind}_bytes"] / cell[f"stays_{kind}_bytes"]
    return cell | {"num_samples": sampler.num_samples, "partitioned": loaded[0]["partitioned"]}


# --- the results ------------------------------------------------------------------------------------------------


def hardware() -> str:
    """Return the CPU's model name, the number of cores this process may use, and the memory."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{names[0] if names else platform.processor()}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB"


def table(cells: list[Cell]) -> str:
    """Return the cells as a Markdown table, in GB."""
    lines = [
        "| base | loaded by | peak, anonymous | stays | peak / stays | peak, PSS | stays | peak / stays | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        figures = [cell["case"], SIDES[cell["side"]]]
        for kind in KINDS.values():
            figures += [f"{cell[f'{when}_{kind}_bytes'] / 1e9:.2f} GB" for when in ("peak", "stays")]
            figures.append(f"{cell[f'{kind}_ratio']:.2f}")
        lines.append(f"| {' | '.join([*figures, format(cell['seconds'], '.1f')])} |")
    return "\n".join(lines)


def report(content: dict[str, Any]) -> str:
    """Return loading.md."""
    numbers = ", ".join(f"{name} {number}" for name, number in content["versions"].items())
    return f"""# Host memory while a base model is loaded

{table(content["cells"])}

Two ranks together, above what they held before loading (everything imported, the ranks joined). "anonymous" is memory
that no file holds; PSS adds each rank's share of mapped file pages, which the kernel can drop. "stays" is measured
after `deepspeed.initialize`, with garbage collected and the allocator's spare memory given back. One run a row, read
every {SECONDS_BETWEEN_SAMPLES * 1000:.0f} ms. LoRA r 16 on all linear layers on every side.

- Command: `{content["command"]}`
- Model: a random LLaMA of {content["num_parameters"]:,} parameters, bf16, in shards of {LAYERS_A_SHARD} layers
- Run {content["date"]} on {content["hardware"]}
- Versions: {numbers}
"""


def write_results(content: dict[str, Any], folder: Path) -> None:
    """Write loading.json and loading.md, each by renaming a whole file into place."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {"loading.json": json.dumps(content, indent=1) + "\n", "loading.md": report(content)}.items():
        temporary = folder / f".{name}.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(folder / name)


def stored_cells(folder: Path, num_parameters: int) -> list[Cell]:
    """Return the cells of an earlier run with this model, for those that are not run again."""
    file = folder / "loading.json"
    content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    same = content.get("num_parameters") == num_parameters and content["versions"] == versions()
    return content["cells"] if same else []


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def describe(cells: list[Cell], num_parameters: int, small: bool) -> dict[str, Any]:
    """Return loading.json."""
    return {
        "date": str(date.today()),
        "command": "python benchmarks/loading.py" + (" --small" if small else ""),
        "hardware": hardware(),
        "versions": versions(),
        "num_parameters": num_parameters,
        "cells": cells,
    }


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as temporary:
        model = Path(temporary) / "model"
        model.mkdir()
        num_parameters = write_checkpoint(model, SHAPES["small" if arguments.small else "full"])
        cells = stored_cells(arguments.output, num_parameters)
        for case in arguments.only or CASES:
            for side in SIDES:
                cell = run_cell(case, side, model, Path(temporary))
                print(table([cell]).splitlines()[-1], flush=True)
                cells = [old for old in cells if (old["case"], old["side"]) != (case, side)] + [cell]
                cells.sort(key=lambda cell: (list(CASES).index(cell["case"]), list(SIDES).index(cell["side"])))
                write_results(describe(cells, num_parameters, arguments.small), arguments.output)


if __name__ == "__main__":
    main()
