"""Write one HU volume as a JPG folder, a DICOM series, NIfTI, NRRD or MHA.

Every writer takes ``hu``, integers (D, H, W) that grow towards superior, posterior and patient left (LPS, slowest
first), and ``spacing`` = (dz, dy, dx) in mm. The volume is centred on the origin of patient space in all formats: a
reader that reorients to LPS returns the array that went in. Only JPG loses the geometry and part of the HU range.
A wrong volume, spacing, suffix or setting is a ValueError; what exists is never overwritten (FileExistsError).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

JPG_WINDOW = (-1350.0, 150.0)
_DICOM_SEX = {"male": "M", "female": "F"}


def volume_origin(shape: Sequence[int], spacing: Sequence[float]) -> tuple[float, float, float]:
    """Position (x, y, z) in mm, LPS, of the centre of voxel (0, 0, 0); the volume is centred on (0, 0, 0)."""
    depth, height, width = (-(n - 1) / 2 * step for n, step in zip(shape, spacing, strict=True))
    return width, height, depth


def write_jpg_folder(
    folder: Path | str, hu: NDArray[Any], window: tuple[float, float] = JPG_WINDOW, *, quality: int = 95
) -> Path:
    """Write ``0.jpg`` ... ``D-1.jpg`` (8-bit grey), slice 0 the most inferior; HU outside ``window`` is clipped.

    ``window`` is (lower, upper) in HU and maps to 0..255; ``quality`` is 1..100. Spacing is lost.
    """
    from PIL import Image

    volume = _checked_volume(hu)
    lower, upper = window
    if not lower < upper:
        raise ValueError(f"window must be (lower, upper) with lower < upper, got {window}")
    if not 1 <= quality <= 100:
        raise ValueError(f"quality must be in [1, 100], got {quality}")
    folder = _empty_folder(folder)
    for number, plane in enumerate(volume):
        grey = np.clip((plane.astype(np.float32) - lower) * (255.0 / (upper - lower)), 0, 255)
        Image.fromarray(np.rint(grey).astype(np.uint8)).save(folder / f"{number}.jpg", quality=quality)
    return folder


def write_dicom_series(
    folder: Path | str, hu: NDArray[Any], spacing: Sequence[float], *, sex: str, age: int, patient_id: str = "P0000",
    uid_seed: str = "0", series_description: str = "SYNTHETIC PHANTOM chest CT",
    manufacturer: str = "fairlung phantom", reverse_names: bool = False, prone: bool = False,
) -> Path:  # fmt: skip
    """Write a CT Image Storage series (explicit VR little endian, 16 bit, rescale 1 / -1024), one file per slice.

    ``sex`` is male or female, ``age`` in [0, 120] years. All UIDs follow from ``uid_seed`` and ``patient_id``: give
    different volumes different values. ``reverse_names`` numbers files and InstanceNumber from superior to inferior.
    ``prone`` stores the planes turned by 180 degrees with orientation and position to match (HFP).
    """
    from pydicom.uid import generate_uid

    volume = _checked_volume(hu, lowest=-1024)  # DICOM stores them unsigned, with an intercept of -1024
    dz, dy, dx = _checked_spacing(spacing)
    if sex not in _DICOM_SEX:
        raise ValueError(f"sex must be male or female, got {sex!r}")
    if not 0 <= age <= 120:
        raise ValueError(f"age must be in [0, 120], got {age}")
    if "SYNTHETIC PHANTOM" not in series_description:  # a viewer shows it: no scan may pass for a patient's
        raise ValueError(f"series_description must contain 'SYNTHETIC PHANTOM', got {series_description!r}")
    folder = _empty_folder(folder)

    def uid(*what: object) -> str:
        return generate_uid(entropy_srcs=["fairlung-phantom", uid_seed, patient_id, *map(str, what)])

    x0, y0, z0 = volume_origin(volume.shape, (dz, dy, dx))
    turn = -1 if prone else 1
    stored = np.clip(volume.astype(np.int32) + 1024, 0, 65535).astype("<u2")[:, ::turn, ::turn]
    ds = _ct_header(volume.shape, (dz, dy, dx), turn)
    ds.update({
        "Manufacturer": manufacturer, "SeriesDescription": series_description, "PatientID": patient_id,
        "PatientSex": _DICOM_SEX[sex], "PatientAge": f"{int(age):03d}Y", "StudyInstanceUID": uid("study"),
        "SeriesInstanceUID": uid("series"), "FrameOfReferenceUID": uid("frame"),
    })  # fmt: skip
    for index, plane in enumerate(stored):
        number = len(stored) - index if reverse_names else index + 1
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = uid("instance", index)
        ds.InstanceNumber = number
        ds.ImagePositionPatient = [_ds(turn * x0), _ds(turn * y0), _ds(z0 + index * dz)]
        ds.SliceLocation = _ds(z0 + index * dz)
        ds.PixelData = np.ascontiguousarray(plane).tobytes()
        ds["PixelData"].VR = "OW"
        ds.save_as(folder / f"IM-{number:04d}.dcm", enforce_file_format=True)
    return folder


def _ct_header(shape: Sequence[int], spacing: Sequence[float], turn: int) -> Dataset:
    """What all slices of all phantoms share; ``turn`` is -1 for planes that are turned by 180 degrees."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    dz, dy, dx = spacing
    ds = Dataset()
    ds.update({
        "SpecificCharacterSet": "ISO_IR 100", "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "SOPClassUID": CTImageStorage, "Modality": "CT", "StudyDescription": "SYNTHETIC PHANTOM",
        "PatientName": "PHANTOM^SYNTHETIC", "BodyPartExamined": "CHEST", "KVP": "120",
        "SliceThickness": _ds(dz), "SpacingBetweenSlices": _ds(dz), "PatientPosition": "HFP" if turn < 0 else "HFS",
        "SeriesNumber": 1, "AcquisitionNumber": 1, "ImageOrientationPatient": [turn, 0, 0, 0, turn, 0],
        "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "Rows": shape[1], "Columns": shape[2],
        "PixelSpacing": [_ds(dy), _ds(dx)], "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15,
        "PixelRepresentation": 0, "BurnedInAnnotation": "NO", "RescaleIntercept": "-1024", "RescaleSlope": "1",
        "RescaleType": "HU", "WindowCenter": "-600", "WindowWidth": "1500",
    })  # fmt: skip
    for what in ("Study", "Series", "Acquisition", "Content"):
        ds.update({f"{what}Date": "20000101", f"{what}Time": "000000"})
    # attributes of type 2 must be there and may be empty
    empty = ("AccessionNumber", "ReferringPhysicianName", "PatientBirthDate", "StudyID", "PositionReferenceIndicator")
    ds.update(dict.fromkeys(empty, ""))
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


def write_nifti(path: Path | str, hu: NDArray[Any], spacing: Sequence[float]) -> Path:
    """Write int16 NIfTI-1 (``.nii`` or ``.nii.gz``), data (W, H, D), affine in RAS mm, qform and sform both set."""
    import nibabel

    volume, (dz, dy, dx) = _checked_volume(hu), _checked_spacing(spacing)
    path = _new_file(path, (".nii", ".nii.gz"))
    x0, y0, z0 = volume_origin(volume.shape, (dz, dy, dx))
    affine = np.diag([-dx, -dy, dz, 1.0])  # left and posterior are the negative directions of RAS
    affine[:3, 3] = -x0, -y0, z0
    image = nibabel.Nifti1Image(np.ascontiguousarray(volume.transpose(2, 1, 0)), affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"SYNTHETIC PHANTOM"
    image.set_qform(affine, code="scanner")
    image.set_sform(affine, code="scanner")
    nibabel.save(image, path)
    return path


def write_nrrd_or_mha(path: Path | str, hu: NDArray[Any], spacing: Sequence[float]) -> Path:
    """Write a compressed int16 ``.nrrd`` or ``.mha`` through SimpleITK, direction identity (LPS)."""
    import SimpleITK as sitk

    volume, (dz, dy, dx) = _checked_volume(hu), _checked_spacing(spacing)
    path = _new_file(path, (".nrrd", ".mha"))
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing((dx, dy, dz))
    image.SetOrigin(volume_origin(volume.shape, (dz, dy, dx)))
    image.SetMetaData("SeriesDescription", "SYNTHETIC PHANTOM")
    sitk.WriteImage(image, str(path), useCompression=True)
    return path


def _checked_volume(hu: NDArray[Any], lowest: int = -32768) -> NDArray[np.int16]:
    if hu.ndim != 3 or min(hu.shape) < 1:
        raise ValueError(f"hu must have shape (D, H, W) without empty axes, got {hu.shape}")
    if hu.dtype.kind not in "iu":
        raise ValueError(f"hu must be an integer array, got {hu.dtype}")
    low, high = int(hu.min()), int(hu.max())
    if low < lowest or high > 32767:
        raise ValueError(f"hu must be in [{lowest}, 32767], got [{low}, {high}]")
    return np.ascontiguousarray(hu, dtype=np.int16)


def _checked_spacing(spacing: Sequence[float]) -> tuple[float, float, float]:
    if len(spacing) != 3 or not all(np.isfinite(step) and step > 0 for step in spacing):
        raise ValueError(f"spacing must be three positive millimetres (dz, dy, dx), got {tuple(spacing)}")
    return float(spacing[0]), float(spacing[1]), float(spacing[2])


def _ds(value: float) -> str:
    """Format for a DICOM decimal string, which has room for 16 characters only."""
    text = f"{value + 0.0:.10g}"
    return text if len(text) <= 16 else f"{value:.8g}"


def _empty_folder(folder: Path | str) -> Path:
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; a scan is written into a folder of its own")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _new_file(path: Path | str, suffixes: tuple[str, ...]) -> Path:
    path = Path(path)
    if not path.name.endswith(suffixes):
        raise ValueError(f"file name must end in {' or '.join(suffixes)}, got {path.name!r}")
    if path.exists():
        raise FileExistsError(f"{path} already exists")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
