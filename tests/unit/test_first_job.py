"""A kind of card is measured once, before its first study, and what fails there is no job's fault."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from launcher import calibrate
from launcher.cards import Card, LocalCard
from launcher.cost import CARD, records_of
from training.calibration.record import CardRecord
from training.errors import ShoalError

NAME = "NVIDIA GeForce RTX 3060 Ti"
RECORD = CardRecord(
    name=NAME, driver="580.65", torch=version("torch"), date="2026-12-01", num_threads=8, seconds=50.0,
    costs={"bf16 none": CARD}, wrong=["fused LoRA"], kernels={"fused LoRA": 0.4},
)  # fmt: skip


class Said(list[str]):
    """What a study's terminal shows, and which cards were measured."""

    def __init__(self) -> None:
        self.measured: list[int] = []


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Said:
    found = Said()
    local = [LocalCard(index=index, mib=8000, uuid=f"GPU-{index}", name=NAME, capability=(8, 6)) for index in (0, 1)]

    def measure_here(tell: Any, *, card: LocalCard, timeout_seconds: float) -> CardRecord:
        assert timeout_seconds <= 120
        found.measured.append(card.index)
        RECORD.save()
        return RECORD

    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path))
    monkeypatch.setattr(calibrate, "gpus", lambda: local)
    monkeypatch.setattr(calibrate, "measure_here", measure_here)
    return found


def test_one_card_of_a_kind_is_measured_once(said: Said) -> None:
    calibrate.measure_new_cards(said.append)
    calibrate.measure_new_cards(said.append)
    assert said.measured == [0]
    assert NAME in said[0] and said[1:] == [f"{NAME}: its fused LoRA is wrong (0.4 off)"]


def test_a_measurement_that_fails_is_said_and_the_study_goes_on(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> CardRecord:
        raise ShoalError("the calibration failed: CUDA error")

    monkeypatch.setattr(calibrate, "measure_here", fails)
    calibrate.measure_new_cards(said.append)
    assert said[-1] == f"{NAME} is not measured, and its speed assumed: the calibration failed: CUDA error"


def test_cards_are_planned_by_the_record_of_their_name(said: Said) -> None:
    card = Card(
        node_id="a", host="a", index=0, size=8.0, gib=8.0, num_threads=8, is_virtual=False,
        name="NVIDIA_GeForce_RTX_3060_Ti",  # as a label of Ray's has it
    )  # fmt: skip
    assert records_of([card], on_card=True) == {card.name: None}
    RECORD.save()
    replace(RECORD, torch="2.9.0").save()
    other = replace(card, name="NVIDIA GeForce RTX 4090")
    assert records_of([card, other], on_card=True) == {card.name: RECORD, other.name: None}
    assert records_of([card], on_card=False) == {card.name: None}  # the CPU is not measured


def test_a_calibration_that_says_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(calibrate.sys, "executable", "/bin/false")
    with pytest.raises(ShoalError, match="it said nothing"):
        calibrate.measure_here(lambda _: None)


def test_one_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "hangs"
    program.write_text("#!/bin/sh\nsleep 600\n")
    program.chmod(0o755)
    monkeypatch.setattr(calibrate.sys, "executable", str(program))
    with pytest.raises(ShoalError, match="the calibration failed"):
        calibrate.measure_here(lambda _: None, timeout_seconds=0.2)
