"""Post-processing: fitted on some scans, applied to others, with its cost; scikit-learn, Bayes and grids as oracles."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import log_softmax, softmax
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, log_loss
from typer.testing import CliRunner

from fairlung.pipeline.cli.app import app
from fairlung.pipeline.common.errors import UserError
from fairlung.pipeline.evaluation.calibration import expected_calibration_error
from fairlung.pipeline.evaluation.predictions import Predictions, load_predictions
from fairlung.pipeline.evaluation.resampling import Estimate, resample_counts
from fairlung.pipeline.postprocessing.before_after import BeforeAfter, Change, GroupChange, Moved, before_after, cost
from fairlung.pipeline.postprocessing.fit import apply, describe, fit, fit_temperature
from fairlung.pipeline.postprocessing.fitted import (
    PREFIX,
    Fitted,
    UnlabelledPredictions,
    load_fitted,
    log_probabilities,
)
from fairlung.pipeline.postprocessing.offsets import best_offsets, fit_offsets
from fairlung.pipeline.postprocessing.prior import estimate_prior, fit_prior
from fairlung.pipeline.postprocessing.tables import refuse_overwriting

CLASSES = ("adeno", "squamous", "covid", "normal")


def predictions(
    seed: int, n: int, classes: int = 4, groups: int = 2, sharp: float = 2.0, name: str = ""
) -> Predictions:
    """Scans whose logits are noise, plus something at the true class."""
    rng = np.random.default_rng(seed)
    label, group = rng.integers(0, classes, n), rng.integers(0, groups, n)
    label[:classes], group[:groups] = range(classes), range(groups)
    logits = rng.normal(size=(n, classes))
    logits[np.arange(n), label] += 1.2
    probabilities = softmax(sharp * logits, axis=1)
    scans = np.array([f"{name or seed}/{i}" for i in range(n)])
    groups_named = ("male", "female", "third")[:groups]
    return Predictions(
        scans, label, probabilities.argmax(1), group, probabilities, CLASSES[:classes], groups_named, ("sex",)
    )


def score_and_gap(label: np.ndarray, said: np.ndarray, group: np.ndarray, classes: int) -> tuple[float, float]:
    macro = [
        f1_score(label[group == g], said[group == g], labels=range(classes), average="macro", zero_division=0)
        for g in np.unique(group)
    ]
    return float(np.mean(macro)), float(np.ptp(macro))


# temperature


@pytest.mark.parametrize("true", [0.4, 1.0, 3.0])
def test_temperature_recovers_the_one_that_was_applied(true: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 3))
    right = softmax(logits, axis=1)
    label = (right.cumsum(1) > rng.random((len(right), 1))).argmax(1)
    given = replace(predictions(1, len(label), 3), label=label).with_probabilities(softmax(logits * true, axis=1))
    fitted = fit_temperature(given)
    assert fitted.temperature == pytest.approx(true, rel=0.03)
    assert fitted.validation["nll_after"] <= fitted.validation["nll_before"]


def test_temperature_of_two_classes_is_the_slope_of_a_logistic_regression_without_intercept() -> None:
    given = predictions(2, 400, 2)
    assert given.probabilities is not None
    odds = np.log(given.probabilities[:, 1] / given.probabilities[:, 0])
    model = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(odds[:, None], given.label)
    assert 1 / fit_temperature(given).temperature == pytest.approx(model.coef_[0, 0], rel=1e-5)


def test_no_other_temperature_of_a_grid_has_a_higher_likelihood() -> None:
    given = predictions(3, 155)
    assert given.probabilities is not None
    log_p = np.log(given.probabilities)
    grid = np.geomspace(0.05, 20, 100)
    losses = [log_loss(given.label, softmax(log_p / t, axis=1), labels=range(4)) for t in grid]
    fitted = fit_temperature(given)
    assert fitted.validation["nll_after"] <= min(losses) + 1e-12
    assert fitted.validation["nll_before"] == pytest.approx(log_loss(given.label, given.probabilities), abs=1e-12)


def test_temperature_changes_no_prediction_not_even_one_by_another_rule() -> None:
    fitted = fit_temperature(predictions(4, 200, sharp=5.0))
    judged = replace(predictions(5, 300), prediction=np.zeros(300, dtype=np.int64))
    after = apply(fitted, judged)
    np.testing.assert_array_equal(after.prediction, judged.prediction)
    assert judged.probabilities is not None and after.probabilities is not None
    np.testing.assert_array_equal(after.probabilities.argmax(1), judged.probabilities.argmax(1))
    expected = judged.probabilities ** (1 / fitted.temperature)
    np.testing.assert_allclose(after.probabilities, expected / expected.sum(1, keepdims=True), atol=1e-12)


def test_no_temperature_for_scans_that_are_all_right() -> None:
    given = predictions(6, 50)
    with pytest.raises(UserError, match=r"50 of the 50 validation scans are predicted right"):
        fit_temperature(replace(given, label=given.prediction))


def test_a_probability_rounded_to_zero_is_small_and_stays_the_smallest() -> None:
    rows = np.array([[1.0, 0.0, 0.0], [0.9, 1e-9, 0.0], [0.5, 0.3, 0.2]])
    np.testing.assert_allclose(np.exp(log_probabilities(rows)), [[1, 5e-7, 5e-7], [0.9, 1e-9, 1e-9], rows[2]])
    given = replace(predictions(7, 3, 3), label=np.array([1, 0, 2])).with_probabilities(rows)
    assert np.isfinite(fit_temperature(given).validation["nll_before"])


# offsets


@pytest.mark.parametrize(("seed", "groups"), list(product(range(4), (1, 2, 3))))
def test_offsets_of_two_classes_are_the_best_threshold(seed: int, groups: int) -> None:
    given = predictions(seed, 30, 2, groups)
    assert given.probabilities is not None
    odds = np.log(given.probabilities[:, 1] / given.probabilities[:, 0])
    edges = np.sort(odds)
    thresholds = [edges[0] - 1, *(edges[:-1] + edges[1:]) / 2, edges[-1] + 1]
    best = max(score_and_gap(given.label, (odds > t).astype(int), given.group, 2)[0] for t in thresholds)
    fitted = fit_offsets(given)
    after = fitted.transform(given.probabilities, given.class_names).argmax(1)
    assert score_and_gap(given.label, after, given.group, 2)[0] == pytest.approx(best, abs=1e-12)
    assert fitted.validation["score_after"] == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_offsets_of_three_classes_are_as_good_as_any_of_a_fine_grid(seed: int) -> None:
    given = predictions(seed, 24, 3)
    assert given.probabilities is not None
    log_p = np.log(given.probabilities)
    line = np.arange(-6, 6, 0.06)
    grid = np.array([(0, b, c) for b, c in product(line, line)])
    said = (log_p[None] + grid[:, None]).argmax(2)  # [grid, scan]
    macro = []
    for g in range(2):
        true = given.label[given.group == g]
        part = said[:, given.group == g]
        hits = [((part == c) & (true == c)).sum(1) for c in range(3)]
        sums = [(part == c).sum(1) + (true == c).sum() for c in range(3)]
        macro.append(np.mean([2 * h / np.maximum(s, 1) for h, s in zip(hits, sums, strict=True)], axis=0))
    found = fit_offsets(given)
    assert found.validation["score_after"] >= np.mean(macro, axis=0).max() - 1e-12
    assert sum(found.offsets.values()) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("seed", "groups"), list(product(range(2), (2, 3))))
def test_offsets_for_the_gap_keep_to_the_allowed_loss(seed: int, groups: int) -> None:
    given = predictions(seed, 80, 4, groups)
    assert given.probabilities is not None
    p, gap = score_and_gap(given.label, given.prediction, given.group, 4)
    gaps = [gap]
    for max_loss in (0.0, 0.02, 0.2):
        fitted = fit_offsets(given, "gap", max_loss)
        said = fitted.transform(given.probabilities, given.class_names).argmax(1)
        after, smaller = score_and_gap(given.label, said, given.group, 4)
        assert after >= p - max_loss - 1e-9
        assert fitted.validation["abs_gap_after"] == pytest.approx(smaller, abs=1e-12)
        assert smaller <= gaps[0] + 1e-12
        gaps.append(smaller)
    assert gaps[-1] < gaps[0]  # with that much to lose there is something to win on these data


def test_offsets_stay_at_zero_where_nothing_is_better() -> None:
    given = predictions(8, 60)
    assert set(fit_offsets(replace(given, label=given.prediction)).offsets.values()) == {0.0}


def test_offsets_are_the_same_each_time_and_whatever_the_order_of_the_scans() -> None:
    given = predictions(9, 60)
    first = fit_offsets(given)
    assert first == fit_offsets(given)
    turned = fit_offsets(given.take(np.arange(60)[::-1].copy()))
    assert turned.digest == first.digest and turned.scans == first.scans
    assert turned.validation["score_after"] == pytest.approx(first.validation["score_after"], abs=1e-12)


def test_offsets_ignore_scans_of_unknown_group() -> None:
    given = predictions(10, 60)
    group = given.group.copy()
    group[20:40] = -1
    given = replace(given, group=group)
    assert fit_offsets(given) == fit_offsets(given.known())


def test_offsets_gain_less_on_new_scans_than_on_those_they_were_chosen_on() -> None:
    gains = []
    for seed in range(8):
        given, new = predictions(seed, 100), predictions(1000 + seed, 4000)
        fitted = fit_offsets(given)
        after = apply(fitted, new)
        before_new, after_new = (score_and_gap(p.label, p.prediction, p.group, 4)[0] for p in (new, after))
        gains.append((fitted.validation["score_after"] - fitted.validation["score_before"], after_new - before_new))
    on_fitted, on_new = np.mean(gains, axis=0)
    assert on_fitted > 0.02 and on_new < 0


# prior


def test_prior_correction_is_bayes() -> None:
    rng = np.random.default_rng(0)
    x, means, prior = rng.normal(0, 3, 100), np.array([-1.0, 0.5, 2.0]), np.array([0.7, 0.25, 0.05])
    density = norm.pdf(x[:, None], means)
    even = density / density.sum(1, keepdims=True)
    bayes = density * prior / (density * prior).sum(1, keepdims=True)
    names = CLASSES[:3]
    fitted = fit_prior(target=dict(zip(names, 200 * prior, strict=True)))
    np.testing.assert_allclose(fitted.transform(even, names), bayes, atol=1e-12)
    trained = np.array([0.2, 0.3, 0.5])  # a model that learned other frequencies
    theirs = density * trained / (density * trained).sum(1, keepdims=True)
    source = dict(zip(names, trained, strict=True))
    fitted = fit_prior(target=dict(zip(names, prior, strict=True)), source=source)
    np.testing.assert_allclose(fitted.transform(theirs, names), bayes, atol=1e-12)
    turned = fitted.transform(theirs[:, ::-1], names[::-1])  # classes go by name
    np.testing.assert_allclose(turned[:, ::-1], bayes, atol=1e-12)
    assert fitted.scans == () and fitted.digest == ""


def test_prior_from_labels_counts_them() -> None:
    given = predictions(11, 90)
    counts = np.bincount(given.label)
    fitted = fit_prior(given)
    assert list(fitted.settings["target"].values()) == pytest.approx(counts / 90)
    assert fitted.offsets == pytest.approx(fit_prior(target=dict(zip(CLASSES, counts, strict=True))).offsets)


def test_expectation_maximisation_recovers_shifted_frequencies() -> None:
    rng = np.random.default_rng(1)
    prior, means = np.array([0.6, 0.3, 0.08, 0.02]), np.array([0.0, 2.0, 4.0, 6.0])
    label = rng.choice(4, 20_000, p=prior)
    density = norm.pdf(rng.normal(means[label], 1)[:, None], means)
    even = density / density.sum(1, keepdims=True)
    found = estimate_prior(even, np.full(4, 0.25))
    np.testing.assert_allclose(found, prior, atol=0.02)
    # at the maximum of the likelihood the frequencies are the mean of the corrected probabilities
    names = dict(zip(CLASSES, found, strict=True))
    np.testing.assert_allclose(fit_prior(target=names).transform(even, CLASSES).mean(0), found, atol=1e-7)
    trained = np.array([0.1, 0.2, 0.3, 0.4])
    theirs = density * trained / (density * trained).sum(1, keepdims=True)
    np.testing.assert_allclose(estimate_prior(theirs, trained), found, atol=1e-5)


def test_expectation_maximisation_does_not_erase_a_class() -> None:
    given = predictions(12, 100)
    sure = np.eye(4)[np.arange(100) % 3]
    with pytest.raises(UserError, match="by the estimate no scan is 'normal'"):
        fit_prior(given.with_probabilities(sure * (1 - 4e-6) + 1e-6), "em")


def test_frequencies_that_do_not_settle_are_refused() -> None:
    nearly_even = np.repeat([[0.505, 0.495], [0.495, 0.505]], [51, 49], axis=0)
    with pytest.raises(UserError, match="did not settle in 10000 steps"):
        estimate_prior(nearly_even, np.array([0.5, 0.5]))


# guards


def refused(text: str, call: Callable[[], object]) -> None:
    with pytest.raises((UserError, ValueError), match=text):
        call()


def test_a_scan_that_was_fitted_on_is_not_judged() -> None:
    given, other = predictions(13, 60), predictions(14, 60)
    mixed = replace(other, scan=np.array([*other.scan[:-1], given.scan[7]]))
    for method in ("temperature", "offsets", "prior"):
        fitted = fit(method, given)
        apply(fitted, other)
        refused(
            f"1 of the 60 scans are among those that {method} was fitted on .13/7.", lambda f=fitted: apply(f, mixed)
        )
        refused("60 of the 60", lambda f=fitted: apply(f, given))


def test_what_cannot_be_fitted_or_applied_is_refused() -> None:
    given, other = predictions(15, 60), predictions(16, 60)
    bare = replace(given, probabilities=None)
    for method in ("temperature", "offsets"):
        refused("needs the prob_<class> columns", lambda m=method: fit(m, bare))
        refused("fitted on labelled validation scans", lambda m=method: fit(m))
    fitted = fit_temperature(given)
    refused("needs the prob_<class> columns", lambda: apply(fitted, replace(other, probabilities=None)))
    refused("fitted for the classes adeno, squamous, covid, normal", lambda: apply(fitted, predictions(1, 20, 3)))
    refused("method must be one of", lambda: fit("magic", given))  # type: ignore[arg-type]
    refused("temperature has no setting objective; it has none", lambda: fit("temperature", given, objective="gap"))
    refused("objective must be score or gap, got 'f1'", lambda: fit("offsets", given, objective="f1"))
    refused("max_loss belongs to the objective gap, got 0.1", lambda: fit("offsets", given, max_loss=0.1))
    refused(r"max_loss must be in \[0, 1\), got 1", lambda: fit("offsets", given, objective="gap", max_loss=1))
    refused("groups; there are scans of male only", lambda: fit_offsets(given.take(given.group == 0), "gap"))
    for method in ("offsets", "prior"):
        refused("class '?normal'?", lambda m=method: fit(m, given.take(given.label < 3)))
    refused("not the most probable class", lambda: fit_offsets(replace(given, prediction=given.label)))
    refused("not the most probable class", lambda: apply(fit_offsets(given), replace(other, prediction=other.label)))
    refused("no scan to post-process", lambda: fit_temperature(given.take(given.label > 9)))
    refused("no validation scans to take", lambda: fit_prior())
    refused("no scans are needed", lambda: fit_prior(given, dict.fromkeys(CLASSES, 1)))
    refused("target must be labels, em", lambda: fit_prior(given, "counts"))  # type: ignore[arg-type]
    refused("target frequency of covid must be above 0, got 0", lambda: fit_prior(target={"adeno": 1, "covid": 0}))
    refused("source must name a frequency for each", lambda: fit_prior(given, "em", {"adeno": 1.0}))
    assert given.probabilities is not None
    new = UnlabelledPredictions(given.scan, given.probabilities, CLASSES)
    refused("no labels to count", lambda: fit_prior(new))
    assert fit_prior(new, "em") == fit_prior(given, "em")


def test_a_fit_is_the_same_after_json_and_names_no_scan(tmp_path: Path) -> None:
    given = predictions(17, 60, name="patient-77")
    for method, settings in (
        ("temperature", {}),
        ("offsets", {"objective": "gap", "max_loss": 0.05}),
        ("prior", {"target": "em"}),
    ):
        fitted = fit(method, given, **settings)  # type: ignore[arg-type]
        path = tmp_path / f"{method}.json"
        fitted.save(path)
        assert load_fitted(path) == fitted
        assert "patient" not in path.read_text()
        assert len(fitted.scans) == 60 and {len(scan) for scan in fitted.scans} == {PREFIX}
        assert method in describe(fitted) and "fitted on 60 scans" in describe(fitted)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("[]", "is no saved post-processing"),
        ('{"method": "temperature"}', "missing"),
        ("{", "is no saved post-processing"),
        ("temperature", "temperature 0.0"),
        ("method", "method 'magic'"),
        ("offsets", "nan"),
    ],
)
def test_a_broken_fit_is_refused(content: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "fitted.json"
    fit_temperature(predictions(18, 60)).save(path)
    wrong = {"temperature": 0, "method": "magic", "offsets": {"a": float("nan"), "b": 0}}
    if content in wrong:
        content = json.dumps(json.loads(path.read_text()) | {content: wrong[content]})
    path.write_text(content)
    refused(text, lambda: load_fitted(path))
    refused("no such file", lambda: load_fitted(tmp_path / "other.json"))


# before and after


def test_before_and_after_equal_scikit_learn() -> None:
    before = predictions(19, 120)
    group = before.group.copy()
    group[100:] = -1
    before = replace(before, group=group)
    after = apply(fit_offsets(predictions(20, 120)), before)
    result = before_after(before, after, resamples=100)
    assert result.n == 100 and result.n_unknown == 20
    for when, table in (("before", before), ("after", after)):
        known = table.known()
        assert known.probabilities is not None
        p, gap = score_and_gap(known.label, known.prediction, known.group, 4)
        assert getattr(result.numbers["score"], when) == pytest.approx(p, abs=1e-12)
        assert getattr(result.numbers["abs_gap"], when) == pytest.approx(gap, abs=1e-12)
        assert abs(getattr(result.numbers["gap"], when)) == pytest.approx(gap, abs=1e-12)
        parts = (result.numbers, *(group.numbers for group in result.groups))
        for entry, inside in zip(parts, (known.group >= 0, known.group == 0, known.group == 1), strict=True):
            label, said, rows = known.label[inside], known.prediction[inside], known.probabilities[inside]
            assert getattr(entry["nll"], when) == pytest.approx(log_loss(label, rows, labels=range(4)), abs=1e-12)
            brier = ((rows - np.eye(4)[label]) ** 2).sum(1).mean()
            assert getattr(entry["brier"], when) == pytest.approx(brier, abs=1e-12)
            ece = expected_calibration_error(rows[np.arange(len(rows)), said], said == label)
            assert getattr(entry["ece"], when) == pytest.approx(float(ece), abs=1e-12)
        for g, entry in enumerate(result.groups):
            inside = known.group == g
            f1 = f1_score(known.label[inside], known.prediction[inside], labels=range(4), average="macro")
            assert getattr(entry.numbers["f1"], when) == pytest.approx(f1, abs=1e-12)
    a, b = before.known(), after.known()
    for g, entry in enumerate(result.groups):
        rows = (a.group == g) & (a.prediction != b.prediction)
        assert entry.moved.changed == rows.sum() > 0
        assert entry.moved.mended == (rows & (b.prediction == b.label)).sum()
        assert entry.moved.broken == (rows & (a.prediction == a.label)).sum()


def test_intervals_are_those_of_resampled_scans_taken_one_by_one() -> None:
    before = predictions(21, 60)
    after = apply(fit_prior(target=dict(zip(CLASSES, (1, 2, 3, 4), strict=True))), before)
    result = before_after(before, after, resamples=100, confidence=0.8, seed=5)
    counts = resample_counts(before.group * 4 + before.label, 100, np.random.default_rng(5)).astype(int)
    changes: dict[str, list[float]] = {"score": [], "abs_gap": [], "nll": [], "ece": []}
    for row in counts:
        drawn = np.repeat(np.arange(60), row)
        a, b = before.take(drawn), after.take(drawn)
        numbers = []
        for part in (a, b):
            assert part.probabilities is not None
            sure = part.probabilities[np.arange(60), part.prediction]
            ece = float(expected_calibration_error(sure, part.prediction == part.label))
            p, gap = score_and_gap(part.label, part.prediction, part.group, 4)
            numbers.append((p, gap, log_loss(part.label, part.probabilities, labels=range(4)), ece))
        for name, old, new in zip(changes, *numbers, strict=True):
            changes[name].append(new - old)
    for name, draws in changes.items():
        found = result.numbers[name].change
        value = found.value
        low, high = 2 * value - np.quantile(draws, [0.9, 0.1])
        assert (found.low, found.high) == pytest.approx((min(low, value), max(high, value)), abs=1e-12)


def test_nothing_changed_costs_nothing() -> None:
    given = predictions(22, 60)
    result = before_after(given, given, resamples=100)
    assert {number.change for number in result.numbers.values()} == {(0.0, 0.0, 0.0)}
    assert result.moved.changed == result.moved.broken == 0
    assert result.cost == ("None of these numbers got worse on the 60 scans.",)


def test_the_cost_names_what_got_worse_the_clear_first() -> None:
    def number(before: float, after: float, low: float, high: float) -> Change:
        return Change(before, after, Estimate(after - before, low, high))

    same, moved = number(0.5, 0.5, 0, 0), Moved(3, 1, 2)
    of_group = {"f1": number(0.8, 0.6, -0.3, -0.1), "nll": same, "brier": same, "ece": same}
    result = BeforeAfter(
        n=9,
        n_unknown=0,
        synthetic=False,
        class_names=CLASSES,
        group_names=("female",),
        confidence=0.9,
        numbers={
            "score": number(0.7, 0.9, 0.1, 0.3),  # better
            "gap": number(0.0, -0.3, -0.4, -0.2),  # has no worse side
            "abs_gap": number(0.0, 0.3, -0.1, 0.4),
        },
        groups=(GroupChange("female", 9, of_group, moved),),
        moved=moved,
    )
    assert cost(result) == (
        "F1 of female scans falls from 0.800 to 0.600 (90 % interval of the change -0.300 to -0.100).",
        "Right before and wrong now: 2 of the 9 scans (female 2); wrong before and right now: 1.",
        "|gap| rises from 0.000 to 0.300 (90 % interval of the change -0.100 to +0.400): "
        "cannot be told from no change.",
    )


def test_a_group_without_a_scan_has_no_row_of_its_own() -> None:
    given = predictions(28, 60)
    wider = replace(given, group_names=("male", "female", "third"))
    result = before_after(wider, wider, resamples=100)
    assert [group.group for group in result.groups] == ["male", "female"]
    assert "gap" not in result.numbers and "third" not in str(result.cost)


def test_before_and_after_must_be_the_same_scans() -> None:
    given = predictions(23, 60)
    refused("the same scans", lambda: before_after(given, predictions(24, 60)))
    refused("resamples must be at least 100, got 5", lambda: before_after(given, given, resamples=5))
    refused(r"confidence must be in \(0, 1\), got 95", lambda: before_after(given, given, confidence=95))
    unknown = replace(given, group=np.full(60, -1))
    refused("no scan has a known group", lambda: before_after(unknown, unknown))


# the command


def table(given: Predictions, path: Path, **more: object) -> Path:
    assert given.probabilities is not None
    sex = np.where(given.group < 0, "", np.array(given.group_names)[given.group])
    columns: dict[str, object] = {"patient": "Smith", "scan": given.scan, "label": np.array(CLASSES)[given.label]}
    columns |= {"sex": sex, "site": np.where(np.arange(len(sex)) % 2, "alder", "birch"), **more}
    columns["prediction"] = np.array(CLASSES)[given.prediction]
    columns |= {f"prob_{name}": given.probabilities[:, c].round(6) for c, name in enumerate(CLASSES)}
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


@pytest.fixture
def tables(tmp_path: Path) -> tuple[Path, Path, Path]:
    val, test = table(predictions(25, 80), tmp_path / "val.csv"), table(predictions(26, 80), tmp_path / "test.csv")
    return val, test, tmp_path / "out" / "new.csv"


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Callable:
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: CliRunner().invoke(app, ["postprocess", *(str(argument) for argument in arguments)])


@pytest.mark.parametrize("method", ["temperature", "offsets", "prior"])
def test_the_command_writes_a_marked_table_and_shows_the_cost(cli: Callable, tables, method: str) -> None:
    val, test, out = tables
    saved = out.with_name("fitted.json")
    done = cli(method, "--fit", val, "--apply", test, "-o", out, "--save", saved, "--resamples", 100)
    assert done.exit_code == 0, done.output
    assert "fitted on 80 scans" in done.output and "Before and after, 80 scans" in done.output
    assert "cost" in done.output and "Predictions that changed" in done.output
    written = pd.read_csv(out)
    columns = ["scan", "label", "sex", "prediction", *(f"prob_{name}" for name in CLASSES), "postprocess"]
    assert list(written) == columns  # no patient, no site
    assert set(written["postprocess"]) == {method}
    fitted = load_fitted(saved)
    expected = apply(fitted, load_predictions(test))
    found = load_predictions(out)
    np.testing.assert_array_equal(found.prediction, expected.prediction)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-7)
    first = out.read_bytes()
    again = cli(method, "--load", saved, "--apply", test, "-o", out)
    assert again.exit_code == 0, again.output
    assert out.read_bytes() == first


def test_the_command_takes_named_frequencies_and_unlabelled_scans(cli: Callable, tables, tmp_path: Path) -> None:
    val, test, out = tables
    numbers = [part for name, n in zip(CLASSES, (70, 10, 10, 10), strict=True) for part in ("--target", f"{name}={n}")]
    named = cli("prior", *numbers, "--apply", test, "-o", out)
    assert named.exit_code == 0, named.output
    assert "adeno 0.25 to 0.7" in named.output and "fitted on no scan" in named.output
    new = pd.read_csv(val).drop(columns=["label", "sex", "site", "patient"]).astype(object)
    new.loc[0, [column for column in new if column != "scan"]] = ""  # a scan that could not be read
    new.to_csv(tmp_path / "new_scans.csv", index=False)
    done = cli("prior", "--fit", tmp_path / "new_scans.csv", "--target", "em", "--apply", test, "-o", out)
    assert done.exit_code == 0, done.output
    assert "fitted on 79 scans, estimated without labels" in done.output


def test_the_command_keeps_every_group_column(cli: Callable, tables) -> None:
    val, test, out = tables
    arguments = ("--group-by", "sex", "--group-by", "site")
    done = cli("offsets", "--fit", val, "--apply", test, "-o", out, *arguments, "--resamples", 100)
    assert done.exit_code == 0, done.output
    assert "F1 female x birch" in done.output
    assert list(pd.read_csv(out))[:4] == ["scan", "label", "sex", "site"]


def test_the_command_refuses_what_would_mislead(cli: Callable, tables, tmp_path: Path) -> None:
    val, test, out = tables
    saved = tmp_path / "fitted.json"
    assert cli("temperature", "--fit", val, "--apply", test, "-o", out, "--save", saved).exit_code == 0
    unnamed = tmp_path / "unnamed.csv"
    pd.read_csv(val).drop(columns="scan").to_csv(unnamed, index=False)
    link = tmp_path / "link.csv"
    link.symlink_to(test)
    before = {path: path.read_bytes() for path in (val, test, saved)}
    fresh = tmp_path / "never.csv"
    fitted = ("--fit", val, "--apply", test, "-o")
    for text, arguments in {
        f"{test} is read as well": ("temperature", *fitted, test),
        f"{link} is read as well": ("temperature", *fitted, link),
        f"{val} is read as well": ("temperature", *fitted, fresh, "--save", val),
        f"{fresh} is written as well": ("temperature", *fitted, fresh, "--save", fresh),
        "80 of the 80 scans are among": ("temperature", "--fit", val, "--apply", val, "-o", fresh),
        "was post-processed before (temperature)": ("prior", "--fit", val, "--apply", out, "-o", fresh),
        "no column 'scan'": ("temperature", "--fit", unnamed, "--apply", test, "-o", fresh),
        "leave out --fit": ("temperature", "--load", saved, *fitted, fresh),
        "holds a fit of temperature, not of prior": ("prior", "--load", saved, "--apply", test, "-o", fresh),
        "give --fit with a table": ("offsets", "--apply", test, "-o", fresh),
        "has no setting target": ("temperature", *fitted, fresh, "--target", "em"),
        "target must be CLASS=FREQUENCY for each class, got 'covid=often'": (
            *("prior", "--apply", test, "-o", fresh, "--target", "covid=often"),
        ),
        "source names covid twice": ("prior", *fitted, fresh, "--source", "covid=1", "--source", "covid=2"),
        "no such file": ("temperature", "--fit", tmp_path / "none.csv", "--apply", test, "-o", fresh),
    }.items():
        done = cli(*arguments)
        assert done.exit_code == 1 and text in done.output, (text, done.output, done.exception)
        assert not fresh.exists()
    assert before == {path: path.read_bytes() for path in before}


def test_unlabelled_tables_are_checked(cli: Callable, tables, tmp_path: Path) -> None:
    _, test, out = tables
    bad = tmp_path / "bad.csv"
    for text, content in {
        "no prob_<class> columns": "scan,x\na,1\n",
        "no scan has probabilities": "scan,prob_a,prob_b\na,,\n",
        "'a' is there twice": "scan,prob_a,prob_b\na,0.5,0.5\na,0.5,0.5\n",
        "add up to 1": "scan,prob_a,prob_b\na,0.5,0.9\n",
    }.items():
        bad.write_text(content)
        done = cli("prior", "--fit", bad, "--target", "em", "--apply", test, "-o", out)
        assert done.exit_code == 1 and text in done.output, (text, done.output)


def test_a_hard_link_to_an_input_is_no_other_file(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("x")
    two.hardlink_to(one)
    refused("two is read as well", lambda: refuse_overwriting([one], [two]))
    refuse_overwriting([one], [tmp_path / "three"])


def test_offsets_are_found_by_the_pure_function_alone() -> None:
    log_p = log_softmax(np.array([[2.0, 0.0], [1.0, 0.0], [0.5, 0.0], [-1.0, 0.0]]), axis=1)
    label, group = np.array([0, 0, 1, 1]), np.zeros(4, dtype=np.int64)
    offsets = best_offsets(log_p, label, group)
    assert offsets[1] - offsets[0] == pytest.approx(0.75)  # halfway between the log odds 0.5 and 1
    assert offsets.sum() == pytest.approx(0)


def test_a_fit_is_plain_data() -> None:
    fitted = fit_offsets(predictions(27, 40))
    assert isinstance(fitted, Fitted)
    assert all(type(value) is float for value in fitted.offsets.values())
