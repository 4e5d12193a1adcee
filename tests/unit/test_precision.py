"""Which precision a card trains in, and that what is forecast, planned and trained in are one."""

from __future__ import annotations

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from launcher.board import Request
from launcher.cards import GIB, Card, Node
from launcher.choose import Choice, choose
from launcher.expand import CHECKOUT, StudyJob
from launcher.known_cards import read_cards
from launcher.plan import fitting_sizes
from launcher.plan_text import PlannedJob, print_jobs
from launcher.precisions import choose_for_each
from launcher.schedule import Scheduler
from training.errors import UserError
from training.forecast.estimate import Shape, forecast
from training.forecast.memory_estimate import JobForecast, MemoryEstimate, Work
from training.parse import build
from training.precision import auto_precision
from training.pretrained import resolve_dtype
from training.spec import DataSpec, JobSpec, ModelSpec

WORK = Work(parameters=10**9, layers=16, tokens=10**7, evaluated_tokens=10**6, steps=500)
PC = {"here": Node(node_id="here", host="here", total_gib=64.0, host_gib=64.0, cores=8)}


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6), (8, 9), (12, 0)])
def test_a_rank_takes_what_was_planned_for_its_card(
    capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    trained = {torch.bfloat16: "bf16", torch.float32: "fp32", torch.float16: "fp16"}
    assert trained[resolve_dtype("auto", torch.device("cuda", 0))] == auto_precision(capability)
    assert (auto_precision(capability) == "bf16") == (capability >= (8, 0))


def forecasts(cache: Path) -> list[MemoryEstimate]:
    """Return the memory of a job on a 3060 in bf16, and on a 2060 in bf16 and in fp32."""
    os.environ["SHOAL_CACHE"] = str(cache)
    settings: dict[str, Any] = {
        "model": {"model_name_or_path": "m"}, "data": {"train_file": "texts.jsonl", "max_seq_length": 256},
        "training": {"per_device_train_batch_size": 4}, "lora": {"r": 4},
        "deepspeed": {"bf16": {"enabled": "auto"}, "zero_optimization": {"stage": 1}},
    }  # fmt: skip
    config = {
        "model_type": "llama", "vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "num_labels": 3,
    }  # fmt: skip
    spec = build(JobSpec, settings, "job")
    shape = Shape(training=[[256, 250, 240, 200]], evaluation=[256], accumulates=False)
    return [
        forecast(spec, config, shape, dtype=dtype, world_size=1, on_card=True, capability=capability)
        for dtype, capability in (("bf16", (8, 6)), ("bf16", (7, 5)), ("fp32", (7, 5)))
    ]


def test_a_card_without_the_kernel_for_many_lengths_needs_more(tmp_path: Path) -> None:
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as process:
        ampere, emulated, turing = process.submit(forecasts, tmp_path).result()
    assert emulated.card["base weights"] == ampere.card["base weights"]
    assert turing.card["base weights"] > 1.9 * ampere.card["base weights"]
    assert turing.card["activations"] > ampere.card["activations"]


def job(dtype: str = "auto") -> StudyJob:
    content = json.loads((CHECKOUT / "ds_configs/zero1.json").read_text())
    model: dict[str, Any] = {"model_name_or_path": "m", "dtype": dtype}
    spec = JobSpec(name="x", output_dir="x", data=DataSpec(dataset_name="imdb"), model=ModelSpec(**model))
    return StudyJob(
        written=spec, spec=replace(spec, deepspeed=content), fixed=frozenset({"num_ranks"}), data_content=[]
    )


def planned(asked: StudyJob, cards: list[Card], bf16_gib: float = 3.0) -> Choice:
    """Plan a job that needs twice as much in fp32, and is refused in any other precision."""

    def ask(spec: JobSpec, _: str) -> JobForecast | UserError:
        size = bf16_gib * {"bf16": 1, "fp16": 1, "fp32": 2}[spec.model.dtype]
        memory = MemoryEstimate(card={"all": round(size * GIB)}, host={"all": GIB})
        return JobForecast(memory=memory, work=WORK, dtype=spec.model.dtype)

    def among(told: StudyJob, some: Any, precision: str) -> Choice:
        return choose(told, WORK, ask, some, PC, on_card=True, most_ranks=1, precision=precision)

    return choose_for_each(asked, cards, among, on_card=True)


def turing_precision() -> str:
    return auto_precision((7, 5))


def test_a_job_is_planned_for_the_precision_of_each_card_it_can_get() -> None:
    choice = planned(job(), read_cards("2060 super,3060"))
    assert (choice.asked.precision, choice.asked.card_gib, choice.forecast.dtype) == ("bf16", 3.0, "bf16")
    assert choice.card is not None and choice.card.name.endswith("3060")
    (other,) = choice.asked.instead
    assert other.precision == turing_precision()
    assert other.seconds > choice.asked.seconds
    assert choice.on(choice.asked).spec.model.dtype == "bf16"
    assert choice.on(other).spec.model.dtype == turing_precision()


def test_a_job_that_fits_one_kind_alone_is_never_sent_to_another() -> None:
    """3060 in bf16; the 2060 has room for its bytes, and not for those that it would take there."""
    cards = read_cards("2060,3060")
    choice = planned(job(), cards, bf16_gib=5.0)
    need_on_2060 = 5.0 * (2 if turing_precision() == "fp32" else 1)
    assert bool(choice.asked.instead) == (need_on_2060 <= cards[0].gib)
    scheduler = Scheduler([cards[0]], PC)
    scheduler.submit(replace(choice.asked, instead=()))
    assert scheduler.start(0.0) == []
    scheduler.update(cards, PC)
    assert [placement.cards[0].name for placement in scheduler.start(0.0)] == ["NVIDIA GeForce RTX 3060"]


def test_what_the_study_says_of_precision_is_kept_on_every_card() -> None:
    choice = planned(job("fp32"), read_cards("2060 super,3060"))
    assert choice.asked.precision == "" and choice.asked.instead == () and choice.asked.card_gib == 6.0
    assert choice.spec.model.dtype == "fp32"


def test_each_of_two_cards_of_two_generations_gets_a_job_as_it_was_planned_there() -> None:
    cards = read_cards("2060 super,3060")
    choice = planned(job(), cards, bf16_gib=2.5)
    scheduler = Scheduler(cards, PC)
    for number in range(30):
        scheduler.submit(choice.of(replace(job(), spec=replace(job().spec, name=f"job{number}"))).asked)
    on = {}
    for placement in scheduler.start(0.0):
        on[placement.cards[0].name] = placement.request
    assert on["NVIDIA GeForce RTX 3060"].precision == "bf16"
    assert on["NVIDIA GeForce RTX 2060 SUPER"].precision == turing_precision()


def test_a_request_reads_back_as_it_was_written_for_other_studies() -> None:
    asked = planned(job(), read_cards("2060 super,3060")).asked
    read = Request.of(json.loads(json.dumps(asdict(asked))))
    assert read == asked and read.renamed("other", 3).instead[0].job == "other"


def test_a_plan_says_on_which_card_a_job_is_expected_and_how_it_would_run_on_another(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cards = read_cards("2060 super,3060,4090")
    choice = planned(job(), cards)
    item = PlannedJob(job=job(), planned=choice, status="to run", fits=fitting_sizes(choice, cards))
    assert item.fits == (7.7, 11.7, 23.6)
    assert fitting_sizes(replace(choice, asked=choice.asked.instead[0]), cards) == (7.7,)
    print_jobs([item], cards, 64.0, on_card=True)
    text = " ".join(capsys.readouterr().out.split())
    assert "RTX 4090" in text and "runs in bf16" in text
    assert f"or, on RTX 2060 SUPER: runs in {turing_precision()}" in text
    assert item.to_dict()["expected_card"] == "NVIDIA GeForce RTX 4090"
    assert [way["dtype"] for way in item.to_dict()["instead"]] == [turing_precision()]
