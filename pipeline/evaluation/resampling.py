"""What every interval here is made of: resamples, their percentiles, and the range of its settings."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
TIE = 1e-12  # smaller differences come of adding up the same fractions in another order


class Estimate(NamedTuple):
    value: float
    low: float
    high: float


class CheckedEstimate(NamedTuple):
    """An estimate, and the same number computed by scikit-learn through fairlearn."""

    value: float
    low: float
    high: float
    by_fairlearn: float


Interval = Estimate | CheckedEstimate


def estimate(value: Any, low: Any, high: Any) -> Estimate:
    """An :class:`Estimate` of Python's floats."""
    return Estimate(float(value), float(low), float(high))


def check_resampling(
    confidence: float, resamples: int, permutations: int | None = None, min_cell: int | None = None
) -> None:
    """ValueError when a setting of the intervals and tests is out of range."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    for name, draws in (("resamples", resamples), ("permutations", permutations)):
        if draws is not None and draws < 100:
            raise ValueError(f"{name} must be at least 100, got {draws}")
    if min_cell is not None and min_cell < 1:
        raise ValueError(f"min_cell must be at least 1, got {min_cell}")


def resample_counts(strata: NDArray[np.int64], resamples: int, rng: np.random.Generator) -> Floats:
    """Bootstrap resamples within strata, as how often each item was drawn: [B, N]."""
    counts = np.zeros((resamples, len(strata)))
    for stratum in np.unique(strata):
        items = np.flatnonzero(strata == stratum)
        counts[:, items] = rng.multinomial(len(items), np.full(len(items), 1 / len(items)), size=resamples)
    return counts


def interval(
    draws: Floats, observed: Floats | float, confidence: float = 0.95, shift: Floats | float = 0.0
) -> tuple[Floats, Floats]:
    """Percentile interval over the first axis, moved by ``shift`` and widened to hold what was observed."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0) + shift
    return np.minimum(low, observed), np.maximum(high, observed)


def estimate_from(draws: Floats, observed: float, confidence: float = 0.95) -> Estimate:
    """What was observed, with the :func:`interval` of its draws."""
    return estimate(observed, *interval(draws, observed, confidence))


def wilson(hits: float, n: float, confidence: float = 0.95, effect: float = 1.0) -> Estimate:
    """A proportion with its Wilson score interval (statsmodels); no scan gives 0 in [0, 1].

    ``effect`` is how many scans tell as much as one of as many patients (:meth:`.Clusters.design_effect`).
    """
    from statsmodels.stats.proportion import proportion_confint

    if n == 0:
        return Estimate(0.0, 0.0, 1.0)
    ends = proportion_confint(hits / effect, n / effect, alpha=1 - confidence, method="wilson")
    low, high = map(float, np.clip(ends, 0, 1))  # a rounding error outside them in statsmodels before 0.15
    return Estimate(hits / n, min(low, hits / n), max(high, hits / n))


def mean_interval(
    value: float, n: int, variance: float, errors: float, confidence: float = 0.95, effect: float = 1.0
) -> Estimate:
    """A mean in [0, 1] over ``n`` scans, with Wilson's interval as if it were a proportion.

    Of all such means a proportion has the largest variance E = value (1 - value) / n. The ``variance`` V over resamples
    is nearer, but too small where hardly an error was seen, and 0 of a single scan or patient. So E is scaled as far as
    there are ``errors`` e to know V from: by (e V / E + effect) / (e + 1), with the design ``effect`` as in
    :func:`wilson`.
    """
    value = min(max(value, 0.0), 1.0)
    expected, scale = value * (1 - value) / n, effect
    if expected > TIE:
        scale = (errors * variance / expected + effect) / (errors + 1)
    return wilson(value * n, n, confidence, scale)


def newcombe(hits: Floats, n: Floats, confidence: float = 0.95, effect: Floats | float = 1.0) -> Estimate:
    """Difference of two proportions ``hits / n`` [2], first minus second, by Newcombe (1998, method 10).

    Of the :func:`wilson` intervals of both: v -+ sqrt(d1^2 + d2^2), d the distance of each to its end on that side.
    ``effect`` [2] is how many scans tell as much as one of as many patients.
    """
    each = zip(hits, n, np.broadcast_to(effect, 2), strict=True)
    first, second = (wilson(hit, of, confidence, scale) for hit, of, scale in each)
    value = first.value - second.value
    low = value - np.hypot(first.value - first.low, second.high - second.value)
    return estimate(value, low, value + np.hypot(first.high - first.value, second.value - second.low))


def partly_pooled(
    hits: Floats, n: Floats, confidence: float = 0.95, spreads: int = 40, means: int = 200
) -> NDArray[np.object_]:
    """Estimates [G, C] of shares that are alike between the groups of a class, as far as all classes say so.

    Of hits [G, C] out of n, the share of group g and class c is drawn from Beta(m_c k, (1 - m_c) k): with k large the
    groups of a class are alike. The means m_c are uniform in [0, 1], and so is s = 1 / sqrt(1 + k), the spread over
    groups as a part of the largest possible one (Gelman 2006 on uniform priors of spreads). Both are summed over a
    grid, so that the interval counts not knowing them; the posterior, a mixture of betas, is taken for the beta of its
    mean and variance. A share without a trial is None.
    """
    from scipy.special import betaln, logsumexp
    from scipy.stats import beta

    s = (np.arange(spreads) + 0.5) / spreads
    k = (1 / s**2 - 1)[:, None, None, None]
    total, hit = n.sum(0), hits.sum(0)  # a class's means where its likelihood is, at even quantiles of a wide beta
    wide = np.minimum(1.0, 4.0 / np.maximum(total, 1))
    quantiles = (np.arange(means) + 0.5) / means
    a, b = 1 + wide * hit, 1 + wide * (total - hit)
    m = beta.ppf(quantiles[:, None], a, b)[None, :, None, :]  # [S, M, G, C] of all from here
    prior = -beta.logpdf(m, a, b)[..., 0, :]  # undoes the uneven grid
    first, second = m * k, (1 - m) * k
    likelihood = (betaln(first + hits, second + n - hits) - betaln(first, second)).sum(2) + prior  # [S, M, C]
    of_class = logsumexp(likelihood, axis=1)  # [S, C]
    spread = of_class.sum(1)
    weight = np.exp(likelihood - of_class[:, None] + (spread - logsumexp(spread))[:, None, None])[:, :, None]
    size = first + second + n
    mean = (first + hits) / size
    value = (weight * mean).sum((0, 1))
    variance = (weight * (mean * (1 - mean) / (size + 1) + mean**2)).sum((0, 1)) - value**2
    strength = value * (1 - value) / variance - 1
    tail = (1 - confidence) / 2
    low, high = (beta.ppf(q, value * strength, (1 - value) * strength) for q in (tail, 1 - tail))
    low, high = np.minimum(low, value), np.maximum(high, value)  # of a beta in a corner, at a low confidence
    found = np.empty(n.shape, dtype=object)
    for at in np.argwhere(n > 0):
        found[tuple(at)] = estimate(*(part[tuple(at)] for part in (value, low, high)))
    return found
