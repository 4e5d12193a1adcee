"""Driver, cards and PyTorch that do not fit each other: said before any data is read, with the mend."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pynvml
import pytest
from stand_ins.nvml import Inventory, functions

from launcher.plan import print_plan
from launcher.run import run_study
from training.cuda import fitness
from training.cuda.fitness import misfit, require_fitting_torch, seen_driver
from training.cuda.torch_build import TorchBuild, fitting_torch, installed_torch
from training.errors import UserError
from training.main import main

CHECKOUT = Path(__file__).resolve().parents[2]
NEWEST = TorchBuild(version="2.13.0+cu130", cuda="13.0")
CPU_ONLY = TorchBuild(version="2.13.0+cpu", cuda=None)
OLD = "535.54.03"


def put_in(monkeypatch: pytest.MonkeyPatch, cards: str, build: TorchBuild | None = NEWEST) -> None:
    """Have this machine have these cards, and this PyTorch."""
    for name, function in functions(pynvml, Inventory.of(cards)).items():
        monkeypatch.setattr(pynvml, name, function)
    monkeypatch.setattr(fitness.torch_build, "installed_torch", lambda: build)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("cards", "build", "said"),
    [
        (f"3060@{OLD}", NEWEST, "driver 535.54.03 is too old .* 580.65.06 or later .*; or .*'torch===2.10.0'"),
        ("3060@470.10", NEWEST, r"it runs CUDA 11 at most.* restart\)\. To train on the CPU"),
        ("1080", NEWEST, r"no code for NVIDIA GeForce GTX 1080 \(sm_61\)\. .*torch===2.13.0\+cu126' --extra-index"),
        ("v100", NEWEST, r"no code for Tesla V100.* 'torch===2.10.0'"),
        ("1080+3060", NEWEST, r"GTX 1080 .*; or leave it out with .* CUDA_VISIBLE_DEVICES=1\."),
        ("5090", TorchBuild(version="2.13.0+cu126", cuda="12.6"), r"no code for .*5090 \(sm_120\).* 'torch===2.13.0'"),
        ("3060", CPU_ONLY, "build for CPUs, and this machine has NVIDIA GeForce RTX 3060. .* 'torch===2.13.0'"),
        (f"3060+4090@{OLD}", CPU_ONLY, "RTX 3060, NVIDIA GeForce RTX 4090. .* 'torch===2.10.0'"),
    ],
)
def test_what_does_not_fit_is_said_with_the_mend(
    monkeypatch: pytest.MonkeyPatch, cards: str, build: TorchBuild, said: str
) -> None:
    put_in(monkeypatch, cards, build)
    with pytest.raises(UserError, match=said):
        require_fitting_torch()


@pytest.mark.parametrize(
    ("cards", "build", "visible"),
    [
        ("3060", NEWEST, None),
        ("2060+4090+5090", NEWEST, None),
        (f"3060@{OLD}", TorchBuild(version="2.10.0+cu128", cuda="12.8"), None),
        ("v100", TorchBuild(version="2.10.0+cu128", cuda="12.8"), None),
        ("1080", TorchBuild(version="2.13.0+cu126", cuda="12.6"), None),
        ("none", NEWEST, None),
        ("none", CPU_ONLY, None),
        ("3060", CPU_ONLY, ""),  # the CPU is asked for
        (f"3060@{OLD}", NEWEST, "-1"),
        ("1080+3060", NEWEST, "1"),
        ("3060", TorchBuild(version="2.13.0+rocm7.0", cuda=None, is_for_other_cards=True), None),
        ("1080", TorchBuild(version="2.13.0a0+gitabc", cuda="12.9"), None),  # somebody's own, perhaps for that card
        ("1080", None, None),  # nobody can tell
    ],
)
def test_what_fits_or_might_is_not_refused(
    monkeypatch: pytest.MonkeyPatch, cards: str, build: TorchBuild | None, visible: str | None
) -> None:
    put_in(monkeypatch, cards, build)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    require_fitting_torch()


def test_wsl2_has_windows_drivers_and_is_asked_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows' 577 runs CUDA 13 as Linux' 580 does: the driver's own word counts, not its number."""
    put_in(monkeypatch, "3060@577.00")
    monkeypatch.setattr(pynvml, "nvmlSystemGetCudaDriverVersion_v2", lambda: 13000)
    driver = seen_driver(None)
    assert driver is not None and misfit(NEWEST, driver) is None


def test_a_slice_of_a_card_is_left_to_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    put_in(monkeypatch, f"3060@{OLD}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-6f1c2d3e-0000-1111-2222-333344445555")
    require_fitting_torch()


@pytest.mark.parametrize("cuda_major", [12, 13])
@pytest.mark.parametrize("capability", [(5, 0), (6, 1), (7, 0), (7, 5), (8, 6), (8, 9), (12, 0)])
def test_what_is_named_as_the_mend_runs_there(cuda_major: int, capability: tuple[int, int]) -> None:
    requirement = fitting_torch(cuda_major, [capability])
    assert requirement is not None
    version = re.fullmatch(r"torch===([\d.]+)(\+cu126 --extra-index-url https://.*/cu126)?", requirement)
    assert version is not None
    cuda = "12.6" if version[2] else {"2.13.0": "13.0", "2.10.0": "12.8"}[version[1]]
    build = TorchBuild(version=f"{version[1]}+cu{cuda.replace('.', '')}", cuda=cuda)
    assert build.runs_on(capability) and build.cuda_major <= cuda_major


def test_the_installed_torch_is_told_without_importing_it() -> None:
    program = (
        "import sys; from training.cuda.torch_build import installed_torch; build = installed_torch(); "
        "assert 'torch' not in sys.modules; import torch; assert build.version == torch.__version__; "
        "assert build.cuda == torch.version.cuda"
    )
    subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, check=True)


def test_a_torch_that_says_nothing_is_not_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert installed_torch() is None


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study whose data is not there, on a PC with a driver that is too old."""
    put_in(monkeypatch, f"3060@{OLD}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    path = tmp_path / "s.yaml"
    path.write_text("data: {train_file: nowhere.csv}\n")
    return path


def test_run_and_plan_say_it_before_they_read_data(study: Path) -> None:
    with pytest.raises(UserError, match="too old"):
        run_study(study)
    with pytest.raises(UserError, match="too old"):
        print_plan(study, None, as_json=False)


def test_neither_cards_that_are_elsewhere_nor_virtual_ones_are_judged(study: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.csv.* does not exist"):
        print_plan(study, "3060", as_json=False)
    with pytest.raises(UserError, match=r"nowhere.csv.* does not exist"):
        run_study(study, address="10.0.0.1:6379")
    study.write_text("data: {train_file: nowhere.csv}\nvirtual_cards: true\n")
    with pytest.raises(UserError, match=r"nowhere.csv.* does not exist"):
        run_study(study)


def test_a_job_says_it_before_it_reads_data(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model_name_or_path=x", "--train_file=nowhere.csv", "--output_dir=out"]) == 2
    assert "shoal: NVIDIA's driver 535.54.03 is too old" in capsys.readouterr().err
    assert not Path("out").exists()
