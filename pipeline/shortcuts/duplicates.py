"""Scans on both sides of a split that may be of one patient: nearer to each other than any other scan is to either."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from monai.engines import SupervisedEvaluator
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from fairlung.transforms.checks import check_setting

from ..common import run_folder
from ..common.distributed import is_primary
from ..common.files import encoded, replacing
from ..common.tables import frame_csv
from ..data.cohort import Cohort
from ..evaluation.audit_words import duplicate_text
from ..evaluation.records import NearDuplicate, NearDuplicates, to_plain
from ..evaluation.resampling import Floats
from ..networks.checkpoint import said_of
from .features import FeatureError, Features, FeatureWriter, features_of_split, load_features

logger = logging.getLogger(__name__)

RATIO = 0.7  # of a pair's distance to that of the next scan; of other patients hardly any pair is below
COMPONENTS = 40  # of the features of each kind, at most a third of the scans
LISTED = 20  # pairs in the log


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


def near_duplicates(first: Features, second: Features, split: str, ratio: float = RATIO) -> NearDuplicates:
    """The pairs of a scan of ``first`` and one of ``second`` that may be of one patient, the likeliest first.

    They are each other's nearest of the other side, within a class, and at most ``ratio`` times as far from each other
    as the nearest third scan of the class, of either side, is from one of them (Lowe's ratio test, 2004). How many of
    the true pairs that finds, and of others: docs/statistics.md. ``split`` is what ``second`` is called. FeatureError
    where a scan is on both sides, or where the features are of two networks.
    """
    if both := sorted({*first.scan} & {*second.scan}):
        raise FeatureError(f"{len(both)} scans are on both sides, such as {both[0]}: name another split")
    if first.judged != second.judged:
        raise FeatureError(f"the features are of two networks: {first.judged}; {second.judged}")
    sides = [np.concatenate(pair) for pair in zip(first.kinds().values(), second.kinds().values(), strict=True)]
    n, vectors, label = len(first.scan), embedded(sides), np.concatenate([first.label, second.label])
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
            two = bool(first.cohort == second.cohort and first.patient_known[i] and second.patient_known[j])
            found.append(NearDuplicate(str(first.scan[i]), str(second.scan[j]), str(label[i]), near, far, share, two))
    pairs = tuple(sorted(found, key=lambda pair: (pair.ratio, pair.scan)))
    return NearDuplicates(split, n, len(second.scan), ratio, pairs)


class DuplicateSearch:
    """Looks for the patients of the judged scans in another split of the cohort, at the end of an evaluation.

    The network, and the untrained one, run once over the other split's scans, as they are judged; the features are kept
    in ``<output_dir>/<split>/features.npz``, for the next search with this checkpoint and cohort.

    Args:
        features: saves those of the judged scans.
        evaluator: judges them; its loader and ``prepare_batch`` serve the others too.
        cohort: of both splits.
        split: the judged one.
        other: the one to search; None searches none.

    Raises:
        ValueError: ``other`` is the judged split, or has no scan.
    """

    def __init__(
        self, features: FeatureWriter, evaluator: SupervisedEvaluator, cohort: Cohort, split: str,
        other: str | None = None,
    ) -> None:  # fmt: skip
        check_setting("duplicates", other, other != split, "another split than the judged one")
        self.features, self.evaluator, self.other = features, evaluator, other
        self.output_dir = features.path.parents[2]
        if other is not None:
            self.dataset = evaluator.data_loader.dataset.with_data(cohort.items(other))

    def prepare(self, num_workers: int = 0) -> None:
        """Read the other scans, unless their features are known, so that a broken one shows before any is judged."""
        if self.other is not None and self._known() is None:
            self.dataset.prepare(num_workers, f"reading {self.other} scans")

    def find(self) -> NearDuplicates | None:
        """The pairs, also as duplicates.csv beside the predictions and, if there are any, a warning in the log."""
        if self.other is None or not is_primary():
            return None
        others = self._known()
        if others is None:
            path = Path(self.output_dir, self.other, run_folder.FEATURES)
            self.features.write_others(path, self._batches())
            others = load_features(path)
        found = near_duplicates(load_features(self.features.path), others, self.other)
        write_duplicates(self.features.path.parent, found)
        if found.pairs:
            shown = "; ".join(map(duplicate_text, found.pairs[:LISTED]))
            more = f"; and {len(found.pairs) - LISTED} more" if len(found.pairs) > LISTED else ""
            logger.warning("scans that may be of one patient, judged and in %s: %s%s", self.other, shown, more)
        return found

    def _known(self) -> Features | None:
        """Those that an earlier run left of these scans, this checkpoint and cohort."""
        judged, cohort = self.features.judged(), self.features.cohort.digest
        try:
            kept = features_of_split(self.output_dir, str(self.other), judged)
        except FeatureError:  # none, or damaged ones
            return None
        same = (kept.judged, kept.cohort) == (judged, cohort) and judged != said_of({})  # which is of no known run
        scans = [encoded(item["scan"]).decode() for item in self.dataset.data]
        return kept if same and kept.scan.tolist() == scans else None

    def _batches(self) -> Iterator[tuple[Tensor, Mapping[str, Any]]]:
        loader = self.evaluator.data_loader
        others = DataLoader(
            self.dataset, batch_size=loader.batch_size, num_workers=loader.num_workers,
            multiprocessing_context=loader.multiprocessing_context,
        )  # fmt: skip
        for batch in tqdm(others, desc=f"features of {self.other}", unit="batch", leave=False, disable=None):
            yield self.evaluator.prepare_batch(batch, self.evaluator.state.device)[0], batch


def write_duplicates(folder: str | Path, found: NearDuplicates) -> Path:
    """duplicates.csv in an evaluation: a row a pair, none where there is none."""
    path = Path(folder, run_folder.DUPLICATES)
    rows = pd.DataFrame([to_plain(pair) for pair in found.pairs], columns=list(NearDuplicate.__dataclass_fields__))
    with replacing(path) as part:
        part.write_text(frame_csv(rows), encoding="utf-8")
    return path
