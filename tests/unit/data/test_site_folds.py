"""Sites left out one by one: who judges what, what is refused, what is warned of."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fairlung.pipeline.data.cohort import Cohort, CohortError
from fairlung.pipeline.data.folds import FoldsError, site_folds, site_names, site_warnings
from fairlung.pipeline.data.sampling import group_counts, source_counts, with_sources

SITES, CLASSES, SEXES = ("s2", "s10", "north"), ("A", "G"), ("male", "female")


def cohort_of(change=lambda table: table, by: tuple[str, ...] = ("sex",)) -> Cohort:
    """Six scans of each site, class and sex, in no order; two of a patient."""
    rows = [
        {"site": site, "label": label, "sex": sex, "patient": f"{site}{label}{sex}{i // 2}"}
        for site, label, sex, i in product(SITES, CLASSES, SEXES, range(6))
    ]
    table = pd.DataFrame(rows).assign(scan=[f"scan{i:02d}" for i in range(len(rows))], name="DOE^JANE")
    table = change(table.sample(frac=1, random_state=0, ignore_index=True))
    names = SEXES if by == ("sex",) else tuple(sorted(set(table[list(by)].agg(" x ".join, axis=1))))
    return Cohort(table.reset_index(drop=True), Path("/data"), CLASSES, names, by)


@pytest.mark.parametrize("by", [("sex",), ("site",), ("sex", "site")])
def test_a_site_is_judged_by_who_never_saw_it_and_chosen_on_others(by: tuple[str, ...]) -> None:
    cohort = cohort_of(by=by)
    folds = site_folds(cohort, repeats=2, seed=1, inner_folds=3)
    assert site_names(cohort) == ("north", "s2", "s10")
    assert [(fold.repeat, fold.fold) for fold in folds] == [(r, f) for r in (0, 1) for f in range(3)]
    for fold in folds:
        table, site = fold.table, site_names(cohort)[fold.fold]
        assert table["scan"].tolist() == cohort.table["scan"].tolist() and "name" not in table
        assert ((table["split"] == "test") == (table["site"] == site)).all()
        assert (table.groupby("patient")["split"].nunique() == 1).all()
        val = cohort.table[table["split"] == "val"]
        counts = val.groupby(["site", "label"]).size()
        assert set(val["site"]) == set(SITES) - {site} and len(counts) == 4
        assert counts.sum() == 48 / 3 and np.ptp(counts) <= 2  # a third of the others, of every class at each
    vals = [set(fold.table.loc[fold.table["split"] == "val", "scan"]) for fold in folds]
    assert vals[0] != vals[3]  # repeats choose on other scans
    again = site_folds(cohort, repeats=2, seed=1, inner_folds=3)
    assert all(one.table.equals(other.table) for one, other in zip(folds, again, strict=True))


def test_a_test_split_is_held_out_and_a_site_of_it_alone_is_told_of() -> None:
    cohort = cohort_of(lambda table: table.assign(split=np.where(table["site"] == "s2", "test", "train")))
    assert site_names(cohort) == ("north", "s10")
    assert all("s2" not in set(fold.table["site"]) for fold in site_folds(cohort))
    assert site_warnings(cohort) == [
        "site s2: all its scans are in the split 'test', so that it neither trains nor judges"
    ]


def test_sites_of_fewer_classes_are_told_of() -> None:
    def change(table: pd.DataFrame) -> pd.DataFrame:
        table = table[~((table["site"] == "s2") & (table["label"] == "G"))]
        return table[~((table["site"] == "s10") & (table["label"] == "A") & (table["sex"] == "male"))]

    said = site_warnings(cohort_of(change))
    assert len(said) == 2 and said[0].startswith("site s2 has scans of one class only, A: its scans count over all")
    assert said[1] == "site s10 lacks a class of male: its scans count over all sites, but there is no P of it alone"
    assert len(site_folds(cohort_of(change))) == 3
    assert site_warnings(cohort_of(change, by=("site", "sex"))) == said
    assert site_warnings(cohort_of()) == site_warnings(cohort_of(by=("site",))) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.drop(columns="site"), "needs the column 'site'"),
        (lambda t: t[t["site"] == "s2"], "all scans are of one site, 's2': none is left to train on"),
        (lambda t: t.assign(site=["", *t["site"][1:]]), "no site is given of 'scan"),
        (lambda t: t.assign(site=["unknown", *t["site"][1:]]), "could have seen them"),
        (lambda t: t.assign(site=t["site"].where(t["sex"] == "male", t["site"].str.upper())), "is written"),
        (lambda t: t.assign(patient=[f"{i // 3}" for i in range(len(t))]), "patients with scans of several sites"),
        (
            lambda t: t[(t["label"] == "A") | (t["site"] == "s2")],
            "without site 's2': no G scan is left to train on; no",
        ),
    ],
)
def test_what_cannot_be_left_out_is_named_without_patients(change, said: str) -> None:
    with pytest.raises(FoldsError) as caught:
        site_folds(cohort_of(change))
    assert said in str(caught.value) and "male0" not in str(caught.value)


# ---- sources of a site head ----------------------------------------------------------------------------------------
def test_sources_are_the_sites_of_training_scans_and_their_counts_those_of_the_draw() -> None:
    def change(table: pd.DataFrame) -> pd.DataFrame:
        table = table.assign(split="train", site=table["site"].where(table.index != 0, ""))
        return table.assign(split=table["split"].where(table["site"] != "s2", "val"))

    cohort = cohort_of(change)
    items = with_sources(cohort, cohort.items("train"))
    site = dict(zip(cohort.table["scan"], cohort.table["site"], strict=True))
    assert {(site[item["scan"]], item["source"]) for item in items} == {("", -1), ("north", 0), ("s10", 1)}
    of = [item["source"] for item in items]
    assert source_counts(items, False) == [of.count(0), of.count(1)] and sum(source_counts(items, False)) == 47
    women = [item for item in items if item["group"] == 0 or item["source"] == 0][:30]
    drawn = source_counts(women, True)  # the mean over groups of their shares
    shares = [
        np.bincount([i["source"] for i in women if i["group"] == g and i["source"] >= 0], minlength=2) for g in (0, 1)
    ]
    assert np.array(drawn) / sum(drawn) == pytest.approx(np.mean([s / s.sum() for s in shares], axis=0))
    with pytest.raises(CohortError, match="two sites at least; there is s2"):
        with_sources(cohort, cohort.items("val"))


def test_groups_are_counted_by_their_training_scans() -> None:
    cohort = cohort_of(by=("site", "sex"))
    items = cohort.items(cohort.splits()[0])
    counts = group_counts(cohort, items)
    assert list(counts) == list(cohort.group_names)
    assert list(counts.values()) == np.bincount([item["group"] for item in items]).tolist()
    # a group that is left out has the largest count; an unknown one has none
    fewer = [item for item in items if item["group"] != 1] + [{**items[0], "group": -1}] * 99
    assert list(group_counts(cohort, fewer).values()) == [n if g != 1 else 12 for g, n in enumerate(counts.values())]
    alone = [item for item in items if item["group"] == 1]
    with pytest.raises(CohortError, match=f"two groups at least; there is {cohort.group_names[1]}"):
        group_counts(cohort, alone)
    with pytest.raises(CohortError, match="two groups at least; there is none"):
        group_counts(cohort, [{**item, "group": -1} for item in items])
