"""Reading scans: one orientation for every format, and errors that name the cause."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from monai.transforms import Resize
from small_scans import PERSON, loader, refusal

from fairlung.pipeline.phantoms.writers import write_dicom_series, write_jpg_folder, write_nifti, write_nrrd_or_mha
from fairlung.transforms import LoadScand, SampleSlices, ScanError, TrimSlices, find_scans, read_scan
from fairlung.transforms.scan import OpenScan

WIDE = (-1024.0, 3071.0)


def read_hu(path: Path) -> np.ndarray:
    """HU (D, H, W) as LoadScan sees them, through a window that clips nothing."""
    low, high = WIDE
    return loader(window=WIDE)(path)[0].numpy() * (high - low) + low


# --- one CT in every format ------------------------------------------------------------------------------------------

WRITERS: dict[str, Callable[[Path, np.ndarray, Sequence[float]], Path]] = {
    "dicom": lambda root, hu, spacing: write_dicom_series(root / "dicom", hu, spacing, **PERSON),
    "dicom prone": lambda root, hu, spacing: write_dicom_series(root / "prone", hu, spacing, **PERSON, prone=True),
    "dicom reversed": lambda root, hu, spacing: write_dicom_series(
        root / "reversed", hu, spacing, **PERSON, reverse_names=True
    ),
    "nii": lambda root, hu, spacing: write_nifti(root / "scan.nii", hu, spacing),
    "nii.gz": lambda root, hu, spacing: write_nifti(root / "scan.nii.gz", hu, spacing),
    "nrrd": lambda root, hu, spacing: write_nrrd_or_mha(root / "scan.nrrd", hu, spacing),
    "mha": lambda root, hu, spacing: write_nrrd_or_mha(root / "scan.mha", hu, spacing),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_gives_the_same_volume(
    kind: str, odd_hu: tuple[np.ndarray, Sequence[float]], tmp_path: Path
) -> None:
    hu, spacing = odd_hu
    path = WRITERS[kind](tmp_path, hu, spacing)
    volume = loader()(path)
    assert volume.dtype == torch.float32 and volume.is_contiguous() and type(volume) is torch.Tensor
    expected = np.clip((hu.astype(np.float64) + 1350) / 1500, 0, 1)
    np.testing.assert_allclose(volume[0].numpy(), expected, atol=1e-4)
    np.testing.assert_allclose(
        loader(window=(-1000, 400), size=4)(path)[0], np.clip((hu + 1000) / 1400, 0, 1), atol=1e-4
    )
    chosen = loader(select=[TrimSlices(0.2), SampleSlices(4)])(path)
    assert torch.equal(chosen, volume[:, [1, 2, 4, 6]])


def test_a_jpg_folder_differs_by_its_compression_only(
    odd_hu: tuple[np.ndarray, Sequence[float]], tmp_path: Path
) -> None:
    smooth = (np.linspace(-1300, 100, 12 * 15).reshape(1, 12, 15) + np.arange(9)[:, None, None]).astype(np.int16)
    assert smooth.shape == odd_hu[0].shape
    folder = write_jpg_folder(tmp_path / "jpg", smooth, quality=100)
    volume = write_nrrd_or_mha(tmp_path / "scan.mha", smooth, odd_hu[1])
    torch.testing.assert_close(loader()(folder), loader()(volume), rtol=0, atol=3 / 255)


def test_axes_grow_superior_posterior_left(tmp_path: Path) -> None:
    """A RAS NIfTI made by hand: its axes grow to the right, anterior and superior, the volume's to LPS."""
    data = np.full((15, 12, 9), -1000, np.int16)  # (right, anterior, superior)
    data[5:12, 4:9] = 0
    data[2, 3, 1] = 100
    nibabel.save(nibabel.Nifti1Image(data, np.diag([0.8, 0.8, 2.5, 1.0])), tmp_path / "ras.nii.gz")
    volume = loader()(tmp_path / "ras.nii.gz")[0]
    assert volume.shape == (9, 12, 15)
    assert torch.nonzero(volume == volume.max()).tolist() == [[1, 12 - 1 - 3, 15 - 1 - 2]]


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "RPI", "LAI", "ASR", "SAL", "PIR"])
@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd", ".nii.gz"])
def test_any_orientation_is_turned(
    orientation: str, suffix: str, odd_hu: tuple[np.ndarray, Sequence[float]], tmp_path: Path
) -> None:
    hu, _ = odd_hu
    turned = sitk.DICOMOrient(sitk.GetImageFromArray(hu), orientation)
    sitk.WriteImage(turned, str(tmp_path / f"scan{suffix}"))
    np.testing.assert_allclose(read_hu(tmp_path / f"scan{suffix}"), hu, atol=1e-2)


def test_real_series_equals_its_nrrd(data_dir: Path) -> None:
    dicom, nrrd = (loader()(data_dir / name) for name in ("chest_ct_dicom", "chest_ct.nrrd"))
    assert dicom.shape == (1, 79, 64, 64)
    torch.testing.assert_close(dicom, nrrd, rtol=0, atol=1e-6)
    assert 0 < dicom.mean() < 1


# itk tears its module down after ours at exit and can crash there, so that it gets a process of its own
READ_BY_ITK = """
import os, sys, itk, numpy
numpy.save(sys.argv[2], itk.array_from_image(itk.imread(sys.argv[1])))
os._exit(0)
"""


@pytest.mark.slow
def test_hu_are_those_of_other_readers(data_dir: Path, tmp_path: Path) -> None:
    found = read_hu(data_dir / "chest_ct_dicom").clip(-1024, 3071)
    slices = [pydicom.dcmread(file) for file in (data_dir / "chest_ct_dicom").glob("*.dcm")]
    slices.sort(key=lambda each: float(each.ImagePositionPatient[2]))
    by_pydicom = np.stack([each.pixel_array * each.RescaleSlope + each.RescaleIntercept for each in slices])
    arguments = [str(data_dir / "chest_ct.nrrd"), str(tmp_path / "itk.npy")]
    subprocess.run([sys.executable, "-c", READ_BY_ITK, *arguments], check=True, timeout=600)
    by_itk = np.load(tmp_path / "itk.npy")
    by_sitk = sitk.GetArrayFromImage(sitk.ReadImage(str(data_dir / "chest_ct.nrrd")))
    for oracle in (by_pydicom, by_itk, by_sitk):
        np.testing.assert_allclose(found, oracle.astype(float).clip(-1024, 3071), atol=1e-2)


def test_single_dicom_files(data_dir: Path) -> None:
    files = sorted((data_dir / "tcga_lung_slices").glob("*.dcm"))
    assert len(files) == 24
    for file in files:
        volume = loader()(file)
        assert volume.shape[:2] == (1, 1) and volume.min() >= 0 and volume.max() <= 1
    sampled = loader(select=[TrimSlices(0.1), SampleSlices(4)])(files[0])
    assert torch.equal(sampled, loader()(files[0]).expand(-1, 4, -1, -1))


def test_dicom_without_a_suffix_and_with_company(odd_hu: tuple[np.ndarray, Sequence[float]], tmp_path: Path) -> None:
    hu, spacing = odd_hu
    series = write_dicom_series(tmp_path / "series", hu, spacing, **PERSON)
    for number, file in enumerate(sorted(series.iterdir())):
        file.rename(series / (f"1.2.840.{number}" if number % 2 else f"IM{number}"))
    (series / "README.txt").write_text("not an image")
    np.testing.assert_allclose(read_hu(series), hu, atol=1e-2)


def test_nothing_there(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none")
    assert "holds no scan" in refusal(tmp_path)
    (tmp_path / "notes.txt").write_text("not a scan")
    assert "holds no scan" in refusal(tmp_path)
    assert "holds no scan" in refusal(tmp_path / "notes.txt")


def test_two_series_in_one_folder(odd_hu: tuple[np.ndarray, Sequence[float]], tmp_path: Path) -> None:
    hu, spacing = odd_hu
    one = write_dicom_series(tmp_path / "one", hu, spacing, **PERSON, uid_seed="1")
    two = write_dicom_series(tmp_path / "two", hu[:4], spacing, **PERSON, uid_seed="2")
    for file in two.iterdir():
        shutil.copy(file, one / f"other-{file.name}")
    volume, record = loader().read(one)
    assert volume.shape[1] == 9
    assert record["series"] == "1 of 2 (9 slices, original); not 2: 4 slices, original"
    items = find_scans(one, all_series=True)
    assert [item["scan"] for item in items] == ["one#1", "one#2"]
    assert [loader()(item["image"]).shape[1] for item in items] == [9, 4]


def test_volumes_that_are_none(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4, 2), np.int16), np.eye(4)), tmp_path / "4d.nii.gz")
    assert "must be one 3-D volume" in refusal(tmp_path / "4d.nii.gz")
    rgb = sitk.GetImageFromArray(np.zeros((4, 4, 4, 3), np.uint8), isVector=True)
    sitk.WriteImage(rgb, str(tmp_path / "rgb.nrrd"))
    assert "3 components" in refusal(tmp_path / "rgb.nrrd")
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 4), np.int16)), str(tmp_path / "flat.mha"))
    assert "2 dimensions" in refusal(tmp_path / "flat.mha")


@pytest.mark.parametrize("value", [-1000, 0, 3000])
def test_constant_volumes(value: int, tmp_path: Path) -> None:
    path = write_nrrd_or_mha(tmp_path / "scan.mha", np.full((4, 5, 6), value), (1, 1, 1))
    assert "all voxels are the same" in refusal(path)


@pytest.mark.parametrize("name", ["scan.dcm", "scan.nii", "scan.nii.gz", "scan.nrrd", "scan.mha", "series/1.dcm"])
def test_garbage(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"garbage" * 40)
    path = file.parent if name.startswith("series") else file
    message = refusal(path)
    assert len(message.splitlines()) == 1 and len(message) > len(str(path)) + 10


def test_truncated_volumes(odd_hu: tuple[np.ndarray, Sequence[float]], tmp_path: Path) -> None:
    for path in (WRITERS["nii.gz"](tmp_path, *odd_hu), WRITERS["nrrd"](tmp_path, *odd_hu)):
        path.write_bytes(path.read_bytes()[:-200])
        assert "cannot be read as" in refusal(path)


def test_a_reader_that_gives_no_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> OpenScan:
        raise MemoryError

    monkeypatch.setattr("fairlung.transforms.load_scan.open_itk", fail)
    (tmp_path / "scan.mha").write_bytes(b"")
    assert "cannot be read as itk (MemoryError)" in refusal(tmp_path / "scan.mha")


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_voxels_that_are_no_numbers(broken: float, odd_hu: tuple[np.ndarray, Sequence[float]], tmp_path: Path) -> None:
    """A NaN voxel would make every output NaN; a network must not see one."""
    hu = odd_hu[0].astype(np.float32)
    hu[2, 3, 4] = broken
    sitk.WriteImage(sitk.GetImageFromArray(hu), str(tmp_path / "scan.nrrd"))
    with contextlib.suppress(ScanError):
        assert loader()(tmp_path / "scan.nrrd").isfinite().all()


def test_settings_are_checked_early() -> None:
    with pytest.raises(ValueError, match=r"window must rise from low to high, got \(150, -1350\)"):
        loader(window=(150, -1350))
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        LoadScand("image", size=0)
    with pytest.raises(ValueError, match="select must hold slice selectors .*, got 64"):
        loader(select=[TrimSlices(), 64])  # type: ignore[list-item]


def test_missing_keys() -> None:
    assert LoadScand("image", allow_missing_keys=True)({"label": 1}) == {"label": 1}
    with pytest.raises(KeyError, match="image"):
        LoadScand("image")({"label": 1})


@pytest.mark.fault(
    "wrong", "read_scan of HU with a size", before="the scan's own size", now="the size that was asked for",
)  # fmt: skip
def test_read_scan_gives_every_kind_the_size_that_is_asked_for(data_dir: Path, tmp_path: Path) -> None:
    hu = np.random.default_rng(0).normal(-600, 300, (64, 48, 12)).astype(np.int16)  # x, y, z
    nibabel.save(nibabel.Nifti1Image(hu, np.diag([5.0, 7.0, 20.0, 1.0])), tmp_path / "ct.nii.gz")
    whole, _ = read_scan(tmp_path / "ct.nii.gz")
    volume, _ = read_scan(tmp_path / "ct.nii.gz", size=32)
    assert whole.shape == (1, 12, 48, 64) and volume.shape == (1, 12, 32, 32)
    torch.testing.assert_close(volume, Resize((12, 32, 32), mode="area")(whole).as_tensor())
    assert read_scan(data_dir / "chest_ct.nrrd", size=40)[0].shape[2:] == (40, 40)
