"""What an audit says: its words never contradict its numbers, and no number is one that cannot be."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reconstruction import predictions_of

from fairlung.pipeline.evaluation.audit import audit
from fairlung.pipeline.evaluation.audit_words import verdicts
from fairlung.pipeline.evaluation.fairness_criteria import beyond_fair
from fairlung.pipeline.evaluation.predictions import Predictions
from fairlung.pipeline.evaluation.records import Audit, to_plain
from fairlung.pipeline.reports.evidence import Evidence
from fairlung.pipeline.reports.model_card import model_card

DRAWS = {"resamples": 200, "permutations": 200}
GROUPS = ("alder", "birch", "cedar", "dogwood")


def said(result: Audit, level: str = "") -> list[str]:
    return [verdict.text for verdict in result.verdicts if level in ("", verdict.level)]


def one(result: Audit, part: str) -> str:
    (text,) = [text for text in said(result) if part in text]
    return text


def random_table(rng: np.random.Generator) -> Predictions:
    """Any table: cells without a scan, models that are perfect, hopeless or always say one class, with ties."""
    groups, classes = rng.integers(2, 5), rng.integers(2, 5)
    shares = rng.dirichlet(np.full(classes, rng.choice([0.05, 0.5, 5.0])), (groups, classes))
    if rng.random() < 0.5:
        shares = np.broadcast_to(np.eye(classes)[rng.permutation(classes)], shares.shape)
    support = rng.integers(0, rng.choice([3, 12, 60]), (groups, classes)) * (rng.random((groups, classes)) < 0.85)
    support[:, 0] += 1
    table = predictions_of(rng.multinomial(support, shares), group_names=GROUPS[:groups])
    if rng.random() < 0.4:
        return table
    sure = rng.choice([1 / classes + 1e-3, 0.6, 0.9, 1.0], len(table.label))[:, None]
    one_hot = np.arange(classes) == table.prediction[:, None]
    return replace(table, probabilities=np.where(one_hot, sure, (1 - sure) / (classes - 1)))


def numbers_of(content: Any, name: str = "") -> list[tuple[str, float]]:
    if isinstance(content, dict):
        return [found for key, part in content.items() for found in numbers_of(part, f"{name}.{key}")]
    if isinstance(content, list):
        return [found for part in content for found in numbers_of(part, name)]
    return [(name, content)] if isinstance(content, (int, float)) and not isinstance(content, bool) else []


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 100_000), confidence=st.sampled_from([0.95, 0.8, 0.5, 0.99]))
def test_no_number_cannot_be_and_no_verdict_contradicts_a_number(seed: int, confidence: float) -> None:
    result = audit(random_table(np.random.default_rng(seed)), confidence=confidence, min_cell=1, **DRAWS)
    plain = to_plain(result)
    for name, number in numbers_of({key: part for key, part in plain.items() if key not in ("settings", "verdicts")}):
        least = -1 if re.search(r"\.(gap(_|\.)|difference\.)", name) else 0
        counts = re.search(r"\.(n|n_\w+|scans|group_scans|confusion|detectable_gap|fewest_\w+|schema_version)$", name)
        most = np.inf if counts else 2 if ".brier." in name else 1
        assert np.isfinite(number) and least <= number <= most + 1e-12, (name, number)
    estimates = [*result.overall.numbers().values(), *(group.f1 for group in result.groups)]
    estimates += [*result.differences.equalized_odds_intervals.values(), result.lowest.cell_f1, result.lowest.group_f1]
    estimates += [*result.differences.demographic_parity_intervals.values()]
    estimates += [cell.recall_pooled for cell in result.cells if cell.n]
    estimates += [same.gap or same.abs_gap for same in [result.standardised] if same]
    estimates += [part for cell in result.cells for part in (cell.f1, cell.precision, cell.recall)]
    estimates += [group.calibration.ece for group in result.groups if group.calibration]
    assert all(part.low <= part.value + 1e-12 and part.value <= part.high + 1e-12 for part in estimates)
    for text in said(result):
        assert not re.search(r"\bnan\b|\binf\b|-0\.0+\b(?! to)|\d,\d{3},\d{3},\d{3}", text), text
    of_gap, level = result.shared_classes or result, 1 - confidence
    overall = result.shared_classes or result.overall
    gap = overall.gap or overall.abs_gap
    holds_none, p = gap.low <= 0 <= gap.high, of_gap.permutation.p_value
    for verdict in result.verdicts:
        if "larger than chance explains" in verdict.text:
            assert verdict.level == "finding" and not holds_none and p <= level
        if "cannot be told from none" in verdict.text or "have the same F1;" in verdict.text:
            assert verdict.level == "inconclusive" and holds_none and p > level
        if "not ruled out" in verdict.text:
            assert f"as large as {overall.abs_gap.high:.3f}" in verdict.text
        if "no number of scans" in verdict.text:
            assert beyond_fair(gap.value, of_gap.fair_model.gap_mean or 0.0) < 1e-9
        if "it the lowest" in verdict.text:
            assert verdict.level == "note"
        if "would turn it" in verdict.text or "changed at random" in verdict.text:
            assert result.tipping_point is not None and verdict.level == "note"
    for group in result.groups:
        if group.calibration and result.n_not_most_probable == 0:
            (text,) = [text for text in said(result) if f"{group.group} scans" in text and "calibration error" in text]
            alarm = not text.startswith("No miscalibration")
            assert alarm <= (group.calibration.ece.low > 0)
            assert (group.calibration.ece_p_value <= level) >= alarm


MEN = [[34, 3, 3], [3, 34, 3], [3, 3, 34]]


@pytest.mark.fault(
    "wrong", "a class that one sex has no scan of",
    before="gap +.261, on the border of what chance explains", now="the gap over the classes that both have",
)  # fmt: skip
def test_a_class_that_a_group_lacks_is_not_laid_to_the_model() -> None:
    result = audit(predictions_of([MEN, [*MEN[:2], [0, 0, 0]]]), **DRAWS)
    assert result.overall.gap.value == pytest.approx(0.261, abs=1e-3)  # as in metrics.json
    assert "no scan of c in female" in result.verdicts[0].text and result.verdicts[0].level == "no-statement"
    assert result.verdicts[1].text.startswith("Of the classes that every group has (a, b): The gap of +0.000")
    shared = result.shared_classes
    both = audit(predictions_of([[*MEN[:2], [0, 0, 0]]] * 2), **DRAWS)  # c in neither: F1 is 0 in both
    assert (shared.class_names, shared.group_scans) == (("a", "b"), (80, 80))
    assert shared.gap.value == 0 and shared.gap.high == pytest.approx(1.5 * both.overall.gap.high, abs=0.02)
    assert shared.permutation.p_value > 0.8 and shared.power.scans is None
    assert both.shared_classes is None
    card = model_card(Evidence(result)).replace("\\", "")
    assert "Of the classes that every group has (a, b) it is +0.000" in card
    unfair = audit(predictions_of([MEN, [[14, 13, 13], [13, 14, 13], [0, 0, 0]]]), **DRAWS)
    assert unfair.verdicts[1].level == "finding" and "serves male scans better" in unfair.verdicts[1].text
    nothing = audit(predictions_of([[[30, 0], [0, 0]], [[0, 0], [0, 30]]]), **DRAWS)
    assert nothing.shared_classes is None
    assert "no scan of a in female, nor of b in male" in nothing.verdicts[0].text
    assert not said(nothing, "finding") and not said(nothing, "inconclusive")


def test_a_gap_over_shared_classes_is_that_of_a_table_of_these_classes() -> None:
    """Where nothing is predicted as the class that a group lacks, its scans can be taken out of the table."""
    two = np.array([[[30, 10], [5, 35]], [[20, 20], [12, 28]]])
    three = np.zeros((2, 3, 3), dtype=int)
    three[:, :2, :2], three[0, 2, 2] = two, 40
    draws = {"resamples": 2000, "permutations": 2000, "method": "percentile"}
    shared, alone = audit(predictions_of(three), **draws).shared_classes, audit(predictions_of(two), **draws)
    assert shared.gap.value == pytest.approx(alone.overall.gap.value, abs=1e-12)
    for mine, theirs in ((shared.gap, alone.overall.gap), (shared.abs_gap, alone.overall.abs_gap)):
        assert (mine.low, mine.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)
    assert shared.permutation.p_value == pytest.approx(alone.permutation.p_value, abs=0.02)
    assert shared.power.detectable_gap == pytest.approx(alone.power.detectable_gap, rel=0.08)
    assert shared.fair_model.gap_high == pytest.approx(alone.fair_model.gap_high, abs=0.02)


def test_a_tie_is_called_one() -> None:
    perfect = audit(predictions_of([np.diag([20, 20, 20])] * 2), **DRAWS)
    assert "the groups have the same F1" in perfect.verdicts[0].text
    assert "shows no gap here" in perfect.verdicts[0].text and "0.000 on average" not in perfect.verdicts[0].text
    assert one(perfect, "with scans has the same F1: 1.000")
    assert perfect.worst_cell.n_tied == 6
    two = audit(predictions_of([[[18, 2], [2, 18]], [[19, 1], [1, 19]]]), **DRAWS)
    assert one(two, "2 cells have the lowest F1, male a among them")


@pytest.mark.fault(
    "wrong", "the lowest F1 where the sexes differ in their mix of classes and the model does not",
    before="a finding in 80 % of audits", now="a note that names the mix, with the recall",
)  # fmt: skip
def test_a_lowest_f1_that_comes_of_the_mix_of_classes_is_no_finding() -> None:
    rng = np.random.default_rng(0)
    shares, support = np.full((3, 3), 0.1) + 0.7 * np.eye(3), np.array([[60, 60, 60], [60, 12, 60]])
    results = [audit(predictions_of(rng.multinomial(support, shares)), **DRAWS) for _ in range(8)]
    assert sum("lowest F1 is that of" in text for result in results for text in said(result, "finding")) <= 1
    assert any("and not the model's answers make it the lowest" in text for result in results for text in said(result))
    assert all("recall is" in one(result, "The lowest F1 is that of") for result in results)
    worse = np.stack([shares, shares])
    worse[1, 1] = [0.8, 0.1, 0.1]
    result = audit(predictions_of(rng.multinomial(support, worse)), **DRAWS)
    assert any("lowest F1 is that of female b" in text for text in said(result, "finding"))


def calibrated(size: int, groups: int, rng: np.random.Generator) -> Predictions:
    true = rng.dirichlet(np.ones(3), size * groups)
    label = (rng.random(len(true))[:, None] > true.cumsum(1)).sum(1).clip(max=2)
    group, scan = np.repeat(np.arange(groups), size), np.arange(len(true)).astype(str)
    names = tuple(f"g{i}" for i in range(groups))
    return Predictions(scan, label, true.argmax(1), group, true, ("a", "b", "c"), names, ("sex",))


@pytest.mark.parametrize(
    ("p", "confidence", "found"), [(0.01, 0.95, 0), (0.005, 0.95, 1), (0.01, 0.9, 1), (0.04, 0.5, 1)]
)
def test_calibration_is_judged_at_one_level_for_all_groups(p: float, confidence: float, found: int) -> None:
    result = audit(calibrated(12, 8, np.random.default_rng(0)), 100, 100)
    p_values = [p, *[0.9] * 7]
    groups = [
        replace(group, calibration=replace(group.calibration, ece_p_value=value))
        for group, value in zip(result.groups, p_values, strict=True)
    ]
    changed = replace(result, groups=tuple(groups), settings=replace(result.settings, confidence=confidence))
    alarms = [verdict.text for verdict in verdicts(changed) if verdict.level == "finding"]
    assert sum("Probabilities of g0" in text for text in alarms) == found
    assert all(f"p = {min(1, 8 * p):.3g} by Holm for 8 groups" in text for text in alarms if "Probabilities" in text)


def test_predictions_that_are_not_the_most_probable_class_are_told_of() -> None:
    table = calibrated(60, 2, np.random.default_rng(0))
    assert not any("most probable class" in text for text in said(audit(table, **DRAWS)))
    other = replace(table, prediction=np.where(np.arange(120) < 77, (table.prediction + 1) % 3, table.prediction))
    result = audit(other, **DRAWS)
    assert result.n_not_most_probable == 77
    assert "77 of the 120 predictions are not the most probable class" in one(result, "No statement on calibration")
    assert not any("calibration error" in text for text in said(result))


def test_percentiles_follow_the_confidence() -> None:
    table = calibrated(40, 2, np.random.default_rng(1))
    wide, narrow = (audit(table, confidence=confidence, **DRAWS) for confidence in (0.99, 0.5))
    assert wide.fair_model.abs_gap_p95 > narrow.fair_model.abs_gap_p95
    assert wide.fair_model.gap_high > narrow.fair_model.gap_high
    assert "one time in 100" in wide.verdicts[0].text
    for left, right in zip(wide.groups, narrow.groups, strict=True):
        assert left.calibration.ece_if_calibrated.p95 > right.calibration.ece_if_calibrated.p95
    counts = np.array([[[30, 10], [10, 30]], [[30, 10], [14, 26]]])
    shares = {c: audit(predictions_of(counts), confidence=c, **DRAWS) for c in (0.95, 0.5)}
    assert 0.5 <= shares[0.5].worst_cell.share_of_resamples < 0.95
    assert not any("lowest F1" in text for text in said(shares[0.95], "finding"))
    assert any("lowest F1" in text for text in said(shares[0.5], "finding"))
