"""A document as HTML and Markdown: its pictures, its tables, and the page in a browser."""

from __future__ import annotations

import shutil

import pytest

from fairlung.pipeline.reports.document import Document, Section, Table, write_document


def test_pictures_of_an_earlier_report_are_removed(tmp_path):
    (tmp_path / "report_files").mkdir()
    (tmp_path / "report_files" / "error_99.png").touch()
    (tmp_path / "report_files" / "mine.txt").touch()
    write_document(Document("t", (), (Section("s", ()),)), tmp_path / "report.html")
    assert [path.name for path in (tmp_path / "report_files").iterdir()] == ["mine.txt"]


def test_a_row_that_does_not_fit_its_table_is_refused():
    with pytest.raises(ValueError, match="table 'c': 1 values in a row of 2 columns"):
        Table("c", ("a", "b"), (("x",),))


@pytest.mark.slow
@pytest.mark.parametrize("compared", ["sexes"], indirect=True)
def test_the_page_in_a_browser(run, evil, compared, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium and chromedriver on PATH (Debian: apt-get install chromium chromium-driver)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.by import By

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "disable-quic", "no-first-run",
        "disable-background-networking", "disable-component-update", "disable-sync",
        f"user-data-dir={tmp_path}/browser",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(driver))
    try:
        for path in (run / "report.html", evil / "report.html", compared[1]):
            for width in (1200, 390):
                screen = {"width": width, "height": 850, "deviceScaleFactor": 1, "mobile": width < 500}
                browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
                browser.get(path.as_uri())
                assert browser.execute_script("return document.documentElement.scrollWidth") <= width
                assert browser.execute_script("return innerWidth") == width
                asked = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
                assert [name for name in asked if not name.startswith("data:")] == []
                pictures = browser.find_elements(By.TAG_NAME, "img")
                assert pictures and all(picture.get_attribute("alt") for picture in pictures)
                loaded = browser.execute_script(
                    "return [...document.images].every(i => i.complete && i.naturalWidth > 0)"
                )
                assert loaded
            assert browser.execute_script("return document.scripts.length") == 0
        assert browser.get_log("browser") == []
    finally:
        browser.quit()
