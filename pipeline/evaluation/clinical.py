"""What readers of clinical papers look for, by group: missed and false diagnoses, sensitivity, AUPRC, ES-AUC."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.groups import MIN_CELL
from . import records
from .calibration import auc_interval, auc_shares
from .patients import Clusters, resample_scans
from .predictions import Ints, Predictions
from .records import ByGroup, GroupContrast, GroupNumber
from .resampling import TIE, Estimate, Floats, estimate, interval, mean_interval, newcombe, wilson

NORMAL = ("normal", "healthy", "no finding")  # names of the class of those who have no disease
SPECIFICITY = 0.9
CHUNK = 4_000_000  # weights of scans that are drawn at a time, which bounds memory
Flags = NDArray[np.bool_]


def normal_class(class_names: Sequence[str], asked: str | None = None) -> str | None:
    """The class of those who have no disease: the one ``asked`` for, else the only one that is named as in NORMAL."""
    if asked is not None:
        if asked not in class_names:
            raise ValueError(f"normal must be one of the classes {', '.join(class_names)}, got {asked!r}")
        return asked
    alike = [name for name in class_names if name.casefold().replace("_", " ").replace("-", " ") in NORMAL]
    return alike[0] if len(alike) == 1 else None


def clinical(
    known: Predictions, rng: np.random.Generator, resamples: int = 2000, confidence: float = 0.95,
    normal: str | None = None, specificity: float = SPECIFICITY, min_cell: int = MIN_CELL,
) -> records.Clinical:  # fmt: skip
    """All of it, of scans of known group; ``normal`` is the class of that name, by default as :func:`normal_class`."""
    normal = normal_class(known.class_names, normal)
    patients = Clusters.of(known)
    index = None if normal is None else known.class_names.index(normal)
    of_points, of_retrieval = rng.spawn(2)
    points = []
    if known.probabilities is not None:
        targets: list[tuple[str | None, Flags, Floats]] = [
            (name, known.label == c, known.probabilities[:, c]) for c, name in enumerate(known.class_names)
        ]
        if index is not None:
            targets = [(None, known.label != index, 1 - known.probabilities[:, index])]
        points = [
            operating_point(known, *target, own, resamples, confidence, specificity, min_cell, patients)
            for own, target in zip(of_points.spawn(len(targets)), targets, strict=True)
            if min(target[1].sum(), (~target[1]).sum()) >= min_cell
        ]
    return records.Clinical(
        None if index is None else diagnosis(known, index, confidence, min_cell, patients),
        tuple(points),
        retrieval(known, of_retrieval, resamples, confidence, min_cell, patients),
        equity_scaled_auc(known),
    )


# ---- missed and false diagnoses --------------------------------------------------------------------------------------
def diagnosis(
    known: Predictions, normal: int, confidence: float, min_cell: int, patients: Clusters | None
) -> records.Diagnosis:
    """Underdiagnosis and overdiagnosis of each group (Seyyed-Kalantari et al. 2021), ``normal`` an index.

    Of the scans of other classes the share that was called normal, and of the normal ones that which was not. Wilson's
    intervals, and for a difference Newcombe's (1998, method 10) of the two. With ``patients`` both take the scans for
    fewer (:meth:`.Clusters.design_effect`), by the correlation of a patient's scans in this question.
    """
    ill = np.arange(len(known.class_names)) != normal
    counts = _two_classes(known.confusion()[:-1], ill)
    effects = np.ones((len(counts), 2))
    if patients is not None:
        own = Clusters(_two_classes(patients.patterns, ill), patients.count)
        effects = own.design_effect(own.patterns.sum(2))

    def rate(side: int) -> ByGroup:
        hits, n = counts[:, side, 1 - side], counts[:, side].sum(-1)
        found = tuple(
            GroupNumber(name, int(n[g]), wilson(hits[g], n[g], confidence, effects[g, side]) if n[g] else None,
                        bool(n[g] < min_cell))
            for g, name in enumerate(known.group_names)
        )  # fmt: skip
        return ByGroup(found, _furthest(
            found, confidence,
            lambda a, b, level: newcombe(hits[[a, b]], n[[a, b]], level, effects[[a, b], side]),
        ))  # fmt: skip

    return records.Diagnosis(known.class_names[normal], rate(1), rate(0))


def _two_classes(counts: NDArray[Any], ill: Flags) -> NDArray[Any]:
    """Counts [..., C, C] as [..., 2, 2]: not ``ill`` and ill."""
    sides = np.stack([~ill, ill]).astype(float)
    return sides @ counts @ sides.T


def _furthest(found: Sequence[GroupNumber], confidence: float, difference: Any) -> GroupContrast | None:
    """The difference of the only two groups that are not small, in their order, or of the two furthest apart.

    Its interval then holds with all pairs looked at (Bonferroni).
    """
    at = [g for g, one in enumerate(found) if one.value is not None and not one.small]
    pairs = list(combinations(at, 2))
    if not pairs:
        return None
    values = [0.0 if one.value is None else one.value.value for one in found]
    a, b = max(pairs, key=lambda pair: abs(values[pair[0]] - values[pair[1]]))
    if len(pairs) > 1 and values[b] > values[a]:
        a, b = b, a
    estimated = difference(a, b, 1 - (1 - confidence) / len(pairs))
    return GroupContrast(found[a].group, found[b].group, estimated)


# ---- sensitivity at a fixed specificity ------------------------------------------------------------------------------
def threshold_at(score: Floats, weights: Floats, below: Floats, total: Floats, specificity: float) -> Floats:
    """The lowest of the ``score`` [N] above which at most 1 - specificity of the weight lies, in each draw [B].

    ``weights`` [B, N] are of these negative scans; ``below`` [B] of what lies below all of them, ``total`` of all.
    """
    order = np.argsort(score, kind="stable")
    ordered = score[order]
    share = (weights[:, order].cumsum(1) + below[:, None]) / total[:, None]
    last = np.append(ordered[1:] != ordered[:-1], True)  # of equal scores all lie on one side
    enough = (share >= specificity - TIE) & last
    first = np.where(enough.any(1), enough.argmax(1), len(score) - 1)
    return ordered[first]


def operating_point(
    known: Predictions, target: str | None, positive: Flags, score: Floats, rng: np.random.Generator,
    resamples: int = 2000, confidence: float = 0.95, specificity: float = SPECIFICITY, min_cell: int = MIN_CELL,
    patients: Clusters | None = None,
) -> records.OperatingPoint:  # fmt: skip
    """Sensitivity and specificity of each group at the threshold that gives all scans together ``specificity``.

    The threshold is the lowest score [N] of a negative scan above which at most 1 - specificity of all negative scans
    lie. The intervals are about the threshold that does so in the population, so each draw chooses it anew: a Bayesian
    bootstrap (Rubin 1981), where a scan, or a patient with all of them, has the weight of an exponential variable, and
    the scans of each group on either side keep their number. Half a scan below and half a scan above every score are
    added to each (of a patient's scans, which correlate, that much more: :meth:`.Clusters.bootstrap`), so that a share
    at a given threshold is drawn from Jeffreys' distribution and one of 1 is no certainty.
    """
    groups, sides = len(known.group_names), positive.astype(np.int64)
    n = np.zeros((groups, 2), dtype=np.int64)
    np.add.at(n, (known.group, sides), 1)
    one = np.ones((1, len(score)))
    observed, at = _shares(known.group, sides, score, one, np.zeros((1, groups, 2, 2)), n, specificity)
    unit, scans = _worth(known, sides, n, patients)
    drawn = []
    size = max(1, CHUNK // len(score))
    for start in range(0, resamples, size):
        b = min(size, resamples - start)
        weights = _exponential(b, len(score), known.patient if patients else None, rng)
        extra = rng.gamma(unit[..., None] / 2, size=(b, groups, 2, 2)) * scans[..., None]
        drawn.append(_shares(known.group, sides, score, weights, extra, n, specificity)[0])
    draws = np.concatenate(drawn)

    def number(side: int) -> ByGroup:
        shown, of = (1 - observed[0, :, 0], 1 - draws[:, :, 0]) if side == 0 else (observed[0, :, 1], draws[:, :, 1])
        found = tuple(
            GroupNumber(name, int(n[g, side]),
                        estimate(shown[g], *interval(of[:, g], shown[g], confidence)) if n[g, side] else None,
                        bool(n[g, side] < min_cell))
            for g, name in enumerate(known.group_names)
        )  # fmt: skip

        def difference(a: int, b: int, level: float) -> Estimate:
            value = shown[a] - shown[b]
            return estimate(value, *interval(of[:, a] - of[:, b], value, level))

        return ByGroup(found, _furthest(found, confidence, difference))

    reached = float((score[~positive] <= at[0]).mean())
    return records.OperatingPoint(target, specificity, reached, float(at[0]), number(1), number(0))


def _shares(
    group: Ints, sides: Ints, score: Floats, weights: Floats, extra: Floats, n: Ints, specificity: float
) -> tuple[Floats, Floats]:
    """Share above the threshold of each group and side [B, G, 2], and the threshold [B]; ``extra`` [B, G, 2, below and
    above]."""
    cells = [(g, s, np.flatnonzero((group == g) & (sides == s))) for g in range(len(n)) for s in (0, 1)]
    total = np.zeros((len(weights), *n.shape))
    for g, s, inside in cells:
        total[:, g, s] = weights[:, inside].sum(1) + extra[:, g, s].sum(1)
    scale = np.divide(n, total, out=np.zeros_like(total), where=total > 0)
    negative = np.flatnonzero(sides == 0)
    below = (scale[:, :, 0] * extra[:, :, 0, 0]).sum(1)
    all_negative = np.full(len(weights), float(n[:, 0].sum()))
    at = threshold_at(
        score[negative], weights[:, negative] * scale[:, group[negative], 0], below, all_negative, specificity
    )
    shares = np.zeros_like(total)
    for g, s, inside in cells:
        above = ((score[inside] > at[:, None]) * weights[:, inside]).sum(1) + extra[:, g, s, 1]
        shares[:, g, s] = np.divide(above, total[:, g, s], out=np.zeros(len(above)), where=total[:, g, s] > 0)
    return shares, at


def _worth(known: Predictions, sides: Ints, n: Ints, patients: Clusters | None) -> tuple[Floats, Floats]:
    """As how many patients one scan of each group and side counts [G, 2], and how many scans a patient has there."""
    if patients is None or known.patient is None:
        return np.ones(n.shape), np.ones(n.shape)
    owners = np.zeros(n.shape)
    of_patients = np.unique(np.stack([known.group, sides, known.patient]), axis=1)
    np.add.at(owners, (of_patients[0], of_patients[1]), 1)
    scans = np.divide(n, owners, out=np.ones(n.shape), where=owners > 0)
    return patients.correlation + (1 - patients.correlation) / scans, scans


def _exponential(draws: int, scans: int, patient: Ints | None, rng: np.random.Generator) -> Floats:
    """Weights [B, N] of a Bayesian bootstrap of scans, or of patients with all their scans."""
    if patient is None:
        return rng.standard_exponential((draws, scans))
    ids, of = np.unique(patient, return_inverse=True)
    return rng.standard_exponential((draws, len(ids)))[:, of]


# ---- areas under curves ----------------------------------------------------------------------------------------------
def average_precisions(positive: Flags, score: Floats, counts: Floats) -> Floats:
    """Average precision [B] of scans that were drawn ``counts`` [B, N] times: scikit-learn's, for all draws at once.

    The mean over positive scans of the precision among the scans whose score is at least theirs.
    """
    order = np.argsort(-score, kind="stable")
    ordered, drawn = score[order], counts[:, order]
    last = np.append(ordered[1:] != ordered[:-1], True)
    hits, taken = (drawn * positive[order]).cumsum(1)[:, last], drawn.cumsum(1)[:, last]
    precision = np.divide(hits, taken, out=np.zeros_like(hits), where=taken > 0)
    return (np.diff(hits, axis=1, prepend=0) * precision).sum(1) / hits[:, -1]


def average_precision(
    positive: Flags, score: Floats, counts: Floats, confidence: float = 0.95, effect: float = 1.0
) -> Estimate:
    """Average precision A with Wilson's interval, as if it were a proportion of the m positive scans.

    So have it Boyd et al. (2013), with the plain binomial interval. Its variance A (1 - A) / m is too large where A is
    known, so it is :func:`.mean_interval` with the variance over the resamples ``counts`` (:func:`.resample_scans`),
    m min(A, 1 - A) / 2 errors, and the design ``effect`` of the positive scans.
    """
    from sklearn.metrics import average_precision_score

    m, value = int(positive.sum()), float(average_precision_score(positive, score))
    parts = np.array_split(counts, 1 + counts.size // CHUNK)
    drawn = np.concatenate([average_precisions(positive, score, part) for part in parts])
    errors = m * min(value, 1 - value) / 2 / effect
    return mean_interval(value, m, float(drawn.var()), errors, confidence, effect)


def retrieval(
    known: Predictions, rng: np.random.Generator, resamples: int, confidence: float, min_cell: int,
    patients: Clusters | None,
) -> tuple[records.Retrieval, ...]:  # fmt: skip
    """:func:`average_precision` and AUC of each class in each group with ``min_cell`` scans of it and as many others.

    Nothing without probabilities.
    """
    found: list[records.Retrieval] = []
    for g, c in np.ndindex(len(known.group_names), len(known.class_names)):
        inside = known.group == g
        positive = known.label[inside] == c
        n = int(positive.sum())
        if known.probabilities is None or min(n, len(positive) - n) < min_cell:
            continue
        score, sides = known.probabilities[inside, c], positive.astype(np.int64)
        patient, of_all, of_class = None, 1.0, 1.0
        if patients is not None and known.patient is not None:
            patient = known.patient[inside]
            of_all = float(patients.design_effect(patients.patterns.sum((1, 2)))[g])
            of_class = float(patients.design_effect(patients.patterns.sum(2)[:, c])[g])
        area = auc_interval(sides, np.stack([1 - score, score], 1), confidence, patient, of_all)
        counts = resample_scans(sides, patient, resamples, rng)
        precision = average_precision(positive, score, counts, confidence, of_class)
        found.append(
            records.Retrieval(known.group_names[g], known.class_names[c], n, n / len(positive), precision, area)
        )
    return tuple(found)


def equity_scaled_auc(known: Predictions) -> records.EquityScaledAuc | None:
    """AUC / (1 + sum over groups of |AUC - AUC of the group|), macro one against rest (Luo et al., FairVision, 2023).

    The noise of the groups' AUCs lowers it too, so that it is lower on few scans, whatever the model: no interval holds
    for it. None without probabilities, or where a group lacks a class.
    """
    if known.probabilities is None:
        return None
    inside = [known.group == g for g in range(len(known.group_names))]
    if any(len(np.unique(known.label[of])) < len(known.class_names) for of in inside):
        return None
    overall, *areas = (
        float(auc_shares(known.label[of], known.probabilities[of])[0].mean()) for of in (slice(None), *inside)
    )
    return records.EquityScaledAuc(overall / (1 + sum(abs(overall - area) for area in areas)), overall)
