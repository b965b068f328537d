"""Facts about volumes that several rooms share: padding, their range."""

import torch
from torch import Tensor

PADDING = -1.0  # value of the slices that fill a volume up; any negative value is taken for it


def slice_counts(image: Tensor) -> list[int]:
    """How many slices of each volume are real, not padding.

    Args:
        image: [N, 1, D, H, W], real slices in [0, 1], then slices of negative values (:data:`PADDING`).

    Raises:
        ValueError: the shape is another, a volume has no real slice, or a real slice follows padding.
    """
    if image.ndim != 5 or image.shape[1] != 1:
        raise ValueError(f"image must have the shape [N, 1, D, H, W], got {tuple(image.shape)}")
    real = ~(image[:, 0].amax((2, 3)) < 0)  # a slice with NaN is real: it must show in the loss
    counts = real.sum(dim=1)
    ordered = real == (torch.arange(image.shape[2], device=image.device) < counts[:, None])
    numbers, well_formed = torch.stack([counts, ordered.all(dim=1).long()]).tolist()
    if not all(well_formed):
        raise ValueError(f"image: volume {well_formed.index(0)} of the batch has a real slice after a padded one")
    if not all(numbers):
        raise ValueError(f"image: volume {numbers.index(0)} of the batch has no real slice, only padding")
    return numbers


def unit_range(image: Tensor, brightness: Tensor | None = None) -> Tensor:
    """Volumes as a network takes them: grey levels divided by 255, times a factor a volume, cut off at 1.

    Args:
        image: [N, 1, D, H, W] or [1, D, H, W], uint8; or float in [0, 1] already, whose type stays.
        brightness: N factors in any shape; None = 1.
    """
    if not image.is_floating_point():
        image = image.float().div_(255)
    if brightness is None:
        return image
    return (image * brightness.reshape(-1, *[1] * (image.ndim - 1)).to(image)).clamp_(max=1)
