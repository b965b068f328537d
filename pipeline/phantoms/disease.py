"""Tumours and pneumonia: what is drawn of them, and how they are painted into the lungs."""

from typing import Any

import numpy as np

from .body import Body
from .canvas import Canvas, Texture


def draw_tumour(rng: np.random.Generator, label: str, shift: float) -> dict[str, Any] | None:
    """Parameters of the tumour. Both presentations are always drawn, so ``shift`` does not move the stream."""
    central = {"radial": rng.uniform(0.05, 0.25), "diameter_mm": rng.uniform(34, 60), "solid": 1.0,
               "collapse": rng.uniform(0.55, 1.0), "spicules": rng.uniform(0.0, 0.25)}  # fmt: skip
    peripheral = {"radial": rng.uniform(0.68, 0.92), "diameter_mm": rng.uniform(20, 32), "solid": rng.uniform(0.1, 0.7),
                  "collapse": 0.0, "spicules": rng.uniform(0.4, 1.0)}  # fmt: skip
    side, cavity = (-1 if rng.random() < 0.55 else 1), rng.random()
    if label not in ("adenocarcinoma", "squamous_cell"):
        return None
    weight = 1.0 if label == "adenocarcinoma" else shift
    tumour = {key: float((1 - weight) * central[key] + weight * peripheral[key]) for key in central}
    # A cavity needs a large solid mass; its probability fades with the presentation like everything else.
    return tumour | {"kind": label, "side": side, "cavity": bool(cavity < 0.4 * (1 - weight))}


def paint_tumour(canvas: Canvas, body: Body, rng: np.random.Generator, tumour: dict[str, Any]) -> dict[str, Any]:
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
    texture = Texture(rng, max(0.45 * radius, 5.0))

    if tumour["collapse"] > 0.1:  # airless wedge from the obstructed bronchus to the pleura
        found = canvas.box(hilum + best * room / 2, 0.5 * room + 12)
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
        grown = "airless" if tumour["radial"] < 0.5 else "lung"  # a central mass fills fat and bronchus beside it too
        canvas.blend(box, dense, 42 + 0.2 * body.contrast, within=grown, mark=True)
        if tumour["cavity"]:
            far = np.sqrt((z - 2) ** 2 + (y + 0.15 * radius) ** 2 + x * x)
            hollow = canvas.cover(0.38 * radius + 0.7 * lobes - far)
            canvas.blend(box, hollow, -920, within="lung")
    for _ in range(round(16 * tumour["spicules"])):
        ray = rng.standard_normal(3)
        ray /= np.linalg.norm(ray)
        start, end = centre + ray * 0.6 * radius, centre + ray * (radius + rng.uniform(3, 9))
        canvas.tube(start, end, 0.9, 20, within="lung")
    return tumour | {"centre": canvas.voxel(centre), "pleura_mm": room - reach}


def paint_covid(canvas: Canvas, body: Body, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Ground-glass patches under the pleura of both lungs, mostly behind and below, some consolidated."""
    patches = []
    texture = Texture(rng, 10.0)
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
            patch_truth = {"kind": "covid19", "side": side, "diameter_mm": 2 * radius, "consolidated": dense}
            patches.append(patch_truth | {"centre": canvas.voxel(centre)})
    return patches
