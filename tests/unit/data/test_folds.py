"""Folds: every scan judged once a repeat, no patient on two sides, nothing held out ever seen."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.model_selection import KFold

from fairlung.pipeline.data.cohort import Cohort, load_cohort
from fairlung.pipeline.data.folds import (
    Fold,
    FoldsError,
    fold_tables,
    fold_warnings,
    patient_folds,
    patient_warnings,
    write_folds,
)

CLASSES, GROUPS = ("x", "y", "z"), ("male", "female")
# the benchmark's cells: of women's squamous carcinomas there are five to train on
BENCHMARK = {("A", "male"): 125, ("A", "female"): 125, ("G", "male"): 79, ("G", "female"): 5}
BENCHMARK |= {(label, sex): 100 for label in ("covid", "normal") for sex in GROUPS}


def cohort_of(rows: list[dict[str, str]], classes=CLASSES, root: Path = Path("/data")) -> Cohort:
    table = pd.DataFrame(rows, dtype=str)
    return Cohort(
        table.assign(scan=table.get("scan", [f"s{i}" for i in range(len(table))])), root, classes, GROUPS, ("sex",)
    )


def benchmark() -> Cohort:
    rows = [{"label": label, "sex": sex} for (label, sex), n in BENCHMARK.items() for _ in range(n)]
    return cohort_of(rows, ("A", "G", "covid", "normal"))


def parts_of(fold: Fold) -> dict[str, str]:
    return dict(zip(fold.table["scan"], fold.table["split"], strict=True))


def draw_rows(**columns) -> st.SearchStrategy:
    row = st.fixed_dictionaries({"label": st.sampled_from(CLASSES), "sex": st.sampled_from((*GROUPS, ""))} | columns)
    return st.lists(row, min_size=12, max_size=40)


SPLIT = {"split": st.sampled_from(("train", "val", "test"))}


def made(rows: list[dict[str, str]], *arguments, **options) -> tuple[Cohort, list[Fold]]:
    cohort = cohort_of(rows)
    try:
        return cohort, fold_tables(cohort, *arguments, **options)
    except FoldsError:
        assume(False)
        raise


@settings(max_examples=12)
@given(rows=draw_rows(**SPLIT), folds=st.integers(2, 5), seed=st.integers(0, 99), inner=st.none() | st.integers(2, 4))
def test_every_scan_is_judged_once_a_repeat_and_cells_are_even(rows, folds, seed, inner) -> None:
    cohort, found = made(rows, folds, 2, seed, inner)
    free = cohort.table[cohort.table["split"] != "test"]
    assert [(fold.repeat, fold.fold) for fold in found] == [(r, f) for r in range(2) for f in range(folds)]
    for repeat in range(2):
        tested = Counter(
            scan for f in found if f.repeat == repeat for scan, part in parts_of(f).items() if part == "test"
        )
        assert tested == Counter(free["scan"])
    for fold in found:
        assert fold.table["scan"].tolist() == free["scan"].tolist()  # nothing held out, nothing lost, same order
        assert set(fold.table["split"]) == {"train", "val", "test"}
        assert set(fold.table.loc[fold.table["split"] == "train", "label"]) == set(CLASSES)
        sizes = fold.table.groupby(["label", "sex"])["split"].apply(lambda split: (split == "test").sum())
        cells = free.groupby(["label", "sex"]).size()
        assert ((sizes == cells // folds) | (sizes == -(-cells // folds))).all()
        pd.testing.assert_frame_equal(
            fold.table.drop(columns="split"), free.drop(columns="split").reset_index(drop=True)
        )


@settings(max_examples=12)
@given(
    rows=draw_rows(patient=st.sampled_from(["", *(f"Doe {i}" for i in range(12))])),
    folds=st.integers(2, 4),
    seed=st.integers(0, 99),
)
def test_no_patient_is_on_two_sides(rows, folds, seed) -> None:
    cohort, found = made(rows, folds, 1, seed)
    patient = dict(zip(cohort.table["scan"], cohort.table["patient"], strict=True))
    tested: Counter[str] = Counter()
    for fold in found:
        side: dict[str, str] = {}
        for scan, part in parts_of(fold).items():
            if patient[scan]:
                assert side.setdefault(patient[scan], part) == part
            tested[scan] += part == "test"
        # the ids themselves stay behind, what they say does not
        pairs = {(patient[scan], code) for scan, code in zip(fold.table["scan"], fold.table["patient"], strict=True)}
        assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs)
        assert ("", "") in pairs or "" not in patient.values()
        assert not fold.table["patient"].str.contains("Doe").any()
    assert set(tested.values()) == {1}


@settings(max_examples=10)
@given(
    rows=draw_rows(patient=st.sampled_from(["", "a", "b", "c", "d", "e", "f"])), order=st.randoms(use_true_random=False)
)
def test_the_order_of_rows_makes_no_difference(rows, order) -> None:
    rows = [{"scan": f"s{i}"} | row for i, row in enumerate(rows)]
    _, found = made(rows, 3, 2, 5)
    _, again = made(order.sample(rows, len(rows)), 3, 2, 5)
    assert [parts_of(fold) for fold in found] == [parts_of(fold) for fold in again]
    assert [fold.warnings for fold in found] == [fold.warnings for fold in again]


def test_seeds_and_repeats_shuffle() -> None:
    same, same_again = fold_tables(benchmark(), 5, 2, 1), fold_tables(benchmark(), 5, 2, 1)
    assert [parts_of(fold) for fold in same] == [parts_of(fold) for fold in same_again]
    other = fold_tables(benchmark(), 5, 1, 2)
    assert parts_of(same[0]) != parts_of(same[5])
    assert parts_of(same[0]) != parts_of(other[0])


def test_the_benchmarks_five_women_are_in_every_part() -> None:
    cohort = benchmark()
    found = fold_tables(cohort, 5, 3)
    for fold in found:
        five = fold.table[(fold.table["label"] == "G") & (fold.table["sex"] == "female")]
        assert Counter(five["split"]) == {"test": 1, "val": 1, "train": 3}
        assert fold.warnings == ()
    assert fold_warnings(cohort, 5) == []
    assert fold_warnings(cohort, 5, 5) == ["female G: 5 scans for 5 inner parts: validation may hold none of it"]
    ten = fold_tables(cohort, 10)
    assert sum("no female G scan in test" in text for fold in ten for text in fold.warnings) == 5
    first, second = fold_warnings(cohort, 10)
    assert first == "female G: 5 scans for 10 folds: 5 test none of it"
    assert "inner parts" in second


def test_patients_of_several_scans_are_spread_as_evenly_as_chance_at_least() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for patient in range(120):
        label, sex = rng.choice(CLASSES, p=[0.6, 0.3, 0.1]), rng.choice(GROUPS)
        rows += [{"label": label, "sex": sex, "patient": f"p{patient}"}] * int(rng.integers(1, 4))
    cohort = cohort_of(rows)
    codes = pd.factorize(cohort.table["patient"])[0]
    cells = pd.factorize(cohort.table["label"] + cohort.table["sex"])[0]

    def unevenness(folds: list[np.ndarray]) -> float:
        counts = np.array([np.bincount(cells[inside], minlength=6) for inside in folds])
        return float((counts - counts.mean(0)).std())

    ours = [
        unevenness([(f.table["split"] == "test").to_numpy() for f in fold_tables(cohort, 5, 1, s)]) for s in range(5)
    ]
    by_chance = [
        unevenness([np.isin(codes, inside) for _, inside in KFold(5, shuffle=True, random_state=s).split(range(120))])
        for s in range(5)
    ]
    assert max(ours) < min(by_chance)


def test_warnings_name_small_cells_without_ids() -> None:
    rows = [{"label": label, "sex": sex, "patient": ""} for label in CLASSES for sex in GROUPS for _ in range(6)]
    rows = [row for row in rows if (row["label"], row["sex"]) not in (("z", "female"), ("y", "female"))]
    rows += [{"label": "y", "sex": "female", "patient": name} for name in ("Doe", "Doe", "Roe")]
    rows += [{"label": "x", "sex": "", "patient": ""}]
    cohort = cohort_of(rows)
    assert fold_warnings(cohort, 4) == [
        "unknown x: 1 scan for 4 folds: all but one test none of it",
        "unknown x: 1 scan: a fold that tests it lacks it in validation and in training",
        "female y: 3 scans of 2 patients for 4 folds: 2 test none of it",
        "female y: 3 scans of 2 patients: a fold that tests it lacks it in validation or in training",
        "female z: no scan at all; nothing can be said of it",
    ]
    said = [text for fold in fold_tables(cohort, 4) for text in fold.warnings]
    assert sum(text.endswith("no unknown x scan in test") for text in said) == 3
    assert not any("Doe" in text or "female z" in text for text in said)


def test_what_cannot_be_split() -> None:
    one = [{"label": label, "sex": sex} for label in ("x", "y") for sex in GROUPS for _ in range(8)]
    with pytest.raises(
        FoldsError, match=r"repeat 0, fold \d: no z scan is left to train on.* 1 patient or single scan"
    ):
        fold_tables(cohort_of([*one, {"label": "z", "sex": "male"}]), 4)
    with pytest.raises(FoldsError, match="at most 8 scans in a class and group, are too few for 9 parts"):
        fold_tables(cohort_of(one, ("x", "y")), 9)
    with pytest.raises(FoldsError, match="2 patients"):
        fold_tables(cohort_of([row | {"patient": row["sex"]} for row in one], ("x", "y")), 3)
    with pytest.raises(FoldsError, match="held out"):
        fold_tables(cohort_of([row | {"split": "test"} for row in one], ("x", "y")), 3)
    for options, said in (
        ({"folds": 1}, "folds must be a whole number of at least 2, got 1"),
        ({"repeats": 0}, "repeats must be a whole number of at least 1, got 0"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"inner_folds": 1}, "inner_folds must be a whole number of at least 2, got 1"),
    ):
        with pytest.raises(ValueError, match=said):
            fold_tables(cohort_of(one, ("x", "y")), **options)


def test_written_folds_are_cohorts_from_their_new_folder(tmp_path: Path) -> None:
    rows = []
    for label in CLASSES:
        for sex in GROUPS:
            for i in range(4):
                name = f"scans/{label}_{sex}_{i}"
                (tmp_path / "data" / name).mkdir(parents=True)
                scan = name if i else str(tmp_path / "data" / name)
                split = "test" if i == 3 else "train"
                rows.append(
                    {
                        "scan": scan,
                        "label": label,
                        "sex": sex,
                        "split": split,
                        "patient": f"{label}{sex}{i}",
                        "site": "a",
                        "name": "DOE^JANE",
                    }
                )
    pd.DataFrame(rows).to_csv(tmp_path / "data" / "cohort.csv", index=False)
    cohort = load_cohort(tmp_path / "data" / "cohort.csv", class_names=CLASSES, group_names=GROUPS)
    folds = fold_tables(cohort, 3, 2)
    paths = write_folds(cohort, folds, tmp_path / "study" / "deep" / "folds")
    assert [path.name for path in paths] == [f"repeat{r}_fold{f}.csv" for r in range(2) for f in range(3)]
    for path, fold in zip(paths, folds, strict=True):
        again = load_cohort(path, class_names=CLASSES, group_names=GROUPS, require_splits=("train", "val", "test"))
        images = {Path(item["image"]).resolve() for split in again.splits() for item in again.items(split)}
        assert images == {Path(item["image"]) for item in cohort.items("train")}
        assert again.table["split"].tolist() == fold.table["split"].tolist()
        assert set(again.table) == {"scan", "label", "sex", "split", "patient", "site"}  # all else may name patients
    assert len({load_cohort(path, class_names=CLASSES, group_names=GROUPS).digest for path in paths}) == len(paths)


# ---- folds of which none chooses ------------------------------------------------------------------------------------
def few_patients(per_cell: int = 1, scans: int = 2) -> Cohort:
    """``per_cell`` patients of each class and sex, with ``scans`` scans each."""
    cells = [(label, sex, i) for label in CLASSES for sex in GROUPS for i in range(per_cell)]
    rows = [{"label": c, "sex": s, "patient": f"{c}{s}{i}"} for c, s, i in cells for _ in range(scans)]
    return cohort_of(rows)


def test_as_many_folds_as_patients_leave_each_out_once() -> None:
    cohort = few_patients()
    folds = patient_folds(cohort, 6)
    judged = [set(cohort.table["patient"][(fold.table["split"] == "val").to_numpy()]) for fold in folds]
    assert sorted(judged, key=min) == [{patient} for patient in sorted(set(cohort.table["patient"]))]
    assert all(Counter(fold.table["split"]) == {"val": 2, "train": 10} for fold in folds)
    (said,) = patient_warnings(cohort)
    assert said.startswith("one patient only, so that the models") and said.endswith("male z")
    assert patient_warnings(few_patients(per_cell=2)) == []


@settings(max_examples=12)
@given(per_cell=st.integers(2, 5), scans=st.integers(1, 3), folds=st.integers(2, 5), seed=st.integers(0, 99))
def test_each_patient_is_judged_once_a_repeat_by_models_of_the_others(per_cell, scans, folds, seed) -> None:
    cohort = few_patients(per_cell, scans)
    assume(folds <= per_cell)
    found = patient_folds(cohort, folds, 2, seed)
    for repeat in (0, 1):
        parts = [fold.table for fold in found if fold.repeat == repeat]
        judged = [scan for table in parts for scan in table["scan"][table["split"] == "val"]]
        assert sorted(judged) == sorted(cohort.table["scan"]) and len(parts) == folds
    for fold in found:
        assert (fold.table.groupby("patient")["split"].nunique() == 1).all()
        assert set(fold.table["split"]) == {"train", "val"}
        assert set(fold.table["label"][fold.table["split"] == "train"]) == set(CLASSES)


@pytest.mark.parametrize(
    ("cohort", "folds", "said"),
    [
        (few_patients(), 8, "6 patients are too few for 8 folds: take 6, one patient each"),
        (few_patients(), 5, "are too few for 5 parts"),
        (cohort_of([{"label": c, "sex": "male"} for c in "xxyyz"]), 5, "no z scan is left to train on; a class needs"),
        (few_patients(), 1, "folds must be"),
    ],
)
def test_folds_of_too_few_patients_are_refused(cohort: Cohort, folds: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        patient_folds(cohort, folds)
