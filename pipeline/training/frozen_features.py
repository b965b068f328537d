"""The features of a cohort's scans, computed once and cached: what a head is trained on in seconds."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from monai.transforms import Compose, Lambda
from torch.utils.data import Subset

from ..common.distributed import is_first_here
from ..common.volumes import unit_range
from ..data.augmentation import Augmentation
from ..data.dataset import Attempts, ScanDataset, one_by_one, scan_fingerprint, transform_digest
from ..data.pseudonyms import Pseudonyms
from ..data.sampling import Draw
from ..data.volume_cache import VolumeCache
from ..networks.frozen import FrozenBody

LOCK = ".features.lock"  # in the cache folder: two runs do not compute the same features at once


class FeatureDataset(ScanDataset):
    """Items of a split whose ``image`` is a row of features [D] instead of a volume.

    The first row of a scan is of its test-time crop, ``views`` more are each of one draw of the augmentation; they are
    cached like volumes, under the scan, the preprocessing, the augmentation and the body's weights. An item that is
    indexed by a :class:`~.Draw` is one of the rows, drawn by its seed, else the first. The draws of a scan's views
    depend on its voxels alone.

    Args:
        data, preprocessing, augmentation, cache_dir, in_memory, cache_limit, pseudonyms: as of :class:`~.ScanDataset`;
            ``cache_dir`` must be given.
        body: of the network.
        center_crop: the test-time crop.
        views: augmented views of each scan, 0 for scans that are not trained on.
    """

    def __init__(
        self, data: Sequence[Mapping[str, Any]], preprocessing: Sequence[Callable] | Callable, body: FrozenBody,
        center_crop: Sequence[Callable], augmentation: Sequence[Callable] | Callable = (), views: int = 0,
        cache_dir: str | Path | None = None, in_memory: bool = True, cache_limit: float | None = None,
        pseudonyms: Pseudonyms | None = None,
    ) -> None:  # fmt: skip
        if not cache_dir:
            raise ValueError("frozen features are cached: cache_dir must name a folder")
        super().__init__(data, preprocessing, augmentation, cache_dir, in_memory, cache_limit, pseudonyms)
        self._read_by = (
            preprocessing, body, center_crop, augmentation, views, cache_dir, in_memory, cache_limit, self.pseudonyms
        )  # fmt: skip
        self.body, self.views, self.crop = body, views, Augmentation(center_crop)
        self.scans = self.cached
        described = [str(self.scans.transform_hash), body.weights_name, body.name, body.precision, self.crop]
        key = transform_digest([*described, *([views, self.transform] if views else [])])  # type: ignore[list-item]
        self._index = {item["image"]: index for index, item in enumerate(self.scans.data)}
        self.cached = VolumeCache(
            data=self.scans.data,
            transform=Compose([Lambda(self._features)]),
            cache_dir=cache_dir,
            fingerprint=scan_fingerprint,
            hash_transform=lambda _: key,
            limit=cache_limit,
            mapped=not in_memory,
        )
        self.volumes = self.cached

    def prepare(
        self, num_workers: int = 0, description: str = "reading scans", intake: str | Path = ""
    ) -> dict[str, str]:
        """:meth:`ScanDataset.prepare`; scans without cached features are read first, by ``num_workers`` processes."""
        if not is_first_here():
            return super().prepare(0, description, intake)
        with FileLock(Path(self.cached.cache_dir or ".", LOCK)):
            paths = [self.cached.path(index) for index in range(len(self))]
            missing = [index for index, path in enumerate(paths) if path is None or not path.is_file()]
            if missing and num_workers:
                for _ in one_by_one(Subset(Attempts(self.scans), missing), num_workers):
                    pass  # a scan that cannot be read is told of below
            return super().prepare(0, description, intake)

    def volume(self, index: int) -> Any:
        return self.crop(self.scans[index])["image"]

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, Draw):
            return super().__getitem__(index)
        return self._row(index.index, np.random.RandomState(index.seed).randint(1 + self.views))

    def _transform(self, index: int) -> Any:
        return self._row(index, 0)

    def _row(self, index: int, row: int) -> dict[str, Any]:
        return {**self.data[index], "image": self.volumes[index]["image"][row]}

    def _features(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """What is known of a scan, with the features [1 + views, D] in the place of its volume."""
        scan = self.scans[self._index[item["image"]]]
        rows = [self._row_of(self.crop(scan))]
        for view in range(self.views):
            with self.seeded(int(scan["digest"][:7], 16) + view):
                rows.append(self._row_of(self.transform(scan)))
        return {**scan, "image": torch.stack(rows)}

    def _row_of(self, item: Mapping[str, Any]) -> torch.Tensor:
        brightness = torch.as_tensor(item["brightness"]) if "brightness" in item else None
        return self.body(unit_range(torch.as_tensor(item["image"])[None], brightness))[0]
