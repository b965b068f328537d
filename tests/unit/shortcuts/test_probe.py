"""Probes: scikit-learn's numbers, patients kept together, and nothing read where there is nothing to read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fairlung.pipeline.data.cohort import load_cohort
from fairlung.pipeline.evaluation.predictions import Predictions
from fairlung.pipeline.shortcuts import probe as probes
from fairlung.pipeline.shortcuts.features import Features
from fairlung.pipeline.shortcuts.probe import Probe, ProbeError, Scans, macro_auc, probe, ridge_weights

CLASSES = ("covid", "normal")


def made(
    patients: int = 60, scans: int = 2, signal: float = 0.0, seed: int = 0, mixed: bool = False
) -> tuple[Features, Predictions, pd.Series]:
    """Features of an attribute of the patient; ``mixed``: with a value nearly all of one class, which they know."""
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(patients), scans)
    label = of % 2
    share = np.where(np.arange(patients) % 2, 0.9, 0.1) if mixed else np.full(patients, 0.5)
    value = (rng.random(patients) < share).astype(int)[of]
    own = rng.standard_normal((patients, 12))
    found = own[of] + 0.1 * rng.standard_normal((len(of), 12))
    found[:, 0] += 3 * label
    found[:, 1] += signal * value
    tiny = rng.standard_normal((len(of), 2)).astype(np.float32)
    names = np.array([f"s{i}" for i in range(len(of))])
    table = Predictions(names, label, label, value, None, CLASSES, ("a", "b"), ("sex",), patient=of)
    values = pd.Series(np.array(["a", "b"])[value])
    about = np.array(CLASSES)[label], np.ones(len(of), dtype=bool), "random", "run 1", "cohort"
    return Features(names, found.astype(np.float32), tiny, tiny, *about), table, values


def network(found: Probe) -> probes.Reading:
    return next(one for one in found.readings if one.kind == "network")


def test_scores_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    features, fold = rng.standard_normal((40, 7)) * np.arange(1, 8) + 5, np.arange(40) % 4
    features[:, 3] = 1.0  # a number that never varies
    target = rng.integers(0, 3, 40)
    found = ridge_weights(features, fold) @ np.eye(3)[target]
    for number in range(4):
        out = fold == number
        fitted = make_pipeline(StandardScaler(), Ridge(7)).fit(features[~out], np.eye(3)[target[~out]])
        np.testing.assert_allclose(found[out], fitted.predict(features[out]), atol=1e-10)


@given(st.integers(0, 1000), st.integers(2, 4))
def test_auc_is_scikit_learns(seed: int, values: int) -> None:
    rng = np.random.default_rng(seed)
    target = rng.permutation(np.arange(24) % values)
    weights = np.round(rng.standard_normal((24, 24)))  # with ties
    scores = weights @ np.eye(values)[target]
    each = [roc_auc_score(target == value, scores[:, value]) for value in range(values)]
    expected = each[1] if values == 2 else np.mean(each)
    assert macro_auc(weights, target[:, None])[0] == pytest.approx(expected, abs=1e-12)


@given(st.integers(0, 1000))
def test_whole_patients_move_among_their_like(seed: int) -> None:
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(20), rng.integers(1, 4, 20))
    order = rng.permutation(len(patient))
    patient, of = patient[order], rng.integers(0, 2, 20)
    label, fold, value = of[patient], (np.arange(20) % 3)[patient], rng.integers(0, 3, 20)[patient]
    moved = Scans(value, label, patient, fold).shuffled(50, rng)
    assert (pd.DataFrame(moved).groupby(patient).nunique() == 1).all(axis=None)  # a patient keeps one value
    for cell in {*zip(label, fold, strict=True)}:
        inside = (label == cell[0]) & (fold == cell[1])
        assert (np.sort(moved[inside], axis=0) == np.sort(value[inside])[:, None]).all()


def test_a_value_that_differs_within_patients_is_shuffled_there() -> None:
    patient, value = np.repeat(np.arange(10), 2), np.tile([0, 1], 10)
    same = np.zeros(20, int)
    moved = Scans(value, same, patient, same).shuffled(40, np.random.default_rng(0))
    assert (moved.reshape(10, 2, 40).sum(1) == 1).all() and 0.3 < moved[0].mean() < 0.7


def test_what_features_hold_is_read() -> None:
    found = network(probe(*_with(made(signal=3.0), "sex")))
    assert found.auc.value > 0.9 and found.p_value <= 0.002 and found.auc.low > found.chance.p95
    assert {one.class_name for one in found.classes} == set(CLASSES) and all(
        one.auc.value > 0.8 for one in found.classes
    )


def test_the_mix_of_diseases_alone_is_not_read() -> None:
    """Every woman nearly is covid: the features know covid, so the AUC is high, and p is that of chance."""
    all_found = [probe(*_with(made(mixed=True, seed=seed), "sex"), permutations=200) for seed in range(12)]
    readings = [network(found) for found in all_found]
    assert np.mean([one.auc.value for one in readings]) > 0.8
    assert np.mean([one.chance.mean for one in readings]) > 0.8
    assert np.mean([one.p_value <= 0.05 for one in readings]) <= 2 / 12
    assert sum(found.verdict.level == "finding" for found in all_found) <= 2


def test_scans_of_a_patient_do_not_tell_of_each_other() -> None:
    """Five scans a patient, alike as twins: folds that part them would read every attribute."""
    values = [network(probe(*_with(made(40, 5, seed=seed), "sex"), permutations=100)) for seed in range(6)]
    assert np.mean([one.auc.value for one in values]) < 0.62


@settings(max_examples=20)
@given(st.integers(0, 200), st.floats(0, 1.5))
def test_words_interval_and_p_agree(seed: int, signal: float) -> None:
    found = probe(*_with(made(80, 1, signal, seed), "sex"), permutations=100)
    reading = network(found)
    assert reading.auc.low <= reading.auc.value <= reading.auc.high
    significant = reading.p_value <= 0.05 and reading.auc.low > reading.chance.mean
    assert (found.verdict.level == "finding") == significant
    assert probes.NOT_USED in found.verdict.text


def test_few_patients_of_a_value_are_left_out_and_said_to_be() -> None:
    features, table, values = made(60, 1)
    values[:5], values[5:8] = "rare", ""
    found = probe(features, table, "site", values, permutations=100)
    assert found.left_out == {"rare": 5, "": 3} and found.n == sum(found.values.values()) == 52
    values[:] = ["a"] * 55 + ["b"] * 5
    with pytest.raises(ProbeError, match="site needs two values of 10 patients and more, got patients of a 55, b 5"):
        probe(features, table, "site", values)


def test_names_that_look_repeated_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    features, table, values = made()
    names = np.array([f"p{i // 2:02d}_{'ab'[i % 2]}" for i in range(len(values))])
    known = probe(replace(features, scan=names), replace(table, scan=names), "sex", values, permutations=100)
    assert not caplog.records and known.patients == 60
    found = probe(
        replace(features, scan=names), replace(table, scan=names, patient=None), "sex", values, permutations=100
    )
    assert "no column says whose they are" in caplog.text and found.patients == found.n == 120


def test_features_of_other_scans_are_refused() -> None:
    features, table, values = made()
    with pytest.raises(ProbeError, match="features.npz is not of the scans"):
        probe(replace(features, scan=features.scan[::-1]), table, "sex", values)


def test_a_column_may_lie_in_another_table() -> None:
    table = pd.DataFrame({"scan": ["x", "y"], "sex": ["male", "female"]})
    beside = pd.DataFrame({"scan": ["y", "z", "x"], "scanner": ["A", "B", "C"]})
    assert list(probes.attribute(table, "scanner", beside)) == ["C", "A"]
    assert list(probes.attribute(table, "sex")) == ["male", "female"]
    wrong: list[tuple[Any, str]] = [
        (None, "no column 'scanner'"),
        (beside[:1], "no row for 1 of 2 scans"),
        (pd.concat([beside, beside[:1]]), "names 1 scans twice"),
        (beside[["scan"]], "no column 'scanner'"),
    ]
    for other, said in wrong:
        with pytest.raises(ProbeError, match=said):
            probes.attribute(table, "scanner", other)


def test_bands_of_age_are_those_of_a_cohort(tmp_path: Path) -> None:
    ages = ["64", "65", "018M", "", "unknown", "90"]
    table = pd.DataFrame({"scan": list("abcdef"), "age": ages})
    (tmp_path / "a").mkdir()
    rows = table.assign(scan="a", label="normal", sex="male").iloc[[0]]
    for i, age in enumerate(ages):  # each in a cohort of its own, as one scan is enough
        rows.assign(age=age).to_csv(tmp_path / "cohort.csv", index=False)
        cohort = load_cohort(
            tmp_path / "cohort.csv", class_names=["normal"], age_bands=[50, 65], allow_empty_cells=True
        )
        assert probes.attribute(table, "age_band", edges=[50, 65])[i] == cohort.table["age_band"][0]
    shuffled = table.iloc[::-1]
    assert list(probes.attribute(table[["scan"]], "age_band", shuffled, known_edges=[50, 65])) == [
        "50-64", ">=65", "<50", "", "", ">=65",
    ]  # fmt: skip
    assert list(probes.attribute(table, "age_band", edges=[70], known_edges=[50])) == ["<70"] * 3 + ["", "", ">=70"]
    assert list(probes.attribute(table.assign(age_band="old"), "age_band", known_edges=[50])) == ["old"] * 6
    wrong: list[tuple[pd.DataFrame, list[int] | None, str]] = [
        (table, None, "name the edges of the bands, as by --age-bands 65"),
        (table[["scan"]], [65], "predictions.csv has no column 'age': name a table that has it with --table"),
        (table.assign(age=["64", "old", "131"] * 2), [65], "b and 3 more: age is not a number from 0 to 130; leave"),
        (table, [65, 50], r"age_bands must be increasing whole years above 0.*got \[65, 50\]"),
        (table.assign(age_band="old"), [65], "there is a column 'age_band' already; leave out --age-bands"),
    ]
    for frame, edges, said in wrong:
        with pytest.raises(ValueError, match=said):
            probes.attribute(frame, "age_band", edges=edges)


def test_probes_of_several_attributes_share_a_file(tmp_path: Path) -> None:
    first = probe(*_with(made(), "sex"), permutations=100)
    for name in ("sex", "site", "sex"):
        path = probes.write_probe(tmp_path, replace(first, target=name))
    assert [one.target for one in probes.read_probes(tmp_path)] == ["sex", "site"]
    assert probes.read_probes(tmp_path)[0] == first
    assert "s0" not in path.read_text() and json.loads(path.read_text())["probes"][0]["n"] == 120


def _with(data: tuple[Features, Predictions, pd.Series], target: str) -> tuple[Any, ...]:
    return data[0], data[1], target, data[2]
