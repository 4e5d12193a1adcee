"""`ray submit` with the shipped cluster.yaml over real SSH, to a head without cards and two PCs with virtual ones."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from emulated_lan import CHECKOUT, Lan, install_shoal, why_not
from small_material import write_corpus, write_tiny_model

REASON = why_not()
pytestmark = [pytest.mark.cluster, pytest.mark.skipif(REASON is not None, reason=str(REASON))]

RAY = Path(sys.prefix) / "bin" / "ray"
CLUSTER = "cluster/cluster.yaml"
SUBMIT = "ray submit cluster/cluster.yaml launcher/launch.py -- studies/demo.yaml"
MOUNTS = yaml.safe_load((CHECKOUT / CLUSTER).read_text(encoding="utf-8"))["file_mounts"].values()
MOUNTED = sorted({path.partition("/")[0] for path in [*MOUNTS, CLUSTER]})
README = (CHECKOUT / "cluster" / "README.md").read_text(encoding="utf-8")
CARDS_GIB = {"head": None, "worker1": "8", "worker2": "12,8"}
"""The two cards of one size, which a job of two ranks needs, are in two PCs."""

STEPS = 150
STUDY = f"""
name: lan
model: {{model_name_or_path: data/tiny, dtype: fp32}}
data: {{train_file: data/train.jsonl, test_file: data/test.jsonl, max_seq_length: 32}}
training: {{per_device_train_batch_size: 8, learning_rate: 1.0e-3, max_steps: {STEPS}, save_steps: 5}}
sweep:
  jobs:
    - {{name: one, deepspeed: ds_configs/zero0.json}}
    - {{name: wide, deepspeed: ds_configs/zero3.json, num_ranks: 2, training: {{max_steps: 4}}}}
"""
START = "ray submit --start cluster/cluster.yaml launcher/launch.py -- studies/demo.yaml"


@dataclass(frozen=True, kw_only=True)
class User:
    """Who sits at a PC of their own, in a checkout whose cluster.yaml they have filled in."""

    lan: Lan
    checkout: Path

    def ray(self, command: str, study: str = "studies/lan.yaml", ok: bool = True) -> str:
        """Run a command of cluster/README.md with another study; return what it prints."""
        assert command in README
        words = shlex.split(re.sub(r"studies/\w+\.yaml", study, command))
        run = self.lan.run(RAY, *words[1:], cwd=self.checkout)
        assert (run.returncode == 0) is ok, run.stdout[-12000:]
        return run.stdout

    def on_head(self, command: str) -> str:
        """Run a command on the head, as its owner would; return what it prints."""
        run = self.lan.ssh("head", f"bash --login -c -i '{command}'")
        assert run.returncode == 0, run.stdout[-12000:]
        return run.stdout

    def num_nodes(self) -> int:
        """Return how many PCs Ray has; `ray status` goes on counting the cards of those that are gone."""
        ask = 'import ray; ray.init("auto"); print("nodes:", sum(node["Alive"] for node in ray.nodes()))'
        said = self.lan.ssh("head", f"RAY_AUTH_MODE=token ~/shoal/.venv/bin/python -c {shlex.quote(ask)}").stdout
        return int(said.split("nodes:")[1].split()[0])

    def outputs(self, study: str = "lan") -> Path:
        """Return a study's folder on the head."""
        return self.lan.folder / "head" / "home" / "shoal" / "outputs" / study

    def jobs(self, study: str = "lan") -> dict[str, dict[str, Any]]:
        """Return a study's jobs by its report on the head."""
        report = json.loads((self.outputs(study) / "report.json").read_text(encoding="utf-8"))
        return {job["name"]: job for job in report["jobs"]}

    def results(self) -> dict[str, int]:
        """Return when each result on the head was written."""
        return {path.parent.name: path.stat().st_mtime_ns for path in self.outputs().glob("jobs/*/result.json")}

    def write_study_of_one(self, name: str) -> str:
        """Write a study that has of STUDY the job of one rank alone; return its path in the checkout."""
        study = STUDY.split("    - {name: wide", maxsplit=1)[0].replace("name: lan", f"name: {name}")
        (self.checkout / "studies" / f"{name}.yaml").write_text(study)
        return f"studies/{name}.yaml"

    def wait_for_checkpoint(self, study: str, submitted: Future[str]) -> None:
        """Return once a study's job of one rank has a checkpoint on the head."""
        while not list((self.outputs(study) / "jobs/one/checkpoints").glob("step-*")):
            assert not submitted.done(), submitted.result()
            time.sleep(0.1)

    def require_same_answers(self, study: str) -> None:
        """Hold what the study's job of one rank came to equal to what the undisturbed one did."""
        job = self.jobs(study)["one"]
        assert job["status"] == "succeeded" and job["train"]["steps"] == STEPS
        events = [json.loads(line) for line in (self.outputs(study) / "jobs/one/events.jsonl").read_text().splitlines()]
        assert any("resuming after step" in event.get("message", "") for event in events)
        found, expected = (
            pq.read_table(self.outputs(name) / "jobs/one/predictions.parquet").to_pydict() for name in (study, "lan")
        )
        assert found.keys() == expected.keys() and len(expected["id"]) > 30
        logits = found.pop("logits"), expected.pop("logits")
        np.testing.assert_allclose(*map(np.array, logits), rtol=1e-3, atol=1e-3)  # PCs differ in threads a rank
        assert found == expected


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    """A user whose cluster has started and run the study."""
    folder = tmp_path_factory.mktemp("lan")
    with Lan(folder / "pcs") as lan:
        for name, cards in CARDS_GIB.items():
            install_shoal(lan.folder / name / "home", lan.home)
            lan.add(name, {} if cards is None else {"SHOAL_CARDS_GIB": cards})
        someone = User(lan=lan, checkout=folder / "checkout")
        lay_checkout(someone)
        someone.ray(START)
        yield someone


def lay_checkout(user: User) -> None:
    """Copy the checkout, fill in the blanks of its cluster.yaml, and lay a study, its model and its data in it."""
    user.checkout.mkdir()
    for name in MOUNTED:
        copy = shutil.copytree if (CHECKOUT / name).is_dir() else shutil.copy2
        copy(CHECKOUT / name, user.checkout / name)
    data = user.checkout / "data"
    data.mkdir()
    write_tiny_model(data / "tiny")
    write_corpus(data / "train.jsonl", 96, seed=1)
    write_corpus(data / "test.jsonl", 30, seed=2)
    (user.checkout / "studies" / "lan.yaml").write_text(STUDY)
    path = user.checkout / CLUSTER
    text = path.read_text(encoding="utf-8")
    head, *workers = user.lan.addresses.values()
    for blank, value in (
        ("head_ip: HEAD ", f"head_ip: {head} "),
        ("[WORKER1, WORKER2]", json.dumps(workers)),
        ("ssh_user: USER ", "ssh_user: root "),
        ("~/.ssh/id_ed25519", str(user.lan.key)),
        ("# ~/shoal/data: data", "~/shoal/data: data"),
    ):
        assert text.count(blank) == 1
        text = text.replace(blank, value)
    path.write_text(text, encoding="utf-8")


def test_the_study_is_done_on_the_workers(user: User) -> None:
    jobs = user.jobs()
    assert {name: job["status"] for name, job in jobs.items()} == {"one": "succeeded", "wide": "succeeded"}
    assert jobs["wide"]["num_ranks"] == 2
    assert {name: job["train"]["steps"] for name, job in jobs.items()} == {"one": STEPS, "wide": 4}
    wide = user.outputs() / "jobs/wide"
    assert {"rank0.log", "rank1.log"} <= {path.name for path in wide.iterdir()}
    nodes = user.ray("ray exec cluster/cluster.yaml 'ray status'")
    assert {"card0_mib", "card1_mib"} == set(re.findall(r"card\d+_mib", nodes))
    assert "20480.0 card0_mib" in nodes and "8192.0 card1_mib" in nodes  # 8 + 12 and 8 GiB; the head announces none


def test_the_token_is_everywhere_and_only_its_owners(user: User) -> None:
    tokens = [user.lan.folder / name / "home/.ray/auth_token" for name in CARDS_GIB]
    assert len({token.read_text() for token in tokens}) == 1
    assert [token.stat().st_mode & 0o777 for token in tokens] == [0o600] * 3
    listening = user.on_head("ss -ltn")
    assert "127.0.0.1:8265" in listening and "0.0.0.0:8265" not in listening


def test_results_are_fetched(user: User) -> None:
    user.ray("ray rsync-down cluster/cluster.yaml '~/shoal/outputs' .")
    assert (user.checkout / "outputs/lan/report.md").read_text(encoding="utf-8")


def test_other_ways_in_repeat_nothing(user: User) -> None:
    before = user.results()
    assert set(before) == {"one", "wide"}
    assert "Report:" in user.ray(SUBMIT)
    assert "Report:" in user.on_head("cd ~/shoal && shoal run --address auto studies/lan.yaml")
    # A Ray job runs in a copy of the checkout; its results are the head's all the same.
    said = user.on_head("cd ~/shoal && ray job submit --working-dir . -- python launcher/launch.py studies/lan.yaml")
    assert "Report:" in said
    assert user.results() == before


def test_a_pc_is_cut_off_and_comes_back(user: User) -> None:
    """Its job goes on on another PC, to the same end; when its link is mended, the head takes it back."""
    study = user.write_study_of_one("cut")
    user.ray("ray rsync-up cluster/cluster.yaml studies/mine.yaml '~/shoal/studies/mine.yaml'", study)
    with ThreadPoolExecutor(1) as pool:
        submitted = pool.submit(user.ray, SUBMIT, study)
        user.wait_for_checkpoint("cut", submitted)
        first = json.loads((user.outputs("cut") / "placements.jsonl").read_text().splitlines()[0])
        lost = first["cards"][0].split(":")[0]
        user.lan.cut(lost)
        said = submitted.result()
    assert "Going on from its newest checkpoint" in said
    job = user.jobs("cut")["one"]
    assert len(job["restarts"]) >= 1 and not job["placement"]["cards"][0].startswith(lost)
    user.require_same_answers("cut")
    assert user.num_nodes() == 2
    user.lan.mend(lost)
    while user.num_nodes() < 3:
        time.sleep(1)


def test_the_head_is_turned_off_and_the_same_command_goes_on(user: User) -> None:
    study = user.write_study_of_one("turned-off")
    user.ray("ray rsync-up cluster/cluster.yaml studies/mine.yaml '~/shoal/studies/mine.yaml'", study)
    before = user.results()
    with ThreadPoolExecutor(1) as pool:
        submitted = pool.submit(user.ray, SUBMIT, study, ok=False)
        user.wait_for_checkpoint("turned-off", submitted)
        user.lan.turn_off_and_on("head")
        submitted.result()
    assert not (user.outputs("turned-off") / "report.json").exists()
    user.ray(START, study)
    user.require_same_answers("turned-off")
    assert user.results() == before


def test_what_cannot_run_says_how_to_mend_it(user: User) -> None:
    said = user.ray(SUBMIT, "studies/mine.yaml", ok=False)
    assert "ray rsync-up cluster/cluster.yaml studies/mine.yaml '~/shoal/studies/mine.yaml'" in said
    launch = user.checkout / "launcher" / "launch.py"
    launch.write_text(re.sub('^VERSION = ".*"', 'VERSION = "99.0"', launch.read_text(), flags=re.MULTILINE))
    said = user.ray(SUBMIT, ok=False)
    assert "what was submitted is Shoal 99.0" in said and "ray submit --start" in said
    assert "Traceback" not in said
