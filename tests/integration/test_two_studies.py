"""Two studies on one cluster with one card: priorities, `shoal status` and `shoal cancel` from other processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_rank
import yaml
from conftest import CHECKOUT, python_path, ray_head, write_study

from launcher.cli import main
from launcher.others import StudiesHere
from launcher.status import StudyStatus

OUTPUTS = Path("outputs")


def wait_for(holds: Callable[[dict[str, StudyStatus]], Any], launchers: list[subprocess.Popen[bytes]]) -> None:
    """Return once the statuses of the studies are so."""
    while not holds({status.study: status for status in StudiesHere(OUTPUTS).read()}):
        assert all(launcher.poll() is None for launcher in launchers)
        time.sleep(0.1)


def jobs_that(status: StudyStatus, *kinds: str) -> list[str]:
    return [job.name for job in status.jobs if job.status in kinds]


def placements(study: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (OUTPUTS / study / "placements.jsonl").read_text().splitlines()]


def starts(study: str) -> list[tuple[float, str]]:
    return [(record["time"], record["job"]) for record in placements(study) if record["event"] == "start"]


def most_held() -> float:
    """Return the most GiB that both studies held of the card at once, by their records."""
    held = most = 0.0
    for record in sorted([*placements("low"), *placements("high")], key=lambda record: record["time"]):
        held += record["card_gib"] if record["event"] == "start" else -record["card_gib"]
        most = max(most, held)
    return most


def test_the_next_free_card_goes_to_the_study_of_higher_priority(workplace: Path, capfd: Any) -> None:
    # A rank on a virtual card needs a little over 1 GiB: the card holds one.
    content = yaml.safe_load(write_study(workplace, lora={"r": fake_rank.WAITS_FOR_A_SIGN}).read_text())
    for name, priority, seeds in (("low", 0, [0, 1, 2]), ("high", 5, [0, 1])):
        (workplace / f"{name}.yaml").write_text(yaml.safe_dump({**content, "priority": priority, "seed": seeds}))
    with ray_head(workplace, cards=[2]) as (address, _):
        environment = {**os.environ, "RAY_ADDRESS": address}
        environment["PYTHONPATH"] = python_path(CHECKOUT, Path(__file__).parent)

        def launch(name: str) -> subprocess.Popen[bytes]:
            return subprocess.Popen([sys.executable, "-m", "fake_rank", f"{name}.yaml"], env=environment)

        def shoal(*arguments: str) -> str:
            command = [sys.executable, "-m", "launcher.cli", *arguments]
            return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout

        low = launch("low")
        wait_for(lambda status: "low" in status and jobs_that(status["low"], "running"), [low])
        high = launch("high")
        wait_for(lambda status: status["low"].gives_way_to, [low, high])
        seen = {status["study"]: status for status in json.loads(shoal("status", "--json", "--address", address))}
        assert Counter(job["status"] for job in seen["low"]["jobs"]) == {"running": 1, "waiting": 2}
        assert seen["high"]["priority"] == 5 and len(seen["high"]["waiting"]) == 1
        first = next(job["name"] for job in seen["low"]["jobs"] if job["status"] == "running")

        shoal("cancel", f"low/{first}", "--address", address)
        wait_for(lambda status: jobs_that(status["high"], "running"), [low, high])
        left_out, last = [name for name in ("seed0", "seed1", "seed2") if name != first]
        assert main(["cancel", f"low/{left_out}"]) == 0
        wait_for(lambda status: jobs_that(status["low"], "cancelled") == sorted([first, left_out]), [low, high])
        assert main(["cancel", "high"]) == 0
        assert high.wait(timeout=300) == 1
        wait_for(lambda status: jobs_that(status["low"], "running"), [low])
        (OUTPUTS / "low/jobs" / last / "sign").touch()
        assert low.wait(timeout=300) == 1

    assert [job for _, job in starts("low")] == [first, last] and len(starts("high")) == 1
    assert starts("high")[0] < starts("low")[1]
    assert 1 < most_held() <= 2
    report = json.loads((OUTPUTS / "low/report.json").read_text())
    cancelled = {job["name"]: job["error"]["message"] for job in report["jobs"] if job["status"] == "cancelled"}
    assert cancelled == {first: "cancelled by the user", left_out: "cancelled by the user"}
    assert "0 of 2 jobs succeeded, 0 failed, 2 cancelled, 0 not run" in (OUTPUTS / "high/report.md").read_text()
    assert f"cancelled: {', '.join(sorted(cancelled))}" in capfd.readouterr().out
