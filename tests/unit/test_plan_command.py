"""`shoal plan`: which cards and host memory it plans for, and its exit status. No forecast is made here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from launcher import plan
from launcher.cards import Card, Node
from launcher.expand import StudyJob
from launcher.forecast import Planned
from training.errors import ShoalError, UserError


@pytest.mark.parametrize(("cards", "known"), [(None, True), ("8", False)])
@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [(UserError("no such key"), 2, "1 refused"), (ShoalError("it crashed"), 1, "1 not known")],
)
def test_host_memory_is_this_pcs_and_refusals_are_user_errors(
    cards: str | None, known: bool, answer: ShoalError, status: int, said: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    study = tmp_path / "s.yaml"
    study.write_text("data: {train_file: texts.csv}\ncards_gib: [8, 8]\n")
    (tmp_path / "texts.csv").write_text("text,label\n")
    monkeypatch.chdir(tmp_path)
    asked: list[Node] = []

    def plan_jobs(
        jobs: Sequence[StudyJob], cards: Sequence[Card], nodes: Mapping[str, Node], **_: Any
    ) -> Iterator[tuple[StudyJob, Planned]]:
        asked.extend(nodes.values())
        yield from ((job, answer) for job in jobs)

    monkeypatch.setattr(plan, "plan_jobs", plan_jobs)
    assert plan.print_plan(study, cards, as_json=False) == status
    (node,) = asked
    assert math.isfinite(node.host_gib) == known and node.host_gib > 0.1
    text = capsys.readouterr().out
    assert "1 job, planned for" in text and said in text
    assert ("this PC's" if known else "a PC of any memory") in text
