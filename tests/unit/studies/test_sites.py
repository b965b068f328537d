"""Left-out sites in a study's tables: scikit-learn's numbers, the jackknife by hand, and what has no number."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t
from simulated_studies import DRAWS, SEXES, SWEEP, macro_f1, runs_of, without_group, write_study

from fairlung.pipeline.evaluation.fairness_criteria import over_sites
from fairlung.pipeline.studies.numbers import over_seeds
from fairlung.pipeline.studies.record import load_study
from fairlung.pipeline.studies.results import read_results
from fairlung.pipeline.studies.sites import ALL, by_other_columns, site_rows
from fairlung.pipeline.studies.tables import write_tables

SITES = ("north", "south", "west", "x_1")
LEFT_OUT = {"folds": 4, "protocol": "leave_site_out", "sites": SITES, "synthetic": True, "per_cell": 24}
PAIR = dict(list(SWEEP.items())[:2])


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("sites") / "study", PAIR, **LEFT_OUT)


def by_hand(study: Path, label: str) -> pd.DataFrame:
    """The predictions of one configuration, with seed and site."""
    runs = runs_of(study)
    parts = [
        pd.read_csv(study / run.output_dir / "test/evaluation/predictions.csv").assign(seed=run.seed, site=run.fold)
        for run in runs[runs["label"] == label].itertuples()
    ]
    return pd.concat(parts)


def sexes(table: pd.DataFrame) -> np.ndarray:
    return np.array([macro_f1(table[table["sex"] == sex]) for sex in SEXES])


def test_numbers_are_scikit_learns_and_intervals_over_seeds_and_over_sites(study: Path) -> None:
    rows = site_rows(read_results(load_study(study)), resamples=DRAWS)
    assert [(row.label, row.site) for row in rows] == [(label, site) for label in PAIR for site in (*SITES, ALL)]
    table = by_hand(study, "CE")
    for index, row in enumerate(rows[:4]):
        of_seed = [sexes(part) for _, part in table[table["site"] == index].groupby("seed")]
        assert (row.seeds, row.over) == (3, "seeds")
        assert row.scans == (table["site"] == index).sum() / 3
        for key, values in (("f1_female", [f for _, f in of_seed]), ("score", np.mean(of_seed, axis=1))):
            assert row.estimates[key] == pytest.approx(over_seeds(list(values), key))

    def numbers(part: pd.DataFrame) -> np.ndarray:
        """P and gap, the means over seeds."""
        found = np.array([sexes(one) for _, one in part.groupby("seed")])
        return np.array([found.mean(), (found[:, 0] - found[:, 1]).mean()])

    whole = numbers(table)
    without = np.array([numbers(table[table["site"] != site]) for site in range(4)])
    reach = t.ppf(0.975, 3) * np.sqrt(3 / 4 * ((without - whole) ** 2).sum(0))
    assert rows[4].over == "sites" and rows[4].scans == len(table) / 3
    for key, value, half in zip(("score", "gap"), whole, reach, strict=True):
        assert rows[4].estimates[key] == pytest.approx((value, max(value - half, -1), min(value + half, 1)))


def test_groups_of_site_and_sex_give_the_numbers_of_the_sexes(study: Path) -> None:
    for judged in (replicate.predictions for replicate in read_results(load_study(study)).replicates["CE"]):
        assert judged.site is not None
        names = tuple(f"{sex} x {site}" for site in SITES for sex in SEXES)
        crossed = replace(judged, group=judged.site * 2 + judged.group, group_names=names, group_by=("sex", "site"))
        again = by_other_columns(crossed)
        assert again is not None and again.group_names == SEXES and again.group_by == ("sex",)
        assert (again.group == judged.group).all() and over_sites(again) == over_sites(judged)
        assert by_other_columns(replace(judged, group=judged.site, group_names=SITES, group_by=("site",))) is None


def test_files_and_what_has_no_number(study: Path, tmp_path: Path) -> None:
    lacking = write_study(tmp_path / "study", PAIR, seeds=(1,), **LEFT_OUT)
    without_group(lacking, "male", "test", SEXES, fold=1)
    written = write_tables([lacking], tmp_path / "tables", resamples=DRAWS)
    assert {"sites.md", "sites.csv", "sites.tex", "sites.png"} <= {path.name for path in written.paths}
    table = pd.read_csv(tmp_path / "tables" / "sites.csv", keep_default_na=False)
    south = table[(table["left_out"] == "south") & (table["configuration"] == "CE")].iloc[0]
    assert (south["lacking"], south["score"], south["score_low"]) == ("scans of female only", "", "")
    assert (table["synthetic"] == "yes").all() and set(table["left_out"]) == {*SITES, ALL}
    page = (tmp_path / "tables" / "index.html").read_text()
    assert "leave one site out (north, south, west, x_1)" in page and "south: scans of female only" in page
    assert "all 4 sites; in its interval (jackknife) sites are" in page and "nothing is known about other seeds" in page
    assert "south" in (tmp_path / "tables" / "sites.md").read_text()


def test_a_study_that_left_no_site_out_has_no_such_table(nested_tables: Path) -> None:
    assert (
        not (nested_tables / "sites.csv").exists()
        and "Left-out sites" not in (nested_tables / "index.html").read_text()
    )
