"""The study folder, `outputs/<study>/`: the truth about what is finished.

outputs/<study>/
    study.yaml           the jobs, as they were expanded
    baselines.json       key of the data -> baselines
    baselines/<key>/     their predictions, as Parquet files
    data_checks.json     key of the data -> what is known of it and wrong with it
    report.html          the report, one file to open in a browser, send or print
    report.md, report.json   the same for terminals and programs
    tables/              the same for spreadsheets: leaderboard.csv, jobs.csv, per_class.csv, confusion.csv,
                         comparisons.csv
    status.json          how far its launcher is, or was last
    cancel/              an empty file named after each job that its launcher is asked to end
    forecasts.jsonl      what forecasts of its jobs were answered (launcher.known_answers)
    placements.jsonl     when each job started and left which cards, with what it had reserved of them
    jobs/<name>/         job.yaml, fingerprint, events.jsonl, checkpoints/, adapter/, rank0.log ... (of the last try;
                         those of tries of which a rank died begin with when),
                         plan.json (after it ran out of memory), predictions.parquet, and last result.json (success) or
                         failure.json (it failed, was cancelled or stopped early)
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from launcher.board import Placement
from launcher.expand import StudyJob
from launcher.study import EarlyStopping
from training.disk import alone_in, append_line, wait_for_room
from training.errors import UserError
from training.parse import read_yaml
from training.plan import Plan, write_plan
from training.predictions import Predictions, read_predictions, write_columns
from training.result import RunResult, read_result, write_json
from training.spec import JobSpec, require_folder_name

Baselines = dict[str, list[dict[str, Any]]]
"""Key of the data -> its baselines."""


def fingerprint(job: StudyJob) -> str:
    """Return a hash of what can change the job's result: DeepSpeed and data files by their content.

    Free of where checkout and study lie, so that a study folder can be moved with them.
    """
    settings = replace(job.written, deepspeed=job.spec.deepspeed).fingerprint()
    return hashlib.sha256(f"{settings} {job.data_content}".encode()).hexdigest()[:16]


def data_key(job: StudyJob) -> str:
    """Return a short hash of the data a job reads, without how it is tokenized."""
    settings = asdict(job.written.data)
    for name in ("max_seq_length", "long_text", "chunk_overlap", "max_chunks"):
        del settings[name]
    content = json.dumps([settings, job.data_content], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


class StudyFolder:
    """Reads and writes `outputs/<study>/`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.jobs = root / "jobs"
        self.forecasts = root / "forecasts.jsonl"
        self.say: Callable[[str], None] = print
        """Told that a write waits for room on the disk."""

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second `shoal run` of the same study out."""
        self.jobs.mkdir(parents=True, exist_ok=True)
        with alone_in(self.root, "shoal run"):
            yield

    def finished(self, job: StudyJob) -> RunResult | None:
        """Return the job's result where the folder holds one of these very settings."""
        result = read_result(self.jobs / job.name)
        return result if result is not None and result.fingerprint == fingerprint(job) else None

    def stopped(self, job: StudyJob, rule: EarlyStopping | None) -> RunResult | None:
        """Return what is kept of a job of these very settings that this rule has stopped early."""
        result = read_result(self.jobs / job.name, "failure.json")
        if result is None or rule is None or result.fingerprint != fingerprint(job):
            return None
        return result if result.stopped.get("rule") == asdict(rule) else None

    def has_checkpoint(self, job: StudyJob) -> bool:
        """Whether an earlier try of the job has left something to go on from."""
        return any((self.jobs / job.name / "checkpoints").glob("*"))

    def set_aside_changed(self, jobs: Sequence[StudyJob]) -> list[str]:
        """Move the folder of each job whose settings changed to `<name>.old-<n>`; return what to tell the user."""
        messages = []
        for job in jobs:
            folder = self.jobs / job.name
            mark = folder / "fingerprint"
            known = mark.read_text(encoding="utf-8").strip() if mark.exists() else None
            if not folder.exists() or known == fingerprint(job):
                continue
            number = 1
            while (old := folder.with_name(f"{job.name}.old-{number}")).exists():
                number += 1
            folder.rename(old)
            messages.append(f"{job.name}: its settings or data changed, so it runs again; what it had is in {old}")
        return messages

    def write_study(self, name: str, jobs: Sequence[StudyJob]) -> None:
        """Write study.yaml."""
        content = {"name": name, "jobs": [job.written.to_dict() for job in jobs]}
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        (self.root / "study.yaml").write_text(text, encoding="utf-8")

    def read_study(self) -> tuple[str, list[str]]:
        """Return the study's name and those of its jobs. Raises UserError where this is no study folder."""
        path = self.root / "study.yaml"
        if not path.exists():
            raise UserError(f"{self.root} is no study folder: it holds no study.yaml. Give outputs/<study>.")
        content = read_yaml(path, "study.yaml")
        try:
            names = [str(job["name"]) for job in content["jobs"]]
            for name in names:
                require_folder_name(name)
            return str(content["name"]), names
        except (KeyError, TypeError):
            raise UserError(f"{path} is damaged. Run the study again: it writes that file anew.") from None

    def begin(self, job: StudyJob) -> None:
        """Write what names the job, and forget an earlier failure."""
        folder = self.jobs / job.name
        folder.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(job.written.to_dict(), sort_keys=False, allow_unicode=True)
        (folder / "job.yaml").write_text(text, encoding="utf-8")
        (folder / "fingerprint").write_text(fingerprint(job) + "\n", encoding="utf-8")
        (folder / "failure.json").unlink(missing_ok=True)

    def record_placement(self, event: str, placement: Placement) -> None:
        """Add to placements.jsonl that a job starts on its cards or leaves them."""
        line = {"time": round(time.time(), 3), "event": event, "job": placement.job, **placement.to_dict()}
        self._keep(partial(append_line, self.root / "placements.jsonl", json.dumps(line, ensure_ascii=False)))

    def write_plan(self, spec: JobSpec, plan: Plan) -> None:
        """Write plan.json, which the job's next try begins with."""
        self._keep(partial(write_plan, self.jobs / spec.name, spec, spec.num_ranks, plan))

    def write_result(self, result: RunResult) -> None:
        """Write result.json for a success and failure.json for any other end of a job."""
        name = "result.json" if result.status == "succeeded" else "failure.json"
        self._keep(partial(write_json, self.jobs / result.name / name, result.to_dict()))

    def read_results(self, names: Sequence[str]) -> list[RunResult]:
        """Return the result or failure of each of these jobs that has one."""
        results = []
        for name in names:
            folder = self.jobs / name
            result = read_result(folder)
            result = result or read_result(folder, "failure.json")
            if result is not None:
                results.append(result)
        return results

    def read_baselines(self) -> Baselines:
        """Return the baselines computed so far."""
        path = self.root / "baselines.json"
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):  # missing or damaged: they are computed again
            return {}

    def add_baselines(self, key: str, baselines: Sequence[dict[str, Any]]) -> None:
        """Keep what `training.baseline` returns for one data: predictions as files, the rest in baselines.json.

        There "predictions" is the file's place in the study folder.
        """
        rows = []
        for baseline in baselines:
            place = f"baselines/{key}/{baseline['kind']}.parquet"
            columns, names = baseline["predictions"], baseline["label_names"]
            self._keep(partial(write_columns, self.root / place, columns, names))
            rows.append({**baseline, "predictions": place})
        self._keep(partial(write_json, self.root / "baselines.json", {**self.read_baselines(), key: rows}))

    def read_predictions(self, job: str) -> dict[str, Predictions]:
        """Return split -> predictions of a job; empty where it has stored none."""
        return read_predictions(self.jobs / job / "predictions.parquet")

    def read_baseline(self, baseline: Mapping[str, Any]) -> Predictions | None:
        """Return the predictions of a baseline of baselines.json; None where an older version kept none."""
        place = baseline.get("predictions")
        return read_predictions(self.root / place).get(baseline["split"]) if place else None

    def adapter_bytes(self, job: str) -> int:
        """Return the size of a job's adapter folder: what must be shipped beside the base."""
        files = (self.jobs / job / "adapter").rglob("*")
        return sum(path.stat().st_size for path in files if path.is_file())

    def read_data_checks(self) -> dict[str, dict[str, Any]]:
        """Return key of the data -> {"data", "check" (DataCheck.to_dict())}, as far as they are made."""
        path = self.root / "data_checks.json"
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):  # missing or damaged: they are made again
            return {}

    def write_data_checks(self, checks: dict[str, dict[str, Any]]) -> None:
        """Write data_checks.json."""
        self._keep(partial(write_json, self.root / "data_checks.json", checks))

    def _keep(self, write: Callable[[], None]) -> None:
        """Write what only a running study knows; where the disk is full, wait for room rather than lose it."""
        wait_for_room(
            write, partial(self.say, f"The disk of {self.root} is full. The study waits until there is room.")
        )
