"""Further criteria of fairness: intervals of differences and of the lowest, one mix of classes, equivalence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from reconstruction import predictions_of
from scipy.stats import norm
from sklearn.metrics import f1_score
from statsmodels.stats.proportion import confint_proportions_2indep

from fairlung.pipeline.evaluation.audit import audit
from fairlung.pipeline.evaluation.fairness_criteria import (
    _shuffled,
    equalized_odds_spans,
    equivalence,
    in_mix,
    lowest_spans,
    shuffled_counts,
)
from fairlung.pipeline.evaluation.patients import Clusters
from fairlung.pipeline.evaluation.records import Audit
from fairlung.pipeline.evaluation.resampling import interval, partly_pooled

FAST = {"resamples": 200, "permutations": 200}
COUNTS = np.array([[[14, 4, 2], [3, 9, 3], [1, 2, 12]], [[9, 6, 3], [5, 17, 2], [0, 0, 5]]])


def folded(low: float, high: float) -> tuple[float, float]:
    return max(low, -high, 0.0), max(-low, high)


def test_equalized_odds_have_newcombes_intervals_by_bonferroni() -> None:
    """statsmodels' interval of each difference of two rates; both at once, so at a level of .025 each."""
    found = equalized_odds_spans(COUNTS, 0.95)
    for c in range(3):
        ends = []
        for true in (True, False):
            rows = [group[[c]] if true else np.delete(group, c, axis=0) for group in COUNTS]
            (a, n), (b, m) = ((part[:, c].sum(), part.sum()) for part in rows)
            ends.append(folded(*confint_proportions_2indep(a, n, b, m, compare="diff", method="newcomb", alpha=0.025)))
        assert found[:, c] == pytest.approx(np.max(ends, axis=0), abs=1e-9)


def test_differences_hold_fairlearns_points_and_0_where_nothing_differs() -> None:
    result = audit(predictions_of(COUNTS), **FAST).differences
    for points, spans in (
        (result.equalized_odds, result.equalized_odds_intervals),
        (result.demographic_parity, result.demographic_parity_intervals),
    ):
        assert points and points == {name: span.value for name, span in spans.items()}
        assert all(0 <= span.low <= span.value <= span.high <= 1 for span in spans.values())
    alike = audit(predictions_of([COUNTS[0]] * 2), **FAST).differences
    assert all(span.low == 0 < span.high for span in alike.equalized_odds_intervals.values())
    many = audit(predictions_of([np.diag([300, 300]), np.full((2, 2), 150)]), **FAST).differences
    assert all(span.low > 0.3 for span in many.equalized_odds_intervals.values())


def test_scans_of_one_patient_widen_the_differences() -> None:
    table = predictions_of(COUNTS)
    clusters = Clusters.of(replace(table, patient=np.arange(len(table.label)) // 2))
    assert clusters is not None and clusters.correlation > 0.5
    alone, several = equalized_odds_spans(COUNTS, 0.95), equalized_odds_spans(COUNTS, 0.95, clusters)
    assert (several[1] >= alone[1]).all() and (several[0] <= alone[0]).all() and (several[1] > alone[1]).any()


def test_the_lowest_of_many_has_an_interval_that_allows_for_its_being_chosen() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(0.7, 0.05, 2000)
    assert lowest_spans(np.array([0.7]), one[:, None], 0.95)[1:] == pytest.approx(interval(one, 0.7))
    hits = {"chosen": 0, "usual": 0}
    for _ in range(300):
        values = 0.8 + rng.normal(0, 0.05, 8)  # every true value is .8, so the lowest is
        draws = values + rng.normal(0, 0.05, (500, 8))
        found = lowest_spans(values, draws, 0.95)
        low, high = interval(draws[:, values.argmin()], values.min())
        assert found.value == values.min()
        hits["chosen"] += found.low <= 0.8 <= found.high
        hits["usual"] += low <= 0.8 <= high
    assert hits["usual"] < 0.9 * 300 and hits["chosen"] > 0.93 * 300


def test_one_mix_of_classes_is_that_of_weighted_scans() -> None:
    """scikit-learn's F1 with every scan weighted by its class's number in the mix over that in its group."""
    table, mix = predictions_of(COUNTS), np.array([50.0, 20.0, 30.0])
    found = in_mix(COUNTS, mix)["group_f1"]
    for g in range(2):
        inside = table.group == g
        label, said = table.label[inside], table.prediction[inside]
        weight = (mix / COUNTS[g].sum(-1))[label]
        assert found[g] == pytest.approx(f1_score(label, said, average="macro", sample_weight=weight), abs=1e-9)


def test_the_gap_in_one_mix_is_the_gap_where_there_is_one_and_0_of_a_fair_model() -> None:
    even = audit(predictions_of([[[30, 10], [5, 35]], [[20, 20], [12, 28]]]), **FAST)
    assert even.standardised.gap.value == pytest.approx(even.overall.gap.value)
    assert even.standardised.mix == {"a": 0.5, "b": 0.5}
    shares, support = np.array([[0.7, 0.3], [0.2, 0.8]]), np.array([[400, 40], [100, 500]])
    mixed = audit(predictions_of(np.rint(support[..., None] * shares).astype(int)), **FAST)
    assert abs(mixed.overall.gap.value) > 0.05 and mixed.standardised.gap.value == pytest.approx(0, abs=1e-9)
    assert mixed.standardised.p_value > 0.5
    assert any("in the mix of all scans the gap is +0.000" in verdict.text for verdict in mixed.verdicts)
    lacking = audit(predictions_of([np.full((3, 3), 9), np.diag([12, 12, 0])]), **FAST)
    assert lacking.standardised is None and lacking.equivalence is None and lacking.tipping_point is None


def test_equivalence_is_two_one_sided_tests() -> None:
    rng = np.random.default_rng(0)
    values = np.array([0.81, 0.80])
    draws = values + rng.normal(0, 0.02 / np.sqrt(2), (200_000, 2))
    found = equivalence({"group_f1": (values,)}, {"group_f1": draws}, 0.95, 0.05)
    assert found.confidence == pytest.approx(0.9) and found.equivalent
    p = norm.cdf((0.01 - found.smallest_margin) / 0.02)  # of the test against a gap of the margin
    assert p == pytest.approx(0.05, abs=2e-3)
    assert not equivalence({"group_f1": (values,)}, {"group_f1": draws}, 0.95, found.smallest_margin).equivalent
    three = np.array([0.81, 0.80, 0.70])
    many = equivalence({"group_f1": (three,)}, {"group_f1": three + rng.normal(0, 0.01, (5000, 3))}, 0.95, 0.1)
    assert many.gap is None and many.smallest_margin > 0.11 and many.equivalent is False


def test_counts_are_shuffled_as_scans_are() -> None:
    counts = np.concatenate([COUNTS, COUNTS[:1] // 2])
    rng = np.random.default_rng(0)
    one, other = _shuffled(counts, 4000, rng), shuffled_counts(counts, 4000, rng)
    np.testing.assert_array_equal(other.sum(1), np.broadcast_to(counts.sum(0), (4000, 3, 3)))
    np.testing.assert_array_equal(other.sum(-1), np.broadcast_to(counts.sum(-1), (4000, 3, 3)))
    np.testing.assert_allclose(other.mean(0), one.mean(0), atol=0.2)
    np.testing.assert_allclose(other.std(0), one.std(0), atol=0.1)


def first(counts: object, margin: float | None, **settings: float) -> tuple[str, str, Audit]:
    result = audit(predictions_of(counts), margin=margin, **FAST, **settings)
    return result.verdicts[0].level, result.verdicts[0].text, result


def test_the_verdict_on_the_gap_says_different_equivalent_or_not_settled() -> None:
    many, few = [[[380, 20], [20, 380]]] * 2, [[[19, 1], [1, 19]]] * 2
    level, text, result = first(many, 0.05)
    assert level == "finding" and text.startswith("Equivalent within 0.05: The gap of +0.000")
    assert "not ruled out" not in text and "lies between -0.05 and +0.05" in text
    assert result.equivalence.smallest_margin < 0.05
    level, text, result = first(few, 0.05)
    assert level == "inconclusive" and text.startswith("Not settled: The gap of +0.000")
    (note,) = [verdict.text for verdict in result.verdicts if "one-sided" in verdict.text]
    told = float(note.partition("margin of ")[2].partition(",")[0])
    assert first(few, told)[2].equivalence.equivalent and not first(few, told - 0.001)[2].equivalence.equivalent
    apart = [[[380, 20], [20, 380]], [[340, 60], [60, 340]]]
    level, text, _ = first(apart, 0.2)
    assert level == "finding" and text.startswith("Different, but within 0.2: ") and "serves male scans better" in text
    assert first(apart, 0.05)[1].startswith("Different: ")
    _, text, result = first(few, None)
    assert text.startswith("The gap of") and result.equivalence.equivalent is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"margin": 0.0}, r"margin must be in \(0, 1\), got 0.0"),
        ({"margin": 5}, r"margin must be in \(0, 1\), got 5"),
        ({"margin": 0.1, "confidence": 0.5}, r"a margin needs a confidence above 0.5, got 0.5"),
    ],
)
def test_a_margin_out_of_range_is_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        audit(predictions_of(COUNTS), **settings)


def test_a_partly_pooled_share_is_the_posterior_of_its_model() -> None:
    """By weighing 300,000 draws from the prior with their likelihood: no grid, no beta in place of the posterior."""
    rng = np.random.default_rng(0)
    hits, n = np.array([[18, 5], [3, 5]]), np.array([[25, 9], [5, 20]])
    s = rng.random(300_000)
    k = 1 / s**2 - 1
    shares, weight = np.zeros((2, 2, len(s))), np.ones(len(s))
    for c in range(2):
        m = rng.random(len(s))
        for g in range(2):
            shares[g, c] = rng.beta(np.maximum(m * k, 1e-9), np.maximum((1 - m) * k, 1e-9))
            weight *= shares[g, c] ** hits[g, c] * (1 - shares[g, c]) ** (n[g, c] - hits[g, c])
    weight /= weight.sum()
    for at, found in np.ndenumerate(partly_pooled(hits, n)):
        order = np.argsort(shares[at])
        ends = shares[at][order][np.searchsorted(weight[order].cumsum(), [0.025, 0.975])]
        assert found.value == pytest.approx((weight * shares[at]).sum(), abs=0.015)
        assert [found.low, found.high] == pytest.approx(ends, abs=0.04)


def test_a_small_cell_leans_on_the_other_group_as_far_as_the_classes_say() -> None:
    n = np.array([[40, 40, 40, 40], [40, 5, 40, 0]])
    alike = partly_pooled(np.array([[36, 32, 20, 30], [36, 2, 20, 0]]), n)
    apart = partly_pooled(np.array([[36, 32, 20, 30], [10, 2, 38, 0]]), n)
    assert 0.4 < apart[1, 1].value < alike[1, 1].value < 0.8
    assert alike[1, 1].high - alike[1, 1].low < apart[1, 1].high - apart[1, 1].low
    assert alike[1, 3] is None
    many = partly_pooled(np.array([[9000, 8000, 5000, 1], [3000, 600, 8000, 1]]), n * 250 + 2)
    assert many[1, 0].value == pytest.approx(3000 / (40 * 250 + 2), abs=0.01)


def test_one_scan_a_patient_gives_the_same_criteria() -> None:
    table = predictions_of(COUNTS)
    named = replace(table, patient=np.arange(len(table.label)))
    assert audit(table, margin=0.1, **FAST) == audit(named, margin=0.1, **FAST)


def test_every_criterion_follows_patients() -> None:
    """Each scan given three times, as one patient's: intervals are about those of the scans given once."""
    table = predictions_of(COUNTS * 2)
    three = table.take(np.repeat(np.arange(len(table.label)), 3))
    patients = np.repeat(np.arange(len(table.label)), 3)
    three = replace(three, patient=patients, scan=np.arange(len(patients)).astype(str))
    once, several = audit(table, resamples=2000, permutations=300), audit(three, resamples=2000, permutations=300)
    assert several.patients is not None

    def spans(result: Audit) -> list[float]:
        found = [result.lowest.cell_f1, result.lowest.group_f1, result.standardised.gap, result.equivalence.gap]
        found += [*result.differences.equalized_odds_intervals.values()]
        found += [*result.differences.demographic_parity_intervals.values()]
        found += [cell.recall_pooled for cell in result.cells]
        return [end for part in found for end in (part.low, part.high)]

    assert spans(several) == pytest.approx(spans(once), abs=0.045)
    for row, same in zip(several.tipping_point.rows[:4], once.tipping_point.rows[:4], strict=True):
        assert (row.what, row.n) == (same.what, same.n) == ("group", max(1, round(row.share * len(table.label))))
        assert row.gap == pytest.approx(same.gap, abs=0.12)
