"""DeLong's difference of the AUCs of two systems, against his formula by hand, the jackknife and simulations."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest, norm, rankdata
from sklearn.metrics import roc_auc_score

from fairlung.pipeline.comparison.compare import compare
from fairlung.pipeline.comparison.paired_auc import LEAST_SCANS, auc_differences
from fairlung.pipeline.comparison.records import AucDifference, Comparison
from fairlung.pipeline.evaluation.predictions import Predictions
from fairlung.pipeline.evaluation.records import from_plain, json_text


def systems(
    seed: int, scans: tuple[int, ...] = (40, 35, 60, 45), apart: tuple[float, ...] = (1.0, 1.4), each: int = 1
) -> list[Predictions]:
    """A table a system, of logits that are partly the same; ``each`` scans of a patient, answered alike."""
    rng = np.random.default_rng(seed)
    classes, label = len(scans), np.repeat(np.arange(len(scans)), scans)
    common, found = rng.normal(size=(len(label), classes)), []
    for distance in apart:
        logits = common + 0.7 * rng.normal(size=common.shape) + distance * np.eye(classes)[label]
        shown = np.repeat(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), each, axis=0)
        names, patient = np.arange(len(shown)).astype(str), np.repeat(np.arange(len(label)), each)
        about = tuple("abcdef"[:classes]), ("male", "female"), ("sex",), "", False, patient if each > 1 else None
        of = np.repeat(label, each)
        found.append(Predictions(names, of, shown.argmax(1), patient % 2, shown, *about))
    return found


def by_hand(positive: np.ndarray, scores: list[np.ndarray]) -> tuple[float, float]:
    """Difference and variance by DeLong et al. 1988, Eq. 4-6: covariances S10 and S01 of the components."""
    v10, v01 = [], []
    for score in scores:
        order = [[1.0 if x > y else 0.5 if x == y else 0.0 for y in score[~positive]] for x in score[positive]]
        v10.append(np.mean(order, axis=1))
        v01.append(np.mean(order, axis=0))
    contrast = np.array([-1.0, 1.0])
    m, n = positive.sum(), (~positive).sum()
    covariance = np.cov(v10) / m + np.cov(v01) / n
    return float(contrast @ np.mean(v10, axis=1)), float(contrast @ covariance @ contrast)


@pytest.mark.parametrize("decimals", [1, 6])
def test_the_difference_of_a_class_is_delongs(decimals: int) -> None:
    a, b = (replace(t, probabilities=np.round(t.probabilities, decimals)) for t in systems(0))
    found = {one.class_name: one for one in auc_differences([a], [b])}
    assert list(found) == [None, "a", "b", "c", "d"]
    for c, name in enumerate(a.class_names):
        positive = a.label == c
        value, variance = by_hand(positive, [t.probabilities[:, c] for t in (a, b)])
        areas = [roc_auc_score(positive, t.probabilities[:, c]) for t in (a, b)]
        assert found[name].difference.value == pytest.approx(value) == pytest.approx(areas[1] - areas[0])
        reach = norm.ppf(0.975) * np.sqrt(variance)
        assert found[name].difference[1:] == pytest.approx((value - reach, value + reach))
        assert found[name].p_value == pytest.approx(2 * norm.sf(abs(value) / np.sqrt(variance)))


def test_the_mean_over_classes_has_the_variance_of_the_jackknife() -> None:
    a, b = systems(1)
    (mean, *_) = auc_differences([a], [b])

    def difference(kept: np.ndarray) -> float:
        positive = np.eye(4)[a.label[kept]]
        m = positive.sum(0)
        sums = [(rankdata(t.probabilities[kept], axis=0) * positive).sum(0) for t in (a, b)]
        first, second = ((total - m * (m + 1) / 2) / (m * (len(kept) - m)) for total in sums)
        return float((second - first).mean())

    everything = np.arange(len(a.label))
    assert mean.class_name is None and mean.difference.value == pytest.approx(difference(everything))
    without = np.array([difference(np.delete(everything, i)) for i in everything])
    variance = 0.0
    for c in range(4):
        inside = without[a.label == c]
        variance += (len(inside) - 1) ** 2 / len(inside) * inside.var(ddof=1)
    width = mean.difference.high - mean.difference.low
    assert width == pytest.approx(2 * norm.ppf(0.975) * np.sqrt(variance), rel=0.03)


def test_two_classes_have_one_difference_and_the_other_way_round_it_is_the_opposite() -> None:
    a, b = systems(2, (50, 40))
    ((name, there, p),) = [(d.class_name, d.difference, d.p_value) for d in auc_differences([a], [b])]
    (back,) = auc_differences([b], [a])
    assert name is None and back.p_value == pytest.approx(p)
    assert back.difference == pytest.approx((-there.value, -there.high, -there.low))
    value, variance = by_hand(a.label == 1, [t.probabilities[:, 1] for t in (a, b)])
    assert (there.value, there.high - there.low) == pytest.approx((value, 2 * norm.ppf(0.975) * np.sqrt(variance)))


def test_scans_of_a_patient_that_are_all_alike_count_once() -> None:
    one, three = (auc_differences(*([t] for t in systems(3, each=each))) for each in (1, 3))
    a, b = systems(3, each=3)
    patients = auc_differences([a], [b], patient=a.patient)
    for alone, clustered, scans in zip(one, patients, three, strict=True):
        assert clustered.difference == pytest.approx(alone.difference, rel=0.02, abs=1e-3)
        assert scans.p_value < alone.p_value
    few = systems(3, (20, 40), each=3)
    assert auc_differences([few[0]], [few[1]]) and not auc_differences([few[0]], [few[1]], patient=few[0].patient)


def test_nothing_is_said_where_no_interval_holds() -> None:
    a, b = systems(4, (LEAST_SCANS - 1, LEAST_SCANS, 60))
    assert [one.class_name for one in auc_differences([a], [b])] == ["b", "c"]
    assert auc_differences([a], [a]) == ()  # nothing tells a system from itself
    assert auc_differences([a], [replace(b, probabilities=None)]) == ()
    sure = replace(a, probabilities=np.eye(3)[a.label])
    assert auc_differences([sure], [replace(sure, probabilities=0.9 * sure.probabilities + 0.1 / 3)]) == ()
    lacking = [t.take(t.label < 2) for t in systems(5, (40, 40, 40))]
    assert [one.class_name for one in auc_differences([lacking[0]], [lacking[1]])] == ["a", "b"]


@pytest.mark.parametrize("seeds", [False, True])
def test_the_interval_and_p_never_contradict_each_other(seeds: bool) -> None:
    told = []
    for seed in range(40):
        tables = systems(seed, (40, 40), (1.0, 1.0, 1.3, 1.3))
        for one in auc_differences(tables[:2], tables[2:], 0.9, seeds):
            told.append(one.p_value < 0.1)
            assert told[-1] == (not one.difference.low <= 0 <= one.difference.high)
    assert 0 < sum(told) < 40


@pytest.mark.parametrize("apart", [(1.0, 1.0), (2.5, 2.5)])
def test_equal_systems_are_told_apart_as_often_as_the_level_says(apart: tuple[float, float]) -> None:
    tables = [systems(seed, (60, 30), apart) for seed in range(300)]
    rejected = sum(auc_differences([a], [b])[0].p_value < 0.05 for a, b in tables)
    assert binomtest(rejected, 300, 0.05, alternative="greater").pvalue > 1e-3
    unequal = [systems(seed, (60, 30), (1.0, 2.0)) for seed in range(50)]
    assert sum(auc_differences([a], [b])[0].p_value < 0.05 for a, b in unequal) > 25


def test_a_comparison_holds_the_differences_by_patients_where_they_have_several_scans() -> None:
    a, b = systems(6, each=2)
    result = compare({"old": [a], "new": [b]}, 100, 100)
    found = result.comparisons[0].aucs
    assert found == auc_differences([a], [b], patient=a.patient) != auc_differences([a], [b])
    assert [type(one) for one in found] == [AucDifference] * 5
    assert from_plain(Comparison, json.loads(json_text(result))).comparisons[0].aucs == found
