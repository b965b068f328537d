"""fairlung report and model-card write what the functions write, and say what is wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evaluations import CLASSES, SEXES, make_comparison, make_run, write_table
from typer.testing import CliRunner

from fairlung.pipeline.cli.app import app
from fairlung.pipeline.reports.evaluation_report import (
    write_report,
)
from fairlung.pipeline.reports.model_card import END, START


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.slow
def test_commands_write_reports_and_cards(cli, tmp_path):
    run = make_run(tmp_path / "run", synthetic=True)
    write_report(run)
    compared = make_comparison(tmp_path / "compare", SEXES)
    copy = tmp_path / "copy"
    shutil.copytree(run.parents[1], copy)
    (copy / "test" / "evaluation" / "report.html").unlink()
    done = cli("report", copy)
    assert done.exit_code == 0, done.output
    assert (copy / "test" / "evaluation" / "report.html").read_bytes() == (run / "report.html").read_bytes()
    done = cli("report", "--compare", compared[1].with_name("compare.json"), "-o", "sub/c.html")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "sub" / "c.html").read_text() == compared[1].read_text()
    (tmp_path / "README.md").write_text(f"{START}{END}")
    done = cli("model-card", copy, "--split", "test", "--bundle-readme", "README.md")
    assert done.exit_code == 0, done.output
    assert "## Results by sex" in (tmp_path / "MODEL_CARD.md").read_text()
    assert "Headline numbers" in (tmp_path / "README.md").read_text()


def test_a_table_with_other_columns_is_reported_by_command(cli, tmp_path):
    write_table(tmp_path / "t.csv", CLASSES, SEXES)
    done = cli("report", "t.csv", "--group-by", "sex", "--group-name", "female", "--group-name", "male")
    assert done.exit_code == 0, done.output
    assert "female minus male" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report"], "give a SOURCE, or --compare"),
        (["report", "x.csv", "--compare", "y.json"], "give a SOURCE, or --compare"),
        (["report", "--compare", "y.json"], "y.json cannot be read"),
        (["report", "nowhere"], "nowhere"),
        (["model-card", "nowhere"], "nowhere"),
    ],
)
def test_commands_say_what_is_wrong(cli, arguments, message):
    done = cli(*arguments)
    assert done.exit_code == 1
    assert message in done.output
