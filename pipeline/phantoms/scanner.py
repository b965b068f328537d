"""The scanners of the phantom's sites, and what they make of an anatomy: blur and noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .canvas import Array, Canvas, smoothstep


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
