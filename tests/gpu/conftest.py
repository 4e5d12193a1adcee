"""Tests that need a CUDA GPU; elsewhere they are skipped, unless SHOAL_TEST_DEVICE=cpu asks for them on the CPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from integration.conftest import corpus, job_flags, tiny_model  # noqa: F401

ON_CPU = os.environ.get("SHOAL_TEST_DEVICE") == "cpu"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    for item in here:
        item.add_marker(pytest.mark.gpu)
        if not ON_CPU and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cpu" if ON_CPU else "cuda")
