"""Are the probabilities right, group by group: reliability, expected calibration error, Brier score, and ROC AUC."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .patients import Clusters, chances, resample_scans
from .predictions import Ints, Predictions
from .records import Calibration, Chance, ReliabilityBin
from .resampling import TIE, Estimate, Floats, estimate, mean_interval, wilson

BINS = 10


def bin_of(confidence: Floats, bins: int = BINS) -> Ints:
    """Index of the equal-width bin of each confidence; a bin holds its right end, and the first also 0."""
    return np.clip(np.ceil(np.asarray(confidence) * bins).astype(np.int64) - 1, 0, bins - 1)


def expected_calibration_error(confidence: Floats, correct: NDArray[Any], bins: int = BINS) -> Floats:
    """ECE (Guo et al. 2017, Eq. 3), [...] in [0, 1]: mean over scans of |accuracy - mean confidence| of the scan's bin.

    It is above 0 on a finite sample of a perfectly calibrated model too. ``confidence`` [N] is the probability of the
    predicted class, ``correct`` [..., N] whether it was right; leading axes are resamples with these confidences.
    """
    surplus = np.asarray(correct, dtype=float) - confidence
    return np.abs(surplus @ np.eye(bins)[bin_of(confidence, bins)]).sum(-1) / len(confidence)


def reliability_curve(
    confidence: Floats, correct: NDArray[Any], level: float = 0.95, bins: int = BINS
) -> tuple[ReliabilityBin, ...]:
    """Each bin that holds a scan, with Wilson intervals of ``level``."""
    index = bin_of(confidence, bins)
    curve = []
    for inside in (index == b for b in np.unique(index)):
        hits, n = int(np.asarray(correct)[inside].sum()), int(inside.sum())
        right = wilson(hits, n, level)
        mean = float(np.asarray(confidence)[inside].mean())
        curve.append(ReliabilityBin(mean, right.value, right.low, right.high, n))
    return tuple(curve)


def auc_shares(label: Ints, probabilities: Floats) -> tuple[Floats, Floats]:
    """One-against-rest ROC AUC [C] of each class of ``probabilities`` [N, C], and each scan's share [N, C] in it.

    The AUC is the share of pairs of a positive and a negative scan in the right order, ties half (Mann and Whitney). A
    scan's share is the mean of its own pairs by the number of scans on its side, DeLong's structural component: those
    of the positives add up to the AUC, and so do those of the negatives. NaN without scans on both sides.
    """
    classes = probabilities.shape[1]
    areas, share = np.full(classes, np.nan), np.zeros((len(label), classes))
    for c in range(classes):
        positive, negative = np.flatnonzero(label == c), np.flatnonzero(label != c)
        if not len(positive) or not len(negative):
            continue
        above = np.sign(probabilities[positive, c][:, None] - probabilities[negative, c]) / 2 + 0.5
        areas[c] = above.mean()
        share[positive, c] = above.mean(1) / len(positive)
        share[negative, c] = above.mean(0) / len(negative)
    return areas, share


def variance_of_shares(stratum: Ints, share: Floats, patient: Ints | None = None) -> float:
    """DeLong's variance (DeLong et al. 1988) of the sum of the shares [N] of scans, whose number a stratum is fixed.

    NaN where a stratum has a single scan. With ``patient`` [N] the sum of a patient's shares varies (Obuchowski 1997).
    """
    scans = np.bincount(stratum)
    if scans.min() < 2:
        return float("nan")
    if patient is not None:
        off = share - (np.bincount(stratum, share) / scans)[stratum]
        of_patients = pd.Series(off).groupby(patient).sum().to_numpy()
        return float(len(of_patients) / max(1, len(of_patients) - 1) * (of_patients**2).sum())
    return float(sum(scans[c] * share[stratum == c].var(ddof=1) for c in range(len(scans))))


def auc_parts(label: Ints, probabilities: Floats, patient: Ints | None = None) -> tuple[Floats, float]:
    """:func:`auc_shares` of each class, and the variance of their mean with the numbers of scans a class as the design.

    NaN where a class has a single scan; with ``patient`` as :func:`variance_of_shares`.
    """
    areas, share = auc_shares(label, probabilities)
    return areas, variance_of_shares(label, share.sum(1) / len(areas), patient)


def auc_interval(
    label: Ints, probabilities: Floats, confidence: float = 0.95, patient: Ints | None = None, effect: float = 1.0
) -> Estimate:
    """Macro one-against-rest ROC AUC and its score interval: the areas t with (AUC - t)^2 <= z^2 s V(t).

    V is Hanley and McNeil's variance as Newcombe (2006, method 5) has it, of m positive and n negative scans::

        V(t) = t (1 - t) / (m n) * (1 + ((m + n) / 2 - 1) * ((1 - t) / (2 - t) + t / (1 + t)))

    with its root averaged over classes. It is above 0 without a single error, so that an AUC of 1 is no certainty and
    one just below has nearly the same interval, but it supposes scores of one shape in all classes. DeLong's variance D
    (:func:`auc_parts`) supposes nothing, but needs errors e to be known from: s = (e D / V(AUC) + 1) / (e + 1), with e
    twice the sum over classes of min(m, n) min(AUC, 1 - AUC). ``label`` [N] holds every class of ``probabilities``.

    With ``patient`` [N] and the design ``effect`` d (:meth:`.Clusters.design_effect`) e is divided by d, as d scans
    tell as much as one, and V is multiplied by it: s = (e / d D / V(AUC) + d) / (e / d + 1).
    """
    from scipy.stats import norm

    areas, variance = auc_parts(label, probabilities, patient)
    judged = slice(1, 2) if len(areas) == 2 else slice(None)  # of two classes the other AUC is the same
    areas, positives = areas[judged], np.bincount(label)[judged, None]
    negatives, value = len(label) - positives, float(areas.mean())

    def of_one_shape(t: Floats) -> Floats:
        alike = (1 - t) / (2 - t) + t / (1 + t)
        each = t * (1 - t) / (positives * negatives) * (1 + (len(label) / 2 - 1) * alike)
        return np.sqrt(each).mean(0) ** 2

    (expected,) = of_one_shape(np.array([value]))
    errors = 2 * float((np.minimum(positives, negatives)[:, 0] * np.minimum(areas, 1 - areas)).sum()) / effect
    known = np.isfinite(variance) and expected > 0
    scale = (errors * variance / expected + effect) / (errors + 1) if known else effect
    tried = 1 / (1 + np.exp(-np.linspace(-16, 16, 20_001)))
    z = norm.ppf(1 - (1 - confidence) / 2)
    inside = tried[(value - tried) ** 2 <= z**2 * scale * of_one_shape(tried)]
    ends = (inside[0], inside[-1]) if len(inside) else (value, value)
    return estimate(value, min(ends[0], value), max(ends[1], value))


def brier_interval(squares: Floats, counts: Floats, confidence: float = 0.95, effect: float = 1.0) -> Estimate:
    """The Brier score, the mean of the ``squares`` [N] of scans in [0, 2], with :func:`.mean_interval` of its half.

    The variance is over the resamples ``counts`` [B, N], and the errors are n min(half, 1 - half) by the design
    ``effect``. So neither a single scan of a class nor probabilities without an error pass for certainty.
    """
    n, half = len(squares), float(squares.mean()) / 2
    variance = float((counts @ squares / counts.sum(1)).var()) / 4
    errors = n * min(half, 1 - half) / effect
    return estimate(*(2 * part for part in mean_interval(half, n, variance, errors, confidence, effect)))


def ece_evidence(
    sure: Floats, correct: NDArray[np.bool_], counts: Floats, chances: Floats, confidence: float = 0.95,
    effect: float = 1.0,
) -> tuple[Estimate, Chance, float]:  # fmt: skip
    """ECE with its interval, what a calibrated model of these confidences shows, and the p-value of being calibrated.

    Chance makes an ECE larger, so its lower end is the ECE less what a calibrated model stays below with the given
    confidence: it is above 0 where p is at most 1 - confidence (but for Monte Carlo ties), and nowhere else. The upper
    end is the ECE plus what resamples ``counts`` [B, N] have above their mean. How often it holds the truth:
    benchmarks/intervals.py, docs/statistics.md. p = (1 + #{ECE* >= ECE}) / (1 + B) over samples of such a model, which
    is right where its confidence is above a number of ``chances`` [B, N], drawn evenly from [0, 1).

    ECE is at least |accuracy - mean confidence|. So the upper end is at least what this is at either end of Wilson's
    interval of the accuracy, with the design ``effect``; and the lower end is at least as far below the ECE as the
    accuracy is from its end on the side of the confidence. Else one scan, or probabilities of 0 and 1, which are the
    same in all resamples and samples, would be certain.
    """
    bins, value = np.eye(BINS)[bin_of(sure)], float(expected_calibration_error(sure, correct))
    drawn = np.abs((counts * (correct - sure)) @ bins).sum(1) / counts.sum(1)
    chance = expected_calibration_error(sure, chances < sure)
    p_value = (1 + int((chance >= value - TIE).sum())) / (1 + len(chance))
    most = float(np.quantile(chance, confidence))
    above = float(np.quantile(drawn, 1 - (1 - confidence) / 2) - drawn.mean())
    right, mean = wilson(int(correct.sum()), len(correct), confidence, effect), float(sure.mean())
    least = right.high - right.value if mean > right.value else right.value - right.low
    low = max(0.0, value - max(most, least)) if p_value <= 1 - confidence else 0.0
    furthest = max(abs(right.low - mean), abs(right.high - mean))
    ends = estimate(value, low, min(1.0, max(value + above, value, furthest)))
    return ends, Chance(float(chance.mean()), most), p_value


def group_calibration(
    predictions: Predictions, rng: np.random.Generator, resamples: int = 2000, confidence: float = 0.95
) -> dict[str, Calibration]:
    """AUC and calibration of each group that has a scan; nothing without probabilities."""
    found: dict[str, Calibration] = {}
    if predictions.probabilities is None:
        return found
    classes = len(predictions.class_names)
    patients = Clusters.of(predictions)
    for g, name in enumerate(predictions.group_names):
        inside = predictions.group == g
        if not inside.any():
            continue
        label, probabilities = predictions.label[inside], predictions.probabilities[inside]
        said = predictions.prediction[inside]
        sure, correct = probabilities[np.arange(len(said)), said], said == label
        patient = predictions.patient[inside] if patients and predictions.patient is not None else None
        counts = resample_scans(label, patient, resamples, rng)
        at_random = chances(len(sure), patient, patients.correlation if patients else 0.0, resamples, rng)
        effect = float(patients.design_effect(patients.patterns.sum((1, 2)))[g]) if patients else 1.0
        every_class = len(np.unique(label)) == classes
        squares = ((probabilities - np.eye(classes)[label]) ** 2).sum(1)
        ece, chance, p_value = ece_evidence(sure, correct, counts, at_random, confidence, effect)
        found[name] = Calibration(
            auc_interval(label, probabilities, confidence, patient, effect) if every_class else None,
            brier_interval(squares, counts, confidence, effect),
            ece,
            chance,
            float(sure.mean()),
            reliability_curve(sure, correct, confidence),
            p_value,
        )
    return found
