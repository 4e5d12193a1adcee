"""Kernels tried against fp32: those that are right pass, and one that is broken is named."""

from __future__ import annotations

import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from training import fused, fused_lora
from training.calibration.kernels import INT8, LORA, NF4, RMS_NORM, check_kernels, wrong_kernels
from training.calibration.record import CardRecord, this_cpu
from training.calibration.switches import switched_off

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


def test_what_is_wrong_on_a_device_is_switched_off_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path))
    assert switched_off(CPU) == frozenset()
    name, driver = this_cpu()
    CardRecord(
        name=name, driver=driver, torch=version("torch"), date="2026-12-01", num_threads=1, seconds=1.0,
        wrong=[RMS_NORM], kernels={RMS_NORM: 0.5},
    ).save()  # fmt: skip
    assert switched_off(CPU) == {RMS_NORM}
    config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)

    def norm_of(off: frozenset[str]) -> Any:
        model = LlamaModel(config)
        fused.fuse_layers(model, off)
        return model.norm.forward

    assert isinstance(norm_of(frozenset()), fused.FusedRMSNorm)
    assert not isinstance(norm_of(switched_off(CPU)), fused.FusedRMSNorm)
