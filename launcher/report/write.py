"""Writes the report of a study: report.html to read, report.md for terminals, report.json and tables/ for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.folder import StudyFolder
from launcher.report.build import build_report, current, read_stored
from launcher.report.markdown_page import render_markdown
from launcher.report.material import read_material
from launcher.report.page import render_page
from launcher.report.study_files import Stay, read_stays
from launcher.report.tables import csv_tables
from training.result import write_json

PAGE, MARKDOWN, JSON, TABLES = "report.html", "report.md", "report.json", "tables"


def write_report(folder: StudyFolder) -> Path:
    """Write the report from what the study folder holds, nothing else; return the path of report.html."""
    name, jobs = folder.read_study()
    results = folder.read_results(jobs)
    baselines = current(folder.read_baselines(), results)
    report = build_report(name, results, baselines, read_stored(folder, results, baselines), num_jobs=len(jobs))
    report["data_checks"] = list(folder.read_data_checks().values())
    folders = {result.name: folder.jobs / result.name for result in results}
    return write_files(folder.root, report, folders, read_stays(folder.root))


def write_files(root: Path, report: dict[str, Any], folders: Mapping[str, Path], stays: Sequence[Stay]) -> Path:
    """Write all files of a report; each holds either its old or its whole new content. Return that of the page."""
    root.mkdir(parents=True, exist_ok=True)
    write_json(root / JSON, report)
    _write_text(root / MARKDOWN, render_markdown(report))
    tables = csv_tables(report)
    for name, content in tables.items():
        _write_text(root / TABLES / name, content)
    for path in (root / TABLES).glob("*.csv"):
        if path.name not in tables:
            path.unlink()
    _write_text(root / PAGE, render_page(read_material(report, folders, stays)))
    return root / PAGE


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
