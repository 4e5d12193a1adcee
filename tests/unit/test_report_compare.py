"""`shoal report A B`: several studies in one report."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from study_on_disk import StudyOnDisk

from launcher.cli import main


def studies(tmp_path: Path) -> tuple[Path, Path]:
    first = StudyOnDisk(tmp_path / "first")
    first.baseline(0.4)
    for seed in range(2):
        first.add(8, seed, 0.5)
    second = StudyOnDisk(tmp_path / "second")
    second.baseline(0.4)
    for seed in range(2):
        second.add(8, seed, 4.0)
    second.add(16, 0, 1.0, error="it broke")
    return first.root, second.root


def test_two_studies_are_compared_beside_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = studies(tmp_path)
    assert main(["report", str(first), str(second)]) == 0
    written = tmp_path / "compare-first-second"
    assert capsys.readouterr().out.strip() == str(written / "report.html")
    report = json.loads((written / "report.json").read_text())
    # The same settings, but two studies: two groups.
    assert [(group["name"], group["settings"]["study"], group["num_seeds"]) for group in report["groups"]] == [
        ("first/r8", "first", 2), ("second/r8", "second", 2),
    ]  # fmt: skip
    assert [report["groups"][index]["name"] for index in report["best"]] == ["second/r8"]
    assert report["num_jobs"] == 5 and len(report["baselines"]) == 1
    page = (written / "report.html").read_text(encoding="utf-8")
    assert f"{second}/jobs/r8-seed" in page and "second/r16-seed0 (failed)" in page
    rows = list(csv.DictReader((written / "tables/leaderboard.csv").open(encoding="utf-8")))
    assert [row["name"] for row in rows if row["chosen"] == "True"] == ["second/r8"]
    assert not (first / "report.html").exists()


def test_studies_on_other_rows_have_an_answer_each(tmp_path: Path) -> None:
    first, _ = studies(tmp_path)
    other = StudyOnDisk(tmp_path / "other", num_texts=30)
    other.add(8, 0, 2.0)
    assert main(["report", str(first), str(other.root), "--output", str(tmp_path / "both")]) == 0
    report = json.loads((tmp_path / "both/report.json").read_text())
    assert [report["groups"][index]["name"] for index in report["best"]] == ["first/r8", "other/r8"]
    assert "first/r8" not in {name for item in report.get("comparisons", []) for name in (item["a"], item["b"])}


def test_a_study_and_its_copy_keep_their_paths_as_names(tmp_path: Path) -> None:
    first, _ = studies(tmp_path)
    copy = StudyOnDisk(tmp_path / "copy/first")
    copy.add(8, 0, 2.0)
    assert main(["report", str(first), str(copy.root), "--output", str(tmp_path / "both")]) == 0
    report = json.loads((tmp_path / "both/report.json").read_text())
    assert {group["settings"]["study"] for group in report["groups"]} == {str(first), str(copy.root)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["first", "first"], "the same study folder is given twice. Name each once."),
        (["first", "second", "--output", "first"], "is a study: its own report lies there. Give another --output."),
        (["first", "--output", "x"], "--output is for several studies"),
        (["first", "nowhere"], "nowhere is no study folder"),
    ],
)
def test_what_cannot_be_compared_is_said(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    studies(tmp_path)
    paths = [item if item.startswith("--") else str(tmp_path / item) for item in arguments]
    assert main(["report", *paths]) == 2
    assert message in capsys.readouterr().err
