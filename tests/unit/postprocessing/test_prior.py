"""Prior correction is Bayes' rule, and expectation maximisation finds the frequencies."""

from __future__ import annotations

import numpy as np
import pytest
from noisy_predictions import CLASSES, predictions
from scipy.stats import norm

from fairlung.pipeline.common.errors import UserError
from fairlung.pipeline.postprocessing.prior import estimate_prior, fit_prior


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
