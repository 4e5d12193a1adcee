"""`shoal report A B`: several studies as one, to see which setting of any of them is best, and what sets them apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.folder import StudyFolder
from launcher.report.build import Stored, build_report, current, read_stored
from launcher.report.study_files import Stay, read_stays
from launcher.report.write import write_files
from training.errors import UserError
from training.predictions import Predictions

MAX_NAME = 80


def write_comparison(folders: Sequence[StudyFolder], output: Path | None) -> Path:
    """Write the report of several studies together; return the path of its page.

    A job is named `<study>/<job>`, and the study counts as a setting: jobs of two studies are never one group.
    Only what was evaluated on the same rows is compared. `output` is the folder to write, `compare-<studies>` beside
    the first by default. Raises UserError where two are the same, or `output` is a study.
    """
    roots = [folder.root.resolve() for folder in folders]
    if len(set(roots)) < len(roots):
        raise UserError("the same study folder is given twice. Name each once.")
    studies = [folder.read_study() for folder in folders]
    names = [name for name, _ in studies]
    if len(set(names)) < len(names):  # a study and its copy
        names = [folder.root.as_posix() for folder in folders]
    results, paths, stays = [], {}, []
    predictions: dict[str, Mapping[str, Predictions]] = {}
    sizes: dict[str, int] = {}
    rivals: dict[tuple[str, str, float], tuple[dict[str, Any], Predictions | None]] = {}
    for study, folder, (_, jobs) in zip(names, folders, studies, strict=True):
        own = folder.read_results(jobs)
        baselines = current(folder.read_baselines(), own)
        stored = read_stored(folder, own, baselines)
        for item, guesses in zip(baselines, stored.of_baselines, strict=True):  # the same rows: one baseline
            rivals.setdefault((item["name"], str(item["sha256"]), item["accuracy"]), (item, guesses))
        predictions |= {f"{study}/{job}": splits for job, splits in stored.predictions.items()}
        sizes |= {f"{study}/{job}": size for job, size in stored.adapter_bytes.items()}
        for result in own:
            name = f"{study}/{result.name}"
            results.append(replace(result, name=name, settings={"study": study, **result.settings}))
            paths[name] = folder.jobs / result.name
        stays += [renamed(stay, study) for stay in read_stays(folder.root)]
    target = output or folders[0].root.parent / f"compare-{'-'.join(name for name, _ in studies)}"[:MAX_NAME]
    if (target / "study.yaml").exists():
        raise UserError(f"{target} is a study: its own report lies there. Give another --output.")
    of_baselines = [guesses for _, guesses in rivals.values()]
    together = Stored(predictions=predictions, of_baselines=of_baselines, adapter_bytes=sizes)
    num_jobs = sum(len(jobs) for _, jobs in studies)
    title = " and ".join(names)
    report = build_report(title, results, [item for item, _ in rivals.values()], together, num_jobs=num_jobs)
    return write_files(target, report, paths, sorted(stays, key=lambda stay: stay.start))


def renamed(stay: Stay, study: str) -> Stay:
    """Return a stay of a job by the name it has among several studies."""
    return replace(stay, job=f"{study}/{stay.job}")
