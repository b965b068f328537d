"""A document as HTML and Markdown: its pictures, its tables, and the page in a browser."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from evaluations import Page, make_run
from intake_examples import record
from markdown_it import MarkdownIt
from PIL import Image
from rich.console import Console

from fairlung.pipeline.cli.console import drawn, plain
from fairlung.pipeline.common.text import printable
from fairlung.pipeline.evaluation.wording import Verdict
from fairlung.pipeline.reports.document import (
    Document,
    Paragraph,
    Picture,
    Pictures,
    Section,
    Table,
    Verdicts,
    render_html,
    render_markdown,
    write_document,
)
from fairlung.pipeline.reports.evaluation_report import write_report
from fairlung.pipeline.reports.intake_page import intake_document
from fairlung.pipeline.tracking.loggable import note_markdown


def png() -> bytes:
    out = io.BytesIO()
    Image.new("L", (4, 4)).save(out, "PNG")
    return out.getvalue()


PNG = png()


def test_pictures_of_an_earlier_report_are_removed(tmp_path):
    (tmp_path / "report_files").mkdir()
    (tmp_path / "report_files" / "error_99.png").touch()
    (tmp_path / "report_files" / "mine.txt").touch()
    write_document(Document("t", (), (Section("s", ()),)), tmp_path / "report.html")
    assert [path.name for path in (tmp_path / "report_files").iterdir()] == ["mine.txt"]


def test_a_row_that_does_not_fit_its_table_is_refused():
    with pytest.raises(ValueError, match="table 'c': 1 values in a row of 2 columns"):
        Table("c", ("a", "b"), (("x",),))


# names as scans, classes and groups may have them
HOSTILE = (
    "<script>window.ran = 1</script>", '"><img src=x onerror="window.ran = 1">', "{{7*7}} {% raw %} ${7*7}",
    "=cmd|' /C calc'!A0", "[red]x[/] [link=https://example.org]y[/]", "\u202egnp.exe", "a\x1b[2J\x07b\x9bc",
    "</title><svg onload=window.ran=1>", "![x](https://example.org/x.png)", "javascript:window.ran=1",
)  # fmt: skip


def hostile_document() -> Document:
    """Every name in every place that a report has."""
    rows = tuple((name, name) for name in HOSTILE)
    look = Picture("x", HOSTILE[1], PNG, caption=HOSTILE[0])
    verdicts = Verdicts(tuple(Verdict("note", name) for name in HOSTILE))
    blocks = (*map(Paragraph, HOSTILE), verdicts, Table(HOSTILE[0], HOSTILE[:2], rows), look, Pictures((look,)))
    return Document(HOSTILE[0], rows, (Section(HOSTILE[1], blocks),), badge=HOSTILE[0], badge_text=HOSTILE[1])


@pytest.mark.fault(
    "leaked", "scripts, templates, links, terminal codes and turned text in the names of scans, classes and groups",
    before="turned text and control characters reached pages and console, links MLflow", now="shown as text",
)  # fmt: skip
@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_text_everywhere(name: str) -> None:
    table = Table("names", ("name",), ((name,),))
    html = render_html(Document(name, ((name, name),), (Section("s", (table, Paragraph(name))),)))
    page = Page(html)
    assert {tag for tag, _ in page.elements} & {"script", "svg", "img"} == set()
    assert page.tables[0][1] == [printable(name)]
    markdown = render_markdown(Document("t", (), (Section("s", (table, Paragraph(name))),)), ".")
    rendered = MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)
    assert {tag for tag, _ in Page(rendered).elements} & {"script", "svg", "img", "a"} == set()
    assert Page(rendered).tables[0][1] == [printable(name)]
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=True, color_system="standard")
    console.print(drawn(table))
    console.print(plain(name))
    shown = re.sub(r"\x1b\[[\d;]*m", "", out.getvalue())
    assert shown.count(printable(name)) == 2 and "\x1b]8" not in out.getvalue()
    for text in (html, markdown, shown):
        assert all(sign.isprintable() or sign == "\n" for sign in text)


def test_a_name_is_text_in_a_description_of_mlflow() -> None:
    one, two = HOSTILE[0], HOSTILE[8]
    scores = {"score": 0.5, "gap": 0.1, "abs_gap": 0.1, "f1_macro": 0.5}
    scores |= {f"f1_{group}": 0.5 for group in HOSTILE[:2]}
    scores |= {f"f1_{group}_{name}": 0.5 for group in HOSTILE[:2] for name in (one, two)}
    result = {
        "metrics": scores, "class_names": [one, two], "group_names": HOSTILE[:2], "confusion": [[[1, 0], [0, 1]]] * 2,
        "split": "test", "checkpoint": "model.pt", "synthetic": False,
        "audit": SimpleNamespace(
            verdicts=(Verdict("note", name) for name in HOSTILE), overall=SimpleNamespace(numbers=dict), groups=()
        ),
    }  # fmt: skip
    rendered = Page(MarkdownIt("commonmark", {"html": True}).enable("table").render(note_markdown(result)))
    assert {tag for tag, _ in rendered.elements} & {"script", "svg", "img", "a"} == set()
    assert [row[0] for row in rendered.tables[1][1:]] == [one, two]


@contextmanager
def browser_of(folder: Path) -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium and chromedriver on PATH (Debian: apt-get install chromium chromium-driver)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "disable-quic", "no-first-run",
        "disable-background-networking", "disable-component-update", "disable-sync",
        f"user-data-dir={folder}/browser",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield browser
    finally:
        browser.quit()


@pytest.mark.slow
@pytest.mark.fault(
    "leaked", "a page of ours with scripts in the names of scans, classes and groups, in a browser",
    before="not tested in one", now="nothing runs, nothing is asked for",
)  # fmt: skip
def test_no_script_of_a_name_runs_in_a_browser(tmp_path: Path) -> None:
    write_document(hostile_document(), tmp_path / "report.html")
    folder = make_run(tmp_path / "run", HOSTILE[:3], HOSTILE[3:5])
    write_report(folder)
    records = [record(name, warnings=[f"few_slices: {name}"], series=name) for name in HOSTILE]
    (tmp_path / "look.png").write_bytes(PNG)
    page = intake_document(records, dict.fromkeys(HOSTILE, tmp_path / "look.png"), limit=5)
    (tmp_path / "check.html").write_text(render_html(page), encoding="utf-8")
    with browser_of(tmp_path) as browser:
        for path in (tmp_path / "report.html", tmp_path / "check.html", folder / "report.html"):
            browser.get(path.as_uri())
            text = browser.execute_script("return document.body.innerText")
            assert HOSTILE[0] in text and "{{7*7}}" in text and "\u202e" not in text
            assert browser.execute_script("return [window.ran, document.scripts.length]") == [None, 0]
            asked = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
            assert [name for name in asked if not name.startswith("data:")] == []
        assert browser.get_log("browser") == []


@pytest.mark.slow
@pytest.mark.parametrize("compared", ["sexes"], indirect=True)
def test_the_page_in_a_browser(run, evil, compared, tmp_path):
    with browser_of(tmp_path) as browser:
        for path in (run / "report.html", evil / "report.html", compared[1]):
            for width in (1200, 390):
                screen = {"width": width, "height": 850, "deviceScaleFactor": 1, "mobile": width < 500}
                browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
                browser.get(path.as_uri())
                assert browser.execute_script("return document.documentElement.scrollWidth") <= width
                assert browser.execute_script("return innerWidth") == width
                asked = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
                assert [name for name in asked if not name.startswith("data:")] == []
                pictures = browser.find_elements("tag name", "img")
                assert pictures and all(picture.get_attribute("alt") for picture in pictures)
                loaded = browser.execute_script(
                    "return [...document.images].every(i => i.complete && i.naturalWidth > 0)"
                )
                assert loaded
            assert browser.execute_script("return document.scripts.length") == 0
        assert browser.get_log("browser") == []
