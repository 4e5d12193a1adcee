"""CUDA_VISIBLE_DEVICES as CUDA takes it and DeepSpeed does not; what of DeepSpeed's errors is the user's to mend."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from training.cuda.visible import let_deepspeed_read_uuids, names_uuids
from training.engine import _refusals
from training.errors import UserError

UUID = "GPU-6f1c2d3e-0000-1111-2222-333344445555"


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Any:
    """DeepSpeed's accelerator for CUDA, over NVML of one card."""
    from deepspeed.accelerator import cuda_accelerator, real_accelerator

    nvml = SimpleNamespace(
        nvmlDeviceGetHandleByIndex=lambda index: index, nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(free=3)
    )
    monkeypatch.setattr(cuda_accelerator, "pynvml", nvml)
    found = cuda_accelerator.CUDA_Accelerator()
    monkeypatch.setattr(real_accelerator, "ds_accelerator", found)
    return found


@pytest.mark.parametrize(
    ("visible", "named"),
    [
        (None, False),
        ("", False),
        ("-1", False),
        ("0,1", False),
        (UUID, True),
        ("0,MIG-a1", True),
        (" GPU-8932f9", True),
    ],
)
def test_which_values_hold_uuids(visible: str | None, named: bool) -> None:
    assert names_uuids(visible) == named


@pytest.mark.parametrize("visible", [UUID, f"MIG-{UUID[4:]}", f"MIG-{UUID}/1/0"])
def test_deepspeed_asks_cuda_of_cards_and_slices_named_by_uuid(
    accelerator: Any, monkeypatch: pytest.MonkeyPatch, visible: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (7, 9))
    with pytest.raises(ValueError, match="invalid literal"):  # the day it can, this is not needed any more
        accelerator.available_memory(0)
    let_deepspeed_read_uuids()
    assert accelerator.available_memory(0) == 7


def test_cards_named_by_number_are_left_to_deepspeed(accelerator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    let_deepspeed_read_uuids()
    assert accelerator.available_memory(0) == 3 and "available_memory" not in vars(accelerator)


def test_a_valueerror_within_deepspeed_is_not_the_users(accelerator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", UUID)
    with pytest.raises(ValueError, match="invalid literal"), _refusals():
        accelerator.available_memory(0)


def test_what_deepspeed_says_of_settings_is_the_users() -> None:
    from deepspeed.runtime.engine import DeepSpeedEngine
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    with pytest.raises(UserError, match=r"refuses the settings of the deepspeed file: .*stage.* Mend"), _refusals():
        DeepSpeedZeroConfig(stage=7)
    engine = SimpleNamespace(
        _config=SimpleNamespace(param_dtype="fp16"), fp16_enabled=lambda: False, bfloat16_enabled=lambda: True
    )
    with pytest.raises(UserError, match="param_dtype='fp16' conflicts"), _refusals():
        DeepSpeedEngine._assert_valid_mixed_precision_config(engine)
