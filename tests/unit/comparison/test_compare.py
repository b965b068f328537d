"""Comparisons on the same scans. Oracles: scikit-learn, statsmodels."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from paired_runs import CLASSES, FEW, by_scikit_learn, design, runs, table
from scipy import stats
from statsmodels.stats.multitest import multipletests

from fairlung.pipeline.comparison.compare import compare
from fairlung.pipeline.comparison.paired import CompareError, Patterns
from fairlung.pipeline.comparison.records import Comparison
from fairlung.pipeline.evaluation.audit import audit
from fairlung.pipeline.evaluation.fairness_criteria import summaries
from fairlung.pipeline.evaluation.records import from_plain, json_text, to_plain


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
    for numbers in expected.values():
        numbers["abs_gap"] = abs(numbers["gap"])  # of a way of training it is the size of the mean gap
    for system in result.systems:
        assert system.values == pytest.approx(expected[system.name])
        assert "abs_gap" not in system.sd
        scores = [run["score"].value for run in system.runs]
        assert system.sd["score"] == pytest.approx(np.std(scores, ddof=1))
    (comparison,) = result.comparisons
    assert comparison.differences.keys() == expected["A"].keys() - {"worst_cell_f1"}
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
    for estimate in comparison.differences.values():  # on scans like these: of others the same models may differ
        assert estimate.value == 0 and -0.2 < estimate.low < 0 < estimate.high < 0.2
    assert comparison.share_higher == pytest.approx(0.5, abs=0.1)
    assert all(test.p_value == test.p_holm == 1 for test in comparison.tests.values())
    assert comparison.power.scans is None and comparison.power.runs is None
    assert result.verdicts[0].text.startswith("P of B equals that of A (95 % interval")
    assert {verdict.level for verdict in result.verdicts} == {"inconclusive", "note"}


def test_the_same_runs_of_both_do_not_differ() -> None:
    (comparison,) = compare({"A": runs(0, 4), "B": runs(0, 4)[::-1]}, **FEW).comparisons
    assert comparison.differences["score"].value == pytest.approx(0, abs=1e-12)
    assert comparison.differences["score"].high > 0.01  # other runs would not be the same
    assert comparison.tests["score"].p_value == comparison.tests_of_these_runs["score"].p_value == 1


@pytest.mark.fault(
    "wrong", "two systems on one patient of each class and sex",
    before="a difference without an interval, p = 0",
    now="as uncertain as one patient is",
)  # fmt: skip
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("of_patients", [False, True])
def test_one_patient_of_each_class_and_sex_is_no_certainty(number: int, of_patients: bool) -> None:
    """Resamples of one patient are all alike: that is no zero between systems, and no p of 0."""
    scans = 5 if of_patients else 1
    label, group = design((scans,) * 8)
    right = np.arange(len(label)) % 5 != 4 if of_patients else group == 0
    first, second = (table(label, group, said) for said in (label, np.where(right, label, (label + 1) % 4)))
    first, second = (replace(one, patient=2 * label + group if of_patients else None) for one in (first, second))
    (found,) = compare({"A": [first] * number, "B": [second] * number}, **FEW).comparisons
    for estimate in found.differences.values():
        assert estimate.high - estimate.low > 0.1 and estimate.low <= estimate.value <= estimate.high
    assert found.tests["abs_gap"].p_value > 1e-4
    assert found.power.detectable > 0.1


def test_systems_that_differ_in_every_scan_are_no_certainty() -> None:
    label, group = design()
    (found,) = compare({"A": table(label, group, label), "B": table(label, group, (label + 1) % 4)}, **FEW).comparisons
    score = found.differences["score"]
    assert score.value == score.low == -1 and -0.97 < score.high < -0.9
    assert found.differences["abs_gap"].high > 0.01 and found.differences["gap"].low < -0.01


def test_what_one_unknown_patient_could_change_takes_no_place_in_what_varies_more() -> None:
    a, b = runs(0)[0], runs(1)[0]
    patterns = Patterns.of([a, b])
    draws, mean = patterns.unsure(np.arange(2), 4000, np.random.default_rng(0))
    np.testing.assert_allclose(draws.mean(0), mean, atol=0.1)
    np.testing.assert_allclose(draws.sum(-1), np.broadcast_to(a.confusion()[:-1].sum(-1), draws.shape[:-1]))
    varies = [np.diff(summaries(part)["score"], axis=1).std() for part in (draws, patterns.confusions(
        patterns.resample(4000, np.random.default_rng(0))))]  # fmt: skip
    assert 0.005 < varies[0] < varies[1] / 2


def test_a_run_that_is_given_twice_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    compare({"A": runs(0) * 2, "B": runs(1, 2)}, **FEW)
    assert caplog.text.count("have the same answers") == 1 and "A: runs 1 and 2 have the same answers" in caplog.text


def test_rows_without_names_in_another_order_are_refused() -> None:
    frame = pd.DataFrame({"label": [*"ab"] * 20, "sex": ["male", "female"] * 20, "prediction": [*"abba"] * 10})
    with pytest.raises(CompareError, match="the same rows in another order, and no column 'scan'"):
        compare({"A": frame, "B": frame.sort_values("prediction", kind="stable")}, **FEW)
    named = frame.assign(scan=[f"s{i}" for i in range(40)])
    assert compare({"A": named, "B": named[::-1]}, **FEW).comparisons[0].differences["score"].value == 0


def test_the_order_of_rows_does_not_matter() -> None:
    systems = {"A": runs(0, 2), "B": runs(1, 2)}
    shuffled = {
        name: [run.take(np.random.default_rng(i).permutation(len(run.label))) for i, run in enumerate(tables)]
        for name, tables in systems.items()
    }
    one, other = compare(systems, **FEW), compare(shuffled, **FEW)
    assert json_text(one) == json_text(other)


def test_swapping_the_systems_flips_the_signs() -> None:
    a, b = runs(0, 3, 0.6), runs(1, 4, 0.8)
    (forth,) = compare({"A": a, "B": b}, resamples=2000, permutations=2000).comparisons
    (back,) = compare({"B": b, "A": a}, resamples=2000, permutations=2000).comparisons
    for name, estimate in forth.differences.items():
        mirrored = back.differences[name]
        assert mirrored.value == pytest.approx(-estimate.value)
        assert mirrored.low == pytest.approx(-estimate.high, abs=0.06)
        assert mirrored.high == pytest.approx(-estimate.low, abs=0.06)
    for name in ("score", "abs_gap"):
        assert forth.tests[name].p_value == pytest.approx(back.tests[name].p_value, abs=0.05)


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
    result = compare(systems, **FEW)
    (comparison,) = result.comparisons
    assert set(comparison.differences) == {"score", "f1_macro", "f1_x", "f1_y", "f1_z"}
    assert set(comparison.tests) == {"score"}
    (said,) = [verdict for verdict in result.verdicts if "|gap|" in verdict.text]
    assert said.level == "no-statement" and "moves with the noise, so no interval" in said.text


def test_same_seed_same_result_and_plain_data() -> None:
    systems = {"A": runs(0, 2), "B": runs(1), "C": runs(2, 2)}
    result = compare(systems, **FEW, seed=5)
    assert result == compare(systems, **FEW, seed=5)
    assert from_plain(Comparison, json.loads(json.dumps(to_plain(result), allow_nan=False))) == result
    assert result.comparisons != compare(systems, **FEW, seed=6).comparisons


def test_one_run_beside_several_says_nothing_about_seeds() -> None:
    systems = {"A": runs(0), "B": runs(1, 3)}
    (comparison,) = compare(systems, **FEW).comparisons
    assert not comparison.seeds and comparison.power.runs is None and comparison.share_higher is None
    assert comparison.tests_of_these_runs is None and comparison.differences_of_these_runs is None
    (several,) = compare(systems | {"A": runs(0, 3)}, **FEW).comparisons
    assert several.seeds and several.differences_of_these_runs is not None


@pytest.mark.parametrize("number", [(1, 1), (1, 3), (3, 3), (2, 5)])
def test_interval_p_share_and_verdict_never_contradict_each_other(number: tuple[int, int]) -> None:
    rng = np.random.default_rng(sum(number))
    for case in range(12):
        right = rng.choice([0.3, 0.6, 0.7, 0.8, 0.97], 3)
        systems = {name: runs(int(rng.integers(1e9)), count, r)
                   for name, count, r in zip("ABC", (*number, number[1]), right, strict=True)}  # fmt: skip
        if case % 3 == 0:
            systems["B"] = [run.take(rng.permutation(len(run.label))) for run in systems["A"]]
        result = compare(systems, **FEW, seed=case)
        families = [pair.tests.items() for pair in result.comparisons]
        said = iter(v for v in result.verdicts if v.text.startswith(("P of", "|gap| of")))
        for pair, (name, test) in ((pair, item) for pair, items in zip(result.comparisons, families, strict=True)
                                   for item in items):  # fmt: skip
            found, verdict = pair.differences[name], next(said)
            apart = not found.low <= 0 <= found.high
            assert -1 <= found.low <= found.value <= found.high <= 1 and test.p_value <= test.p_holm
            assert (verdict.level == "finding") == (apart and test.p_holm < 0.05)
            if name == "abs_gap" or number != (1, 1):
                assert apart == (test.p_value < 0.05)
            if apart != (test.p_value < 0.05):
                assert "the interval and the test do not agree" in verdict.text
            assert ("alone it would be larger" in verdict.text) == (apart and test.p_value < 0.05 <= test.p_holm)
            if name == "score" and pair.share_higher is not None and apart:
                assert pair.share_higher >= 0.95 if found.value > 0 else pair.share_higher <= 0.05
        assert next(said, None) is None


def test_gaps_that_differ_in_sign_alone_are_of_one_size() -> None:
    label, group = design((12,) * 8)
    few = np.arange(len(label)) % 12 < 4  # scans of each cell
    one, other = (table(label, group, np.where((group == of) & few, (label + 1) % 4, label)) for of in (0, 1))
    (found,) = compare({"A": [one], "B": [other]}, **FEW).comparisons
    assert found.differences["gap"].low > 0.4 and found.tests["score"].p_value == 1
    size = found.differences["abs_gap"]
    assert size.value == pytest.approx(0) and size.low < -0.05 and size.high > 0.05
    assert found.tests["abs_gap"].p_value == 1


def test_lucky_seeds_are_not_taken_for_a_better_way_of_training() -> None:
    rng = np.random.default_rng(0)
    over_scans, over_seeds, within = [], [], []
    for _ in range(40):  # both systems are one way of training, whose runs differ widely
        tables = [runs(int(rng.integers(1e9)), 1, right)[0] for right in rng.uniform(0.5, 0.9, 8)]
        (found,) = compare({"A": tables[:4], "B": tables[4:]}, resamples=100, permutations=100).comparisons
        over_scans.append(found.tests_of_these_runs["score"].p_value <= 0.05)
        over_seeds.append(found.tests["score"].p_value <= 0.05)
        within.append(found.differences["score"].low <= 0 <= found.differences["score"].high)
    assert np.mean(over_seeds) <= 0.12 and np.mean(within) >= 0.88
    assert np.mean(over_scans) >= 0.3  # why the spread between runs counts


def test_two_fair_ways_that_differ_in_accuracy_are_equally_fair() -> None:
    rng, found = np.random.default_rng(0), []
    for _ in range(20):
        seeds = rng.integers(1e9, size=2)
        systems = {"A": runs(int(seeds[0]), 10, 0.5), "B": runs(int(seeds[1]), 10, 0.95)}
        found += [compare(systems, resamples=100, permutations=100).comparisons[0].tests["abs_gap"].p_value < 0.05]
    assert np.mean(found) <= 0.1  # the means of |gap| differ nearly always


def test_what_is_planned_is_planned_after_holm() -> None:
    one, two = ({name: runs(seed, right=right) for seed, (name, right) in enumerate(systems.items())}
                for systems in ({"A": 0.7, "B": 0.8}, {"A": 0.7, "B": 0.8, "C": 0.75}))  # fmt: skip
    alone, among = (compare(systems, **FEW).comparisons[0].power for systems in (one, two))
    norm = stats.norm
    factor = [((norm.isf(0.05 / family / 2) + norm.ppf(0.8)) / (norm.isf(0.025) + norm.ppf(0.8))) for family in (2, 4)]
    assert among.detectable / alone.detectable == pytest.approx(factor[1] / factor[0], rel=0.1)
    assert among.scans / alone.scans == pytest.approx((factor[1] / factor[0]) ** 2, rel=0.2)


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
