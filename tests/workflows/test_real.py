"""The recipe for real patients (docs/experiments.md), on phantoms in folders of the same shape and names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from small_scans import save_grey
from typer.testing import CliRunner
from workflows import SHRUNK, SMALL_NETWORK

from fairlung.pipeline.cli.app import app
from fairlung.pipeline.phantoms.anatomy import synthesize
from fairlung.pipeline.phantoms.writers import write_dicom_series
from fairlung.pipeline.studies import worker
from fairlung.pipeline.studies.folder import StudyFolder
from fairlung.pipeline.studies.plan import plan, read_study
from fairlung.pipeline.studies.record import StudyError
from fairlung.pipeline.studies.tables import write_tables

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "studies" / "real.yaml"
COVID = "COVID-CT-MD/{} subjects/{}"
DX = "Lung-PET-CT-Dx/manifest-1/Lung-PET-CT-Dx/Lung_Dx-{}/04-04-2007-NA-Chest-1/{}"
# a class of phantom and the series of each patient
PATIENTS = [
    ("covid19", "male", [COVID.format("COVID-19", "P001")]),
    ("covid19", "female", [COVID.format("COVID-19", "P002")]),
    ("squamous_cell", "male", [COVID.format("Cap", "cap001")]),
    ("squamous_cell", "female", [COVID.format("Cap", "cap002")]),
    ("normal", "female", [COVID.format("Normal", "normal001")]),
    ("normal", "male", [COVID.format("Normal", "normal002")]),
    ("adenocarcinoma", "male", [DX.format("A0001", "2.000000-5mm-1"), DX.format("A0001", "3.000000-5mm-2")]),
    ("adenocarcinoma", "female", [DX.format("A0002", "2.000000-8.0.0  B70f-3")]),
    ("squamous_cell", "female", [DX.format("G0001", "2.000000-5mm-4")]),
]


def folders_of_the_docs() -> str:
    """The table of folders that docs/experiments.md shows."""
    text = (ROOT / "docs" / "experiments.md").read_text()
    block = text[text.index("    folder,label,site\n") :].split("\n\n")[0]
    return "".join(f"{line.strip()}\n" for line in block.splitlines())


@pytest.fixture(scope="module")
def cohort_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``fairlung cohort`` of the made folder, as the docs say it."""
    folder = tmp_path_factory.mktemp("real")
    for i, (label, sex, series) in enumerate(PATIENTS):
        for j, place in enumerate(series):
            scan = synthesize(label, sex, rng=np.random.default_rng(10 * i + j), shape=(12, 48, 48))
            where, who = folder / "data" / place, f"REAL-{i}"
            write_dicom_series(where, scan.hu, scan.spacing, sex=sex, age=40 + i, patient_id=who, uid_seed=str(j))
    save_grey((folder / "data" / DX.format("A0001", "")).parent / "result", [f"1-{k}.png" for k in range(11)])
    (folder / "folders.csv").write_text(folders_of_the_docs())
    arguments = ["cohort", str(folder / "data"), "--folders", str(folder / "folders.csv"), "-o", str(folder / "c.csv")]
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert "Lung_Dx-A0001/result: its folder has the label -" in done.output.replace("04-04-2007-NA-Chest-1/", "")
    return folder / "c.csv"


def test_the_recipe_knows_classes_sexes_patients_and_data_sets(cohort_file: Path) -> None:
    table = pd.read_csv(cohort_file, dtype=str)
    assert "REAL" not in cohort_file.read_text()
    assert table.groupby("label").size().to_dict() == {"adenocarcinoma": 3, "cap": 2, "covid19": 2, "normal": 2}
    assert table.groupby(["label", "sex"])["patient"].nunique().tolist() == [1] * 8
    sites = table.groupby("site")["label"].agg(set).to_dict()
    assert sites == {"covid_ct_md": {"covid19", "cap", "normal"}, "lung_pet_ct_dx": {"adenocarcinoma"}}
    assert sorted(table["age"].astype(int)) == [40, 41, 42, 43, 44, 45, 46, 46, 47]


def study_of(cohort_file: Path, bundle_dir: Path, tmp_path: Path, **changes: Any) -> Path:
    """The shipped study, shrunk."""
    content = yaml.safe_load(STUDY.read_text())
    content["settings"] |= {**SHRUNK, "tracking_uri": "", "cache_dir": str(tmp_path / "cache")}
    content["systems"] = [row | {"network_def": SMALL_NETWORK} for row in content["systems"][:1]]
    content |= {"bundle_root": str(bundle_dir), "cohort": str(cohort_file)}
    content["evaluation"] |= {"resamples": 200}
    (tmp_path / "real.yaml").write_text(yaml.safe_dump(content | changes))
    return tmp_path / "real.yaml"


def test_every_patient_is_left_out_and_no_epoch_is_chosen(cohort_file: Path, bundle_dir: Path, tmp_path: Path) -> None:
    study = read_study(STUDY, cohort=str(cohort_file), bundle_root=str(bundle_dir))
    runs = plan(study, tmp_path / "out")
    assert [run.fold for run in runs] == [fold for fold in range(8) for _ in study.systems]
    assert {run.evaluate for run in runs} == {("val",)}
    assert {run.settings["val_interval"] for run in runs} == {"@epochs"}
    judged = [pd.read_csv(run.cohort).query("split == 'val'")["patient"].unique().tolist() for run in runs]
    assert [len(patients) for patients in judged] == [1] * 16 and len({patient for (patient,) in judged}) == 8
    chooses = read_study(study_of(cohort_file, bundle_dir, tmp_path, settings={"val_interval": 1}))
    with pytest.raises(StudyError, match="val_interval is the study's own to say"):
        plan(chooses, tmp_path / "other")


@pytest.mark.slow
def test_the_recipe_ends_in_tables_that_conclude_nothing(cohort_file: Path, bundle_dir: Path, tmp_path: Path) -> None:
    table = pd.read_csv(cohort_file, dtype=str).query("label in ['cap', 'adenocarcinoma']")
    table["scan"] = [str(cohort_file.parent / scan) for scan in table["scan"]]
    table.to_csv(tmp_path / "four.csv", index=False)
    path = study_of(tmp_path / "four.csv", bundle_dir, tmp_path, folds=4)
    content = yaml.safe_load(path.read_text())
    content["settings"]["class_names"] = ["cap", "adenocarcinoma"]
    path.write_text(yaml.safe_dump(content))
    study = read_study(path)
    folder = StudyFolder(tmp_path / "out", study, plan(study, tmp_path / "out"))
    for run in folder.to_run():
        folder.begins(run.id)
        folder.ends(run.id, worker.main(str(folder.run_file(run.id))))
    assert folder.counts()["finished"] == 4, [folder.reason(run) for run in folder.planned]
    for run in folder.planned:
        history = pd.read_csv(folder.run_file(run).with_name("history.csv"))
        assert history.loc[history["metric"] == "val_score", "epoch"].tolist() == [study.settings["epochs"]]
    written = write_tables([tmp_path / "out"], resamples=200)
    page = (tmp_path / "out" / "tables" / "index.html").read_text()
    (row,) = written.table.rows
    assert row[0] == "CE"
    for said in (
        "5 of 4 patients",
        "fixed before the study: no scans chose it",
        "seen no other: female adenocarcinoma",
    ):
        assert said in page
    assert "Optimistic" not in page and "Quoted" not in page
    record = json.loads((tmp_path / "out" / "study.json").read_text())
    assert (record["protocol"], record["folds"]) == ("cross_validation", 4)
