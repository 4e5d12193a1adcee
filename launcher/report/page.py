"""report.html: one file, without network or script, that reads on a phone, in the dark and on paper."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from importlib.resources import files

from markupsafe import Markup

from launcher.report.elements import join, tag
from launcher.report.material import PageMaterial
from launcher.report.page_check import check_section
from launcher.report.page_models import best_sections, curve_section
from launcher.report.page_results import difference_sections, head_section, leaderboard_sections
from launcher.report.page_running import (
    cost_section,
    data_section,
    gantt_section,
    memory_section,
    stopped_section,
    trouble_sections,
    use_section,
    versions_section,
)

HATCH = Markup(
    '<svg width="0" height="0" class="defs" aria-hidden="true"><defs>'
    '<pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<line x1="0" x2="0" y1="0" y2="6" class="hatch"></line></pattern></defs></svg>'
)
"""What hatched bars are filled with (`url(#hatch)` in report.css)."""


def render_page(material: PageMaterial) -> str:
    """Return the text of report.html."""
    style = Markup(files("launcher.report").joinpath("report.css").read_text(encoding="utf-8"))
    sections = list(_sections(material))
    body = (
        HATCH,
        head_section(material),
        _contents(sections) if len(sections) > 3 else None,
        tag("main", *(tag("section", content, id=name) for name, _, content in sections)),
    )
    head = (
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy(style)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", f"Shoal: {material.report['study']}"),
        tag("style", style),
    )
    page = tag("html", tag("head", *head), tag("body", *body), lang="en")
    return f"<!DOCTYPE html>\n{page}\n"


def _policy(style: str) -> str:
    """Return the Content-Security-Policy: nothing is loaded or run, and the one style sheet is known by its hash."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def _sections(material: PageMaterial) -> Iterator[tuple[str, str, Markup]]:
    """Yield id, title in the contents, and content of each section; what there is nothing of is left out."""
    many: tuple[tuple[str, str, Sequence[Markup | None]], ...] = (
        ("settings", "Settings", leaderboard_sections(material)),
        ("use", "Use it", [use_section(material)]),
        ("differences", "Differences", difference_sections(material)),
        ("curves", "Learning curves", [curve_section(material)]),
        ("best", "The best", best_sections(material)),
        ("stopped", "Stopped early", [stopped_section(material)]),
        ("failures", "What went wrong", trouble_sections(material)),
        ("memory", "Memory", [memory_section(material)]),
        ("cards", "Cards", [gantt_section(material)]),
        ("jobs", "Jobs and cost", [cost_section(material)]),
        ("data", "Data", [data_section(material)]),
        ("check", "Data check", [check_section(material)]),
        ("versions", "Versions", [versions_section(material)]),
    )
    for name, title, contents in many:
        if content := join(contents):
            yield name, title, content


def _contents(sections: Sequence[tuple[str, str, Markup]]) -> Markup:
    """Return links to the sections."""
    links = (tag("li", tag("a", title, href=f"#{name}")) for name, title, _ in sections)
    return tag("nav", tag("ul", *links), aria_label="Contents")
