"""fairlung compare: verdicts first, the comparison as JSON, clear refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from paired_runs import CLASSES, FEW, runs
from typer.testing import CliRunner

from fairlung.pipeline.cli.app import app
from fairlung.pipeline.comparison.compare import compare
from fairlung.pipeline.comparison.records import Comparison
from fairlung.pipeline.evaluation.predictions import Predictions
from fairlung.pipeline.evaluation.records import read_record


@pytest.fixture(autouse=True)
def _no_garbage_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """By statsmodels at each Holm adjustment: among this many modules it takes longer than the comparison."""
    monkeypatch.setattr("gc.collect", lambda: 0)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: CliRunner().invoke(app, ["compare", *map(str, arguments)])


def write(path: Path, run: Predictions) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        "scan": run.scan,
        "label": np.array(run.class_names)[run.label],
        "sex": np.array(run.group_names)[run.group],
        "prediction": np.array(run.class_names)[run.prediction],
        "patient": [f"DOE^JANE {i}" for i in range(len(run.scan))],
    }
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


def test_the_command_shows_verdicts_and_writes_the_comparison(cli, tmp_path: Path) -> None:
    for seed in range(2):
        write(tmp_path / f"runs/new_{seed}/test/evaluation/predictions.csv", runs(seed, right=0.9)[0])
    write(tmp_path / "old.csv", runs(5)[0])
    out = tmp_path / "out" / "compare.json"
    classes = [part for name in CLASSES for part in ("--class-name", name)]
    done = cli(tmp_path / "old.csv", f"[new]={tmp_path}/runs/new_*", "-o", out, "--resamples", 200, *classes)
    assert done.exit_code == 0, done.output
    result = read_record(Comparison, out)
    expected = compare({"old": runs(5), "[new]": [*runs(0, right=0.9), *runs(1, right=0.9)]}, **FEW)
    assert result == expected
    assert done.output.startswith("finding: P of [new] is")
    assert done.output.index("old has one run") < done.output.index("pooled macro F1")
    assert f"{expected.comparisons[0].differences['score'].value:+.3f}" in done.output
    assert "DOE" not in done.output + out.read_text()
    assert "patients" not in done.output


def test_a_comparison_of_patients_with_several_scans_says_how_many_there_are(cli, tmp_path: Path) -> None:
    for name, seed in (("old", 5), ("new", 0)):
        table = pd.read_csv(write(tmp_path / f"{name}.csv", runs(seed)[0]), dtype=str)
        table["who"] = name + table["sex"] + (table.index // 2).astype(str)  # ids of two keys
        table.drop(columns="patient").to_csv(tmp_path / f"{name}.csv", index=False)
    number = len(set(table["who"]))
    done = cli(tmp_path / "old.csv", tmp_path / "new.csv", "--resamples", 200, "--patient-column", "who")
    assert f"The 155 scans are of {number} patients: patients, not scans, were resampled" in done.output, done.output
    assert f"155 scans of {number} patients, mean" in done.output
    assert "patients" not in cli(tmp_path / "old.csv", tmp_path / "new.csv", "--resamples", 200).output


def test_the_command_says_what_is_wrong(cli, tmp_path: Path) -> None:
    one = write(tmp_path / "one.csv", runs(0)[0])
    few = write(tmp_path / "few.csv", runs(0)[0].take(np.arange(100)))
    for arguments, message in (
        ((one,), "two systems at least, got 1"),
        ((one, few), "few has no scan 'scan 100', which one has"),
        ((one, one), "is given twice"),
        ((one, tmp_path / "on.csv"), "no such file or folder; in"),
        ((one, few, "--confidence", 2), "confidence must be in (0, 1), got 2.0"),
    ):
        done = cli(*arguments)
        assert done.exit_code == 1 and message in done.output.replace("\n", " "), done.output
