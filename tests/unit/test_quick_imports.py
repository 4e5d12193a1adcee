"""What a start leaves unloaded, seen in fresh processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


def loaded(code: str, *names: str) -> set[str]:
    """Run code in a new process; return which of these modules it has loaded then."""
    code += f"\nimport sys; print('loaded:', *(name for name in {names!r} if sys.modules.get(name)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    return set(run.stdout.splitlines()[-1].split()[1:])


def test_a_rank_loads_neither_the_compiler_nor_mlflow() -> None:
    code = """
import training.rank, bitsandbytes, deepspeed, torch
import deepspeed.runtime.zero.muon.muon_optimizer  # as ZeRO does when it starts
assert torch.compile.__module__ == "torch"  # it is itself again
"""
    assert loaded(code, "peft", "deepspeed", "torch._inductor.compile_fx", "mlflow") == {"peft", "deepspeed"}


def test_mlflow_is_there_for_whoever_asks() -> None:
    code = "import importlib.util, training, deepspeed\nif importlib.util.find_spec('mlflow'): import mlflow"
    assert loaded(code, "deepspeed") == {"deepspeed"}


def test_what_a_forecast_is_looked_up_with_is_light() -> None:
    code = "import training.forecast.__main__, training.pretrained, training.corpus.load, training.tokens"
    heavy = ("peft", "bitsandbytes", "deepspeed", "datasets", "ray", "torch._inductor.compile_fx")
    assert loaded(code, *heavy) == set()


def test_transformers_reads_each_folder_of_models_once() -> None:
    code = """
import training, transformers.models
from transformers.utils.import_utils import create_import_structure_from_path as look
assert look.cache_info().misses == look.cache_info().currsize > 100  # none was forgotten and read again
"""
    assert loaded(code, "transformers") == {"transformers"}


def test_an_evaluation_needs_no_scikit_learn() -> None:
    """It takes more than a second to load, in every rank that starts or goes on."""
    code = """
import numpy as np
from training.evaluation import compute_metrics
compute_metrics(np.eye(3, dtype=np.float32), [0, 1, 1])
"""
    assert loaded(code, "sklearn", "numpy") == {"numpy"}
