"""Do jobs take what was planned? Random jobs are planned after `shoal calibrate`, run by `shoal run`, and compared.

    python benchmarks/planned_time.py    # about 15 minutes on two cores; writes benchmarks/results/planned_time.*

The jobs differ in model, length of texts, batch, accumulation, precision, quantization, DeepSpeed file, gradient
checkpointing, ranks, rows and epochs. A job's time is that from its start on its cards to its end, by the study's
placements.jsonl: processes, libraries, data, model, training, evaluation, saving and verification.

All lies in --folder: the same command goes on where it was stopped. Exit status 1 where a job is not within 1.5 x of
its plan, or the median not within 1.2 x.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from training.calibration.record import CardRecord, read_record, this_cpu  # noqa: E402

MODELS = {"small": (128, 4), "wide": (384, 2), "deep": (192, 8), "large": (512, 4)}
"""Name -> hidden size and layers; each with random weights. llama-12m of --models comes beside them."""
LENGTHS = (16, 32, 64, 128, 256)
FILES = ("zero1", "zero2_offload", "zero3", "zero3_offload_param")
WORST, MEDIAN = 1.5, 1.2
LONGEST_SECONDS = 60.0
"""Planned; a draw that is planned to take longer is drawn again, so that the whole takes a quarter of an hour."""


def material(folder: Path) -> None:
    """Write models and data, once."""
    from training.calibration.material import save_model, save_texts

    for name, (hidden, layers) in MODELS.items():
        if not (folder / name / "config.json").exists():
            save_model(folder / name, hidden, layers)
    for words in LENGTHS:
        for split, rows in (("train", 1000), ("validation", 200)):
            path = folder / f"{split}-{words}.jsonl"
            if not path.exists():
                save_texts(path, rows, words - 1, seed=rows + words)


def draw_job(number: int, draw: random.Random, folder: Path, llama: Path | None) -> dict[str, Any]:
    """Return a random job, as a study's sweep.jobs lists it."""
    ranks = draw.choice((1, 1, 2))
    words = draw.choice(LENGTHS)
    file = draw.choice(FILES[0::2] if ranks > 1 else FILES)
    model = draw.choice([*(str(folder / name) for name in MODELS), *([str(llama)] if llama else [])])
    return {
        "name": f"job{number:02}",
        "num_ranks": ranks,
        "deepspeed": f"ds_configs/{file}.json",
        "model": {
            "model_name_or_path": model,
            "dtype": draw.choice(("fp32", "fp32", "fp32", "bf16")),
            "quantization": draw.choice(("none", "none", "nf4", "int8")),
        },
        "data": {
            "train_file": str(folder / f"train-{words}.jsonl"),
            "validation_file": str(folder / f"validation-{words}.jsonl"),
            "max_seq_length": words, "max_train_samples": draw.choice((100, 200, 400, 800)),
            "max_validation_samples": draw.choice((50, 200)),
        },
        "lora": {"r": draw.choice((4, 8, 16, 32))},
        "training": {
            "per_device_train_batch_size": draw.choice((2, 4, 8, 16)),
            "gradient_accumulation_steps": draw.choice((1, 1, 2)),
            "num_train_epochs": draw.choice((1, 1, 2)),
            "gradient_checkpointing": draw.random() < 0.3,
        },
    }  # fmt: skip


def plan(study: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """Return what `shoal plan` says of each job of a study, by its name."""
    run = shoal(folder, "plan", str(study), "--json", capture=True)
    return {job["job"]: job for job in json.loads(run)}


def shoal(folder: Path, *words: str, capture: bool = False) -> str:
    """Run a command of shoal in the folder, with a cache of its own; return its output."""
    environment = {**os.environ, "SHOAL_CACHE": str(folder / "cache"), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "launcher.cli", *words]
    environment["PYTHONPATH"] = str(ROOT)
    output = subprocess.PIPE if capture else None
    run = subprocess.run(command, cwd=folder, env=environment, stdout=output, text=True)
    if run.returncode not in (0, 1, 2) or (capture and not run.stdout):
        raise RuntimeError(f"shoal {words[0]} ended with {run.returncode}")
    return run.stdout or ""


def make_study(number: int, seed: int, folder: Path, llama: Path | None) -> Path:
    """Write a study of random jobs that are planned to take no longer than LONGEST_SECONDS; return its file."""
    file = folder / "planned.yaml"
    if file.exists():
        return file
    draw = random.Random(seed)
    kept: list[dict[str, Any]] = []
    while len(kept) < number:
        jobs = [draw_job(place, draw, folder, llama) for place in range(len(kept), number)]
        candidates = folder / "candidates.yaml"
        candidates.write_text(yaml.safe_dump(study_of(jobs), sort_keys=False), encoding="utf-8")
        planned = plan(candidates, folder)
        fits = {
            name for name, job in planned.items()
            if job["status"] == "to run" and job["expected_seconds"] < LONGEST_SECONDS
        }  # fmt: skip
        good = [job for job in jobs if any(name.startswith(job["name"]) for name in fits)]
        kept += [{**job, "name": f"job{len(kept) + place:02}"} for place, job in enumerate(good)]
        print(f"{len(kept)} of {number} jobs drawn", flush=True)
    file.write_text(yaml.safe_dump(study_of(kept), sort_keys=False), encoding="utf-8")
    return file


def study_of(jobs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a study of these jobs on two virtual cards."""
    return {"name": "planned", "cards_gib": [8, 8], "seed": 0, "sweep": {"jobs": jobs}}


def taken(folder: Path) -> dict[str, float]:
    """Return the seconds of each job that ended, by the placements of the study."""
    started: dict[str, float] = {}
    found: dict[str, float] = {}
    path = folder / "outputs" / "planned" / "placements.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if event["event"] == "start":
            started[event["job"]] = event["time"]
        else:
            found[event["job"]] = event["time"] - started[event["job"]]
    return found


def main() -> int:
    """Calibrate, draw, plan, run, compare; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("outputs/planned-time"))
    parser.add_argument(
        "--models", type=Path, default=ROOT.parent / "shared" / "models", help="holds llama-12m, if any"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--short", action="store_true", help="calibrate roughly, for a quick look; nothing is judged")
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "ds_configs").exists():
        (folder / "ds_configs").symlink_to(ROOT / "ds_configs")
    os.environ["SHOAL_CACHE"] = str(folder / "cache")
    material(folder)
    if read_record(*this_cpu()) is None:
        shoal(folder, "calibrate", *(["--short"] if options.short else []))
    record = read_record(*this_cpu())
    assert record is not None
    llama = options.models / "llama-12m"
    study = make_study(options.jobs, options.seed, folder, llama if llama.is_dir() else None)
    plans_file = folder / "plans.json"
    if not plans_file.exists():  # before anything runs
        plans_file.write_text(json.dumps(plan(study, folder)), encoding="utf-8")
    plans = json.loads(plans_file.read_text(encoding="utf-8"))
    shoal(folder, "run", str(study))
    rows = compare(plans, taken(folder))
    content = {
        "date": date.today().isoformat(), "command": "python benchmarks/planned_time.py", **summary(rows),
        "machine": f"{record.name}, {record.driver}", "rows": rows, "calibration": record.to_dict(),
    }  # fmt: skip
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "planned_time.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (options.output / "planned_time.md").write_text(markdown(content, record), encoding="utf-8")
    print(markdown(content, record))
    within = content["worst"] <= WORST and content["median"] <= MEDIAN and len(rows) == options.jobs
    return 0 if within or options.short else 1


def compare(plans: dict[str, dict[str, Any]], seconds: dict[str, float]) -> list[dict[str, Any]]:
    """Return a row for each job that ran: planned and taken, and how far they are apart (at least 1)."""
    rows = []
    for name, job in plans.items():
        if name in seconds:
            planned, took = job["expected_seconds"], seconds[name]
            off = max(planned / took, took / planned)
            rows.append({"job": name, "setting": job["setting"], "planned": planned, "took": took, "off": off})
    return rows


def summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the median and the worst of how far plans are off."""
    offs = [row["off"] for row in rows]
    return {"median": statistics.median(offs), "worst": max(offs)}


def markdown(content: dict[str, Any], record: CardRecord) -> str:
    """Return the result as a page."""
    lines = [
        "# Planned time against the time taken",
        "",
        "| job | planned, s | took, s | took / planned |",
        "|---|---|---|---|",
    ]
    for row in content["rows"]:
        lines.append(
            f"| {row['job']} | {row['planned']:.1f} | {row['took']:.1f} | {row['took'] / row['planned']:.2f} |"
        )
    lines += [
        "",
        f"{len(content['rows'])} jobs: the median plan is within {content['median']:.2f} x of what the job took "
        f"(to reach: {MEDIAN}), the worst within {content['worst']:.2f} x (to reach: {WORST}).",
        f"Calibrated in {record.seconds:.0f} s.",
        "",
        f"{content['date']}, {content['machine']}: `{content['command']}`.",
        "",
    ]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
