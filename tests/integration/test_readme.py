"""The commands of the README do what it says; on parts of the data, so that they are done in seconds."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import environment, python_path

CHECKOUT = Path(__file__).resolve().parents[2]
TEXT = (CHECKOUT / "README.md").read_text(encoding="utf-8")


def readme_commands(text: str = TEXT) -> list[str]:
    """Return the lines of the README's bash blocks, continuations joined, comments cut."""
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [" ".join(line.split("#")[0].split()) for line in lines if line.split("#")[0].strip()]


TRAINING = [line for line in readme_commands() if line.startswith("deepspeed ")]
STUDY = [line for line in readme_commands() if line.startswith(("shoal plan", "shoal cards", "shoal check"))]
AFTERWARDS = [line for line in readme_commands() if line.startswith(("shoal predict", "shoal merge", "shoal export"))]
SHOWN_ELSEWHERE = (
    "make ", "shoal run studies/demo.yaml", "shoal report outputs/demo",
    "shoal doctor", "shoal calibrate", "shoal status", "shoal cancel", "shoal serve",
)  # fmt: skip
"""`make demo` and what follows it are run by test_demo below, the last five by test_doctor_here, test_calibrate,
test_two_studies and test_serve; `make test` runs this."""


def test_every_command_is_covered() -> None:
    rest = [line for line in readme_commands() if line not in TRAINING + STUDY + AFTERWARDS]
    assert len(TRAINING) == 2 and STUDY and len(AFTERWARDS) == 4 and rest
    assert all(line.startswith(SHOWN_ELSEWHERE) for line in rest), rest


def test_the_chinese_readme_has_the_same_commands() -> None:
    assert readme_commands((CHECKOUT / "README.zh-CN.md").read_text(encoding="utf-8")) == readme_commands()


def train(line: str, folder: Path) -> None:
    part = "--max_train_samples 64 --max_eval_samples 32 --max_predict_samples 32 --max_steps 2 --max_seq_length 32"
    words = [*shlex.split(line), *part.split(), "--output_dir", str(folder)]
    run = subprocess.run(words, cwd=CHECKOUT, env=environment(), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    assert json.loads((folder / "result.json").read_text())["status"] == "succeeded"


@pytest.mark.parametrize("line", TRAINING[1:])
def test_a_training_command(line: str, tmp_path: Path) -> None:
    train(line, tmp_path)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the first training command has run, with the texts the commands after it name."""
    folder = tmp_path_factory.mktemp("readme")
    train(TRAINING[0], folder / "outputs" / "docstrings")
    (folder / "texts.csv").write_text('text\n"Return the mean, or the median."\nRead a file.\n')
    return folder


@pytest.mark.parametrize("line", AFTERWARDS)
def test_a_command_after_training(line: str, place: Path) -> None:
    words = [sys.executable, "-m", "launcher.cli", *shlex.split(line)[1:]]
    env = {**environment(), "PYTHONPATH": python_path(CHECKOUT)}
    run = subprocess.run(words, cwd=place, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    if "--output" in words:
        assert (place / words[words.index("--output") + 1]).exists()
    else:
        assert len(run.stdout.splitlines()) == 3, run.stdout


@pytest.mark.parametrize("line", STUDY)
def test_a_study_command(line: str) -> None:
    words = [sys.executable, "-m", "launcher.cli", *shlex.split(line)[1:]]
    run = subprocess.run(words, cwd=CHECKOUT, env=environment(), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()


def test_demo(tmp_path: Path) -> None:
    """The demo study with fewer samples and one seed: real training, plain and sharded, and what it leaves."""
    study = (CHECKOUT / "studies" / "demo.yaml").read_text(encoding="utf-8")
    small = re.sub(r"max_train_samples: \d+", "max_train_samples: 160", study)
    small = small.replace("seed: [0, 1, 2]", "seed: [0]")
    assert small.count("160") == 1 and "seed: [0]" in small
    path = tmp_path / "demo.yaml"
    path.write_text(small, encoding="utf-8")
    program = [sys.executable, str(CHECKOUT / "launcher" / "launch.py"), str(path)]
    env = {key: value for key, value in environment().items() if key != "RAY_ADDRESS"}
    run = subprocess.run(program, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    report = json.loads((tmp_path / "outputs/demo/report.json").read_text())
    jobs = {job["name"]: job for job in report["jobs"]}
    assert {name: job["status"] for name, job in jobs.items()} == {
        "lora-zero2-seed0": "succeeded", "nf4-zero3-seed0": "succeeded",
    }  # fmt: skip
    sharded = jobs["nf4-zero3-seed0"]
    assert sharded["model"]["quantization"] == "nf4" and sharded["model"]["zero_stage"] == 3
    assert sharded["model"]["offload_param"]
    assert any("TF-IDF" in item["name"] for item in report["baselines"])
    for name in jobs:
        folder = tmp_path / "outputs/demo/jobs" / name
        assert [path.name.split(".")[:3] for path in (folder / "tensorboard").iterdir()] == [
            ["events", "out", "tfevents"]
        ]
        assert f"# {name}\n" in (folder / "adapter/README.md").read_text()
    assert "Best setting" in (tmp_path / "outputs/demo/report.md").read_text()
    again = subprocess.run(
        [sys.executable, "-m", "launcher.cli", "report", "outputs/demo"],
        cwd=tmp_path, env={**env, "PYTHONPATH": python_path(CHECKOUT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert again.returncode == 0 and "report.html" in again.stdout
