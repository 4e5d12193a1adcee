"""Sections of the page on the models: how they learnt, and what the best gets right, misses and is sure of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from launcher.report.answer import METRIC_NAMES
from launcher.report.charts import BarRow, Series, bar_chart, legend, line_chart
from launcher.report.elements import Column, Content, figure, folded, join, scrolling, table, tag
from launcher.report.examples import Example
from launcher.report.material import PageMaterial
from launcher.report.page_results import LONG_TABLE, points
from launcher.report.study_files import Curve

MAX_CONFUSION = 25
"""Classes a confusion matrix is drawn for; above, and always beside it, stand the classes confused most."""
SHADES = 6
"""Of a confusion matrix's cells, .h0 to .h6 in report.css."""
MAX_PAIRS = 10

Scores = dict[str, Any]


def curve_section(material: PageMaterial) -> Markup | None:
    """Return the training loss and the validation metric over the epochs."""
    if not material.curves:
        return None
    styles = material.styles()
    metric = material.report["metric"]
    losses = [_series(curve, curve.loss, styles) for curve in material.curves if curve.loss]
    validated = [_series(curve, curve.validation[metric], styles, markers=True)
                 for curve in material.curves if curve.validation[metric]]  # fmt: skip
    name = f"validation {METRIC_NAMES[metric]}"
    shown = [
        figure(title, line_chart(title, _ends(series), series, x_title="epoch", y_title=y_title, percent=percent))
        for title, series, y_title, percent in (
            ("Training loss", losses, "loss", False),
            (name[0].upper() + name[1:], validated, name if metric == "loss" else f"{name}, %", metric != "loss"),
        )
        if series
    ]
    names: dict[int | None, str] = {}
    for group in material.report["groups"]:
        style = styles[group["jobs"][0]]
        names[style] = "other settings" if style is None else group["name"]
    drawn = {styles[curve.job] for curve in material.curves}
    entries = [(style, names[style]) for style in sorted(drawn, key=lambda item: math.inf if item is None else item)]
    total = len(material.jobs("succeeded"))
    some = f" {len(material.curves)} of {total} jobs are drawn." if len(material.curves) < total else ""
    note = f"A line a job; seeds of a setting look alike.{some}"
    return join((
        tag("h2", "Learning curves"), tag("div", *shown, class_="pair"), legend(entries), tag("p", note, class_="note"),
    ))  # fmt: skip


def _series(
    curve: Curve, line: Sequence[tuple[float, float]], styles: dict[str, int | None], *, markers: bool = False
) -> Series:
    return Series(label=curve.job, points=line, style=styles[curve.job], markers=markers)


def _ends(series: Sequence[Series]) -> str:
    """Return in words where lines begin and end."""
    return "; ".join(f"{line.label}: from {line.points[0][1]:.3g} to {line.points[-1][1]:.3g}" for line in series)


def best_sections(material: PageMaterial) -> list[Markup]:
    """Return what the best job of each data does: by class, confused, calibrated, and texts to look at."""
    sections = []
    for index in material.report["best"]:
        group = material.report["groups"][index]
        job = material.chosen(group)
        scores = job.get("scores", {}).get(group["split"])
        data = material.data_name(group)
        if scores:
            where = f"{job['name']}, on {group['split']} ({scores['num_samples']:,.0f} texts)"
            sections += [
                join(
                    (
                        tag("h2", f"The best by class{data}"),
                        tag("p", where, class_="note"),
                        _overall(scores),
                        _per_class(scores),
                    )
                ),
            ]
        if scores and "confusion" in scores:
            sections += [
                join((tag("h2", f"What the best confuses{data}"), _confusion(scores))),
                join((tag("h2", f"How sure the best is{data}"), _reliability(scores))),
            ]
        examples = material.examples.get(index)
        if examples and (examples.hardest or examples.mistakes):
            sections.append(join((
                tag("h2", f"Texts to look at{data}"),
                tag("p", "Where every model agrees and the label does not, the label may be the mistake."),
                tag("div", _texts("Most confident mistakes of the best", examples.mistakes),
                    _texts("Hardest texts, over all jobs on this data", examples.hardest), class_="pair"),
            )))  # fmt: skip
    return sections


def _overall(scores: Scores) -> Markup | None:
    """Return the figures of multi-label data, where accuracy says little."""
    if "map" not in scores:
        return None
    names = {
        "accuracy": "all labels of a text right", "micro_f1": "micro F1", "macro_f1": "macro F1",
        "weighted_f1": "weighted F1", "samples_f1": "F1 by text", "map": "mean average precision",
    }  # fmt: skip
    figures = [f"{what} {points(scores[name])} %" for name, what in names.items() if scores[name] is not None]
    return tag("p", ", ".join(figures), ".")


def _per_class(scores: Scores) -> Markup:
    """Return precision, recall and F1 of each class, the worst first."""
    classes = sorted(scores["per_class"], key=lambda item: item["f1"])
    bars = [BarRow(label=item["label"], bars=[(item["f1"], "measured")], text=points(item["f1"])) for item in classes]
    rows: list[list[Content]] = [
        [
            tag("bdi", item["label"]), points(item["f1"]), points(item["precision"]), points(item["recall"]),
            f"{item['support']:,}", f"{item['predicted']:,}",
        ]
        for item in classes
    ]  # fmt: skip
    titles = ("F1 %", "precision %", "recall %", "texts", "predicted")
    columns: list[Column | str] = ["class", *(Column(title=title, numeric=True) for title in titles)]
    description = "; ".join(f"{row.label} {row.text}" for row in bars[:LONG_TABLE])
    title = "F1 by class, %, the worst first"
    if len(classes) > LONG_TABLE:
        title = f"F1 by class, %: the worst {LONG_TABLE} of {len(classes)}"
    chart = bar_chart(title, description, bars[:LONG_TABLE], high=1.0, percent=True)
    listed = table("By class, the worst first", columns, rows)
    beside = folded(f"All {len(classes)} classes", listed) if len(classes) > LONG_TABLE else listed
    return tag("div", figure(title, chart), tag("div", beside), class_="pair")


def _confusion(scores: Scores) -> Markup:
    """Return the confusion matrix, where it can be read, and the classes confused most."""
    labels = [item["label"] for item in scores["per_class"]]
    matrix = scores["confusion"]
    pairs = sorted(
        ((count, true, guess) for true, row in enumerate(matrix) for guess, count in enumerate(row)
         if count and true != guess), reverse=True,
    )[:MAX_PAIRS]  # fmt: skip
    rows: list[list[Content]] = [
        [tag("bdi", labels[true]), tag("bdi", labels[guess]), count, points(count / sum(matrix[true]))]
        for count, true, guess in pairs
    ]
    numeric = [Column(title=title, numeric=True) for title in ("texts", "% of class")]
    columns: list[Column | str] = ["true class", "predicted", *numeric]
    listed = table("Confused most", columns, rows) if rows else tag("p", "Nothing was confused.")
    if len(labels) > MAX_CONFUSION:
        note = f"The matrix of {len(labels)} classes is in tables/confusion.csv."
        return join((listed, tag("p", note, class_="note")))
    return tag("div", tag("div", _matrix(labels, matrix)), tag("div", listed), class_="pair")


def _matrix(labels: list[str], matrix: list[list[int]]) -> Markup:
    """Return the confusion matrix as a table, shaded by the share of the true class; columns go by number."""
    head = tag(
        "tr", tag("th", "true \\ predicted", scope="col"),
        *(tag("th", number, scope="col", title=label, class_="number") for number, label in enumerate(labels, start=1)),
    )  # fmt: skip
    body = []
    for number, (label, row) in enumerate(zip(labels, matrix, strict=True)):
        total = sum(row) or 1
        cells = [
            tag(
                "td",
                count or "·",
                class_=f"h{math.ceil(SHADES * count / total)}" + (" right" if column == number else ""),
            )
            for column, count in enumerate(row)
        ]
        body.append(tag("tr", tag("th", f"{number + 1} ", tag("bdi", label), scope="row"), *cells))
    caption = "Texts by true class (row) and predicted class (column, by the number of its row); outlined: right"
    return scrolling(caption, tag("thead", head), tag("tbody", *body), class_="confusion")


def _reliability(scores: Scores) -> Markup:
    """Return how often the best is right against how sure it says it is."""
    bins = [item for item in scores["reliability"] if item["count"]]
    line = Series(label="the best", points=[(item["confidence"], item["accuracy"]) for item in bins], markers=True)
    ideal = Series(label="as sure as right", points=[(0.0, 0.0), (1.0, 1.0)], style=None)
    description = "; ".join(
        f"{100 * item['confidence']:.0f} % sure, {100 * item['accuracy']:.0f} % right, {item['count']} texts"
        for item in bins
    )
    title = "How often it is right, by how sure it is"
    chart = line_chart(
        title, description, [ideal, line], x_title="probability of the predicted class, %", y_title="right, %",
        percent=True, x_range=(0.0, 1.0), y_range=(0.0, 1.0),
    )  # fmt: skip
    surer = sum(item["count"] * (item["confidence"] - item["accuracy"]) for item in bins) / sum(
        item["count"] for item in bins
    )
    verdict = (
        f"On average it is {100 * abs(surer):.1f} points {'surer' if surer > 0 else 'less sure'} than it is right "
        f"(expected calibration error {100 * scores['ece']:.1f} points)."
    )
    rows: list[list[Content]] = [[points(item["confidence"]), points(item["accuracy"]), item["count"]] for item in bins]
    columns = [Column(title=title, numeric=True) for title in ("sure %", "right %", "texts")]
    names = (("log loss", "log_loss"), ("Brier score", "brier"), ("Matthews correlation", "mcc"))
    figures = ", ".join(f"{name} {scores[key]:.3f}" for name, key in names if scores.get(key) is not None)
    return tag(
        "div",
        figure(title, chart, legend([(0, "the best"), (None, "as sure as right")])),
        tag(
            "div",
            tag("p", verdict),
            tag("p", f"{figures}." if figures else ""),
            table("By how sure it is", columns, rows),
        ),
        class_="pair",
    )


def _texts(heading: str, examples: Sequence[Example]) -> Markup | None:
    """Return a list of texts with their labels and predictions."""
    if not examples:
        return None
    items = []
    for example in examples:
        verb = "predicted" if example.num_jobs == 1 else "most often taken for"
        said = f"labelled {example.label} ({100 * example.label_probability:.0f} %), {verb} {example.prediction} "
        said += f"({100 * example.prediction_probability:.0f} %)"
        if example.num_jobs > 1:
            said += f"; {example.num_wrong} of {example.num_jobs} jobs wrong"
        quote = tag("blockquote", example.text, dir="auto") if example.text is not None else None
        items.append(tag("li", tag("div", tag("bdi", said), " ", tag("code", example.id), class_="said"), quote))
    if any(example.text is None for example in examples):
        items.append(tag("li", "The texts were not kept: the job is of an older Shoal. Run it again to keep them."))
    return tag("div", tag("h3", heading), tag("ol", *items, class_="examples"))
