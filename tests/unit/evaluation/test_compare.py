"""Comparisons on the same scans. Oracles: scikit-learn, statsmodels."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from paired_runs import CLASSES, FEW, by_scikit_learn, runs
from statsmodels.stats.multitest import multipletests

from fairlung.pipeline.evaluation.audit import audit
from fairlung.pipeline.evaluation.compare import compare
from fairlung.pipeline.evaluation.paired import (
    CompareError,
    Patterns,
    permute_scans,
)
from fairlung.pipeline.evaluation.records import Comparison, from_plain, json_text, to_plain


@pytest.fixture(autouse=True)
def _no_garbage_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """By statsmodels at each Holm adjustment: among this many modules it takes longer than the comparison."""
    monkeypatch.setattr("gc.collect", lambda: 0)


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


def test_scans_of_unequal_numbers_of_runs_cannot_be_swapped() -> None:
    with pytest.raises(ValueError, match="equal numbers of runs only, got 1 and 2"):
        permute_scans(Patterns.of(runs(0, 3)), [0], [1, 2], 100, np.random.default_rng(0))
    (comparison,) = compare({"A": runs(0), "B": runs(1, 3)}, **FEW).comparisons
    assert comparison.tests_of_these_runs is None and comparison.differences_of_these_runs is not None
    assert comparison.tests["score"].unit == "runs"


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
