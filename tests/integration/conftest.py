"""A model of a few thousand weights and a small corpus, so that real training runs in seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_material import write_corpus, write_tiny_model

CHECKOUT = Path(__file__).resolve().parents[2]


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


def run_program(*arguments: str, num_ranks: int = 1, cwd: Path = CHECKOUT, **kwargs: Any) -> Any:
    """Run training/main.py to its end as a user would: under the deepspeed launcher, or plain with one rank."""
    return subprocess.run(command(*arguments, num_ranks=num_ranks), cwd=cwd, env=environment(), **kwargs)


def command(*arguments: str, num_ranks: int = 1, program: Path = CHECKOUT / "training" / "main.py") -> list[str]:
    """Return the command line of a job."""
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


def read_events(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Return the events of one kind."""
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [event for event in events if event["kind"] == kind]
