"""HTML and SVG from plain values: every text is escaped on the way in, so that no data can become markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

VOID = {"meta", "link", "br", "hr", "col"}
Content = Markup | str | int | float | None
"""What stands within an element: Markup as it is, anything else escaped."""


def tag(name: str, /, *children: Content, **attributes: str | int | float | bool | None) -> Markup:
    """Return an element. In attribute names `_` stands for `-`, but for one at the end (`class_`); None leaves it out.

    Coordinates are cut to two decimals, a hundredth of a pixel.
    """
    parts = [f"<{name}"]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        written = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
        parts.append(f' {key.rstrip("_").replace("_", "-")}="{escape(str(written))}"')
    if name in VOID:
        return Markup("".join(parts) + ">")
    return Markup("".join(parts) + f">{join(children)}</{name}>")


def join(children: Iterable[Content]) -> Markup:
    """Return children one after another, those that are no Markup escaped."""
    given = (child for child in children if child is not None)
    return Markup("").join(child if isinstance(child, Markup) else str(child) for child in given)


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table."""

    title: str
    numeric: bool = False
    """Numbers stand right, in figures of equal width."""


def table(caption: str, columns: Sequence[Column | str], rows: Sequence[Sequence[Content]]) -> Markup:
    """Return a table whose first column names the rows; it scrolls sideways on its own where it is too wide."""
    known = [Column(title=column) if isinstance(column, str) else column for column in columns]
    head = tag("tr", *(tag("th", column.title, scope="col", class_=_side(column)) for column in known))
    body = []
    for row in rows:
        first, *rest = row
        cells = [tag("td", cell, class_=_side(column)) for column, cell in zip(known[1:], rest, strict=True)]
        body.append(tag("tr", tag("th", first, scope="row", class_=_side(known[0])), *cells))
    return scrolling(caption, tag("thead", head), tag("tbody", *body))


def _side(column: Column) -> str | None:
    return "number" if column.numeric else None


def scrolling(caption: str, *parts: Markup, class_: str | None = None) -> Markup:
    """Return a table of these parts in a region that scrolls sideways, also by keyboard; its caption stays in sight."""
    content = tag("table", *parts, class_=class_, aria_label=caption)
    region = tag("div", content, class_="scroll", role="region", aria_label=caption, tabindex="0")
    return join((tag("p", caption, class_="caption", aria_hidden="true"), region))


def folded(summary: str, *children: Content) -> Markup:
    """Return what opens with a click."""
    return tag("details", tag("summary", summary), *children)


def figure(title: str, *children: Content, wide: bool = False) -> Markup:
    """Return a figure with its title above."""
    return tag("figure", tag("figcaption", title), *children, class_="wide" if wide else None)


def facts(rows: Iterable[tuple[str, Content]]) -> Markup:
    """Return a list of names and values."""
    return tag("dl", *(join((tag("dt", name), tag("dd", value))) for name, value in rows))


def paragraphs(text: str) -> Markup:
    """Return paragraphs of Markdown's `**strong**` and blank lines, which is all that answers use of it."""
    return join(tag("p", *_strong(part)) for part in text.split("\n\n") if part)


def _strong(text: str) -> Iterable[Content]:
    for index, part in enumerate(text.split("**")):
        yield tag("strong", part) if index % 2 else part
