"""The notebooks of docs/notebooks/ run from top to bottom, and show what they did when their outputs were stored."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
from notebooks import code_cells, run_cell, run_notebook

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST = 30_000  # bytes


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_with_small_outputs_that_name_no_folder(path: Path) -> None:
    assert path.stat().st_size < LARGEST
    cells = code_cells(json.loads(path.read_text()))
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    shown = json.dumps([cell["outputs"] for cell in cells])
    assert len(shown) > 1000 and not re.search(r"/(tmp|home|root|work)\b|Traceback", shown)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_without_what_it_needs_says_so_in_a_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = "".join(code_cells(json.loads(path.read_text()))[0]["source"])
    assert run_cell(first, {}, 1) == []
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "statsmodels" else there(name))
    with pytest.raises(SystemExit, match=r"^this notebook needs statsmodels: install fairlung first, [^\n]*$"):
        run_cell(first, {}, 1)


def test_the_audit_notebook_shows_what_it_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = FOLDER / "audit_your_table.ipynb"
    assert run_notebook(path) == [cell["outputs"] for cell in code_cells(json.loads(path.read_text()))]


@pytest.mark.slow
def test_the_phantoms_notebook_trains_evaluates_and_audits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its digits depend on the processor, what it shows does not."""
    monkeypatch.chdir(tmp_path)
    path = FOLDER / "phantoms.ipynb"
    outputs = run_notebook(path)
    stored = [cell["outputs"] for cell in code_cells(json.loads(path.read_text()))]
    for found, shown in zip(outputs, stored, strict=True):
        assert [output["output_type"] for output in found] == [output["output_type"] for output in shown]
    assert outputs[1] == stored[1]  # the cohort
    (table,) = outputs[-2]
    assert len(table["data"]["text/plain"]) == 7  # a header, P, the gap and four recalls
    assert (tmp_path / "run" / "test" / "evaluation" / "report.html").is_file()
