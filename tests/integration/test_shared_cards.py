"""Jobs of unequal needs on unequal cards, on a real Ray: nothing is over-booked. Of two studies: test_two_studies."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import fake_rank
import pytest
import yaml
from conftest import CHECKOUT, python_path, read_report, write_study

from launcher.run import run_study

LONG_TEXT = " ".join(["the ship and the old sailor"] * 90)
SMALL, MEDIUM, LARGE, IMPOSSIBLE = 8, 96, 340, 600
"""Texts of 512 tokens in a micro-batch: what a step computes takes about 1.2, 3.4, 9.6 and 16 GiB."""


@pytest.fixture
def long_texts(workplace: Path) -> Path:
    rows = [f"{LONG_TEXT} {number},{word}" for number in range(350) for word in ("cat", "dog")]
    (workplace / "train.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    # A model of a GPU's size is not needed to need a GPU's memory; wide layers are, to need it in seconds.
    model = workplace / "wide"
    shutil.copytree(workplace / "model", model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "intermediate_size": 1024, "num_hidden_layers": 3}))
    return model


def jobs_of(sizes: dict[str, int], **changes: Any) -> list[dict[str, Any]]:
    """Return a job of each size that takes all of what a step of it needs: nothing is recomputed to need less."""
    kept = {"per_device_eval_batch_size": 8, "gradient_checkpointing": False}
    return [
        {"name": name, "training": {"per_device_train_batch_size": size, **kept}, **changes}
        for name, size in sizes.items()
    ]


def mixed_study(workplace: Path, model: Path, jobs: list[dict[str, Any]]) -> Path:
    return write_study(
        workplace,
        model={"model_name_or_path": str(model), "dtype": "fp32"},
        data={"train_file": "train.csv", "test_file": "test.csv", "max_seq_length": 512},
        lora={"r": fake_rank.TAKES_ITS_TIME},
        sweep={"jobs": jobs},
    )


def placements(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "placements.jsonl").read_text().splitlines()]


def most_held(records: list[dict[str, Any]]) -> tuple[dict[str, float], int]:
    """Return the most GiB each card held at once, by the record, and the most jobs on one card."""
    held: dict[str, float] = defaultdict(float)
    jobs: Counter[str] = Counter()
    most: dict[str, float] = defaultdict(float)
    together = 0
    for record in sorted(records, key=lambda record: record["time"]):
        sign = 1 if record["event"] == "start" else -1
        for card in record["cards"]:
            held[card] += sign * record["card_gib"]
            jobs[card] += sign
            most[card], together = max(most[card], held[card]), max(together, jobs[card])
    return most, together


def test_a_mixed_study_shares_unequal_cards_without_over_booking(
    workplace: Path, long_texts: Path, cluster: str
) -> None:
    # More small ones than cards, ready at once: some must share.
    jobs = jobs_of({f"small{index}": SMALL for index in range(4)} | {"medium0": MEDIUM})
    jobs += jobs_of({"large": LARGE, "impossible": IMPOSSIBLE})
    study = mixed_study(workplace, long_texts, [{**job, "seed": index} for index, job in enumerate(jobs)])
    assert run_study(study, address=cluster, run_job=fake_rank.run_job) == 2  # the study is at fault
    report = {job["name"].split("-")[0]: job for job in read_report(workplace)["jobs"]}
    message = report.pop("impossible")["error"]["message"]
    assert "Refused before it started" in message and "has 12" in message and "It fits with" in message
    assert {job["status"] for job in report.values()} == {"succeeded"}
    most, together = most_held(placements(workplace / "outputs/tiny"))
    limits = {card: 12 if card.endswith(":1") else 8 for card in most}
    assert len(most) == 3 and all(most[card] <= limits[card] for card in most)
    assert together > 1
    large = report["large"]
    assert large["placement"]["cards"][0].endswith(":1") and 8 < large["placement"]["card_gib"] <= 12
    assert report["small0"]["placement"]["card_gib"] < report["medium0"]["placement"]["card_gib"] < 8
    assert sum(large["forecast"]["host"].values()) <= large["placement"]["card_gib"] * 2**30


TWO_NODES = """
import pathlib, sys
from ray.cluster_utils import Cluster
node = {"num_cpus": 2, "num_gpus": 0, "resources": {"card0_mib": 4096.0}}
cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
second = cluster.add_node(**node)
pathlib.Path(sys.argv[1]).write_text(cluster.address)
sys.stdin.readline()
cluster.remove_node(second, allow_graceful=False)
sys.stdin.read()
"""
"""A cluster of two nodes with a card each; a line of input ends the second, and the end of input both."""


def test_a_job_on_two_nodes_of_which_one_goes_is_planned_again_for_the_other(workplace: Path) -> None:
    """One job and two equal cards: it spreads over both, for it is long. On the one that is left it goes on with one
    rank."""
    long = {"num_train_epochs": 10_000}
    study = write_study(workplace, lora={"r": fake_rank.WAITS_FOR_COMPANY, "lora_dropout": 0.0}, training=long)
    content = yaml.safe_load(study.read_text())
    del content["deepspeed"]
    study.write_text(yaml.safe_dump(content))
    mark, checkpoint = workplace / "address", workplace / "outputs/tiny/jobs/job/checkpoints/step-000001"
    env = {**os.environ, "PYTHONPATH": python_path(CHECKOUT), "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token"}
    with subprocess.Popen([sys.executable, "-c", TWO_NODES, str(mark)], env=env, stdin=subprocess.PIPE) as head:
        assert head.stdin is not None
        while not mark.exists() or not mark.read_text():
            assert head.poll() is None
            time.sleep(0.1)
        env["PYTHONPATH"] = python_path(CHECKOUT, Path(__file__).parent)
        env["RAY_ADDRESS"] = mark.read_text()
        with subprocess.Popen([sys.executable, "-m", "fake_rank", str(study)], env=env) as launcher:
            while not checkpoint.exists():
                assert launcher.poll() is None
                time.sleep(0.1)
            head.stdin.write(b"\n")
            head.stdin.flush()
            assert launcher.wait(timeout=600) == 0
    (job,) = read_report(workplace)["jobs"]
    assert (job["status"], job["num_ranks"], len(job["restarts"])) == ("succeeded", 1, 1)
    assert job["setting"]["num_ranks"] == 1 and len(job["placement"]["cards"]) == 1
    assert [len(record["cards"]) for record in placements(workplace / "outputs/tiny")] == [2, 2, 1, 1]
