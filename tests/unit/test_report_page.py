"""report.html: whole, escaped, accessible, of bounded size, and needing nothing beside it."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from study_on_disk import StudyOnDisk

from launcher.folder import StudyFolder
from launcher.report.build import build_report, read_stored
from launcher.report.elements import VOID, tag
from launcher.report.material import Examples, PageMaterial, read_material
from launcher.report.page import render_page
from launcher.report.study_files import Curve, Stay, read_stays
from launcher.report.write import write_report
from training.corpus.quality import check_data
from training.spec import DataSpec

HOSTILE = ['<script>alert("1")</script>', '"><img src=x onerror=alert(1)>', "a&b</td></svg>{x}"]
CSS = files("launcher.report").joinpath("report.css").read_text(encoding="utf-8")


class Page(HTMLParser):
    """The elements of a page; fails where one is not closed in its place."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.parents: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        assert len({key for key, _ in attributes}) == len(attributes)
        self.elements.append((name, dict(attributes)))
        self.parents.append(self.open[-1] if self.open else "")
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1], data))

    def all(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name in names]

    def text(self, *names: str) -> list[str]:
        return [text for name, text in self.texts if not names or name in names]


def page_of(study: StudyOnDisk, **changes: Any) -> tuple[str, Page]:
    """Return the page of a study, every section of it."""
    folder = StudyFolder(study.root)
    name, jobs = folder.read_study()
    results = folder.read_results(jobs)
    baselines = [item for items in folder.read_baselines().values() for item in items]
    folders = {job: folder.jobs / job for job in jobs}
    report = build_report(name, results, baselines, read_stored(folder, results, baselines), num_jobs=len(jobs))
    report["data_checks"] = list(folder.read_data_checks().values())
    html = render_page(replace(read_material(report, folders, read_stays(study.root)), **changes))
    return html, Page(html)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page]:
    root = tmp_path_factory.mktemp("outputs") / "hostile"
    study = StudyOnDisk(root, labels=HOSTILE, text="</blockquote><script>alert('x')</script> 中文 {}")
    for r in (4, 8):
        study.add(r, 0, skill=1.0)
        study.add(r, 1, skill=1.5, card="box:1")
    study.add(16, 0, 1.0, error="<img src=x onerror=alert(1)> ended", log="</pre><script>alert(2)</script>\nlast line")
    study.baseline(0.5)
    rows = [{"text": text, "label": label} for label, text in zip(HOSTILE * 2, HOSTILE * 2, strict=True)]
    train = root / "<b>train.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    check = check_data(DataSpec(train_file=str(train))).to_dict()
    StudyFolder(root).write_data_checks({"key": {"data": train.name, "check": check}})
    return page_of(study)


def test_the_page_is_well_formed_and_every_link_leads_somewhere(hostile: tuple[str, Page]) -> None:
    html, page = hostile
    assert html.startswith("<!DOCTYPE html>") and page.all("html") == [{"lang": "en"}]
    ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert ids and max(ids.values()) == 1
    links = [attributes["href"] or "" for attributes in page.all("a")]
    assert len(links) > 5 and {link.removeprefix("#") for link in links} <= set(ids)


def test_every_section_is_there(hostile: tuple[str, Page]) -> None:
    headings = hostile[1].text("h2")
    assert headings == [
        "Settings", "Use the best adapter", "Which differences are real", "Learning curves", "The best by class",
        "What the best confuses", "How sure the best is", "Texts to look at", "Failures",
        "Memory: forecast and measured", "Time on the cards", "Jobs and cost", "Data", "Data check",
        "Versions and hardware",
    ]  # fmt: skip
    (summary,) = [text for text in hostile[1].text("code") if text.startswith("shoal predict")]
    assert "/hostile/jobs/r8-seed1 --input texts.csv" in summary


def test_what_data_says_is_text_and_never_markup(hostile: tuple[str, Page]) -> None:
    html, page = hostile
    assert not {"script", "img", "iframe", "object", "form", "input", "link", "base"} & {
        name for name, _ in page.elements
    }
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on") or key == "style"]
    everything = "".join(page.text())
    for label in HOSTILE:
        assert label in everything
    assert "</blockquote><script>alert('x')</script> 中文 test:" in everything
    assert "<img src=x onerror=alert(1)> ended" in page.text("p")
    assert any("</pre><script>alert(2)</script>\nlast line" in text for text in page.text("code"))
    assert "<script" not in html
    assert "Splits of <b>train.jsonl" in page.text("p")
    assert any(HOSTILE[0] in text for text in page.text("li"))


def test_the_page_loads_nothing_and_its_policy_knows_its_one_style_sheet(hostile: tuple[str, Page]) -> None:
    html, page = hostile
    assert [
        key for _, attributes in page.elements for key in attributes if key in ("src", "srcset", "xlink:href")
    ] == []
    assert not re.search(r"@import|url\((?!#)|https?://", html)
    (style,) = page.text("style")
    (policy,) = [item["content"] or "" for item in page.all("meta") if "http-equiv" in item]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; ") and f"style-src 'sha256-{digest}';" in policy


def test_the_page_can_be_heard(hostile: tuple[str, Page]) -> None:
    page = hostile[1]
    levels = [int(name[1]) for name, _ in page.elements if re.fullmatch("h[1-6]", name)]
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert page.all("th") and all(item.get("scope") in ("row", "col") for item in page.all("th"))
    pictures = [
        place for place, (name, item) in enumerate(page.elements) if name == "svg" and item.get("role") == "img"
    ]
    assert len(pictures) == 7
    for place in pictures:
        assert [name for name, _ in page.elements[place + 1 : place + 3]] == ["title", "desc"]
    charts = {"dot", "whisker", "hollow", "bar measured", "bar forecast", "line s0", "line s1", "stretch s0"}
    assert charts <= {item.get("class") for _, item in page.elements}
    # What colour says, words say too.
    assert {"better", "no real difference"} & set(page.text("b"))
    assert [text for text in page.text("title") if text.startswith("r16-seed0 (failed): ")]
    assert all(item.get("tabindex") == "0" for item in page.all("div") if item.get("role") == "region")


def test_a_study_of_failures_and_one_of_a_single_job_have_pages(tmp_path: Path) -> None:
    failures = StudyOnDisk(tmp_path / "failures")
    failures.add(8, 0, 1.0, error="it broke")
    _, page = page_of(failures)
    assert page.text("h2") == ["Failures", "Time on the cards"]
    assert "No job has succeeded yet, so there is no answer." in page.text("p")
    single = StudyOnDisk(tmp_path / "single")
    single.add(8, 0, 3.0)
    _, page = page_of(single)
    assert "Which differences are real" not in page.text("h2") and "The best by class" in page.text("h2")


def test_a_study_that_has_not_begun_has_a_page_too() -> None:
    report = build_report("s", [], [], num_jobs=2)
    page = Page(render_page(read_material(report, {}, [])))
    assert "0 of 2 jobs succeeded, 0 failed, 2 not run." in page.text("p")


def test_predictions_without_texts_are_said_to_be_old(tmp_path: Path) -> None:
    study = StudyOnDisk(tmp_path / "old")
    path = tmp_path / "old/jobs" / study.add(8, 0, 1.0).name / "predictions.parquet"
    pq.write_table(pq.read_table(path).drop(["text"]), path)
    _, page = page_of(study)
    assert not page.all("blockquote")
    assert any("The texts were not kept" in text for text in page.text("li"))


def test_the_files_of_a_report_lie_in_the_study_folder_and_stale_tables_go(tmp_path: Path) -> None:
    study = StudyOnDisk(tmp_path / "tales")
    study.add(8, 0, 1.0)
    stale = tmp_path / "tales/tables/old.csv"
    stale.parent.mkdir()
    stale.write_text("x")
    page = write_report(StudyFolder(study.root))
    assert page == tmp_path / "tales/report.html" and Page(page.read_text(encoding="utf-8")).text("h1") == [
        "Study tales"
    ]
    written = {path.name for path in study.root.iterdir() if path.is_file()}
    assert written >= {"report.html", "report.md", "report.json"} and not [name for name in written if "tmp" in name]
    rows = (study.root / "tables/jobs.csv").read_text(encoding="utf-8").splitlines()
    assert rows[0].startswith("job,status,seed,") and rows[1].startswith("r8-seed0,succeeded,0,")
    assert not stale.exists()


def test_a_big_study_makes_no_big_page(tmp_path: Path) -> None:
    """100 classes, 200 jobs: made of one job's results."""
    study = StudyOnDisk(tmp_path / "big", labels=[f"class {number}" for number in range(100)], num_texts=400)
    first = study.add(8, 0, 1.0).name
    (result,) = StudyFolder(study.root).read_results([first])
    results = []
    for r in range(1, 101):
        for seed in range(2):
            settings = {**result.settings, "name": f"r{r}-seed{seed}", "seed": seed, "lora": {"r": r}}
            results.append(replace(result, name=f"r{r}-seed{seed}", settings=settings))
    folders = {item.name: study.root / "jobs" / first for item in results}
    folder = StudyFolder(study.root)
    scored = build_report("big", [result], [], read_stored(folder, [result], []), num_jobs=1)
    report = build_report("big", results, [], num_jobs=200)
    for job in report["jobs"]:
        job["scores"] = scored["jobs"][0]["scores"]
    pairs = [(a["name"], b["name"]) for place, a in enumerate(report["groups"]) for b in report["groups"][:place]]
    alike = {"data": "tales.csv", "split": "test", "difference": 0.0, "interval": [-0.1, 0.1], "p_value": 1.0,
             "p_holm": 1.0, "test": "McNemar", "effect_size": 0.0, "effect": "none", "real": False,
             "sha256": report["groups"][0]["sha256"]["test"]}  # fmt: skip
    report["comparisons"] = [{"a": a, "b": b, **alike} for a, b in pairs]
    names = list(folders)
    curves = [Curve(job=name, loss=[(x / 60, 1.0) for x in range(60)], validation={"macro_f1": [(1.0, 0.5)]})
              for name in names[:40]]  # fmt: skip
    stays = [Stay(job=name, card=f"box:{i % 8}", start=i, end=i + 5.0) for i, name in enumerate(names * 10)]
    examples = {report["best"][0]: Examples()}
    html = render_page(PageMaterial(report=report, folders=folders, curves=curves, stays=stays, examples=examples))
    page = Page(html)
    assert len(html.encode()) < 3_000_000
    assert {"The other 80 settings", "The other 180 jobs", "All 100 classes"} <= set(page.text("summary"))
    assert not [item for item in page.all("table") if item.get("class") == "confusion"]


def colours(block: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours, by WCAG 2.1."""

    def luminance(colour: str) -> float:
        channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def test_contrast_is_computed_as_the_standard_says() -> None:
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_texts_can_be_read_in_both_themes(theme: str) -> None:
    light, dark = CSS.split("@media screen and (prefers-color-scheme: dark)")
    known = colours(light)
    assert set(colours(dark)) == set(known)
    colour = colours(dark) if theme == "dark" else known
    pairs = [("text", "page"), ("muted", "page"), ("link", "page"), ("good", "page"), ("bad", "page"), ("text", "soft"),
             ("muted", "soft")]  # fmt: skip
    pairs += [("on-series", f"s{style}") for style in range(8)] + [("text", f"h{shade}") for shade in range(1, 7)]
    pairs += [("on-series", "muted")]
    assert {
        f"{a} on {b}": contrast(colour[a], colour[b]) for a, b in pairs if contrast(colour[a], colour[b]) < 4.5
    } == {}
    assert min(contrast(colour[f"s{style}"], colour["page"]) for style in range(8)) >= 3  # lines and marks


def test_the_style_sheet_loads_nothing_and_colours_come_from_its_palettes() -> None:
    rules = CSS.split("* { box-sizing", 1)[1]
    assert not re.search(r"#[0-9a-fA-F]{3,6}\b(?!\))", rules.replace("url(#hatch)", ""))
    assert "CJK" in CSS


def test_elements_escape_children_and_attributes() -> None:
    assert tag("p", "<b>", title='"x"') == '<p title="&#34;x&#34;">&lt;b&gt;</p>'
    assert tag("td", tag("b", "&"), 3, None, class_="number", data_x=None) == '<td class="number"><b>&amp;</b>3</td>'
    assert tag("line", x1=1.23456, x2=2.0, stroke_width=2) == '<line x1="1.23" x2="2" stroke-width="2"></line>'
