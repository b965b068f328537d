"""Temperature scaling against scikit-learn and grids; what cannot be fitted or applied is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from noisy_predictions import CLASSES, predictions, refused
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from fairlung.pipeline.common.errors import UserError
from fairlung.pipeline.postprocessing.fit import apply, fit, fit_temperature
from fairlung.pipeline.postprocessing.fitted import (
    UnlabelledPredictions,
)
from fairlung.pipeline.postprocessing.offsets import fit_offsets
from fairlung.pipeline.postprocessing.prior import fit_prior


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
    # C is as good as infinite: scikit-learn 1.8 warns of np.inf
    model = LogisticRegression(C=1e12, fit_intercept=False, tol=1e-10).fit(odds[:, None], given.label)
    assert 1 / fit_temperature(given).temperature == pytest.approx(model.coef_[0, 0], rel=1e-5)


class _Given(ClassifierMixin, BaseEstimator):
    """A fitted classifier whose features are its probabilities."""

    def __init__(self) -> None:
        self.classes_ = np.arange(4)

    def fit(self, probabilities: np.ndarray, label: np.ndarray) -> _Given:
        return self

    def predict_proba(self, probabilities: np.ndarray) -> np.ndarray:
        return probabilities

    def predict(self, probabilities: np.ndarray) -> np.ndarray:
        return probabilities.argmax(1)


@pytest.mark.parametrize("sharp", [0.3, 1.0, 4.0])
def test_temperature_is_scikit_learns(sharp: float) -> None:
    given, other = predictions(2, 400, sharp=sharp), predictions(3, 100, sharp=sharp)
    assert given.probabilities is not None and other.probabilities is not None
    model = CalibratedClassifierCV(FrozenEstimator(_Given()), method="temperature")
    model.fit(given.probabilities, given.label)
    fitted = fit_temperature(given)
    assert fitted.temperature == pytest.approx(1 / model.calibrated_classifiers_[0].calibrators[0].beta_, rel=1e-4)
    expected = model.predict_proba(other.probabilities)
    np.testing.assert_allclose(apply(fitted, other).probabilities, expected, atol=1e-4)


def test_why_no_temperature_is_best_is_said() -> None:
    rng = np.random.default_rng(0)
    given = predictions(3, 155)
    noise = replace(given, label=(given.prediction + rng.integers(1, 4, 155) * (rng.random(155) < 0.9)) % 4)
    for label, why in ((noise.label, "than chance"), (given.prediction, "the surer every answer is")):
        hits = int((label == given.prediction).sum())
        other, words = replace(given, label=label), rf"still rises at .*{why}.*\. {hits} of the 155"
        refused(words, lambda other=other: fit_temperature(other))


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
