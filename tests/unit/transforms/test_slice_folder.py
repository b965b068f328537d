"""Folders of slices: the published volume to the bit, natural order, and slices that are none."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_scans import loader, refusal, save_grey

from fairlung.transforms import LoadScand, SampleSlices, ScanError, TrimSlices


def order_read(folder: Path) -> list[int]:
    return [round(value * 25.5) for value in loader()(folder).mean(dim=(0, 2, 3)).tolist()]


def check_golden(volume: torch.Tensor, data_dir: Path) -> None:
    golden = json.loads((data_dir / "golden/jpg_scan_volume.json").read_text())
    assert volume.dtype == torch.float32 and list(volume.shape) == [1, *golden["shape"]]
    grey = (volume[0] * 255).round().to(torch.uint8).numpy()
    assert grey.sum(axis=(1, 2), dtype=np.int64).tolist() == golden["slice_sums"]
    assert hashlib.sha256(grey.tobytes()).hexdigest() == golden["sha256"]
    np.testing.assert_array_equal(volume[0].numpy(), grey.astype(np.float32) / 255)


PUBLISHED = {"select": [TrimSlices(0.1), SampleSlices(64)], "size": 256}


def test_volume_is_the_published_one_to_the_bit(data_dir: Path) -> None:
    check_golden(loader(**PUBLISHED)(data_dir / "golden/jpg_scan"), data_dir)
    item = LoadScand("image", **PUBLISHED)({"image": str(data_dir / "golden/jpg_scan"), "label": 2})
    check_golden(item["image"], data_dir)
    assert item["label"] == 2


def test_only_the_selected_slices_are_decoded(data_dir: Path, tmp_path: Path) -> None:
    scan = tmp_path / "scan"
    shutil.copytree(data_dir / "golden/jpg_scan", scan)
    for number in [*range(4), *range(43, 48)]:  # what the trim drops of 48 slices
        (scan / f"{number}.jpg").write_bytes(b"broken")
    check_golden(loader(**PUBLISHED)(scan), data_dir)


def test_each_slice_is_decoded_once(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda file: opened.append(Path(file).name) or original(file))
    volume = loader(**PUBLISHED)(data_dir / "golden/jpg_scan")
    assert volume.shape[1] == 64
    assert sorted(opened) == sorted({f"{number}.jpg" for number in range(4, 43)})


@pytest.mark.parametrize(
    "names",
    [
        ["0.jpg", "1.jpg", "2.jpg", "10.jpg", "11.jpg", "100.jpg"],
        ["IM-0001.jpg", "IM-0002.jpg", "IM-0010.jpg", "IM-0011.jpg"],
        ["slice1.png", "slice2.png", "slice10.png"],
        ["1.JPG", "2.jpeg", "3.PNG", "4.jpg"],
        ["a2b9.png", "a2b10.png", "a10b1.png"],
    ],
)
def test_slices_come_in_natural_order_of_their_names(names: list[str], tmp_path: Path) -> None:
    scan = save_grey(tmp_path / "scan", names)
    (scan / "._1.jpg").write_bytes(b"resource fork of a Mac")
    (scan / ".hidden.png").write_bytes(b"")
    (scan / "notes.txt").write_text("not a slice")
    (scan / "folder.jpg").mkdir()
    assert order_read(scan) == list(range(len(names)))


def test_colour_slices_become_grey_as_pillow_does_it(tmp_path: Path) -> None:
    colour = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    scan = tmp_path / "scan"
    scan.mkdir()
    Image.fromarray(colour[0]).save(scan / "0.jpg")
    Image.fromarray(colour[1]).convert("P").save(scan / "1.png")
    expected = [np.asarray(Image.open(file).convert("L")) for file in (scan / "0.jpg", scan / "1.png")]
    np.testing.assert_array_equal(loader()(scan)[0].numpy() * 255, np.stack(expected))


def test_sizes(tmp_path: Path) -> None:
    scan = save_grey(tmp_path / "scan", ["0.png", "1.png"], size=8)
    Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6)).save(scan / "2.png")
    assert loader(size=5)(scan).shape == (1, 3, 5, 5)
    with pytest.raises(ScanError, match=r"slices differ in size \[\(4, 6\), \(8, 8\)\]; give a size") as caught:
        loader()(scan)
    assert str(scan) in str(caught.value)
    for number in (0, 1):
        (scan / f"{number}.png").rename(scan / f"{number + 5}.png")
    assert loader(select=[TrimSlices(0), SampleSlices(1)])(scan).shape == (1, 1, 4, 6)  # a single one cannot differ


@pytest.mark.parametrize("value", [0, 128, 255])
def test_slices_that_show_nothing_are_refused(value: int, tmp_path: Path) -> None:
    """An empty folder that was exported as black pictures would still get a confident answer."""
    scan = tmp_path / "scan"
    scan.mkdir()
    for name in ("0.png", "1.png"):
        Image.fromarray(np.full((8, 8), value, np.uint8)).save(scan / name)
    assert f"its slices are all but one grey (levels {value} to {value})" in refusal(scan)


def test_broken_slices_are_named(data_dir: Path, tmp_path: Path) -> None:
    scan = save_grey(tmp_path / "scan", ["0.jpg", "1.jpg"])
    whole = (data_dir / "golden/jpg_scan/5.jpg").read_bytes()
    (scan / "2.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ScanError, match="cannot be decoded") as caught:
        loader(size=8)(scan)
    assert f"{scan}: 2.jpg: " in str(caught.value)
    (scan / "2.jpg").write_bytes(b"no image at all")
    with pytest.raises(ScanError, match="cannot be decoded") as caught:
        loader(size=8)(scan)
    assert f"{scan}: 2.jpg: " in str(caught.value)


def test_sixteen_bit_slices_are_refused(tmp_path: Path) -> None:
    scan = save_grey(tmp_path / "scan", ["0.png"])
    Image.fromarray(np.full((8, 8), 4000, np.uint16)).save(scan / "1.png")
    with pytest.raises(ScanError, match="slices must be 8-bit images, got mode I;16") as caught:
        loader()(scan)
    assert f"{scan}: 1.png: " in str(caught.value)
