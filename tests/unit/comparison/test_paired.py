"""Paired resampling and tests. Oracles: brute force with scikit-learn, McNemar, t tests of scipy and statsmodels."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from paired_runs import SEXES, by_scikit_learn, design, runs, table
from scipy.stats import binomtest, ttest_ind
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.power import TTestIndPower

from fairlung.pipeline.comparison.paired import (
    Distance,
    Patterns,
    Spread,
    bootstrap_runs,
    distance,
    draw_weights,
    gap_sizes,
    headline,
    over_runs,
    permute_patients,
    runs_needed,
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
    whole = permute_patients(patterns, 0, 1, 300, np.random.default_rng(0))
    monkeypatch.setattr("fairlung.pipeline.comparison.paired.CHUNK_BYTES", 10_000)
    assert len(patterns.chunks(300)) > 1 and sum(patterns.chunks(300)) == 300
    assert bootstrap_runs(patterns, SEXES, 301, np.random.default_rng(0))["score"].shape == (301, 2)
    assert permute_patients(patterns, 0, 1, 300, np.random.default_rng(0)) == whole


@pytest.mark.parametrize(("only_a", "only_b"), [(9, 3), (2, 10), (4, 4), (0, 6)])
def test_swapping_scans_is_mcnemars_exact_test_in_one_cell(only_a: int, only_b: int) -> None:
    label, group = design((30, 30, 30, 30, 30, 30, 30, 30))
    cell = np.flatnonzero((label == 0) & (group == 0))
    a, b = label.copy(), label.copy()
    a[cell[:only_b]] = 1
    b[cell[only_b : only_b + only_a]] = 1
    patterns = Patterns.of([table(label, group, a), table(label, group, b)])
    found = permute_patients(patterns, 0, 1, 20_000, np.random.default_rng(0))
    expected = mcnemar([[0, only_a], [only_b, 0]], exact=True).pvalue
    assert found == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / 20_000) + 1e-4)


def test_swapping_scans_rejects_true_null_hypotheses_as_often_as_it_says() -> None:
    label, group = design()
    rng = np.random.default_rng(0)
    rejected, simulations = 0, 600
    for _ in range(simulations):
        difficulty = rng.random(len(label))  # of a scan, for both
        pair = [
            table(label, group, np.where(rng.random(len(label)) < difficulty, label, rng.integers(0, 4, len(label))))
            for _ in range(2)
        ]
        rejected += permute_patients(Patterns.of(pair), 0, 1, 199, rng) <= 0.05
    assert binomtest(rejected, simulations, 0.05).pvalue > 0.001, rejected / simulations


def test_swapping_scans_finds_a_large_difference() -> None:
    p = permute_patients(Patterns.of([*runs(0, right=0.5), *runs(1, right=0.9)]), 0, 1, 999, np.random.default_rng(0))
    assert p == 0.001


def test_where_scans_do_not_vary_it_is_welchs_t_test() -> None:
    rng = np.random.default_rng(0)
    for runs_a, runs_b in ((2, 2), (5, 20), (10, 3)):
        a, b = rng.normal(0.7, 0.02, runs_a), rng.normal(0.74, 0.05, runs_b)
        found = distance(a, b, np.tile(a, (5, 1)), np.tile(b, (5, 1)), seeds=True)
        expected = ttest_ind(b, a, equal_var=False)
        assert found.value == pytest.approx(b.mean() - a.mean()) and found.test() == pytest.approx(expected.pvalue)
        assert found.estimate(0.9)[1:] == pytest.approx(tuple(expected.confidence_interval(0.9)))


def test_luck_of_a_run_on_single_scans_is_counted_once() -> None:
    rng = np.random.default_rng(0)
    draws = 20_000
    of_all = rng.normal(0, 0.03, (draws, 1))  # what the scans are to every run, of B alone
    of_one = rng.normal(0, 0.05, (draws, 9))  # what they are to each run
    a, b = rng.normal(0, 0.05, 4), rng.normal(0, 0.05, 5)  # of a seed, its luck included
    found = distance(a, b, of_one[:, :4], of_all + of_one[:, 4:], seeds=True)
    assert found.spread.scans == pytest.approx(0.03**2, rel=0.05)
    assert found.spread.runs == ((pytest.approx(a.var(ddof=1)), 4), (pytest.approx(b.var(ddof=1)), 5))
    alone = distance(a, b, of_one[:, :4], of_all + of_one[:, 4:], seeds=False)
    assert alone.spread == (pytest.approx(0.03**2 + 0.05**2 / 4 + 0.05**2 / 5, rel=0.05), ())
    assert alone.spread.error()[1] == np.inf


def test_the_difference_in_size_and_its_test_agree() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        gap_a, gap_b = rng.normal(0, 0.2, 2)
        spreads = [Spread(float(rng.gamma(1, 0.01)), ((0.01, 3), (0.02, 4)) if seeds else ()) for seeds in (0, 1)]
        minus, plus = Distance(gap_b - gap_a, spreads[0]), Distance(gap_b + gap_a, spreads[1])
        found, p = gap_sizes(minus, plus, 0.9)
        assert found.value == pytest.approx(abs(gap_b) - abs(gap_a))
        assert p == max(minus.test(), plus.test()) and (p < 0.1) == (not found.low <= 0 <= found.high)
        box = [np.linspace(*part.estimate(0.9)[1:], 41) for part in (minus, plus)]
        inside = [abs(m + s) / 2 - abs(s - m) / 2 for m, s in product(*box)]  # b = (m + s) / 2, a = (s - m) / 2
        assert found.low == pytest.approx(min(inside), abs=0.02) and found.low <= min(inside) + 1e-12
        assert found.high == pytest.approx(max(inside), abs=0.02) and found.high >= max(inside) - 1e-12


@pytest.mark.parametrize(("right_a", "right_b"), [((0.8, 0.6), (0.6, 0.8)), ((0.9, 0.7), (0.6, 0.8))])
def test_gaps_of_one_size_and_opposite_sign_are_seldom_told_apart(
    right_a: tuple[float, float], right_b: tuple[float, float]
) -> None:
    rng = np.random.default_rng(0)
    label, group = design((6,) * 8)
    rejected, simulations = 0, 250
    for _ in range(simulations):
        pair = []
        for right in (right_a, right_b):
            wrong = (label + rng.integers(1, 4, len(label))) % 4
            pair.append(table(label, group, np.where(rng.random(len(label)) < np.array(right)[group], label, wrong)))
        patterns = Patterns.of(pair)
        gap = headline(patterns.confusions(patterns.count[None]), SEXES)["gap"][0]
        draws = bootstrap_runs(patterns, SEXES, 200, rng)["gap"]
        minus, plus = (distance(s * gap[:1], gap[1:], s * draws[:, :1], draws[:, 1:], seeds=False) for s in (1, -1))
        rejected += gap_sizes(minus, plus, 0.95)[1] < 0.05
    assert rejected / simulations <= 0.08  # by swapping scans: .12 to .17


def test_the_gap_of_a_way_of_training_does_not_grow_with_the_noise_of_its_runs() -> None:
    gaps = np.array([0.2, -0.2, 0.1])
    found = over_runs({"gap": gaps, "abs_gap": np.abs(gaps), "score": np.array([0.5, 0.7, 0.6])})
    assert found == pytest.approx({"gap": 0.1 / 3, "abs_gap": 0.1 / 3, "score": 0.6})
    assert over_runs({"abs_gap": [0.2, 0.4]}) == {"abs_gap": pytest.approx(0.3)}  # of three groups


@pytest.mark.parametrize("level", [0.05, 0.0125])
def test_runs_needed_give_the_power_that_they_promise(level: float) -> None:
    found = Distance(0.02, Spread(0.0, ((0.02**2, 3), (0.02**2, 5))))  # one standard deviation apart
    needed = runs_needed(found, level)
    assert needed == pytest.approx(TTestIndPower().solve_power(1, power=0.8, alpha=level), abs=1)
    unequal = Distance(0.06, Spread(0.01**2, ((0.02**2, 3), (0.06**2, 3))))
    needed = runs_needed(unequal, level)
    rng = np.random.default_rng(0)
    seen = []
    for _ in range(1000):
        scans = rng.normal(0, 0.01)
        a, b = rng.normal(0, 0.02, needed), rng.normal(0.06 + scans, 0.06, needed)
        parts = (float(a.var(ddof=1)), needed), (float(b.var(ddof=1)), needed)
        seen.append(Distance(float(b.mean() - a.mean()), Spread(0.01**2, parts)).test() < level)
    assert np.mean(seen) == pytest.approx(0.8, abs=0.05)


def test_runs_that_cannot_be_planned() -> None:
    parts = ((0.02**2, 3), (0.02**2, 3))
    assert runs_needed(Distance(0.0, Spread(0.0, parts)), 0.05) is None
    assert runs_needed(Distance(0.1, Spread(0.01, ())), 0.05) is None  # runs as given
    assert runs_needed(Distance(0.1, Spread(0.1**2, parts)), 0.05) is None  # too few scans
    assert runs_needed(Distance(0.1, Spread(0.0, ((0.0, 2), (0.0, 2)))), 0.05) == 2
