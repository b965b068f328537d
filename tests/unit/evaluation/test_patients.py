"""Patients of several scans: numbers of one scan each stay, and those of several are the numbers of their patients."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from reconstruction import paper_cells, predictions_of
from scipy.stats import binomtest, f_oneway

from fairlung.pipeline.common.names import UNKNOWN_GROUP
from fairlung.pipeline.evaluation.audit import audit
from fairlung.pipeline.evaluation.calibration import group_calibration
from fairlung.pipeline.evaluation.fairness_criteria import (
    bootstrap_confusion,
    confusion_intervals,
    fair_model,
    permutation_test,
    row_shares,
    summaries,
)
from fairlung.pipeline.evaluation.patient_column import seem_repeated
from fairlung.pipeline.evaluation.patients import Clusters, design_effects, intraclass_correlation
from fairlung.pipeline.evaluation.predictions import Predictions, PredictionsError, load_predictions
from fairlung.pipeline.evaluation.records import Audit, from_plain, json_text
from fairlung.pipeline.evaluation.resampling import wilson
from fairlung.pipeline.reports.evaluation_report import _method_blocks, evaluation_report
from fairlung.pipeline.reports.evidence import Evidence
from fairlung.pipeline.reports.model_card import model_card

FAST = {"resamples": 400, "permutations": 400}
COUNTS = np.array(paper_cells()["systems"]["CE"]["confusion"])


def repeated(table: Predictions, scans: int) -> Predictions:
    """Every scan so many times, as those of one patient."""
    rows = np.repeat(np.arange(len(table.scan)), scans)
    names = np.array([f"{table.scan[row]}-{i}" for i, row in enumerate(rows)])
    return replace(table.take(rows), scan=names, patient=rows)


def clusters(table: Predictions) -> Clusters:
    found = Clusters.of(table)
    assert found is not None
    return found


def drawn(rng: np.random.Generator, patients: int = 120, scans: int = 3, alike: float = 0.5) -> Predictions:
    """Patients of 1 to 2 * scans - 1 scans, some of several classes, of two groups that are served alike."""
    number = rng.integers(1, 2 * scans, patients)
    patient = np.repeat(np.arange(patients), number)
    label = np.where(
        rng.random(len(patient)) < 0.2, rng.integers(0, 3, len(patient)), (np.arange(patients) % 3)[patient]
    )
    right = np.where((rng.random(patients) < alike)[patient], rng.random(patients)[patient], rng.random(len(patient)))
    said = np.where(right < 0.7, label, (label + 1) % 3)
    names = np.arange(len(patient)).astype(str)
    group = (rng.random(patients) < 0.5).astype(np.int64)[patient]
    return Predictions(names, label, said, group, None, tuple("abc"), ("male", "female"), ("sex",), patient=patient)


# ---- one scan a patient, and the same scan several times ------------------------------------------------------------
def test_with_one_scan_a_patient_nothing_changes() -> None:
    table = predictions_of(COUNTS)
    rng = np.random.default_rng(0)
    table = table.with_probabilities(rng.dirichlet(np.ones(4), len(table.label)))
    assert audit(replace(table, patient=rng.permutation(len(table.label))), **FAST) == audit(table, **FAST)


@pytest.mark.parametrize("method", ["smoothed", "percentile"])
def test_patients_of_one_scan_are_drawn_as_scans_are(method: str) -> None:
    table = predictions_of(COUNTS)
    patients = clusters(repeated(table, 2))
    single = Clusters(patients.patterns / 2, patients.count)
    rng = np.random.default_rng(0)
    ours, mean = single.bootstrap(4000, rng, method == "smoothed")
    theirs = bootstrap_confusion(COUNTS, 4000, rng, method)
    np.testing.assert_allclose(mean, row_shares(COUNTS, method) * COUNTS.sum(-1, keepdims=True))
    np.testing.assert_allclose(ours.mean(0), mean, atol=0.25)
    np.testing.assert_allclose(ours.std(0), theirs.std(0), atol=0.12)
    np.testing.assert_allclose(ours.sum(-1), np.broadcast_to(COUNTS.sum(-1), ours.shape[:-1]))


@pytest.mark.parametrize("scans", [2, 5])
def test_the_same_scan_several_times_says_what_one_says(scans: int) -> None:
    table = predictions_of(COUNTS)
    once, often = (audit(part, 3000, 400) for part in (table, repeated(table, scans)))
    assert often.patients is not None
    assert (often.patients.n, often.patients.correlation) == (once.n, 1.0)
    assert often.patients.effective_scans == pytest.approx(once.n)
    assert often.n == scans * once.n
    for name, number in once.overall.numbers().items():
        assert tuple(often.overall.numbers()[name]) == pytest.approx(tuple(number), abs=0.02), name
    assert often.permutation.p_value == pytest.approx(once.permutation.p_value, abs=0.06)
    assert often.fair_model.abs_gap_mean == pytest.approx(once.fair_model.abs_gap_mean, abs=0.006)
    for ours, theirs in zip(often.cells, once.cells, strict=True):
        assert [*ours.recall, *ours.precision] == pytest.approx([*theirs.recall, *theirs.precision])
    for group, other in zip(often.groups, once.groups, strict=True):
        assert tuple(group.accuracy) == pytest.approx(tuple(other.accuracy))
    assert often.power is not None and once.power is not None
    assert often.power.detectable_gap == pytest.approx(once.power.detectable_gap, rel=0.12)


def test_calibration_of_the_same_scan_several_times_is_that_of_one() -> None:
    rng = np.random.default_rng(3)
    true = rng.dirichlet(np.full(3, 0.6), 240)
    label = (rng.random(240)[:, None] > true.cumsum(1)).sum(1).clip(max=2)
    names, group = np.arange(240).astype(str), np.arange(240) % 2
    table = Predictions(names, label, true.argmax(1), group, true, tuple("abc"), ("male", "female"), ("sex",))
    once, often = (group_calibration(part, rng, 2000)["male"] for part in (table, repeated(table, 4)))
    scans = group_calibration(replace(repeated(table, 4), patient=None), rng, 2000)["male"]
    for name in ("auc", "brier", "ece"):
        ours, theirs, narrow = (getattr(part, name) for part in (often, once, scans))
        assert ours.value == pytest.approx(theirs.value)
        assert ours.high - ours.low == pytest.approx(theirs.high - theirs.low, rel=0.12)
        assert narrow.high - narrow.low < 0.8 * (ours.high - ours.low)
    assert often.ece_if_calibrated == pytest.approx(once.ece_if_calibrated, abs=0.01)


# ---- oracles --------------------------------------------------------------------------------------------------------
def test_the_correlation_is_that_of_an_analysis_of_variance() -> None:
    rng = np.random.default_rng(1)
    hits = rng.binomial(3, rng.beta(2, 1, 60))
    scans = [[1] * h + [0] * (3 - h) for h in hits]
    f = f_oneway(*scans).statistic
    expected = (f - 1) / (f + 2)
    found = intraclass_correlation(np.full((60, 1), 3.0), hits[:, None].astype(float), np.ones((60, 1), dtype=int))
    assert found == pytest.approx(expected)
    assert intraclass_correlation(np.full((9, 1), 2.0), np.full((9, 1), 2.0), np.ones((9, 1), dtype=int)) == 1.0


@pytest.mark.parametrize("alike", [0.0, 0.5, 1.0])
def test_the_correlation_is_found(alike: float) -> None:
    found = clusters(drawn(np.random.default_rng(2), 4000, alike=alike)).correlation
    assert found == pytest.approx(alike, abs=0.05)


def test_whole_patients_are_resampled() -> None:
    """Patients drawn one by one, of each group and class or of several classes, give the same deviations."""
    rng = np.random.default_rng(0)
    table = drawn(rng)
    frame = pd.DataFrame({"patient": table.patient, "label": table.label, "group": table.group})
    kinds = frame.groupby("patient").agg(group=("group", "first"), least=("label", "min"), most=("label", "max"))
    kinds["label"] = kinds["least"].where(kinds["least"] == kinds["most"], -1)
    rows = frame.groupby("patient").indices
    numbers = []
    for _ in range(250):
        chosen = [rng.choice(part, len(part)) for part in kinds.groupby(["group", "label"]).groups.values()]
        again = table.take(np.concatenate([rows[one] for one in np.concatenate(chosen)]))
        numbers.append(summaries(again.confusion()[:-1]))
    ours = summaries(clusters(table).bootstrap(4000, rng, smoothed=False)[0])
    for name in ("score", "gap"):
        theirs = np.array([each[name] for each in numbers])
        assert theirs.std() == pytest.approx(ours[name].std(), rel=0.15)
        assert theirs.mean() == pytest.approx(ours[name].mean(), abs=4 * ours[name].std() / np.sqrt(250))


def test_whole_patients_change_their_group() -> None:
    table = drawn(np.random.default_rng(4))
    patients = clusters(table)
    for moved in (patients.shuffled(50, np.random.default_rng(0)), patients.alike(50, np.random.default_rng(0))):
        assert moved.shape == (50, 2, 3, 3)
    shuffled = patients.shuffled(50, np.random.default_rng(0))
    np.testing.assert_array_equal(shuffled.sum(1), np.broadcast_to(table.confusion().sum(0), (50, 3, 3)))
    # patients of one scan in one group, of three in the other: nobody has another to change with
    only = np.array([[[2.0, 0], [0, 0]], [[0, 1], [0, 0]], [[0, 0], [0, 3]], [[0, 0], [1, 0]]])
    apart = Clusters(only, np.array([[5, 0], [0, 5], [5, 0], [0, 5]]))
    assert np.unique(apart.shuffled(20, np.random.default_rng(0)), axis=0).shape[0] == 1


def test_intervals_hold_the_observed_and_design_effects_are_at_least_one() -> None:
    table = drawn(np.random.default_rng(5))
    counts, patients = table.confusion()[:-1], clusters(table)
    found, _ = confusion_intervals(counts, np.random.default_rng(0), 300, patients=patients)
    for name, (value, low, high) in found.items():
        assert np.all(low <= value) and np.all(value <= high), name
    for effects in design_effects(patients, counts):
        assert (effects >= 1).all() and (effects <= 5).all()
    assert wilson(30, 40, effect=2.0) == pytest.approx(wilson(15, 20))
    assert fair_model(counts, 50, np.random.default_rng(0), patients)["gap"].shape == (50,)


# ---- promises -------------------------------------------------------------------------------------------------------
@pytest.mark.fault(
    "wrong",
    "a gap on scans of which patients have several, alike",
    before="a true null rejected at .05 in 1 of 4 tests",
    now="in 1 of 20, as promised",
)
def test_the_test_of_patients_rejects_a_true_null_as_often_as_promised() -> None:
    rng = np.random.default_rng(1)
    ours, scans = [], []
    for _ in range(110):
        table = drawn(rng, alike=1.0)
        counts = table.confusion()[:-1]
        ours.append(permutation_test(counts, 99, rng, clusters(table)) <= 0.05)
        scans.append(permutation_test(counts, 99, rng) <= 0.05)
    assert binomtest(sum(ours), 110, 0.05, alternative="greater").pvalue > 1e-3
    assert binomtest(sum(scans), 110, 0.1, alternative="greater").pvalue < 1e-3


def test_intervals_of_patients_cover_the_truth() -> None:
    rng = np.random.default_rng(2)
    shares = np.where(np.eye(3, dtype=bool), 0.7, np.roll(np.eye(3), 1, axis=1) * 0.3)
    ours, scans = [], []
    for _ in range(100):
        table = drawn(rng, alike=1.0)
        counts = table.confusion()[:-1]
        truth = summaries(shares * counts.sum(-1, keepdims=True))["gap"]
        for found, patients in ((ours, clusters(table)), (scans, None)):
            _, low, high = confusion_intervals(counts, rng, 300, patients=patients)[0]["gap"]
            found.append(low <= truth <= high)
    assert binomtest(sum(ours), 100, 0.95, alternative="less").pvalue > 1e-3
    assert binomtest(sum(scans), 100, 0.9, alternative="less").pvalue < 1e-3


# ---- words ----------------------------------------------------------------------------------------------------------
def test_an_audit_says_that_patients_were_resampled() -> None:
    result = audit(repeated(predictions_of(COUNTS), 2), **FAST)
    texts = [verdict.text for verdict in result.verdicts]
    assert any(
        text.startswith("The 310 scans are of 155 patients: patients, not scans, were resampled") for text in texts
    )
    assert any(
        "310 scans of 155 patients, worth 155 scans of as many patients, show a gap of" in text for text in texts
    )
    single = audit(predictions_of(COUNTS), **FAST)
    assert not any("patients" in verdict.text for verdict in single.verdicts)
    for found, unit in ((result, "patients"), (single, "scans")):
        made = str(_method_blocks(found, []))
        assert f"bootstrap resamples of the {unit} within" in made and f"shuffles the groups among the {unit}" in made
        assert ("stay together" in made) is (unit == "patients")


def of_sizes(men: list[int], women: list[int]) -> Predictions:
    """Patients of so many scans, of one class each; nearly all men are answered right, of the women some."""
    rng = np.random.default_rng(0)
    patients = len(men) + len(women)
    patient = np.repeat(np.arange(patients), [*men, *women])
    group = (patient >= len(men)).astype(np.int64)
    label = patient % 3
    said = np.where(rng.random(patients)[patient] < np.where(group == 0, 0.9, 0.6), label, (label + 1) % 3)
    names = np.arange(len(patient)).astype(str)
    return Predictions(names, label, said, group, None, tuple("abc"), ("male", "female"), ("sex",), patient=patient)


@pytest.mark.fault(
    "wrong",
    "p where no patient of one sex has as many scans as one of the other",
    before="p = 1, whatever the model does",
    now="no p, and why, with the scans that stayed",
)
def test_where_nobody_can_change_the_group_there_is_no_p() -> None:
    table = of_sizes([1] * 60, [5] * 60)
    assert permutation_test(table.confusion()[:-1], 200, np.random.default_rng(0), clusters(table)) == 1
    result = audit(table, **FAST)
    assert (result.permutation.p_value, result.permutation.stayed) == (None, 360)
    assert from_plain(Audit, json.loads(json_text(result))) == result
    said = [verdict.text for verdict in result.verdicts]
    assert "no p) is not 0, but nothing says whether chance explains it: 360 of the 360 scans are of pat" in said[0]
    assert result.verdicts[0].level == "inconclusive" and "and moved between" not in said[1]
    report, card = str(evaluation_report(Evidence(result))), model_card(Evidence(result))
    for text in (*said, report.replace("is said of a fair model", ""), card):
        text = text.replace("nothing is said of a fair model", "")
        assert "fair model of this score" not in text and "p = " not in text, text
    assert "360 of the 360 scans" in report and "360 of the 360 scans" in card and "no p" in card


@pytest.mark.parametrize(("men", "women", "stayed"), [([1] * 60, [5] * 55 + [1] * 5, 275), ([1] * 5, [3, 4] * 3, 26)])
def test_a_test_that_moves_few_says_so(men: list[int], women: list[int], stayed: int) -> None:
    result = audit(of_sizes(men, women), **FAST)
    assert result.permutation.stayed == stayed
    if stayed < result.n:
        assert result.permutation.p_value is not None
        assert (
            f"{stayed} of the {result.n} scans are of patients who cannot change the group" in result.verdicts[0].text
        )
    several = audit(of_sizes([1] * 60 + [7] * 3, [1] * 60), **FAST)
    assert several.permutation.stayed == 21 and "cannot change" not in several.verdicts[0].text
    assert any("21 scans are of patients who stayed" in verdict.text for verdict in several.verdicts)
    assert audit(of_sizes([1] * 60, [1] * 60), **FAST).permutation.stayed is None


def test_scans_that_stay_are_those_that_no_shuffle_moves() -> None:
    patients = clusters(drawn(np.random.default_rng(6), 40))
    alone = sum(
        int(patients.patterns[of].sum((1, 2)) @ patients.count[of].sum(1))
        for of in patients.strata(exact=True)
        if len({g for one in of for g in (0, 1) if patients.count[one, g]}) == 1
    )
    assert 0 < patients.stayed() == alone


# ---- tables ---------------------------------------------------------------------------------------------------------
def written(folder: Path, **columns: list[str]) -> Path:
    rows = len(next(iter(columns.values())))
    about = {"label": ["a", "b"] * (rows // 2), "sex": ["male"] * rows, "prediction": ["a"] * rows}
    pd.DataFrame({"scan": [f"s{i}" for i in range(rows)], **about, **columns}).to_csv(folder / "p.csv", index=False)
    return folder / "p.csv"


def test_a_column_says_whose_a_scan_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ids = ["Zoë", " Zoe\u0308 ", "P1", "p1", "", ""]
    table = load_predictions(written(tmp_path, patient=ids))
    assert table.patient is not None
    assert table.patient[0] == table.patient[1] and len(set(table.patient[1:])) == 5
    assert "2 of 6 scans have no patient" in caplog.text
    assert table.repeated and not table.take(np.arange(1, 6)).repeated
    path = written(tmp_path, who=ids)
    assert load_predictions(path).patient is None
    assert load_predictions(path, patient_column="who").repeated
    with pytest.raises(PredictionsError, match="no column 'whom' .did you mean 'who'"):
        load_predictions(path, patient_column="whom")


@pytest.mark.fault(
    "wrong", "NA as the patient of many scans of a table", before="taken for one patient", now="refused, with the scans"
)
@pytest.mark.parametrize("word", ["NA", "n/a", "Unknown", "none", "-"])
def test_a_word_for_no_patient_is_refused(tmp_path: Path, word: str) -> None:
    with pytest.raises(PredictionsError) as caught:
        load_predictions(written(tmp_path, patient=["P1", word, "P2", word]))
    said = f"s1: patient '{word}' is what many tables write where there is no value: leave it empty"
    assert said in str(caught.value) and "s3: patient" in str(caught.value) and "P1" not in str(caught.value)


def test_one_scan_in_two_unicode_forms_is_there_twice(tmp_path: Path) -> None:
    with pytest.raises(PredictionsError, match="is there twice"):
        load_predictions(written(tmp_path, scan=["Zo\u00eb", "Zoe\u0308", "s2", "s3"]))


@pytest.mark.fault(
    "wrong", "a table in which a patient is of two sexes", before="judged", now="refused, by the scans, not the ids"
)
def test_a_patient_of_two_groups_is_refused(tmp_path: Path) -> None:
    ids = [name for name in ("Doe", "Roe", "Poe", "Moe", "Loe") for _ in range(2)]
    with pytest.raises(PredictionsError) as caught:
        load_predictions(written(tmp_path, patient=ids, sex=["male", "female"] * 5))
    said = "5 patients are of several groups: s0 (male) and s1 (female); s2 (male) and s3 (female); s4 (male) and s5 "
    assert said + "(female); and 2 more" in str(caught.value)
    assert "Doe" not in str(caught.value) and len(str(caught.value).splitlines()) == 2
    known = written(tmp_path, patient=["x", "x", "y", "z"], sex=["male", "", "male", "female"])
    assert load_predictions(known).group.tolist() == [0, UNKNOWN_GROUP, 0, 1]


PAIRS = [f"p{i:02d}" for i in range(20)]


@pytest.mark.parametrize(
    "names",
    [
        [f"{name}_{one}" for name in PAIRS for one in "ab"],
        [f"{name}{one}.nii.gz" for name in PAIRS for one in "ab"],
        [f"covid/{name.upper()}-{one}" for name in PAIRS for one in (1, 2, 3)],
        [f"{name}_t{one}" for name in PAIRS for one in (0, 1)],
        [*(f"{name}_1" for name in PAIRS), *(f"{name}_2" for name in PAIRS[:3])],
    ],
)
def test_names_that_look_as_if_they_repeat_a_patient(names: list[str]) -> None:
    assert seem_repeated(names) is not None


@pytest.mark.parametrize(
    "names",
    [
        [f"scans/val/normal/male/phantom-{i:04d}.nii.gz" for i in range(60)],
        [f"new-{i:04d}" for i in range(60)],
        [f"covid/ct_scan_{i}" for i in range(200)],
        [f"covid19/ct_scan{i}" for i in range(200)],
        [f"fold{fold}/{i}" for fold in range(5) for i in range(40)],
        [f"2021_{i:02d}" for i in range(99)] + [f"2022_{i:02d}" for i in range(99)],
        [f"line {i}" for i in range(2, 90)],
        [f"scan{i:04d}" for i in range(90)],
        [*(f"case-{i}" for i in range(90)), "p1_a", "p1_b", "p2_a", "p2_b"],
        PAIRS,
        [],
    ],
)
def test_other_names_raise_no_alarm(names: list[str]) -> None:
    assert seem_repeated(names) is None


def test_an_audit_warns_of_such_names_once(caplog: pytest.LogCaptureFixture) -> None:
    table = predictions_of(COUNTS)
    names = np.array([f"p{i // 2:03d}_{'ab'[i % 2]}" for i in range(len(table.scan))])
    caplog.set_level(logging.WARNING)
    audit(table, **FAST)
    assert not caplog.records
    audit(replace(table, scan=names), **FAST)
    (record,) = caplog.records
    assert "p000_a and p000_b look like scans of one patient" in record.getMessage()
    assert "intervals are too narrow and p too small" in record.getMessage()


def test_two_patients_are_no_certainty() -> None:
    """Each with scans of both classes, right in most: the added patient may be right in all, or in none."""
    label, group = np.tile([0, 1], 10), np.repeat([0, 1], 10)
    said = np.where(np.arange(20) % 10 < 8, label, 1 - label)
    table = Predictions(np.arange(20).astype(str), label, said, group, None, ("a", "b"), ("men", "women"), ("sex",))
    overall = audit(replace(table, patient=group), **FAST).overall
    assert overall.score.low < 0.6 and overall.score.high == 1
    assert overall.gap.low < -0.6 and overall.gap.high > 0.6


def test_scans_that_differ_within_a_patient_alone_are_not_correlated() -> None:
    """Nothing varies between patients, and where several are, each has one scan: without a warning."""
    size, hits, count = np.array([[1.0, 0], [0, 4]]), np.array([[1.0, 0], [0, 2]]), np.array([[2], [1]])
    assert intraclass_correlation(size, hits, count) == 0


@pytest.mark.parametrize(
    ("ids", "patients"),
    [
        ([1, 1.0, 2, 2.0], 2),
        ([1.0, 1.0, 2.0, np.nan], 3),
        (["a b", " a b", "ab", "AB"], 3),
        (["Zo\xeb", "Zoe\u0308"] * 2, 1),
    ],
)
def test_ids_of_any_type_say_whose_a_scan_is(ids: list, patients: int, caplog: pytest.LogCaptureFixture) -> None:
    frame = pd.DataFrame({"label": [*"abab"], "sex": "male", "prediction": [*"abba"]})
    frame["patient"] = pd.Series(ids, dtype=object)
    found = load_predictions(frame)
    assert found.patient is not None and len(np.unique(found.patient)) == patients
    assert ("row 2 and row 3 have ids that differ only in case or zeros" in caplog.text) == ("AB" in ids)
