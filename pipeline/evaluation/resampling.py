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


def check_resampling(confidence: float, resamples: int, permutations: int | None = None) -> None:
    """ValueError when a setting of the intervals and tests is out of range."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    for name, draws in (("resamples", resamples), ("permutations", permutations)):
        if draws is not None and draws < 100:
            raise ValueError(f"{name} must be at least 100, got {draws}")


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
    low, high = map(float, proportion_confint(hits / effect, n / effect, alpha=1 - confidence, method="wilson"))
    return Estimate(hits / n, min(low, hits / n), max(high, hits / n))
