"""The report's section about the data check: what is wrong with the data, and the rows to look at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from markupsafe import Markup

from launcher.check_text import HEADER, NAMES, cells, counted_with, summary
from launcher.report.elements import Column, Content, folded, join, table, tag
from launcher.report.material import PageMaterial


def check_section(material: PageMaterial) -> Markup | None:
    """Return the section; None where no data was checked."""
    checks = material.report.get("data_checks", [])
    if not checks:
        return None
    return join((tag("h2", "Data check"), *(part for item in checks for part in _one(item["data"], item["check"]))))


def _one(title: str, check: dict[str, Any]) -> Iterator[Content]:
    """Yield what there is to say of one data."""
    columns: list[Column | str] = ["split", *(Column(title=name, numeric=name != "unit") for name in HEADER)]
    yield table(
        f"Splits of {title}", columns, [(name, *cells(split, check)) for name, split in check["splits"].items()]
    )
    yield tag("p", summary(check) + counted_with(check))
    yield from (_finding(finding) for finding in check["findings"])


def _finding(finding: dict[str, Any]) -> Markup:
    """Return a finding with its fix and, folded, its examples."""
    said = tag("p", tag("strong", NAMES[finding["level"]].capitalize()), f": {finding['message']}. {finding['fix']}")
    rows = [
        tag("li", f"{item['row']}, {item['place']}: “{item['text']}”" + (f" ({item['note']})" if item["note"] else ""))
        for item in finding["examples"]
    ]
    return join((said, folded(f"{len(rows)} of its rows", tag("ul", *rows)) if rows else None))
