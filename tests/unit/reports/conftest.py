"""One complete evaluation with its report, and one whose names are markup."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from evaluations import EVIL, EVIL_GROUPS, SEXES, make_comparison, make_run

from fairlung.pipeline.reports.evaluation_report import (
    write_report,
)
from fairlung.pipeline.reports.model_card import write_model_card


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete evaluation and its report. Read-only."""
    folder = make_run(tmp_path_factory.mktemp("run"), synthetic=True)
    write_report(folder)
    return folder


@pytest.fixture(scope="session")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with names that are markup."""
    folder = make_run(tmp_path_factory.mktemp("evil"), EVIL, EVIL_GROUPS)
    write_report(folder)
    write_model_card(folder, folder / "CARD.md")
    return folder


@pytest.fixture(scope="session", params=["sexes", "sites"])
def compared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The content of a compare.json, and its report."""
    groups = SEXES if request.param == "sexes" else ("alder", "birch", "cedar")
    return make_comparison(tmp_path_factory.mktemp("compare"), groups)
