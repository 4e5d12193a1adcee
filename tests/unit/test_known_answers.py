"""A question that was answered in an earlier run of a study is not asked again; what could change the answer is new."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launcher.forecast import ForecastProcess
from launcher.known_answers import KnownAnswers, key_of
from training.errors import UserError
from training.spec import DataSpec, JobSpec, ModelSpec

WORK = {"parameters": 1, "layers": 1, "tokens": 1, "evaluated_tokens": 1, "steps": 1}


def spec_of(**settings: Any) -> JobSpec:
    defaults: dict[str, Any] = {
        "name": "a", "output_dir": "o", "data": DataSpec(dataset_name="imdb"), "deepspeed": {},
        "model": ModelSpec(model_name_or_path="m"),
    }  # fmt: skip
    return JobSpec(**{**defaults, **settings})


def asked_for(monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any]) -> list[dict[str, Any]]:
    """Have the trainer's process answer so; return the list of what it is asked."""
    questions: list[dict[str, Any]] = []

    def ask(_: ForecastProcess, question: dict[str, Any]) -> dict[str, Any]:
        questions.append(question)
        return answer

    monkeypatch.setattr(ForecastProcess, "_ask", ask)
    return questions


def test_a_second_run_asks_nothing_and_starts_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = asked_for(monkeypatch, {"ok": True, "work": WORK})
    file = tmp_path / "forecasts.jsonl"
    for seed in (0, 1):  # jobs that differ in their seed are answered alike
        with ForecastProcess(on_card=True, known=KnownAnswers(file)) as process:
            assert process.work(spec_of(seed=seed, name=f"seed{seed}"), "file", ["hash"]).steps == 1
            assert process.process is None
    assert len(questions) == 1


@pytest.mark.parametrize(
    "other", [{"data_content": ["other"]}, {"source": "other"}, {"spec": spec_of(num_ranks=2)}], ids=str
)
def test_what_could_change_the_answer_is_another_question(
    other: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = asked_for(monkeypatch, {"ok": True, "work": WORK})
    with ForecastProcess(on_card=True, known=KnownAnswers(tmp_path / "forecasts.jsonl")) as process:
        question: dict[str, Any] = {"spec": spec_of(), "source": "file", "data_content": ["hash"]}
        process.work(**question)
        process.work(**{**question, **other})
    assert len(questions) == 2


def test_a_local_model_that_changed_is_another_question(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    question = {"spec": spec_of(model=ModelSpec(model_name_or_path=str(tmp_path))).to_dict()}
    before = key_of(question, [])
    assert key_of(question, []) == before
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    assert key_of(question, []) == before
    (tmp_path / "tokenizer.json").write_text("{}")
    assert key_of(question, []) != before


def test_a_refusal_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = asked_for(monkeypatch, {"ok": False, "error": "no such model"})
    with ForecastProcess(on_card=True, known=KnownAnswers(tmp_path / "forecasts.jsonl")) as process:
        for _ in range(2):
            assert isinstance(process.forecast(spec_of(), "file"), UserError)
    assert len(questions) == 2


def test_a_damaged_line_costs_its_answer_alone(tmp_path: Path) -> None:
    file = tmp_path / "forecasts.jsonl"
    KnownAnswers(file).add("one", {"ok": True})
    with file.open("a") as stream:
        stream.write('{"key": "torn", "ans\n[1]\n{"key": "damaged", "answer": {}}\n')
    KnownAnswers(file).add("two", {"ok": True})
    assert KnownAnswers(file).answers == {"one": {"ok": True}, "two": {"ok": True}}
