"""A synthetic chest CT in Hounsfield units, for tests and demonstrations without a download.

No patient is behind it, and it says nothing on how a model will do on patients; docs/phantom.md lists what it models.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common.names import CLASS_NAMES, SEXES
from .body import draw_body, draw_place, paint_organs, paint_slab, paint_tree
from .canvas import SHIFTED_SITES, SITES, Canvas, image
from .disease import draw_tumour, paint_covid, paint_tumour


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def check_shift(value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"presentation_shift must be in [0, 1], got {value}")


@dataclass(frozen=True)
class PhantomScan:
    hu: NDArray[np.int16]  # (D, H, W) in [-1024, 1500], inferior to superior, anterior to posterior, right to left
    spacing: tuple[float, float, float]  # (dz, dy, dx) mm
    label: str
    sex: str
    age: int  # years
    site: str
    lesion: NDArray[np.bool_]  # (D, H, W): the tissue that disease replaced
    truth: dict[str, Any]  # what was drawn: habitus, lesions (centres in voxels, sizes in mm), volumes in ml


def synthesize(
    label: str, sex: str, *, rng: np.random.Generator, shape: tuple[int, int, int], site: str | None = None,
    presentation_shift: float = 0.0, take: int = 0,
) -> PhantomScan:  # fmt: skip
    """Draw one scan of ``shape`` (D, H, W), each axis at least 8; the slice thickness is chest length / D.

    Independent streams of ``rng`` draw body, disease, vessels and noise: equal generators and different labels give the
    same patient with and without the disease, and other ``take`` the same patient and disease scanned again: placed
    otherwise in another field of view, with other noise. ``site`` is a key of ``SITES`` or ``SHIFTED_SITES``; None
    draws one of ``SITES``. ``presentation_shift`` in [0, 1] moves squamous_cell in females, and nothing else, towards
    the presentation of adenocarcinoma (1: the same distribution). Peak memory: about 6 bytes a voxel, and one slab.
    ValueError for a value that is out of range.
    """
    check_choice("label", label, CLASS_NAMES)
    check_choice("sex", sex, SEXES)
    check_shift(presentation_shift)
    if len(shape) != 3 or min(shape) < 8:
        raise ValueError(f"shape must be (D, H, W) with every axis >= 8, got {shape}")
    if site is not None:
        check_choice("site", site, (*SITES, *SHIFTED_SITES))
    body_rng, disease_rng, vessel_rng, noise_rng = rng.spawn(4)
    drawn_site = str(body_rng.choice(list(SITES)))  # drawn even if given: the rest of the stream must not move
    scanner = {**SITES, **SHIFTED_SITES}[site or drawn_site]
    age = int(np.clip(np.rint(body_rng.normal(63, 10)), 30, 90))

    shift = presentation_shift if (label, sex) == ("squamous_cell", "female") else 0.0
    tumour = draw_tumour(disease_rng, label, shift)
    body = draw_body(body_rng, sex, scanner, tumour)
    if take:
        place_rng, noise_rng = rng.spawn(2 * take)[-2:]
        body = replace(body, **draw_place(place_rng))
    canvas = Canvas(shape, body.length, body.field(), body.offset)
    for planes in canvas.slabs():
        paint_slab(canvas, body, planes)
    paint_organs(canvas, body)
    lung_ml = float(np.count_nonzero(canvas.lung > 127)) * canvas.voxel_ml
    paint_tree(canvas, body, vessel_rng)
    lesions = [paint_tumour(canvas, body, disease_rng, tumour)] if tumour else []
    if label == "covid19":
        lesions = paint_covid(canvas, body, disease_rng)
    image(canvas, scanner, noise_rng)
    lesion_ml = float(np.count_nonzero(canvas.lesion)) * canvas.voxel_ml
    truth: dict[str, Any] = {"presentation_shift": shift, "length_mm": body.length, "fat_mm": body.fat}
    truth |= {"breast": body.breast, "contrast_hu": body.contrast, "noise_hu": scanner.noise_hu}
    truth |= {"lung_ml": lung_ml, "lesion_ml": lesion_ml, "lesions": lesions}
    return PhantomScan(canvas.hu, canvas.spacing, label, sex, age, scanner.name, canvas.lesion, truth)
