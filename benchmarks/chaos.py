"""A study that is struck every minute, and a study of many short jobs: what does it cost, and is anything lost?

    python benchmarks/chaos.py --steps 29000      # about 90 minutes where a step takes 0.06 s
    python benchmarks/chaos.py --only strikes     # one of the two parts

Strikes: two jobs on a Ray of three nodes, a head without cards and two with one virtual card each. Every minute, in
turn, a rank's process is killed, a node with all that runs on it (another like it joins at once), or the launcher,
whose command is given again. The same study undisturbed comes first. Both must end with the same adapters and
predictions, byte by byte. Short jobs: four virtual cards, each job a few steps; the launcher's memory is read
meanwhile. Writes chaos.json and chaos.md. Exit status 1 where a bound of the two is missed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.accuracy import hardware  # noqa: E402
from benchmarks.chaos_report import markdown  # noqa: E402
from launcher.ray_token import make_token, require_token_auth  # noqa: E402

PACKAGES = ("ray", "torch", "deepspeed", "peft")
POLL_SECONDS = 0.2
CARD_GIB = 4.0
STORE_BYTES = 100 << 20
RANK = re.compile(r"ray::.+: rank \d+$")
"""How Ray names the process of a rank that trains: by the name launcher.running gives the call."""
RESUMED = re.compile(r"resuming after step (\d+) of")
KINDS = ("rank", "node", "launcher")
"""Of strikes, in turn."""
COSTS = ("seconds_mean", "seconds_std")
"""Of a group in a report; being hit must not change the rest."""
LEAST_USEFUL, MOST_GROWTH = 0.9, 1.1
"""Share of the time that must be useful; the launcher's memory at the end of many jobs by that at a fifth of them."""


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=("strikes", "short"), default=["strikes", "short"])
    parser.add_argument("--steps", type=int, default=6000, help="of each of the two jobs that are struck")
    parser.add_argument("--every", type=float, default=60.0, metavar="SECONDS", help="between two strikes")
    parser.add_argument("--short-jobs", type=int, default=200, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of which process is struck")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    return parser.parse_args()


def study_of(seeds: int, steps: int, rows: int) -> dict[str, Any]:
    """Return a study of fp32 jobs of one rank that differ in their seed."""
    return {
        "name": "chaos",
        "model": {"model_name_or_path": "builtin:tiny-llama", "dtype": "fp32"},
        "data": {
            "dataset_name": "builtin:docstrings", "max_seq_length": 64, "max_train_samples": rows,
            "max_validation_samples": 64, "max_test_samples": 200,
        },
        "training": {"max_steps": steps, "per_device_train_batch_size": 16, "learning_rate": 1e-3, "save_steps": 10},
        "deepspeed": "ds_configs/zero2.json", "num_ranks": 1, "seed": list(range(seeds)), "max_failures": 1000,
    }  # fmt: skip


def launch(folder: Path, study: dict[str, Any], address: str) -> subprocess.Popen[bytes]:
    """Start the launcher in a folder, as its user would; what it prints is appended to out.txt."""
    folder.mkdir(exist_ok=True)
    (folder / "chaos.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    command = [sys.executable, str(ROOT / "launcher" / "launch.py"), "chaos.yaml"]
    with (folder / "out.txt").open("a") as out:
        env = {**os.environ, "RAY_ADDRESS": address}
        return subprocess.Popen(command, cwd=folder, env=env, stdout=out, stderr=out)


class Nodes:
    """A Ray of three nodes on this machine."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 2, "num_gpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.workers = [self._add(), self._add()]

    def _add(self) -> Any:
        # One core each, and so one thread a rank: those of both nodes would fight for the same two cores.
        return self.cluster.add_node(
            num_cpus=1, num_gpus=0, resources={"card0_mib": 1024 * CARD_GIB}, object_store_memory=STORE_BYTES
        )

    def replace(self, draw: random.Random) -> None:
        """Kill a node with cards; another like it joins."""
        place = draw.randrange(len(self.workers))
        self.cluster.remove_node(self.workers[place], allow_graceful=False)
        self.workers[place] = self._add()


@contextmanager
def nodes() -> Iterator[Nodes]:
    """Yield a Ray that ends with the context."""
    require_token_auth()
    make_token()
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    found = Nodes()
    try:
        yield found
    finally:
        found.cluster.shutdown()


@dataclass
class Struck:
    """A study's run, and what struck it."""

    seconds: float = 0.0
    strikes: list[str] = field(default_factory=list)


def run(
    folder: Path, study: dict[str, Any], where: Nodes, every: float | None = None, draw: random.Random | None = None
) -> Struck:
    """Run the study to its end, struck every so many seconds if that is given."""
    found = Struck()
    started = time.monotonic()
    launcher = launch(folder, study, where.cluster.address)
    kinds = itertools.cycle(KINDS)
    due = started + every if every else float("inf")
    while (status := launcher.poll()) is None:
        time.sleep(POLL_SECONDS)
        if time.monotonic() < due or not rank_processes():
            continue
        assert draw is not None and every is not None
        kind = next(kinds)
        launcher = strike(kind, folder, study, where, launcher, draw)
        found.strikes.append(kind)
        due += every
        print(f"{time.monotonic() - started:.0f} s: struck a {kind}", flush=True)
    if status:
        raise SystemExit(f"{(folder / 'out.txt').read_text()[-5000:]}\nthe study ended with status {status}")
    found.seconds = time.monotonic() - started
    return found


def strike(
    kind: str, folder: Path, study: dict[str, Any], where: Nodes, launcher: subprocess.Popen[bytes], draw: random.Random
) -> subprocess.Popen[bytes]:
    """Kill one of a kind; return the launcher, another where that was struck. A rank must be there to be killed."""
    if kind == "rank":
        draw.choice(rank_processes()).kill()
    elif kind == "node":
        where.replace(draw)
    else:
        launcher.kill()
        launcher.wait()
        return launch(folder, study, where.cluster.address)
    return launcher


def rank_processes() -> list[psutil.Process]:
    """Return the processes of ranks that train on this machine."""
    named = psutil.process_iter(["cmdline"])
    return [process for process in named if RANK.match(" ".join(process.info["cmdline"] or []).strip())]


def jobs_of(folder: Path) -> dict[str, Path]:
    """Return the job folders of the study in a folder."""
    return {path.parent.name: path.parent for path in (folder / "outputs/chaos/jobs").glob("*/result.json")}


def events_of(job: Path) -> list[dict[str, Any]]:
    """Return the events of a job, of all its tries."""
    return [json.loads(line) for line in (job / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def seconds_of(folder: Path) -> float:
    """Return the time that the jobs of a study took together, each from its first event to its last."""
    spans = [(events[0]["time"], events[-1]["time"]) for events in map(events_of, jobs_of(folder).values())]
    return sum(end - start for start, end in spans)


def redone_of(job: Path) -> int:
    """Return how many of a job's steps were made again, by those it reported: not every one, where they are fast."""
    redone, newest = 0, 0
    for event in events_of(job):
        if event["kind"] == "step":
            newest = event["step"]
        elif found := RESUMED.match(event.get("message", "")):
            redone += max(0, newest - int(found[1]))
    return redone


def compare(calm: Path, struck: Path, steps: int) -> list[str]:
    """Return what was lost or differs."""
    wrong = []
    ours, theirs = jobs_of(struck), jobs_of(calm)
    if ours.keys() != theirs.keys():
        wrong.append(f"jobs {sorted(ours)} succeeded, undisturbed {sorted(theirs)}")
    for name in ours.keys() & theirs.keys():
        for file in ("adapter/adapter_model.safetensors", "predictions.parquet"):
            if (ours[name] / file).read_bytes() != (theirs[name] / file).read_bytes():
                wrong.append(f"{name}: {file} is another")
        if json.loads((ours[name] / "result.json").read_text())["train"]["steps"] != steps:
            wrong.append(f"{name}: it made another number of steps")
    if answer_of(calm) != answer_of(struck):
        wrong.append("the report gives another answer")
    return wrong


def answer_of(folder: Path) -> dict[str, Any]:
    """Return all that the report of the study in a folder says but for what it took."""
    report = json.loads((folder / "outputs/chaos/report.json").read_text(encoding="utf-8"))
    jobs = {
        job["name"]: {key: job[key] for key in ("status", "untrained_validation", "validation", "test", "scores")}
        for job in report["jobs"]
    }
    groups = [{key: value for key, value in group.items() if key not in COSTS} for group in report["groups"]]
    said = {key: report[key] for key in ("selection", "best", "comparisons", "data_checks")}
    return {"jobs": jobs, "groups": groups, **said}


def strikes_part(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Run the study undisturbed and struck; return what came of it."""
    study = study_of(seeds=2, steps=options.steps, rows=4000)
    calm, struck = work / "calm", work / "struck"
    with nodes() as where:
        print("undisturbed", flush=True)
        undisturbed = run(calm, study, where)
        print(f"{undisturbed.seconds:.0f} s; now with a strike every {options.every:.0f} s", flush=True)
        found = run(struck, study, where, options.every, random.Random(options.seed))
    restarts = [json.loads((job / "result.json").read_text())["restarts"] for job in jobs_of(struck).values()]
    return {
        "steps": options.steps, "every_seconds": options.every, "seed": options.seed,
        "undisturbed_seconds": undisturbed.seconds, "struck_seconds": found.seconds, "strikes": found.strikes,
        "useful": seconds_of(calm) / seconds_of(struck), "useful_of_study": undisturbed.seconds / found.seconds,
        "redone_steps": sum(map(redone_of, jobs_of(struck).values())),
        "restarts": sum(map(len, restarts)), "wrong": compare(calm, struck, options.steps),
    }  # fmt: skip


def short_part(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Run many short jobs on four virtual cards of a Ray of their own; return what came of it."""
    study = study_of(seeds=options.short_jobs, steps=3, rows=64) | {"cards_gib": [CARD_GIB] * 4}
    folder = work / "short"
    started = time.monotonic()
    launcher = launch(folder, study, "local")
    samples: list[tuple[int, int]] = []
    process = psutil.Process(launcher.pid)
    while (status := launcher.poll()) is None:
        done = len(jobs_of(folder))
        if done and (not samples or done > samples[-1][0]):
            samples.append((done, process.memory_info().rss))
        time.sleep(POLL_SECONDS)
    seconds = time.monotonic() - started
    if status:
        raise SystemExit(f"{(folder / 'out.txt').read_text()[-5000:]}\nthe study ended with status {status}")
    results = [json.loads((job / "result.json").read_text()) for job in jobs_of(folder).values()]
    training = sum(result["train"]["seconds"] for result in results)
    return {
        "jobs": options.short_jobs, "succeeded": len(results), "seconds": seconds,
        "training_seconds_a_job": training / len(results), "seconds_a_job": seconds / len(results),
        "launcher_bytes": samples, "growth": samples[-1][1] / memory_at(samples, options.short_jobs / 5),
    }  # fmt: skip


def memory_at(samples: list[tuple[int, int]], jobs: float) -> int:
    """Return the launcher's memory when so many jobs were done."""
    return next(memory for done, memory in samples if done >= jobs)


PARTS: dict[str, Callable[[argparse.Namespace, Path], dict[str, Any]]] = {"strikes": strikes_part, "short": short_part}


def all_met(content: dict[str, Any]) -> bool:
    """Whether the bounds hold for the parts that were run."""
    strikes, short = content.get("strikes"), content.get("short")
    kept = strikes is None or (strikes["useful"] >= LEAST_USEFUL and not strikes["wrong"])
    return kept and (short is None or (short["succeeded"] == short["jobs"] and short["growth"] <= MOST_GROWTH))


def main() -> int:
    """Run the parts that are asked for; keep the other's last result."""
    options = parse_arguments()
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "chaos.json"
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work:
        for part in options.only:
            about = {
                "date": date.today().isoformat(), "hardware": hardware(),
                "versions": {name: version(name) for name in PACKAGES},
            }  # fmt: skip
            content[part] = about | PARTS[part](options, Path(work))
    content["all_met"] = all_met(content)
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (options.output / "chaos.md").write_text(markdown(content), encoding="utf-8")
    return 0 if content["all_met"] else 1


if __name__ == "__main__":
    sys.exit(main())
