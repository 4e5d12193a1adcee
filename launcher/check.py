"""`shoal check DATA`: what is wrong with data, before anything is trained on it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from launcher.check_text import terminal_text
from launcher.expand import StudyJob, expand
from launcher.folder import data_key
from launcher.study import load_study
from training.errors import EXIT_FAILED, UserError
from training.parse import build
from training.spec import DataSpec, ModelSpec

FIRST_LINE_SECONDS, SECONDS_BETWEEN = 3.0, 5.0

Target = tuple[str, DataSpec, ModelSpec | None]
"""How the data is called, and what to check it with."""


def check_all(name: str, settings: dict[str, Any], *, as_json: bool) -> int:
    """Check the data a name stands for, or each data of a study; print the findings and return the exit status.

    `settings` are those of the data section that were given, and `model_name_or_path`. Raises UserError for data that
    cannot be read.
    """
    from training.check import check

    progress = Progress()
    checks: list[dict[str, Any]] = [
        {"data": title, "check": check(data, model, progress.report).to_dict()}
        for title, data, model in targets(name, settings)
    ]
    if as_json:
        print(json.dumps({"data_checks": checks}, ensure_ascii=False, indent=2))
    else:
        print("\n\n".join(terminal_text(item["data"], item["check"]) for item in checks))
    found = [finding for item in checks for finding in item["check"]["findings"]]
    return EXIT_FAILED if any(finding["level"] == "error" for finding in found) else 0


def targets(name: str, settings: dict[str, Any]) -> list[Target]:
    """Return what to check: data by its name, or the distinct data of a study, each with its first job's tokenizer."""
    if Path(name).suffix.lower() in (".yaml", ".yml"):
        if settings:
            raise UserError(f"{name} is a study, which sets {', '.join(settings)} itself. Change it there.")
        jobs: dict[str, StudyJob] = {}
        for job in expand(load_study(Path(name))):
            jobs.setdefault(data_key(job), job)
        return [(_title(job.written.data), job.spec.data, job.spec.model) for job in jobs.values()]
    data = dict(settings)
    model = data.pop("model_name_or_path", None)
    for flag in ("max_seq_length", "long_text"):
        if model is None and flag in data:
            raise UserError(f"--{flag} counts tokens. Give --model_name_or_path too.")
    path = Path(name).expanduser()
    is_file = path.is_file() or (path.suffix and not path.is_dir() and name.count("/") != 1)
    spec = build(DataSpec, {**data, "train_file" if is_file else "dataset_name": name}, "shoal check")
    return [(_title(spec), spec, ModelSpec(model_name_or_path=model) if model is not None else None)]


def _title(data: DataSpec) -> str:
    """Return how data is called."""
    files = [name for name in (data.validation_file, data.test_file) if name is not None]
    return ", ".join([data.dataset_name or str(data.train_file), *files])


class Progress:
    """Says on standard error how far a check is that takes longer than a few seconds."""

    def __init__(self) -> None:
        self.next_line = time.monotonic() + FIRST_LINE_SECONDS

    def report(self, what: str, done: int, total: int) -> None:
        """Note progress; see `training.corpus.findings.Report`."""
        now = time.monotonic()
        if now >= self.next_line:
            self.next_line = now + SECONDS_BETWEEN
            print(f"{what} {done:,} of {total:,}" if total else what, file=sys.stderr, flush=True)
