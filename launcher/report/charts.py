"""Charts as inline SVG, from plain values: they need no library, no script and no file, and print well.

Charts made of rows (dots and whiskers, bars, time lines) place marks in percent of their width and text in pixels, so
that they are as readable on a phone as on a wall. Plots (curves, reliability) are drawn in units and scaled as a whole.
Colours are classes of report.css; each series also has a dash and a marker of its own, and a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from launcher.report.elements import Content, join, tag
from launcher.report.scale import Scale, duration, scale_of, seconds_step, tick_texts

NUM_STYLES = 8
"""Styles of series in report.css, .s0 to .s7: a colour and a dash; each has a marker here."""

EDGE = 1.5
"""Percent of a row chart's width that stays free at either side, for marks at the ends."""
ROW = 40
BAR = 9
AXIS = 24
LABEL_BASELINE = 14
"""Pixels: of a row with its label above its marks, a bar, the axis below, and from a row's top to its text."""

WIDTH, HEIGHT = 380, 250
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 12, 40
"""Units: a plot, and what lies around its area."""


@dataclass(frozen=True, kw_only=True)
class Whisker:
    """A row of `dot_chart`: a value with its interval, if there is one."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    text: str
    """The figures, as text at the right."""
    hollow: bool = False
    """A square with nothing in it in place of a dot: what is no setting of the study, a baseline."""


@dataclass(frozen=True, kw_only=True)
class BarRow:
    """A row of `bar_chart`: bars one below the other, each a value and its kind (a class in report.css)."""

    label: str
    bars: Sequence[tuple[float, str]]
    text: str


@dataclass(frozen=True, kw_only=True)
class Series:
    """A line of `line_chart`."""

    label: str
    points: Sequence[tuple[float, float]]
    style: int | None = 0
    """Which of the styles; None for a reference line in grey."""
    markers: bool = False


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """A bar of `gantt`, in seconds from the chart's beginning."""

    lane: int
    start: float
    end: float
    label: str
    style: int | None
    kind: str = ""
    """"failed" or "open"; hatched, and said in words in the label."""


def picture(kind: str, title: str, description: str, *content: Content, **attributes: str | int) -> Markup:
    """Return an SVG image with its title and, for who cannot see it, what it shows."""
    return tag("svg", tag("title", title), tag("desc", description), *content, role="img", class_=kind, **attributes)


def across(fraction: float) -> str:
    """Return a horizontal place in a row chart, in percent of its width."""
    return f"{EDGE + (100 - 2 * EDGE) * fraction:.2f}%"


def dot_chart(title: str, description: str, rows: Sequence[Whisker], *, reference: float | None = None) -> Markup:
    """Return dots with whiskers on an axis in percent; `reference` is a dashed line through all rows."""
    values = [value for row in rows for value in (row.value, row.low, row.high) if value is not None]
    scale = scale_of([*values, *([reference] if reference is not None else [])])
    height = ROW * len(rows)
    marks: list[Content] = [_grid(scale, height, tick_texts(scale, percent=True))]
    if reference is not None:
        place = across(scale.fraction(reference))
        marks.append(tag("line", x1=place, x2=place, y1=0, y2=height, class_="reference"))
    for index, row in enumerate(rows):
        top = ROW * index
        marks += _row_texts(top, row.label, row.text)
        marks.append(_whisker(row, scale, top + 27))
    return picture("rows", title, description, *marks, width="100%", height=height + AXIS)


def _whisker(row: Whisker, scale: Scale, y: int) -> Markup:
    parts: list[Content] = [tag("title", f"{row.label}: {row.text}")]
    if row.low is not None and row.high is not None:
        ends = [across(scale.fraction(value)) for value in (row.low, row.high)]
        parts.append(tag("line", x1=ends[0], x2=ends[1], y1=y, y2=y, class_="whisker"))
        parts += [tag("line", x1=end, x2=end, y1=y - 5, y2=y + 5, class_="whisker") for end in ends]
    place = across(scale.fraction(row.value))
    if row.hollow:
        parts.append(tag("svg", tag("rect", x=-5, y=-5, width=10, height=10, class_="hollow"), **_at(place, y)))
    else:
        parts.append(tag("circle", cx=place, cy=y, r=5, class_="dot"))
    return tag("g", *parts)


def _at(x: str, y: int) -> dict[str, str | int]:
    """Return the attributes of an SVG whose own 0, 0 is that place."""
    return {"x": x, "y": y, "width": 1, "height": 1, "class_": "overflowing"}


def bar_chart(
    title: str, description: str, rows: Sequence[BarRow], *, high: float | None = None, percent: bool = False
) -> Markup:
    """Return horizontal bars from zero."""
    scale = scale_of([value for row in rows for value, _ in row.bars], low=0.0, high=high)
    tall = LABEL_BASELINE + 6 + max((len(row.bars) for row in rows), default=1) * (BAR + 2) + 8
    marks: list[Content] = [_grid(scale, tall * len(rows), tick_texts(scale, percent=percent))]
    for index, row in enumerate(rows):
        top = tall * index
        marks += _row_texts(top, row.label, row.text)
        for number, (value, kind) in enumerate(row.bars):
            width = f"{(100 - 2 * EDGE) * scale.fraction(value):.2f}%"
            y = top + LABEL_BASELINE + 6 + number * (BAR + 2)
            marks.append(tag("rect", x=f"{EDGE}%", y=y, width=width, height=BAR, class_=f"bar {kind}"))
    return picture("rows", title, description, *marks, width="100%", height=tall * len(rows) + AXIS)


def _row_texts(top: int, label: str, text: str) -> list[Content]:
    """Return a row's label at the left and its figures at the right."""
    return [
        tag("text", label, x=f"{EDGE}%", y=top + LABEL_BASELINE, class_="label"),
        tag("text", text, x=f"{100 - EDGE}%", y=top + LABEL_BASELINE, text_anchor="end", class_="figure"),
    ]


def _grid(scale: Scale, height: int, texts: Sequence[str]) -> Markup:
    """Return the lines of a row chart's ticks and their texts below."""
    parts: list[Content] = []
    for tick, text in zip(scale.ticks, texts, strict=True):
        fraction = scale.fraction(tick)
        place = across(fraction)
        parts.append(tag("line", x1=place, x2=place, y1=0, y2=height, class_="grid"))
        parts.append(tag("text", text, x=place, y=height + 16, text_anchor=_anchor(fraction), class_="tick"))
    return tag("g", *parts, class_="axis")


def _anchor(fraction: float) -> str:
    return "start" if fraction < 0.02 else "end" if fraction > 0.98 else "middle"


def gantt(
    title: str, description: str, lanes: Sequence[tuple[str, int]], stretches: Sequence[Stretch], seconds: float,
    cuts: Sequence[float] = (),
) -> Markup:  # fmt: skip
    """Return a time line: for each lane its label and, in so many tracks, what ran in it. `cuts` are breaks in time.

    A stretch's lane counts the tracks of all lanes.
    """
    seconds = max(seconds, 1.0)
    step = seconds_step(seconds)
    ticks = tuple(step * index for index in range(int(seconds / step) + 1))
    scale = Scale(low=0.0, high=seconds, ticks=ticks)
    tops, labels, y = [], [], 0
    for label, tracks in lanes:
        labels.append(tag("text", label, x=f"{EDGE}%", y=y + LABEL_BASELINE, class_="label"))
        tops += [y + LABEL_BASELINE + 6 + 22 * track for track in range(tracks)]
        y += LABEL_BASELINE + 6 + 22 * tracks + 6
    bars = [_stretch(stretch, scale, tops[stretch.lane]) for stretch in stretches]
    breaks = [
        tag("line", x1=across(scale.fraction(cut)), x2=across(scale.fraction(cut)), y1=0, y2=y, class_="reference")
        for cut in cuts
    ]
    grid = _grid(scale, y, [duration(tick) for tick in ticks])
    return picture("rows", title, description, grid, *breaks, *labels, *bars, width="100%", height=y + AXIS)


def _stretch(stretch: Stretch, scale: Scale, top: int) -> Markup:
    start, end = scale.fraction(stretch.start), scale.fraction(stretch.end)
    share = (100 - 2 * EDGE) * (end - start)
    style = "neutral" if stretch.style is None else f"s{stretch.style}"
    text = tag("text", stretch.label, x=5, y=14, class_="within") if share > 4 else None
    return tag(
        "svg",
        tag("title", f"{stretch.label}: {duration(stretch.end - stretch.start)}"),
        tag("rect", x=0, y=0, width="100%", height=20, rx=2, class_=f"stretch {style} {stretch.kind}".strip()),
        text,
        x=across(start), y=top, width=f"{max(share, 0.2):.2f}%", height=20,
    )  # fmt: skip


def line_chart(
    title: str, description: str, series: Sequence[Series], *, x_title: str, y_title: str, percent: bool = False,
    y_range: tuple[float, float] | None = None, x_range: tuple[float, float] | None = None,
) -> Markup:  # fmt: skip
    """Return lines over a common x; an axis without a range spans what is drawn."""
    points = [point for line in series for point in line.points]
    low, high = y_range or (None, None)
    first, last = x_range or (0.0, None)
    x_scale = scale_of([x for x, _ in points], low=first, high=last)
    y_scale = scale_of([y for _, y in points], low=low, high=high)
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    marks: list[Content] = []
    for tick, text in zip(y_scale.ticks, tick_texts(y_scale, percent=percent), strict=True):
        y = place_y(y_scale, tick)
        marks.append(tag("line", x1=LEFT, x2=right, y1=y, y2=y, class_="grid"))
        marks.append(tag("text", text, x=LEFT - 8, y=y + 4, text_anchor="end", class_="tick"))
    for tick, text in zip(x_scale.ticks, tick_texts(x_scale, percent=percent and x_range is not None), strict=True):
        x = place_x(x_scale, tick)
        marks.append(tag("line", x1=x, x2=x, y1=bottom, y2=bottom + 4, class_="grid"))
        marks.append(tag("text", text, x=x, y=bottom + 16, text_anchor="middle", class_="tick"))
    marks.append(tag("text", x_title, x=(LEFT + right) / 2, y=HEIGHT - 6, text_anchor="middle", class_="tick"))
    middle = (TOP + bottom) / 2
    turned = f"rotate(-90 12 {middle:g})"
    marks.append(tag("text", y_title, x=12, y=middle, text_anchor="middle", class_="tick", transform=turned))
    marks += [_line(line, x_scale, y_scale) for line in series]
    return picture("plot", title, description, *marks, viewBox=f"0 0 {WIDTH} {HEIGHT}")


def place_x(scale: Scale, value: float) -> float:
    """Return the x of a value in a plot."""
    return LEFT + (WIDTH - RIGHT - LEFT) * scale.fraction(value)


def place_y(scale: Scale, value: float) -> float:
    """Return the y of a value in a plot."""
    return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * scale.fraction(value)


def _line(line: Series, x_scale: Scale, y_scale: Scale) -> Markup:
    places = [(place_x(x_scale, x), place_y(y_scale, y)) for x, y in line.points]
    style = "reference" if line.style is None else f"s{line.style}"
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    marked = places if line.markers else places[-1:]
    marks = [marker(line.style, x, y) for x, y in marked] if line.style is not None else []
    return tag("g", tag("title", line.label), tag("polyline", points=path, class_=f"line {style}"), *marks)


def marker(style: int, x: float, y: float) -> Markup:
    """Return the marker of a style around a place."""
    shape = [(-4, 0, 4, 0), (-4, -4, 4, -4, 4, 4, -4, 4), (0, -5, 5, 4, -5, 4), (0, -5, 5, 0, 0, 5, -5, 0)][style % 4]
    look = f"marker s{style}"
    if style % 4 == 0:
        return tag("circle", cx=x, cy=y, r=4, class_=look)
    corners = zip(shape[::2], shape[1::2], strict=True)
    return tag("polygon", points=" ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners), class_=look)


def legend(entries: Sequence[tuple[int | None, str]]) -> Markup:
    """Return what the lines of a plot stand for, each with its colour, dash and marker."""
    items = []
    for style, text in entries:
        line = tag("line", x1=1, x2=33, y1=7, y2=7, class_="line reference" if style is None else f"line s{style}")
        swatch = tag("svg", line, marker(style, 17, 7) if style is not None else None, width=34, height=14,
                     aria_hidden="true")  # fmt: skip
        items.append(tag("li", swatch, text))
    return tag("ul", join(items), class_="legend")
