"""The deterministic transforms of a volume, built in one place: training, validation and inference see the same."""

from collections.abc import Callable, Sequence

from monai.transforms import CenterSpatialCropd, EnsureTyped, Lambdad, Resized, SpatialPadd

from fairlung.transforms import FirstSlices, LoadScand, SampleSlices, TrimSlices, to_grey_levels

from ..common.volumes import PADDING, unit_range

Transforms = list[Callable]


def volume_transforms(
    window: Sequence[float],
    image_size: int,
    num_slices: int,
    trim_fraction: float = 0.0,
    min_slices: int = 1,
    fast_decode: bool = False,
    every_slice: bool = False,
    further: Sequence[Callable] = (),
) -> Transforms:
    """From a scan's path to a volume of grey levels, uint8 [1, D, image_size, image_size]; this part is cached.

    8 bits lose nothing of 8-bit slices, and half a grey level (0.2 % of the window) at most of HU.

    Args:
        window: HU that become 0 and 255.
        num_slices: D.
        trim_fraction: of the slices, left out at each end.
        min_slices: a scan of fewer slices is refused.
        fast_decode: JPEG slices are shrunk while they are decoded; grey levels differ a little.
        every_slice: take every slice in order, at most ``num_slices`` (D differs); else sample ``num_slices`` evenly.
        further: deterministic transforms that follow, cached too.
    """
    chosen = FirstSlices(num_slices) if every_slice else SampleSlices(num_slices)
    select = [TrimSlices(trim_fraction), chosen]
    load = LoadScand(
        "image", window=window, size=image_size, min_slices=min_slices, fast_decode=fast_decode, select=select
    )
    resize = Resized("image", [-1 if every_slice else num_slices, image_size, image_size], mode="area")
    return [load, resize, Lambdad("image", to_grey_levels, track_meta=False), *further]


def center_crop(num_slices: int, crop_size: int, padded: bool = False) -> Transforms:
    """The central ``crop_size`` rows and columns as a plain tensor of the same type.

    ``padded``: volumes of up to ``num_slices`` slices become [0, 1] in float32 and are filled up (:func:`pad_slices`).
    """
    crop = CenterSpatialCropd("image", [-1 if padded else num_slices, crop_size, crop_size])
    filled = [to_unit_range(), pad_slices(num_slices)] if padded else []
    return [crop, *filled, EnsureTyped("image", track_meta=False)]


def to_unit_range() -> Callable:
    """Grey levels become [0, 1] in float32 (:func:`~.unit_range`)."""
    return Lambdad("image", unit_range, track_meta=False)


def pad_slices(num_slices: int) -> Callable:
    """Fill a volume in [0, 1] up to ``num_slices`` with slices of :data:`~.PADDING`, which no real voxel has."""
    return SpatialPadd("image", [num_slices, -1, -1], method="end", mode="constant", value=PADDING)
