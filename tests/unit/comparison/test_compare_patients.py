"""Comparisons by patients: a patient's scans are drawn and swapped together, and tables must agree whose they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from paired_runs import FEW, SEXES, design, runs, table
from scipy.stats import binomtest

from fairlung.pipeline.comparison.compare import compare
from fairlung.pipeline.comparison.paired import CompareError, Patterns, bootstrap_runs, permute_patients
from fairlung.pipeline.evaluation.audit import audit
from fairlung.pipeline.evaluation.fairness_criteria import summaries
from fairlung.pipeline.evaluation.predictions import Predictions
from fairlung.pipeline.evaluation.records import json_text
from fairlung.pipeline.reports.comparison_report import comparison_report

Systems = dict[str, list[Predictions]]


@pytest.fixture(autouse=True)
def _no_garbage_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """By statsmodels at each Holm adjustment: among this many modules it takes longer than the comparison."""
    monkeypatch.setattr("gc.collect", lambda: 0)


def repeated(run: Predictions, scans: int) -> Predictions:
    """Every scan so many times, as those of one patient."""
    rows = np.repeat(np.arange(len(run.scan)), scans)
    names = np.array([f"{run.scan[row]}-{i}" for i, row in enumerate(rows)])
    return replace(run.take(rows), scan=names, patient=rows)


def mixed(seed: int, number: int = 2) -> list[Predictions]:
    """Runs on the same 156 scans of 60 patients of 1 to 4 scans, every fourth of several classes."""
    rng = np.random.default_rng(seed)
    sizes = np.tile([1, 2, 3, 4, 3], 12)
    patient = np.repeat(np.arange(60), sizes)
    label = np.where((patient % 4 == 0), rng.integers(0, 4, len(patient)), patient % 3)
    group = patient % 2
    right = rng.random(60)[patient]  # how easy a patient is, to all
    return [
        replace(
            table(label, group, np.where(rng.random(len(label)) < right, label, rng.integers(0, 4, len(label)))),
            patient=patient,
        )
        for _ in range(number)
    ]


def changed(systems: Systems, *patients: np.ndarray | None) -> Systems:
    """The same tables, with other numbers of patients, table by table."""
    given = iter(patients)
    return {name: [replace(run, patient=next(given)) for run in tables] for name, tables in systems.items()}


# ---- one scan a patient, and the same scan several times ------------------------------------------------------------
@pytest.mark.parametrize("number", [1, 3])
def test_with_one_scan_a_patient_nothing_changes(number: int) -> None:
    systems = {"A": runs(0, number), "B": runs(1, number, 0.8)}
    ids = [np.random.default_rng(seed).permutation(155) for seed in range(2 * number)]
    assert json_text(compare(changed(systems, *ids), **FEW)) == json_text(compare(systems, **FEW))


@pytest.mark.parametrize("number", [(1, 1), (3, 2)])
def test_the_same_scan_several_times_says_what_one_says(number: tuple[int, int]) -> None:
    systems = {"A": runs(0, number[0]), "B": runs(1, number[1], 0.8)}
    often = {name: [repeated(run, 3) for run in tables] for name, tables in systems.items()}
    once, several = compare(systems, **FEW), compare(often, **FEW)
    assert (several.n, several.n_patients, once.n_patients) == (3 * once.n, once.n, None)
    (ours,), (theirs,) = several.comparisons, once.comparisons
    for name, estimate in theirs.differences.items():
        assert tuple(ours.differences[name]) == pytest.approx(tuple(estimate))
    for name, test in theirs.tests.items():
        assert ours.tests[name].p_value == pytest.approx(test.p_value)
    unsaid = compare({name: [replace(run, patient=None) for run in runs] for name, runs in often.items()}, **FEW)
    narrow = unsaid.comparisons[0].differences["score"]
    if min(number) == 1:
        assert narrow.high - narrow.low < 0.75 * (ours.differences["score"].high - ours.differences["score"].low)


def test_intervals_of_a_run_are_those_of_its_audit() -> None:
    a, b = mixed(3)
    found = compare({"A": [a], "B": [b]}, **FEW).systems[1].runs[0]
    numbers = audit(b, **FEW).overall.numbers()
    assert {name: found[name] for name in numbers} == numbers


# ---- oracles --------------------------------------------------------------------------------------------------------
def test_whole_patients_are_drawn() -> None:
    """Patients drawn one by one, of each group and class or of several classes, give the same deviations."""
    tables = mixed(0)
    draws = bootstrap_runs(Patterns.of(tables), SEXES, 4000, np.random.default_rng(1))
    rng, first = np.random.default_rng(2), tables[0]
    assert first.patient is not None
    rows = [np.flatnonzero(first.patient == one) for one in range(60)]
    classes = [set(first.label[of].tolist()) for of in rows]
    kinds = [(one % 2, min(has) if len(has) == 1 else 4) for one, has in enumerate(classes)]
    strata = [[one for one in range(60) if kinds[one] == kind] for kind in sorted(set(kinds))]
    assert any(kind == 4 for _, kind in kinds)
    brute = []
    for _ in range(300):
        confusion = np.zeros((2, 2, 4, 4))
        for stratum in strata:
            for one in rng.choice(stratum, len(stratum) - 1) if len(stratum) > 1 else stratum:
                for r, run in enumerate(tables):
                    of = rows[one]
                    weight = len(stratum) / max(len(stratum) - 1, 1)
                    np.add.at(confusion, (r, run.group[of], run.label[of], run.prediction[of]), weight)
        numbers = summaries(confusion)
        brute.append([np.diff(numbers[name])[0] for name in ("score", "gap")])
    for name, theirs in zip(("score", "gap"), np.array(brute).T, strict=True):
        ours = draws[name][:, 1] - draws[name][:, 0]
        assert theirs.std() == pytest.approx(ours.std(), rel=0.12)
        assert theirs.mean() == pytest.approx(ours.mean(), abs=4 * ours.std() / np.sqrt(300))


def test_swapping_patients_is_every_swap_of_whole_patients() -> None:
    """p against all 2^8 swaps of the 8 patients."""
    rng = np.random.default_rng(5)
    patient = np.repeat(np.arange(8), [3, 1, 2, 4, 2, 1, 3, 2])
    label, group = np.arange(len(patient)) % 4, patient % 2
    a, b = (
        replace(table(label, group, np.where(rng.random(18) < share, label, (label + 1) % 4)), patient=patient)
        for share in (0.9, 0.4)
    )

    def distance(swapped: Sequence[bool]) -> float:
        moved = np.array(swapped)[patient]
        pair = (np.where(moved, y.prediction, x.prediction) for x, y in ((a, b), (b, a)))
        first, second = (summaries(replace(a, prediction=said).confusion()[:-1])["score"] for said in pair)
        return float(abs(second - first))

    observed = distance([False] * 8)
    expected = np.mean([distance(swapped) >= observed - 1e-12 for swapped in product([False, True], repeat=8)])
    found = permute_patients(Patterns.of([a, b]), 0, 1, 20_000, np.random.default_rng(0))
    assert found == pytest.approx(expected, abs=0.012)
    alone = permute_patients(Patterns.of([replace(a, patient=None), b]), 0, 1, 20_000, np.random.default_rng(0))
    assert abs(alone - expected) > 0.012  # scan by scan it is another test


def test_patients_of_one_pattern_are_counted_together() -> None:
    tables = mixed(1)
    patterns = Patterns.of(tables)
    assert patterns.patients.sum() == 60 and len(patterns.patients) < 60
    assert patterns.count.sum() == len(tables[0].label)
    observed = patterns.confusions(patterns.count[None])[0]
    for run, confusion in zip(tables, observed, strict=True):
        np.testing.assert_array_equal(confusion, run.confusion()[:-1])


# ---- promises -------------------------------------------------------------------------------------------------------
@pytest.mark.fault(
    "wrong",
    "two systems compared on scans of which patients have three, alike",
    before="a true null rejected at .05 in 1 of 4 tests",
    now="in 1 of 20, as promised",
)
def test_the_test_of_patients_rejects_a_true_null_as_often_as_promised() -> None:
    rng = np.random.default_rng(0)
    label, group = design((6,) * 8)
    ours, scans = [], []
    for _ in range(150):
        easy = rng.random(48)
        pair = [
            repeated(table(label, group, np.where(rng.random(48) < easy, label, (label + 1) % 4)), 3) for _ in range(2)
        ]
        ours.append(permute_patients(Patterns.of(pair), 0, 1, 99, rng) <= 0.05)
        alone = [replace(run, patient=None) for run in pair]
        scans.append(permute_patients(Patterns.of(alone), 0, 1, 99, rng) <= 0.05)
    assert binomtest(sum(ours), 150, 0.05, alternative="greater").pvalue > 1e-3
    assert binomtest(sum(scans), 150, 0.1, alternative="greater").pvalue < 1e-3


# ---- whose the scans are --------------------------------------------------------------------------------------------
def test_what_counts_is_which_scans_are_of_one_patient(caplog: pytest.LogCaptureFixture) -> None:
    systems = dict(zip("AB", ([run] for run in mixed(2)), strict=True))
    patient = systems["A"][0].patient
    assert patient is not None
    expected = json_text(compare(systems, **FEW))
    other_key = np.random.default_rng(0).permutation(1000)[patient]
    assert json_text(compare(changed(systems, patient, other_key), **FEW)) == expected
    assert not caplog.text
    for known in ((patient, None), (None, other_key)):
        caplog.clear()
        assert json_text(compare(changed(systems, *known), **FEW)) == expected
        which = ("B", "A") if known[1] is None else ("A", "B")
        assert "{}: not said whose the scans are; what {} says is taken".format(*which) in caplog.text


def test_tables_that_disagree_about_patients_are_refused() -> None:
    systems = dict(zip("AB", ([run] for run in mixed(2)), strict=True))
    patient = systems["A"][0].patient
    assert patient is not None
    apart, together = patient.copy(), patient.copy()
    apart[2] = 99  # scans 1 and 2 are of patient 1
    together[2] = 0  # and scan 0 of patient 0
    for ids, said in (
        ((patient, apart), "scans 'scan 1' and 'scan 2' are of one patient in A, of two in B"),
        ((apart, patient), "scans 'scan 1' and 'scan 2' are of one patient in B, of two in A"),
        ((patient, together), "scans 'scan 0' and 'scan 2' are of one patient in B, of two in A"),
    ):
        with pytest.raises(CompareError, match=said):
            compare(changed(systems, *ids), **FEW)


def test_scans_in_two_unicode_forms_are_told_apart() -> None:
    (a,), (b,) = runs(0), runs(1)
    composed, decomposed = (replace(run, scan=np.array([f"{name} {i}" for i in range(155)]))
                            for run, name in ((a, "Zo\u00eb"), (b, "Zoe\u0308")))  # fmt: skip
    with pytest.raises(
        CompareError, match=r"scan 'Zoe\\u0308 0' of B is written 'Zo\\xeb 0' in A: write it in one way"
    ):
        compare({"A": [composed], "B": [decomposed]}, **FEW)


def test_names_that_look_like_several_scans_of_a_patient_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    names = np.array([f"p{i // 2:03d}_{'ab'[i % 2]}" for i in range(155)])
    compare({name: [replace(runs(seed)[0], scan=names)] for seed, name in enumerate("AB")}, **FEW)
    assert caplog.text.count("look like scans of one patient") == 1


# ---- words ----------------------------------------------------------------------------------------------------------
def test_a_comparison_says_that_patients_were_resampled() -> None:
    systems = dict(zip("AB", ([repeated(run, 2)] for run in (runs(0)[0], runs(1, right=0.75)[0])), strict=True))
    result = compare(systems, **FEW)
    texts = [verdict.text for verdict in result.verdicts]
    assert any(text.startswith("The 310 scans are of 155 patients: patients, not scans, were res") for text in texts)
    assert any("scans in the same proportions and as many a patient (" in text for text in texts)
    page = str(comparison_report(result))
    assert "bootstrap resamples of the patients within" in page and "310 of 155 patients" in page
    assert "swaps the two predictions of a patient's scans" in page
    single = compare({name: [replace(tables[0], patient=None)] for name, tables in systems.items()}, **FEW)
    assert not any("patient" in verdict.text for verdict in single.verdicts)
    assert "patient" not in str(comparison_report(single))
