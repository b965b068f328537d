"""Scans on both sides of a split that may be of one patient: nearer to each other than any other scan is to either."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..common import run_folder
from ..common.files import replacing
from ..common.tables import frame_csv
from ..evaluation.resampling import Floats
from .features import FeatureError, Features

RATIO = 0.7  # of a pair's distance to that of the next scan; of other patients hardly any pair is below
LIMITS = (
    "Scans that were exported twice are found; of patients who were scanned twice only few are, so that no pair is no "
    "proof that there is none (docs/statistics.md)."
)
COMPONENTS = 40  # of the features of each kind, at most a third of the scans


@dataclass(frozen=True)
class Pair:
    """Two scans that may be of one patient; distances are 1 - cosine."""

    scan: str
    other: str
    label: str
    distance: float
    next: float  # to the nearest other scan of the class, of either one
    ratio: float


def embedded(features: Sequence[NDArray[np.floating]]) -> Floats:
    """[N, D] unit vectors of features of several kinds [N, D_k]: each standardised, whitened, and weighed alike.

    Whitened are the first principal components, so that the few directions in which all scans differ (disease, size)
    do not outweigh the many in which patients do.
    """
    parts = []
    for values in features:
        z = values - values.mean(0, dtype=float)
        sd = z.std(0)
        left, strength, _ = np.linalg.svd(z / np.where(sd > 0, sd, 1), full_matrices=False)
        rank = int((strength > 1e-6 * max(strength[0], 1e-12)).sum())
        left = left[:, : max(1, min(COMPONENTS, len(z) // 3, rank))]
        parts.append(left / np.maximum(np.linalg.norm(left, axis=1, keepdims=True), 1e-12))
    return np.concatenate(parts, axis=1) / np.sqrt(len(parts))


def near_duplicates(
    first: Features, second: Features, labels: tuple[Sequence[str], Sequence[str]], ratio: float = RATIO
) -> tuple[Pair, ...]:
    """The pairs of a scan of ``first`` and one of ``second`` that may be of one patient, the likeliest first.

    They are each other's nearest of the other side, within a class, and at most ``ratio`` times as far from each other
    as the nearest third scan of the class, of either side, is from one of them (Lowe's ratio test, 2004). How many of
    the true pairs that finds, and of others: docs/statistics.md. FeatureError where a scan is on both sides, or where
    the features are of two networks.
    """
    if both := sorted({*first.scan} & {*second.scan}):
        raise FeatureError(f"{len(both)} scans are on both sides, such as {both[0]}: name another split")
    if first.judged != second.judged:
        raise FeatureError(f"the features are of two networks: {first.judged}; {second.judged}")
    sides = [np.concatenate(pair) for pair in zip(first.kinds().values(), second.kinds().values(), strict=True)]
    n, vectors, label = len(first.scan), embedded(sides), np.concatenate(labels)
    distance = np.where(label[:, None] == label, np.maximum(1 - vectors @ vectors.T, 0), np.inf)
    np.fill_diagonal(distance, np.inf)
    across, found = distance[:n, n:], []
    for i, j in enumerate(across.argmin(1)):
        if across[:, j].argmin() != i or not np.isfinite(across[i, j]):
            continue
        others = np.delete(np.minimum(distance[i], distance[n + j]), [i, n + j])
        near, far = float(across[i, j]), float(others.min(initial=np.inf))
        if np.isfinite(far) and near <= ratio * far:
            share = near / far if far > 0 else 0.0
            found.append(Pair(str(first.scan[i]), str(second.scan[j]), str(label[i]), near, far, share))
    return tuple(sorted(found, key=lambda pair: (pair.ratio, pair.scan)))


def write_duplicates(folder: str | Path, pairs: Sequence[Pair]) -> Path:
    """duplicates.csv in an evaluation: a row a pair, none where there is none."""
    path = Path(folder, run_folder.DUPLICATES)
    columns = list(Pair.__dataclass_fields__)
    with replacing(path) as part:
        part.write_text(frame_csv(pd.DataFrame([asdict(pair) for pair in pairs], columns=columns)), encoding="utf-8")
    return path
