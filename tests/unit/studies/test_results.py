"""The finished part of a study: what is unfinished is counted, and nothing is hidden."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from simulated_studies import (
    DRAWS,
    change,
    runs_of,
    write_study,
)

from fairlung.pipeline.evaluation.predictions import Predictions
from fairlung.pipeline.studies.record import StudyError, load_study
from fairlung.pipeline.studies.results import one_answer_notes, pooled, read_results
from fairlung.pipeline.studies.summary import study_tables
from fairlung.pipeline.studies.tables import (
    study_document,
    table_notes,
    write_tables,
)


def test_failed_runs_are_counted_and_shown(nested_tables):
    page = (nested_tables / "index.html").read_text()
    assert "27 of 36 runs finished, 9 failed" in page and "CUDA out of memory" in page
    assert "CNN-RNN 3 of 3" in (nested_tables / "table1.md").read_text()
    assert page.index("A cell has 5 scans.") < page.index("Table 1")


def test_a_seed_that_lacks_a_fold_is_left_out_and_counted(nested_study, tmp_path):
    def lose(record: dict[str, Any]) -> None:
        run = next(run for run in record["runs"] if run["label"] == "CE" and run["fold"] == 1)
        run["status"] = "running"

    tables = study_tables([change(nested_study, lose, tmp_path / "s")], resamples=DRAWS)
    row = tables.rows[0]
    assert (row.label, row.replicates, row.planned) == ("CE", 2, 3)
    assert any("CE 1 of 3" in note for note in table_notes(tables))


def test_a_finished_run_without_its_evaluation_is_a_warning(given_study, tmp_path):
    folder = tmp_path / "s"
    shutil.copytree(given_study, folder)
    first, second = runs_of(folder)["output_dir"][:2]
    shutil.rmtree(folder / first / "val" / "evaluation")
    table = folder / second / "val" / "evaluation" / "predictions.csv"
    other = pd.read_csv(table)
    other["prediction"] = other["label"]
    other.to_csv(table, index=False)
    results = read_results(load_study(folder))
    assert [text.split()[0] for text in results.problems] == list(runs_of(folder)["id"][:2])
    assert "metrics.json is missing" in results.problems[0]
    assert "not of the same predictions" in results.problems[1]
    assert str(folder) not in "".join(results.problems)
    assert len(results.replicates["CE"]) == 1
    write_tables([folder], tmp_path / "out", resamples=DRAWS)
    assert "metrics.json is missing" in (tmp_path / "out" / "tables.md").read_text()


def test_runs_that_give_a_fold_one_class_are_told(nested_study, given_study):
    results = read_results(load_study(nested_study))
    assert one_answer_notes(results) == []
    first = [run.id for run in results.study.runs if run.label == "CE" and run.id in results.tables][:2]
    one = {
        name: replace(results.tables[name], prediction=np.full_like(results.tables[name].prediction, 1))
        for name in first
    }
    (told,) = one_answer_notes(replace(results, tables=results.tables | one))
    assert told.startswith("CE: 2 of 9 runs give one class")
    # a fold of one class tells nothing of the network
    same = {name: replace(table, label=np.full_like(table.label, 1)) for name, table in one.items()}
    assert one_answer_notes(replace(results, tables=results.tables | same)) == []
    # no folds, nothing put together
    results = read_results(load_study(given_study))
    one = {name: replace(table, prediction=np.zeros_like(table.prediction)) for name, table in results.tables.items()}
    assert one_answer_notes(replace(results, tables=one)) == []


def with_patients(study: Path, scans: int) -> None:
    """So many scans of a group and class to a patient, under another key in each run, as without --patient_key."""
    for number, output in enumerate(runs_of(study)["output_dir"]):
        (path,) = (study / output).glob("*/evaluation/predictions.csv")
        table = pd.read_csv(path, dtype=str)
        of = table["scan"].str.removeprefix("scan").astype(int) // scans
        table.assign(patient=[f"{(one * 7919 + number * 104729) % 2**61:016x}" for one in of]).to_csv(path, index=False)


@pytest.mark.fault(
    "lost",
    "the tables of a study of folds whose cohort says whose its scans are",
    before="an error of an index",
    now="the patients of all folds, each in one",
)
def test_a_study_resamples_patients(tmp_path):
    given, nested = (
        write_study(
            tmp_path / name, {"CE": {"skill": (0.7, 0.6)}, "LA": {"skill": (0.8, 0.8)}}, (1,), folds, per_cell=12
        )
        for name, folds in (("given", 0), ("nested", 2))
    )
    scans = {folder: study_tables([folder], resamples=100) for folder in (given, nested)}
    with_patients(given, 3)
    with_patients(nested, 1)
    one_each, several = study_tables([nested], resamples=100), study_tables([given], resamples=100)
    assert one_each.rows == scans[nested].rows and one_each.best == scans[nested].best
    assert one_each.results.judged.patient is not None and not one_each.results.judged.repeated
    assert several.results.judged.n_patients == 32
    for ours, theirs in zip(several.rows, scans[given].rows, strict=True):
        assert ours.estimates["score"].value == theirs.estimates["score"].value
        assert ours.estimates["score"] != theirs.estimates["score"]
    assert several.best[0].rivals[0]["difference"] != scans[given].best[0].rivals[0]["difference"]
    page = str(study_document(several))
    assert "96 of 32 patients" in page and "bootstrap resamples of the patients" in page
    assert "patients" not in str(study_document(scans[given]))


def test_folds_put_together_keep_their_patients_apart():
    label = np.tile([0, 1], 3)
    parts = [
        Predictions(np.array([f"{name}{i}" for i in range(6)]), label, label, label, None, tuple("ab"),
                    ("male", "female"), ("sex",), patient=patient)
        for name, patient in (("x", np.array([0, 1, 0, 1, 0, 2])), ("y", np.array([0, 1, 2, 3, 2, 3])))
    ]  # fmt: skip
    together = pooled(parts)
    assert together.patient.tolist() == [0, 1, 0, 1, 0, 2, 3, 4, 5, 6, 5, 6]
    assert pooled([parts[0], replace(parts[1], patient=None)]).patient is None


def test_nothing_finished_is_an_error(tmp_path):
    folder = write_study(tmp_path / "s", {"CE": {"skill": (1, 1), "status": "pending"}})
    with pytest.raises(StudyError, match="no finished run yet .0 of 3 runs finished, 3 pending"):
        study_tables([folder])


def test_no_whole_seed_is_an_error(nested_study, tmp_path):
    def lose(record: dict[str, Any]) -> None:
        for run in record["runs"]:
            run["status"] = "pending" if run["fold"] == 2 else run["status"]

    with pytest.raises(StudyError, match="no seed has all its folds"):
        study_tables([change(nested_study, lose, tmp_path / "s")])


def test_folds_on_one_fixed_test_split_are_replicates_and_shared_scans_an_error(nested_study, tmp_path):
    folder = tmp_path / "fixed"
    shutil.copytree(nested_study, folder)
    runs = runs_of(folder)
    ce = runs[(runs["label"] == "CE") & (runs["seed"] == 1)]
    source = folder / ce["output_dir"].iloc[0] / "test"
    for other in ce["output_dir"].iloc[1:]:
        shutil.rmtree(folder / other / "test")
        shutil.copytree(source, folder / other / "test")
    assert [r.seed for r in read_results(load_study(folder)).replicates["CE"]] == [1, 1, 1, 2, 3]
    last = ce["output_dir"].iloc[2]
    shutil.rmtree(folder / last / "test")
    shutil.copytree(nested_study / last / "test", folder / last / "test")
    with pytest.raises(StudyError, match="judge some scans twice"):
        read_results(load_study(folder))
