"""Sites as what chance draws: the jackknife by hand, what cannot be said, and the words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t
from sklearn.metrics import f1_score
from typer.testing import CliRunner

from fairlung.pipeline.cli.app import app
from fairlung.pipeline.evaluation.audit import audit
from fairlung.pipeline.evaluation.fairness_criteria import over_sites
from fairlung.pipeline.evaluation.predictions import Predictions, PredictionsError, load_predictions
from fairlung.pipeline.evaluation.records import BySite

FEW: dict[str, Any] = {"resamples": 200, "permutations": 200}


def table(sites: int = 5, scans: int = 4, seed: int = 0) -> Predictions:
    """``scans`` of each class and sex at each site; at the first the women are nearly all wrong."""
    rng = np.random.default_rng(seed)
    label, group, site = (part.ravel() for part in np.indices((3, 2, sites * scans)))
    site = site // scans
    right = rng.random(len(label)) < np.where((group == 1) & (site == 0), 0.1, 0.8)
    said = np.where(right, label, (label + 1) % 3)
    names = np.array([f"scan of {i}" for i in range(len(label))])
    return Predictions(names, label, said, group, None, tuple("abc"), ("men", "women"), ("sex",), site=site)


def numbers(of: Predictions) -> tuple[float, float]:
    men, women = (
        f1_score(of.label[of.group == g], of.prediction[of.group == g], average="macro", labels=[0, 1, 2])
        for g in (0, 1)
    )
    return (men + women) / 2, men - women


def test_the_interval_is_the_jackknife_by_hand() -> None:
    of, found = table(), over_sites(table(), 0.9)
    assert found is not None and found.n == 5
    whole = numbers(of)
    without = np.array([numbers(of.take(of.site != site)) for site in range(5)])
    reach = t.ppf(0.95, 4) * np.sqrt(4 / 5 * ((without - whole) ** 2).sum(0))
    for estimate, value, half in zip((found.score, found.gap), whole, reach, strict=True):
        assert estimate is not None
        assert estimate == pytest.approx((value, max(value - half, -1), min(value + half, 1)))


def test_sites_that_differ_make_it_wider_and_their_names_do_not_matter() -> None:
    of = table(scans=40)
    assert of.site is not None
    mixed = replace(of, site=np.random.default_rng(1).permutation(of.site))
    wide, narrow = (over_sites(one) for one in (of, mixed))
    assert wide and narrow and wide.gap and narrow.gap
    assert wide.gap.high - wide.gap.low > 3 * (narrow.gap.high - narrow.gap.low)
    assert over_sites(replace(of, site=4 - of.site)) == wide


def test_no_interval_where_a_cell_is_of_one_site() -> None:
    of = table()
    found = over_sites(of.take((of.label != 2) | (of.group != 1) | (of.site == 3)))
    assert found is not None and found.score is None and found.gap is None
    with pytest.raises(ValueError, match="all scans are of one site"):
        over_sites(of.take(of.site == 0))
    assert over_sites(replace(of, site=None)) is None


def test_sites_that_are_all_alike_do_not_say_how_sites_differ() -> None:
    of = table()
    perfect = replace(of, prediction=of.label)
    assert over_sites(perfect) == BySite(5, None, None)
    texts = [verdict.text for verdict in audit(perfect, **FEW).verdicts]
    assert any("or all have the same P: no interval over sites" in text for text in texts)


def test_a_finding_may_be_one_of_these_sites() -> None:
    texts = [verdict.text for verdict in audit(table(scans=20), **FEW).verdicts]
    (text,) = (text for text in texts if text.startswith("With the 5 sites, not scans or patients, as what chance"))
    assert "the gap is one of these sites, and is not shown to be one of others. 5 sites are few" in text
    assert not any(" sites" in verdict.text for verdict in audit(replace(table(), site=None), **FEW).verdicts)


def test_the_column_of_a_table(tmp_path: Path) -> None:
    of = table()
    assert of.site is not None
    columns = {"scan": of.scan, "label": np.array([*"abc"])[of.label], "prediction": np.array([*"abc"])[of.prediction]}
    columns |= {"sex": np.array(["male", "female"])[of.group], "hospital": np.array([*"vwxyz"])[of.site]}
    path = tmp_path / "table.csv"
    pd.DataFrame(columns).to_csv(path, index=False)
    assert over_sites(load_predictions(path, site_column="hospital")) == over_sites(of)
    assert load_predictions(path).site is None
    done = CliRunner().invoke(app, ["audit", str(path), "--site-column", "hospital", "--resamples", "200"])
    assert done.exit_code == 0 and "With the 5 sites" in done.output
    pd.DataFrame(columns | {"hospital": ["", *columns["hospital"][1:]]}).to_csv(path, index=False)
    with pytest.raises(PredictionsError, match="scan of 0: it has no site"):
        load_predictions(path, site_column="hospital")
    with pytest.raises(PredictionsError, match=r"no column 'hospitl' \(did you mean 'hospital'\?\)"):
        load_predictions(path, site_column="hospitl")
