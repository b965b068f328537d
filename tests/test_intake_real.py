"""Real files: every transfer syntax of one slice, mixed planes, an abdomen, and what other readers see in a series."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from test_load_scan import READ_BY_ITK

from fairlung.transforms import LoadScan, ScanError, find_scans
from fairlung.transforms.dicom_pixels import read_hu
from fairlung.transforms.dicom_series import read_headers

WIDE = (-1024.0, 3071.0)
LOSSLESS = ["1.2", "1.2.1", "1.2.1.99", "1.2.2", "1.2.5", "1.2.4.57", "1.2.4.70", "1.2.4.80", "1.2.4.90"]
# the largest and the mean difference in HU from the original that the compression itself makes: 8 or 12 bits are left
LOSSY = {
    "1.2.4.81": (1, 1),
    "1.2.4.91": (5, 1),
    "1.2.4.51": (36, 4),
    "1.2.4.53": (36, 4),
    "1.2.4.55": (36, 4),
    "1.2.4.50": (65, 14),
}


def hu_of(data_dir: Path, syntax: str) -> tuple[np.ndarray, list[str]]:
    file = data_dir / "ct_syntaxes" / f"1.2.840.10008.{syntax}.dcm"
    assert pydicom.dcmread(file, stop_before_pixels=True).file_meta.TransferSyntaxUID == f"1.2.840.10008.{syntax}"
    ((hu, _),) = read_hu(read_headers(file))
    _, record = LoadScan(min_slices=1).read(file)
    return hu.clip(*WIDE), record["warnings"]


@pytest.fixture(scope="module")
def original(data_dir: Path) -> np.ndarray:
    """By SimpleITK, of the file that was never compressed."""
    image = sitk.ReadImage(str(data_dir / "ct_syntaxes" / "1.2.840.10008.1.2.dcm"))
    return sitk.GetArrayFromImage(image)[0].astype(float).clip(*WIDE)


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_lossless_syntaxes_agree_exactly(syntax: str, data_dir: Path, original: np.ndarray) -> None:
    np.testing.assert_array_equal(hu_of(data_dir, syntax)[0], original)


@pytest.mark.parametrize("syntax", LOSSY)
def test_lossy_syntaxes_differ_by_their_compression_alone(syntax: str, data_dir: Path, original: np.ndarray) -> None:
    hu, warnings = hu_of(data_dir, syntax)
    difference = np.abs(hu - original)
    largest, mean = LOSSY[syntax]
    assert difference.max() <= largest and difference.mean() <= mean
    assert any(warning.startswith("lossy") for warning in warnings)


def test_planes_are_told_from_each_other(data_dir: Path, tmp_path: Path) -> None:
    """Axial slices and reformats of two patients; a reformat is refused by its plane."""
    answers = {}
    for file in sorted((data_dir / "nysbu_planes").iterdir()):
        folder = tmp_path / file.stem
        folder.mkdir()
        shutil.copy(file, folder)
        try:
            answers[file.stem] = LoadScan(min_slices=1).read(folder)[1]["status"]
        except ScanError as error:
            answers[file.stem] = (error.record or {})["reason"]
    assert len(answers) == 8
    for name, answer in answers.items():
        plane = name.split("_")[1]
        assert answer == "ok" if plane == "axial" else answer.startswith(f"{plane} slices")
    # all in one folder: whose CT is meant cannot be known
    with pytest.raises(ScanError, match="holds CTs of 2 patients"):
        LoadScan(min_slices=1)(data_dir / "nysbu_planes")
    assert len(find_scans(data_dir / "nysbu_planes", all_series=True)) == 8


def test_an_abdomen_draws_the_warning(data_dir: Path) -> None:
    _, record = LoadScan().read(data_dir / "abdomen_ct.nii.gz")
    assert record["status"] == "ok"
    assert any(warning.startswith("no_chest") for warning in record["warnings"])
    for chest in ("chest_ct_dicom", "chest_ct.nrrd", "golden/jpg_scan"):
        assert LoadScan().read(data_dir / chest)[1]["warnings"] == []


def test_other_readers_see_the_same_series_at_the_same_place(data_dir: Path, tmp_path: Path) -> None:
    low, high = WIDE
    volume, record = LoadScan(window=WIDE).read(data_dir / "chest_ct_dicom")
    series = sitk.ImageSeriesReader()
    series.SetFileNames(series.GetGDCMSeriesFileNames(str(data_dir / "chest_ct_dicom")))
    by_sitk = series.Execute()
    found = volume[0].numpy() * (high - low) + low
    np.testing.assert_allclose(found, sitk.GetArrayFromImage(by_sitk).astype(float).clip(*WIDE), atol=1e-2)
    affine = np.array(record["affine"])
    for x, y, z in [(0, 0, 0), (63, 0, 0), (0, 63, 0), (5, 7, 78)]:
        place = affine @ [x, y, z, 1]
        np.testing.assert_allclose(place[:3] * [-1, -1, 1], by_sitk.TransformIndexToPhysicalPoint((x, y, z)), atol=2e-2)
    arguments = [str(data_dir / "chest_ct.nrrd"), str(tmp_path / "itk.npy")]
    subprocess.run([sys.executable, "-c", READ_BY_ITK, *arguments], check=True, timeout=120)
    np.testing.assert_allclose(found, np.load(tmp_path / "itk.npy").astype(float).clip(*WIDE), atol=1e-2)


def test_a_real_slice_says_who_decoded_it_and_names_nobody(data_dir: Path) -> None:
    for file in sorted((data_dir / "tcga_lung_slices").glob("*.dcm"))[:6]:
        _, record = LoadScan(min_slices=1).read(file)
        dataset = pydicom.dcmread(file, stop_before_pixels=True)
        assert record["decoder"] == "pydicom"
        shown = str({**record, "files": []})
        assert str(dataset.PatientID) not in shown and str(dataset.SeriesInstanceUID) not in shown
