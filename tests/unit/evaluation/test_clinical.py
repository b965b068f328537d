"""Missed and false diagnoses, sensitivity at one threshold, AUPRC and ES-AUC, against scikit-learn, scipy and hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import beta
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from fairlung.pipeline.evaluation.audit import audit
from fairlung.pipeline.evaluation.clinical import (
    average_precision,
    average_precisions,
    clinical,
    equity_scaled_auc,
    normal_class,
)
from fairlung.pipeline.evaluation.predictions import Predictions
from fairlung.pipeline.evaluation.records import Clinical, OperatingPoint, to_plain
from fairlung.pipeline.evaluation.resampling import Estimate, newcombe, wilson

CLASSES = ("covid", "normal", "tumour")
SEXES = ("male", "female")


def scored(seed: int = 0, size: int = 240, groups: int = 2, decimals: int = 3) -> Predictions:
    """Scans of three classes whose probabilities know something of them, and have ties."""
    rng = np.random.default_rng(seed)
    label, group = rng.integers(0, 3, size), rng.integers(0, groups, size)
    shown = rng.dirichlet(np.ones(3), size) + 0.8 * np.eye(3)[label] * rng.random((size, 1))
    shown = np.round(shown / shown.sum(1, keepdims=True), decimals)
    names = tuple(f"group {g}" for g in range(groups)) if groups > 2 else SEXES
    return Predictions(
        np.arange(size).astype(str), label, shown.argmax(1), group, shown, CLASSES, names, ("sex",)
    )  # fmt: skip


def several(table: Predictions, scans: int) -> Predictions:
    """Every scan ``scans`` times, of one patient."""
    found = table.take(np.repeat(np.arange(len(table.label)), scans))
    patient = np.repeat(np.arange(len(table.label)), scans)
    return replace(found, scan=np.arange(len(patient)).astype(str), patient=patient)


def found(table: Predictions, resamples: int = 400, **how: object) -> Clinical:
    return clinical(table, np.random.default_rng(0), resamples, **how)  # type: ignore[arg-type]


def ends(result: Clinical) -> list[Estimate]:
    assert result.diagnosis is not None
    by = [result.diagnosis.underdiagnosis, result.diagnosis.overdiagnosis]
    for point in result.operating_points:
        by += [point.sensitivities, point.specificities]
    values = [one.value for number in by for one in number.groups] + [n.difference.difference for n in by]  # type: ignore[union-attr]
    return [*values, *(one.average_precision for one in result.retrieval)]  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("names", "normal"),
    [
        (("a", "Normal"), "Normal"),
        (("HEALTHY", "b"), "HEALTHY"),
        (("No_Finding", "b"), "No_Finding"),
        (("no-finding", "b"), "no-finding"),
        (("abnormal", "b"), None),
        (("normal", "healthy"), None),
    ],
)
def test_the_normal_class_is_found_by_its_name_where_one_alone_has_it(names: tuple[str, ...], normal: str) -> None:
    assert normal_class(names) == normal
    assert normal_class(names, names[1]) == names[1]
    with pytest.raises(ValueError, match=r"normal must be one of the classes .*, got 'x'"):
        normal_class(names, "x")


def test_missed_and_false_diagnoses_are_counted_by_hand() -> None:
    table = scored()
    said = found(table).diagnosis
    assert said is not None and said.normal == "normal"
    for number, of, wrong in (
        (said.underdiagnosis, table.label != 1, table.prediction == 1),
        (said.overdiagnosis, table.label == 1, table.prediction != 1),
    ):
        hits = [int((of & wrong & (table.group == g)).sum()) for g in (0, 1)]
        n = [int((of & (table.group == g)).sum()) for g in (0, 1)]
        assert [one.n for one in number.groups] == n and min(hits) > 0
        a, b = (wilson(h, m) for h, m in zip(hits, n, strict=True))
        assert [one.value for one in number.groups] == [a, b]
        # Newcombe 1998, method 10
        low = a.value - b.value - np.hypot(a.value - a.low, b.high - b.value)
        high = a.value - b.value + np.hypot(a.high - a.value, b.value - b.low)
        assert number.difference is not None and (number.difference.first, number.difference.second) == SEXES
        assert number.difference.difference == pytest.approx((a.value - b.value, low, high))


def test_scans_of_a_patient_that_are_all_alike_count_once() -> None:
    one, three = found(scored(), 1500), found(several(scored(), 3), 1500)
    assert one.diagnosis is not None and three.diagnosis is not None
    for number in ("underdiagnosis", "overdiagnosis"):
        a, b = (getattr(result.diagnosis, number) for result in (one, three))
        assert [n.value for n in b.groups] == [pytest.approx(n.value) for n in a.groups]
        assert b.difference.difference == pytest.approx(a.difference.difference)
    assert np.array(ends(three)) == pytest.approx(np.array(ends(one)), abs=0.03)


def test_one_scan_a_patient_gives_the_same_numbers_as_no_patients() -> None:
    table = scored()
    assert found(replace(table, patient=np.arange(240))) == found(table)


def only_point(result: Clinical) -> OperatingPoint:
    (point,) = result.operating_points
    return point


@pytest.mark.parametrize("decimals", [1, 3])
@pytest.mark.parametrize("specificity", [0.5, 0.9, 0.99])
def test_the_threshold_is_scikit_learns_and_the_groups_are_judged_at_it(decimals: int, specificity: float) -> None:
    table = scored(decimals=decimals)
    point = only_point(found(table, 100, specificity=specificity))
    ill, score = table.label != 1, 1 - table.probabilities[:, 1]
    fpr, tpr, _ = roc_curve(ill, score, drop_intermediate=False)
    allowed = fpr <= 1 - specificity + 1e-9
    assert (
        point.target is None and point.reached == pytest.approx(1 - fpr[allowed].max()) and point.reached >= specificity
    )
    above = score > point.threshold
    assert above[ill].mean() == pytest.approx(tpr[allowed].max())
    for g in (0, 1):
        inside = table.group == g
        assert point.sensitivities.groups[g].value.value == pytest.approx(above[inside & ill].mean())
        assert point.specificities.groups[g].value.value == pytest.approx(1 - above[inside & ~ill].mean())


def test_without_a_normal_class_each_class_is_looked_for() -> None:
    table = replace(scored(), class_names=("a", "b", "c"))
    result = found(table, 100)
    assert result.diagnosis is None
    assert [point.target for point in result.operating_points] == ["a", "b", "c"]
    point = result.operating_points[2]
    above = table.probabilities[:, 2] > point.threshold
    assert point.sensitivities.groups[0].value.value == pytest.approx(
        above[(table.label == 2) & (table.group == 0)].mean()
    )
    assert found(table, 100, normal="b").diagnosis == replace(found(scored(), 100).diagnosis, normal="b")


def test_at_a_threshold_that_never_moves_a_share_has_jeffreys_interval() -> None:
    """All normal scans have one score, so that every draw chooses the same threshold."""
    ill = np.repeat([1, 0], [80, 40])
    score = np.where(ill == 1, np.where(np.arange(120) % 40 < 25, 0.9, 0.2), 0.4)
    shown, group = np.stack([1 - score, score], 1), (np.arange(120) // 20) % 2
    names = np.arange(120).astype(str)
    table = Predictions(names, ill, shown.argmax(1), group, shown, ("normal", "covid"), SEXES, ("sex",))
    point = only_point(found(table, 8000))
    for g in (0, 1):
        hits, n = int(((score > 0.4) & (group == g)).sum()), int(((ill == 1) & (group == g)).sum())
        value = point.sensitivities.groups[g].value
        jeffreys = beta.ppf([0.025, 0.975], hits + 0.5, n - hits + 0.5)
        assert value == pytest.approx((hits / n, min(jeffreys[0], hits / n), max(jeffreys[1], hits / n)), abs=0.012)
    never_wrong = point.specificities.groups[0].value
    assert never_wrong.value == never_wrong.high == 1 and 0.8 < never_wrong.low < 0.95


def test_the_interval_allows_for_the_choice_of_the_threshold() -> None:
    """With 500 ill and 20 normal scans nearly all that is not known is the threshold."""
    rng = np.random.default_rng(0)
    ill = np.repeat([1, 0], [1000, 40])
    score = 1 / (1 + np.exp(-rng.normal(1.3 * ill)))
    shown, group = np.stack([1 - score, score], 1), np.arange(1040) % 2
    names = np.arange(1040).astype(str)
    table = Predictions(names, ill, shown.argmax(1), group, shown, ("normal", "covid"), SEXES, ("sex",))
    value = only_point(found(table, 1000)).sensitivities.groups[0].value
    at_the_threshold = wilson(value.value * 500, 500)
    assert value.high - value.low > 2.5 * (at_the_threshold.high - at_the_threshold.low)


def test_of_several_groups_the_two_furthest_apart_are_held_against_each_other() -> None:
    table = scored(groups=4, size=400)
    number = found(table, 100).diagnosis.underdiagnosis
    rates = {one.group: (one.value.value, one.n) for one in number.groups}
    high, low = max(rates, key=lambda name: rates[name][0]), min(rates, key=lambda name: rates[name][0])
    assert (number.difference.first, number.difference.second) == (high, low)
    hits, n = (
        np.array(part) for part in zip(*((rates[g][0] * rates[g][1], rates[g][1]) for g in (high, low)), strict=True)
    )
    assert number.difference.difference == pytest.approx(newcombe(hits, n, 1 - 0.05 / 6))


def test_nothing_is_said_of_few_scans_and_none_is_no_number() -> None:
    table = scored()
    few = table.take((table.group == 0) | (table.label == 1) | (np.arange(240) < 8))
    result = found(few, 100)
    small = result.diagnosis.underdiagnosis.groups[1]
    assert small.small and 0 < small.n < 10 and result.diagnosis.underdiagnosis.difference is None
    assert only_point(result).sensitivities.difference is None and result.diagnosis.overdiagnosis.difference is not None
    assert {one.group for one in result.retrieval} == {"male"}
    none = found(table.take((table.group == 0) | (table.label == 1)), 100)
    assert (
        none.diagnosis.underdiagnosis.groups[1].value is None is none.operating_points[0].sensitivities.groups[1].value
    )
    assert none.equity_scaled_auc is None
    assert found(table.take(table.label != 1), 100).operating_points == ()
    bare = found(replace(table, probabilities=None), 100)
    assert bare.diagnosis is not None and (bare.operating_points, bare.retrieval, bare.equity_scaled_auc) == (
        (),
        (),
        None,
    )


@pytest.mark.parametrize("decimals", [1, 6])
def test_the_average_precision_of_a_resample_is_scikit_learns(decimals: int) -> None:
    rng = np.random.default_rng(decimals)
    positive, score = rng.random(60) < 0.3, np.round(rng.random(60), decimals)
    counts = rng.multinomial(60, np.full(60, 1 / 60), size=20).astype(float)
    expected = [average_precision_score(positive, score, sample_weight=weight) for weight in counts]
    assert average_precisions(positive, score, counts) == pytest.approx(expected)
    assert average_precision(positive, score, counts).value == pytest.approx(average_precision_score(positive, score))


def test_every_class_and_group_has_its_auprc_beside_its_auc_and_prevalence() -> None:
    table = scored()
    result = found(table, 200).retrieval
    assert [(one.group, one.class_name) for one in result] == [(g, c) for g in SEXES for c in CLASSES]
    for one in result:
        inside, c = table.group == SEXES.index(one.group), CLASSES.index(one.class_name)
        positive, score = table.label[inside] == c, table.probabilities[inside, c]
        assert one.average_precision.value == pytest.approx(average_precision_score(positive, score))
        assert one.auc.value == pytest.approx(roc_auc_score(positive, score))
        assert one.prevalence == pytest.approx(positive.mean()) and one.n == positive.sum()
        assert one.average_precision.low < one.average_precision.value < one.average_precision.high


def test_an_average_precision_without_an_error_is_no_certainty() -> None:
    positive = np.arange(60) < 15
    value = average_precision(positive, positive.astype(float), np.ones((100, 60)))
    assert value == wilson(15, 15)


def test_the_interval_of_an_average_precision_holds_the_truth_as_often_as_promised() -> None:
    rng = np.random.default_rng(0)
    positive = np.arange(100) < 30
    truth = average_precision_score(np.repeat(positive, 2000), rng.normal(1.8 * np.repeat(positive, 2000)))
    hits = []
    for _ in range(150):
        counts = np.concatenate([rng.multinomial(m, np.full(m, 1 / m), 100) for m in (30, 70)], axis=1).astype(float)
        value = average_precision(positive, rng.normal(1.8 * positive), counts)
        hits.append(value.low <= truth <= value.high)
    assert np.mean(hits) == pytest.approx(0.955, abs=0.04)


def test_the_auc_scaled_by_equity_is_fairvisions() -> None:
    table = scored(groups=3)

    def area(inside: np.ndarray) -> float:
        return float(roc_auc_score(np.eye(3)[table.label[inside]], table.probabilities[inside], average="macro"))

    overall = area(np.arange(240))
    apart = sum(abs(area(np.flatnonzero(table.group == g)) - overall) for g in range(3))
    scaled = equity_scaled_auc(table)
    assert (scaled.value, scaled.auc) == pytest.approx((overall / (1 + apart), overall))


def test_what_is_asked_for_moves_no_other_number_of_an_audit() -> None:
    one, other = (
        to_plain(audit(scored(), 100, 100, normal=normal, specificity=specificity))
        for normal, specificity in ((None, 0.9), ("covid", 0.7))
    )
    assert one.pop("clinical") != other.pop("clinical")
    assert len(one.pop("verdicts")) == len(other.pop("verdicts"))
    assert one == other
    with pytest.raises(ValueError, match=r"specificity must be in \(0, 1\), got 1"):
        audit(scored(), 100, 100, specificity=1)


def test_the_notes_name_the_groups_that_have_scans_enough() -> None:
    table = scored()
    few = table.take((table.group == 0) | (table.label == 1) | (np.arange(240) < 8))
    notes = [v.text for v in audit(few, 100, 100).verdicts if v.text.split()[0] in ("Underdiagnosis", "Overdiagnosis")]
    under, over = notes
    assert "male 0." in under and "female" not in under and " minus " not in under
    assert "; female 0." in over and "; male minus female " in over
