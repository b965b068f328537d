"""Cohorts of phantoms: the cells that were asked for, no hint at the class, the same for any number of workers."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fairlung.pipeline.common.names import CLASS_NAMES, SEXES
from fairlung.pipeline.phantoms import cohort as phantom_cohort
from fairlung.pipeline.phantoms.anatomy import SHIFTED_SITES, SITES
from fairlung.pipeline.phantoms.cohort import PRESETS, Preset


def digest(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantom_cohort.write_phantom_cohort(
        tmp_path_factory.mktemp("cohort"), "tiny", "mixed", seed=3, workers=1, progress=False
    ).parent


def test_benchmark_has_the_published_cells() -> None:
    cells = PRESETS["benchmark"].cells
    assert set(cells) == {"train", "val"}
    assert [sum(cells[split].values()) for split in ("train", "val")] == [734, 155]
    assert [cells["train"]["squamous_cell", sex] for sex in ("male", "female")] == [79, 5]
    assert [cells["val"]["squamous_cell", sex] for sex in ("male", "female")] == [12, 13]
    assert cells["train"]["adenocarcinoma", "female"] == 125 and cells["val"]["covid19", "male"] == 20


def test_plan_keeps_site_and_format_apart_from_class_and_sex() -> None:
    specs = phantom_cohort.plan_cohort("benchmark", fmt="mixed", seed=0)
    for attribute in ("site", "fmt"):
        for cell, count in PRESETS["benchmark"].cells["train"].items():
            values = Counter(getattr(s, attribute) for s in specs if s.split == "train" and (s.label, s.sex) == cell)
            assert max(values.values()) - min(values.values()) <= 1 and sum(values.values()) == count
    both = Counter((s.site, s.fmt) for s in specs)
    assert len(both) == 9 and min(both.values()) > 60  # nor are they tied to each other
    assert len({s.patient for s in specs}) == len({s.path for s in specs}) == 889


def test_shifted_sites_see_other_classes_and_both_sexes_alike() -> None:
    specs = phantom_cohort.plan_cohort("shifted", seed=4)
    for site, shares in PRESETS["shifted"].sites.items():
        for split, least in (("train", 2), ("val", 1)):  # of a deck of six
            for sex in SEXES:
                found = Counter(s.label for s in specs if (s.site, s.split, s.sex) == (site, split, sex))
                assert [found[label] for label in CLASS_NAMES] == [least * share for share in shares]
    share = {s: Counter(spec.label for spec in specs if spec.site == s) for s in SHIFTED_SITES}
    assert {max(counts, key=counts.get) for counts in share.values()} == set(CLASS_NAMES)  # a site for each class


def test_shifted_scanners_can_be_told_apart() -> None:
    """The same patient at each site: noise, sharpness and slices differ by more than those of the plain sites."""

    def seen(site: str) -> tuple[float, float, int]:
        spec = phantom_cohort.ScanSpec("x", "normal", "male", "train", "P1", site, "nifti", small, 0, (1, 1))
        scan = phantom_cohort.synthesize_spec(spec)
        return float(scan.hu[:, :5, :5].std()), scan.spacing[0], scan.hu.shape[0]  # air in a corner

    shifted = PRESETS["shifted"]
    small = Preset({}, size=96, slices=(10, 20), sites=shifted.sites)
    dogwood, elder, fir, hazel = map(seen, SHIFTED_SITES)
    assert fir[0] > 1.5 * elder[0] > 1.5 * hazel[0] > dogwood[0]
    assert dogwood[2] < hazel[2] < fir[2] < elder[2] and dogwood[1] > elder[1]


def test_cohort_files_match_the_table(cohort: Path) -> None:
    with (cohort / "cohort.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == phantom_cohort.COHORT_COLUMNS
    assert [row["scan"] for row in rows] == sorted(row["scan"] for row in rows)
    counts = Counter((row["split"], row["label"], row["sex"]) for row in rows)
    assert counts == {(s, *cell): n for s, part in PRESETS["tiny"].cells.items() for cell, n in part.items()}
    assert len({row["patient"] for row in rows}) == len(rows)
    kinds = Counter()
    for row in rows:
        path = cohort / row["scan"]
        assert path.parts[-4:-1] == (row["split"], row["label"], row["sex"])
        assert 50 <= int(row["slices"]) <= 56 and row["synthetic"] == "yes" and row["site"] in SITES
        shifted = (row["label"], row["sex"]) == ("squamous_cell", "female")
        assert row["presentation"] == ("shifted" if shifted else "typical")
        if path.is_file():
            kinds["nifti"] += 1
        else:
            names = {p.name for p in path.iterdir()}
            assert len(names) == int(row["slices"])
            kinds["jpg" if "0.jpg" in names else "dicom"] += 1
    assert set(kinds) == {"jpg", "dicom", "nifti"} and min(kinds.values()) >= 8
    assert {str(p.relative_to(cohort)) for p in cohort.rglob("phantom-*")} == {row["scan"] for row in rows}


def test_worker_count_changes_nothing(tmp_path: Path) -> None:
    few = Preset({"train": {("squamous_cell", "female"): 3, ("covid19", "male"): 3}}, size=48, slices=(20, 24))
    for workers in (1, 2):
        phantom_cohort.write_phantom_cohort(tmp_path / str(workers), few, "mixed", 1, workers=workers, progress=False)
    alone = digest(tmp_path / "1")
    assert alone == digest(tmp_path / "2") and len(alone) > 50


def test_a_patient_who_is_scanned_again_is_another_scan_of_the_same_split(tmp_path: Path) -> None:
    few = Preset({"train": {("covid19", "male"): 2}, "val": {("normal", "female"): 1}}, size=32, slices=(20, 24))
    options: dict[str, Any] = {"fmt": "mixed", "seed": 4, "workers": 1, "progress": False}
    phantom_cohort.write_phantom_cohort(tmp_path / "once", few, **options)
    path = phantom_cohort.write_phantom_cohort(tmp_path / "twice", few, scans_per_patient=2, **options)
    once, twice = digest(tmp_path / "once" / "scans"), digest(tmp_path / "twice" / "scans")
    assert once and once.items() < twice.items()  # the first scans are as they were
    table = pd.read_csv(path)
    of_patient = table.groupby("patient")
    assert (of_patient.size() == 2).all() and (of_patient["site"].nunique() == 2).all()
    assert (of_patient[["split", "label", "sex", "age"]].nunique() == 1).all(axis=None)
    with pytest.raises(ValueError, match="scans_per_patient must be at least 1, got 0"):
        phantom_cohort.plan_cohort(few, scans_per_patient=0)


def test_a_second_cohort_does_not_mix_with_the_first(cohort: Path) -> None:
    with pytest.raises(FileExistsError, match="scans is not empty"):
        phantom_cohort.write_phantom_cohort(cohort, "tiny", "jpg", progress=False)


def test_new_scans_carry_no_label(tmp_path: Path) -> None:
    few = Preset({}, size=32, slices=(10, 12))
    request = [("covid19", "male"), ("normal", "female"), ("squamous_cell", "male")]
    paths = phantom_cohort.write_phantom_scans(tmp_path, request, preset=few, seed=2)
    assert [p.name for p in paths] == ["new-0001", "new-0002", "new-0003.nii.gz"]
    assert (paths[0] / "0.jpg").is_file() and (paths[1] / "IM-0001.dcm").is_file() and paths[2].is_file()
    names = " ".join(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*"))
    assert not any(label in names for label in CLASS_NAMES)
    with pytest.raises(FileExistsError, match="new-0001 already exists"):
        phantom_cohort.write_phantom_scans(tmp_path, request, preset=few, seed=2)
    with pytest.raises(ValueError, match="fmt must be one of .*, got 'bmp'"):
        phantom_cohort.write_phantom_scans(tmp_path, request, preset=few, fmt="bmp")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "huge"}, "preset must be one of tiny, demo, benchmark, shifted, got 'huge'"),
        ({"fmt": "nrrd"}, "fmt must be one of jpg, dicom, nifti, mixed, got 'nrrd'"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
        ({"workers": 0}, "workers must be >= 1, got 0"),
    ],
)
def test_cohort_names_the_wrong_value(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        phantom_cohort.write_phantom_cohort(tmp_path, **({"progress": False} | options))  # type: ignore[arg-type]
    assert not (tmp_path / "cohort.csv").exists()


def test_preset_checks_its_cells() -> None:
    with pytest.raises(ValueError, match="must be >= 0, got -2"):
        Preset({"train": {("normal", "male"): -2}}, size=64, slices=(50, 60))
    with pytest.raises(ValueError, match="slices must be .* got"):
        Preset({}, size=64, slices=(60, 50))
    with pytest.raises(ValueError, match="sites must be one of alder, .*, got 'ash'"):
        Preset({}, size=64, slices=(50, 60), sites={"ash": (1, 1, 1, 1)})
    with pytest.raises(ValueError, match="must be 4 shares of at least 0, got .1, -1, 1, 1."):
        Preset({}, size=64, slices=(50, 60), sites={"alder": (1, -1, 1, 1)})
    with pytest.raises(ValueError, match="sites: none of alder sees covid19"):
        Preset({}, size=64, slices=(50, 60), sites={"alder": (1, 1, 0, 1)})
