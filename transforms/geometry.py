"""Stored axes turned to the one orientation of all volumes: D superior, H posterior, W left (LPS, slowest first)."""

from typing import NamedTuple

import numpy as np
from nibabel.orientations import (
    aff2axcodes,
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)

from .scan import Refusal
from .tolerances import MAX_SPACING_MM, MIN_SPACING_MM

RAS_OF_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


class Turn(NamedTuple):
    """How stored axes become (x, y, z) that grow to the left, posterior, superior."""

    ornt: np.ndarray  # nibabel's: for each stored axis, the axis it becomes and 1 or -1
    affine: np.ndarray  # of (x, y, z)
    shape: tuple[int, int, int]  # (D, H, W)
    orientation: str  # of the stored axes

    @property
    def slice_axis(self) -> int:
        """The stored axis that becomes z."""
        return int(np.flatnonzero(self.ornt[:, 0] == 2)[0])

    def stored_index(self, z: int) -> int:
        """Where slice z lies along the stored axis."""
        return self.shape[0] - 1 - z if self.ornt[self.slice_axis, 1] < 0 else z

    def slices(self, stored: np.ndarray) -> np.ndarray:
        """[D, H, W] view of an array with stored axes."""
        return apply_orientation(stored, self.ornt).transpose(2, 1, 0)


def inclination(affine: np.ndarray) -> tuple[float, float]:
    """Degrees between planes and the axial plane, and between the step from plane to plane and the planes' normal.

    Args:
        affine: of an LPS-ordered array, voxel (x, y, z) -> mm.
    """
    x, y, z = affine[:3, :3].T
    normal = np.cross(x, y) / np.linalg.norm(np.cross(x, y))
    step = z / np.linalg.norm(z)
    oblique, shear = np.degrees(np.arccos(np.clip(np.abs([normal[2], normal @ step]), 0, 1)))
    return float(oblique), float(shear)


def turn_to_lps(affine: np.ndarray, shape: tuple[int, ...]) -> Turn:
    """How an array is turned, from its affine (stored voxel -> RAS mm) and shape.

    Axes that are oblique become those that they are nearest to.

    Raises:
        Refusal: the affine is not finite, singular, or its steps are no millimetres.
    """
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise Refusal("its orientation is not finite or has no volume")
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    if steps.min() < MIN_SPACING_MM or steps.max() > MAX_SPACING_MM:
        raise Refusal(
            f"its voxels are {' x '.join(f'{step:.4g}' for step in steps)} mm, outside {MIN_SPACING_MM:g} to "
            f"{MAX_SPACING_MM:g} mm; are these millimetres?"
        )
    ornt = ornt_transform(io_orientation(affine), axcodes2ornt(("L", "P", "S")))
    turned = np.empty(3, dtype=int)
    turned[ornt[:, 0].astype(int)] = shape[:3]
    width, height, depth = turned.tolist()
    turned_affine = affine @ inv_ornt_aff(ornt, shape[:3])
    return Turn(ornt, turned_affine, (depth, height, width), "".join(aff2axcodes(affine)))
