"""DeepSpeed's JSON is checked before DeepSpeed sees it, since DeepSpeed skips what it does not know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from training.deepspeed_config import (
    KNOWN_SECTIONS,
    OLD_NAMES,
    OWN_SECTIONS,
    check_deepspeed_config,
    fill_auto,
    fit_buckets,
    offloads_optimizer,
    offloads_parameters,
    read_deepspeed_config,
    zero_stage,
)
from training.errors import UserError
from training.spec import TrainingSpec

SHIPPED = sorted((Path(__file__).resolve().parents[2] / "ds_configs").glob("*.json"))
TRAINING = TrainingSpec(per_device_train_batch_size=4, gradient_accumulation_steps=3, max_grad_norm=0.7)


def fill(content: dict[str, Any], *, dtype: torch.dtype = torch.float32, cuda: bool = False) -> dict[str, Any]:
    return fill_auto(content, "my.json", TRAINING, world_size=2, dtype=dtype, cuda=cuda)


def fault(content: dict[str, Any]) -> str:
    """Return the message a configuration is refused with; it must name its source."""
    with pytest.raises(UserError) as caught:
        check_deepspeed_config(content, "my.json")
    assert str(caught.value).startswith("my.json")
    return str(caught.value)


def test_there_are_shipped_files_for_every_stage() -> None:
    assert {zero_stage(read_deepspeed_config(str(path))[0]) for path in SHIPPED} == {0, 1, 2, 3}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cuda", [False, True])
def test_every_shipped_file_passes_and_fills(path: Path, dtype: torch.dtype, cuda: bool) -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    content, source = read_deepspeed_config(f"ds_configs/{path.name}")
    assert source == f"ds_configs/{path.name}"
    filled = fill(content, dtype=dtype, cuda=cuda)
    assert '"auto"' not in json.dumps(filled)
    assert filled["train_micro_batch_size_per_gpu"] == 4
    assert filled["gradient_accumulation_steps"] == 3
    assert filled["train_batch_size"] == 4 * 3 * 2
    assert filled["gradient_clipping"] == 0.7
    assert filled["bf16"]["enabled"] == (dtype == torch.bfloat16)
    zero = DeepSpeedZeroConfig(**filled["zero_optimization"])
    assert offloads_parameters(filled) == (zero.offload_param is not None) == path.name.startswith("zero3_offload")
    assert offloads_optimizer(filled) == (zero.offload_optimizer is not None) == path.stem.endswith("offload")
    if zero.offload_optimizer is not None:
        assert zero.offload_optimizer.pin_memory == cuda
    check_deepspeed_config(filled, "filled")


def test_filling_leaves_the_content_it_was_given() -> None:
    content, _ = read_deepspeed_config("ds_configs/zero3_offload.json")
    before = json.dumps(content)
    fill(content)
    assert json.dumps(content) == before


def test_bf16_weights_keep_fp32_copies_under_any_stage() -> None:
    # Without ZeRO, DeepSpeed updates the bf16 weights themselves and loses small updates.
    assert zero_stage(fill({}, dtype=torch.bfloat16)) >= 1
    assert zero_stage(fill({"zero_optimization": {"stage": 0}}, dtype=torch.bfloat16)) >= 1
    assert zero_stage(fill({}, dtype=torch.float32)) == 0


def test_a_zero_key_left_to_auto_gets_deepspeeds_own_default() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    zero = fill({"zero_optimization": {"stage": 2, "allgather_bucket_size": "auto"}})["zero_optimization"]
    assert zero["allgather_bucket_size"] == DeepSpeedZeroConfig(stage=2).allgather_bucket_size


@pytest.mark.parametrize("key", ["stage3_prefetch_bucket_size", "prefetch_bucket_size"])
def test_a_zero_key_may_have_the_name_of_deepspeeds_documentation(key: str) -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    check_deepspeed_config({"zero_optimization": {"stage": 3, key: 1000}}, "my.json")
    assert fill({"zero_optimization": {"stage": 3, key: 1000}})["zero_optimization"][key] == 1000
    zero = fill({"zero_optimization": {"stage": 3, key: "auto"}})["zero_optimization"]
    assert zero[key] == DeepSpeedZeroConfig(stage=3).prefetch_bucket_size


@pytest.mark.parametrize(("given", "expected"), [({}, 70), ({"reduce_bucket_size": "auto"}, 70),
                                                 ({"reduce_bucket_size": 5}, 5)])  # fmt: skip
def test_gradient_buckets_are_no_larger_than_the_gradients(given: dict[str, Any], expected: int) -> None:
    filled = fill({"zero_optimization": {"stage": 2, **given}})
    assert fit_buckets(filled, num_trained=70)["zero_optimization"]["reduce_bucket_size"] == expected
    assert filled["zero_optimization"].get("reduce_bucket_size") == (5 if expected == 5 else None)


def test_micro_batches_add_up_in_fp32() -> None:
    assert fill({}, dtype=torch.bfloat16)["data_types"] == {"grad_accum_dtype": "fp32"}
    assert "data_types" not in fill({}, dtype=torch.float32)


def test_values_of_the_file_are_kept() -> None:
    content = {
        "wall_clock_breakdown": True,
        "steps_per_print": 5,
        "zero_optimization": {"stage": 3, "offload_param": {"device": "cpu", "pin_memory": True}},
    }
    filled = fill(content)
    assert {**filled, **content} == filled


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({"zero_optimisation": {"stage": 2}}, ["'zero_optimisation'", "did you mean 'zero_optimization'"]),
        ({"zero_optimization": {"stge": 2}}, ["'zero_optimization.stge'", "did you mean 'stage'"]),
        ({"zero_optimization": {"stage": 2, "ofload_optimizer": {}}}, ["did you mean 'offload_optimizer'"]),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"devise": "cpu"}}},
            ["'zero_optimization.offload_optimizer.devise'", "did you mean 'device'"],
        ),
        ({"zero_optimization": {"stage": 3, "offload_param": {"pin": True}}}, ["zero_optimization.offload_param.pin"]),
        ({"bf16": {"enable": True}}, ["'bf16.enable'", "did you mean 'enabled'"]),
        ({"gradient_cliping": 1.0}, ["did you mean 'gradient_clipping'"]),
        ({"xyz": 1}, ["unknown key 'xyz'", "Remove it"]),
        ({"bf16": True}, ["bf16 is True", "mapping"]),
        ({"zero_optimization": 2}, ["zero_optimization is 2", "mapping"]),
        ({"zero_optimization": {"stage": 3, "offload_param": "cpu"}}, ["offload_param is 'cpu'", "mapping"]),
    ],
)
def test_a_key_deepspeed_does_not_know_is_refused(content: dict[str, Any], parts: list[str]) -> None:
    message = fault(content)
    for part in parts:
        assert part in message


@pytest.mark.parametrize("stage", [-1, 4, "2", None])
def test_a_stage_that_does_not_exist_is_refused(stage: Any) -> None:
    message = fault({"zero_optimization": {"stage": stage}})
    assert f"stage is {stage!r}" in message and "0, 1, 2 or 3" in message


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_offloaded_weights_need_stage_three(stage: int) -> None:
    message = fault({"zero_optimization": {"stage": stage, "offload_param": {"device": "cpu"}}})
    assert f"the stage is {stage}" in message and "Set stage: 3" in message


def test_an_offloaded_optimizer_needs_zero() -> None:
    assert "offload_optimizer needs" in fault({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}})


@pytest.mark.parametrize("name", ["offload_optimizer", "offload_param"])
def test_nvme_is_refused(name: str) -> None:
    message = fault({"zero_optimization": {"stage": 3, name: {"device": "nvme"}}})
    assert f"{name}.device is 'nvme'" in message and "'cpu'" in message


@pytest.mark.parametrize("name", ["offload_optimizer", "offload_param"])
def test_offload_to_none_is_no_offload(name: str) -> None:
    check_deepspeed_config({"zero_optimization": {"stage": 0, name: {"device": "none"}}}, "my.json")
    check_deepspeed_config({"zero_optimization": {"stage": 0, name: None}}, "my.json")


@pytest.mark.parametrize("section", OWN_SECTIONS)
def test_what_shoal_does_itself_is_refused_with_where_to_set_it(section: str) -> None:
    assert OWN_SECTIONS[section] in fault({section: {"enabled": True}})


@pytest.mark.parametrize("section", [{"enabled": "auto", "loss_scale": 0}, {"enabled": False}, {}])
def test_fp16_that_is_off_is_left_out(section: dict[str, Any]) -> None:
    """As in the ZeRO-3 file of Hugging Face's documentation."""
    check_deepspeed_config({"fp16": section, "bf16": {"enabled": "auto"}}, "my.json")
    assert "fp16" not in fill({"fp16": section})


def test_fp16_is_dynamic_and_has_fp32_copies_and_sums() -> None:
    written = {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 7}
    filled = fill({"fp16": written, "bf16": {"enabled": "auto"}}, dtype=torch.float16)
    assert filled["fp16"] == {**written, "enabled": True, "hysteresis": 1}
    assert filled["bf16"]["enabled"] is False
    assert filled["zero_optimization"]["stage"] == 1 and filled["data_types"]["grad_accum_dtype"] == "fp32"
    assert fill({"fp16": {"hysteresis": 2}}, dtype=torch.float16)["fp16"]["hysteresis"] == 2


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"loss_scale": 128}, "fp16.loss_scale is 128. Set 0"),
        ({"auto_cast": True}, "fp16.auto_cast is True. Remove it"),
        ({"loss_scale_windwo": 3}, "'fp16.loss_scale_windwo'; did you mean"),
        ({"initial_scale_power": "high"}, "fp16.initial_scale_power is 'high'"),
    ],
)
def test_another_loss_scaling_is_refused(section: dict[str, Any], words: str) -> None:
    assert words in fault({"fp16": {"enabled": "auto", **section}})


@pytest.mark.parametrize(("enabled", "dtype"), [(True, torch.float32), (True, torch.bfloat16), (False, torch.float16)])
def test_a_file_that_contradicts_fp16_is_refused(enabled: bool, dtype: torch.dtype) -> None:
    with pytest.raises(UserError, match=r"fp16\.enabled contradicts"):
        fill({"fp16": {"enabled": enabled}}, dtype=dtype)


@pytest.mark.parametrize(("old", "new"), OLD_NAMES.items())
def test_an_old_name_is_refused_with_the_new_one(old: str, new: str) -> None:
    assert new in fault({"zero_optimization": {"stage": 3, old: True}})
    check_deepspeed_config({"zero_optimization": {"stage": 3, old: False}}, "my.json")


def test_a_value_deepspeed_would_refuse_is_named() -> None:
    message = fault({"zero_optimization": {"stage": 3, "stage3_prefetch_bucket_size": "big"}})
    assert "zero_optimization.stage3_prefetch_bucket_size is 'big'" in message and "integer" in message


def test_no_key_is_both_taken_and_refused() -> None:
    assert not KNOWN_SECTIONS & set(OWN_SECTIONS)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train_micro_batch_size_per_gpu", 8),
        ("gradient_accumulation_steps", 1),
        ("train_batch_size", 12),
        ("gradient_clipping", 1.0),
    ],
)
def test_a_value_that_contradicts_the_job_is_refused(key: str, value: float) -> None:
    with pytest.raises(UserError, match=rf'my\.json: {key} is {value} and the job says .*"auto"'):
        fill({key: value})


def test_values_that_agree_with_the_job_pass() -> None:
    batch = {"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 3, "train_batch_size": 24}
    assert {**fill(batch), **batch} == fill(batch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_precision_that_contradicts_the_job_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(UserError, match=r"bf16\.enabled contradicts"):
        fill({"bf16": {"enabled": dtype != torch.bfloat16}}, dtype=dtype)
    assert fill({"bf16": {"enabled": dtype == torch.bfloat16}}, dtype=dtype)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b'{"bf16":\n  {,}\n}', ["line 2"]),
        (b"[1]", ["holds no settings", "ds_configs/"]),
        (b'{"a": "\xe9"}', ["not UTF-8", "0xe9", "offset 7"]),
    ],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, content: bytes, parts: list[str]) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_deepspeed_config(str(path))
    for part in [str(path), *parts]:
        assert part in str(caught.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UserError, match=r"zero9\.json does not exist"):
        read_deepspeed_config("ds_configs/zero9.json")


def test_a_file_here_comes_before_one_of_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert zero_stage(read_deepspeed_config("ds_configs/zero2.json")[0]) == 2
    (tmp_path / "ds_configs").mkdir()
    (tmp_path / "ds_configs/zero2.json").write_text('{"zero_optimization": {"stage": 1}}')
    assert zero_stage(read_deepspeed_config("ds_configs/zero2.json")[0]) == 1


def test_content_may_stand_in_the_job_itself() -> None:
    assert read_deepspeed_config({"zero_optimization": {"stage": 2}}) == (
        {"zero_optimization": {"stage": 2}},
        "deepspeed",
    )
    with pytest.raises(UserError, match="deepspeed: unknown key 'zer'"):
        read_deepspeed_config({"zer": 1})
