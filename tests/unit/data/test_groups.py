"""Groups from any columns: names, order, unknown values and bands of age."""

from __future__ import annotations

import logging
import re
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from fire.parser import DefaultParseValue
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from fairlung.pipeline.common.names import SEXES
from fairlung.pipeline.data.cohort import Cohort, load_cohort, warn_of_small_cells
from fairlung.pipeline.data.cohort_checks import CohortError, check_age_bands
from fairlung.pipeline.data.groups import (
    MIN_CELL,
    age_band_names,
    age_bands,
    group_columns,
    natural_order,
    parent_groups,
)
from fairlung.pipeline.evaluation.audit import audit
from fairlung.pipeline.evaluation.predictions import PredictionsError, load_predictions
from fairlung.pipeline.losses.aggregation import GroupCVaR
from fairlung.pipeline.losses.sample_losses import CrossEntropy
from fairlung.pipeline.losses.two_level import TwoLevelLoss


def write(folder: Path, table: pd.DataFrame) -> Path:
    """The table as cohort.csv, with a folder a scan; scan and label are made where there are none."""
    scans = [f"s{i}" for i in range(len(table))]
    defaults = {"scan": scans, "label": ["a", "b"] * (len(table) // 2) + ["a"] * (len(table) % 2), "split": "train"}
    table = pd.DataFrame({name: value for name, value in defaults.items() if name not in table}).join(table)
    for scan in table["scan"]:
        (folder / scan).mkdir(exist_ok=True)
    table.to_csv(folder / "cohort.csv", index=False)
    return folder / "cohort.csv"


def load(path: Path, **options: Any) -> Cohort:
    return load_cohort(path, **{"class_names": ("a", "b"), "allow_empty_cells": True, **options})


def problems(path: Path, **options: Any) -> list[str]:
    with pytest.raises(CohortError) as caught:
        load(path, **options)
    return str(caught.value).splitlines()[1:]


# ---- names and counts against pandas --------------------------------------------------------------------------------
COLUMNS = {"sex": ("male", "female"), "site": ("s2", "s10", "S-1"), "reader": ("x", "y", "unknown")}


@given(data=st.data())
def test_groups_are_those_of_pandas(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    columns = data.draw(st.lists(st.sampled_from([*COLUMNS]), min_size=1, max_size=3, unique=True))
    cell = st.tuples(*(st.sampled_from((*COLUMNS[column], "")) for column in COLUMNS))
    rows = [("male", "s2", "x"), ("female", "s10", "y"), *data.draw(st.lists(cell, max_size=20))]
    splits = data.draw(st.lists(st.sampled_from(["train", "val"]), min_size=len(rows), max_size=len(rows)))
    table = pd.DataFrame(rows, columns=[*COLUMNS]).assign(split=["train", "train", *splits[2:]])
    own = data.draw(st.booleans())
    path = write(tmp_path_factory.mktemp("c"), table)
    cohort = load(path, group_by=columns, unknown_groups="own_group" if own else "leave_out")

    known = table.replace({"": np.nan, "unknown": np.nan}).assign(label=cohort.table["label"])
    expected = known.groupby(["split", "label", *columns]).size()  # pandas leaves out what is not known
    cells = cohort.cells().set_index(["split", "label", "group"])["n"]
    for (split, label, *parts), n in expected.items():
        assert cells[split, label, " x ".join(parts)] == n
    unknown = known[columns].isna().any(axis=1)
    inside = cells[cells.index.get_level_values("group") != "unknown"]
    assert inside.sum() == expected.sum() == (~unknown).sum()
    assert cells.sum() == len(table)
    assert ("unknown" in cohort.group_names) is bool(own and unknown.any())

    ids = {item["scan"]: item["group"] for split in cohort.splits() for item in cohort.items(split)}
    for scan, parts, none in zip(cohort.table["scan"], known[columns].to_numpy(), unknown, strict=True):
        name = "unknown" if none else " x ".join(parts)
        assert ids[scan] == (cohort.group_names.index(name) if name in cohort.group_names else -1)


def test_names_are_in_order_of_the_columns(tmp_path: Path) -> None:
    rows = [(sex, band, "s") for band in (">=65", "50-64", "<50") for sex in ("female", "male")]
    path = write(tmp_path, pd.DataFrame(rows, columns=["sex", "band", "site"]))
    both = load(path, group_by=["sex", "band"])
    expected = [f"{sex} x {band}" for sex in SEXES for band in ("<50", "50-64", ">=65")]
    assert list(both.group_names) == expected
    assert both.group_parents == [0, 0, 0, 1, 1, 1]
    assert load(path, group_by=["band", "sex"]).group_parents == [0, 0, 1, 1, 2, 2]
    assert load(path, group_by="band").group_names == ("<50", "50-64", ">=65")
    assert load(path, group_by=["band"]).group_parents == [0, 1, 2]
    assert load(path).group_names == SEXES
    listed = [*expected[3:], *expected[:3]]
    assert list(load(path, group_by=["sex", "band"], group_names=listed).group_names) == listed
    # the same file read as a table of predictions has the same groups in the same order
    pd.read_csv(path).assign(prediction="a").to_csv(tmp_path / "p.csv", index=False)
    assert list(load_predictions(tmp_path / "p.csv", group_by=["sex", "band"]).group_names) == expected


def test_the_sexes_are_both_groups_even_where_one_does_not_occur(tmp_path: Path) -> None:
    assert load(write(tmp_path, pd.DataFrame({"sex": ["female"] * 4}))).group_names == SEXES
    assert load(write(tmp_path, pd.DataFrame({"sex": ["", "unknown"] * 2}))).group_names == SEXES


def test_parents_of_names_with_an_unknown() -> None:
    assert parent_groups(["f x 1", "m x 1", "f x 2", "unknown"], ["sex", "site"]) == [0, 1, 0, 2]
    assert parent_groups(["a x b", "a x c", "unknown"], ["site"]) == [0, 1, 2]


def test_natural_order_knows_bands_and_numbers() -> None:
    ordered = ["<50", "50-64", "s2", "s10", ">=65"]
    assert sorted(["s10", ">=65", "50-64", "s2", "<50"], key=natural_order) == ordered
    numbers = ["001", "01", "1", "2"]
    assert all(sorted(names, key=natural_order) == numbers for names in permutations(numbers))


def test_a_list_from_the_command_line_is_a_list() -> None:
    assert group_columns(DefaultParseValue("['sex','age_band']")) == ("sex", "age_band")
    assert check_age_bands(DefaultParseValue("[50,65]")) == (50, 65)
    assert group_columns(DefaultParseValue("sex")) == ("sex",)


# ---- what is refused ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"group_by": []}, "group_by must name one column or several different ones, got []"),
        ({"group_by": ["sex", "sex"]}, "got ['sex', 'sex']"),
        ({"group_by": ["sex", 3]}, "group_by: 3 is not the name of a column"),
        ({"group_by": ["sex", "patient"]}, "'patient' cannot hold the group"),
        ({"group_by": "prob_a"}, "'prob_a' cannot hold the group"),
        ({"group_by": "age"}, "ages are no groups; set age_bands"),
        ({"unknown_groups": "drop"}, "unknown_groups must be one of leave_out, own_group, got 'drop'"),
        ({"group_names": ["male", "unknown"]}, "set unknown_groups to own_group"),
        ({"group_by": ["sex", "site"], "group_names": ["male"]}, "they are called '<sex> x <site>'"),
        ({"age_bands": [65, 50]}, "age_bands must be increasing whole years above 0, such as [65] or [50, 65]"),
        ({"age_bands": [0, 65]}, "got [0, 65]"),
        ({"age_bands": []}, "got []"),
        ({"age_bands": [64.5]}, "got [64.5]"),
        ({"age_bands": 65}, "got 65"),
        ({"age_bands": [65, 650]}, "age_bands must be at most 130 years, got 650"),
    ],
)
def test_arguments_without_sense_are_named(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    path = write(tmp_path, pd.DataFrame({"sex": SEXES, "site": ["s", "t"], "age": [1, 2], "patient": ["p", "q"]}))
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        load(path, **options)
    assert not isinstance(caught.value, CohortError)


def test_values_that_are_no_groups_are_named_by_line(tmp_path: Path) -> None:
    table = pd.DataFrame({"sex": ["male", "femal", "female", "unknown"], "site": ["Alder", "elm", "alder", "a x b"]})
    path = write(tmp_path, table)
    assert problems(path) == [
        "  - line 3: sex 'femal' is unknown (did you mean 'female'?); valid: male, female",
    ]
    assert problems(path, group_by=["sex", "site"]) == [
        "  - line 3: sex 'femal' is unknown (did you mean 'female'?); valid: male, female",
        "  - line 4: site 'alder' is written 'Alder' in line 2",
        "  - line 5: site 'a x b' holds ' x ', which joins the values of a group",
    ]
    names = ["male x Alder", "femal x elm"]
    told = problems(path, group_by=["sex", "site"], group_names=names)
    assert told[0] == (
        "  - line 4: sex x site 'female x alder' is unknown (did you mean 'male x Alder'?); "
        "valid: male x Alder, femal x elm"
    )
    assert load(path, group_names=["male", "femal", "female"]).group_names == ("male", "femal", "female")
    assert problems(write(tmp_path, table.assign(site="")), group_by="site")[0].startswith("  - no scan has a group by")


def test_a_column_with_a_value_a_scan_is_no_group(tmp_path: Path) -> None:
    path = write(tmp_path, pd.DataFrame({"sex": ["male"] * 150, "name": [f"Secret{i}" for i in range(150)]}))
    (told,) = problems(path, group_by="name")
    assert "150 groups by name: is it the right column?" in told
    assert "Secret" not in told


def test_empty_combinations_say_what_to_set(tmp_path: Path) -> None:
    path = write(tmp_path, pd.DataFrame({"sex": ["male", "male", "female"], "site": ["s", "s", "t"]}))
    (told,) = problems(path, group_by=["sex", "site"], allow_empty_cells=False)
    assert told.startswith("  - train: 1 of 4 cells have no scan: female x t b; ")
    assert "allow_empty_cells to true" in told


# ---- age ------------------------------------------------------------------------------------------------------------
@given(
    st.lists(st.integers(1, 130), min_size=1, max_size=5, unique=True).map(sorted),
    st.lists(st.one_of(st.floats(0, 130), st.integers(0, 130), st.just(float("nan"))), min_size=1, max_size=20),
)
def test_age_bands_are_those_of_pandas_cut(edges: list[int], ages: list[float]) -> None:
    names = list(age_band_names(edges))
    assert len(set(names)) == len(edges) + 1
    cut = pd.cut(np.array(ages, dtype=float), [-np.inf, *edges, np.inf], right=False, labels=names)
    assert age_bands(ages, edges) == ["" if pd.isna(band) else band for band in cut]


def test_names_of_age_bands() -> None:
    assert age_band_names([65]) == ("<65", ">=65")
    assert age_band_names([18, 19, 50, 65]) == ("<18", "18", "19-49", "50-64", ">=65")


def test_age_bands_are_a_column_of_the_cohort(tmp_path: Path) -> None:
    ages = ["64", "65", "", "unknown", "64.9", "080"]
    path = write(tmp_path, pd.DataFrame({"sex": ["male", "female"] * 3, "age": ages}))
    cohort = load(path, group_by="age_band", age_bands=[65])
    assert cohort.group_names == ("<65", ">=65")
    assert [item["group"] for item in cohort.items("train")] == [0, 1, -1, -1, 0, 1]
    both = load(path, group_by=["sex", "age_band"], age_bands=[65], unknown_groups="own_group")
    assert both.group_names == ("male x <65", "female x >=65", "unknown")
    items = both.items("train")
    assert [item["group_values"] for item in items[:3]] == [["male", "<65"], ["female", ">=65"], ["male", ""]]
    assert not any(age in str([items, both]) for age in ("64", "64.9", "080") if age != "64")


def test_bad_ages_are_named_by_line_and_not_shown(tmp_path: Path) -> None:
    path = write(tmp_path, pd.DataFrame({"sex": ["male"] * 5, "age": ["50", "-1", "J. Doe", "999", "nan"]}))
    told = problems(path, group_by=["sex", "age_band"], age_bands=[65])
    said = "age is not a number from 0 to 130; leave it empty where it is unknown"
    assert told == [f"  - line {i}: {said}" for i in (3, 4, 5, 6)]
    assert "Doe" not in str(told)
    (told,) = problems(path, group_by=["sex", "age_band"])
    assert told == "  - no column 'age_band' in the first line; age_bands, such as [65], makes it of the column 'age'"
    path = write(tmp_path, pd.DataFrame({"sex": ["male"] * 2, "age_band": ["old"] * 2}))
    assert "there is a column 'age_band' already" in problems(path, age_bands=[65])[0]
    assert problems(path, age_bands=[65])[1] == "  - no column 'age' in the first line"


# ---- unknown --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.8, 1.0])
def test_unknown_groups_in_the_loss_are_as_computed_by_hand(tmp_path: Path, alpha: float) -> None:
    table = pd.DataFrame({"sex": ["male", "female", "", "male", "unknown"], "site": ["s", "s", "s", "", "t"]})
    path = write(tmp_path, table)
    logits = torch.randn(5, 2, generator=torch.Generator().manual_seed(3))
    loss = TwoLevelLoss(CrossEntropy(), GroupCVaR(alpha))

    def of(**options: Any) -> float:
        items = load(path, **options).items("train")
        target = {name: torch.tensor([item[name] for item in items]) for name in ("label", "group")}
        return loss(logits, target).item()

    def cvar(means: list[float]) -> float:  # by trying every kink of the primal form
        return min(t + sum(max(0, m - t) for m in means) / (alpha * len(means)) for t in means)

    each = cross_entropy(logits, torch.tensor([0, 1, 0, 1, 0]), reduction="none").tolist()
    male, female = (each[0] + each[3]) / 2, each[1]
    assert of() == pytest.approx((3 * cvar([male, female]) + each[2] + each[4]) / 5, abs=1e-6)
    assert of(unknown_groups="own_group") == pytest.approx(cvar([male, female, (each[2] + each[4]) / 2]), abs=1e-6)
    both = {"group_by": ["sex", "site"]}
    assert of(**both) == pytest.approx((2 * cvar([each[0], each[1]]) + sum(each[2:])) / 5, abs=1e-6)
    assert of(**both, unknown_groups="own_group") == pytest.approx(
        cvar([each[0], each[1], sum(each[2:]) / 3]), abs=1e-6
    )


def test_unknown_is_a_group_only_where_it_occurs_and_keeps_a_listed_place(tmp_path: Path) -> None:
    path = write(tmp_path, pd.DataFrame({"sex": ["male", "female", "", "male"]}))
    own = {"unknown_groups": "own_group"}
    assert load(path, **own).group_names == (*SEXES, "unknown")
    assert load(path, **own, group_names=["unknown", *SEXES]).group_names == ("unknown", *SEXES)
    assert load(path, **own).digest == load(path).digest
    cells = load(path, **own).cells()
    assert cells.equals(load(path).cells())
    path = write(tmp_path, pd.DataFrame({"sex": ["male", "female"]}))
    assert load(path, **own).group_names == SEXES


def test_a_table_of_predictions_has_unknown_as_a_group_where_it_is_named(tmp_path: Path) -> None:
    table = {"label": list("abab"), "prediction": list("abaa"), "sex": ["male", "", "female", "Unknown"]}
    pd.DataFrame(table).to_csv(tmp_path / "p.csv", index=False)
    assert load_predictions(tmp_path / "p.csv").group.tolist() == [0, -1, 1, -1]
    named = load_predictions(tmp_path / "p.csv", group_names=[*SEXES, "unknown"])
    assert named.group.tolist() == [0, 2, 1, 2]
    assert audit(named, 100, 100).n_unknown == 0
    pd.DataFrame(table | {"site": ["s", "t", "a x b", "s"]}).to_csv(tmp_path / "p.csv", index=False)
    with pytest.raises(PredictionsError, match="line 4: column 'site' holds ' x ', which joins"):
        load_predictions(tmp_path / "p.csv", group_by=["sex", "site"])


# ---- small groups ---------------------------------------------------------------------------------------------------
def small(folder: Path) -> Path:
    """12 scans of site s, 3 of t in train; 1 and 4 in val."""
    rows = [("s", "train")] * 12 + [("t", "train")] * 3 + [("s", "val")] + [("t", "val")] * 4
    return write(folder, pd.DataFrame(rows, columns=["site", "split"]))


def test_small_groups_are_left_out_of_training_alone(tmp_path: Path) -> None:
    cohort = load(small(tmp_path), group_by="site")
    assert cohort.small_groups() == {"t": 3}
    assert cohort.small_groups(3) == {} and cohort.small_groups(13) == {"s": 12, "t": 3}
    assert cohort.training_items() == cohort.training_items(0, "leave_out") == cohort.items("train")
    left = cohort.training_items(small_groups="leave_out")
    assert [item["group"] for item in left] == [0] * 12 + [-1] * 3
    assert [item | {"group": 0} for item in left] == [item | {"group": 0} for item in cohort.items("train")]
    assert {item["group"] for item in cohort.items("val")} == {0, 1}  # evaluations report them
    with pytest.raises(CohortError, match=r"leaves no group: every one has fewer than min_cell = 13 training scans"):
        cohort.training_items(13, "leave_out")
    with pytest.raises(ValueError, match="small_groups must be one of keep, leave_out, got 'drop'"):
        cohort.training_items(10, "drop")
    with pytest.raises(ValueError, match="min_cell must be a whole number of at least 0, got -1"):
        cohort.training_items(-1)


def test_one_warning_lists_small_groups_and_cells(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cohort = load(small(tmp_path), group_by="site")
    warn_of_small_cells(cohort)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    said = record.getMessage()
    assert "fewer than 10 training scans (min_cell) in groups: t 3 (small_groups: leave_out takes them out" in said
    assert "cells: s a 6, s b 6." in said
    caplog.clear()
    warn_of_small_cells(cohort, 5, "leave_out")
    (record,) = caplog.records
    assert "groups: t 3 (left out of the aggregation" in record.getMessage()
    assert "cells" not in record.getMessage()
    caplog.clear()
    warn_of_small_cells(cohort, 0)
    assert not caplog.records


def test_the_smallest_cell_is_one_number(bundle_dir: Path) -> None:
    import yaml

    assert yaml.safe_load((bundle_dir / "configs" / "train.yaml").read_text())["min_cell"] == MIN_CELL


@pytest.mark.fault("words", "ages as DICOM has them, 065Y", before="refused as no number", now="taken as years")
@pytest.mark.parametrize(
    ("age", "band"), [("065Y", ">=65"), ("064Y", "<65"), ("800M", ">=65"), ("007D", "<65"), ("65", ">=65")]
)
def test_an_age_of_dicom_is_in_its_band(tmp_path: Path, age: str, band: str) -> None:
    path = write(tmp_path, pd.DataFrame({"sex": ["male", "female"], "age": [age, age]}))
    assert load(path, group_by="age_band", age_bands=[65]).group_names == (band,)
