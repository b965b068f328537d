"""The volume that a phantom is painted into, the shapes to paint with, and the scanners' blur and noise.

Patient coordinates are millimetres: x to patient left, y to posterior, z to superior from the lower end of the scan.
Arrays are (D, H, W) = (z, y, x). A shape is an implicit function, positive inside and roughly in millimetres;
:meth:`Canvas.cover` turns it into partial-volume coverage in [0, 1].
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

Array = NDArray[np.floating]  # float32 wherever it is as large as a slab
Box = tuple[slice, slice, slice]

AIR, FAT, TISSUE, MUSCLE, LIVER = -1000.0, -100.0, 35.0, 55.0, 60.0  # HU


def smoothstep(start: float, stop: float, value: ArrayLike) -> Array:
    part = np.clip((np.asarray(value, np.float32) - start) / (stop - start), 0, 1)
    return part * part * (3 - 2 * part)


def inside_superellipse(x: Array, y: Array, half_x: Array, half_y: Array, power: float) -> Array:
    """Distance (mm) along the ray from the centre to the outline; positive inside."""
    sides = np.abs(x / half_x) ** power + np.abs(y / half_y) ** power
    ratio = np.maximum(sides, 1e-9) ** np.float32(-1 / power) - 1
    return np.sqrt(x * x + y * y + 1e-6) * ratio


class Texture:
    """Smooth random field in space: about N(0, 0.5) at every point, correlated over ``cell`` mm, repeating afar."""

    def __init__(self, rng: np.random.Generator, cell: float) -> None:
        self.cell = cell
        self.grid = rng.standard_normal((32, 32, 32), dtype=np.float32)

    def __call__(self, z: Array, y: Array, x: Array) -> Array:
        """Values (D, H, W) at the points of three axes. Gathers instead of a matrix product: equal on all threads."""
        field: Array = self.grid
        for axis, points in enumerate((z, y, x)):
            place = np.asarray(points, np.float32).ravel() / np.float32(self.cell) + 64
            low = np.floor(place).astype(np.intp)
            part = place - low
            part = (part * part * (3 - 2 * part)).reshape([-1 if a == axis else 1 for a in range(3)])
            first, second = field.take(low % 32, axis=axis), field.take((low + 1) % 32, axis=axis)
            second -= first  # in place: what is float32 stays so
            second *= part
            field = first
            field += second
        return field


class Canvas:
    """The volume being painted: HU, the share of lung in a voxel (0..255) and the lesion mask, with its geometry.

    ``shape`` is (D, H, W); ``length``, side of the ``field`` of view and ``offset`` (y, x) of the patient are in mm.
    """

    def __init__(self, shape: tuple[int, int, int], length: float, field: float, offset: tuple[float, float]) -> None:
        depth, height, width = shape
        self.spacing = (length / depth, field / height, field / width)
        dz, dy, dx = self.spacing
        self.z = ((np.arange(depth) + 0.5) * dz).astype(np.float32)
        self.y = ((np.arange(height) - (height - 1) / 2) * dy - offset[0]).astype(np.float32)
        self.x = ((np.arange(width) - (width - 1) / 2) * dx - offset[1]).astype(np.float32)
        self.edge = max(dx, dy, 1.0)
        self.voxel_ml = dz * dy * dx / 1000
        self.hu = np.full(shape, AIR, np.int16)
        self.lung = np.zeros(shape, np.uint8)
        self.lesion = np.zeros(shape, np.bool_)

    def slabs(self) -> Iterator[slice]:
        """Planes in portions of about a million voxels: bounded temporaries that stay near the cache."""
        step = max(1, 2**20 // (self.hu.shape[1] * self.hu.shape[2]))
        return (slice(start, min(start + step, len(self.hu))) for start in range(0, len(self.hu), step))

    def box(self, centre: ArrayLike, reach: ArrayLike) -> tuple[Box, Array, Array, Array] | None:
        """Index box around ``centre`` (z, y, x) and the coordinates in it from the centre, ready to broadcast."""
        slices, axes = [], []
        for axis, c, r in zip((self.z, self.y, self.x), np.asarray(centre), np.broadcast_to(reach, 3), strict=True):
            first, last = np.searchsorted(axis, (c - r, c + r))
            if first >= last:
                return None
            slices.append(slice(int(first), int(last)))
            axes.append(axis[first:last] - np.float32(c))
        return tuple(slices), *np.ix_(*axes)  # type: ignore[return-value]

    def cover(self, inside: Array) -> Array:
        return np.clip(inside * np.float32(1 / self.edge) + np.float32(0.5), 0, 1)

    def blend(self, box: Box, cover: Array, value: Any, *, within: str = "all", mark: bool = False) -> None:
        """Mix ``value`` in. ``within``: all (takes lung away), keep (does not), lung (only there), airless (fills
        lung, fat and airways but spares vessels, muscle and bone)."""
        lung = self.lung[box]
        if within == "lung":
            cover = cover * (lung * np.float32(1 / 255))
        elif within == "airless":
            cover = cover * np.maximum(lung * np.float32(1 / 255), self.hu[box] < 10)
        elif within == "all":
            lung[...] = np.rint(lung * (1 - cover))
        part = self.hu[box]
        part[...] = np.rint(part + cover * (value - part))
        if mark:
            self.lesion[box] |= cover > 0.3

    def tube(self, start: ArrayLike, end: ArrayLike, radius: float, value: float, within: str = "all") -> None:
        """Capsule between two points (z, y, x); one thinner than a voxel is dimmed rather than dropped."""
        start, end = np.asarray(start, float), np.asarray(end, float)
        middle, along = (start + end) / 2, (end - start) / 2
        half = float(np.sqrt(along @ along)) or 1e-3
        found = self.box(middle, np.abs(along) + radius + self.edge)
        if found is None:
            return
        box, z, y, x = found
        uz, uy, ux = (np.float32(v / half) for v in along)
        ahead = z * uz + y * uy + x * ux
        near = np.clip(ahead, -half, half)
        distance = np.sqrt(np.maximum((z * z + y * y + x * x) + near * (near - 2 * ahead), 0))
        dimmed = self.cover(radius - distance) * np.float32(min(1, 2 * radius / self.edge))
        self.blend(box, dimmed, value, within=within)

    def path(self, points: ArrayLike, radius: float, value: float, within: str = "all") -> None:
        for start, end in pairwise(np.asarray(points, float)):
            self.tube(start, end, radius, value, within)

    def ellipsoid(self, centre: ArrayLike, axes: ArrayLike, value: float, *, yaw: float = 0.0, **how: Any) -> None:
        """Semi-axes (z, y, x) mm, turned by ``yaw`` radians in the axial plane."""
        axes = np.asarray(axes, float)
        found = self.box(centre, [axes[0] + self.edge, *[max(axes[1:]) + self.edge] * 2])
        if found is None:
            return
        box, z, y, x = found
        c, s = np.float32(np.cos(yaw)), np.float32(np.sin(yaw))
        a, b, d = (np.float32(v) for v in axes)
        inside = (1 - np.sqrt((z / a) ** 2 + ((y * c - x * s) / b) ** 2 + ((x * c + y * s) / d) ** 2)) * min(a, b, d)
        self.blend(box, self.cover(inside), value, **how)

    def lung_depth(self, start: NDArray[Any], direction: NDArray[Any]) -> float:
        """How far (mm) the lung reaches from ``start`` along the unit vector ``direction``."""
        steps = np.arange(0, 220, 2.0)
        inside = self.in_lung(start + steps[:, None] * direction)
        return float(steps[inside].max()) if inside.any() else 0.0

    def in_lung(self, places: NDArray[Any]) -> NDArray[np.bool_]:
        origin = np.array([self.z[0], self.y[0], self.x[0]])
        index = np.rint((places - origin) / self.spacing).astype(int)
        valid = ((index >= 0) & (index < self.hu.shape)).all(axis=1)
        index[~valid] = 0
        return valid & (self.lung[tuple(index.T)] > 127)

    def voxel(self, place: NDArray[Any]) -> list[int]:
        """Nearest index (d, h, w) of a place (z, y, x) in mm."""
        return [int(np.abs(axis - p).argmin()) for axis, p in zip((self.z, self.y, self.x), place, strict=True)]


@dataclass(frozen=True)
class Site:
    name: str
    noise_hu: float  # standard deviation at slices of 2.5 mm
    grain_mm: float  # sigma that correlates the noise
    blur_mm: float  # sigma of the in-plane blur
    contrast: float  # share of scans with contrast medium
    slices: tuple[float, float]  # part of the preset's range that the site uses, on a log scale (0: fewest, 1: most)
    table: bool  # visible


SITES: Mapping[str, Site] = {site.name: site for site in (
    Site("alder", noise_hu=14.0, grain_mm=1.1, blur_mm=0.9, contrast=0.5, slices=(0.0, 0.45), table=True),
    Site("birch", noise_hu=22.0, grain_mm=0.7, blur_mm=0.6, contrast=0.3, slices=(0.25, 0.75), table=True),
    Site("cedar", noise_hu=32.0, grain_mm=0.4, blur_mm=0.3, contrast=0.4, slices=(0.55, 1.0), table=False),
)}  # fmt: skip
# Four hospitals that differ in everything a scanner and a protocol decide: dogwood stages tumours with contrast medium
# and a soft kernel, elder makes thin slices with a sharp one, fir screens at a low dose, hazel does a bit of all.
SHIFTED_SITES: Mapping[str, Site] = {site.name: site for site in (
    Site("dogwood", noise_hu=8.0, grain_mm=1.5, blur_mm=2.2, contrast=1.0, slices=(0.0, 0.2), table=True),
    Site("elder", noise_hu=45.0, grain_mm=0.3, blur_mm=0.2, contrast=0.0, slices=(0.8, 1.0), table=False),
    Site("fir", noise_hu=90.0, grain_mm=1.6, blur_mm=1.0, contrast=0.0, slices=(0.4, 0.6), table=True),
    Site("hazel", noise_hu=22.0, grain_mm=0.7, blur_mm=0.7, contrast=0.8, slices=(0.2, 0.5), table=False),
)}  # fmt: skip


def image(canvas: Canvas, site: Site, rng: np.random.Generator) -> None:
    """Blur and correlated noise, in place, slab by slab (both act within slices only)."""
    dz, dy, dx = canvas.spacing
    # Thin slices collect fewer photons; the bounds keep every scan readable.
    level = site.noise_hu * float(np.clip(np.sqrt(2.5 / dz), 0.6, 1.7))
    for planes in canvas.slabs():
        hu = canvas.hu[planes].astype(np.float32)
        noise = rng.standard_normal(hu.shape, dtype=np.float32)
        for axis, step in ((1, dy), (2, dx)):
            hu = _smooth(hu, site.blur_mm / step, axis, unit_sum=True)
            noise = _smooth(noise, site.grain_mm / step, axis, unit_sum=False)
        shoulders = 1 + 0.5 * smoothstep(0.8, 0.95, canvas.z[planes, None, None] / canvas.z[-1])
        hu += noise * (level * shoulders)
        canvas.hu[planes] = np.rint(np.clip(hu, -1024, 1500))


def _smooth(values: Array, sigma: float, axis: int, *, unit_sum: bool) -> Array:
    """Gaussian filter; ``unit_sum`` keeps the mean (an image), otherwise the variance is kept (white noise)."""
    if sigma < 0.25:  # the kernel is then the identity to within a percent
        return values
    reach = int(np.ceil(3 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum() if unit_sum else np.sqrt((kernel**2).sum())
    return ndimage.correlate1d(values, kernel, axis=axis, mode="nearest")
