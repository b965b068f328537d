"""The phantom's files: the same patient in every format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fairlung.pipeline.phantoms import writers as scan_writers


@pytest.fixture
def odd_volume() -> tuple[np.ndarray, tuple[float, float, float]]:
    """No symmetry at all: a flip or a swap of axes cannot go unnoticed."""
    rng = np.random.default_rng(1)
    return rng.integers(-1024, 1500, (9, 12, 15)).astype(np.int16), (2.5, 0.75, 0.8125)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read_lps(path: Path) -> tuple[np.ndarray, tuple[float, ...], tuple[float, ...]]:
    import SimpleITK as sitk

    source: object = str(path)
    if path.is_dir():
        source = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path))
    image = sitk.DICOMOrient(sitk.ReadImage(source), "LPS")
    assert np.allclose(image.GetDirection(), np.eye(3).ravel())
    return sitk.GetArrayFromImage(image), image.GetSpacing()[::-1], image.GetOrigin()


@pytest.mark.parametrize(
    "kind", ["nii.gz", "nii", "nrrd", "mha", "dicom", "dicom-reversed", "dicom-prone", "dicom-reversed-prone"]
)
def test_every_format_reads_back_as_the_same_patient(
    tmp_path: Path, odd_volume: tuple[np.ndarray, tuple[float, float, float]], kind: str
) -> None:
    hu, spacing = odd_volume
    if kind.startswith("dicom"):
        path = scan_writers.write_dicom_series(
            tmp_path / kind, hu, spacing, sex="male", age=60, reverse_names="reversed" in kind, prone="prone" in kind
        )
    elif kind.startswith("nii"):
        path = scan_writers.write_nifti(tmp_path / f"a.{kind}", hu, spacing)
    else:
        path = scan_writers.write_nrrd_or_mha(tmp_path / f"a.{kind}", hu, spacing)
    array, read_spacing, origin = read_lps(path)
    assert np.array_equal(array, hu)
    assert np.allclose(read_spacing, spacing)
    assert np.allclose(origin, scan_writers.volume_origin(hu.shape, spacing))


def test_nifti_bytes_do_not_depend_on_the_clock(
    tmp_path: Path, odd_volume: tuple[np.ndarray, tuple[float, float, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = scan_writers.write_nifti(tmp_path / "a" / "x.nii.gz", *odd_volume)
    monkeypatch.setattr("time.time", lambda: 2_000_000_000.0)
    second = scan_writers.write_nifti(tmp_path / "b" / "x.nii.gz", *odd_volume)
    assert first.read_bytes() == second.read_bytes()


def test_dicom_tags(tmp_path: Path, odd_volume: tuple[np.ndarray, tuple[float, float, float]]) -> None:
    import pydicom

    hu, spacing = odd_volume
    options = {"sex": "female", "age": 63, "patient_id": "P0007"}
    folder = scan_writers.write_dicom_series(tmp_path / "a", hu, spacing, reverse_names=True, prone=True, **options)
    series = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    first = series[0]
    assert first.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
    assert first.SOPClassUID == first.file_meta.MediaStorageSOPClassUID == pydicom.uid.CTImageStorage
    assert (first.Modality, first.PatientSex, first.PatientAge, first.PatientID) == ("CT", "F", "063Y", "P0007")
    assert str(first.PatientName) == "PHANTOM^SYNTHETIC" and "SYNTHETIC PHANTOM" in first.SeriesDescription
    assert first.BurnedInAnnotation == "NO" and list(first.ImageType) == ["ORIGINAL", "PRIMARY", "AXIAL"]
    assert first.PatientPosition == "HFP" and list(first.ImageOrientationPatient) == [-1, 0, 0, 0, -1, 0]
    assert [float(v) for v in first.PixelSpacing] == [0.75, 0.8125] and first.SliceThickness == 2.5
    assert [s.InstanceNumber for s in series] == list(range(1, 10))
    heights = [float(s.ImagePositionPatient[2]) for s in series]
    assert np.allclose(np.diff(heights), -2.5)  # names count downwards from the head
    assert np.array_equal(first.pixel_array[::-1, ::-1].astype(int) + int(first.RescaleIntercept), hu[-1])
    assert len({s.SOPInstanceUID for s in series}) == 9
    assert all(s.SOPInstanceUID == s.file_meta.MediaStorageSOPInstanceUID for s in series)
    assert all(pydicom.uid.UID(s.SOPInstanceUID).is_valid for s in series)
    for tag in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        assert len({s[tag].value for s in series}) == 1
    again = scan_writers.write_dicom_series(tmp_path / "b", hu, spacing, reverse_names=True, prone=True, **options)
    assert content(folder) == content(again)
    options["patient_id"] = "P0008"
    other = scan_writers.write_dicom_series(tmp_path / "c", hu, spacing, **options)
    assert pydicom.dcmread(other / "IM-0001.dcm").SeriesInstanceUID != first.SeriesInstanceUID


def test_jpg_folder(tmp_path: Path) -> None:
    from PIL import Image

    hu = np.full((11, 16, 24), -1400, np.int16)
    hu[3], hu[10] = -600, 400
    folder = scan_writers.write_jpg_folder(tmp_path / "scan", hu)
    assert {p.name for p in folder.iterdir()} == {f"{n}.jpg" for n in range(11)}
    means = []
    for number in (0, 3, 10):
        with Image.open(folder / f"{number}.jpg") as image:
            assert image.mode == "L" and image.size == (24, 16)
            means.append(np.asarray(image).mean())
    assert means == pytest.approx([0, 127.5, 255], abs=2)
    with pytest.raises(FileExistsError, match="is not empty"):
        scan_writers.write_jpg_folder(folder, hu)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda p, hu: scan_writers.write_nifti(p / "a.img", hu, (1, 1, 1)),
            r"must end in .nii or .nii.gz, got 'a.img'",
        ),
        (lambda p, hu: scan_writers.write_nifti(p / "a.nii", hu, (1, 0, 1)), r"spacing must be .* got \(1, 0, 1\)"),
        (
            lambda p, hu: scan_writers.write_nifti(p / "a.nii", hu[0], (1, 1, 1)),
            r"hu must have shape .* got \(12, 15\)",
        ),
        (lambda p, hu: scan_writers.write_nrrd_or_mha(p / "a.mha", hu * 1.0, (1, 1, 1)), "integer array, got float64"),
        (
            lambda p, hu: scan_writers.write_dicom_series(p / "a", hu * 0 - 1025, (1, 1, 1), sex="male", age=1),
            r"hu must be in \[-1024, 32767\], got \[-1025, -1025\]",
        ),
        (
            lambda p, hu: scan_writers.write_jpg_folder(p / "a", hu, (150, -1350)),
            r"window must be .* got \(150, -1350\)",
        ),
        (lambda p, hu: scan_writers.write_jpg_folder(p / "a", hu, quality=0), r"quality must be in \[1, 100\], got 0"),
        (
            lambda p, hu: scan_writers.write_dicom_series(p / "a", hu, (1, 1, 1), sex="F", age=1),
            "sex must be .* got 'F'",
        ),
        (
            lambda p, hu: scan_writers.write_dicom_series(p / "a", hu, (1, 1, 1), sex="male", age=-1),
            "age must be .* got -1",
        ),
        (
            lambda p, hu: scan_writers.write_dicom_series(
                p / "a", hu, (1, 1, 1), sex="male", age=1, series_description="CT"
            ),
            "must contain 'SYNTHETIC PHANTOM'",
        ),
    ],
)
def test_writers_name_the_wrong_value(tmp_path: Path, odd_volume: tuple[np.ndarray, object], call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call(tmp_path, odd_volume[0])
    assert not list(tmp_path.iterdir())
