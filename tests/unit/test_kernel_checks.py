"""Kernels tried against fp32: those that are right pass, and one that is broken is named."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from training import fused, fused_lora
from training.calibration.kernels import INT8, LORA, NF4, RMS_NORM, check_kernels, wrong_kernels

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernels_of_this_cpu_are_right(dtype: torch.dtype) -> None:
    errors = check_kernels(CPU, dtype)
    assert set(errors) == {RMS_NORM, LORA, NF4, INT8}
    assert wrong_kernels(errors, dtype) == []


def test_a_kernel_that_is_wrong_or_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = fused_lora._LoraLinears.forward

    def a_little_off(*arguments: Any) -> Any:
        return tuple(output * 1.05 for output in forward(*arguments))

    def missing(*_: Any) -> Any:
        raise RuntimeError("no kernel image is available for execution on the device")

    monkeypatch.setattr(fused_lora._LoraLinears, "forward", staticmethod(a_little_off))
    monkeypatch.setattr(fused._RMSNorm, "forward", staticmethod(missing))
    errors = check_kernels(CPU, torch.float32)
    assert wrong_kernels(errors, torch.float32) == sorted([LORA, RMS_NORM])
    assert math.isinf(errors[RMS_NORM])


def test_a_kernel_that_gives_no_number_is_wrong() -> None:
    assert wrong_kernels({NF4: math.nan, INT8: 0.01}, torch.bfloat16) == [NF4]
