"""Where the tests of this folder run: on a CUDA GPU, or on the CPU where SHOAL_TEST_DEVICE=cpu asks for it."""

from __future__ import annotations

import os

import pytest
import torch

ON_CPU = os.environ.get("SHOAL_TEST_DEVICE") == "cpu"
DEVICE = torch.device("cpu" if ON_CPU else "cuda")
NEEDS_CARD = [
    pytest.mark.gpu,
    pytest.mark.skipif(not ON_CPU and not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
