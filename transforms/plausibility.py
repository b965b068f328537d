"""Are these values HU, and is this a chest: checks of the slices that were read."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from .scan import Refusal
from .tolerances import (
    AIR_BELOW_HU,
    LEVEL_SPREAD,
    LUNG_SHARE,
    MASKED_SHARE,
    MAX_FAR_OUT_OF_RANGE,
    MAX_OUT_OF_RANGE,
    MIN_AIR,
    MIN_CONTRAST,
    MIN_TISSUE,
    PADDING_HU,
    PADDING_SPREAD_HU,
    RANGE_HU,
    TISSUE_HU,
    TWO_LEVELS,
)

PIXELS = 128  # of a slice's side that the checks look at, about
CHEST_SLICES = 16  # in which lungs are looked for, at least, where there are as many


def thinned(volume: np.ndarray) -> np.ndarray:
    """Every k-th pixel of each slice: checks need the anatomy, not every voxel."""
    steps = [max(1, round(side / PIXELS)) for side in volume.shape[1:]]
    return volume[:, :: steps[0], :: steps[1]]


def check_hu(hu: np.ndarray) -> list[str]:
    """Whether values can be HU of a CT, with warnings: air and soft tissue are there, and few values out of range.

    Marked padding counts for nothing, nor does a lowest value below the range, which scanners leave in the corners.

    Args:
        hu: [n, H, W], padding is :data:`PADDING_HU`.

    Raises:
        Refusal: values are not finite, all the same, or have neither air nor soft tissue where HU have them.
    """
    if not np.isfinite(hu).all():
        raise Refusal("it holds voxels that are not finite numbers")
    known = hu_of(thinned(hu))
    if known.size == 0 or known.min() == known.max():
        raise Refusal("all voxels are the same")
    span = f"values are {known.min():g} to {known.max():g}; is it a CT in HU?"
    air = float(((known > RANGE_HU[0]) & (known < AIR_BELOW_HU)).mean())
    if air < MIN_AIR:
        raise Refusal(f"{air:.1%} of the voxels are {RANGE_HU[0]:g} to {AIR_BELOW_HU:g} (air, lung), {span}")
    tissue = float(((known > TISSUE_HU[0]) & (known < TISSUE_HU[1])).mean())
    if tissue < MIN_TISSUE:
        raise Refusal(f"{tissue:.1%} of the voxels are {TISSUE_HU[0]:g} to {TISSUE_HU[1]:g} (soft tissue), {span}")
    outside = float(((known < RANGE_HU[0]) | (known > RANGE_HU[1])).mean())
    said = f"{outside:.1%} of the voxels are outside {RANGE_HU[0]:g} to {RANGE_HU[1]:g} HU"
    if outside > MAX_FAR_OUT_OF_RANGE:
        raise Refusal(f"{said}, {span}")
    told = [f"hu_range: {said}"] if outside > MAX_OUT_OF_RANGE else []
    return told + _blank(int((hu.min(axis=(1, 2)) == hu.max(axis=(1, 2))).sum()))


def _corners(volume: np.ndarray) -> np.ndarray:
    """The four corners of each slice: [n, 4]."""
    return volume[:, [0, 0, -1, -1], [0, -1, 0, -1]]


def _blank(slices: int) -> list[str]:
    return [f"blank_slices: {slices} slices show nothing"] if slices else []


def hu_of(hu: np.ndarray) -> np.ndarray:
    """The values [k] without padding, marked or of one (perhaps blurred) level below the range."""
    known = hu[hu > PADDING_HU]
    low = known[known < RANGE_HU[0]]
    if low.size and low.std() <= PADDING_SPREAD_HU:
        return known[known >= RANGE_HU[0]]
    return known if not low.size else known[known > known.min()]


def check_grey(counts: np.ndarray) -> list[str]:
    """Whether 8-bit slices ([n, 256], :func:`grey_counts`) show anything, with warnings; Refusal of one grey."""
    low, high = grey_percentiles(counts.sum(axis=0), [1, 99])
    if high - low < MIN_CONTRAST:
        raise Refusal(f"its slices are all but one grey (levels {low:g} to {high:g})")
    levels = np.array([grey_percentiles(each, [1, 99]) for each in counts])
    return _blank(int((levels[:, 1] - levels[:, 0] < MIN_CONTRAST).sum()))


def check_levels(counts: np.ndarray) -> list[str]:
    """A warning where all but a few pixels ([256] of each level) have one of two levels, as those of masks have."""
    share, left = 0.0, counts / counts.sum()
    for _ in range(2):
        level = int(left.argmax())
        near = slice(max(0, level - LEVEL_SPREAD), level + LEVEL_SPREAD + 1)
        share += float(left[near].sum())
        left[near] = 0
    return [f"two_levels: {share:.1%} of the pixels have one of two levels; are these masks?"] * (share > TWO_LEVELS)


def grey_counts(grey: np.ndarray) -> np.ndarray:
    """[n, 256] pixels of each level in each of n 8-bit slices [n, H, W], of the pixels that checks look at."""
    return np.stack([np.bincount(plane.ravel(), minlength=256) for plane in thinned(grey)])


def grey_percentiles(counts: np.ndarray, percents: Sequence[float]) -> np.ndarray:
    """``np.percentile`` of the pixels that were counted, many times faster than sorting them."""
    up_to = np.cumsum(counts)
    places = np.asarray(percents) / 100 * (up_to[-1] - 1)
    below = np.floor(places).astype(np.int64)
    low = np.searchsorted(up_to, below, side="right")
    high = np.searchsorted(up_to, np.minimum(below + 1, up_to[-1] - 1), side="right")
    return low + (places - below) * (high - low)


def lung_shares(air: np.ndarray) -> tuple[float, float]:
    """How much of the body's volume is air inside it, to the right and to the left of its middle.

    The body is the largest region of a slice that is not air. Outside is the air that reaches a corner of the slice: a
    lung that a tight crop has opened to the edge is inside. Air inside is lung, airway or bowel.

    Args:
        air: [n, H, W] bool, W from right to left.
    """
    inside = np.zeros_like(air)
    size = 0
    left, right = air.shape[2], 0
    for k, plane in enumerate(air):
        labels, count = ndimage.label(~plane)
        if not count:
            continue
        body = labels == 1 + np.bincount(labels.ravel())[1:].argmax()
        around, regions = ndimage.label(~body)
        reaches_corner = np.zeros(regions + 1, dtype=bool)
        reaches_corner[around[[0, 0, -1, -1], [0, -1, 0, -1]]] = True
        reaches_corner[0] = False  # the body
        outside = reaches_corner[around]
        inside[k] = plane & ~body & ~outside
        size += int((~outside).sum())
        columns = np.flatnonzero(body.any(axis=0))
        left, right = min(left, int(columns[0])), max(right, int(columns[-1]) + 1)
    if not size:
        return 0.0, 0.0
    middle = (left + right) // 2
    return float(inside[..., :middle].sum() / size), float(inside[..., middle:].sum() / size)


def check_chest(volume: np.ndarray, air_below: float) -> list[str]:
    """Warnings where no two large regions of air are seen inside a body (:func:`lung_shares`), or no air is around it.

    A body within bright air would pass for lungs within a body: inverted is what has no air in its corners and shows a
    chest when air and tissue change places. And so would lungs that somebody has cut out on a bright ground, which has
    exactly one value.

    Args:
        volume: [n, H, W], W from right to left.
        air_below: values below are air or lung.
    """
    seen = thinned(volume[:: max(1, len(volume) // CHEST_SLICES)])
    air = seen < air_below
    if _corners(air).mean() < 0.5 and min(lung_shares(~air)) >= LUNG_SHARE:
        return ["inverted: a chest is seen where the dark is taken for tissue; is air shown bright?"]
    around = float(np.median(_corners(seen)))
    share = float((seen == around).mean())
    told = []
    if around >= air_below and share > MASKED_SHARE:
        told.append(f"masked: {share:.0%} of the voxels are exactly {around:g}, as the corners are; what was cut away?")
    if min(lung_shares(air)) >= LUNG_SHARE:
        return told
    return [*told, "no_chest: no two large regions of air inside a body are seen; is it a chest?"]


def air_of_grey(counts: np.ndarray) -> int:
    """The level below which 8-bit slices of unknown window show air: above Otsu's threshold of all of them.

    Args:
        counts: [n, 256], see :func:`grey_counts`.
    """
    counts = counts.sum(axis=0).astype(float)
    levels = np.arange(256)
    below, mass = np.cumsum(counts), np.cumsum(counts * levels)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (mass / below - (mass[-1] - mass) / above) ** 2
    return int(np.nanargmax(between)) + 1
