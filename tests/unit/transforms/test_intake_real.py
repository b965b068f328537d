"""Real files, and other readers of them: the same HU at the same places of the patient.

tests/data/SOURCES.md says where they come from.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import planted_defects as planted
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.encaps import encapsulate, generate_frames

from fairlung.transforms import LoadScan, ScanError, find_scans

WIDE = (-4096.0, 4096.0)  # HU; clips nothing here
RAS_OF_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_hu(path: Path, min_slices: int = 1) -> tuple[np.ndarray, dict[str, Any]]:
    """HU [D, H, W] through a window that clips nothing, and the record."""
    volume, record = LoadScan(window=WIDE, min_slices=min_slices).read(path)
    return volume[0].numpy().astype(float) * (WIDE[1] - WIDE[0]) + WIDE[0], record


def refusal(path: Path, min_slices: int = 1) -> str:
    with pytest.raises(ScanError) as caught:
        LoadScan(min_slices=min_slices)(path)
    return str(caught.value)


def codes(record: dict[str, Any]) -> list[str]:
    return sorted(warning.split(":")[0] for warning in record["warnings"])


def by_simpleitk(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """HU [D, H, W] and affine (voxel -> RAS mm), turned to LPS by SimpleITK."""
    if path.is_dir():
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(path)))
        image = reader.Execute()
    else:
        image = sitk.ReadImage(str(path))
    image = sitk.DICOMOrient(image, "LPS")
    return sitk.GetArrayFromImage(image).astype(float), affine_of(image)


def affine_of(image: Any) -> np.ndarray:
    lps = np.eye(4)
    lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    lps[:3, 3] = image.GetOrigin()
    return RAS_OF_LPS @ lps


# --- transfer syntaxes -----------------------------------------------------------------------------------------------

# by how many HU a pixel may differ from the file that is not compressed, and all of them on average
HU_OFF: dict[str, tuple[float, float]] = {
    "1.2.840.10008.1.2": (0, 0),  # implicit little endian
    "1.2.840.10008.1.2.1": (0, 0),  # explicit little endian
    "1.2.840.10008.1.2.1.99": (0, 0),  # deflated
    "1.2.840.10008.1.2.2": (0, 0),  # explicit big endian
    "1.2.840.10008.1.2.5": (0, 0),  # RLE
    "1.2.840.10008.1.2.4.57": (0, 0),  # JPEG lossless
    "1.2.840.10008.1.2.4.70": (0, 0),  # JPEG lossless, first order prediction
    "1.2.840.10008.1.2.4.80": (0, 0),  # JPEG-LS, lossless
    "1.2.840.10008.1.2.4.90": (0, 0),  # JPEG 2000, lossless
    "1.2.840.10008.1.2.4.81": (1, 1),  # JPEG-LS, near lossless
    "1.2.840.10008.1.2.4.91": (5, 1),  # JPEG 2000
    "1.2.840.10008.1.2.4.51": (36, 4),  # JPEG, 12 bits
    "1.2.840.10008.1.2.4.53": (36, 4),  # JPEG spectral selection, 12 bits
    "1.2.840.10008.1.2.4.55": (36, 4),  # JPEG progressive, 12 bits
    "1.2.840.10008.1.2.4.50": (65, 20),  # JPEG, 8 bits: two levels of 32 HU
}


@pytest.fixture(scope="module")
def uncompressed(data_dir: Path) -> np.ndarray:
    dataset = pydicom.dcmread(data_dir / "ct_syntaxes" / "1.2.840.10008.1.2.1.dcm")
    stored = np.frombuffer(dataset.PixelData, "<i2").reshape(512, 512)
    return stored * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)


def test_every_transfer_syntax_has_a_file(data_dir: Path) -> None:
    assert {file.stem for file in (data_dir / "ct_syntaxes").glob("*.dcm")} == set(HU_OFF)


@pytest.mark.parametrize("syntax", HU_OFF)
def test_one_slice_in_every_transfer_syntax(syntax: str, data_dir: Path, uncompressed: np.ndarray) -> None:
    path = data_dir / "ct_syntaxes" / f"{syntax}.dcm"
    assert pydicom.dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID == syntax
    hu, record = read_hu(path)
    largest, mean = HU_OFF[syntax]
    off = np.abs(hu[0] - uncompressed)
    assert off.max() <= largest + 1e-3 and off.mean() <= mean + 1e-3
    assert ("lossy" in codes(record)) == (largest > 0)
    np.testing.assert_allclose(hu, by_simpleitk(path)[0], rtol=0, atol=2e-3)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.90"])
def test_monochrome1_has_the_same_hu(syntax: str, data_dir: Path, tmp_path: Path) -> None:
    """PS3.3 C.7.6.3.1.2: it says how values are shown. ITK inverts them, in what it decodes."""
    path = data_dir / "ct_syntaxes" / f"{syntax}.dcm"
    dataset = pydicom.dcmread(path)
    dataset.PhotometricInterpretation = "MONOCHROME1"
    dataset.save_as(tmp_path / "scan.dcm")
    np.testing.assert_array_equal(read_hu(tmp_path / "scan.dcm")[0], read_hu(path)[0])


def test_frames_of_jpeg_lossless_have_their_own_rescale(data_dir: Path, tmp_path: Path) -> None:
    """ITK applies that of the first frame to all."""
    from pydicom import Dataset

    def group(sequence: str, **values: Any) -> Dataset:
        outer, inner = Dataset(), Dataset()
        for name, value in values.items():
            setattr(inner, name, value)
        setattr(outer, sequence, [inner])
        return outer

    path = data_dir / "ct_syntaxes" / "1.2.840.10008.1.2.4.70.dcm"
    stored = np.rint(read_hu(path)[0][0]) + 1024
    dataset = pydicom.dcmread(path)
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        delattr(dataset, name)
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    shared = group("PlaneOrientationSequence", ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    shared.update(group("PixelMeasuresSequence", PixelSpacing=[0.7, 0.7]))
    dataset.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for index in range(3):
        each = group("PlanePositionSequence", ImagePositionPatient=[0, 0, -2.5 * index])
        scale = {"RescaleSlope": f"{1 - 0.1 * index:.1f}", "RescaleIntercept": "-1024"}
        each.update(group("PixelValueTransformationSequence", **scale))
        frames.append(each)
    dataset.PixelPaddingValue = -2000  # or the corners would lie outside of the range of HU
    dataset.NumberOfFrames, dataset.PerFrameFunctionalGroupsSequence = 3, frames
    dataset.PixelData = encapsulate([frame] * 3)
    dataset.save_as(tmp_path / "enhanced.dcm")
    hu, record = read_hu(tmp_path / "enhanced.dcm")
    assert record["decoder"] == "SimpleITK"
    for index in range(3):  # the last frame is the most inferior
        wanted = np.where(stored == -2000, WIDE[0], stored * (1 - 0.1 * index) - 1024)
        np.testing.assert_allclose(hu[2 - index], wanted, rtol=0, atol=1e-2)


# --- planes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_planes_of_real_series(plane: str, data_dir: Path) -> None:
    files = sorted((data_dir / "nysbu_planes").glob(f"*_{plane}_*.dcm"))
    assert len(files) == {"axial": 4, "coronal": 2, "sagittal": 2}[plane]
    for file in files:
        if plane == "axial":
            hu, _ = read_hu(file)
            wanted = by_simpleitk(file)[0]
            np.testing.assert_allclose(hu, np.where(wanted == -3024, WIDE[0], wanted), rtol=0, atol=2e-3)  # padding
        else:
            assert f": {plane} slices (90 degrees from axial)" in refusal(file)


def test_the_axial_series_of_a_study_is_chosen(data_dir: Path, tmp_path: Path) -> None:
    for file in (data_dir / "nysbu_planes").glob("A002304_*.dcm"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    _, record = read_hu(tmp_path)
    assert [Path(file).name.split("_")[1] for file in record["files"]] == ["axial"]
    assert record["series"].count("coronal slices") == 2


def test_patients_in_one_folder(data_dir: Path) -> None:
    """Whose CT is meant cannot be known; each series can be asked for."""
    assert "holds CTs of 2 patients" in refusal(data_dir / "nysbu_planes")
    assert len(find_scans(data_dir / "nysbu_planes", all_series=True)) == 8


def test_real_slices_of_many_scanners(data_dir: Path) -> None:
    files = sorted((data_dir / "tcga_lung_slices").glob("*.dcm"))
    assert len(files) == 24
    for file in files:
        hu, record = read_hu(file)
        assert record["decoder"] == "pydicom"
        dataset = pydicom.dcmread(file, stop_before_pixels=True)
        shown = str({**record, "files": []})
        assert not [value for value in (dataset.PatientID, dataset.SeriesInstanceUID) if str(value) in shown]
        wanted, affine = by_simpleitk(file)
        np.testing.assert_allclose(hu.clip(-1300), wanted.clip(-1300), rtol=0, atol=2e-3)
        np.testing.assert_allclose(np.array(record["affine"])[:, [0, 1, 3]], affine[:, [0, 1, 3]], rtol=0, atol=1e-3)


# --- whole scans -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["chest_ct_dicom", "chest_ct.nrrd", "abdomen_ct.nii.gz"])
def test_hu_and_places_are_those_of_simpleitk(name: str, data_dir: Path) -> None:
    hu, record = read_hu(data_dir / name)
    wanted, affine = by_simpleitk(data_dir / name)
    assert record["shape"] == list(wanted.shape)
    np.testing.assert_allclose(hu, wanted, rtol=0, atol=2e-3)
    np.testing.assert_allclose(record["affine"], affine, rtol=0, atol=1e-3)


def test_a_chest_is_taken_for_one_and_an_abdomen_is_not(data_dir: Path) -> None:
    assert "no_chest" in codes(read_hu(data_dir / "abdomen_ct.nii.gz", min_slices=10)[1])
    for name in ("chest_ct_dicom", "chest_ct.nrrd", "golden/jpg_scan"):
        assert codes(read_hu(data_dir / name, min_slices=10)[1]) == []


def test_dicom_and_nrrd_of_one_scan_lie_at_one_place(data_dir: Path) -> None:
    records = [read_hu(data_dir / name)[1] for name in ("chest_ct_dicom", "chest_ct.nrrd")]
    np.testing.assert_allclose(records[0]["affine"], records[1]["affine"], rtol=0, atol=1e-3)


# itk tears its module down after ours at exit and can crash there, so that it gets a process of its own
READ_BY_ITK = """
import os, sys, itk, numpy
image = itk.imread(sys.argv[1])
direction = itk.array_from_matrix(image.GetDirection()) * numpy.array(image.GetSpacing())
numpy.savez(sys.argv[2], hu=itk.array_from_image(image), steps=direction, origin=numpy.array(image.GetOrigin()))
os._exit(0)
"""


@pytest.mark.slow
def test_a_series_is_read_as_itk_reads_it(data_dir: Path, tmp_path: Path) -> None:
    arguments = [str(data_dir / "chest_ct_dicom"), str(tmp_path / "itk.npz")]
    subprocess.run([sys.executable, "-c", READ_BY_ITK, *arguments], check=True, timeout=600)
    by_itk = np.load(tmp_path / "itk.npz")
    hu, record = read_hu(data_dir / "chest_ct_dicom")
    np.testing.assert_allclose(hu, by_itk["hu"].astype(float), rtol=0, atol=2e-3)
    lps = np.eye(4)
    lps[:3, :3], lps[:3, 3] = by_itk["steps"], by_itk["origin"]
    np.testing.assert_allclose(record["affine"], RAS_OF_LPS @ lps, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "change",
    [
        lambda ds, index: None,
        planted.prone,
        planted.decubitus,
        planted.from_behind,
        planted.oblique(10),
        planted.oblique(-20),
    ],
    ids=["supine", "prone", "decubitus", "from behind", "oblique", "oblique the other way"],
)
def test_places_in_the_patient_are_those_of_simpleitk(change: Callable[[Any, int], None], tmp_path: Path) -> None:
    """The overlay and the DICOM results rest on it: voxel and slice to millimetres."""
    path = planted.edit(planted.write_clean(tmp_path / "scan"), change)
    hu, record = read_hu(path)
    wanted, affine = by_simpleitk(path)
    np.testing.assert_allclose(hu, wanted, rtol=0, atol=2e-3)
    np.testing.assert_allclose(record["affine"], affine, rtol=0, atol=2e-3)
