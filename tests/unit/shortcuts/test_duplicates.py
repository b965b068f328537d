"""Scans that look like one patient's: those that are there twice are listed, and hardly any other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlung.pipeline.shortcuts.duplicates import Pair, embedded, near_duplicates, write_duplicates
from fairlung.pipeline.shortcuts.features import FeatureError, Features


def sides(seed: int, twice: int, noise: float = 0.0, scans: int = 30) -> tuple[Features, Features, tuple, set]:
    """Two sides of a split, of which ``twice`` scans are there on both, under other names; labels, and these pairs."""
    rng = np.random.default_rng(seed)
    own = rng.standard_normal((2 * scans, 24))
    own[scans : scans + twice] = own[:twice]
    labels = np.tile(["covid", "normal"], scans)

    def kind(dimensions: int) -> np.ndarray:
        mixed = own @ rng.standard_normal((24, dimensions)) * (0.9 ** np.arange(dimensions))
        return (mixed + noise * rng.standard_normal(mixed.shape)).astype(np.float32)

    kinds = kind(40), kind(40), kind(9)
    names = np.array([f"a{i}" for i in range(scans)] + [f"b{i}" for i in range(scans)])
    first, second = (
        Features(names[part], *(values[part] for values in kinds), "random", "run 1")
        for part in (slice(scans), slice(scans, None))
    )
    return first, second, (labels[:scans], labels[scans:]), {(f"a{i}", f"b{i}") for i in range(twice)}


@settings(max_examples=15)
@given(st.integers(0, 1000), st.integers(0, 8))
def test_scans_that_are_there_twice_are_found(seed: int, twice: int) -> None:
    first, second, labels, true = sides(seed, twice, noise=0.001)
    found = near_duplicates(first, second, labels, ratio=0.3)
    assert {(pair.scan, pair.other) for pair in found} >= true and len(found) <= twice + 1
    assert [pair.ratio for pair in found] == sorted(pair.ratio for pair in found)
    assert {(pair.other, pair.scan) for pair in near_duplicates(second, first, labels[::-1], ratio=0.3)} == {
        (pair.scan, pair.other) for pair in found
    }


def test_the_evidence_is_that_of_brute_force() -> None:
    first, second, labels, _ = sides(3, 4, noise=0.3)
    vectors = embedded([np.concatenate(pair) for pair in zip(first.kinds().values(), second.kinds().values())])  # noqa: B905
    names, label = [*first.scan, *second.scan], np.concatenate(labels)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1)
    found = near_duplicates(first, second, labels)
    assert found
    for pair in found:
        i, j = names.index(pair.scan), names.index(pair.other)
        like = [k for k in range(len(names)) if label[k] == label[i] and k not in (i, j)]
        others = [1 - vectors[k] @ vectors[at] for at in (i, j) for k in like]
        assert label[i] == label[j] == pair.label
        assert (pair.distance, pair.next) == (pytest.approx(1 - vectors[i] @ vectors[j]), pytest.approx(min(others)))
        assert pair.ratio == pytest.approx(pair.distance / pair.next) and pair.ratio <= 0.7


def test_three_copies_of_a_scan_are_listed() -> None:
    first, second, labels, _ = sides(0, 1)
    for values in second.kinds().values():
        values[2] = values[0]
    assert [pair.ratio for pair in near_duplicates(first, second, labels) if pair.scan == "a0"] == [pytest.approx(0)]


def test_sides_that_cannot_be_compared_are_refused() -> None:
    first, second, labels, _ = sides(0, 0)
    with pytest.raises(FeatureError, match="30 scans are on both sides, such as a0"):
        near_duplicates(first, replace(second, scan=first.scan), labels)
    with pytest.raises(FeatureError, match="of two networks: run 1; run 2"):
        near_duplicates(first, replace(second, judged="run 2"), labels)


def test_a_class_of_a_single_pair_says_nothing() -> None:
    first, second, _, _ = sides(0, 1)
    labels = np.array(["rare"] + ["normal"] * 29), np.array(["rare"] + ["normal"] * 29)
    assert "rare" not in {pair.label for pair in near_duplicates(first, second, labels)}


def test_the_list_is_a_table_also_when_it_is_empty(tmp_path: Path) -> None:
    assert list(pd.read_csv(write_duplicates(tmp_path, []))) == list(Pair.__dataclass_fields__)
    path = write_duplicates(tmp_path, [Pair("=a", "b", "normal", 0.1, 0.4, 0.25)])
    assert pd.read_csv(path).to_dict("records")[0]["ratio"] == 0.25 and "'=a" in path.read_text()
