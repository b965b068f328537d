"""The range that an augmentation works in: 8-bit grey levels where it moves voxels alone, [0, 1] for any other."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import (
    Compose,
    Cropd,
    EnsureTyped,
    Flipd,
    Lambdad,
    RandAxisFlipd,
    RandFlipd,
    RandRotate90d,
    Rotate90d,
)  # fmt: skip

from fairlung.transforms import RandBrightnessd

from ..common.volumes import cut_to_unit_range, unit_range

# These move voxels, drop some or leave them alone, so that a volume keeps its 8 bits to the device: a quarter to move.
KEEPING = (Cropd, Flipd, RandFlipd, RandAxisFlipd, Rotate90d, RandRotate90d, RandBrightnessd)


def keeps_grey_levels(transform: Callable) -> bool:
    """Whether a transform gives the voxels of an 8-bit volume as they were, at whatever place."""
    if isinstance(transform, EnsureTyped):
        return not any(transform.dtype)
    return isinstance(transform, KEEPING)


def to_unit_range() -> Callable:
    """Grey levels become [0, 1] in float32 (:func:`~.unit_range`)."""
    return Lambdad("image", unit_range, track_meta=False)


def in_unit_range(item: Mapping[Hashable, Any]) -> Mapping[Hashable, Any]:
    """The item with its float volume cut off at 0 and 1 (:func:`~.cut_to_unit_range`)."""
    image = torch.as_tensor(item["image"])
    if not image.is_floating_point():
        raise ValueError(f"the augmentation gave {image.dtype} after a transform that works in [0, 1]")
    return {**item, "image": cut_to_unit_range(image, "the augmentation")}


class Augmentation(Compose):
    """Transforms of ``image``, of which stock ones get the [0, 1] in float32 that they expect.

    Grey levels (uint8) go through the first ones as they are, as long as these only move voxels
    (:func:`keeps_grey_levels`). Before the first other one the volume becomes [0, 1] in float32, and what it is in the
    end is cut off at 0 and 1, as noise oversteps. A volume that is in another range altogether, or not finite, is a
    ValueError. Nothing is inserted, and no volume is looked at, where all transforms keep grey levels.

    What draws from torch's global random state, as TorchIO does, has to be seeded by the caller: ``stock`` says whether
    there is any other transform at all.
    """

    def __init__(self, transforms: Sequence[Callable] | Callable) -> None:
        steps = list(Compose(transforms).transforms)
        first = next((i for i, step in enumerate(steps) if not keeps_grey_levels(step)), len(steps))
        self.stock = first < len(steps)
        super().__init__([*steps[:first], to_unit_range(), *steps[first:], in_unit_range] if self.stock else steps)
