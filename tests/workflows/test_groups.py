"""Groups of several columns through the shipped configs: every judgement agrees with a count by hand."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from monai.bundle import ConfigWorkflow
from sklearn.metrics import f1_score
from workflows import CLASSES, EXPLAINED_NETWORK, Start, run

from fairlung.pipeline.common.errors import user_error
from fairlung.pipeline.common.names import SEXES
from fairlung.pipeline.evaluation.audit import audit
from fairlung.pipeline.evaluation.predictions import load_predictions
from fairlung.pipeline.reports.document import escape_markdown


def with_gaps(small_cohort: Path, folder: Path) -> Path:
    """The phantoms' cohort with every fifth age and the sex of one scan missing."""
    table = pd.read_csv(small_cohort, dtype=str, keep_default_na=False)
    table["scan"] = [str(small_cohort.parent / scan) for scan in table["scan"]]
    table.loc[table.index % 5 == 1, "age"] = ""
    table.loc[2, "sex"] = ""
    table.to_csv(folder / "cohort.csv", index=False)
    return folder / "cohort.csv"


def read_groups(training: ConfigWorkflow) -> list[str]:
    """The group of each known training scan, from the items as they are before any is left out."""
    cohort = training.parser.get_parsed_content("cohort_data")
    return [cohort.group_names[item["group"]] for item in cohort.items("train") if item["group"] >= 0]


CASES: dict[str, dict[str, Any]] = {
    "sex and site": {"group_by": ["sex", "site"], "small_groups": "leave_out"},
    "sex and age": {"group_by": ["sex", "age_band"], "age_bands": [55], "unknown_groups": "own_group"},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.slow
def test_combinations_train_and_every_judgement_agrees(
    start: Start, small_cohort: Path, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # MLflow keeps artifacts in the working directory
    path = with_gaps(small_cohort, tmp_path)
    shared = {"cohort": str(path), "output_dir": str(tmp_path / "run"), "allow_empty_cells": True}
    shared |= {"min_cell": 2, "batch_size": 16, "system_metrics": False, "network_def": EXPLAINED_NETWORK}
    shared |= {"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db" if case == "sex and age" else ""}
    (tmp_path / "key").write_text("0123456789abcdef")
    shared["patient_key"] = str(tmp_path / "key")
    training = run(start("train", **shared, **CASES[case], epochs=1))
    judging = start("train", "evaluate", **shared, resamples=200, error_images=int(case == "sex and site"))
    run(judging)  # the checkpoint knows the groups

    columns, folder = CASES[case]["group_by"], tmp_path / "run" / "val" / "evaluation"
    settings = torch.load(tmp_path / "run" / "models" / "best.pt", weights_only=True)["settings"]
    names = settings["group_names"]
    assert settings["group_by"] == columns
    assert ("unknown" in names) is (case == "sex and age")
    if case == "sex and age":
        assert "train_loss_unknown" in training.trainer.state.metrics
        assert names == ["male x <55", "male x >=55", "female x <55", "female x >=55", "unknown"]

    text = (folder / "predictions.csv").read_text()
    table = pd.read_csv(folder / "predictions.csv", dtype=str, keep_default_na=False)
    assert list(table.columns[:5]) == ["scan", "label", *columns, "prediction"]
    cohort = pd.read_csv(path, dtype=str, keep_default_na=False).set_index("scan")
    assert list(table["site"]) == list(cohort.loc[table["scan"], "site"])
    trained = pd.read_csv(tmp_path / "run" / "val" / "predictions.csv", dtype=str, keep_default_na=False)
    assert table["patient"].str.fullmatch("[0-9a-f]{16}").all() and list(table["patient"]) == list(trained["patient"])
    assert "age" not in table
    assert set(table["sex"]) <= {*SEXES, ""}

    # by hand: P is the mean over the groups that have a scan
    known = (table[columns] != "").all(axis=1)
    group = table[columns].agg(" x ".join, axis=1).where(known, "unknown")
    if "unknown" not in names:
        table, group = table[known], group[known]
    f1 = {
        name: f1_score(rows["label"], rows["prediction"], labels=CLASSES, average="macro", zero_division=0)
        for name, rows in table.groupby(group)
    }
    metrics = json.loads((folder / "metrics.json").read_text())
    judged = json.loads((folder / "audit.json").read_text())
    assert metrics["group_by"] == judged["group_by"] == columns
    assert metrics["metrics"]["score"] == pytest.approx(np.mean([*f1.values()]), abs=1e-12)
    assert metrics["metrics"]["abs_gap"] == pytest.approx(np.ptp([*f1.values()]), abs=1e-12)
    assert judged["overall"]["score"]["value"] == pytest.approx(metrics["metrics"]["score"], abs=1e-12)
    assert judged["overall"]["abs_gap"]["value"] == pytest.approx(metrics["metrics"]["abs_gap"], abs=1e-12)
    assert {part["group"]: part["f1"]["value"] for part in judged["groups"]} == pytest.approx(f1, abs=1e-12)
    assert {*judged["group_names"], *judged["absent_groups"]} == set(names)
    assert all(cell["small"] is (cell["n"] < 2) for cell in judged["cells"])
    assert "fewer than 2 scans" in (folder / "report.md").read_text()
    report = (folder / "report.md").read_text()
    assert all(escape_markdown(name) in report for name in f1)

    # any table can be judged by one of its columns alone
    assert load_predictions(folder / "predictions.csv").group_names == tuple(names)
    alone = audit(load_predictions(folder / "predictions.csv", CLASSES, group_by=["sex"]), 100, 100)
    assert alone.group_names == SEXES
    assert not any(f",{age}," in text for age in set(cohort["age"]) - {""})
    if case == "sex and site":
        left_out = [name for name, n in Counter(read_groups(training)).items() if n < 2]
        assert left_out and not any(f"train_loss_{name}" in training.trainer.state.metrics for name in left_out)
        assert "train_loss_left_out" in training.trainer.state.metrics
        (error,) = json.loads((folder / "errors" / "errors.json").read_text())
        assert error["group"] in {*names, "unknown"}
        return

    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as store:
        logged = store.execute("select key, value from metrics where key in ('val/score', 'val/best_score')").fetchall()
        keys = {key for (key,) in store.execute("select key from metrics")}
        params = dict(store.execute("select key, value from params"))
    assert {round(value, 9) for _, value in logged} == {round(metrics["metrics"]["score"], 9)}
    assert json.loads(params["groups"]) == names
    assert {"val/f1/male x under 55", "val/f1/male x from 55", "val/f1/unknown"} <= keys


def test_small_combinations_stop_with_what_to_set(start: Start, small_cohort: Path, tmp_path: Path) -> None:
    workflow = start("train", cohort=str(small_cohort), output_dir=str(tmp_path), group_by=["sex", "age_band"])
    with pytest.raises(Exception) as caught:  # noqa: PT011  (MONAI wraps every kind)
        run(workflow)
    assert "age_bands, such as [65], makes it of the column 'age'" in str(user_error(caught.value))
