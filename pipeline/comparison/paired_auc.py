"""The AUCs of two systems on the same scans, by DeLong's covariance."""

from collections.abc import Sequence

import numpy as np

from ..evaluation.calibration import auc_shares, variance_of_shares
from ..evaluation.predictions import Ints, Predictions
from ..evaluation.resampling import TIE, Estimate, Floats
from .paired import Distance, Spread
from .records import AucDifference

LEAST_SCANS = 30  # or patients, in a class, and outside of it: below, an interval of unequal AUCs covers .81-.92


def auc_differences(
    a: Sequence[Predictions], b: Sequence[Predictions], confidence: float = 0.95, seeds: bool = False,
    patient: Ints | None = None,
) -> tuple[AucDifference, ...]:  # fmt: skip
    """AUC of system ``b`` minus that of ``a``, means over their runs: of the mean over classes, and of each class.

    All tables hold the same scans in one order. With DeLong's components of a scan (:func:`.auc_shares`) the difference
    is a sum over scans, and its variance that of these sums (DeLong et al. 1988): for a class the numbers of its scans
    and of the others are the design, for the mean those of every class. With ``patient`` [N] it is over patients
    (Obuchowski 1997). The normal interval leaves out 0 where p < 1 - ``confidence``; with ``seeds`` both are t, and
    chance is in the runs too (:func:`.distance`).

    Nothing is said of a class with fewer than LEAST_SCANS scans (or patients, with ``patient``) or others, of the mean
    where some class has fewer, nor where no scan tells the two apart. Two classes have one AUC, which the mean is.
    """
    classes = a[0].class_names
    if any(run.probabilities is None for run in (*a, *b)):
        return ()
    label, found = a[0].label, []
    areas, shares = zip(*(_areas_and_shares(runs) for runs in (a, b)), strict=True)
    owner = np.arange(len(label)) if patient is None else patient
    enough = np.array([
        min(len(np.unique(owner[label == c])), len(np.unique(owner[label != c]))) >= LEAST_SCANS
        for c in range(len(classes))
    ])  # fmt: skip
    judged: list[tuple[str | None, Ints, list[Floats], list[Floats]]] = []
    if enough.all():
        judged.append((None, label, [area.mean(-1) for area in areas], [share.mean(-1) for share in shares]))
    if len(classes) > 2:
        for c in np.flatnonzero(enough):
            stratum = (label == c).astype(np.int64)
            judged.append((classes[c], stratum, [area[:, c] for area in areas], [part[..., c] for part in shares]))
    for name, stratum, area, share in judged:
        moved = auc_distance(area, share, stratum, seeds, patient)
        if moved.spread.error()[0] > TIE:
            ends = moved.estimate(confidence)
            held = Estimate(ends.value, max(ends.low, -1.0), min(ends.high, 1.0))
            found.append(AucDifference(name, held, moved.test()))
    return tuple(found)


def _areas_and_shares(runs: Sequence[Predictions]) -> tuple[Floats, Floats]:
    """Of R runs, [R, C] and [R, N, C]."""
    parts = [auc_shares(run.label, run.probabilities) for run in runs if run.probabilities is not None]
    return np.stack([areas for areas, _ in parts]), np.stack([share for _, share in parts])


def auc_distance(
    area: Sequence[Floats], share: Sequence[Floats], stratum: Ints, seeds: bool, patient: Ints | None
) -> Distance:
    """Of the AUCs [R] of each system's runs, with the shares [R, N] of the scans; the parts are :func:`.distance`'s."""
    value = float(area[1].mean() - area[0].mean())
    scans = variance_of_shares(stratum, share[1].mean(0) - share[0].mean(0), patient)
    if not seeds:
        return Distance(value, Spread(scans, ()))
    for runs in share:
        single = np.mean([variance_of_shares(stratum, run, patient) for run in runs])
        scans -= float(single - variance_of_shares(stratum, runs.mean(0), patient)) / (len(runs) - 1)
    return Distance(value, Spread(max(scans, 0.0), tuple((float(own.var(ddof=1)), len(own)) for own in area)))
