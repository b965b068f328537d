"""Checks of values: each limit holds from both sides, and a chest needs two lungs inside a body."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlung.transforms.plausibility import (
    check_chest,
    check_grey,
    check_hu,
    check_levels,
    grey_percentiles,
    hu_of,
    lung_shares,
)
from fairlung.transforms.scan import Refusal
from fairlung.transforms.tolerances import AIR_BELOW_HU, LUNG_BELOW_HU, PADDING_HU, RANGE_HU


def slices_of(shares: dict[float, float]) -> np.ndarray:
    """Slices [4, 50, 50] of these values in these shares; the rest is -300 HU, which is neither air nor tissue."""
    hu = np.full(10_000, -300.0)
    start = 0
    for value, share in shares.items():
        hu[start : start + round(share * hu.size)] = value
        start += round(share * hu.size)
    return hu.reshape(50, 50, 4).transpose(2, 0, 1)


def body(lungs: tuple[bool, bool] = (True, True), air: float = -900.0, tissue: float = 40.0) -> np.ndarray:
    """Slices [4, 60, 80]: a body of 50 x 70 pixels with a lung of 30 x 20 on either side of its middle."""
    hu = np.full((4, 60, 80), air)
    hu[:, 5:55, 5:75] = tissue
    for there, left in zip(lungs, (12, 48), strict=True):
        if there:
            hu[:, 15:45, left : left + 20] = air
    return hu + np.random.default_rng(0).normal(0, 5, hu.shape)  # as measured: no two voxels have one value


# ---- HU --------------------------------------------------------------------------------------------------------------
def test_padding_is_no_value() -> None:
    real = np.array([RANGE_HU[0], -1000.0, 40.0, RANGE_HU[1] + 1])
    marked = np.append(real, [PADDING_HU] * 9)
    np.testing.assert_array_equal(hu_of(marked), real)
    corners = np.append(real, [-2000.0, -2030.0])  # one level, blurred
    np.testing.assert_array_equal(hu_of(corners), real)
    np.testing.assert_array_equal(hu_of(np.append(corners, [PADDING_HU] * 9)), real)  # both kinds
    several = np.append(real, [-2000.0, -5000.0])  # the lowest is padding, the other a value
    np.testing.assert_array_equal(hu_of(several), np.append(real, -2000.0))


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ({-900.0: 0.009, 40.0: 0.5}, "air, lung"),
        ({AIR_BELOW_HU: 0.5, 40.0: 0.5}, "air, lung"),
        ({-900.0: 0.5, 40.0: 0.049}, "soft tissue"),
        ({-900.0: 0.5, 300.0: 0.5}, "soft tissue"),
        ({-900.0: 0.4, 40.0: 0.4, 4500.0: 0.101}, "10.1% of the voxels are outside"),
    ],
)
def test_a_value_just_beyond_a_limit_is_refused(shares: dict[float, float], said: str) -> None:
    with pytest.raises(Refusal, match=said):
        check_hu(slices_of(shares))


@pytest.mark.parametrize(
    ("far_out", "warned"), [(0.02, False), (0.0201, True), (0.1, True)], ids=["allowed", "warned of", "not yet refused"]
)
def test_values_out_of_range(far_out: float, warned: bool) -> None:
    told = check_hu(slices_of({-900.0: 0.011, 40.0: 0.051, 4500.0: far_out}))
    assert [warning.partition(":")[0] for warning in told] == ["hu_range"] * warned


# ---- grey levels -----------------------------------------------------------------------------------------------------
@given(st.lists(st.integers(0, 255), min_size=1, max_size=60), st.lists(st.floats(0, 100), min_size=1, max_size=4))
def test_percentiles_are_numpys(levels: list[int], percents: list[float]) -> None:
    counts = np.bincount(levels, minlength=256)
    np.testing.assert_allclose(grey_percentiles(counts, percents), np.percentile(levels, percents), atol=1e-9)


def counted(*slices: dict[int, int]) -> np.ndarray:
    counts = np.zeros((len(slices), 256), dtype=int)
    for row, levels in zip(counts, slices, strict=True):
        row[list(levels)] = list(levels.values())
    return counts


def test_one_grey_is_refused_and_a_blank_slice_is_a_warning() -> None:
    with pytest.raises(Refusal, match="all but one grey"):
        check_grey(counted({100: 50, 103: 50}))
    assert check_grey(counted({100: 50, 104: 50})) == []
    # two pixels of a hundred count, one does not
    assert check_grey(counted({0: 50, 200: 50}, {7: 99, 255: 1}, {7: 97, 255: 3})) == [
        "blank_slices: 1 slices show nothing"
    ]


def test_masks_have_two_levels() -> None:
    assert check_levels(counted({0: 60, 5: 20, 255: 18, 100: 2}).sum(0))[0].startswith("two_levels: 98.0%")
    assert check_levels(counted({0: 60, 5: 19, 255: 18, 100: 3}).sum(0)) == []
    assert check_levels(counted({0: 60, 11: 20, 255: 20}).sum(0)) == []  # three levels: 11 is too far from 0


# ---- a chest ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("lungs", [(True, True), (True, False), (False, True), (False, False)])
def test_shares_of_the_lungs_are_those_of_the_body(lungs: tuple[bool, bool]) -> None:
    expected = [there * 30 * 20 / (50 * 70) for there in lungs]
    assert lung_shares(body(lungs) < LUNG_BELOW_HU) == pytest.approx(expected)


@pytest.mark.parametrize("lungs", [(True, False), (False, True), (False, False)])
def test_a_chest_has_two_lungs(lungs: tuple[bool, bool]) -> None:
    assert check_chest(body(), LUNG_BELOW_HU) == []
    assert [told.partition(":")[0] for told in check_chest(body(lungs), LUNG_BELOW_HU)] == ["no_chest"]


def test_a_crop_that_opens_a_lung_to_the_edge_leaves_a_chest() -> None:
    assert check_chest(body()[:, 8:52, 14:66], LUNG_BELOW_HU) == []


def test_inverted_and_masked_chests_are_told_of() -> None:
    (inverted,) = check_chest(body(air=40.0, tissue=-900.0), LUNG_BELOW_HU)
    assert inverted.startswith("inverted:")


@pytest.mark.parametrize(("rows", "warned"), [(5, False), (7, True)], ids=["8 %", "12 %"])
def test_what_was_cut_away_on_a_bright_ground_is_told_of(rows: int, warned: bool) -> None:
    cut = body()
    cut[:, :rows] = 0
    cut[:, [0, -1], [0, -1]] = cut[:, [0, -1], [-1, 0]] = 0
    told = check_chest(cut, LUNG_BELOW_HU)
    assert [warning.partition(":")[0] for warning in told] == ["masked"] * warned
