"""Kill a training job at random places and moments, start it again, and look whether anything was lost.

    python benchmarks/kills.py                             # 200 kills: about 20 minutes
    python benchmarks/kills.py --kills 12 --output FOLDER  # a few, as the tests do

Jobs of one and two ranks under several ZeRO stages are killed again and again until their share of the kills is made,
then run to the end. Each must end with the adapter of the undisturbed job, bit by bit, and with every optimizer step
made. Now and then the newest checkpoint is damaged as well, and the one before it must be taken.
Writes kills.json and kills.md. Exit status 1 where anything was lost.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# `python benchmarks/kills.py` puts benchmarks/ first on the path; the checkout must come before an installed one.
sys.path.insert(0, str(ROOT))

from benchmarks.accuracy import hardware  # noqa: E402
from benchmarks.forked import fork, kill, poll, preload, run_forked, run_ranks, wait  # noqa: E402
from benchmarks.kill_points import STEPS, Kill, arm, draw_kill  # noqa: E402
from benchmarks.matrix_job import write_inputs  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
SAVE_STEPS = 3
DAMAGED_SHARE = 0.15
"""Of restarts, those before which the newest checkpoint is damaged."""
KILLS_A_JOB = 5
CONFIGS = (
    ("zero0-none", 1),
    ("zero2-none", 2),
    ("zero2-optimizer", 1),
    ("zero3-optimizer+param", 1),
    ("zero3-optimizer+param", 2),
    ("zero3-none", 2),
)
PACKAGES = ("torch", "deepspeed", "transformers", "peft")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One configuration, and how it ends undisturbed."""

    config: str
    num_ranks: int
    flags: list[str]
    adapter: bytes
    seconds: float


def flags_of(config: str, num_ranks: int, inputs: Path) -> list[str]:
    """Return the flags of an fp32 job of two epochs with dropout."""
    return [
        f"--model_name_or_path={inputs / 'model'}", f"--train_file={inputs / 'train4.jsonl'}",
        f"--test_file={inputs / 'test4.jsonl'}", "--validation_fraction=0.2", f"--deepspeed={inputs / config}.json",
        "--max_seq_length=32", "--num_train_epochs=2", f"--per_device_train_batch_size={8 // num_ranks}",
        "--learning_rate=1e-2", "--lora_dropout=0.1", "--bf16=false", f"--save_steps={SAVE_STEPS}",
        "--save_total_limit=3",
    ]  # fmt: skip


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Return a job's events of one kind; a line torn by a kill is none."""
    found = []
    for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines() if folder.exists() else []:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if event["kind"] == kind:
            found.append(event)
    return found


def start(job: Job, folder: Path, log: Path, planned: Kill) -> list[int]:
    """Start the job's ranks, the one to be killed armed."""
    from training.main import main
    from training.ranks import Ranks, free_port

    port = free_port()

    def run(rank: int) -> int:
        if rank == planned.rank:
            arm(planned)
        return main([*job.flags, f"--output_dir={folder}"])

    place = partial(Ranks, world_size=job.num_ranks, local_world_size=job.num_ranks, master_port=port, num_threads=1)
    return [
        fork(partial(run, rank), log, place(rank=rank, local_rank=rank).environment()) for rank in range(job.num_ranks)
    ]


def kill_once(job: Job, folder: Path, log: Path, planned: Kill) -> bool:
    """Run the job until the kill; return whether it came before the job's end."""
    ranks = start(job, folder, log, planned)
    if planned.place is None:
        time.sleep(planned.moment)
        ended = [poll(pid) for pid in ranks]
        for pid, status in zip(ranks, ended, strict=True):
            if status is None:
                kill(pid)
                os.waitpid(pid, 0)
        return None in ended
    return -9 in wait(ranks)


def damage_newest(folder: Path, draw: random.Random) -> str | None:
    """Now and then tear a file of the newest checkpoint if there is one before it; return which."""
    checkpoints = sorted((folder / "checkpoints").glob("step-*"))
    finished = (folder / "result.json").exists()  # the kill came after it: no checkpoint is read any more
    if finished or len(checkpoints) < 2 or draw.random() >= DAMAGED_SHARE:
        return None
    victim = draw.choice(sorted(checkpoints[-1].iterdir()))
    content = victim.read_bytes()
    victim.write_bytes(content[: draw.randrange(len(content))])
    return f"{checkpoints[-1].name}/{victim.name}"


@dataclass(frozen=True, kw_only=True)
class Life:
    """What a job went through from its first start to its end."""

    config: str
    num_ranks: int
    kills: list[str]
    """The phase of each."""
    damaged: list[str]
    """Checkpoint files that were cut off between two starts."""
    redone: list[int]
    """Steps made again after each kill that cost any."""
    wrong: list[str]
    """What was lost; empty where all is well."""


def live(job: Job, folder: Path, most_kills: int, draw: random.Random) -> Life:
    """Kill a job up to `most_kills` times, let it end, and compare with the undisturbed one."""
    log = folder.with_suffix(".log")
    kills: list[str] = []
    damaged: list[str] = []
    for _ in range(most_kills):
        planned = draw_kill(draw, job.num_ranks, job.seconds)
        if not kill_once(job, folder, log, planned):
            break  # it ended first, or never came to that place
        kills.append(planned.phase)
        damaged += filter(None, [damage_newest(folder, draw)])
    statuses = run_ranks([*job.flags, f"--output_dir={folder}"], job.num_ranks, log)
    steps = events(folder, "step")
    wrong = [] if not any(statuses) else [f"exit statuses {statuses}: {log.read_text(errors='replace')[-500:]}"]
    wrong += faults(job, folder, steps, damaged)
    numbers = [event["step"] for event in steps]
    redone = [before - after + 1 for before, after in itertools.pairwise(numbers) if after <= before]
    return Life(
        config=job.config, num_ranks=job.num_ranks, kills=kills, damaged=damaged, redone=redone, wrong=wrong
    )  # fmt: skip


def faults(job: Job, folder: Path, steps: list[dict[str, Any]], damaged: list[str]) -> list[str]:
    """Return what differs from the undisturbed job."""
    found = []
    file = folder / "adapter" / "adapter_model.safetensors"
    if not file.exists() or file.read_bytes() != job.adapter:
        found.append("the adapter is not that of the undisturbed job")
    losses: dict[int, set[float]] = {}
    for event in steps:
        losses.setdefault(event["step"], set()).add(event["loss"])
    if set(losses) != set(range(1, STEPS + 1)):
        found.append(f"steps made: {sorted(losses)}")
    found += [f"step {step} made again with another loss" for step, values in losses.items() if len(values) > 1]
    said = [event for event in events(folder, "log") if "cannot be read" in event["message"]]
    if len(said) < len(damaged):
        found.append(f"{len(damaged)} checkpoints were damaged and {len(said)} were reported")
    return found


def undisturbed(config: str, num_ranks: int, inputs: Path, work: Path) -> Job:
    """Run a configuration to its end."""
    flags = flags_of(config, num_ranks, inputs)
    folder = work / f"undisturbed-{config}-{num_ranks}"
    started = time.monotonic()
    statuses = run_ranks([*flags, f"--output_dir={folder}"], num_ranks, folder.with_suffix(".log"))
    seconds = time.monotonic() - started
    if any(statuses):
        raise SystemExit(f"{folder.with_suffix('.log').read_text(errors='replace')}\n{config} failed undisturbed.")
    adapter = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
    return Job(config=config, num_ranks=num_ranks, flags=flags, adapter=adapter, seconds=seconds)


def report(content: dict[str, Any]) -> str:
    """Return kills.md."""
    lives = content["lives"]
    phases = Counter(phase for life in lives for phase in life["kills"])
    redone = sorted(steps for life in lives for steps in life["redone"])
    whole = max((steps for life in lives if not life["damaged"] for steps in life["redone"]), default=0)
    wrong = [f"{life['config']}, {life['num_ranks']} ranks: {text}" for life in lives for text in life["wrong"]]
    per_config = Counter(f"{life['config']}, {life['num_ranks']}" for life in lives for _ in life["kills"])
    table = [f"| {phase} | {count} |" for phase, count in phases.most_common()]
    configs = ", ".join(f"{name}: {count}" for name, count in sorted(per_config.items()))
    versions = ", ".join(f"{name} {number}" for name, number in content["versions"].items())
    verdict = "nothing was lost" if not wrong else "LOST: " + "; ".join(wrong)
    return f"""# Kills: a job is killed at random and started again

**{sum(phases.values())} kills in {len(lives)} jobs: {verdict}.** Every job ended with the adapter of the undisturbed \
job, bit by bit (fp32, as many ranks), and made each of its {STEPS} steps with the loss it has there. \
{sum(len(life["damaged"]) for life in lives)} times the newest checkpoint was cut off as well: it was named, and the \
one before it taken.

| killed in | kills |
|---|---|
{chr(10).join(table)}

Checkpoints are written every {SAVE_STEPS} steps beside the training. {len(redone)} of the kills cost steps that were \
made again: {redone[len(redone) // 2] if redone else 0} at the median, {whole} at most where no checkpoint \
was damaged (an interval, and the steps made while the newest checkpoint was still being written).

- Command: `{content["command"]}`, seed {content["seed"]}
- Kills by configuration (DeepSpeed file, ranks): {configs}
- Run {content["date"]} on {content["hardware"]}; {versions}
""".replace("\\\n", "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="how many to make")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    arguments = parser.parse_args()
    preload()
    draw = random.Random(arguments.seed)
    lives: list[Life] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        os.environ["SHOAL_CACHE"] = str(work / "cache")
        if run_forked(partial(write_inputs, work), work / "inputs.log"):
            raise SystemExit((work / "inputs.log").read_text())
        jobs: dict[tuple[str, int], Job] = {}
        made = 0
        while made < arguments.kills:
            config = CONFIGS[len(lives) % len(CONFIGS)]
            jobs[config] = jobs.get(config) or undisturbed(*config, work, work)
            most = min(KILLS_A_JOB, arguments.kills - made)
            lives.append(live(jobs[config], work / f"job{len(lives)}", most, draw))
            made += len(lives[-1].kills)
            print(f"{made} kills: {config[0]}, {config[1]} ranks: {lives[-1].wrong or 'all is well'}", flush=True)
    content = {
        "date": str(date.today()),
        "command": "python benchmarks/kills.py" + (f" --kills {arguments.kills}" if arguments.kills != 200 else ""),
        "seed": arguments.seed,
        "hardware": hardware(),
        "versions": {name: version(name) for name in PACKAGES},
        "lives": [asdict(life) for life in lives],
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "kills.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (arguments.output / "kills.md").write_text(report(content), encoding="utf-8")
    return 1 if any(life.wrong for life in lives) else 0


if __name__ == "__main__":
    sys.exit(main())
