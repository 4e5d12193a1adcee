"""A model of a few thousand weights and a small corpus, so that real training runs in seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock
from forked_jobs import run_job
from small_material import write_corpus, write_tiny_model

CHECKOUT = Path(__file__).resolve().parents[2]

PRECISIONS = {
    "fp32": [],
    "bf16": ["--bf16"],
    "fp16": ["--fp16"],
    "nf4": ["--load_in_4bit", "--bf16"],
    "int8": ["--load_in_8bit"],
}
"""Flags over those of the tiny fp32 job."""

Train = Callable[[str], Path]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.jsonl (96 rows) and test.jsonl (30 rows)."""
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder / "train.jsonl", 96, seed=1)
    write_corpus(folder / "test.jsonl", 30, seed=2)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA of two layers with random weights and a tokenizer of words, in Hugging Face layout."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    write_tiny_model(folder)
    return folder


def python_path(*folders: Path) -> str:
    """Return a PYTHONPATH of these folders before those of the tests' own, where stand-ins may be."""
    return os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])])


def run_program(*arguments: str, num_ranks: int = 1) -> subprocess.CompletedProcess[str]:
    """Run training/main.py to its end as a user would: under the deepspeed launcher, or plain with one rank."""
    words = command(*arguments, num_ranks=num_ranks)
    return subprocess.run(words, cwd=CHECKOUT, env=environment(), capture_output=True, text=True)


def command(*arguments: str, num_ranks: int = 1) -> list[str]:
    """Return the command line of a job."""
    program = CHECKOUT / "training" / "main.py"
    if num_ranks == 1:
        return [sys.executable, str(program), *arguments]
    from training.ranks import free_port

    launcher = str(Path(sys.executable).parent / "deepspeed")
    return [launcher, "--num_gpus", str(num_ranks), "--master_port", str(free_port()), str(program), *arguments]


def environment() -> dict[str, str]:
    """Return an environment in which the launcher finds the interpreter of the tests."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture(scope="session")
def job_flags(tiny_model: Path, corpus: Path) -> list[str]:
    """Flags of a small fp32 job without dropout: 10 optimizer steps of 8 samples an epoch."""
    return [
        f"--model_name_or_path={tiny_model}", f"--train_file={corpus / 'train.jsonl'}",
        f"--test_file={corpus / 'test.jsonl'}", "--bf16=false", "--lora_dropout=0", "--learning_rate=1e-2",
        "--max_seq_length=32", "--num_train_epochs=1", "--validation_fraction=0.2",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def trained(job_flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Train the tiny job in a precision, once for all the processes of pytest-xdist."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def train(precision: str) -> Path:
        folder = root / f"trained-{precision}"
        with FileLock(root / f"trained-{precision}.lock"):
            if not (folder / "result.json").exists():
                flags = [*job_flags, *PRECISIONS[precision], "--output_dir", str(folder)]
                run = run_job(*flags)
                assert run.returncode == 0, run.stderr[-3000:]
        return folder

    return train


def read_events(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Return the events of one kind."""
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [event for event in events if event["kind"] == kind]


@pytest.fixture
def workplace(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with data, where the ranks find the stand-in."""
    rows = [f"{word} number {number},{word}" for number in range(20) for word in ("cat", "dog")]
    (tmp_path / "train.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    (tmp_path / "test.csv").write_text("text,label\na cat,cat\na dog,dog\n")
    (tmp_path / "model").symlink_to(tiny_model)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    return tmp_path


def write_study(workplace: Path, **changes: Any) -> Path:
    content = {
        "model": {"model_name_or_path": str(workplace / "model")},
        "cards_gib": [8, 8],
        "data": {"train_file": "train.csv", "test_file": "test.csv"},
        "deepspeed": "ds_configs/zero0.json",
        **changes,
    }
    path = workplace / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def read_report(workplace: Path) -> dict[str, Any]:
    return json.loads((workplace / "outputs/tiny/report.json").read_text())


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Ray with virtual cards of 8, 12 and 8 GiB, for every test that minds no other in it."""
    with ray_head(tmp_path_factory.mktemp("cluster"), cards=[8, 12, 8]) as (address, _):
        yield address


HEAD = """
import json, pathlib, sys
import ray
from launcher.cards import LocalCard, resources
sizes = json.loads(sys.argv[2])
cards = [LocalCard(index=index, mib=1024 * size) for index, size in enumerate(sizes)]
context = ray.init(
    address="local", include_dashboard=False, resources=resources(cards), num_cpus=4 * len(sizes), num_gpus=0
)
pathlib.Path(sys.argv[1]).write_text(context.address_info["gcs_address"])
sys.stdin.read()
"""
"""A cluster of somebody else's: Ray started with the resources `shoal cards` prints. Ends with its input."""


@contextmanager
def ray_head(workplace: Path, cards: list[int]) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Yield the address of a Ray with virtual cards of these sizes, and its process."""
    mark = workplace / "address"
    command = [sys.executable, "-c", HEAD, str(mark), json.dumps(cards)]
    environment = {**os.environ, "PYTHONPATH": python_path(CHECKOUT), "RAY_USAGE_STATS_ENABLED": "0"}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE) as head:
        while not mark.exists() or not mark.read_text():
            assert head.poll() is None
            time.sleep(0.1)
        yield mark.read_text(), head
