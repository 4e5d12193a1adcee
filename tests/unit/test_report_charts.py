"""Charts put values where they belong, and the readers behind them read what a run wrote."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from launcher.report import charts
from launcher.report.charts import BarRow, Series, Stretch, Whisker
from launcher.report.examples import Predictions, hardest, most_confident_mistakes
from launcher.report.scale import duration, scale_of, seconds_step, tick_texts
from launcher.report.study_files import Stay, clock_of, read_curve, read_stays, thinned, tracks


def drawn(chart: str, name: str, look: str) -> list[ET.Element]:
    """Return the elements of one class; the chart must be well-formed XML too."""
    return [item for item in ET.fromstring(chart).iter(name) if item.get("class") == look]


def percent(place: str | None) -> float:
    """Return the value 0 to 100 of a place in a row chart, without its edges."""
    assert place is not None and place.endswith("%")
    return (float(place[:-1]) - charts.EDGE) / (100 - 2 * charts.EDGE) * 100


def test_scales_have_round_ends_and_ticks() -> None:
    scale = scale_of([0.213, 0.78])
    assert (scale.low, scale.high) == (0.2, 0.8) and tick_texts(scale, percent=True) == ["20", "40", "60", "80"]
    assert scale.fraction(0.5) == pytest.approx(0.5) and scale.fraction(9) == 1
    assert scale_of([5.0, 5.0]).fraction(5.0) == 0 and scale_of([]).ticks
    assert scale_of([0.0, float("nan"), 0.9], low=0.0, high=1.0).ticks[-1] == 1
    assert tick_texts(scale_of([1.2, 2.9])) == ["1.0", "1.5", "2.0", "2.5", "3.0"]


def test_times_are_written_as_people_say_them() -> None:
    assert [duration(value) for value in (0.4, 59, 60, 3725, 90000)] == ["0 s", "59 s", "1 min", "1 h 2 min", "1 d 1 h"]
    assert seconds_step(100) == 20 and seconds_step(3000) == 600 and seconds_step(86400 * 30) == 86400 * 6


def test_dots_and_whiskers_stand_at_their_values() -> None:
    rows = [
        Whisker(label="a", value=0.5, low=0.25, high=1.0, text="50"),
        Whisker(label="b", value=0.0, text="0", hollow=True),
    ]
    chart = charts.dot_chart("t", "d", rows, reference=0.75)
    (dot,) = drawn(chart, "circle", "dot")
    assert percent(dot.get("cx")) == pytest.approx(50)
    whisker = drawn(chart, "line", "whisker")[0]
    assert [percent(whisker.get(end)) for end in ("x1", "x2")] == pytest.approx([25, 100], abs=0.1)
    (line,) = drawn(chart, "line", "reference")
    assert percent(line.get("x1")) == pytest.approx(75, abs=0.1)
    assert percent(drawn(chart, "svg", "overflowing")[0].get("x")) == pytest.approx(0)


def test_bars_are_as_long_as_their_values() -> None:
    chart = charts.bar_chart("t", "d", [BarRow(label="a", bars=[(2.0, "forecast"), (1.0, "measured")], text="")])
    lengths = [
        float((drawn(chart, "rect", f"bar {kind}")[0].get("width") or "")[:-1]) for kind in ("forecast", "measured")
    ]
    assert lengths == pytest.approx([100 - 2 * charts.EDGE, (100 - 2 * charts.EDGE) / 2])


def test_lines_go_through_their_points() -> None:
    line = Series(label="<a>", points=[(0.0, 0.0), (0.5, 1.0), (1.0, 0.5)], style=3, markers=True)
    chart = charts.line_chart("t", "d", [line], x_title="x", y_title="y")
    (drawn_line,) = drawn(chart, "polyline", "line s3")
    places = [tuple(map(float, place.split(","))) for place in (drawn_line.get("points") or "").split()]
    left, right = charts.LEFT, charts.WIDTH - charts.RIGHT
    top, bottom = charts.TOP, charts.HEIGHT - charts.BOTTOM
    assert places == [(left, bottom), ((left + right) / 2, top), (right, (top + bottom) / 2)]
    assert len(drawn(chart, "polygon", "marker s3")) == 3


def test_a_time_line_has_each_job_on_its_card_at_its_time() -> None:
    stretches = [
        Stretch(lane=0, start=0, end=50, label="a", style=0),
        Stretch(lane=2, start=50, end=100, label="b", style=None, kind="failed"),
    ]
    chart = charts.gantt("t", "d", [("card x:0", 2), ("card x:1", 1)], stretches, 100.0, cuts=[50.0])
    first, second = [item for item in ET.fromstring(chart).iter("svg") if item.get("height") == "20"]
    assert [percent(item.get("x")) for item in (first, second)] == pytest.approx([0, 50])
    assert int(second.get("y") or 0) > int(first.get("y") or 0) + 44
    assert drawn(chart, "rect", "stretch neutral failed") and len(drawn(chart, "line", "reference")) == 1


def test_styles_differ_in_more_than_colour() -> None:
    css = files("launcher.report").joinpath("report.css").read_text(encoding="utf-8")
    rules = dict(re.findall(r"^\.line\.s(\d) \{ stroke: var\(--s\d\);(.*)\}$", css, re.MULTILINE))
    assert sorted(rules) == [str(style) for style in range(charts.NUM_STYLES)]
    assert len(set(rules.values())) == charts.NUM_STYLES
    shapes = {re.sub(r"s\d", "", charts.marker(style, 0, 0)) for style in range(charts.NUM_STYLES)}
    assert len(shapes) == 4


def test_a_curve_counts_a_step_that_ran_twice_once_and_is_thinned(tmp_path: Path) -> None:
    events = [{"kind": "step", "step": step, "epoch": step / 1000, "loss": 9.0} for step in range(1, 501)]
    events += [{"kind": "step", "step": step, "epoch": step / 1000, "loss": 1.0} for step in range(401, 1001)]
    events += [{"kind": "evaluation", "split": "validation", "step": 1000, "epoch": 1.0, "accuracy": 0.5}]
    text = "\n".join(json.dumps(event) for event in events)
    (tmp_path / "events.jsonl").write_text(text + '\n{"kind": "step", "st')
    curve = read_curve(tmp_path, "a")
    assert len(curve.loss) == 60 and curve.loss[-1] == (1.0, 1.0) and curve.loss[0][1] == 9.0
    assert {loss for _, loss in curve.loss if loss not in (1.0, 9.0)} == set()
    assert curve.validation == {"accuracy": [(1.0, 0.5)], "macro_f1": [], "loss": []}
    assert read_curve(tmp_path / "nothing", "b").loss == []
    assert thinned([(1.0, 2.0), (2.0, 4.0)], most=1) == [(2.0, 3.0)]


def test_stays_on_cards_survive_a_launcher_that_was_killed(tmp_path: Path) -> None:
    lines = [(0, "start", "a"), (5, "start", "b"), (10, "end", "b"), (1000, "start", "a"), (1010, "end", "a"),
             (1020, "start", "c")]  # fmt: skip
    content = [json.dumps({"time": time, "event": event, "job": job, "cards": ["x:10"]}) for time, event, job in lines]
    (tmp_path / "placements.jsonl").write_text("\n".join(content))
    folder = tmp_path / "jobs" / "c"
    folder.mkdir(parents=True)
    (folder / "events.jsonl").write_text('{"time": 1050}\n')
    stays = [(stay.job, stay.start, stay.end, stay.open) for stay in read_stays(tmp_path)]
    assert stays == [("a", 0, 1000, True), ("b", 5, 10, False), ("a", 1000, 1010, False), ("c", 1020, 1050, True)]


def test_jobs_that_share_a_card_get_tracks_and_pauses_are_cut_out() -> None:
    stays = [Stay(job=job, card=card, start=start, end=end) for job, card, start, end in
             (("a", "x:10", 0, 10), ("b", "x:10", 5, 20), ("c", "x:10", 12, 15), ("d", "x:2", 1020, 1030))]  # fmt: skip
    cards = tracks(stays)
    assert [(card, [[stay.job for stay in track] for track in lanes]) for card, lanes in cards.items()] == [
        ("x:2", [["d"]]), ("x:10", [["a", "c"], ["b"]]),
    ]  # fmt: skip
    clock = clock_of(stays)
    assert clock.pauses == [(20, 1020)] and clock.seconds == 30 and clock.place(1025) == 25 and clock.place(500) == 20


def predictions(probabilities: list[list[float]]) -> Predictions:
    count = len(probabilities)
    return Predictions(
        ids=[f"test:{row}" for row in range(count)], texts=[f"text {row}" for row in range(count)],
        labels=["a"] * count, label_names=["a", "b", "c"], probabilities=np.asarray(probabilities),
    )  # fmt: skip


def test_the_hardest_texts_are_those_most_jobs_miss_by_far() -> None:
    jobs = [predictions([[0.9, 0.1, 0.0], [0.1, 0.9, 0.0], [0.3, 0.3, 0.4], [0.2, 0.8, 0.0]]) for _ in range(2)]
    jobs.append(predictions([[0.1, 0.9, 0.0], [0.0, 0.1, 0.9], [0.4, 0.2, 0.4], [0.9, 0.1, 0.0]]))
    found = hardest(jobs)
    assert [(item.id, item.prediction, item.num_wrong) for item in found] == [
        ("test:1", "b", 3), ("test:2", "c", 2), ("test:3", "b", 2),
    ]  # fmt: skip
    assert found[0].label_probability == pytest.approx(0.2 / 3)
    assert hardest([]) == []


def test_the_most_confident_mistakes_come_first() -> None:
    found = most_confident_mistakes(predictions([[0.9, 0.1, 0.0], [0.4, 0.6, 0.0], [0.1, 0.1, 0.8]]), count=5)
    assert [(item.id, item.prediction, item.prediction_probability) for item in found] == [
        ("test:2", "c", 0.8), ("test:1", "b", 0.6),
    ]  # fmt: skip
    assert found[0].text == "text 2"
