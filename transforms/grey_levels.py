"""Volumes as 8-bit grey levels, and their brightness as a number beside them until they are in float again."""

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.transforms import RandScaleIntensityd


def to_grey_levels(volume: torch.Tensor) -> torch.Tensor:
    """Values in [0, 1] as uint8: ``255 x``, rounded half up and cut off at 0 and 255; the inverse divides by 255.

    Example:
        >>> to_grey_levels(torch.tensor([0.0, 0.5, 1.0, 2.0]))
        tensor([  0, 128, 255, 255], dtype=torch.uint8)
    """
    levels = torch.as_tensor(volume).as_subclass(torch.Tensor) * 255
    return levels.add_(0.5).clamp_(0, 255.5).to(torch.uint8)  # the conversion truncates


class RandBrightnessd(RandScaleIntensityd):
    """Draw a volume's brightness, a factor from ``1 + factors``, and leave the volume as it is.

    An 8-bit volume keeps its 8 bits on its way to the device; ``fairlung.pipeline.common.unit_range`` applies the
    factor there. The draw is that of MONAI's ``RandScaleIntensityd`` with the same random state.

    Args:
        factors: range (low, high) that is added to 1, or x for (-x, x).
        prob: how often a factor is drawn; else it is 1.
        key: where the factor is put, float32 [1].
    """

    def __init__(self, factors: tuple[float, float] | float, key: str = "brightness", prob: float = 1.0) -> None:
        super().__init__(keys=key, factors=factors, prob=prob)
        self.key = key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        drawn = super().__call__({**data, self.key: torch.ones(1)})
        return {**drawn, self.key: torch.as_tensor(drawn[self.key]).as_subclass(torch.Tensor)}
