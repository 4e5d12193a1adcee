"""What `shoal predict` writes of logits, and what it says on the way."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import training.predict
from training.corpus.stream import Row
from training.predict import RowProgress, softmax, to_columns

ROWS = [Row(number=1, id="x", text="a"), Row(number=2, id=None, text="b")]
LOGITS = np.array([[0.0, np.log(3.0)], [1e4, -1e4]], dtype=np.float32)


def test_columns() -> None:
    assert to_columns(ROWS, LOGITS, ["no", "yes"], with_id=True, probabilities=True) == {
        "row": [1, 2],
        "id": ["x", None],
        "prediction": ["yes", "no"],
        "probability": [0.75, 1.0],
        "probability_no": [0.25, 1.0],
        "probability_yes": [0.75, 0.0],
    }
    plain = to_columns(ROWS, LOGITS, ["no", "yes"], with_id=False, probabilities=False)
    assert list(plain) == ["row", "prediction", "probability"]


def test_softmax_of_large_logits_is_finite() -> None:
    np.testing.assert_allclose(softmax(LOGITS), [[0.25, 0.75], [1.0, 0.0]], atol=1e-7)


def test_progress_is_said_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seconds = itertools.count()
    monkeypatch.setattr(training.predict.time, "monotonic", lambda: next(seconds))
    progress = RowProgress("predicted", 2000)
    for _ in range(200):
        progress.advance(10)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "predicted 50 of 2,000 rows  10 rows/s  ETA 3:15"
    assert [int(line.split()[1].replace(",", "")) // 10 for line in lines] == [5, 15, 35, 75, 135, 195]
