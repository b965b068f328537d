"""Comparisons on the same scans. Oracles: brute force with scikit-learn, McNemar's exact test, statsmodels."""

from __future__ import annotations

import json
from dataclasses import replace
from math import comb
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, ttest_ind
from sklearn.metrics import f1_score
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from typer.testing import CliRunner

from fairlung.pipeline.cli.app import app
from fairlung.pipeline.evaluation.audit import audit
from fairlung.pipeline.evaluation.compare import compare
from fairlung.pipeline.evaluation.compare_words import verdicts
from fairlung.pipeline.evaluation.paired import (
    CompareError,
    Patterns,
    bootstrap_runs,
    draw_weights,
    headline,
    permute_runs,
    permute_scans,
    runs_needed,
    smallest_p,
)
from fairlung.pipeline.evaluation.predictions import Predictions
from fairlung.pipeline.evaluation.records import Comparison, from_plain, json_text, read_record, to_plain
from fairlung.pipeline.evaluation.wording import Verdict

CLASSES = ("a", "g", "covid", "normal")
SEXES = ("male", "female")
PAPER = (25, 25, 12, 13, 20, 20, 20, 20)  # scans of each class and sex
FEW = {"resamples": 200, "permutations": 200}


@pytest.fixture(autouse=True)
def _no_garbage_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """By statsmodels at each Holm adjustment: among this many modules it takes longer than the comparison."""
    monkeypatch.setattr("gc.collect", lambda: 0)


def design(cells: tuple[int, ...] = PAPER) -> tuple[np.ndarray, np.ndarray]:
    return np.repeat(np.repeat(np.arange(4), 2), cells), np.repeat(np.tile([0, 1], 4), cells)


def table(label: np.ndarray, group: np.ndarray, prediction: np.ndarray) -> Predictions:
    names = np.array([f"scan {i}" for i in range(len(label))])
    return Predictions(names, label, prediction, group, None, CLASSES, SEXES, ("sex",))


def runs(seed: int, number: int = 1, right: float = 0.7, cells: tuple[int, ...] = PAPER) -> list[Predictions]:
    rng = np.random.default_rng(seed)
    label, group = design(cells)
    return [
        table(label, group, np.where(rng.random(len(label)) < right, label, rng.integers(0, 4, len(label))))
        for _ in range(number)
    ]


def by_scikit_learn(run: Predictions, weight: np.ndarray) -> dict[str, float]:
    how = {"labels": range(4), "average": None, "zero_division": 0}
    cells = [
        f1_score(run.label[inside], run.prediction[inside], sample_weight=weight[inside], **how)
        for inside in (run.group == 0, run.group == 1)
    ]
    male, female = np.mean(cells, axis=1)
    pooled = f1_score(run.label, run.prediction, sample_weight=weight, **how).mean()
    return {
        "score": (male + female) / 2,
        "gap": male - female,
        "abs_gap": abs(male - female),
        "f1_macro": pooled,
        "worst_cell_f1": np.min(cells),
        "f1_male": male,
        "f1_female": female,
    }


# ---------------------------------------------------------------------------------------------------------------------
# the numbers
# ---------------------------------------------------------------------------------------------------------------------
def test_values_and_differences_are_scikit_learns_means_over_runs() -> None:
    systems = {"A": runs(0, 3), "B": runs(1, 2, 0.8)}
    result = compare(systems, **FEW)
    expected = {
        name: {
            key: np.mean([by_scikit_learn(run, np.ones(len(run.label)))[key] for run in tables])
            for key in result.systems[0].values
        }
        for name, tables in systems.items()
    }
    for system in result.systems:
        assert system.values == pytest.approx(expected[system.name])
        scores = [run["score"].value for run in system.runs]
        assert system.sd["score"] == pytest.approx(np.std(scores, ddof=1))
    (comparison,) = result.comparisons
    for name, estimate in comparison.differences.items():
        assert estimate.value == pytest.approx(expected["B"][name] - expected["A"][name])
        assert estimate.low <= estimate.value <= estimate.high


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


def test_intervals_of_a_run_are_those_of_its_audit() -> None:
    (run,) = runs(8)
    (_, found) = compare({"A": runs(9), "B": [run]}, **FEW).systems
    expected = audit(run, **FEW)
    assert found.sd is None
    (mine,) = found.runs
    numbers = expected.overall.numbers()
    assert {name: mine[name] for name in numbers} == numbers
    for group in expected.groups:
        assert mine[f"f1_{group.group}"] == group.f1[:3]


# ---------------------------------------------------------------------------------------------------------------------
# properties
# ---------------------------------------------------------------------------------------------------------------------
def test_identical_systems_do_not_differ() -> None:
    result = compare({"A": runs(0), "B": runs(0)}, **FEW)
    (comparison,) = result.comparisons
    assert all(estimate == (0, 0, 0) for estimate in comparison.differences.values())
    assert comparison.probability_better == {"score": 0.5, "abs_gap": 0.5}
    assert all(test.p_value == test.p_holm == 1 for test in comparison.tests.values())
    assert comparison.power.scans is None and comparison.power.runs is None
    assert result.verdicts[0].text.startswith("P of B equals that of A (95 % interval")
    assert {verdict.level for verdict in result.verdicts} == {"inconclusive", "note"}


def test_the_same_runs_of_both_do_not_differ() -> None:
    (comparison,) = compare({"A": runs(0, 4), "B": runs(0, 4)[::-1]}, **FEW).comparisons
    assert comparison.differences["score"].value == pytest.approx(0, abs=1e-12)
    assert comparison.differences["score"].high > 0.01  # other runs would not be the same
    assert comparison.probability_better["score"] == pytest.approx(0.5, abs=0.15)
    assert comparison.tests["score"].p_value == comparison.tests_of_these_runs["score"].p_value == 1


def test_the_order_of_rows_does_not_matter() -> None:
    systems = {"A": runs(0, 2), "B": runs(1, 2)}
    shuffled = {
        name: [run.take(np.random.default_rng(i).permutation(len(run.label))) for i, run in enumerate(tables)]
        for name, tables in systems.items()
    }
    one, other = compare(systems, **FEW), compare(shuffled, **FEW)
    assert json_text(one) == json_text(other)


def test_swapping_the_systems_flips_the_signs() -> None:
    a, b = runs(0, 2, 0.6), runs(1, 3, 0.8)
    (forth,) = compare({"A": a, "B": b}, resamples=2000, permutations=2000).comparisons
    (back,) = compare({"B": b, "A": a}, resamples=2000, permutations=2000).comparisons
    for name, estimate in forth.differences.items():
        mirrored = back.differences[name]
        assert mirrored.value == pytest.approx(-estimate.value)
        assert mirrored.low == pytest.approx(-estimate.high, abs=0.03)
        assert mirrored.high == pytest.approx(-estimate.low, abs=0.03)
    for name in ("score", "abs_gap"):
        share = forth.probability_better[name] + back.probability_better[name]
        assert share == pytest.approx(1, abs=0.05)
        assert forth.tests[name].p_value == back.tests[name].p_value  # over runs it is exact


def test_scans_of_unknown_group_are_left_out() -> None:
    a, b = runs(0)[0], runs(1)[0]
    known = np.arange(len(a.label)) % 3 > 0
    hidden = np.where(known, a.group, -1)
    result = compare({"A": [replace(a, group=hidden)], "B": [replace(b, group=hidden)]}, **FEW)
    assert (result.n, result.n_unknown) == (known.sum(), (~known).sum())
    expected = compare({"A": [a.take(known)], "B": [b.take(known)]}, **FEW)
    assert result.comparisons == expected.comparisons


def test_three_groups_have_no_signed_gap() -> None:
    systems = {
        name: [replace(run, group=np.arange(len(run.label)) % 3, group_names=("x", "y", "z")) for run in runs(seed)]
        for name, seed in (("A", 0), ("B", 1))
    }
    (comparison,) = compare(systems, **FEW).comparisons
    assert set(comparison.differences) == {"score", "abs_gap", "f1_macro", "worst_cell_f1", "f1_x", "f1_y", "f1_z"}


def test_same_seed_same_result_and_plain_data() -> None:
    systems = {"A": runs(0, 2), "B": runs(1), "C": runs(2, 2)}
    result = compare(systems, **FEW, seed=5)
    assert result == compare(systems, **FEW, seed=5)
    assert from_plain(Comparison, json.loads(json.dumps(to_plain(result), allow_nan=False))) == result
    assert result.comparisons != compare(systems, **FEW, seed=6).comparisons


# ---------------------------------------------------------------------------------------------------------------------
# tests
# ---------------------------------------------------------------------------------------------------------------------
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


def test_scans_of_unequal_numbers_of_runs_cannot_be_swapped() -> None:
    with pytest.raises(ValueError, match="equal numbers of runs only, got 1 and 2"):
        permute_scans(Patterns.of(runs(0, 3)), [0], [1, 2], 100, np.random.default_rng(0))
    (comparison,) = compare({"A": runs(0), "B": runs(1, 3)}, **FEW).comparisons
    assert comparison.tests_of_these_runs is None and comparison.differences_of_these_runs is not None
    assert comparison.tests["score"].unit == "runs"


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


def test_lucky_seeds_are_not_taken_for_a_better_way_of_training() -> None:
    rng = np.random.default_rng(0)
    over_scans, over_runs, within = [], [], []
    for _ in range(50):  # both systems are one way of training, whose runs differ widely
        tables = [runs(int(rng.integers(1e9)), 1, right)[0] for right in rng.uniform(0.5, 0.9, 8)]
        (found,) = compare({"A": tables[:4], "B": tables[4:]}, resamples=100, permutations=100).comparisons
        over_scans.append(found.tests_of_these_runs["score"].p_value <= 0.05)
        over_runs.append(found.tests["score"].p_value <= 0.05)
        within.append(found.differences["score"].low <= 0 <= found.differences["score"].high)
    assert np.mean(over_runs) <= 0.15 and np.mean(within) >= 0.8
    assert np.mean(over_scans) >= 0.3  # why runs are permuted, and not scans


def test_holm_is_statsmodels_over_all_comparisons() -> None:
    systems = {"A": runs(0), "B": runs(1, right=0.78), "C": runs(2, right=0.8), "D": runs(3, right=0.6)}
    comparisons = compare(systems, **FEW).comparisons
    tests = [test for comparison in comparisons for test in comparison.tests.values()]
    assert len(tests) == 6
    expected = multipletests([test.p_value for test in tests], method="holm")[1]
    assert [test.p_holm for test in tests] == pytest.approx(expected)
    in_order = sorted(tests, key=lambda test: test.p_value)
    steps = np.maximum.accumulate([(6 - i) * test.p_value for i, test in enumerate(in_order)])  # Holm 1979
    assert [test.p_holm for test in in_order] == pytest.approx(np.minimum(steps, 1))
    assert all(comparison.reference == "A" for comparison in comparisons)


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


# ---------------------------------------------------------------------------------------------------------------------
# what cannot be compared
# ---------------------------------------------------------------------------------------------------------------------
def test_tables_that_do_not_fit_are_refused_with_the_first_scan() -> None:
    (a,) = runs(0)
    few, more = a.take(np.arange(150)), replace(a, scan=np.where(a.scan == "scan 7", "other", a.scan))
    for b, message in (
        (few, "B has no scan 'scan 150', which A has"),
        (more, "B has no scan 'scan 7', which A has"),
        (replace(a, label=np.where(np.arange(155) == 3, 1, a.label)), "class of scan 'scan 3': g in B, a in A"),
        (
            replace(a, group=np.where(np.arange(155) == 4, -1, a.group)),
            "group of scan 'scan 4': unknown in B, male in A",
        ),
        (replace(a, class_names=CLASSES[::-1]), "B has the classes normal, covid, g, a; A has a, g, covid, normal"),
        (replace(a, group_names=("m", "f")), "B has the groups m, f; A has male, female"),
    ):
        with pytest.raises(CompareError, match=message):
            compare({"A": [a], "B": [b]}, **FEW)
    with pytest.raises(CompareError, match="B has a scan 'scan 150', which A has not"):
        compare({"A": [few], "B": [a]}, **FEW)
    with pytest.raises(CompareError, match=r"B \(run 2\) has no scan"):
        compare({"A": [a], "B": [a, few]}, **FEW)


def test_senseless_settings_are_refused() -> None:
    systems = {"A": runs(0), "B": runs(1)}
    with pytest.raises(CompareError, match="two systems at least, got 1"):
        compare({"A": runs(0)})
    with pytest.raises(CompareError, match="B has no predictions"):
        compare({"A": runs(0), "B": []})
    with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\), got 95"):
        compare(systems, confidence=95)
    with pytest.raises(ValueError, match="resamples must be at least 100, got 10$"):
        compare(systems, resamples=10)
    men = {name: [run.take(run.group == 0) for run in tables] for name, tables in systems.items()}
    with pytest.raises(CompareError, match="there are scans of: male"):
        compare(men, **FEW)
    macro = {name: [replace(run, group_names=("macro", "other")) for run in tables] for name, tables in systems.items()}
    with pytest.raises(CompareError, match="gives the name f1_macro twice"):
        compare(macro, **FEW)


# ---------------------------------------------------------------------------------------------------------------------
# in words
# ---------------------------------------------------------------------------------------------------------------------
def test_a_clear_difference_is_a_finding_about_these_models() -> None:
    result = compare({"old": runs(0, right=0.4), "new": runs(1, right=0.95)}, resamples=1000, permutations=1000)
    first, _, last = result.verdicts
    value = result.comparisons[0].differences["score"].value
    assert first.level == "finding"
    assert first.text.startswith(f"P of new is {value:.3f} higher than that of old (95 % interval ")
    assert "these models differ on scans like these" in first.text
    assert last == Verdict("note", "One run each: says nothing about other seeds.")


def test_a_small_difference_cannot_be_told_from_none() -> None:
    first, _, last = compare({"A": runs(0), "B": runs(3)}, **FEW).verdicts
    assert first.level == "inconclusive"
    assert "a difference of this size cannot be told from none on these data" in first.text
    assert "takes about" in last.text and "scans in the same proportions" in last.text


def test_too_few_runs_give_no_statement_about_seeds() -> None:
    found = compare({"A": runs(0, 3, 0.4), "B": runs(1, 3, 0.95)}, resamples=1000, permutations=1000).verdicts
    assert [verdict.level for verdict in found] == ["inconclusive", "inconclusive", "no-statement", "note", "note"]
    assert "so few runs cannot tell a difference of any size from none" in found[0].text
    assert "the smallest p that they can give is 0.2 after Holm; it takes 5 runs each" in found[2].text
    assert "chance in the scans only" in found[3].text and "larger than chance explains" in found[3].text
    enough = compare({"A": runs(0, 5, 0.4), "B": runs(1, 5, 0.95)}, resamples=1000, permutations=1000).verdicts
    assert enough[0].level == "finding" and "the ways of training differ" in enough[0].text
    one = compare({"A": runs(0), "B": runs(1, 3)}, **FEW).verdicts
    assert "A has one run: how much its numbers change with the seed is not known" in one[-1].text


def test_an_interval_and_a_test_that_disagree_are_said_to() -> None:
    result = compare({"A": runs(0, right=0.4), "B": runs(1, right=0.95)}, **FEW)
    (comparison,) = result.comparisons
    doubtful = replace(comparison.tests["score"], p_holm=0.2)
    comparison = replace(comparison, tests={**comparison.tests, "score": doubtful})
    first = verdicts(replace(result, comparisons=(comparison,)))[0]
    assert first.level == "inconclusive" and "the interval and the test do not agree" in first.text


# ---------------------------------------------------------------------------------------------------------------------
# the command
# ---------------------------------------------------------------------------------------------------------------------
@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: CliRunner().invoke(app, ["compare", *map(str, arguments)])


def write(path: Path, run: Predictions) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        "scan": run.scan,
        "label": np.array(run.class_names)[run.label],
        "sex": np.array(run.group_names)[run.group],
        "prediction": np.array(run.class_names)[run.prediction],
        "patient": "DOE^JANE",
    }
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


def test_the_command_shows_verdicts_and_writes_the_comparison(cli, tmp_path: Path) -> None:
    for seed in range(2):
        write(tmp_path / f"runs/new_{seed}/test/evaluation/predictions.csv", runs(seed, right=0.9)[0])
    write(tmp_path / "old.csv", runs(5)[0])
    out = tmp_path / "out" / "compare.json"
    classes = [part for name in CLASSES for part in ("--class-name", name)]
    done = cli(tmp_path / "old.csv", f"[new]={tmp_path}/runs/new_*", "-o", out, "--resamples", 200, *classes)
    assert done.exit_code == 0, done.output
    result = read_record(Comparison, out)
    expected = compare({"old": runs(5), "[new]": [*runs(0, right=0.9), *runs(1, right=0.9)]}, **FEW)
    assert result == expected
    assert done.output.startswith("inconclusive: P of [new] is")
    assert done.output.index("too few for a statement") < done.output.index("pooled macro F1")
    assert f"{expected.comparisons[0].differences['score'].value:+.3f}" in done.output
    assert "DOE" not in done.output + out.read_text()


def test_the_command_says_what_is_wrong(cli, tmp_path: Path) -> None:
    one = write(tmp_path / "one.csv", runs(0)[0])
    few = write(tmp_path / "few.csv", runs(0)[0].take(np.arange(100)))
    for arguments, message in (
        ((one,), "two systems at least, got 1"),
        ((one, few), "few has no scan 'scan 100', which one has"),
        ((one, one), "is given twice"),
        ((one, tmp_path / "on.csv"), "no such file or folder; in"),
        ((one, few, "--confidence", 2), "confidence must be in (0, 1), got 2.0"),
    ):
        done = cli(*arguments)
        assert done.exit_code == 1 and message in done.output.replace("\n", " "), done.output
