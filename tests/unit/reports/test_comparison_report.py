"""The report of a comparison says what the comparison says."""

from __future__ import annotations

import pytest
from evaluations import (
    Page,
    markdown_tables,
)

from fairlung.pipeline.reports.comparison_report import write_comparison_report
from fairlung.pipeline.reports.document import LEVELS
from fairlung.pipeline.reports.evidence import EvidenceError


def test_a_comparison_shows_systems_differences_and_holm(compared):
    result, path = compared
    page = Page(path.read_text())
    assert page.headings[:2] == ["Verdicts", "Systems"]
    assert [item.split(" ", 1)[0] for item in page.items] == [LEVELS[v["level"]][0] for v in result["verdicts"]]
    systems, differences, tests = page.tables[:3]
    assert systems[0][1:] == ["CE", "<b>LA</b>", "one|run"] and systems[1] == ["runs", "2", "2", "1"]
    assert (
        systems[2][1] == f"{result['systems'][0]['values']['score']:.3f} (SD {result['systems'][0]['sd']['score']:.3f})"
    )
    assert systems[2][3] == f"{result['systems'][2]['values']['score']:.3f}"
    expected = [e for comparison in result["comparisons"] for e in comparison["differences"].values()]
    assert [row[1] for row in differences[1:]] == [f"{e['value']:+.3f}" for e in expected]
    assert [row[2] for row in differences[1:]] == [f"{e['low']:+.3f} to {e['high']:+.3f}" for e in expected]
    tested = [test for comparison in result["comparisons"] for test in comparison["tests"].values()]
    assert [row[2:4] for row in tests[1:]] == [[f"{t['p_value']:.3g}", f"{t['p_holm']:.3g}"] for t in tested]
    assert markdown_tables(path.with_suffix(".md").read_text()) == page.tables
    assert "b" not in {tag for tag, _ in page.elements}


def test_what_is_no_comparison_is_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"verdicts": []}')
    with pytest.raises(EvidenceError, match="is no comparison"):
        write_comparison_report(tmp_path / "a.json", tmp_path / "a.html")
    with pytest.raises(EvidenceError, match="cannot be read"):
        write_comparison_report(tmp_path / "b.json", tmp_path / "a.html")
