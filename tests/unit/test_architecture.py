"""The rules of the layout: data flows one way, and no module hides a library."""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
TRAINING = sorted((CHECKOUT / "training").rglob("*.py"))
LAUNCHER = sorted((CHECKOUT / "launcher").rglob("*.py"))

CONTRACT = {
    "training.spec",
    "training.parse",
    "training.plan",
    "training.precision",
    "training.predictions",
    "training.result",
    "training.recorder",
    "training.redact",
    "training.errors",
    "training.disk",
    "training.cache",
    "training.cuda",
    "training.network.shared_memory",
    "training.forecast.memory_estimate",
    "training.calibration.costs",
    "training.calibration.record",
    "training.calibration.seen",
}
"""All that the head may know of training."""
COMMANDS = {
    "cli.py": {"training.predict", "training.merge", "training.export", "training.serve"},
    "check.py": {"training.check"},
}
"""Commands of `shoal` that run a model in their own process. The command line hands over to them inside the function of
each command alone, so that the others start without torch, also where there is none."""
IN_WORKERS = {"worker.py", "stack.py", "all_reduce.py", "calibration.py"}
"""Files of the launcher whose code runs where training happens: inside Ray workers, or as the doctor's script there."""
OWN_PACKAGES = {"training", "launcher"}
LIBRARIES = {*importlib.metadata.packages_distributions(), *sys.stdlib_module_names} - OWN_PACKAGES
NO_MODULES = {"utils", "helpers", "common", "types"}
"""Names that say nothing."""


def imports(path: Path) -> Iterator[str]:
    """Yield each module a file imports, anywhere in it, absolute; `from a import b` yields a and a.b."""
    package = ".".join(path.relative_to(CHECKOUT).with_suffix("").parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def within(module: str, packages: set[str]) -> bool:
    """Whether a module is one of these, or inside one of them."""
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def named(paths: list[Path]) -> list[str]:
    return [path.relative_to(CHECKOUT).as_posix() for path in paths]


def test_there_are_files_to_check() -> None:
    assert {"training/rank.py", "training/corpus/load.py"} <= set(named(TRAINING))
    assert {"launcher/run.py", "launcher/worker.py"} <= set(named(LAUNCHER))
    assert {"torch", "datasets", "ray", "json"} <= LIBRARIES


def test_the_checks_see_imports_of_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "CHECKOUT", tmp_path)
    path = tmp_path / "training" / "corpus" / "some.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import a.b\nfrom . import c\nfrom ..d import e\ndef f():\n    import ray\n    from launcher import run\n"
    )
    assert set(imports(path)) == {
        "a.b", "training.corpus", "training.corpus.c", "training.d", "training.d.e", "ray", "launcher", "launcher.run",
    }  # fmt: skip


@pytest.mark.parametrize("path", TRAINING, ids=named(TRAINING))
def test_training_knows_neither_ray_nor_the_launcher(path: Path) -> None:
    assert [module for module in imports(path) if within(module, {"ray", "launcher"})] == []


HEAD = [path for path in LAUNCHER if path.name not in IN_WORKERS]


@pytest.mark.parametrize("path", HEAD, ids=named(HEAD))
def test_the_head_knows_only_the_contract_of_training(path: Path) -> None:
    ours = [module for module in imports(path) if within(module, {"training"})]
    known = CONTRACT | COMMANDS.get(path.name, set())
    assert [module for module in ours if not within(module, known)] == []


def test_commands_that_run_a_model_are_imported_when_called() -> None:
    script = "import sys, launcher.cli; print(sorted({'torch', 'ray', *sys.argv[1:]} & set(sys.modules)))"
    for name, modules in COMMANDS.items():
        assert modules <= set(imports(CHECKOUT / "launcher" / name))
        run = subprocess.run([sys.executable, "-c", script, *modules], cwd=CHECKOUT, capture_output=True, text=True)
        assert run.stdout.strip() == "[]", run.stdout + run.stderr


@pytest.mark.parametrize("path", HEAD, ids=named(HEAD))
def test_the_head_trains_nothing(path: Path) -> None:
    """A login node needs no torch, and a command line that imports it is slow."""
    trains = {"torch", "transformers", "peft", "deepspeed", "bitsandbytes", "datasets"}
    assert [module for module in imports(path) if within(module, trains)] == []


@pytest.mark.parametrize("path", [*TRAINING, *LAUNCHER], ids=named([*TRAINING, *LAUNCHER]))
def test_no_file_hides_a_library(path: Path) -> None:
    """`deepspeed training/main.py` puts training/ first on sys.path: training/datasets.py would be `datasets`."""
    assert path.stem == "__init__" or path.stem not in LIBRARIES | NO_MODULES


def test_no_folder_hides_a_library() -> None:
    folders = {path.parent.name for path in [*TRAINING, *LAUNCHER]} - OWN_PACKAGES
    assert folders and not folders & LIBRARIES
