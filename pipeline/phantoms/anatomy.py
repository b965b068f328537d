"""A synthetic chest CT: procedural anatomy and disease in Hounsfield units.

Nothing here comes from a patient, and nothing here says how a model will do on patients. The phantom exists so that
the whole pipeline runs, and can be tested, without a download; docs/phantom.md lists what it models and what not.

Patient coordinates are millimetres: x to patient left, y to posterior, z to superior, z = 0 at the lower end of the
scan. Arrays are (D, H, W) = (z, y, x), all growing in those directions (LPS). Shapes are implicit functions that are
positive inside and roughly in millimetres; ``_cover`` turns one into partial-volume coverage in [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from ..common.names import CLASS_NAMES, SEXES

__all__ = ["SITES", "PhantomScan", "Site", "check_choice", "check_shift", "synthesize"]

Array = NDArray[np.floating]  # float32 wherever it is as large as a slab
Box = tuple[slice, slice, slice]

AIR, FAT, WATER, TISSUE, MUSCLE, LIVER = -1000.0, -100.0, 5.0, 35.0, 55.0, 60.0


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """ValueError that names the value when it is none of those allowed."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def check_shift(value: float) -> None:
    """ValueError when a presentation shift is not in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"presentation_shift must be in [0, 1], got {value}")


@dataclass(frozen=True)
class Site:
    """A scanner. ``noise_hu``: standard deviation at 2.5 mm slices. ``grain_mm``: sigma that correlates the noise.

    ``blur_mm``: sigma of the in-plane image blur. ``contrast``: share of scans with contrast medium. ``slices``: part
    of the preset's slice range that the site uses, on a log scale (0 = fewest, 1 = most). ``table``: table visible.
    """

    name: str
    noise_hu: float
    grain_mm: float
    blur_mm: float
    contrast: float
    slices: tuple[float, float]
    table: bool


SITES: Mapping[str, Site] = {
    site.name: site
    for site in (
        Site("alder", noise_hu=14.0, grain_mm=1.1, blur_mm=0.9, contrast=0.5, slices=(0.0, 0.45), table=True),
        Site("birch", noise_hu=22.0, grain_mm=0.7, blur_mm=0.6, contrast=0.3, slices=(0.25, 0.75), table=True),
        Site("cedar", noise_hu=32.0, grain_mm=0.4, blur_mm=0.3, contrast=0.4, slices=(0.55, 1.0), table=False),
    )
}


@dataclass(frozen=True)
class PhantomScan:
    """One synthetic scan.

    ``hu``: int16 (D, H, W) in [-1024, 1500], inferior to superior, anterior to posterior, patient right to left.
    ``spacing``: (dz, dy, dx) mm. ``age``: years. ``lesion``: bool (D, H, W), the tissue that disease replaced.
    ``truth``: what was drawn (habitus, site, ``lesions`` with centres in voxels and sizes in mm, volumes in ml).
    """

    hu: NDArray[np.int16]
    spacing: tuple[float, float, float]
    label: str
    sex: str
    age: int
    site: str
    lesion: NDArray[np.bool_]
    truth: dict[str, Any]


def synthesize(
    label: str,
    sex: str,
    *,
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    site: str | None = None,
    presentation_shift: float = 0.0,
) -> PhantomScan:
    """Draw one scan of ``shape`` (D, H, W), each axis at least 8; the slice thickness is chest length / D.

    ``rng`` is split into independent streams for body, disease, vessels and noise, so two calls with equal generators
    and different labels give the same patient with and without the disease. ``site`` is a key of ``SITES``, drawn
    when None. ``presentation_shift`` in [0, 1] moves squamous_cell in females towards the presentation of
    adenocarcinoma (0: as in males, 1: the same distribution as adenocarcinoma); it touches nothing else.
    Peak memory is about 6 bytes per voxel plus one slab. Raises ValueError naming the value that is out of range.
    """
    check_choice("label", label, CLASS_NAMES)
    check_choice("sex", sex, SEXES)
    check_shift(presentation_shift)
    if len(shape) != 3 or min(shape) < 8:
        raise ValueError(f"shape must be (D, H, W) with every axis >= 8, got {shape}")
    if site is not None:
        check_choice("site", site, tuple(SITES))
    body_rng, disease_rng, vessel_rng, noise_rng = rng.spawn(4)
    drawn_site = str(body_rng.choice(list(SITES)))  # drawn even if given: the rest of the stream must not move
    scanner = SITES[site or drawn_site]
    age = int(np.clip(np.rint(body_rng.normal(63, 10)), 30, 90))

    shift = presentation_shift if (label, sex) == ("squamous_cell", "female") else 0.0
    tumour = _draw_tumour(disease_rng, label, shift)
    body = _draw_body(body_rng, sex, scanner, tumour)
    canvas = _Canvas(shape, body)
    for planes in canvas.slabs():
        _paint_slab(canvas, body, planes)
    _paint_organs(canvas, body)
    lung_ml = float(np.count_nonzero(canvas.lung > 127)) * canvas.voxel_ml
    _paint_tree(canvas, body, vessel_rng)
    if tumour:
        lesions = [_paint_tumour(canvas, body, disease_rng, tumour)]
    elif label == "covid19":
        lesions = _paint_covid(canvas, body, disease_rng)
    else:
        lesions = []
    _scan(canvas, scanner, noise_rng)
    truth = {
        "presentation_shift": shift,
        "length_mm": body.length,
        "fat_mm": body.fat,
        "breast": body.breast,
        "contrast_hu": body.contrast,
        "noise_hu": scanner.noise_hu,
        "lung_ml": lung_ml,
        "lesion_ml": float(np.count_nonzero(canvas.lesion)) * canvas.voxel_ml,
        "lesions": lesions,
    }
    return PhantomScan(canvas.hu, canvas.spacing, label, sex, age, scanner.name, canvas.lesion, truth)


@dataclass(frozen=True)
class _Body:
    """What is drawn once per patient, in mm; ``t`` below is z / length, 0 at the lower end and 1 at the neck."""

    sex: str
    length: float
    chest: tuple[float, float]  # half width and half depth of the rib cage at its widest
    fat: float
    muscle: float
    breast: float  # size relative to an average female breast; 0 for none
    apex: float  # t of the lung apices
    domes: tuple[float, float]  # z of the right and left diaphragm dome
    pull: float  # displacement of the mediastinum by collapse, positive to the left
    lung_hu: float
    contrast: float
    ribs: tuple[float, float]  # distance and phase
    heart: float
    offset: tuple[float, float]  # patient off the centre of the field of view (y, x)
    margin: float  # field of view / body width
    table: bool
    coarse: _Texture
    fine: _Texture

    def outline(self, z: ArrayLike) -> tuple[Array, Array]:
        """Half width and half depth of the body: flatter and wider at the shoulders."""
        s = _smoothstep(0.78, 0.97, np.asarray(z, np.float32) / self.length)
        wall = self.muscle + self.fat + 9
        return (self.chest[0] + wall) * (1 + 0.07 * s), (self.chest[1] + 0.8 * wall) * (1 - 0.26 * s)

    def cage(self, z: ArrayLike) -> tuple[Array, Array, Array]:
        """Half width, half depth and centre y of the rib cage's inside: a dome that closes above the apex."""
        n = np.clip((np.asarray(z, np.float32) / self.length - 0.40) / (self.apex - 0.40), 0, 1)
        scale = np.maximum(np.sqrt(1 - n**2.2), 0.02)
        return self.chest[0] * scale, self.chest[1] * scale**0.9, 4 + 10 * n

    def spine(self, z: ArrayLike) -> Array:
        """y of the centre of the vertebral body."""
        return self.outline(z)[1] - 0.8 * self.fat - 50

    def hilum(self, side: int) -> NDArray[np.float64]:
        """(z, y, x) where vessels and main bronchus enter the lung; side -1 is the patient's right."""
        return np.array([0.58 * self.length, 4.0, side * 36.0 + self.pull])


def _draw_body(rng: np.random.Generator, sex: str, site: Site, tumour: dict[str, Any] | None) -> _Body:
    male = sex == "male"
    length = float(rng.uniform(280, 340))
    # Overlapping by design: size hints at sex, it does not give it away.
    chest = (rng.normal(140, 8) if male else rng.normal(129, 8), rng.normal(94, 6) if male else rng.normal(86, 6))
    fat = float(np.clip(rng.normal(13, 5) if male else rng.normal(17, 6), 4, 34))
    muscle = float(np.clip(rng.normal(17, 3) if male else rng.normal(12, 3), 7, 26))
    breast = max(0.0, rng.normal(0.9, 0.35)) if not male else max(0.0, rng.normal(-0.3, 0.3))
    domes = 0.35 * length + rng.normal(0, 6), 0.31 * length + rng.normal(0, 6)
    apex = float(rng.uniform(0.89, 0.94))
    contrast = float(rng.uniform(90, 180)) * float(rng.random() < site.contrast)
    pull = 0.0
    if tumour:  # volume loss: the mediastinum moves to the collapsed side, the diaphragm rises
        pull = tumour["side"] * 16.0 * tumour["collapse"]
        raised = 34.0 * tumour["collapse"]
        domes = (domes[0] + raised, domes[1]) if tumour["side"] < 0 else (domes[0], domes[1] + raised)
    return _Body(
        sex=sex, length=length, chest=(float(chest[0]), float(chest[1])), fat=fat, muscle=muscle,
        breast=float(breast), apex=apex, domes=(float(domes[0]), float(domes[1])), pull=pull,
        lung_hu=float(rng.normal(-855, 18)), contrast=contrast, ribs=(float(rng.uniform(23, 27)), float(rng.random())),
        heart=float(rng.normal(1.0 if male else 0.93, 0.07)), offset=(float(rng.normal(0, 5)), float(rng.normal(0, 5))),
        margin=float(rng.uniform(1.06, 1.16)), table=site.table, coarse=_Texture(rng, 34.0), fine=_Texture(rng, 9.0),
    )  # fmt: skip


class _Texture:
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
            second -= first
            second *= part
            first += second
            field = first
        return field


class _Canvas:
    """The volume being painted: HU, the share of lung in a voxel (0..255) and the lesion mask, with its geometry."""

    def __init__(self, shape: tuple[int, int, int], body: _Body) -> None:
        depth, height, width = shape
        half_width = float(body.outline(body.length)[0])
        field = float(np.clip(2 * half_width * body.margin, 290, 500))
        self.spacing = (body.length / depth, field / height, field / width)
        dz, dy, dx = self.spacing
        self.z = ((np.arange(depth) + 0.5) * dz).astype(np.float32)
        self.y = ((np.arange(height) - (height - 1) / 2) * dy - body.offset[0]).astype(np.float32)
        self.x = ((np.arange(width) - (width - 1) / 2) * dx - body.offset[1]).astype(np.float32)
        self.edge = max(dx, dy, 1.0)
        self.voxel_ml = dz * dy * dx / 1000
        self.hu = np.full(shape, AIR, np.int16)
        self.lung = np.zeros(shape, np.uint8)
        self.lesion = np.zeros(shape, np.bool_)

    def slabs(self) -> Iterator[slice]:
        """Planes in portions of about a million voxels: bounded temporaries that stay near the cache."""
        depth, height, width = self.hu.shape
        step = max(1, 2**20 // (height * width))
        return (slice(start, min(start + step, depth)) for start in range(0, depth, step))

    def box(self, centre: ArrayLike, reach: ArrayLike) -> tuple[Box, Array, Array, Array] | None:
        """Index box around ``centre`` (z, y, x) and the coordinates in it from the centre, ready to broadcast."""
        slices, axes = [], []
        for number, (axis, c, r) in enumerate(
            zip((self.z, self.y, self.x), np.asarray(centre), np.broadcast_to(reach, 3), strict=True)
        ):
            first, last = np.searchsorted(axis, (c - r, c + r))
            if first >= last:
                return None
            slices.append(slice(int(first), int(last)))
            axes.append((axis[first:last] - np.float32(c)).reshape([-1 if a == number else 1 for a in range(3)]))
        return (slices[0], slices[1], slices[2]), axes[0], axes[1], axes[2]

    def cover(self, inside: Array) -> Array:
        return _cover(inside, self.edge)

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
        mixed = part + cover * (value - part)
        np.rint(mixed, out=mixed)
        part[...] = mixed
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
        self.blend(
            box, self.cover(radius - distance) * np.float32(min(1, 2 * radius / self.edge)), value, within=within
        )

    def path(self, points: ArrayLike, radius: float, value: float, within: str = "all") -> None:
        points = np.asarray(points, float)
        for start, end in pairwise(points):
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
        places = start + steps[:, None] * direction
        inside = self.in_lung(places)
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


def _paint_slab(canvas: _Canvas, body: _Body, planes: slice) -> None:
    """Everything that fills whole slices: table, breasts, skin, fat, muscle, ribs, spine, lungs, abdomen."""
    z, y, x = canvas.z[planes, None, None], canvas.y[None, :, None], canvas.x[None, None, :]
    coarse, fine = body.coarse(z, y, x), body.fine(z, y, x)
    cover = canvas.cover
    width, depth = body.outline(z)
    cage_x, cage_y, cage_c = body.cage(z)
    middle_y = float(body.outline(0.5 * body.length)[1])
    hu = np.full(coarse.shape, AIR, np.float32)
    if body.table:
        top = middle_y + 8 - x**2 / 1600
        hu += cover(3 - np.abs(y - top - 2)) * (np.abs(x) < 0.9 * width) * 850

    inside = _inside_superellipse(x, y, width, depth, 2.5)
    if body.breast > 0.1:
        size = body.breast**0.5
        cz, cy, cx = 0.47 * body.length, -0.84 * middle_y, 0.52 * body.chest[0]
        q = ((z - cz) / (62 * size)) ** 2 + ((y - cy) / (44 * size)) ** 2 + ((np.abs(x) - cx) / (62 * size)) ** 2
        breast = (1 - np.sqrt(q)) * 44 * size
        gland = np.clip(breast / 22 - 0.35, 0, 1) * np.clip(0.5 + 1.4 * fine, 0, 1)
        inside_all = np.maximum(inside, breast)
        hu += cover(breast) * (FAT + 130 * gland - hu)
    else:
        inside_all = inside
    part = cover(inside)
    hu += part * (FAT + 12 * fine - hu)
    skin = cover(2.2 - np.abs(inside_all - 2)) * cover(inside_all)
    hu += 0.8 * skin * (20 - hu)
    # Muscle, with fat planes between its bellies; at the shoulders it fills everything outside the cage.
    under_fat = inside - body.fat * (0.75 + 0.5 * np.abs(x) / width)
    hu += cover(under_fat) * (MUSCLE + 8 * fine - 120 * cover(1.6 - 26 * np.abs(coarse + 0.25 * fine)) - hu)

    # The chest wall: intercostal muscle, ribs that descend from the spine to the front, cartilage near the sternum.
    cage = _inside_superellipse(x, y - cage_c, cage_x, cage_y, 2.4)
    wall = cover(cage + 11)
    hu += wall * (50 + 8 * fine - hu)
    spacing, phase = body.ribs
    height = (z - 0.55 * (y - cage_c)) / spacing + phase
    height = (height - np.rint(height)) * spacing
    rib = (1 - np.sqrt((height / 6.0) ** 2 + ((cage + 5.5) / 4.5) ** 2)) * 4.5
    front = _smoothstep(0.62, 0.85, (cage_c - y) / cage_y)
    hu += cover(rib) * ((700 - 420 * np.clip(rib / 3, 0, 1)) * (1 - front) + 130 * front - hu)

    # Inside of the cage: abdomen below the diaphragm, mediastinal fat in the middle, lungs elsewhere.
    inner = cover(cage)
    right = x < 0
    dome = np.where(right, body.domes[0], body.domes[1])
    behind = np.where(y > -14, 1.0, 0.4).astype(np.float32) * (y + 14)  # the recess is deep behind, shallow in front
    bend = ((np.abs(x) - 0.48 * body.chest[0]) / (0.62 * body.chest[0])) ** 2 + (behind / (0.93 * body.chest[1])) ** 2
    above = z - (dome - 62 * bend + 5 * coarse)
    liver = cover(np.minimum(cage - 5, 34 + 0.5 * (-y - x) - 0.6 * np.abs(x) + 8 * coarse))
    below = FAT + 5 * fine + liver * (LIVER + 0.3 * body.contrast + 6 * fine - FAT)
    below = below + cover(3.0 - np.maximum(above + 3, -above)) * (MUSCLE - below)
    spine_y = body.spine(z)
    half = 8 + 22 * np.exp(-(((y - spine_y + 62) / 32) ** 2)) + 22 * _smoothstep(-28, -14, y - spine_y)
    half = half * (1 + 0.25 * _smoothstep(0.8, 0.92, z / body.length))
    pulled = body.pull * np.exp(-(((z / body.length - 0.55) / 0.25) ** 2)) * _smoothstep(50, 10, y)
    lateral = np.abs(x - pulled) - half + 5 * coarse
    lung = np.minimum(np.minimum(cage, lateral), above * 0.85)
    share = cover(lung)
    hu += inner * (cover(-above) * (below - FAT) + FAT + 6 * fine - hu)
    air = body.lung_hu + 28 * (y / body.chest[1]) + 12 * coarse + 14 * fine
    hu += share * (air - hu)

    # Spine: vertebral body with cortex and discs, canal, lamina and processes. Only the middle columns are touched.
    columns = slice(*np.searchsorted(canvas.x, (-52, 52)))
    mid, xs = hu[:, :, columns], x[:, :, columns]
    down = y - spine_y
    level = z / 25.5 + phase
    disc = _smoothstep(0.34, 0.42, np.abs(level - np.rint(level)))
    vertebra = (1 - np.sqrt((xs / 18.5) ** 2 + (down / 14.5) ** 2)) * 14.5
    bone = 560 - 360 * np.clip(vertebra / 3.5, 0, 1)
    mid += cover(vertebra + 3) * (40 - mid)
    mid += cover(vertebra) * (bone + disc * (85 - bone) - mid)
    arch = 4.2 - np.abs(np.sqrt(xs**2 + (down - 23) ** 2) - 12)
    process = 4 - np.abs(xs) - np.maximum(np.abs(down - 40) - 7, 0)
    wings = 4.5 - np.abs(down - 16 - 0.2 * np.abs(xs)) - np.maximum(np.abs(xs) - 28, 0)
    posterior = np.maximum(arch, np.maximum(process, np.where(np.abs(xs) < 10, -9, wings)) - 3 * disc)
    mid += cover(posterior) * (1 - cover(vertebra)) * (520 - 160 * np.clip(posterior / 3, 0, 1) - mid)
    mid += cover(8.5 - np.sqrt(xs**2 + (down - 23) ** 2)) * (25 - mid)
    # Sternum: a flat bone in front of the cage between the dome and the clavicles.
    t = z / body.length
    flat = (1 - np.sqrt((xs / (17 + 8 * _smoothstep(0.74, 0.8, t))) ** 2 + ((y - cage_c + cage_y + 5) / 6) ** 2)) * 6
    flat = flat - 400 * (np.clip(0.42 - t, 0, 1) + np.clip(t - 0.84, 0, 1))
    mid += cover(flat) * (480 - 330 * np.clip(flat / 3, 0, 1) - mid)

    canvas.hu[planes] = np.rint(np.clip(hu, -1024, 1500))
    canvas.lung[planes] = np.rint(share * 255)


def _paint_organs(canvas: _Canvas, body: _Body) -> None:
    """Heart, great vessels, airways, oesophagus, shoulder girdle, spleen and stomach."""
    length, pull, blood = body.length, body.pull, 45 + body.contrast

    def at(t: float, y: float, x: float) -> tuple[float, float, float]:
        return t * length, y, x + pull * float(np.exp(-(((t - 0.55) / 0.25) ** 2)))

    def beside_spine(t: float, forward: float, x: float) -> tuple[float, float, float]:
        return at(t, float(body.spine(t * length)) - forward, x)

    s = body.heart
    canvas.ellipsoid(at(0.415, -24, 24), (54 * s, 45 * s, 66 * s), FAT + 20, yaw=-0.5)
    canvas.ellipsoid(at(0.415, -24, 24), (50 * s, 41 * s, 62 * s), TISSUE + 0.35 * body.contrast, yaw=-0.5)
    canvas.ellipsoid(at(0.41, -18, 42), (34 * s, 20 * s, 33 * s), blood, yaw=-0.6)  # left ventricle
    canvas.ellipsoid(at(0.44, -34, 2), (38 * s, 20 * s, 36 * s), blood, yaw=-0.4)  # right heart
    canvas.ellipsoid(at(0.50, 12, 10), (20 * s, 16 * s, 32 * s), blood)  # left atrium
    top = beside_spine(0.69, 34, 18)
    arch = [at(0.50, -20, 0), at(0.57, -26, -16), at(0.66, -20, -14), at(0.70, -4, 0), top, beside_spine(0.65, 18, 26)]
    canvas.path(arch, 15.0, blood)
    descending = [beside_spine(t, 16, 28 - 14 * max(0, 0.5 - t)) for t in (0.65, 0.5, 0.35, 0.2, 0.0)]
    canvas.path(descending, 12.5, blood)
    canvas.path([at(0.48, -34, 10), at(0.56, -30, 22), at(0.605, -10, 20)], 14.0, blood)  # pulmonary trunk
    canvas.path([at(0.59, -10, 20), at(0.585, -2, -18), at(0.58, 4, -44)], 9.5, blood)
    canvas.path([at(0.605, -10, 20), at(0.60, 4, 44)], 9.5, blood)
    canvas.path([at(0.46, -18, -30), at(0.66, -22, -30), at(0.76, -20, -24), at(0.97, -18, -40)], 8.0, blood)  # v. cava
    canvas.path([at(0.75, -26, -22), at(0.79, -30, 10), at(0.97, -18, 42)], 6.0, blood)
    for x in (-13, 13, 26):
        canvas.path([at(0.71, -8, x / 2), at(0.85, -6, x), at(1.0, 0, x * 1.3)], 4.2, blood)
    canvas.path([beside_spine(t, 20, 4) for t in (0.0, 0.3, 0.6, 0.8, 1.0)], 6.0, TISSUE)  # oesophagus

    carina, inlet = beside_spine(0.635, 44, 0), beside_spine(1.0, 30, 0)
    airways: list[tuple[list[Any], float]] = [
        ([inlet, beside_spine(0.8, 36, 0), carina], 8.8 if body.sex == "male" else 7.8)
    ]
    for side in (-1, 1):
        hilum = body.hilum(side)
        airways.append(([carina, hilum + (0, 2, 0)], 6.3))
        for dz, dy, dx in ((38, -8, 22), (6, -34, 30), (-40, 22, 24)):
            airways.append(([hilum + (0, 2, 0), hilum + (dz, dy, side * dx)], 3.2))
    for points, radius in airways:
        canvas.path(points, radius + 1.8, 10)
    for points, radius in airways:
        canvas.path(points, radius, -990)

    shoulder = float(body.outline(0.95 * length)[0])
    for side in (-1, 1):
        joint = (0.97 * length, -4, side * (shoulder - 38))
        canvas.path([(0.84 * length, -body.chest[1] * 0.62, side * 16), (0.93 * length, -38, side * 70), joint], 6, 520)
        canvas.ellipsoid(joint, (21, 21, 22), 620)
        canvas.ellipsoid(joint, (18, 18, 19), 230)
        out = body.chest[0] * 0.78
        for t, width in ((0.62, 14), (0.70, 24), (0.78, 32), (0.86, 36)):
            y = float(body.outline(t * length)[1]) - body.fat - 17
            canvas.ellipsoid(
                (t * length, y, side * out), (0.06 * length, 4.5, width), 480, yaw=side * 0.55, within="keep"
            )
    low, front = body.domes[1] - 42, -0.35 * body.chest[1]
    canvas.ellipsoid(
        (low - 8, 0.42 * body.chest[1], 0.66 * body.chest[0]), (42, 30, 26), 50 + 0.4 * body.contrast, yaw=-0.5
    )
    canvas.ellipsoid((low, front, 0.5 * body.chest[0]), (34, 30, 36), 30)
    canvas.ellipsoid((low + 4, front - 10, 0.5 * body.chest[0]), (24, 16, 26), -950)  # supine: the bubble is in front


def _paint_tree(canvas: _Canvas, body: _Body, rng: np.random.Generator) -> None:
    """Lung vessels: capsules that fork from the hilum outwards; a branch that leaves the lung stops there."""
    value = 40 + 0.6 * body.contrast
    thinnest = 0.2 * canvas.edge  # below that a branch is invisible: not worth its time
    for side in (-1, 1):
        # First branches on a spiral over the lateral half of the sphere, so that no segment stays empty.
        turn, out = np.arange(20) * 2.399963 + rng.uniform(0, 6.28), np.linspace(0.05, 0.95, 20)
        ring = np.sqrt(1 - out**2)
        heading = np.stack([1.25 * ring * np.cos(turn), ring * np.sin(turn) + 0.15, side * (out + 0.15)], axis=1)
        heading += 0.15 * rng.standard_normal(heading.shape)
        place = body.hilum(side) + heading * (16, 8, 4)
        radius, reach = 4.2, 36.0
        for _ in range(6):
            heading /= np.linalg.norm(heading, axis=1, keepdims=True)
            end = place + heading * reach * rng.uniform(0.7, 1.2, (len(place), 1))
            sizes = radius * rng.uniform(0.8, 1.15, len(place))
            if radius > thinnest:
                for a, b, r in zip(place, end, sizes, strict=True):
                    canvas.tube(a, b, float(r), value, within="lung")
            alive = canvas.in_lung(end)
            place, heading = np.repeat(end[alive], 2, axis=0), np.repeat(heading[alive], 2, axis=0)
            heading = heading + 0.5 * rng.standard_normal(heading.shape)
            radius, reach = radius * 0.72, reach * 0.84
            if not len(place):
                break


def _draw_tumour(rng: np.random.Generator, label: str, shift: float) -> dict[str, Any] | None:
    """Parameters of the tumour. Both presentations are always drawn, so ``shift`` does not move the stream."""
    central = {
        "radial": rng.uniform(0.05, 0.25),
        "diameter_mm": rng.uniform(34, 60),
        "solid": 1.0,
        "collapse": rng.uniform(0.55, 1.0),
        "spicules": rng.uniform(0.0, 0.25),
    }
    peripheral = {
        "radial": rng.uniform(0.68, 0.92),
        "diameter_mm": rng.uniform(20, 32),
        "solid": rng.uniform(0.1, 0.7),
        "collapse": 0.0,
        "spicules": rng.uniform(0.4, 1.0),
    }
    side, cavity = (-1 if rng.random() < 0.55 else 1), rng.random()
    if label not in ("adenocarcinoma", "squamous_cell"):
        return None
    weight = 1.0 if label == "adenocarcinoma" else shift
    tumour = {key: float((1 - weight) * central[key] + weight * peripheral[key]) for key in central}
    # A cavity needs a large solid mass; its probability fades with the presentation like everything else.
    return tumour | {"kind": label, "side": side, "cavity": bool(cavity < 0.4 * (1 - weight))}


def _paint_tumour(canvas: _Canvas, body: _Body, rng: np.random.Generator, tumour: dict[str, Any]) -> dict[str, Any]:
    side, radius = tumour["side"], tumour["diameter_mm"] / 2
    hilum = body.hilum(side)
    best, room = np.array([0.0, 0.0, float(side)]), 0.0
    for _ in range(8):  # a direction in which the lung is deep enough to tell central from peripheral
        direction = rng.standard_normal(3) * (0.9, 0.7, 0.4)
        direction[2] = side * (abs(direction[2]) + 0.5)
        direction /= np.linalg.norm(direction)
        depth = canvas.lung_depth(hilum, direction)
        if depth > room:
            best, room = direction, depth
        if room > 70:
            break
    reach = float(np.clip(tumour["radial"] * room, 0.7 * radius, max(room - 0.5 * radius, 0.7 * radius)))
    centre = hilum + best * reach
    texture = _Texture(rng, max(0.45 * radius, 5.0))

    if tumour["collapse"] > 0.1:  # airless wedge from the obstructed bronchus to the pleura
        middle = hilum + best * room / 2
        found = canvas.box(middle, 0.5 * room + 12)
        if found is not None:
            box, z, y, x = found
            ahead = z * best[0] + y * best[1] + x * best[2] + room / 2
            aside = np.sqrt(np.maximum(z * z + y * y + x * x - (ahead - room / 2) ** 2, 0))
            wedge = np.minimum(4 + 0.55 * tumour["collapse"] * ahead - aside + 3 * texture(z, y, x), ahead)
            wedge = canvas.cover(wedge.astype(np.float32)) * np.float32(0.55 + 0.4 * tumour["collapse"])
            canvas.blend(box, wedge, 25 + 0.3 * body.contrast, within="lung", mark=True)

    found = canvas.box(centre, 1.35 * radius + 4)
    if found is not None:
        box, z, y, x = found
        distance = np.sqrt(z * z + y * y + x * x)
        rough = texture(z, y, x)
        lobes = 0.16 * radius * rough
        core = tumour["solid"] * radius
        haze = canvas.cover(radius + lobes - distance) * np.float32(0.48 + 0.1 * tumour["solid"])
        dense = canvas.cover(core + (0.25 * core if core else 0) * rough - distance) if core > 1.5 else 0 * haze
        canvas.blend(box, np.maximum(haze + 0.06 * rough * (haze > 0), 0), 30, within="lung", mark=True)
        # A central mass also fills the fat and the bronchus beside it.
        grown = "airless" if tumour["radial"] < 0.5 else "lung"
        canvas.blend(box, dense, 42 + 0.2 * body.contrast, within=grown, mark=True)
        if tumour["cavity"]:
            hollow = canvas.cover(
                0.38 * radius + 0.7 * lobes - np.sqrt((z - 2) ** 2 + (y + 0.15 * radius) ** 2 + x * x)
            )
            canvas.blend(box, hollow, -920, within="lung")
    for _ in range(round(16 * tumour["spicules"])):
        ray = rng.standard_normal(3)
        ray /= np.linalg.norm(ray)
        start, end = centre + ray * 0.6 * radius, centre + ray * (radius + rng.uniform(3, 9))
        canvas.tube(start, end, 0.9, 20, within="lung")
    return tumour | {"centre": canvas.voxel(centre), "pleura_mm": room - reach}


def _paint_covid(canvas: _Canvas, body: _Body, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Ground-glass patches under the pleura of both lungs, mostly behind and below, some consolidated."""
    patches = []
    texture = _Texture(rng, 10.0)
    burden = rng.uniform(0.75, 1.25)  # one severity per patient, or every scan would look average
    for side in (-1, 1):
        middle = np.array([0.52 * body.length, 8.0, side * 0.52 * body.chest[0]])
        for _ in range(int(rng.integers(7, 12))):
            heading = rng.standard_normal(3) * (0.7, 0.55, 0.45) + (-0.25, 0.55, side * 0.5)
            heading /= np.linalg.norm(heading)
            radius = float(rng.uniform(20, 38) * burden)
            dense = bool(rng.random() < 0.25)
            depth = canvas.lung_depth(middle, heading)
            centre = middle + heading * max(depth - 0.2 * radius, 0)
            found = canvas.box(centre, 1.4 * radius + 4)
            if found is None or depth == 0:
                continue
            box, z, y, x = found
            # Flattened towards the pleura: along the ray the patch is half as thick as it is wide.
            ahead = z * heading[0] + y * heading[1] + x * heading[2]
            distance = np.sqrt(z * z + y * y + x * x + 1.2 * ahead**2).astype(np.float32)
            absolute = (z + centre[0], y + centre[1], x + centre[2])
            rough = texture(*absolute)
            patch = np.clip((radius * (1 + 0.4 * rough) - distance) / max(5.0, canvas.edge) + 0.5, 0, 1)
            opacity = (0.85 if dense else 0.42) + 0.10 * body.fine(*absolute)
            canvas.blend(box, patch * np.clip(opacity, 0, 1), 20, within="lung", mark=True)
            patches.append(
                {"kind": "covid19", "side": side, "diameter_mm": 2 * radius, "consolidated": dense,
                 "centre": canvas.voxel(centre)}
            )  # fmt: skip
    return patches


def _scan(canvas: _Canvas, site: Site, rng: np.random.Generator) -> None:
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
        shoulders = 1 + 0.5 * _smoothstep(0.8, 0.95, canvas.z[planes, None, None] / canvas.z[-1])
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


def _cover(inside: Array, edge: float) -> Array:
    return np.clip(inside * np.float32(1 / edge) + np.float32(0.5), 0, 1)


def _smoothstep(start: float, stop: float, value: ArrayLike) -> Array:
    part = np.clip((np.asarray(value, np.float32) - start) / (stop - start), 0, 1)
    return part * part * (3 - 2 * part)


def _inside_superellipse(x: Array, y: Array, half_x: Array, half_y: Array, power: float) -> Array:
    """Distance (mm) along the ray from the centre to the outline; positive inside."""
    sides = np.abs(x / half_x) ** power + np.abs(y / half_y) ** power
    ratio = np.maximum(sides, 1e-9) ** np.float32(-1 / power)
    ratio -= 1
    return np.sqrt(x * x + y * y + 1e-6) * ratio
