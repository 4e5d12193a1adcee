"""The setting a job runs with: what the study wrote is kept, the rest is the fastest that fits."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.cards import GIB, Card, Node
from launcher.choose import Ask, Choice, choose
from launcher.cost import expected_seconds
from launcher.expand import CHECKOUT, StudyJob
from launcher.known_cards import read_cards
from launcher.plan import fitting_sizes
from launcher.plan_text import why_not
from launcher.remedies import Search, remedies
from launcher.settings import Setting, cuts, settings
from training.errors import ShoalError, UserError
from training.forecast.memory_estimate import JobForecast, MemoryEstimate, Work
from training.spec import DataSpec, JobSpec, TrainingSpec

WORK = Work(parameters=10**9, layers=16, tokens=10**7, evaluated_tokens=10**6, steps=500)


def job(*fixed: str, ranks: int = 1, **training: Any) -> StudyJob:
    content = json.loads((CHECKOUT / "ds_configs/zero1.json").read_text())
    spec = JobSpec(
        name="job", output_dir="outputs/s/jobs/job", data=DataSpec(dataset_name="imdb"), num_ranks=ranks,
        training=TrainingSpec(**training),
    )  # fmt: skip
    return StudyJob(written=spec, spec=replace(spec, deepspeed=content), fixed=frozenset(fixed), data_content=[])


def cards(*sizes: int, host_gib: float = 100.0) -> tuple[list[Card], dict[str, Node]]:
    return (
        [
            Card(node_id="a", host="a", index=i, size=size, gib=float(size), num_threads=1)
            for i, size in enumerate(sizes)
        ],
        {"a": Node(node_id="a", host="a", total_gib=host_gib, host_gib=host_gib, cores=16)},
    )


def needs(spec: JobSpec, _: str) -> JobForecast | UserError:
    """A base of 6 GiB, cut by ZeRO-3 and gone by offload; activations by micro-batch, a third when recomputed."""
    assert isinstance(spec.deepspeed, dict)
    zero = spec.deepspeed["zero_optimization"]
    base = 6.0 / (spec.num_ranks if zero["stage"] == 3 else 1)
    if zero.get("offload_param", {}).get("device") == "cpu":
        base = 0.5
    recomputed = 3 if spec.training.gradient_checkpointing else 1
    card = base + spec.training.per_device_train_batch_size / recomputed
    memory = MemoryEstimate(card={"all": round(card * GIB)}, host={"all": GIB})
    return JobForecast(memory=memory, work=WORK, dtype="bf16")


def chosen(asked: StudyJob, *sizes: int, most_ranks: int = 1, on_card: bool = True) -> Choice:
    some, nodes = cards(*sizes)
    return choose(asked, WORK, needs, some, nodes, on_card=on_card, most_ranks=most_ranks)


def test_where_everything_fits_nothing_is_given_up_for_memory() -> None:
    choice = chosen(job(per_device_train_batch_size=8), 24)
    assert choice.setting == Setting(
        deepspeed="ds_configs/zero1.json", gradient_checkpointing=False, per_device_train_batch_size=8,
        gradient_accumulation_steps=1, num_ranks=1,
    )  # fmt: skip
    assert choice.asked.card_gib == 14.0
    assert len(choice.lost) > 5 and all("as long" in lost.why and not lost.too_large for lost in choice.lost)


def test_on_a_small_card_the_fastest_that_fits_is_taken_and_the_faster_ones_say_what_they_need() -> None:
    choice = chosen(job(per_device_train_batch_size=8), 10)
    assert choice.asked.card_gib <= 10 and choice.refusal is None
    too_large = [lost.setting for lost in choice.lost if lost.why == "needs 14.00 GiB a rank"]
    assert too_large
    slower = [float(lost.why.split(" x ")[0].split()[-1]) for lost in choice.lost if " x as long" in lost.why]
    assert slower and all(ratio > 1 for ratio in slower)


def test_what_the_study_wrote_is_kept() -> None:
    fixed = job("deepspeed", "training.gradient_checkpointing", "training.per_device_train_batch_size", "num_ranks",
                per_device_train_batch_size=8)  # fmt: skip
    choice = chosen(fixed, 8)
    assert [(lost.setting, lost.why) for lost in choice.lost] == [(choice.setting, "needs 14.00 GiB a rank")]
    assert choice.refusal is not None and "14.00 GiB" in choice.refusal and "has 8" in choice.refusal
    assert choice.spec.training == fixed.spec.training and choice.spec.deepspeed == fixed.spec.deepspeed


def test_more_ranks_are_for_memory_or_for_idle_cards() -> None:
    asked = job("training.gradient_checkpointing", per_device_train_batch_size=8)
    assert chosen(asked, 24, 24).setting.num_ranks == 1
    assert chosen(asked, 24, 24, most_ranks=2).setting.num_ranks == 2
    dense = job("training.gradient_checkpointing", "deepspeed", "training.per_device_train_batch_size",
                per_device_train_batch_size=8, gradient_accumulation_steps=2)  # fmt: skip
    stage3 = json.loads((CHECKOUT / "ds_configs/zero3.json").read_text())
    dense = replace(dense, spec=replace(dense.spec, deepspeed=stage3))
    choice = chosen(dense, 12, 12)
    assert (choice.setting.num_ranks, choice.setting.gradient_accumulation_steps) == (2, 1)


def test_what_the_trainer_refuses_under_every_setting_is_a_users_mistake() -> None:
    some, nodes = cards(24)
    with pytest.raises(UserError, match="no such layer"):
        choose(job(), WORK, lambda *_: UserError("no such layer"), some, nodes, on_card=True, most_ranks=1)


def test_host_memory_refuses_too() -> None:
    some, nodes = cards(24, host_gib=0.5)
    choice = choose(job(), WORK, needs, some, nodes, on_card=True, most_ranks=1)
    assert choice.refusal is not None and "host memory" in choice.refusal


@given(
    per_device=st.integers(1, 64), accumulation=st.integers(1, 8), ranks=st.sampled_from([1, 2, 4]),
    fixed=st.sets(st.sampled_from([
        "num_ranks", "deepspeed", "training.per_device_train_batch_size", "training.gradient_accumulation_steps",
        "training.gradient_checkpointing",
    ])),
    num_cards=st.integers(1, 8),
)  # fmt: skip
def test_the_global_batch_and_what_is_fixed_stay(
    per_device: int, accumulation: int, ranks: int, fixed: set[str], num_cards: int
) -> None:
    written = job(*fixed, ranks=ranks, per_device_train_batch_size=per_device, gradient_accumulation_steps=accumulation)
    for num_ranks, size, steps in cuts(written, num_cards):
        assert num_ranks * size * steps == per_device * accumulation * ranks
    for setting, spec in settings(written, num_cards):
        assert "num_ranks" not in fixed or spec.num_ranks == ranks
        assert "deepspeed" not in fixed or spec.deepspeed == written.spec.deepspeed
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing"):
            same = getattr(spec.training, name) == getattr(written.spec.training, name)
            assert f"training.{name}" not in fixed or same
        assert setting.num_ranks == spec.num_ranks
        assert replace(spec, training=written.spec.training, deepspeed={}, num_ranks=1) == replace(
            written.spec, deepspeed={}, num_ranks=1
        )


def seconds_of(spec: JobSpec) -> float:
    """Return what is expected on an RTX 3060."""
    return expected_seconds(spec, WORK, on_card=True, kind=read_cards("3060")[0].kind)


def test_recomputing_cutting_and_offloading_cost_time() -> None:
    base = job(per_device_train_batch_size=8).spec
    times = {}
    for setting, spec in settings(job(per_device_train_batch_size=8), 1):
        times[setting] = seconds_of(spec)
    first = min(times, key=lambda setting: times[setting])
    assert first.deepspeed == "ds_configs/zero1.json" and first.per_device_train_batch_size == 8
    assert not first.gradient_checkpointing
    nf4 = replace(base, model=replace(base.model, quantization="nf4"))
    assert seconds_of(nf4) > seconds_of(base)


@pytest.mark.parametrize(
    ("card", "num_ranks", "sizes", "fits"),
    [
        (7.9, 1, [8, 12], (8, 12)),
        (8.1, 1, [8, 12], (12,)),
        (7.0, 2, [8, 12], ()),
        (7.0, 2, [8, 12, 12], (12,)),
        (13.0, 1, [8, 12], ()),
    ],
)
def test_a_plan_names_the_sizes_of_which_there_are_enough_cards(
    card: float, num_ranks: int, sizes: list[int], fits: tuple[int, ...]
) -> None:
    choice = chosen(job(per_device_train_batch_size=1), 24)
    asked = replace(choice.asked, card_gib=card, num_ranks=num_ranks)
    assert fitting_sizes(replace(choice, asked=asked), cards(*sizes)[0]) == fits


def search_of(*sizes: int, ask: Ask = needs, most_ranks: int = 1, host_gib: float = 100.0) -> Search:
    """Return what plans a job for these cards."""
    some, nodes = cards(*sizes, host_gib=host_gib)

    def search(asked: StudyJob, *, least: bool) -> Choice:
        return choose(asked, WORK, ask, some, nodes, on_card=True, most_ranks=most_ranks, least=least)

    return search


def remedies_of(asked: StudyJob, *sizes: int, ask: Ask = needs, most_ranks: int = 1) -> str:
    """Return the remedies, without the host memory that each would need: it is the same for all here."""
    search = search_of(*sizes, ask=ask, most_ranks=most_ranks)
    assert search(asked, least=False).refusal is not None
    text = remedies(asked, search)
    assert text.count(" GiB of card memory and 1.00 GiB of host memory a rank are enough then)") == text.count("(") > 0
    return text.replace(" of card memory and 1.00 GiB of host memory a rank are enough then", " a rank")


def with_stage(asked: StudyJob, file: str) -> StudyJob:
    content = json.loads((CHECKOUT / f"ds_configs/{file}.json").read_text())
    written = replace(asked.written, deepspeed=f"ds_configs/{file}.json")
    return replace(asked, written=written, spec=replace(asked.spec, deepspeed=content))


def test_of_what_a_study_could_change_that_is_named_which_makes_it_fit() -> None:
    batch, checkpointing = "training.per_device_train_batch_size", "training.gradient_checkpointing"
    sized = job(batch, "deepspeed", checkpointing, per_device_train_batch_size=8)
    assert remedies_of(sized, 10) == (
        "It fits with training.gradient_checkpointing: true (8.67 GiB a rank); or with training."
        "per_device_train_batch_size: 4 and training.gradient_accumulation_steps: 2 (10.00 GiB a rank); or with "
        "deepspeed: ds_configs/zero3_offload_param.json (8.50 GiB a rank)."
    )
    one = with_stage(job("deepspeed", per_device_train_batch_size=8), "zero1")
    assert remedies_of(one, 5) == ("It fits with deepspeed: ds_configs/zero3_offload_param.json (0.83 GiB a rank).")


def test_a_batch_that_is_no_power_of_two_can_be_cut_to_one_text() -> None:
    asked = with_stage(job("deepspeed", "training.per_device_train_batch_size", "training.gradient_checkpointing",
                           per_device_train_batch_size=12), "zero1")  # fmt: skip
    assert remedies_of(asked, 7).startswith(
        "It fits with training.per_device_train_batch_size: 1 and training.gradient_accumulation_steps: 12 (7.00 "
    )


def test_more_ranks_are_named_with_the_batch_that_keeps_the_global_one() -> None:
    asked = job("num_ranks", "deepspeed", "training.per_device_train_batch_size", "training.gradient_checkpointing",
                per_device_train_batch_size=6)  # fmt: skip
    text = remedies_of(with_stage(asked, "zero3"), 6, 6)
    assert "num_ranks: 2 and training.per_device_train_batch_size: 3 (6.00 GiB a rank)" in text


def test_where_one_change_is_not_enough_all_are_tried_together_and_a_model_too_large_for_any_is_called_so() -> None:
    one = with_stage(job("deepspeed", "training.per_device_train_batch_size", "training.gradient_checkpointing",
                         per_device_train_batch_size=8), "zero1")  # fmt: skip
    assert remedies_of(one, 1) == (
        "It fits with deepspeed: ds_configs/zero3_offload_param.json and training.gradient_checkpointing: true and "
        "training.per_device_train_batch_size: 1 and training.gradient_accumulation_steps: 8 (0.83 GiB a rank)."
    )
    search = search_of(24, host_gib=0.5)
    assert search(one, least=False).refusal is not None
    text = remedies(one, search)
    assert text.startswith("Nor does it fit with an nf4 base") and text.endswith("a smaller model, or more memory.")


def test_a_batch_that_is_cut_over_ranks_is_named_with_them() -> None:
    asked = job("training.per_device_train_batch_size", "deepspeed", "training.gradient_checkpointing",
                per_device_train_batch_size=8)  # fmt: skip
    text = remedies(with_stage(asked, "zero1"), search_of(10, 10, most_ranks=2))
    assert "num_ranks: 2 and training.per_device_train_batch_size: 4 (10.00 GiB" in text


def test_a_base_that_must_not_be_quantized_has_remedies_too_and_none_that_was_not_tried() -> None:
    """As with DoRA under ZeRO-3."""

    def unquantized(spec: JobSpec, name: str) -> JobForecast | UserError:
        return UserError("no nf4") if spec.model.quantization == "nf4" else needs(spec, name)

    asked = with_stage(job("deepspeed", "training.gradient_checkpointing", "training.per_device_train_batch_size",
                           per_device_train_batch_size=8), "zero1")  # fmt: skip
    assert "training.per_device_train_batch_size: 1" in remedies_of(asked, 7, ask=unquantized)
    assert "nf4" not in remedies(asked, search_of(24, ask=unquantized, host_gib=0.5))


def test_one_forecast_that_fails_loses_no_remedy_and_nothing_is_said_of_what_is_not_known() -> None:
    def failing(spec: JobSpec, name: str) -> JobForecast | UserError:
        if spec.model.quantization == "nf4":
            raise ShoalError("the memory forecast failed")
        return needs(spec, name)

    asked = with_stage(job("deepspeed", per_device_train_batch_size=8), "zero1")
    assert "deepspeed: ds_configs/zero3_offload_param.json" in remedies_of(asked, 5, ask=failing)
    assert remedies(asked, search_of(24, ask=failing, host_gib=0.5)) == ""


def test_a_file_that_names_its_micro_batch_is_planned_with_that() -> None:
    """The trainer refuses every other size; that says nothing of how large this one is."""

    def four(spec: JobSpec, name: str) -> JobForecast | UserError:
        size = spec.training.per_device_train_batch_size
        return needs(spec, name) if size == 4 else UserError(f"train_micro_batch_size_per_gpu is 4, not {size}")

    asked = job("deepspeed", per_device_train_batch_size=16)
    some, nodes = cards(8)
    choice = choose(asked, WORK, four, some, nodes, on_card=True, most_ranks=1)
    assert choice.refusal is None and choice.setting.per_device_train_batch_size == 4
    assert choice.setting.gradient_checkpointing and choice.asked.card_gib == pytest.approx(7.34, abs=0.01)
    assert "deepspeed: ds_configs/zero3_offload_param.json" in remedies_of(asked, 5, ask=four)


def test_what_is_refused_whatever_the_batch_is_asked_for_twice_only() -> None:
    asked: list[int] = []

    def refused(spec: JobSpec, _: str) -> JobForecast | UserError:
        asked.append(spec.training.per_device_train_batch_size)
        return UserError("no such layer")

    some, nodes = cards(24)
    with pytest.raises(UserError):
        choose(job("deepspeed"), WORK, refused, some, nodes, on_card=True, most_ranks=1)
    assert len(asked) == 3  # the fastest, and the smallest two


def test_the_studys_own_ranks_are_tried_too() -> None:
    """Three, which the planner tries for no study that leaves them open."""

    def by_ranks(spec: JobSpec, _: str) -> JobForecast | UserError:
        size = 2 if spec.num_ranks == 3 and spec.training.per_device_eval_batch_size == 1 else 20
        return JobForecast(memory=MemoryEstimate(card={"all": size * GIB}, host={"all": GIB}), work=WORK, dtype="bf16")

    asked = job("num_ranks", ranks=3, per_device_train_batch_size=8)
    assert remedies_of(asked, 8, 8, 8, ask=by_ranks) == (
        "It fits with training.per_device_eval_batch_size: 1 (2.00 GiB a rank)."
    )


def test_where_none_fits_the_one_named_is_not_of_more_ranks_than_there_are_equal_cards() -> None:
    some, nodes = cards(4, 3)
    asked = job("deepspeed", "training.per_device_train_batch_size", "training.gradient_checkpointing",
                per_device_train_batch_size=1, gradient_accumulation_steps=2)  # fmt: skip
    choice = choose(with_stage(asked, "zero3"), WORK, needs, some, nodes, on_card=True, most_ranks=2)
    assert choice.refusal is not None and choice.setting.num_ranks == 1 and "num_ranks" not in choice.refusal


def by_length(gib_a_token: float, quantized: float = 1.0) -> Ask:
    """Return a forecast of what grows with the longest text and shrinks on an nf4 base."""

    def ask(spec: JobSpec, _: str) -> JobForecast | UserError:
        size = spec.data.max_seq_length * gib_a_token * (quantized if spec.model.quantization == "nf4" else 1.0)
        size *= spec.data.max_chunks if spec.data.long_text == "chunk" else 1
        memory = MemoryEstimate(card={"all": round(size * GIB)}, host={"all": GIB})
        return JobForecast(memory=memory, work=WORK, dtype="bf16")

    return ask


def test_the_longest_texts_that_fit_are_named_where_nothing_else_helps() -> None:
    assert remedies_of(job(), 10, ask=by_length(1 / 32)) == ("It fits with data.max_seq_length: 256 (8.00 GiB a rank).")
    # Of 512 tokens, less than a sixteenth.
    assert remedies_of(job(), 10, ask=by_length(1 / 2)).startswith("It fits with data.max_seq_length: 16 ")


def test_together_too_no_size_is_cut_further_than_it_must() -> None:
    asked = job()
    asked = replace(asked, spec=replace(asked.spec, data=replace(asked.spec.data, long_text="chunk", max_chunks=4)))
    assert remedies_of(asked, 8, ask=by_length(1 / 2, quantized=1 / 10)) == (
        "It fits with model.quantization: nf4 and data.max_seq_length: 128 and data.max_chunks: 1 (6.40 GiB a rank)."
    )


def test_a_plan_says_of_each_file_and_number_of_ranks_what_came_nearest() -> None:
    choice = chosen(job(per_device_train_batch_size=8), 10, 10)
    lines = why_not(choice)
    assert lines[0] == "not zero1, batch 8 x 1, one rank: needs 14.00 GiB a rank"
    assert sum("zero1, batch" in line and "one rank" in line for line in lines) == 2  # and the fastest that is slower
    refused = chosen(job("deepspeed", per_device_train_batch_size=8), 5)
    assert why_not(refused) == [
        "not zero1, batch 1 x 8, one rank, gradient checkpointing: needs 6.33 GiB a rank; 7 of the same file and ranks "
        "no less"
    ]


def test_what_is_known_not_to_fit_is_not_called_slower() -> None:
    choice = chosen(job(per_device_train_batch_size=8), 6)
    assert choice.refusal is None and choice.setting.deepspeed.endswith("zero3_offload_param.json")
    zero1 = [lost for lost in choice.lost if lost.setting.deepspeed.endswith("zero1.json")]
    assert zero1 and all(lost.too_large and lost.why.startswith("needs") for lost in zero1)


def test_ranks_that_no_equal_cards_could_hold_are_not_blamed_on_other_jobs() -> None:
    choice = chosen(job(per_device_train_batch_size=8), 24, 12)
    wide = [lost.why for lost in choice.lost if lost.setting.num_ranks == 2]
    assert wide and set(wide) == {"no more than 1 of the cards are equal"}
