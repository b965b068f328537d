"""Paired resampling and permutation. Oracles: brute force with scikit-learn, McNemar's exact test, a t test."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from paired_runs import SEXES, by_scikit_learn, design, runs, table
from scipy.stats import binomtest, ttest_ind
from statsmodels.stats.contingency_tables import mcnemar

from fairlung.pipeline.evaluation.paired import (
    Patterns,
    bootstrap_runs,
    draw_weights,
    headline,
    permute_runs,
    permute_scans,
    runs_needed,
    smallest_p,
)


def test_a_bootstrap_of_patterns_is_a_bootstrap_of_rows() -> None:
    tables = [*runs(2), *runs(3)]
    patterns = Patterns.of(tables)
    assert patterns.count.sum() == len(tables[0].label) > len(patterns.count)
    weights = patterns.resample(5, np.random.default_rng(0))
    numbers = headline(patterns.confusions(weights), SEXES)
    rows = np.stack([tables[0].group, tables[0].label, *(run.prediction for run in tables)], axis=1)
    kinds = np.column_stack([patterns.group, patterns.label, patterns.prediction])
    kind_of_row = (rows[:, None] == kinds).all(2).argmax(1)
    for b, weight in enumerate(weights):
        of_row = (weight / patterns.count)[kind_of_row]
        assert of_row.sum() == pytest.approx(len(of_row))
        for r, run in enumerate(tables):
            expected = by_scikit_learn(run, of_row)
            assert {name: value[b, r] for name, value in numbers.items()} == pytest.approx(expected)


def test_the_bootstrap_has_the_moments_of_drawing_rows_within_class_and_group() -> None:
    tables = [*runs(4), *runs(5, right=0.8)]
    draws = bootstrap_runs(Patterns.of(tables), SEXES, 4000, np.random.default_rng(1))
    rng = np.random.default_rng(2)
    label, group = design()
    cells = [np.flatnonzero((label == c) & (group == g)) for c in range(4) for g in (0, 1)]
    brute = []
    for _ in range(1000):
        confusion = np.zeros((2, 2, 4, 4))
        for cell in cells:
            drawn = rng.choice(cell, len(cell) - 1)
            for r, run in enumerate(tables):
                where = r, group[drawn], label[drawn], run.prediction[drawn]
                np.add.at(confusion, where, len(cell) / (len(cell) - 1))
        brute.append(headline(confusion, SEXES)["score"])
    mine, theirs = draws["score"][:, 1] - draws["score"][:, 0], np.diff(brute)[:, 0]
    assert mine.mean() == pytest.approx(theirs.mean(), abs=4 * theirs.std() / np.sqrt(len(theirs)))
    assert mine.std() == pytest.approx(theirs.std(), rel=0.1)


def test_the_variance_of_a_resampled_mean_is_unbiased() -> None:
    values = np.array([0.1, 0.4, 0.9])
    weights = draw_weights(np.ones(3, dtype=np.int64), 200_000, np.random.default_rng(0))
    assert weights.sum(1) == pytest.approx(1)
    assert (weights @ values).var() == pytest.approx(values.var(ddof=1) / 3, rel=0.02)
    assert (draw_weights(np.array([1]), 7, np.random.default_rng(0)) == 1).all()


def test_a_cell_of_one_scan_is_in_every_resample() -> None:
    patterns = Patterns.of(runs(0, 2, cells=(5, 5, 1, 5, 5, 5, 5, 0)))
    confusions = patterns.confusions(patterns.resample(50, np.random.default_rng(0)))
    assert np.allclose(confusions.sum(-1), np.array([[5, 1, 5, 5], [5, 5, 5, 0]]))


def test_chunks_of_a_large_comparison_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = [*runs(6), *runs(7)]
    patterns = Patterns.of(tables)
    whole = permute_scans(patterns, [0], [1], 300, np.random.default_rng(0))
    monkeypatch.setattr("fairlung.pipeline.evaluation.paired.CHUNK_BYTES", 10_000)
    assert len(patterns.chunks(300)) > 1 and sum(patterns.chunks(300)) == 300
    assert bootstrap_runs(patterns, SEXES, 301, np.random.default_rng(0))["score"].shape == (301, 2)
    assert permute_scans(patterns, [0], [1], 300, np.random.default_rng(0)) == whole


@pytest.mark.parametrize(("only_a", "only_b"), [(9, 3), (2, 10), (4, 4), (0, 6)])
def test_swapping_scans_is_mcnemars_exact_test_in_one_cell(only_a: int, only_b: int) -> None:
    label, group = design((30, 30, 30, 30, 30, 30, 30, 30))
    cell = np.flatnonzero((label == 0) & (group == 0))
    a, b = label.copy(), label.copy()
    a[cell[:only_b]] = 1
    b[cell[only_b : only_b + only_a]] = 1
    patterns = Patterns.of([table(label, group, a), table(label, group, b)])
    found = permute_scans(patterns, [0], [1], 20_000, np.random.default_rng(0))["score"]
    expected = mcnemar([[0, only_a], [only_b, 0]], exact=True).pvalue
    assert found == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / 20_000) + 1e-4)


def test_swapping_scans_rejects_true_null_hypotheses_as_often_as_it_says() -> None:
    label, group = design()
    rng = np.random.default_rng(0)
    rejected = np.zeros(2)
    simulations = 600
    for _ in range(simulations):
        difficulty = rng.random(len(label))  # of a scan, for both
        pair = [
            table(label, group, np.where(rng.random(len(label)) < difficulty, label, rng.integers(0, 4, len(label))))
            for _ in range(2)
        ]
        p = permute_scans(Patterns.of(pair), [0], [1], 199, rng)
        rejected += [p["score"] <= 0.05, p["abs_gap"] <= 0.05]
    for times in rejected:
        assert binomtest(int(times), simulations, 0.05).pvalue > 0.001, rejected / simulations


def test_swapping_scans_finds_a_large_difference() -> None:
    p = permute_scans(Patterns.of([*runs(0, right=0.5), *runs(1, right=0.9)]), [0], [1], 999, np.random.default_rng(0))
    assert p["score"] == 0.001


def test_permuting_runs_counts_every_choice() -> None:
    rng = np.random.default_rng(0)
    a, b = np.array([0.1, 0.2, 0.3]), np.array([0.7, 0.8, 0.9])
    assert permute_runs(a, b, 1000, rng) == smallest_p(3, 3, 1000) == 2 / comb(6, 3)
    assert permute_runs(a[:1], b, 1000, rng) == smallest_p(1, 3, 1000) == 1 / 4
    assert permute_runs(b, b[::-1], 1000, rng) == 1
    by_hand = permute_runs(np.array([1.0, 4.0]), np.array([2.0, 3.0, 6.0]), 1000, rng)
    means = [(s / 2, (16 - s) / 3) for s in (5, 3, 4, 7, 6, 7, 10, 5, 8, 9)]  # sums of the ten pairs of 1, 4, 2, 3, 6
    assert by_hand == np.mean([abs(y - x) >= 11 / 3 - 5 / 2 - 1e-12 for x, y in means])
    many = permute_runs(np.arange(12.0), np.arange(12.0) + 4, 5000, rng)
    assert many == pytest.approx(ttest_ind(np.arange(12.0), np.arange(12.0) + 4).pvalue, abs=0.02)
    assert smallest_p(12, 12, 5000) == 1 / 5001


def test_runs_needed_give_the_power_that_they_promise() -> None:
    a, b = np.array([0.60, 0.64, 0.62]), np.array([0.62, 0.66, 0.64])  # one standard deviation apart
    needed = runs_needed(a, b)
    assert needed == 17  # Cohen 1988, table 2.4.1: d = 1, two-sided .05, power .80
    rng = np.random.default_rng(0)
    p = ttest_ind(rng.normal(0, 1, (needed, 4000)), rng.normal(1, 1, (needed, 4000))).pvalue
    assert np.mean(p < 0.05) == pytest.approx(0.8, abs=0.03)
    assert runs_needed(a[:1], b) is None and runs_needed(a, a) is None
    assert runs_needed(np.array([0.1, 0.1]), np.array([0.9, 0.9])) is None
    assert runs_needed(np.array([0.1, 0.101]), np.array([0.9, 0.901])) == 3
