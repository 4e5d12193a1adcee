"""Forecasts of deep models from shallow ones: what a simulation of every layer says, to the byte."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from training.forecast import depth
from training.forecast.depth import DEEPER, Simulation, bucket_of, depths, extrapolate, tells_layers_apart
from training.forecast.estimate import Shape, forecast
from training.forecast.memory_estimate import MemoryEstimate
from training.parse import build
from training.spec import JobSpec

ROOT = Path(__file__).resolve().parents[2]


def simulation(**sites: dict[str, dict[str, int]]) -> Simulation:
    named = {site.replace("_", " "): places for site, places in sites.items()}
    return Simulation(peaks={"training": named}, trained=10, largest_trained=2, base_on_card=0)


def test_each_site_is_followed_by_itself() -> None:
    """Of 4 and 6 layers the head is the largest; of 50 it is the layers."""
    few = simulation(head={"card": {"activations": 900}}, forward_0={"card": {"activations": 100, "base": 40}})
    more = simulation(head={"card": {"activations": 902}}, forward_0={"card": {"activations": 140, "base": 60}})
    more = replace(more, trained=15)
    whole = extrapolate(few, more, 4, 50)
    assert whole is not None
    assert whole.peaks["training"]["head"] == {"card": {"activations": 900 + 46}}
    assert whole.largest()["training"] == {"card": {"activations": 100 + 20 * 46, "base": 40 + 10 * 46}}
    assert whole.trained == 10 + 5 * 46 // DEEPER and whole.largest_trained == 2


def test_layers_between_the_ends_are_left_out() -> None:
    few = simulation(forward_0={"host": {"base": 1}})
    more = simulation(forward_0={"host": {"base": 2}}, forward_between={"host": {"base": 9}})
    whole = extrapolate(few, more, 4, 6)
    assert whole is not None and whole.peaks["training"] == {"forward 0": {"host": {"base": 2}}}


FEW = {"forward_0": {"card": {"base": 9}}}


@pytest.mark.parametrize(
    ("few", "more"),
    [
        (FEW, FEW | {"step": {"card": {"base": 3}}}),
        (FEW, {"forward_0": {"card": {"gradients": 3}}}),
        ({"head": {"card": {"base": 9}}}, {"head": {"card": {"base": 9}}}),
    ],
)
def test_what_is_not_of_the_same_moments_of_layers_is_no_line(few: dict[str, Any], more: dict[str, Any]) -> None:
    assert extrapolate(simulation(**FEW), simulation(**FEW), 4, 50) is not None
    assert extrapolate(simulation(**few), simulation(**more), 4, 50) is None


LLAMA_8B = SimpleNamespace(num_hidden_layers=32, hidden_size=4096, intermediate_size=14336, layer_types=None)


def test_zero_3_is_simulated_with_as_many_layers_as_may_be_gathered() -> None:
    zero = {"stage": 3, "stage3_max_live_parameters": 1e8, "stage3_max_reuse_distance": 1e8}
    assert depths(LLAMA_8B, 2, "none", {"stage": 2}) == (4, 6)
    assert depths(LLAMA_8B, 2, "none", zero) == (5, 7)
    assert depths(LLAMA_8B, 2, "nf4", zero) == (7, 9)
    assert depths(LLAMA_8B, 2, "nf4", zero | {"reduce_bucket_size": "auto"}) == (7, 9)
    assert depths(LLAMA_8B, 2, "nf4", {"stage": 3}) is None  # a thousand million are all of its packed weights


def test_adapters_in_some_layers_only_are_simulated_with_all() -> None:
    assert not tells_layers_apart("all-linear")
    assert not tells_layers_apart(["q_proj", "self_attn.v_proj", "fc1"])
    assert tells_layers_apart(["layers.17.self_attn.q_proj"])
    assert tells_layers_apart(r".*layers\.[0-8]\..*q_proj")


def test_gradients_that_pass_their_bucket_are_no_line() -> None:
    few, more = simulation(**FEW), replace(simulation(**FEW), trained=15)
    trained = 10 + 5 * 46 // DEEPER
    assert extrapolate(few, more, 4, 50, bucket_of({"reduce_bucket_size": trained})) is not None
    assert extrapolate(few, more, 4, 50, bucket_of({"reduce_bucket_size": trained - 1})) is None
    assert bucket_of({}) == bucket_of({"reduce_bucket_size": "auto"}) == float("inf")


def test_models_that_are_not_deep_or_not_alike_are_simulated_whole() -> None:
    shallow = SimpleNamespace(**{**vars(LLAMA_8B), "num_hidden_layers": 14})
    mixed = SimpleNamespace(**{**vars(LLAMA_8B), "layer_types": ["full_attention", "sliding_attention"] * 16})
    assert depths(shallow, 2, "none", {}) is None
    assert depths(mixed, 2, "none", {}) is None
    unknown = SimpleNamespace(num_hidden_layers=32, hidden_size=4096)
    assert depths(unknown, 2, "none", {"stage": 3}) is None


def shallow_and_whole(forecast_once: Callable[[], MemoryEstimate], cache: Path) -> list[MemoryEstimate]:
    """Forecast a deep model as it is done, and by simulating every layer."""
    found = []
    for name in ("shallow", "whole"):
        os.environ["SHOAL_CACHE"] = str(cache / name)
        found.append(forecast_once())
        depth.depths = lambda *_: None  # type: ignore[assignment]
    return found


@pytest.mark.parametrize(
    ("deepspeed", "quantization", "num_ranks", "on_card"),
    [
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}, "none", 2, False),
        (
            {
                "zero_optimization": {
                    "stage": 3, "offload_param": {"device": "cpu"}, "stage3_max_live_parameters": 1000,
                    "stage3_max_reuse_distance": 1000, "stage3_prefetch_bucket_size": 1000,
                }
            },
            "nf4", 1, True,
        ),
    ],
)  # fmt: skip
def test_a_deep_model_needs_what_its_simulation_says(
    deepspeed: dict[str, Any],
    quantization: str,
    num_ranks: int,
    on_card: bool,
    tmp_path: Path,
) -> None:
    settings: dict[str, Any] = {
        "model": {"model_name_or_path": "deep", "quantization": quantization},
        "data": {"train_file": "texts.jsonl", "max_seq_length": 32},
        "training": {"gradient_checkpointing": True, "per_device_train_batch_size": 2}, "lora": {"r": 4},
        "deepspeed": {"bf16": {"enabled": "auto"}, **deepspeed}, "num_ranks": num_ranks,
    }  # fmt: skip
    spec = build(JobSpec, settings, "job")
    config = {
        "model_type": "llama", "vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 18,
        "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "num_labels": 3,
    }  # fmt: skip
    shape = Shape(training=[[32, 30]], evaluation=[32], accumulates=False)

    forecast_once = partial(forecast, spec, config, shape, dtype="bf16", world_size=num_ranks, on_card=on_card)

    assert depths(SimpleNamespace(**config), 2, quantization, deepspeed["zero_optimization"]) is not None
    # As `shoal plan` forecasts: in a process that has run no model, as other tests have in this one.
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as process:
        from_shallow, whole = process.submit(shallow_and_whole, forecast_once, tmp_path).result()

    assert from_shallow.tensors == whole.tensors
    assert json.dumps([from_shallow.card, from_shallow.host], sort_keys=True) == json.dumps(
        [whole.card, whole.host], sort_keys=True
    )
