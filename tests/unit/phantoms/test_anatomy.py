"""The phantom's anatomy: reproducible, plausible in HU, and diseased where it says so."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy import ndimage

from fairlung.pipeline.common.names import CLASS_NAMES, SEXES
from fairlung.pipeline.phantoms import anatomy as phantom
from fairlung.pipeline.phantoms.anatomy import synthesize

SMALL = (52, 64, 64)


def make(label: str, sex: str = "male", seed: int = 0, **options: object) -> phantom.PhantomScan:
    return synthesize(label, sex, rng=np.random.default_rng(seed), **({"shape": SMALL} | options))  # type: ignore[arg-type]


def lungs(scan: phantom.PhantomScan) -> np.ndarray:
    """Labelled air inside the body. One erosion parts the lungs from each other and from the airways."""
    air = ndimage.binary_erosion(ndimage.median_filter(scan.hu, 3) < -500, border_value=1)
    parts = ndimage.label(air)[0]
    border = np.unique(np.concatenate([parts[:, edge].ravel() for edge in (0, -1)]))
    return np.where(np.isin(parts, border), 0, parts)


def test_same_seed_same_bytes_and_other_seed_other_bytes() -> None:
    first, again, other = make("covid19", seed=5), make("covid19", seed=5), make("covid19", seed=6)
    assert first.hu.tobytes() == again.hu.tobytes() and first.truth == again.truth
    assert first.hu.dtype == np.int16 and first.hu.shape == SMALL
    assert first.hu.tobytes() != other.hu.tobytes()


@pytest.mark.parametrize("label", CLASS_NAMES)
def test_another_take_is_the_same_patient_with_other_noise_and_place(label: str) -> None:
    first, second, again, third = (make(label, site="birch", seed=8, take=take) for take in (0, 1, 1, 2))
    assert second.hu.tobytes() == again.hu.tobytes()
    volumes = [scan.hu.tobytes() for scan in (first, second, third)]
    assert len(set(volumes)) == 3 and len({scan.spacing[1] for scan in (first, second, third)}) == 3
    for scan in (second, third):
        assert scan.age == first.age
        for key in ("length_mm", "fat_mm", "breast", "contrast_hu"):
            assert scan.truth[key] == first.truth[key]
        assert [lesion["diameter_mm"] for lesion in scan.truth["lesions"]] == [
            lesion["diameter_mm"] for lesion in first.truth["lesions"]
        ]


@pytest.mark.parametrize("sex", SEXES)
def test_hu_are_those_of_a_chest(sex: str) -> None:
    scan = make("normal", sex, seed=2, shape=(60, 96, 96), site="alder")
    hu = scan.hu
    assert hu.min() >= -1024 and hu.max() <= 1500
    assert abs(np.median(hu[:, :4, :4]) + 1000) < 40  # corner: air
    for low, high, least in ((-140, -60, 0.02), (20, 90, 0.08), (300, 1500, 0.004)):  # fat, soft tissue, bone
        assert ((hu > low) & (hu < high)).mean() > least, (low, high)
    parts = lungs(scan)
    sizes = Counter(parts[parts > 0].tolist())
    (right, big), (left, second) = sizes.most_common(2)
    millilitres = np.prod(scan.spacing) / 1000
    assert 1000 < second * millilitres <= big * millilitres < 4500
    columns = sorted(ndimage.center_of_mass(parts == k)[2] for k in (right, left))
    assert columns[0] < 45 and columns[1] > 51  # one on either side of the middle
    top = max(np.flatnonzero((parts == k).any(axis=(1, 2)))[-1] for k in (right, left))
    assert 0.8 * 60 < top < 0.98 * 60  # an apex, with neck above


def test_axes_are_superior_posterior_left() -> None:
    hu = ndimage.gaussian_filter(make("normal", seed=4, shape=(60, 96, 96), site="alder").hu.astype(np.float32), 1)
    low = hu[4:10]
    organ = (low > 30) & (low < 130)
    assert organ[:, :, 24:40].sum() > 1.15 * organ[:, :, 56:72].sum()  # the liver is on the right: low columns
    bone = hu[20:40, :, 42:54] > 250
    assert bone[:, 48:].sum() > 3 * bone[:, :48].sum()  # the spine is behind: high rows
    assert (hu[40:50] < -600)[:, 30:60, 20:76].sum() > 3 * (hu[:6] < -600)[:, 30:60, 20:76].sum()  # lungs above


def test_thickness_times_slices_is_a_chest() -> None:
    for depth in (12, 50, 130):
        scan = make("normal", seed=depth, shape=(depth, 32, 32))
        assert 280 <= scan.spacing[0] * depth <= 340


def test_sexes_overlap_but_differ() -> None:
    def width(sex: str) -> np.ndarray:
        scans = [make("normal", sex, seed=s, shape=(10, 48, 48)) for s in range(24)]
        return np.array([(s.hu[5] > -300).any(axis=0).sum() * s.spacing[2] for s in scans])

    male, female = width("male"), width("female")
    assert male.mean() > female.mean() + 8
    assert female.max() > male.min() + 10
    assert make("normal", "female", seed=1).truth["breast"] > 0.1


@pytest.mark.parametrize("label", ["adenocarcinoma", "squamous_cell", "covid19"])
def test_disease_makes_lung_denser_where_the_mask_says(label: str) -> None:
    sick, well = make(label, seed=8, site="alder"), make("normal", seed=8, site="alder")
    assert not well.lesion.any() and well.truth["lesions"] == [] and well.truth["lesion_ml"] == 0
    assert sick.lesion.sum() > 10
    difference = sick.hu[sick.lesion].astype(float) - well.hu[sick.lesion]
    assert difference.mean() > 150
    if label != "squamous_cell":  # volume loss moves the mediastinum of the same patient, the others change nothing
        far = ~ndimage.binary_dilation(sick.lesion, iterations=4)
        assert np.abs(sick.hu[far].astype(float) - well.hu[far]).mean() < 3


def test_squamous_is_larger_and_more_central() -> None:
    def lesions(label: str) -> tuple[float, float]:
        scans = [make(label, seed=s, site="birch") for s in range(10)]
        return (
            float(np.mean([s.truth["lesion_ml"] for s in scans])),
            float(np.mean([s.truth["lesions"][0]["pleura_mm"] for s in scans])),
        )

    (large, deep), (small, shallow) = lesions("squamous_cell"), lesions("adenocarcinoma")
    assert large > 3 * small and deep > shallow + 20


def test_covid_is_bilateral_and_mostly_behind() -> None:
    sides, rows = [], []
    for seed in range(6):
        sick, well = make("covid19", seed=seed, site="alder"), make("normal", seed=seed, site="alder")
        lung = lungs(well) > 0
        for columns in (slice(0, 32), slice(32, 64)):
            inside = lung[:, :, columns]
            sides.append(np.mean(sick.hu[:, :, columns][inside].astype(float) - well.hu[:, :, columns][inside]))
        rows.append(np.nonzero(sick.lesion)[1].mean() - np.nonzero(lung)[1].mean())
    assert min(sides) > 10 and np.mean(rows) > 2


def test_presentation_shift_moves_female_squamous_only() -> None:
    for label, sex in ((a, b) for a in CLASS_NAMES for b in SEXES):
        plain, shifted = (make(label, sex, seed=9, presentation_shift=s) for s in (0.0, 0.6))
        moved = (label, sex) == ("squamous_cell", "female")
        assert (plain.hu.tobytes() != shifted.hu.tobytes()) == moved, (label, sex)
        assert shifted.truth["presentation_shift"] == (0.6 if moved else 0.0)
        if moved:
            a, b = plain.truth["lesions"][0], shifted.truth["lesions"][0]
            assert b["radial"] > a["radial"] + 0.15
            assert all(b[key] < a[key] for key in ("diameter_mm", "solid", "collapse"))
            assert shifted.truth["lesion_ml"] < plain.truth["lesion_ml"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"presentation_shift": 1.3}, r"presentation_shift must be in \[0, 1\], got 1.3"),
        ({"label": "flu"}, "label must be one of .*, got 'flu'"),
        ({"sex": "F"}, "sex must be one of male, female, got 'F'"),
        ({"site": "nowhere"}, "site must be one of .*, got 'nowhere'"),
        ({"shape": (50, 64)}, r"shape must be \(D, H, W\) .* got \(50, 64\)"),
    ],
)
def test_synthesize_names_the_wrong_value(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**({"label": "normal"} | change))  # type: ignore[arg-type]
