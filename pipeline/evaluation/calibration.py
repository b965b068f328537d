"""Are the probabilities right, group by group: reliability, expected calibration error, Brier score, and ROC AUC."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .patients import Clusters, chances, resample_scans
from .predictions import Ints, Predictions
from .records import Calibration, Chance, ReliabilityBin
from .resampling import Floats, estimate_from

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
    from statsmodels.stats.proportion import proportion_confint

    index = bin_of(confidence, bins)
    curve = []
    for inside in (index == b for b in np.unique(index)):
        hits, n = int(np.asarray(correct)[inside].sum()), int(inside.sum())
        low, high = map(float, proportion_confint(hits, n, alpha=1 - level, method="wilson"))
        curve.append(ReliabilityBin(float(np.asarray(confidence)[inside].mean()), hits / n, low, high, n))
    return tuple(curve)


def auc_of_resamples(
    label: Ints, probabilities: Floats, counts: Floats, rng: np.random.Generator, patient: Ints | None = None
) -> Floats:
    """Macro one-against-rest ROC AUC [B] of each resample, from the Mann-Whitney statistic with repeated scans.

    Resamples of a class that is perfectly separated are all separated, which would make its AUC of 1 a certainty. Its
    k = min(positives, negatives) disjoint pairs are k independent successes without a failure: its area is drawn from
    Beta(k, 1), whose lower quantiles are the exact bounds of Clopper and Pearson (1934). All separated classes get the
    same chance, as classes of one group are not independent.

    ``label`` [N] holds every class of ``probabilities`` [N, C], and so does each resample of ``counts`` [B, N]. With
    ``patient`` [N] pairs are of patients.
    """
    areas, chance = [], rng.random(len(counts))
    whose = np.arange(len(label)) if patient is None else patient
    for c in range(probabilities.shape[1]):
        positive, negative = np.flatnonzero(label == c), np.flatnonzero(label != c)
        if probabilities[positive, c].min() > probabilities[negative, c].max():
            areas.append(chance ** (1 / min(len(np.unique(whose[positive])), len(np.unique(whose[negative])))))
            continue
        above = np.sign(probabilities[positive, c][:, None] - probabilities[negative, c]) / 2 + 0.5
        won = ((counts[:, positive] @ above) * counts[:, negative]).sum(1)
        areas.append(won / (counts[:, positive].sum(1) * counts[:, negative].sum(1)))
    return np.mean(areas, axis=0)


def group_calibration(
    predictions: Predictions, rng: np.random.Generator, resamples: int = 2000, confidence: float = 0.95
) -> dict[str, Calibration]:
    """AUC and calibration of each group that has a scan; nothing without probabilities."""
    from sklearn.metrics import roc_auc_score

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
        drawn = counts.sum(1)
        squares = ((probabilities - np.eye(classes)[label]) ** 2).sum(1)
        auc = None
        if len(np.unique(label)) == classes:
            judged = [1] if classes == 2 else range(classes)  # of two classes the other AUC is the same
            value = float(np.mean([roc_auc_score(label == c, probabilities[:, c]) for c in judged]))
            every = counts[(counts @ np.eye(classes)[label] > 0).all(1)]  # a class may be of a patient of several alone
            auc = estimate_from(auc_of_resamples(label, probabilities, every, rng, patient), value, confidence)
        bins = np.eye(BINS)[bin_of(sure)]
        error = float(expected_calibration_error(sure, correct))
        # Resampling adds chance, which makes the ECE larger; the basic bootstrap mirrors it at the observed one.
        eces = np.clip(2 * error - np.abs((counts * (correct - sure)) @ bins).sum(1) / drawn, 0, 1)
        at_random = chances(len(sure), patient, patients.correlation if patients else 0.0, resamples, rng)
        chance = expected_calibration_error(sure, at_random < sure)
        found[name] = Calibration(
            auc,
            estimate_from(counts @ squares / drawn, float(squares.mean()), confidence),
            estimate_from(eces, error, confidence),
            Chance(float(chance.mean()), float(np.quantile(chance, 0.95))),
            float(sure.mean()),
            reliability_curve(sure, correct, confidence),
        )
    return found
