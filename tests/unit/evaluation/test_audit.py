"""The audit: points equal scikit-learn's and fairlearn's, intervals and tests keep their promise, words fit numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fairlearn.metrics import MetricFrame
from hypothesis import given
from hypothesis import strategies as st
from reconstruction import paper_cells, predictions_of
from scipy.stats import binomtest, bootstrap, hypergeom, norm
from sklearn.metrics import f1_score, precision_score, recall_score

from fairlung.pipeline.evaluation.audit import NoAuditError, audit, power_of_gap, write_audit
from fairlung.pipeline.evaluation.fairness_criteria import (
    beyond_fair,
    bootstrap_confusion,
    confusion_intervals,
    fair_model,
    group_differences,
    permutation_test,
    summaries,
)
from fairlung.pipeline.evaluation.metrics import fairness_summary
from fairlung.pipeline.evaluation.predictions import Predictions, PredictionsError
from fairlung.pipeline.evaluation.records import Audit, read_record
from fairlung.pipeline.evaluation.resampling import wilson
from fairlung.pipeline.evaluation.wording import planned
from fairlung.pipeline.reports.evidence import write_evaluation

PAPER = paper_cells()
FAST = {"resamples": 400, "permutations": 400}


def random_confusion(seed: int, groups: int = 2, classes: int = 3, most: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, most, (groups, classes, classes))


@given(seed=st.integers(0, 10_000), groups=st.integers(2, 4))
def test_points_equal_scikit_learn_through_fairlearn(seed: int, groups: int) -> None:
    counts = random_confusion(seed, groups) + np.eye(3, dtype=int)  # every class in every group
    table = predictions_of(counts, group_names=list("wxyz")[:groups])

    def macro(true: np.ndarray, said: np.ndarray) -> float:
        return f1_score(true, said, labels=range(3), average="macro", zero_division=0)

    frame = MetricFrame(metrics=macro, y_true=table.label, y_pred=table.prediction, sensitive_features=table.group)
    found = summaries(counts)
    np.testing.assert_allclose(found["group_f1"], frame.by_group.to_numpy(float), atol=1e-12)
    assert found["abs_gap"] == pytest.approx(frame.difference(method="between_groups"), abs=1e-12)
    assert found["score"] == pytest.approx(frame.by_group.mean(), abs=1e-12)


def test_an_audit_holds_what_scikit_learn_says_of_every_cell() -> None:
    table = predictions_of(random_confusion(3) + 1)
    result = audit(table, **FAST)
    for cell in result.cells:
        inside = table.group == table.group_names.index(cell.group)
        c = [table.class_names.index(cell.class_name)]
        for found, function in ((cell.precision, precision_score), (cell.recall, recall_score), (cell.f1, f1_score)):
            expected = function(table.label[inside], table.prediction[inside], labels=c, average="macro")
            assert found.value == pytest.approx(expected, abs=1e-12)
            assert 0 <= found.low <= found.value <= found.high <= 1
    for group in result.groups:
        assert group.f1.value == pytest.approx(group.f1.by_fairlearn, abs=1e-12)


def test_a_bootstrap_resample_keeps_the_scans_of_every_class_and_group() -> None:
    counts = random_confusion(5)
    for method in ("smoothed", "percentile"):
        draws = bootstrap_confusion(counts, 50, np.random.default_rng(0), method)
        np.testing.assert_array_equal(draws.sum(-1), np.broadcast_to(counts.sum(-1), (50, 2, 3)))
    plain = bootstrap_confusion(counts, 4000, np.random.default_rng(0), "percentile")
    np.testing.assert_allclose(plain.mean(0), counts, atol=0.25)  # on average what was observed
    assert not plain[:, counts == 0].any()


def test_the_plain_bootstrap_is_that_of_resampling_rows() -> None:
    """Rows resampled within class and group and scored by scikit-learn give the same distribution of P."""
    counts = np.array(PAPER["systems"]["CE"]["confusion"])
    table = predictions_of(counts)
    rng = np.random.default_rng(0)
    strata = [np.flatnonzero((table.group == g) & (table.label == c)) for g, c in np.ndindex(2, 4)]
    scores = []
    for _ in range(300):
        rows = np.concatenate([rng.choice(s, len(s)) for s in strata])
        group, label, said = table.group[rows], table.label[rows], table.prediction[rows]
        scores.append(
            np.mean([f1_score(label[group == g], said[group == g], average="macro", zero_division=0) for g in (0, 1)])
        )
    ours = summaries(bootstrap_confusion(counts, 5000, rng, "percentile"))["score"]
    assert np.mean(scores) == pytest.approx(ours.mean(), abs=4 * ours.std() / np.sqrt(300))
    assert np.std(scores) == pytest.approx(ours.std(), rel=0.2)


def test_percentile_intervals_are_scipys() -> None:
    """Scans of each class and group drawn anew by scipy, the predictions counted and scored on their own."""
    counts = np.array([[[14, 4, 2], [3, 9, 3], [1, 2, 12]], [[9, 6, 3], [5, 7, 2], [2, 2, 9]]])
    samples = [np.repeat(np.arange(3), row) for group in counts for row in group]

    def numbers(*strata: np.ndarray, axis: int) -> np.ndarray:
        rows = [np.stack([(said == c).sum(axis) for c in range(3)], axis=-1) for said in strata]
        confusion = np.stack(rows, axis=-2).reshape(*rows[0].shape[:-1], 2, 3, 3)
        hits = np.diagonal(confusion, axis1=-2, axis2=-1)
        f1 = (2 * hits / (confusion.sum(-1) + confusion.sum(-2))).mean(-1)
        return np.stack([f1.mean(-1), f1[..., 0] - f1[..., 1], f1[..., 0], f1[..., 1]])

    rng = np.random.default_rng(0)
    theirs = bootstrap(samples, numbers, method="percentile", n_resamples=10_000, rng=rng, batch=1000)
    found, draws = confusion_intervals(counts, rng, 10_000, method="percentile")
    for ends, at in ((theirs.confidence_interval.low, 1), (theirs.confidence_interval.high, 2)):
        assert [found["score"][at], found["gap"][at], *found["group_f1"][at]] == pytest.approx(ends, abs=0.01)
    spread = [draws["score"].std(), draws["gap"].std(), *draws["group_f1"].std(0)]
    assert spread == pytest.approx(theirs.standard_error, rel=0.04)


@pytest.mark.parametrize("system", PAPER["systems"])
def test_the_papers_cells_give_the_printed_scores_and_the_known_widths(system: str) -> None:
    entry = PAPER["systems"][system]
    counts = np.array(entry["confusion"])
    point = summaries(counts)
    assert point["group_f1"] == pytest.approx([entry["printed"]["f1_male"], entry["printed"]["f1_female"]], abs=5.1e-5)
    assert point["score"] == pytest.approx(entry["printed"]["score"], abs=1.01e-4)  # each is rounded
    assert point["gap"] == pytest.approx(entry["printed"]["gap"], abs=1.51e-4)
    found, _ = confusion_intervals(counts, np.random.default_rng(0), method="percentile")
    for name in ("score", "gap"):
        assert [float(end) for end in found[name][1:]] == pytest.approx(entry["bootstrap"][name], abs=0.02)
    p = permutation_test(counts, 8000, np.random.default_rng(0))
    assert p == pytest.approx(entry["bootstrap"]["p_value"], abs=0.03)
    fair = fair_model(counts, 4000, np.random.default_rng(0))["abs_gap"]
    assert fair.mean() == pytest.approx(0.05, abs=0.01)
    assert np.quantile(fair, 0.95) == pytest.approx(0.12, abs=0.015)


def test_the_papers_best_system_is_not_shown_to_be_fair_nor_unfair() -> None:
    table = predictions_of(PAPER["systems"]["LA+CVaR alpha 0.8"]["confusion"], PAPER["class_names"])
    result = audit(table)
    gap = result.overall.gap
    assert gap.low < -0.13 and gap.high > 0.09
    first = result.verdicts[0]
    assert first.level == "inconclusive"
    assert "cannot be told from none on these data" in first.text
    assert "does not show that the model is fair" in first.text
    assert result.power.scans > 1000


def test_a_large_difference_is_a_finding() -> None:
    served = np.diag([60, 60, 60, 60])
    failed = np.full((4, 4), 15)
    result = audit(predictions_of([served, failed]), **FAST)
    assert result.verdicts[0].level == "finding"
    assert "serves male scans better than female ones" in result.verdicts[0].text
    swapped = audit(predictions_of([failed, served]), **FAST)
    assert "serves female scans better than male ones" in swapped.verdicts[0].text
    assert swapped.overall.gap.value == pytest.approx(-result.overall.gap.value)


def test_three_groups_have_no_signed_gap_and_are_held_against_a_fair_model() -> None:
    good, bad = np.diag([40, 40]), np.full((2, 2), 20)
    names = ["alder", "birch", "cedar"]
    result = audit(predictions_of([good, good, bad], group_names=names), **FAST)
    assert result.overall.gap is None
    assert result.verdicts[0].level == "finding"
    assert "The largest gap between two groups" in result.verdicts[0].text
    alike = audit(predictions_of([good + 5, good + 5, good + 4], group_names=names), **FAST)
    assert alike.verdicts[0].level == "inconclusive"


def test_small_empty_and_absent_cells_get_no_statement() -> None:
    counts = np.array([np.diag([30, 5, 30]), np.diag([30, 0, 30])])
    table = predictions_of(counts, group_names=("male", "female"))
    table = replace(table, group_names=("male", "female", "third"))
    result = audit(table, **FAST)
    said = [verdict.text for verdict in result.verdicts if verdict.level == "no-statement"]
    assert "male b: this cell has 5 scans: no statement." in said
    assert any(text.startswith("female b has no scan: no statement") for text in said)
    assert "There is no scan of group third: no statement." in said
    assert result.absent_groups == ("third",)
    few = audit(predictions_of([np.diag([30, 5, 30]), np.diag([30, 1, 30])]), **FAST)
    text = "No statement on cells of fewer than 10 scans: male b (5 scans), female b (1 scan)."
    assert text in [verdict.text for verdict in few.verdicts]
    # a cell that was right 5 times out of 5 is not certain to be right
    cell = next(cell for cell in result.cells if (cell.group, cell.class_name) == ("male", "b"))
    assert cell.f1.value == 1.0 and cell.f1.low < 0.9
    plain = audit(table, method="percentile", **FAST)
    cell = next(cell for cell in plain.cells if (cell.group, cell.class_name) == ("male", "b"))
    assert cell.f1.low == 1.0


def test_a_gap_that_comes_of_the_mix_of_classes_is_named() -> None:
    shares = np.array([[0.6, 0.4], [0.2, 0.8]])  # of both groups: the model is fair
    support = np.array([[400, 40], [200, 200]])
    counts = np.rint(support[..., None] * shares).astype(int)
    result = audit(predictions_of(counts), **FAST)
    expected = summaries(support[..., None] * shares)["gap"]
    assert result.fair_model.gap_mean == pytest.approx(expected, abs=0.01)
    assert any("not have the classes in the same proportions" in v.text for v in result.verdicts)
    assert result.permutation.p_value > 0.2
    # the other way round the same gap is further from fair than none would be
    unfair = np.array([[[240, 160], [8, 32]], [[150, 50], [20, 180]]])
    assert audit(predictions_of(unfair), **FAST).permutation.p_value < 0.05
    even = audit(predictions_of([np.diag([40, 40]), np.diag([41, 40])]), **FAST)
    assert not any("same proportions, which" in v.text for v in even.verdicts)


def test_scans_of_unknown_group_are_counted_and_left_out() -> None:
    table = predictions_of(random_confusion(1) + 3)
    rows = np.concatenate([np.arange(len(table.scan)), [0, 1, 2]])
    more = table.take(rows)
    more = replace(more, group=np.where(np.arange(len(rows)) < len(table.scan), more.group, -1))
    a, b = audit(table, **FAST), audit(more, **FAST)
    assert b.n_unknown == 3 and a.n_unknown == 0
    assert a == replace(b, n_unknown=0)


def test_the_same_seed_gives_the_same_audit() -> None:
    table = predictions_of(random_confusion(2) + 2)
    assert audit(table, seed=3, **FAST) == audit(table, seed=3, **FAST)
    assert audit(table, seed=3, **FAST) != audit(table, seed=4, **FAST)


def test_the_interval_of_the_unsigned_gap_is_that_of_the_signed_one() -> None:
    for seed in range(20):
        found, _ = confusion_intervals(random_confusion(seed) + 1, np.random.default_rng(0), 300)
        (gap, low, high), (size, small, large) = found["gap"], found["abs_gap"]
        assert size == abs(gap) and small <= size <= large
        assert (small == 0) == (low <= 0 <= high)
        assert large == pytest.approx(max(abs(low), abs(high)))


def test_an_interval_holds_what_was_observed_and_stays_in_range() -> None:
    perfect = np.array([np.diag([20, 20]), np.diag([20, 20])])
    hopeless = perfect[:, ::-1]
    for counts in (perfect, hopeless, random_confusion(9)):
        found, _ = confusion_intervals(counts, np.random.default_rng(0), 300)
        for name, (value, low, high) in found.items():
            assert np.all(low <= value) and np.all(value <= high), name
            assert np.all(low >= (-1 if name == "gap" else 0)) and np.all(high <= 1), name


def test_the_permutation_test_is_the_exact_one_where_that_can_be_listed() -> None:
    """One class right or wrong, one always right: the shuffled hits of a group are hypergeometric."""
    counts = np.array([[[9, 3], [0, 10]], [[4, 8], [0, 10]]])
    hits = np.arange(14)
    chances = hypergeom.pmf(hits, 24, 13, 12)

    possible = [h for h in hits if chances[h] > 0]
    gaps = {h: summaries(np.array([[[h, 12 - h], [0, 10]], [[13 - h, h - 1], [0, 10]]]))["gap"] for h in possible}
    mean = sum(chances[h] * gaps[h] for h in possible)
    exact = sum(chances[h] for h in possible if abs(gaps[h] - mean) >= abs(gaps[9] - mean) - 1e-12)
    found = permutation_test(counts, 20_000, np.random.default_rng(0))
    assert found == pytest.approx(exact, abs=0.012)


def test_the_permutation_test_rejects_a_true_null_as_often_as_promised() -> None:
    rng = np.random.default_rng(1)
    shares = np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.05, 0.05, 0.9]])
    n = np.array([[20, 12, 20], [20, 6, 20]])
    values = [permutation_test(rng.multinomial(n, np.broadcast_to(shares, (2, 3, 3))), 199, rng) for _ in range(400)]
    rejected = int(np.sum(np.array(values) <= 0.05))
    assert binomtest(rejected, 400, 0.05, alternative="greater").pvalue > 1e-3


def test_wilson_holds_its_formula() -> None:
    z = norm.ppf(0.975)
    for hits, n in ((0, 5), (5, 5), (3, 13), (50, 60)):
        found = wilson(hits, n)
        share = hits / n
        centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
        assert found == pytest.approx((share, max(0, centre - half), min(1, centre + half)), abs=1e-9)
    assert wilson(0, 0) == (0, 0, 1)
    for n in np.linspace(1, 50, 99):  # exactly, where statsmodels rounds
        assert wilson(0, n).low == 0 and wilson(n, n).high == 1


def test_power_is_that_of_a_normal_test() -> None:
    found = power_of_gap(0.1, 0.04, 155)
    rejected = norm.sf(norm.ppf(0.975) - found.detectable_gap / 0.04)
    assert rejected == pytest.approx(0.8, abs=1e-6)
    error = 0.04 * np.sqrt(155 / found.scans)  # with as many scans as it asks for
    assert norm.sf(norm.ppf(0.975) - 0.1 / error) == pytest.approx(0.8, abs=0.005)
    assert power_of_gap(0.0, 0.04, 155).scans is None


@pytest.mark.fault(
    "wrong", "scans planned for a gap that is none but for rounding",
    before="649,999,999,999,999,935,800,862,526,406,656 scans", now="no number of scans",
)  # fmt: skip
def test_nothing_is_planned_for_no_difference() -> None:
    men = [[9, 4, 0, 3], [2, 25, 1, 5], [0, 3, 26, 5], [1, 5, 4, 10]]
    women = [[26, 3, 5, 0], [1, 25, 5, 2], [4, 5, 10, 1], [0, 4, 3, 9]]
    result = audit(predictions_of([men, women]), **FAST)
    assert result.overall.gap.value != 0 and abs(result.overall.gap.value) < 1e-15
    assert result.power.scans is None
    assert any("the observed one is 0, so that no number of scans" in v.text for v in result.verdicts)
    assert planned(1_000_000) == "1,000,000" and planned(6.5e32) == "1,000,000 or more"


def test_a_gap_is_planned_for_as_far_as_it_is_beyond_that_of_a_fair_model() -> None:
    assert beyond_fair(0.1, 0.03) == pytest.approx(0.07)
    assert beyond_fair(0.1, -0.03) == 0.1  # it must be told from 0 too
    assert beyond_fair(0.02, 0.03) == beyond_fair(0.0, 0.0) == 0
    assert beyond_fair(-0.1, -0.03) == pytest.approx(0.07)
    shares = np.array([[0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.2, 0.1, 0.7]])  # of both groups: the model is fair
    support = np.array([[100, 60, 20], [20, 60, 100]])
    result = audit(predictions_of(np.rint(support[..., None] * shares).astype(int)), **FAST)
    assert result.overall.gap.value > 0.06
    assert result.power.scans is None or result.power.scans > 100_000


@pytest.mark.parametrize("accuracies", [(0.99, 0.95), (0.97, 0.93), (0.7, 0.6)])
def test_the_error_on_more_scans_is_smoothed_less(accuracies: tuple[float, float]) -> None:
    shares = np.stack([np.full((4, 4), (1 - a) / 3) + (a - (1 - a) / 3) * np.eye(4) for a in accuracies])
    support, rng = np.array([[25, 12, 20, 20], [25, 13, 20, 20]]), np.random.default_rng(0)
    errors = []
    for times in (1, 4):
        counts = support[..., None] * times * shares
        share = (counts + 1 / 4) / (counts.sum(-1, keepdims=True) + 1)
        drawn = (rng.multinomial(support * times, part, (4000, 2, 4)) for part in (share, shares))
        errors.append([summaries(part)["gap"].std() for part in drawn])
    (smoothed, plain), (on_more, _) = errors
    gap = on_more * power_of_gap(0.1, 1.0, 1).detectable_gap  # that 4 times the scans show in 80 % of studies
    assert power_of_gap(gap, smoothed, 155, unsmoothed=plain).scans == pytest.approx(4 * 155, rel=0.08)


@pytest.mark.fault(
    "wrong", "the interval of the largest gap of several groups", before="never covers a true 0", now=".95 and more",
)  # fmt: skip
@pytest.mark.parametrize(("groups", "worse", "truth"), [(6, 0.0, 0.0), (3, 0.15, 0.15), (6, 0.15, 0.15)])
def test_the_largest_gap_of_several_groups_is_covered(groups: int, worse: float, truth: float) -> None:
    rng, right = np.random.default_rng(0), np.full(groups, 0.8)
    right[0] -= worse
    shares = np.stack([right, 1 - right], axis=-1)
    shares = np.stack([shares, shares[:, ::-1]], axis=1)
    support = np.full((groups, 2), 40)
    covered, above_0 = [], []
    for _ in range(200):
        found, _ = confusion_intervals(rng.multinomial(support, shares), rng, 200)
        value, low, high = found["abs_gap"]
        assert 0 <= low <= value <= high <= 1
        covered.append(low <= truth <= high)
        above_0.append(low > 0)
    assert np.mean(covered) >= 0.92
    assert np.mean(above_0) <= 0.08 or worse


def test_metrics_and_audit_agree_on_every_number_also_with_scans_of_unknown_group() -> None:
    table = predictions_of(random_confusion(4) + 1)
    table = replace(table, group=np.where(np.arange(len(table.group)) % 5 == 0, -1, table.group))
    metrics = fairness_summary(torch.from_numpy(table.confusion()), table.class_names, table.group_names)
    result = audit(table, **FAST)
    assert result.n_unknown > 0
    for name, estimate in result.overall.numbers().items():
        assert estimate.value == pytest.approx(metrics[name], abs=1e-12), name
    for group in result.groups:
        assert group.f1.value == pytest.approx(metrics[f"f1_{group.group}"], abs=1e-12)
    for cell in result.cells:
        assert cell.f1.value == pytest.approx(metrics[f"f1_{cell.group}_{cell.class_name}"], abs=1e-12)


def test_differences_of_equalized_odds_and_demographic_parity() -> None:
    table = predictions_of([[[8, 2], [1, 9]], [[5, 5], [4, 6]]])
    found = group_differences(table)
    # class a: said in 9 of 20 and 9 of 20; true positives .8 and .5, false positives .1 and .4
    assert found.demographic_parity["a"] == pytest.approx(0.0)
    assert found.equalized_odds["a"] == pytest.approx(0.3)


def test_what_allows_no_audit_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = predictions_of(random_confusion(1) + 1)
    alone = table.take(table.group == 0)
    with pytest.raises(NoAuditError, match="scans of two groups at least; there are scans of: male"):
        audit(alone)
    with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\), got 95"):
        audit(table, confidence=95)
    with pytest.raises(ValueError, match="method must be one of smoothed, percentile, got 'bca'"):
        audit(table, method="bca")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="resamples must be at least 100, got 10$"):
        audit(table, resamples=10, permutations=400)
    (tmp_path / "audit.json").write_text("stale")
    write_table(alone, tmp_path / "predictions.csv")
    assert write_audit(tmp_path / "predictions.csv", alone.class_names, alone.group_names) is None
    assert "no audit" in caplog.text
    assert not (tmp_path / "audit.json").exists()


def test_an_audit_is_written_beside_its_table(tmp_path: Path) -> None:
    table = predictions_of(random_confusion(1) + 1)
    write_table(table, tmp_path / "predictions.csv")
    result = write_audit(tmp_path / "predictions.csv", table.class_names, table.group_names, resamples=200)
    assert read_record(Audit, tmp_path / "audit.json") == result
    assert result.n == len(table.scan) and result.settings.resamples == 200


def write_table(table: Predictions, path: Path) -> None:
    names = np.array(table.class_names)
    columns = {"scan": table.scan, "label": names[table.label], "prediction": names[table.prediction]}
    pd.DataFrame(columns | {"sex": np.array(table.group_names)[table.group]}).to_csv(path, index=False)


def test_predictions_that_were_post_processed_are_said_to_be() -> None:
    table = replace(predictions_of(random_confusion(1) + 1), postprocess="offsets")
    result = audit(table, **FAST)
    assert result.postprocess == "offsets"
    assert any("post-processed (offsets)" in verdict.text for verdict in result.verdicts)


def test_one_output_that_is_not_finite_is_no_prediction_to_judge(tmp_path: Path) -> None:
    table = predictions_of(random_confusion(1) + 1)
    path = tmp_path / "predictions.csv"
    write_table(table, path)
    rows = pd.read_csv(path)
    for c, name in enumerate(table.class_names):
        rows[f"prob_{name}"] = np.where(np.arange(len(rows)) == 0, np.nan, (table.prediction == c).astype(float))
    rows.to_csv(path, index=False, na_rep="nan")
    for judge in (write_evaluation, write_audit):
        with pytest.raises(PredictionsError, match="the network's output was not finite"):
            judge(path, table.class_names, table.group_names)
    assert not path.with_name("metrics.json").exists() and not path.with_name("audit.json").exists()


def test_the_group_called_better_served_is_better_than_the_mix_of_classes_explains() -> None:
    table = predictions_of([[[370, 110], [67, 413]], [[783, 117], [2, 58]]])
    result = audit(table, **FAST)
    assert result.fair_model.gap_mean > result.overall.gap.value > 0  # below what a fair model shows
    assert result.permutation.p_value < 0.01
    assert result.verdicts[0].level == "inconclusive"
    assert "serves male scans better" not in result.verdicts[0].text


def test_where_every_class_is_of_one_group_there_is_no_test() -> None:
    table = predictions_of([[[8, 4], [0, 0]], [[0, 0], [5, 7]]])
    assert audit(table, **FAST).permutation.p_value is None  # no shuffle could change the gap
    shared = predictions_of([[[8, 4], [0, 0]], [[9, 3], [5, 7]]])
    assert audit(shared, **FAST).permutation.p_value is not None


@pytest.mark.parametrize("least", [0, -1])
def test_a_cell_of_no_scan_is_always_too_small(least: int) -> None:
    with pytest.raises(ValueError, match=f"min_cell must be at least 1, got {least}"):
        audit(predictions_of(random_confusion(1) + 1), **FAST, min_cell=least)
