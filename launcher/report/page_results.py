"""Sections of the page on what came out: the answer, settings beside baselines, which differences are real."""

from __future__ import annotations

import json
from typing import Any

from markupsafe import Markup

from launcher.report.answer import METRIC_NAMES, accuracy_name, answer, code_that_was_run, how_many_ran
from launcher.report.charts import Whisker, dot_chart
from launcher.report.elements import Column, Content, figure, folded, join, paragraphs, table, tag
from launcher.report.groups import seeds
from launcher.report.markdown_page import describe
from launcher.report.material import Group, PageMaterial, evaluated, rivals
from launcher.report.stopped import what_was_saved

MAX_CHART_ROWS = 12
"""Settings in a chart; the table has all."""
MAX_MATRIX = 8
"""Settings in the matrix of differences, which a phone must show."""
MAX_COMPARISONS = 100
"""In the list of differences; tables/comparisons.csv has all."""
LONG_TABLE = 20
"""Rows from which a table is folded."""


def points(mean: float | None, std: float | None = None) -> str:
    """Return a share as percent with one decimal, and its deviation."""
    if mean is None:
        return "–"
    return f"{100 * mean:.1f}" + (f" ± {100 * std:.1f}" if std is not None else "")


def between(interval: list[float] | None) -> str:
    """Return an interval of shares in percent."""
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}" if interval else "–"


def head_section(material: PageMaterial) -> Markup:
    """Return the study's name, its answer, and how many jobs it rests on."""
    report = material.report
    counts = how_many_ran(report)
    selection = report.get("selection")
    if selection and report["groups"]:
        metric = METRIC_NAMES.get(selection["metric"], selection["metric"])
        counts += f" {selection['num_tried']} settings were tried; {metric} on {selection['split']} chose among them."
    return tag(
        "header",
        tag("h1", f"Study {report['study']}"),
        tag("div", paragraphs(answer(report)), class_="answer"),
        tag("p", counts),
        tag("p", saved) if (saved := what_was_saved(report)) else None,
        tag("p", tag("strong", trusted)) if (trusted := code_that_was_run(report)) else None,
    )


def leaderboard_sections(material: PageMaterial) -> list[Markup]:
    """Return the settings of each data beside the baselines."""
    sections = []
    for groups in rivals(material.report):
        data = material.data_name(groups[0])
        baselines = [item for item in material.report["baselines"] if item["sha256"] == groups[0]["sha256"]]
        sections.append(join((tag("h2", f"Settings{data}"), _dots(groups, baselines), *_leaders(groups, baselines))))
    if not sections and material.report["baselines"]:
        rows = [_baseline_row(item) for item in material.report["baselines"]]
        sections.append(join((tag("h2", "Baselines"), table("No setting to compare with yet", COLUMNS, rows))))
    return sections


COLUMNS = (
    "setting", Column(title="seeds", numeric=True), Column(title="accuracy %", numeric=True),
    Column(title="95 % interval", numeric=True), Column(title="macro F1 %", numeric=True),
    Column(title="validation accuracy %", numeric=True), "what varies",
)  # fmt: skip


def _dots(groups: list[Group], baselines: list[dict[str, Any]]) -> Markup:
    """Return the chart of accuracies."""
    shown = groups[:MAX_CHART_ROWS]
    rows = []
    for group in shown:
        interval = group.get("interval", {}).get("accuracy")
        low, high = [min(max(end, 0.0), 1.0) for end in interval] if interval else (None, None)
        figures = points(group["accuracy_mean"]) + (f" ({between(interval)})" if interval else "")
        rows.append(Whisker(label=group["name"], value=group["accuracy_mean"], low=low, high=high, text=figures))
    rows += [
        Whisker(label=item["name"], value=item["accuracy"], text=points(item["accuracy"]), hollow=True)
        for item in baselines
    ]
    best = max((item["accuracy"] for item in baselines), default=None)
    note = "Dot: mean over seeds; whisker: 95 % interval; square: baseline; dashed line: the best baseline."
    if len(groups) > len(shown):
        note += f" The best {len(shown)} of {len(groups)} settings by validation."
    description = "; ".join(f"{row.label} {row.text}" for row in rows)
    chart = dot_chart("Accuracy of settings and baselines, in percent", description, rows, reference=best)
    title = f"{accuracy_name(groups[0]).capitalize()} on {groups[0]['split']}, %"
    return figure(title, chart, tag("p", note, class_="note"), wide=True)


def _leaders(groups: list[Group], baselines: list[dict[str, Any]]) -> list[Content]:
    """Return the table of settings, the best by validation first, and the baselines."""
    varying = _varying(groups)
    rows: list[list[Content]] = [
        [
            tag("strong", group["name"]) if index == 0 and not group.get("num_stopped") else group["name"],
            seeds(group),
            points(group["accuracy_mean"], group["accuracy_std"]),
            between(group.get("interval", {}).get("accuracy")),
            points(group["macro_f1_mean"], group["macro_f1_std"]),
            points(group["validation_accuracy_mean"], group["validation_accuracy_std"]),
            describe({key: value for key, value in group["settings"].items() if key in varying}),
        ]
        for index, group in enumerate(groups)
    ]
    baseline_rows = [_baseline_row(item) for item in baselines]
    method = next((group["interval_method"] for group in groups if group.get("interval_method")), "")
    note = "Ordered by validation; the test split chooses nothing. ± is the sample standard deviation over seeds." + (
        f" Interval: {method}." if method else ""
    )
    caption = f"Settings, evaluated on {groups[0]['split']}"
    first = table(caption, COLUMNS, [*rows[:LONG_TABLE], *baseline_rows])
    rest = rows[LONG_TABLE:]
    more = folded(f"The other {len(rest)} settings", table("The other settings", COLUMNS, rest)) if rest else None
    return [first, more, tag("p", note, class_="note")]


def _varying(groups: list[Group]) -> set[str]:
    """Return the settings in which these groups differ: of several data or studies, others than in the whole report."""
    keys = {key for group in groups for key in group["settings"]}
    return {key for key in keys if len({json.dumps(group["settings"].get(key)) for group in groups}) > 1}


def _baseline_row(item: dict[str, Any]) -> list[Content]:
    f1 = points(item["macro_f1"])
    return [item["name"], "–", points(item["accuracy"]), "–", f1, "–", f"baseline, on {item['split']}"]


def difference_sections(material: PageMaterial) -> list[Markup]:
    """Return which differences between settings are real, for each data with more than one thing to compare."""
    sections = []
    for groups in rivals(material.report):
        found = [item for item in material.report.get("comparisons", []) if item["sha256"] == evaluated(groups[0])]
        if not found:
            continue
        names = [group["name"] for group in groups]
        named = {name for item in found for name in (item["a"], item["b"])}
        names = [name for name in [*names, *sorted(named - set(names))] if name in named]
        heading = tag("h2", f"Which differences are real{material.data_name(groups[0])}")
        surest = sorted(found, key=lambda item: item["p_holm"])[:MAX_COMPARISONS]
        every = "In full" if len(surest) == len(found) else f"The surest {len(surest)} of {len(found)} comparisons"
        content: list[Content] = [_matrix(names[:MAX_MATRIX], found)]
        if len(names) > MAX_MATRIX:
            content.append(tag("p", f"The best {MAX_MATRIX} of {len(names)} settings by validation.", class_="note"))
        content.append(folded(every, _difference_table(surest)))
        sections.append(join((heading, *content)))
    return sections


def _matrix(names: list[str], comparisons: list[dict[str, Any]]) -> Markup:
    """Return the differences of rows minus columns."""
    known = {}
    for item in comparisons:
        known[item["a"], item["b"]] = (item["difference"], item)
        known[item["b"], item["a"]] = (-item["difference"], item)
    rows: list[list[Content]] = []
    for row in names:
        cells: list[Content] = [row]
        for column in names:
            cells.append(_verdict(*known[row, column]) if (row, column) in known else "–" if row != column else "")
        rows.append(cells)
    caption = "Row minus column, in points, with the p-value (Holm's correction)"
    return table(caption, ["", *names], rows)


def _verdict(difference: float, item: dict[str, Any]) -> Markup:
    """Return a cell of the matrix: its meaning is in words, the colour only repeats it."""
    kind = "no real difference" if not item["real"] else "better" if difference > 0 else "worse"
    look = {"better": "better", "worse": "worse"}.get(kind, "same")
    text = f"{100 * difference:+.1f} (p {p_value(item['p_holm'])})"
    return tag("span", tag("b", kind), tag("br"), text, class_=f"verdict {look}")


def p_value(value: float) -> str:
    """Return a p-value as papers print it."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _difference_table(comparisons: list[dict[str, Any]]) -> Markup:
    rows: list[list[Content]] = [
        [
            f"{item['a']} − {item['b']}", item["split"], f"{100 * item['difference']:+.1f}",
            f"{100 * item['interval'][0]:+.1f} to {100 * item['interval'][1]:+.1f}", p_value(item["p_value"]),
            p_value(item["p_holm"]), f"{item['effect_size']:.2f} ({item['effect']})", item["test"],
            "real" if item["real"] else "no real difference",
        ]
        for item in comparisons
    ]  # fmt: skip
    numeric = ("difference, points", "95 % interval", "p", "p, Holm", "effect size")
    columns: list[Column | str] = [
        "compared",
        "on",
        *(Column(title=title, numeric=True) for title in numeric),
        "test",
        "verdict",
    ]
    return table("Comparisons, the surest first", columns, rows)
