"""Choosing slices: the published loader's indices, and what holds for every depth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fairlung.transforms import (
    FirstSlices,
    FirstSlicesd,
    SampleSlices,
    SampleSlicesd,
    SliceSelector,
    TrimSlices,
    TrimSlicesd,
)
from fairlung.transforms.slices import sample_indices, trim_indices

GOLDEN = json.loads((Path(__file__).parents[2] / "data/golden/slice_indices.json").read_text())

depths = st.integers(1, 1500)
fractions = st.floats(0, 0.5, exclude_max=True)
selectors = st.one_of(
    st.builds(TrimSlices, fractions),
    st.builds(SampleSlices, st.integers(1, 100)),
    st.builds(FirstSlices, st.integers(1, 800)),
)


@pytest.mark.parametrize("depth", GOLDEN)
def test_golden_indices(depth: str) -> None:
    trimmed = TrimSlices(0.1).indices(int(depth))
    assert trimmed[SampleSlices(64).indices(len(trimmed))].tolist() == GOLDEN[depth]


@given(depths, selectors)
def test_indices_are_sorted_in_range_and_never_empty(depth: int, selector: SliceSelector) -> None:
    indices = selector.indices(depth)
    assert indices.dtype == np.int64 and indices.ndim == 1
    assert len(indices) >= 1
    assert indices[0] >= 0 and indices[-1] < depth
    assert (np.diff(indices) >= 0).all()


@given(depths, fractions)
def test_trim_drops_the_fraction_at_each_end(depth: int, fraction: float) -> None:
    indices = trim_indices(depth, fraction)
    assert (np.diff(indices) == 1).all()
    below, above = indices[0], depth - 1 - indices[-1]
    assert abs(int(below) - int(above)) <= 1
    if depth <= 5 or fraction == 0:
        assert len(indices) == depth
    elif len(indices) > 1:  # else the rule may have left none, and the middle slice stands in
        assert abs(below - fraction * depth) <= 1 and abs(above - fraction * depth) <= 1


@pytest.mark.parametrize(("depth", "fraction", "middle"), [(6, 0.49, 3), (7, 0.499, 3), (100, 0.4999, 50)])
def test_trim_keeps_the_middle_slice_where_the_rule_leaves_none(depth: int, fraction: float, middle: int) -> None:
    indices = trim_indices(depth, fraction).tolist()
    assert len(indices) == 1 and abs(indices[0] - middle) <= 1


@given(depths, st.integers(1, 200))
def test_sample_keeps_both_ends_and_spreads_evenly(depth: int, number: int) -> None:
    indices = sample_indices(depth, number)
    assert len(indices) == number
    assert indices[0] == 0
    if number > 1:
        assert indices[-1] == depth - 1
        steps = np.diff(indices)
        assert steps.max() - steps.min() <= 1
    if number == depth:
        assert indices.tolist() == list(range(depth))
    if number <= depth:
        assert len(set(indices.tolist())) == number  # nothing twice while there is enough


@given(depths, st.integers(1, 800))
def test_first_slices_keep_all_up_to_the_maximum(depth: int, number: int) -> None:
    assert FirstSlices(number).indices(depth).tolist() == list(range(depth))[:number]


def test_first_slices_by_key() -> None:
    volume = np.arange(5.0).reshape(1, 5, 1, 1)
    assert FirstSlicesd("image", 3)({"image": volume})["image"].ravel().tolist() == [0, 1, 2]
    assert FirstSlicesd("image", 9)({"image": volume})["image"].ravel().tolist() == [0, 1, 2, 3, 4]
    for number in (0, -3, 2.5):
        with pytest.raises(ValueError, match=f"max_slices must be a whole number of at least 1, got {number}"):
            FirstSlices(number)  # type: ignore[arg-type]


@pytest.mark.parametrize("selector", [TrimSlices(0.2), SampleSlices(7), SampleSlices(30)])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_transforms_select_along_depth(selector: SliceSelector, kind: str) -> None:
    array = np.random.default_rng(0).random((2, 20, 3, 4), dtype=np.float32)
    volume = torch.from_numpy(array) if kind == "torch" else array
    expected = array[:, selector.indices(20)]
    by_key = TrimSlicesd("image", 0.2) if isinstance(selector, TrimSlices) else SampleSlicesd("image", len(expected[0]))
    data = {"image": volume, "label": 1}

    selected = selector(volume)
    assert type(selected) is type(volume)
    np.testing.assert_array_equal(np.asarray(selected), expected)
    result = by_key(data)
    np.testing.assert_array_equal(np.asarray(result["image"]), expected)
    assert result["label"] == 1
    assert data["image"] is volume and volume.shape[1] == 20  # the input is left alone


def test_missing_keys() -> None:
    data = {"label": 1}
    for transform in (TrimSlicesd, SampleSlicesd):
        argument = 0.1 if transform is TrimSlicesd else 4
        assert transform("image", argument, allow_missing_keys=True)(data) == data
        with pytest.raises(KeyError, match="image"):
            transform("image", argument)(data)


def test_several_keys() -> None:
    result = SampleSlicesd(["image", "mask"], 2)({"image": np.zeros((1, 5, 1, 1)), "mask": np.ones((1, 9, 1, 1))})
    assert result["image"].shape[1] == result["mask"].shape[1] == 2


@pytest.mark.parametrize("fraction", [-0.1, 0.5, 1.0, float("nan")])
def test_bad_fraction_is_named(fraction: float) -> None:
    with pytest.raises(ValueError, match=rf"fraction must be in \[0, 0.5\), got {fraction}"):
        TrimSlices(fraction)
    with pytest.raises(ValueError, match=f"got {fraction}"):
        TrimSlicesd("image", fraction)


@pytest.mark.parametrize("number", [0, -3, 2.5])
def test_bad_number_is_named(number: float) -> None:
    with pytest.raises(ValueError, match=f"num_slices must be a whole number of at least 1, got {number}"):
        SampleSlices(number)  # type: ignore[arg-type]


def test_no_depth_and_wrong_shape_are_named() -> None:
    for selector in (TrimSlices(), SampleSlices(3)):
        with pytest.raises(ValueError, match="at least 1 slice, got 0"):
            selector.indices(0)
        with pytest.raises(ValueError, match=r"4 dimensions \[1, D, H, W\], got shape \(5, 6, 7\)"):
            selector(np.zeros((5, 6, 7)))


def test_where_trimming_would_leave_no_slice_the_middle_one_stays() -> None:
    assert trim_indices(7, 0.49).tolist() == [3]
