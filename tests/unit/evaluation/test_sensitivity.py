"""Wrong records: what is changed, what it does to the gap, and how few turn the verdict."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from reconstruction import predictions_of

from fairlung.pipeline.evaluation.audit import audit
from fairlung.pipeline.evaluation.fairness_criteria import fair_model, summaries
from fairlung.pipeline.evaluation.predictions import Predictions
from fairlung.pipeline.evaluation.sensitivity import SHARES, _single_scans, _worst_path, changed, fair_gap

COUNTS = np.array([[[34, 4, 2], [3, 29, 3], [1, 2, 32]], [[25, 6, 3], [5, 20, 2], [2, 2, 25]]])
FAST = {"resamples": 400, "permutations": 400}


def gap(table: Predictions) -> float:
    return float(summaries(table.confusion()[:-1])["gap"])


@pytest.mark.parametrize("what", ["group", "label"])
def test_as_many_records_are_changed_as_was_said_and_no_other(what: str) -> None:
    table, rng = predictions_of(COUNTS), np.random.default_rng(0)
    for share in SHARES:
        other, n = changed(table, what, share, rng)
        differs = getattr(table, what) != getattr(other, what)
        assert differs.sum() == n == max(1, round(share * len(table.label)))
        same = "label" if what == "group" else "group"
        assert (getattr(table, same) == getattr(other, same)).all() and (table.prediction == other.prediction).all()


def test_a_cell_keeps_a_scan_and_a_patient_moves_whole() -> None:
    table = predictions_of([[[1, 0], [0, 30]], [[20, 1], [0, 1]]])
    rng = np.random.default_rng(0)
    for what in ("group", "label"):
        assert all((changed(table, what, 0.9, rng)[0].confusion()[:-1].sum(-1) > 0).all() for _ in range(20))
    patient = np.arange(len(table.label)) // 3 + 100 * table.group
    several = replace(table, patient=patient)
    other, n = changed(several, "group", 0.2, rng)
    moved = table.group != other.group
    assert n == len(np.unique(patient[moved])) and not set(patient[moved]) & set(patient[~moved])


def test_the_mean_gap_is_that_of_the_expected_counts() -> None:
    table, rng, counts = predictions_of(COUNTS), np.random.default_rng(0), COUNTS.astype(float)
    for what, share in (("group", 0.1), ("label", 0.1)):
        others = counts[::-1] if what == "group" else (counts.sum(1, keepdims=True) - counts) / 2
        expected = summaries((1 - share) * counts + share * others)["gap"]
        drawn = [gap(changed(table, what, share, rng)[0]) for _ in range(400)]
        assert np.mean(drawn) == pytest.approx(expected, abs=0.01)
        if what == "group":
            assert abs(np.mean(drawn)) < abs(gap(table))  # changes at random make a gap smaller


def test_the_gap_of_a_fair_model_is_the_mean_of_its_draws() -> None:
    counts = np.array([[[40, 10], [2, 8]], [[8, 2], [20, 60]]])
    drawn = fair_model(counts, 4000, np.random.default_rng(0))["gap"]
    assert fair_gap(counts) == pytest.approx(drawn.mean(), abs=0.015) and abs(fair_gap(counts)) > 0.02


@pytest.mark.parametrize("what", ["group", "label"])
@pytest.mark.parametrize("finding", [True, False])
def test_the_first_worst_change_is_the_worst_of_all(what: str, finding: bool) -> None:
    """Every scan of the table changed in turn."""
    table = predictions_of(COUNTS)
    clusters = _single_scans(table)
    path = _worst_path(clusters, what, finding)
    first = np.einsum("pg,pck->gck", path[1], clusters.patterns)
    tried = []
    for scan in range(len(table.label)):
        values = [1 - table.group[scan]] if what == "group" else [c for c in range(3) if c != table.label[scan]]
        for value in values:
            other = getattr(table, what).copy()
            other[scan] = value
            tried.append(gap(replace(table, **{what: other})))
    assert gap(table) > fair_gap(COUNTS)
    assert summaries(first)["gap"] == pytest.approx(min(tried) if finding else max(tried), abs=1e-12)


def test_a_plain_finding_stands_and_a_slight_one_tips() -> None:
    plain = audit(predictions_of([np.diag([60, 60, 60]), np.full((3, 3), 20)]), **FAST)
    assert plain.verdicts[0].level == "finding" and all(row.finding for row in plain.tipping_point.rows)
    assert plain.tipping_point.fewest_groups is None
    assert any(
        "the verdict stays with up to 10 % of the groups or of the labels" in verdict.text for verdict in plain.verdicts
    )
    slight = audit(predictions_of([[[43, 7], [7, 43]], [[33, 17], [17, 33]]]), resamples=2000, permutations=2000)
    assert slight.verdicts[0].level == "finding"
    found = slight.tipping_point
    assert 1 <= found.fewest_groups <= 6 and 1 <= found.fewest_labels <= 8
    scans = "1 scan " if found.fewest_groups == 1 else f"{found.fewest_groups} scans "
    assert any(f"Chosen for it, another group of {scans}" in v.text for v in slight.verdicts)


def test_shares_that_are_one_record_are_one_row() -> None:
    rows = audit(predictions_of(np.array([[[10, 0], [1, 9]], [[6, 4], [5, 5]]])), **FAST).tipping_point.rows
    assert [(row.what, row.share, row.n) for row in rows if row.what == "group"] == [
        ("group", 0.02, 1), ("group", 0.05, 2), ("group", 0.1, 4),
    ]  # fmt: skip


def test_nothing_is_said_where_the_gap_is_not_judged() -> None:
    three = audit(predictions_of([COUNTS[0]] * 3, group_names=("alder", "birch", "cedar")), **FAST)
    few = audit(predictions_of([COUNTS[0], np.diag([3, 3, 3])]), **FAST)
    assert three.tipping_point is None and few.tipping_point is None and few.equivalence is None
    assert not any("records are wrong" in verdict.text for verdict in [*three.verdicts, *few.verdicts])
