"""What a real job leaves in its folder besides what other tests load: event files for TensorBoard, the model card."""

from __future__ import annotations

import pytest
from conftest import Train, read_events
from huggingface_hub import ModelCard
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.result import read_result


def test_tensorboard_has_the_figures_of_the_events(trained: Train) -> None:
    folder = trained("fp32")
    board = EventAccumulator(str(folder / "tensorboard")).Reload()
    steps = read_events(folder, "step")
    assert len(steps) == 10
    for tag, name in (("train/loss", "loss"), ("train/learning_rate", "learning_rate")):
        shown = [(event.step, event.value) for event in board.Scalars(tag)]
        assert shown == [(event["step"], pytest.approx(event[name])) for event in steps]
    shown = [(event.step, event.value) for event in board.Scalars("validation/accuracy")]
    assert shown == [(e["step"], pytest.approx(e["accuracy"])) for e in read_events(folder, "evaluation")]
    result = read_result(folder)
    assert result is not None
    assert board.Scalars("result/test_macro_f1")[0].value == pytest.approx(result.test["macro_f1"])


def test_the_adapters_card_is_the_jobs(trained: Train) -> None:
    folder = trained("fp32")
    result = read_result(folder)
    assert result is not None
    card = ModelCard.load(folder / "adapter" / "README.md")
    assert card.data.base_model == "tiny" and card.data.library_name == "peft"
    [accuracy] = [
        item for item in card.data.eval_results or [] if (item.dataset_split, item.metric_type) == ("test", "accuracy")
    ]
    assert accuracy.metric_value == pytest.approx(result.test["accuracy"], abs=1e-6)
    assert "| kitchen |" in card.text and "[More Information Needed]" not in card.text
