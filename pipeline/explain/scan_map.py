"""A map of the network's view, put back into the space of the scan."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from monai.transforms import CenterSpatialCrop
from numpy.typing import NDArray
from torch.nn import functional

LEVELS = 255  # of a map's uint8
SLOPE = float(np.nextafter(np.float32(1 / LEVELS), np.float32(0)))  # rounded down: no value reads back above 1
DESCRIPTION_BYTES = 79  # of NIfTI's descrip, and a zero


def map_to_scan(
    activation: NDArray[np.floating], indices: Sequence[int], shape: Sequence[int], image_size: int, crop_size: int
) -> NDArray[np.uint8]:
    """An activation on the network's volume, on the grid of the whole scan.

    Each slice is put back where the central crop cut it out (0 around it), resized to the scan's rows and columns
    (linearly; filtered where that is a reduction, so that no voxel of the network's is passed over), and between the
    slices that the network saw there is linear interpolation. A slice that became several of the network's, as in a
    short scan, takes their mean. Slices outside the range that the network saw (the trimmed ends) are 0: it had no
    part in them, which says nothing of what is there. Needs memory for the result and a few slices.

    Args:
        activation: [D', h, w] in [0, 1], the network's volume: w = h = the smaller of ``crop_size`` and ``image_size``.
        indices: D' slices of the scan that became the network's, in [0, D).
        shape: (D, H, W) of the scan.
        image_size: rows and columns to which slices were resized; ``crop_size`` those of the central crop.

    Returns:
        [D, H, W] in 0 to 255, 255 = 1; ValueError when the arguments do not fit each other.
    """
    depth, height, width = (int(size) for size in shape)
    rows, columns = CenterSpatialCrop((crop_size, crop_size)).compute_slices((image_size, image_size))
    expected = (len(indices), rows.stop - rows.start, columns.stop - columns.start)
    if activation.shape != expected or not len(indices):
        raise ValueError(f"activation has the shape {activation.shape}, which must be {expected}")
    if not 0 <= min(indices) <= max(indices) < depth:
        raise ValueError(f"indices must be in [0, {depth}), got {min(indices)} to {max(indices)}")
    seen, source = np.unique(np.asarray(indices), return_inverse=True)

    def in_scan(number: int) -> NDArray[np.float32]:
        frame = torch.zeros(1, 1, image_size, image_size)
        frame[0, 0, rows, columns] = torch.from_numpy(activation[source == number].mean(axis=0, dtype=np.float32))
        return functional.interpolate(frame, (height, width), mode="bilinear", antialias=True)[0, 0].numpy() * LEVELS

    result = np.zeros((depth, height, width), dtype=np.uint8)
    below = in_scan(0)
    result[seen[0]] = np.rint(below)
    for number, (first, last) in enumerate(pairwise(seen.tolist()), start=1):
        above = in_scan(number)
        for index in range(first + 1, last + 1):
            result[index] = np.rint(below + (above - below) * np.float32((index - first) / (last - first)))
        below = above
    return result


def write_map(
    path: str | Path, volume: NDArray[np.uint8], affine: Sequence[Sequence[float]] | None, description: str
) -> None:
    """Write a map as NIfTI whose values read back in [0, 1].

    The affine is the sform; the qform says the same, and is left out where it cannot (a sheared grid, such as that of
    a tilted gantry): readers that know only orthogonal axes then refuse the file instead of showing it shifted.
    Without an affine (slice folders) the voxels are units, sform and qform have code 0 (no orientation is known), and
    the description says so. The axes are then as in the pictures: to the right, down, and in order of file names.

    Args:
        volume: [D, H, W], 255 = 1.
        affine: 4 x 4, voxel (x, y, z) = index (W, H, D) to RAS mm, or None.
        description: for the header, cut to what fits in there (79 bytes of ASCII).
    """
    import nibabel

    voxels = volume.transpose(2, 1, 0)
    image = nibabel.Nifti1Image(voxels, None if affine is None else np.asarray(affine, dtype=float))
    header = image.header
    header.set_slope_inter(SLOPE, 0)  # set, it also stops nibabel from choosing another
    header.set_xyzt_units("mm" if affine is not None else "unknown")
    header["cal_min"], header["cal_max"] = 0, 1  # the range in which a viewer shows it
    if affine is None:
        description = f"no geometry; {description}"
    else:
        image.set_sform(affine, "scanner")
        image.set_qform(affine, "scanner")
        corner = (*voxels.shape, 1)
        if np.abs((header.get_qform() - np.asarray(affine)) @ corner).max() > min(header.get_zooms()) / 10:
            image.set_qform(None, "unknown")
    header["descrip"] = description.encode("ascii", "replace")[:DESCRIPTION_BYTES]
    nibabel.save(image, str(path))
