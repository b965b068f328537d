"""Choosing axial slices: trim the ends, sample a fixed number, or keep all up to a maximum.

Trimming and sampling are the published loader's rules, to the index.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, Transform

from .checks import check_whole

MIN_SLICES_TO_TRIM = 6


def trim_indices(depth: int, fraction: float) -> np.ndarray:
    """Indices left when ``fraction`` (in [0, 0.5)) of D slices is dropped at each end (paper, Sec. 3.2).

    They are int64 ``[int(fraction D), int((1 - fraction) D))``; all when D <= 5, the middle one where the rule would
    leave none.
    """
    if depth < MIN_SLICES_TO_TRIM:
        return np.arange(depth)
    start, stop = int(depth * fraction), int(depth * (1 - fraction))
    return np.arange(start, stop) if start < stop else np.array([depth // 2])


def sample_indices(depth: int, num_slices: int) -> np.ndarray:
    """int64 [num_slices] indices spread evenly from 0 to ``depth`` - 1, truncated; they repeat when D is smaller."""
    return np.linspace(0, depth - 1, num_slices).astype(np.int64)


class SliceSelector(Transform, ABC):
    """A rule that chooses slices from their number alone, so that a loader can apply it before it decodes anything."""

    @abstractmethod
    def indices(self, depth: int) -> np.ndarray:
        """Indices of the chosen slices out of ``depth``."""

    def __call__(self, volume: NdarrayOrTensor) -> NdarrayOrTensor:
        """Select along the depth axis of a channel-first volume [1, D, H, W]."""
        if volume.ndim != 4:
            raise ValueError(
                f"volume must be channel-first with 4 dimensions [1, D, H, W], got shape {tuple(volume.shape)}"
            )
        return volume[:, self.indices(volume.shape[1])]


class TrimSlices(SliceSelector):
    """Drop a fraction of the slices at each end: neck and shoulders, upper abdomen.

    Args:
        fraction: in [0, 0.5).

    Example:
        >>> TrimSlices(0.1).indices(10)
        array([1, 2, 3, 4, 5, 6, 7, 8])
    """

    def __init__(self, fraction: float = 0.1) -> None:
        if not 0 <= fraction < 0.5:
            raise ValueError(f"fraction must be in [0, 0.5), got {fraction}")
        self.fraction = float(fraction)

    def indices(self, depth: int) -> np.ndarray:
        return trim_indices(_checked(depth), self.fraction)


class SampleSlices(SliceSelector):
    """Sample a fixed number of slices, evenly spread.

    Example:
        >>> SampleSlices(4).indices(10)
        array([0, 3, 6, 9])
    """

    def __init__(self, num_slices: int) -> None:
        check_whole("num_slices", num_slices, least=1)
        self.num_slices = num_slices

    def indices(self, depth: int) -> np.ndarray:
        return sample_indices(_checked(depth), self.num_slices)


class FirstSlices(SliceSelector):
    """Keep the first ``max_slices`` slices, all of a shorter scan.

    A longer volume with a geometry loses its superior end (LPS: the first slice is the most inferior), a slice folder
    its last files.

    Example:
        >>> FirstSlices(4).indices(10)
        array([0, 1, 2, 3])
        >>> FirstSlices(4).indices(3)
        array([0, 1, 2])
    """

    def __init__(self, max_slices: int) -> None:
        check_whole("max_slices", max_slices, least=1)
        self.max_slices = max_slices

    def indices(self, depth: int) -> np.ndarray:
        return np.arange(min(_checked(depth), self.max_slices))


def _checked(depth: int) -> int:
    if depth < 1:
        raise ValueError(f"a volume needs at least 1 slice, got {depth}")
    return depth


class _SelectSlicesd(MapTransform):
    """Dictionary wrapper of a :class:`SliceSelector`."""

    def __init__(self, keys: KeysCollection, selector: SliceSelector, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.selector = selector

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.selector(d[key])
        return d


class TrimSlicesd(_SelectSlicesd):
    """Dictionary version of :class:`TrimSlices`."""

    def __init__(self, keys: KeysCollection, fraction: float = 0.1, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, TrimSlices(fraction), allow_missing_keys)


class SampleSlicesd(_SelectSlicesd):
    """Dictionary version of :class:`SampleSlices`."""

    def __init__(self, keys: KeysCollection, num_slices: int, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, SampleSlices(num_slices), allow_missing_keys)


class FirstSlicesd(_SelectSlicesd):
    """Dictionary version of :class:`FirstSlices`."""

    def __init__(self, keys: KeysCollection, max_slices: int, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, FirstSlices(max_slices), allow_missing_keys)
