"""The healthy chest: what is drawn once per patient, and how it is painted."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .canvas import AIR, FAT, LIVER, MUSCLE, TISSUE, Array, Canvas, Site, Texture, inside_superellipse, smoothstep

Axes = tuple[Array, Array, Array]  # z, y, x in mm, ready to broadcast


@dataclass(frozen=True)
class Body:
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
    coarse: Texture
    fine: Texture

    def outline(self, z: ArrayLike) -> tuple[Array, Array]:
        """Half width and half depth of the body: flatter and wider at the shoulders."""
        s = smoothstep(0.78, 0.97, np.asarray(z, np.float32) / self.length)
        wall = self.muscle + self.fat + 9
        return (self.chest[0] + wall) * (1 + 0.07 * s), (self.chest[1] + 0.8 * wall) * (1 - 0.26 * s)

    def field(self) -> float:
        return float(np.clip(2 * float(self.outline(self.length)[0]) * self.margin, 290, 500))

    def cage(self, z: ArrayLike) -> tuple[Array, Array, Array]:
        """Half width, half depth and centre y of the rib cage's inside: a dome that closes above the apex."""
        n = np.clip((np.asarray(z, np.float32) / self.length - 0.40) / (self.apex - 0.40), 0, 1)
        scale = np.maximum(np.sqrt(1 - n**2.2), 0.02)
        return self.chest[0] * scale, self.chest[1] * scale**0.9, 4 + 10 * n

    def spine(self, z: ArrayLike) -> Array:
        return self.outline(z)[1] - 0.8 * self.fat - 50

    def hilum(self, side: int) -> NDArray[np.float64]:
        """(z, y, x) where vessels and main bronchus enter the lung; side -1 is the patient's right."""
        return np.array([0.58 * self.length, 4.0, side * 36.0 + self.pull])


def draw_body(rng: np.random.Generator, sex: str, site: Site, tumour: dict[str, Any] | None) -> Body:
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
        right = tumour["side"] < 0
        domes = domes[0] + 34.0 * tumour["collapse"] * right, domes[1] + 34.0 * tumour["collapse"] * (not right)
    return Body(
        sex=sex, length=length, chest=(float(chest[0]), float(chest[1])), fat=fat, muscle=muscle,
        breast=float(breast), apex=apex, domes=(float(domes[0]), float(domes[1])), pull=pull,
        lung_hu=float(rng.normal(-855, 18)), contrast=contrast, ribs=(float(rng.uniform(23, 27)), float(rng.random())),
        heart=float(rng.normal(1.0 if male else 0.93, 0.07)), offset=(float(rng.normal(0, 5)), float(rng.normal(0, 5))),
        margin=float(rng.uniform(1.06, 1.16)), table=site.table, coarse=Texture(rng, 34.0), fine=Texture(rng, 9.0),
    )  # fmt: skip


def draw_place(rng: np.random.Generator) -> dict[str, Any]:
    """Where the patient lies when scanned again, and how wide the field of view is: as :func:`draw_body` draws them."""
    return {
        "offset": (float(rng.normal(0, 5)), float(rng.normal(0, 5))), "margin": float(rng.uniform(1.06, 1.16)),
    }  # fmt: skip


def paint_slab(canvas: Canvas, body: Body, planes: slice) -> None:
    """Everything that fills whole slices: table, breasts, skin, fat, muscle, ribs, spine, lungs, abdomen."""
    axes = canvas.z[planes, None, None], canvas.y[None, :, None], canvas.x[None, None, :]
    coarse, fine = body.coarse(*axes), body.fine(*axes)
    hu = np.full(coarse.shape, AIR, np.float32)
    _paint_outside(hu, canvas, body, axes, coarse, fine)
    cage = _paint_wall(hu, canvas, body, axes, fine)
    share = _paint_inside(hu, canvas, body, axes, cage, coarse, fine)
    _paint_spine(hu, canvas, body, axes)
    canvas.hu[planes] = np.rint(np.clip(hu, -1024, 1500))
    canvas.lung[planes] = np.rint(share * 255)


def _paint_outside(hu: Array, canvas: Canvas, body: Body, axes: Axes, coarse: Array, fine: Array) -> None:
    """Table, breasts, skin, fat and muscle."""
    (z, y, x), cover = axes, canvas.cover
    width, depth = body.outline(z)
    middle_y = float(body.outline(0.5 * body.length)[1])
    if body.table:
        top = middle_y + 8 - x**2 / 1600
        hu += cover(3 - np.abs(y - top - 2)) * (np.abs(x) < 0.9 * width) * 850

    inside = inside_all = inside_superellipse(x, y, width, depth, 2.5)
    if body.breast > 0.1:
        size = body.breast**0.5
        cz, cy, cx = 0.47 * body.length, -0.84 * middle_y, 0.52 * body.chest[0]
        q = ((z - cz) / (62 * size)) ** 2 + ((y - cy) / (44 * size)) ** 2 + ((np.abs(x) - cx) / (62 * size)) ** 2
        breast = (1 - np.sqrt(q)) * 44 * size
        gland = np.clip(breast / 22 - 0.35, 0, 1) * np.clip(0.5 + 1.4 * fine, 0, 1)
        inside_all = np.maximum(inside, breast)
        hu += cover(breast) * (FAT + 130 * gland - hu)
    part = cover(inside)
    hu += part * (FAT + 12 * fine - hu)
    skin = cover(2.2 - np.abs(inside_all - 2)) * cover(inside_all)
    hu += 0.8 * skin * (20 - hu)
    # Muscle, with fat planes between its bellies; at the shoulders it fills everything outside the cage.
    under_fat = inside - body.fat * (0.75 + 0.5 * np.abs(x) / width)
    hu += cover(under_fat) * (MUSCLE + 8 * fine - 120 * cover(1.6 - 26 * np.abs(coarse + 0.25 * fine)) - hu)


def _paint_wall(hu: Array, canvas: Canvas, body: Body, axes: Axes, fine: Array) -> Array:
    """The chest wall; returns the depth (mm) inside the rib cage."""
    (z, y, x), cover = axes, canvas.cover
    cage_x, cage_y, cage_c = body.cage(z)
    cage = inside_superellipse(x, y - cage_c, cage_x, cage_y, 2.4)
    # Intercostal muscle, ribs that descend from the spine to the front, cartilage near the sternum.
    wall = cover(cage + 11)
    hu += wall * (50 + 8 * fine - hu)
    spacing, phase = body.ribs
    height = (z - 0.55 * (y - cage_c)) / spacing + phase
    height = (height - np.rint(height)) * spacing
    rib = (1 - np.sqrt((height / 6.0) ** 2 + ((cage + 5.5) / 4.5) ** 2)) * 4.5
    front = smoothstep(0.62, 0.85, (cage_c - y) / cage_y)
    hu += cover(rib) * ((700 - 420 * np.clip(rib / 3, 0, 1)) * (1 - front) + 130 * front - hu)
    return cage


def _paint_inside(hu: Array, canvas: Canvas, body: Body, axes: Axes, cage: Array, coarse: Array, fine: Array) -> Array:
    """Abdomen below the diaphragm, mediastinal fat in the middle, lungs elsewhere; returns the share of lung."""
    (z, y, x), cover = axes, canvas.cover
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
    half = 8 + 22 * np.exp(-(((y - spine_y + 62) / 32) ** 2)) + 22 * smoothstep(-28, -14, y - spine_y)
    half = half * (1 + 0.25 * smoothstep(0.8, 0.92, z / body.length))
    pulled = body.pull * np.exp(-(((z / body.length - 0.55) / 0.25) ** 2)) * smoothstep(50, 10, y)
    lateral = np.abs(x - pulled) - half + 5 * coarse
    lung = np.minimum(np.minimum(cage, lateral), above * 0.85)
    share = cover(lung)
    hu += inner * (cover(-above) * (below - FAT) + FAT + 6 * fine - hu)
    air = body.lung_hu + 28 * (y / body.chest[1]) + 12 * coarse + 14 * fine
    hu += share * (air - hu)
    return share


def _paint_spine(hu: Array, canvas: Canvas, body: Body, axes: Axes) -> None:
    """Vertebral bodies with cortex and discs, canal, lamina and processes; the sternum. Only the middle columns."""
    (z, y, x), cover = axes, canvas.cover
    _, cage_y, cage_c = body.cage(z)
    columns = slice(*np.searchsorted(canvas.x, (-52, 52)))
    mid, xs = hu[:, :, columns], x[:, :, columns]
    down = y - body.spine(z)
    level = z / 25.5 + body.ribs[1]
    disc = smoothstep(0.34, 0.42, np.abs(level - np.rint(level)))
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
    flat = (1 - np.sqrt((xs / (17 + 8 * smoothstep(0.74, 0.8, t))) ** 2 + ((y - cage_c + cage_y + 5) / 6) ** 2)) * 6
    flat = flat - 400 * (np.clip(0.42 - t, 0, 1) + np.clip(t - 0.84, 0, 1))
    mid += cover(flat) * (480 - 330 * np.clip(flat / 3, 0, 1) - mid)


def paint_organs(canvas: Canvas, body: Body) -> None:
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
    canvas.path([beside_spine(t, 16, 28 - 14 * max(0, 0.5 - t)) for t in (0.65, 0.5, 0.35, 0.2, 0.0)], 12.5, blood)
    canvas.path([at(0.48, -34, 10), at(0.56, -30, 22), at(0.605, -10, 20)], 14.0, blood)  # pulmonary trunk
    canvas.path([at(0.59, -10, 20), at(0.585, -2, -18), at(0.58, 4, -44)], 9.5, blood)
    canvas.path([at(0.605, -10, 20), at(0.60, 4, 44)], 9.5, blood)
    canvas.path([at(0.46, -18, -30), at(0.66, -22, -30), at(0.76, -20, -24), at(0.97, -18, -40)], 8.0, blood)  # v. cava
    canvas.path([at(0.75, -26, -22), at(0.79, -30, 10), at(0.97, -18, 42)], 6.0, blood)
    for x in (-13, 13, 26):
        canvas.path([at(0.71, -8, x / 2), at(0.85, -6, x), at(1.0, 0, x * 1.3)], 4.2, blood)
    canvas.path([beside_spine(t, 20, 4) for t in (0.0, 0.3, 0.6, 0.8, 1.0)], 6.0, TISSUE)  # oesophagus

    carina, inlet = beside_spine(0.635, 44, 0), beside_spine(1.0, 30, 0)
    windpipe = 8.8 if body.sex == "male" else 7.8
    airways: list[tuple[list[Any], float]] = [([inlet, beside_spine(0.8, 36, 0), carina], windpipe)]
    for side in (-1, 1):
        hilum = body.hilum(side)
        airways.append(([carina, hilum + (0, 2, 0)], 6.3))
        for dz, dy, dx in ((38, -8, 22), (6, -34, 30), (-40, 22, 24)):
            airways.append(([hilum + (0, 2, 0), hilum + (dz, dy, side * dx)], 3.2))
    for wall, value in ((1.8, 10), (0, -990)):  # all walls first: a lumen must stay open where airways meet
        for points, radius in airways:
            canvas.path(points, radius + wall, value)
    _paint_ends(canvas, body)


def _paint_ends(canvas: Canvas, body: Body) -> None:
    """Shoulder girdle above, spleen and stomach below."""
    length = body.length
    shoulder = float(body.outline(0.95 * length)[0])
    for side in (-1, 1):
        joint = (0.97 * length, -4, side * (shoulder - 38))
        canvas.path([(0.84 * length, -body.chest[1] * 0.62, side * 16), (0.93 * length, -38, side * 70), joint], 6, 520)
        canvas.ellipsoid(joint, (21, 21, 22), 620)
        canvas.ellipsoid(joint, (18, 18, 19), 230)
        out = body.chest[0] * 0.78
        for t, width in ((0.62, 14), (0.70, 24), (0.78, 32), (0.86, 36)):
            y = float(body.outline(t * length)[1]) - body.fat - 17
            blade = (0.06 * length, 4.5, width)
            canvas.ellipsoid((t * length, y, side * out), blade, 480, yaw=side * 0.55, within="keep")
    low, front = body.domes[1] - 42, -0.35 * body.chest[1]
    spleen = (low - 8, 0.42 * body.chest[1], 0.66 * body.chest[0])
    canvas.ellipsoid(spleen, (42, 30, 26), 50 + 0.4 * body.contrast, yaw=-0.5)
    canvas.ellipsoid((low, front, 0.5 * body.chest[0]), (34, 30, 36), 30)
    canvas.ellipsoid((low + 4, front - 10, 0.5 * body.chest[0]), (24, 16, 26), -950)  # supine: the bubble is in front


def paint_tree(canvas: Canvas, body: Body, rng: np.random.Generator) -> None:
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
