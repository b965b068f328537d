"""Facts about volumes that several rooms share: padding, their range."""

import torch
from torch import Tensor

PADDING = -1.0  # value of the slices that fill a volume up; any negative value is taken for it
MARGIN, SHARE = 0.5, 0.2  # how far beyond [0, 1] a share of the voxels may lie: sharpening does, another range has more


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


def cut_to_unit_range(volume: Tensor, source: str) -> Tensor:
    """A float volume [C, D, H, W] cut off at 0 and 1; slices of padding stay as they are.

    Raises:
        ValueError: the volume is in another range, which cutting would hide: a value is not finite, or, padding aside,
            the mean is not in [0, 1] or 20 % of the voxels lie more than 0.5 beyond. ``source`` is what gave it.
    """
    low, high = torch.aminmax(volume)
    if low >= 0 and high <= 1:
        return volume
    padded = (volume.amax((-2, -1), keepdim=True) < 0).expand_as(volume)
    real = volume[~padded]
    beyond = ((real < -MARGIN) | (real > 1 + MARGIN)).float()
    if not (torch.isfinite(volume).all() and 0 <= real.mean() <= 1 and beyond.mean() < SHARE):  # no real one: NaN
        raise ValueError(f"{source} gave values from {low:.4g} to {high:.4g}; the network takes volumes in [0, 1]")
    return torch.where(padded, volume, volume.clamp(0, 1))
