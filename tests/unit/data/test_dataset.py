"""Cached volumes: nothing lost, never stale, never recomputed in vain; augmentation drawn once a volume."""

from __future__ import annotations

import functools
import multiprocessing
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from monai.data import list_data_collate
from monai.transforms import (
    Compose,
    Lambdad,
    RandFlipd,
    RandRotate90d,
    RandScaleIntensityd,
    RandSpatialCropd,
    Resized,
    ScaleIntensityRanged,
    ThresholdIntensityd,
)
from monai.utils import set_determinism
from PIL import Image
from torch.utils.data import DataLoader

from fairlung.pipeline.common.errors import UserError
from fairlung.pipeline.common.names import CLASS_NAMES, SEXES
from fairlung.pipeline.common.volumes import unit_range
from fairlung.pipeline.data.cohort import load_cohort
from fairlung.pipeline.data.dataset import (
    NewScanDataset,
    SameScanError,
    ScanDataset,
    UnreadableScansError,
    default_num_workers,
    read_scans,
    scan_fingerprint,
    transform_digest,
)
from fairlung.pipeline.data.intake_records import failure_reason
from fairlung.pipeline.data.sampling import Draw
from fairlung.pipeline.training.group_loss import PrepareGroupBatch
from fairlung.transforms import LoadScan, LoadScand, SampleSlices, TrimSlices, to_grey_levels

SMALL = {"num_slices": 8, "image_size": 32, "crop_size": 24, "min_slices": 1}
Shipped = Callable[..., Any]


def volume_of(item: dict[str, Any]) -> torch.Tensor:
    """[1, D, H, W] as the network gets it."""
    batch = list_data_collate([{"label": 0, "group": 0, **item}])
    return PrepareGroupBatch()(batch)[0][0]


@pytest.fixture(scope="session")
def shipped(bundle_dir: Path) -> Shipped:
    """``shipped(entry, **overrides)``: an entry of the shipped train.yaml, shrunk and built."""

    def build(entry: str, **overrides: Any) -> Any:
        parser = ConfigParser()
        parser.read_config(str(bundle_dir / "configs/train.yaml"))
        parser.update({**SMALL, **overrides})
        return parser.get_parsed_content(entry)

    return build


@pytest.fixture(scope="session")
def items(small_cohort: Path) -> list[dict[str, Any]]:
    cohort = load_cohort(small_cohort, class_names=CLASS_NAMES, group_names=SEXES)
    return list(cohort.items("val"))


def of_kind(items: list[dict[str, Any]], suffix: str) -> dict[str, Any]:
    """An item whose scan is a folder of ``suffix`` files, or such a file itself."""
    for item in items:
        path = Path(item["image"])
        if path.name.endswith(suffix) or (path.is_dir() and next(path.iterdir()).name.endswith(suffix)):
            return item
    raise AssertionError(f"the cohort has no {suffix}")


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that LoadScan read, in order."""
    paths: list[str] = []
    original = LoadScan.read

    def counted(self: LoadScan, path: str | Path) -> tuple[torch.Tensor, dict[str, Any]]:
        paths.append(str(path))
        return original(self, path)

    monkeypatch.setattr(LoadScan, "read", counted)
    return paths


@pytest.fixture
def seeded() -> Iterator[Callable[[int], None]]:
    yield lambda seed: set_determinism(seed)
    set_determinism(None)


@pytest.fixture
def jpg_scan(tmp_path: Path) -> Path:
    """A slice folder of noise; the transforms must not care that it is no chest."""
    folder = tmp_path / "scan"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (12, 32, 32), dtype=np.uint8)
    for number, plane in enumerate(noise):
        Image.fromarray(plane).save(folder / f"{number}.png")
    return folder


# --- what is cached --------------------------------------------------------------------------------------------------


def test_nothing_is_lost_of_eight_bit_slices(shipped: Shipped, items: list[dict[str, Any]], tmp_path: Path) -> None:
    item = of_kind(items, ".jpg")
    expected = LoadScan(select=[TrimSlices(0.1), SampleSlices(8)], size=32)(item["image"])
    dataset = ScanDataset([item], shipped("volume_transforms"), shipped("center_crop"), tmp_path)
    for _ in range(2):  # computed, then from the disk
        cached = dataset.volumes[0]["image"]
        assert cached.dtype == torch.uint8 and type(cached) is torch.Tensor
        assert torch.equal(cached.float() / 255, expected)
        torch.testing.assert_close(volume_of(dataset[0]), expected[..., 4:28, 4:28], rtol=0, atol=1e-7)


def test_grey_levels_are_those_of_the_stock_transform() -> None:
    stock = ScaleIntensityRanged("x", 0, 1, 0.5, 255.5, clip=True, dtype=np.uint8)
    volume = torch.cat([torch.arange(511) / 510, torch.tensor([-0.5, 0.0, 1.0, 1.5]), torch.rand(9_999)])
    before = volume.clone()
    levels = to_grey_levels(volume)
    assert levels.dtype == torch.uint8 and type(levels) is torch.Tensor
    assert torch.equal(levels, torch.as_tensor(stock({"x": volume})["x"]).as_subclass(torch.Tensor))
    assert torch.equal(volume, before)
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_grey_levels(unit_range(every)), every)


@pytest.mark.parametrize("suffix", [".dcm", ".nii.gz"])
def test_half_a_grey_level_is_lost_of_hu(
    suffix: str, shipped: Shipped, items: list[dict[str, Any]], tmp_path: Path
) -> None:
    item = of_kind(items, suffix)
    volume = LoadScan(select=[TrimSlices(0.1), SampleSlices(8)], size=32)(item["image"])
    expected = Resized("image", (8, 32, 32), mode="area")({"image": volume})["image"]
    cached = ScanDataset([item], shipped("volume_transforms"), (), tmp_path).volumes[0]["image"]
    assert cached.dtype == torch.uint8 and cached.shape == (1, 8, 32, 32)
    difference = (cached.float() / 255 - torch.as_tensor(expected)).abs().max()
    assert 0 < difference <= 0.5 / 255 + 1e-6


def test_items_keep_everything_else(shipped: Shipped, items: list[dict[str, Any]], tmp_path: Path) -> None:
    dataset = ScanDataset(items, shipped("volume_transforms"), shipped("center_crop"), tmp_path)
    assert len(dataset) == len(items) == 8
    for item, source in zip(dataset, items, strict=True):
        assert item["image"].shape == (1, 8, 24, 24) and item["image"].dtype == torch.uint8
        assert {name: item[name] for name in source if name != "image"} == {
            name: value for name, value in source.items() if name != "image"
        }


# --- when it is computed ---------------------------------------------------------------------------------------------


def test_a_scan_is_read_once(shipped: Shipped, items: list[dict[str, Any]], tmp_path: Path, loads: list[str]) -> None:
    def dataset(entry: str = "center_crop", **overrides: Any) -> ScanDataset:
        return ScanDataset(items, shipped("volume_transforms"), shipped(entry, **overrides), tmp_path)

    first = dataset()
    volumes = [item["image"] for item in first]
    assert loads == [str(item["image"]) for item in items]
    loads.clear()

    again = [item["image"] for item in first]
    in_a_new_object = [item["image"] for item in dataset()]
    assert all(map(torch.equal, volumes, again)) and all(map(torch.equal, volumes, in_a_new_object))
    for entry, overrides in (
        ("augmentation", {}),
        ("augmentation", {"brightness": 0.5}),
        ("center_crop", {"crop_size": 8}),
    ):
        list(dataset(entry, **overrides))
    relabelled = [{**item, "label": 3 - item["label"], "group": -1, "new": "column"} for item in items]
    changed = ScanDataset(relabelled, shipped("volume_transforms"), (), tmp_path)
    assert changed[0]["label"] == relabelled[0]["label"] and changed[0]["new"] == "column"
    assert loads == []


@pytest.mark.slow
def test_another_process_finds_the_cache(
    shipped: Shipped, items: list[dict[str, Any]], bundle_dir: Path, tmp_path: Path
) -> None:
    ScanDataset(items[:1], shipped("volume_transforms"), (), tmp_path)[0]
    script = f"""
        from monai.bundle import ConfigParser
        from fairlung.pipeline.data.dataset import ScanDataset
        from fairlung.transforms import LoadScan

        def read(self, path):
            raise AssertionError("read again")

        LoadScan.read = read
        parser = ConfigParser()
        parser.read_config({str(bundle_dir / "configs/train.yaml")!r})
        parser.update({SMALL!r})
        data = [{{"image": {items[0]["image"]!r}}}]
        item = ScanDataset(data, parser.get_parsed_content("volume_transforms"), (), {str(tmp_path)!r})[0]
        assert item["image"].shape == (1, 8, 32, 32)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=600)


@pytest.mark.parametrize(
    "change",
    [
        {"window": [-1000, 400]},
        {"trim_fraction": 0.2},
        {"num_slices": 6},
        {"image_size": 28},
        {"volume_transforms#every_slice": True, "num_slices": 6},
        {"volume_transforms#further": ["$monai.transforms.Lambdad('image', torch.square)"]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_changed_setting_never_meets_a_stale_volume(
    change: dict[str, Any], shipped: Shipped, items: list[dict[str, Any]], tmp_path: Path, loads: list[str]
) -> None:
    def volume(**overrides: Any) -> torch.Tensor:
        return ScanDataset([item], shipped("volume_transforms", **overrides), (), tmp_path)[0]["image"]

    item = of_kind(items, ".nii.gz")
    before = volume()
    after = volume(**change)
    assert len(loads) == 2
    assert before.shape != after.shape or not torch.equal(before, after)
    assert torch.equal(volume(), before) and torch.equal(volume(**change), after)
    assert len(loads) == 2  # both are kept side by side


def test_a_replaced_scan_never_meets_a_stale_volume(
    shipped: Shipped, jpg_scan: Path, tmp_path: Path, loads: list[str]
) -> None:
    def volume() -> torch.Tensor:
        data = [{"image": str(jpg_scan)}]
        return ScanDataset(data, shipped("volume_transforms"), (), tmp_path / "cache")[0]["image"]

    before = volume()
    assert torch.equal(volume(), before) and len(loads) == 1
    shutil.copy(jpg_scan / "0.png", jpg_scan / "6.png")
    assert not torch.equal(volume(), before) and len(loads) == 2
    (jpg_scan / "11.png").unlink()
    volume()
    assert len(loads) == 3


@pytest.mark.parametrize("suffix", [".nrrd", ".mhd"])
def test_a_replaced_volume_file_never_meets_a_stale_volume(
    suffix: str, shipped: Shipped, odd_hu: tuple[np.ndarray, Any], tmp_path: Path, loads: list[str]
) -> None:
    def volume(hu: np.ndarray) -> torch.Tensor:
        sitk.WriteImage(sitk.GetImageFromArray(hu), str(tmp_path / f"scan{suffix}"))
        data = [{"image": str(tmp_path / f"scan{suffix}")}]
        return ScanDataset(data, shipped("volume_transforms"), (), tmp_path / "cache")[0]["image"]

    before = volume(odd_hu[0])
    assert not torch.equal(volume(odd_hu[0][::-1]), before)
    assert len(loads) == 2


def test_a_replaced_data_file_behind_a_header_never_meets_a_stale_volume(
    shipped: Shipped, odd_hu: tuple[np.ndarray, Any], tmp_path: Path
) -> None:
    """A .mhd is a header; its voxels lie in a file beside it."""
    sitk.WriteImage(sitk.GetImageFromArray(odd_hu[0]), str(tmp_path / "scan.mhd"))

    def volume() -> torch.Tensor:
        data = [{"image": str(tmp_path / "scan.mhd")}]
        return ScanDataset(data, shipped("volume_transforms"), (), tmp_path / "cache")[0]["image"]

    before = volume()
    (tmp_path / "scan.raw").write_bytes(odd_hu[0][::-1].tobytes())
    assert not torch.equal(volume(), before)


def test_in_memory_items_are_equal_and_read_once(
    shipped: Shipped, items: list[dict[str, Any]], tmp_path: Path, loads: list[str]
) -> None:
    def dataset(cache_dir: Path | str | None, in_memory: bool, entry: str = "center_crop") -> ScanDataset:
        return ScanDataset(items[:3], shipped("volume_transforms"), shipped(entry), cache_dir, in_memory)

    plain = [item["image"] for item in dataset("", False)]
    loads.clear()
    held = dataset(None, True)
    held.prepare()
    loads.clear()
    assert all(map(torch.equal, plain, [item["image"] for item in held]))
    assert loads == []
    both = dataset(tmp_path, True)
    both.prepare()
    assert all(map(torch.equal, plain, [item["image"] for item in both]))

    augmented = dataset(None, True, "augmentation")
    augmented.prepare()
    before = augmented.volumes[0]["image"].clone()
    for _ in range(10):
        augmented[0]
    assert torch.equal(augmented.volumes[0]["image"], before)  # augmentation works on a copy


# --- augmentation ----------------------------------------------------------------------------------------------------


def test_augmentation_depends_on_the_seed_only(
    shipped: Shipped, jpg_scan: Path, tmp_path: Path, seeded: Callable[[int], None]
) -> None:
    def draws(seed: int) -> list[torch.Tensor]:
        seeded(seed)
        data = [{"image": str(jpg_scan)}]
        dataset = ScanDataset(data, shipped("volume_transforms"), shipped("augmentation"), tmp_path / "cache")
        return [volume_of(dataset[0]) for _ in range(4)]

    first, again, other = draws(1), draws(1), draws(2)
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))
    assert not any(torch.equal(first[0], image) for image in first[1:])
    for image in first:
        assert image.shape == (1, 8, 24, 24) and image.dtype == torch.float32 and type(image) is torch.Tensor
        assert image.min() >= 0 and image.max() <= 1


def test_random_parameters_are_drawn_once_a_volume(
    shipped: Shipped, jpg_scan: Path, seeded: Callable[[int], None]
) -> None:
    """Identical slices stay identical, while the volumes differ."""
    for number in range(1, 12):
        shutil.copy(jpg_scan / "0.png", jpg_scan / f"{number}.png")
    seeded(0)
    data = [{"image": str(jpg_scan)}]
    dataset = ScanDataset(data, shipped("volume_transforms"), shipped("augmentation"))
    images = [volume_of(dataset[0])[0] for _ in range(20)]
    assert all(torch.equal(image, image[:1].expand_as(image)) for image in images)
    assert len({image.numpy().tobytes() for image in images}) > 15


def test_turns_and_flips_are_the_eight_of_the_square(
    shipped: Shipped, jpg_scan: Path, seeded: Callable[[int], None]
) -> None:
    seeded(0)
    augmentation = shipped("augmentation", crop_size=32, brightness=0.0)
    dataset = ScanDataset([{"image": str(jpg_scan)}], shipped("volume_transforms"), augmentation)
    volume = dataset.volumes[0]["image"].float() / 255
    square = [
        torch.rot90(flipped, k, (2, 3)) for flipped in (volume, volume.flip(3)) for k in range(4)
    ]  # patient left and right, then axial turns: no slice changes its place
    seen = set()
    for _ in range(64):
        image = volume_of(dataset[0])
        seen |= {place for place, each in enumerate(square) if torch.allclose(image, each, atol=1e-6)}
    assert seen == set(range(8))


def test_brightness_is_one_factor_in_its_range(shipped: Shipped, jpg_scan: Path, seeded: Callable[[int], None]) -> None:
    seeded(0)
    augmentation = shipped("augmentation", crop_size=32, flip_prob=0.0, rotation_prob=0.0, brightness=0.2)
    dataset = ScanDataset([{"image": str(jpg_scan)}], shipped("volume_transforms"), augmentation)
    volume = dataset.volumes[0]["image"].float() / 255
    below_clipping = (volume > 0.1) & (volume < 0.8)
    factors = []
    for _ in range(40):
        image = volume_of(dataset[0])
        factors.append((image / volume)[below_clipping].median().item())
        torch.testing.assert_close(image, (volume * factors[-1]).clamp(max=1), rtol=1e-4, atol=1e-4)
    assert 0.8 <= min(factors) < 0.87 and 1.13 < max(factors) <= 1.2 + 1e-6


def test_the_volume_is_to_the_bit_that_of_stock_transforms_in_float(shipped: Shipped, jpg_scan: Path) -> None:
    """8 bits and a factor to the device, against MONAI's own chain in float32 with the same random state."""
    crop = RandSpatialCropd("image", (8, 24, 24), random_size=False)
    turns = [RandFlipd("image", 0.5, spatial_axis=2), RandRotate90d("image", 0.75, max_k=3, spatial_axes=(1, 2))]
    unit = ScaleIntensityRanged("image", 0, 255, 0, 1)
    brightness = RandScaleIntensityd("image", factors=0.2, prob=1.0)
    stock = Compose([crop, *turns, unit, brightness, ThresholdIntensityd("image", 1.0, above=False, cval=1.0)])
    dataset = ScanDataset([{"image": str(jpg_scan)}], shipped("volume_transforms"), shipped("augmentation"))
    clipped = 0
    for seed in range(20):
        stock.set_random_state(seed)
        expected = torch.as_tensor(stock({"image": dataset.volumes[0]["image"]})["image"]).as_subclass(torch.Tensor)
        item = dataset[Draw(0, seed)]
        assert item["image"].dtype == torch.uint8
        assert torch.equal(volume_of(item), expected)
        clipped += bool((expected == 1).any())
    assert clipped


def test_center_crop_is_the_centre(shipped: Shipped, jpg_scan: Path) -> None:
    dataset = ScanDataset([{"image": str(jpg_scan)}], shipped("volume_transforms"), shipped("center_crop"))
    expected = dataset.volumes[0]["image"][..., 4:28, 4:28].float() / 255
    for _ in range(2):
        torch.testing.assert_close(volume_of(dataset[0]), expected, rtol=0, atol=1e-7)


# --- reading ahead ---------------------------------------------------------------------------------------------------


@pytest.mark.fault(
    "wrong",
    "one scan in two splits under two names",
    before="was trained on and judged on",
    now="is refused with both names",
)
@pytest.mark.parametrize("in_memory", [False, True])
def test_a_scan_of_two_splits_is_refused(shipped: Shipped, jpg_scan: Path, tmp_path: Path, in_memory: bool) -> None:
    copied = shutil.copytree(jpg_scan, tmp_path / "copy")
    other = shutil.copytree(jpg_scan, tmp_path / "other")
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(other / "6.png")

    def split(*folders: Path) -> ScanDataset:
        items = [{"image": str(folder), "scan": folder.name} for folder in folders]
        return ScanDataset(
            items, shipped("volume_transforms"), (), None if in_memory else tmp_path / "cache", in_memory
        )

    read_scans(tmp_path / "intake", train=split(jpg_scan, copied), val=split(other))
    for _ in range(2):  # computed, then from the cache
        with pytest.raises(SameScanError, match=r"two splits: scan \(train\) and copy \(val\)$"):
            read_scans(tmp_path / "intake", train=split(jpg_scan), val=split(other, copied))


@pytest.mark.parametrize(("in_memory", "num_workers"), [(False, 0), (True, 0), (False, 1)])
def test_prepare_lists_every_unreadable_scan(
    in_memory: bool, num_workers: int, shipped: Shipped, items: list[dict[str, Any]], jpg_scan: Path, tmp_path: Path
) -> None:
    (jpg_scan / "5.png").write_bytes(b"broken")
    empty = tmp_path / "empty"
    empty.mkdir()
    data = [items[0], {"image": str(jpg_scan)}, items[1], {"image": str(empty)}]
    dataset = ScanDataset(data, shipped("volume_transforms"), (), tmp_path / "cache", in_memory)
    with pytest.raises(UnreadableScansError) as caught:
        dataset.prepare(num_workers)
    first, *reasons = str(caught.value).splitlines()
    assert isinstance(caught.value, UserError)
    assert first == "2 of 4 scans cannot be read:"
    assert len(reasons) == 2
    assert f"{jpg_scan}: 5.png: " in reasons[0] and "cannot be decoded" in reasons[0]
    assert str(empty) in reasons[1] and "holds no scan" in reasons[1]


@pytest.fixture
def python_3_14(monkeypatch: pytest.MonkeyPatch) -> None:
    """How processes begin there, unless one says how."""
    monkeypatch.setattr(multiprocessing.context._default_context, "_actual_context", None)
    multiprocessing.set_start_method("forkserver")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere processes were never forked")
def test_a_transform_need_not_be_pickled_with_python_3_14(
    shipped: Shipped, items: list[dict[str, Any]], tmp_path: Path, python_3_14: None
) -> None:
    def halved(volume: torch.Tensor) -> torch.Tensor:
        return volume // 2

    transforms = [*shipped("volume_transforms"), Lambdad("image", halved)]
    dataset = ScanDataset(items[:2], transforms, [Lambdad("image", lambda volume: 1 - volume)], tmp_path)
    dataset.prepare(1)
    method = shipped("train::dataloader::multiprocessing_context", num_workers=1)
    loader = DataLoader(dataset, num_workers=1, multiprocessing_context=method, batch_size=None)
    assert [found["image"].tolist() for found in loader] == [found["image"].tolist() for found in dataset]
    assert shipped("train::dataloader::multiprocessing_context", num_workers=0) is None


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="macOS")
def test_processes_are_counted_by_the_cores_that_this_one_may_use() -> None:
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        assert default_num_workers() == 1
    finally:
        os.sched_setaffinity(0, cores)
    assert default_num_workers() == min(8, len(cores))


def test_prepare_fills_the_cache_or_does_nothing(
    shipped: Shipped, items: list[dict[str, Any]], tmp_path: Path, loads: list[str]
) -> None:
    kept = ScanDataset(items[:3], shipped("volume_transforms"), (), tmp_path)
    kept.prepare()
    assert len(loads) == 3
    list(kept)
    assert len(loads) == 3
    ScanDataset(items[:3], shipped("volume_transforms")).prepare()
    assert len(loads) == 3


# --- digests ---------------------------------------------------------------------------------------------------------

windows = st.tuples(st.integers(-2000, -1), st.integers(0, 2000))


@given(windows, windows, st.floats(0, 0.4), st.floats(0, 0.4))
def test_digests_are_equal_where_settings_are(
    window: tuple[int, int], other_window: tuple[int, int], fraction: float, other_fraction: float
) -> None:
    def digest(window: tuple[int, int], fraction: float) -> bytes:
        return transform_digest([LoadScand("image", window=window, select=[TrimSlices(fraction), SampleSlices(8)])])

    same = window == other_window and fraction == other_fraction
    assert (digest(window, fraction) == digest(other_window, other_fraction)) is same
    assert digest(window, fraction) == digest(window, fraction)


def test_digest_depends_on_order_and_survives_use(shipped: Shipped, jpg_scan: Path) -> None:
    transforms = shipped("volume_transforms")
    digest = transform_digest(transforms)
    assert digest == transform_digest(shipped("volume_transforms"))
    Compose(transforms)({"image": str(jpg_scan)})
    assert transform_digest(transforms) == digest
    assert transform_digest(transforms[::-1]) != digest
    assert transform_digest(transforms[:-1]) != digest


def plus(image: Any, amount: int) -> Any:
    return image + amount


def test_digest_sees_arrays() -> None:
    first, again, other = (functools.partial(np.array) for _ in range(3))
    first.table, again.table, other.table = np.arange(3), np.arange(3), np.arange(3) + 1  # type: ignore[attr-defined]
    assert transform_digest([first]) == transform_digest([again])
    assert transform_digest([first]) != transform_digest([other])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (functools.partial(plus, amount=1), functools.partial(plus, amount=2)),
        (lambda image: image + 1, lambda image: image + 2),
    ],
    ids=["partial", "lambda"],
)
def test_digest_sees_what_a_function_does(one: Callable, other: Callable) -> None:
    """What cannot be told apart must not share a cache."""
    digests = []
    for function in (one, other):
        try:
            digests.append(transform_digest([Lambdad("image", function)]))
        except (TypeError, ValueError):  # refusing is as good
            return
    assert digests[0] != digests[1]


def test_fingerprint_of_files_and_folders(jpg_scan: Path, tmp_path: Path) -> None:
    before = scan_fingerprint(jpg_scan)
    assert before == scan_fingerprint(str(jpg_scan))
    (jpg_scan / "3.png").rename(jpg_scan / "30.png")
    renamed = scan_fingerprint(jpg_scan)
    assert renamed != before
    file = tmp_path / "scan.nii"
    file.write_bytes(b"1")
    before = scan_fingerprint(file)
    file.write_bytes(b"12")
    assert scan_fingerprint(file) != before


# --- new scans -------------------------------------------------------------------------------------------------------


def test_a_new_scan_that_fails_says_why_and_stops_nobody(
    shipped: Shipped, items: list[dict[str, Any]], tmp_path: Path
) -> None:
    to_float = Lambdad("image", unit_range, track_meta=False)
    transform = Compose([*shipped("volume_transforms"), *shipped("center_crop"), to_float])
    data = [
        {"image": items[0]["image"], "scan": "good"},
        {"image": str(tmp_path), "scan": "empty"},
        {"image": items[1]["image"], "scan": "good too"},
    ]
    found = list(NewScanDataset(data, transform, (1, 8, 24, 24)))
    assert [item["scan"] for item in found] == ["good", "empty", "good too"]
    assert all(item["image"].shape == (1, 8, 24, 24) and item["image"].dtype == torch.float32 for item in found)
    assert [item["reason"] for item in found] == ["", f"{tmp_path}: holds no scan", ""]
    assert found[0]["image"].any() and found[2]["image"].any() and not found[1]["image"].any()
    expected = transform({"image": items[0]["image"]})["image"]
    assert torch.equal(found[0]["image"], expected)


def test_a_new_scan_of_the_wrong_shape_fails(jpg_scan: Path) -> None:
    data = [{"image": str(jpg_scan), "scan": "thin"}]
    (item,) = NewScanDataset(data, Compose([LoadScand("image")]), (1, 8, 24, 24))
    assert item["image"].shape == (1, 8, 24, 24)
    assert item["reason"] == f"{jpg_scan}: preprocessing gave (1, 12, 32, 32), not (1, 8, 24, 24)"


def test_failure_reason_is_one_line_of_the_cause() -> None:
    cause = ValueError("scan.mha: two\nlines")
    wrapper = RuntimeError("applying transform <LoadScand>")
    wrapper.__cause__ = cause
    assert failure_reason(wrapper) == "scan.mha: two"
    assert failure_reason(KeyError("image")) == "KeyError: 'image'"
    assert failure_reason(MemoryError()) == "MemoryError: "


def test_a_header_that_names_another_file(tmp_path: Path) -> None:
    (tmp_path / "ct.nhdr").write_text("NRRD0004\ntype: short\ndata file: vox.raw\n")
    (tmp_path / "ct.mhd").write_text("NDims = 3\nElementDataFile = vox.raw\n")
    (tmp_path / "vox.raw").write_bytes(b"0" * 10)
    before = [scan_fingerprint(tmp_path / name) for name in ("ct.nhdr", "ct.mhd")]
    (tmp_path / "vox.raw").write_bytes(b"1" * 12)
    after = [scan_fingerprint(tmp_path / name) for name in ("ct.nhdr", "ct.mhd")]
    assert all(a != b for a, b in zip(before, after, strict=True))


def test_a_slice_name_that_is_not_unicode(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.jpg")).write_bytes(b"x")
    before = scan_fingerprint(tmp_path)
    (tmp_path / os.fsdecode(b"\xff.jpg")).write_bytes(b"xy")
    assert scan_fingerprint(tmp_path) != before
