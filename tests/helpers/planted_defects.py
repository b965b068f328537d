"""Defects that scans come with, each planted in a clean one, and what the intake answers: the table of docs/intake.md.

A defect is planted in a copy of a chest phantom that draws no warning by itself. ``python
tests/helpers/planted_defects.py`` prints the table; test_intake_defects.py holds every row against the intake, and the
documentation against the table.
"""

from __future__ import annotations

import functools
import re
import shutil
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from fairlung.pipeline.phantoms.anatomy import synthesize
from fairlung.pipeline.phantoms.writers import volume_origin, write_dicom_series, write_nifti

DATA = Path(__file__).parents[1] / "data"
PNG_SIZE = 64  # slice folders are read at this size

# what no message, record or log may hold
PATIENT = {
    "PatientName": "ZEPHYRINE^OCTAVIA",
    "PatientID": "MRN-77431-Q",
    "PatientBirthDate": "19431117",
    "AccessionNumber": "ACC5551212",
    "OtherPatientIDs": "OTHER-90210",
    "ReferringPhysicianName": "QUILLFEATHER^B",
    "StationName": "KESTREL7",
}
SECRETS = ("ZEPHYRINE", "OCTAVIA", "77431", "19431117", "5551212", "90210", "QUILLFEATHER", "KESTREL7", "1.2.826.0.1")

Volume = np.ndarray
Change = Callable[[Any, int], None]


@functools.cache
def clean_volume() -> tuple[Volume, tuple[float, float, float]]:
    """HU (D, H, W) of the clean chest, and its spacing."""
    scan = synthesize("normal", "female", rng=np.random.default_rng(0), shape=(40, 48, 48), site="cedar")
    return scan.hu, scan.spacing


def write_clean(folder: Path) -> Path:
    """The clean chest as a DICOM series, with a patient in every header."""
    hu, spacing = clean_volume()
    write_dicom_series(folder, hu, spacing, sex="female", age=60)
    return edit(folder, lambda ds, _: [setattr(ds, name, value) for name, value in PATIENT.items()])


@dataclass(frozen=True)
class Defect:
    """A row of the table.

    Args:
        what: in words.
        plant: changes a copy of the clean series; returns what is to be read, None for the folder.
        outcome: unchanged, warned, refused or skipped.
        says: codes of all warnings; or a piece of the reason.
        volume: HU of the clean chest -> HU of the answer.
        note: how the answer differs, in words.
        fault: what went wrong, what 0.1 did, what happens now; None where 0.1 was right.
    """

    what: str
    plant: Callable[[Path], Path | None]
    outcome: str
    says: tuple[str, ...] = ()
    volume: Callable[[Volume], Volume] | None = None
    note: str = ""
    fault: tuple[str, str, str] | None = None


def mended(what: str, before: str, now: str, *defects: Defect) -> list[Defect]:
    """Inputs of one fault of version 0.1."""
    return [replace(defect, fault=(what, before, now)) for defect in defects]


# ---------------------------------------------------------------------------------------------------------------------
# tools
# ---------------------------------------------------------------------------------------------------------------------
def files_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.dcm"))


def edit(folder: Path, change: Change, which: Iterable[int] | None = None, **how: Any) -> Path:
    """Change the datasets of a series, or of some slices of it."""
    import pydicom

    files = files_of(folder)
    for index in range(len(files)) if which is None else which:
        dataset = pydicom.dcmread(files[index])
        change(dataset, index)
        dataset.save_as(files[index], **how)
    return folder


def edited(change: Change, which: Iterable[int] | None = None, **how: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder, change, which, **how) and None


def with_values(which: Iterable[int] | None = None, **values: Any) -> Callable[[Path], None]:
    """Set elements; None deletes one."""

    def change(dataset: Any, index: int) -> None:
        for name, value in values.items():
            if value is None:
                delattr(dataset, name)
            else:
                setattr(dataset, name, value)

    return edited(change, which)


def moved(move: Callable[[int], Sequence[float]], which: Iterable[int] | None = None) -> Callable[[Path], None]:
    """Shift slices by ``move(index)``, (x, y, z) mm."""

    def change(dataset: Any, index: int) -> None:
        place = np.array(dataset.ImagePositionPatient, dtype=float) + move(index)
        dataset.ImagePositionPatient = [f"{value:.6g}" for value in place]

    return edited(change, which)


def with_stored(
    to_stored: Callable[[Volume], Volume], kind: str = "<u2", which: Iterable[int] | None = None, **values: Any
) -> Callable[[Path], None]:
    """Replace pixels by a function of their HU, and set elements."""

    def change(dataset: Any, index: int) -> None:
        hu = dataset.pixel_array.astype(int) - 1024
        for name, value in values.items():
            setattr(dataset, name, value)
        dataset.PixelData = np.ascontiguousarray(to_stored(hu)).astype(kind).tobytes()

    return edited(change, which)


def add_series(
    folder: Path, stack: Volume | None = None, *, name: str, change: Change | None = None, **values: Any
) -> None:
    """A further series of the same patient and study beside the clean one; ``stack`` is HU, None for the clean."""
    import pydicom

    hu, (dz, _, _) = clean_volume()
    stack = hu if stack is None else stack
    template = pydicom.dcmread(files_of(folder)[0])
    x, y, z = (float(value) for value in template.ImagePositionPatient)
    step = dz * len(hu) / len(stack)
    for index, plane in enumerate(stack):
        template.SeriesInstanceUID = f"1.2.826.0.1.3680043.8.498.{sum(name.encode())}"
        template.SOPInstanceUID = f"{template.SeriesInstanceUID}.{index + 1}"
        template.file_meta.MediaStorageSOPInstanceUID = template.SOPInstanceUID
        template.SeriesNumber, template.InstanceNumber = 2, index + 1
        template.ImagePositionPatient = [x, y, f"{z + index * step:.6g}"]
        template.Rows, template.Columns = plane.shape
        template.PixelData = (plane + 1024).astype("<u2").tobytes()
        for element, value in values.items():
            setattr(template, element, value)
        if change is not None:
            change(template, index)
        template.save_as(folder / f"{name}-{index:03d}.dcm")


def beside(stack: Callable[[Volume], Volume] | None = None, **how: Any) -> Callable[[Path], None]:
    return lambda folder: add_series(folder, None if stack is None else stack(clean_volume()[0]), **how)


def alone(plant: Callable[[Path], Any]) -> Callable[[Path], None]:
    """What is planted beside the series, without the series."""

    def planted(folder: Path) -> None:
        clean = files_of(folder)
        plant(folder)
        for file in clean:
            file.unlink()

    return planted


def every(*plants: Callable[[Path], Any]) -> Callable[[Path], Path | None]:
    """All of several defects; what the last of them returns is read."""

    def planted(folder: Path) -> Path | None:
        found = None
        for plant in plants:
            found = plant(folder)
        return found

    return planted


# ---------------------------------------------------------------------------------------------------------------------
# beside the series
# ---------------------------------------------------------------------------------------------------------------------
def in_plane(axis: int) -> Callable[[Volume], Volume]:
    """Coronal (1) or sagittal (2) planes, head up."""
    return lambda hu: np.moveaxis(hu, axis, 0)[:, ::-1]


def as_plane(axis: int) -> Change:
    hu, spacing = clean_volume()
    origin = np.array(volume_origin(hu.shape, spacing))
    top = origin[2] + (len(hu) - 1) * spacing[0]
    along = [1, 0, 0] if axis == 1 else [0, 1, 0]

    def change(dataset: Any, index: int) -> None:
        place = [origin[0], origin[1], top]
        place[1 if axis == 1 else 0] += index * spacing[axis]
        dataset.ImagePositionPatient = [f"{value:.6g}" for value in place]
        dataset.ImageOrientationPatient = [*along, 0, 0, -1]
        dataset.PixelSpacing = [f"{spacing[0]:.6g}", f"{spacing[3 - axis]:.6g}"]
        dataset.ImageType = ["DERIVED", "SECONDARY", "REFORMATTED"]

    return change


def localizers(folder: Path) -> None:
    hu = clean_volume()[0]

    def change(dataset: Any, index: int) -> None:
        as_plane(1)(dataset, index)
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    add_series(folder, in_plane(1)(hu)[20:22], name="scout", change=change, SeriesNumber=1)


def localizers_inside(folder: Path) -> None:
    import pydicom

    series = pydicom.dcmread(files_of(folder)[0]).SeriesInstanceUID
    localizers(folder)
    for file in folder.glob("scout*.dcm"):
        dataset = pydicom.dcmread(file)
        dataset.SeriesInstanceUID = series
        dataset.save_as(file)


def other_object(uid: str, modality: str) -> Callable[[Path], None]:
    """A DICOM object without pixels."""

    def plant(folder: Path) -> None:
        import pydicom

        dataset = pydicom.dcmread(files_of(folder)[0])
        for name in ("PixelData", "Rows", "Columns", "ImageType", "ImagePositionPatient", "ImageOrientationPatient"):
            delattr(dataset, name)
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = uid
        dataset.Modality = modality
        dataset.SeriesInstanceUID = "1.2.826.0.1.77"
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.826.0.1.77.1"
        dataset.SeriesNumber = 501
        dataset.save_as(folder / "object.dcm")

    return plant


DOSE_REPORT = other_object("1.2.840.10008.5.1.4.1.1.88.67", "SR")
PRESENTATION_STATE = other_object("1.2.840.10008.5.1.4.1.1.11.1", "PR")
STRUCTURES = other_object("1.2.840.10008.5.1.4.1.1.481.3", "RTSTRUCT")
SECONDARY_CAPTURE = beside(
    lambda hu: hu[:12], name="capture", SOPClassUID="1.2.840.10008.5.1.4.1.1.7", ImageType=["DERIVED", "SECONDARY"]
)
MIP = beside(lambda hu: np.maximum(hu[:-1], hu[1:]), name="mip", ImageType=["DERIVED", "SECONDARY", "AXIAL", "MIP"])
RENDERING = beside(name="vrt", ImageType=["DERIVED", "SECONDARY", "OTHER", "CSA VRT"])
REFORMAT = beside(  # of twice as many slices
    lambda hu: np.repeat(hu, 2, axis=0), name="reformat", ImageType=["DERIVED", "SECONDARY", "REFORMATTED"]
)
THICK = beside(lambda hu: (hu[::2].astype(int) + hu[1::2]) // 2, name="thick")
KERNEL = beside(lambda hu: hu + np.arange(hu.size).reshape(hu.shape) % 7, name="kernel")
PET = beside(name="pet", Modality="PT", SOPClassUID="1.2.840.10008.5.1.4.1.1.128")
CORONAL = beside(in_plane(1), name="coronal", change=as_plane(1))
SAGITTAL = beside(in_plane(2), name="sagittal", change=as_plane(2))
SHORT_SERIES = beside(  # of more slices than the chest has, of a third of it
    lambda hu: np.repeat(hu[10:24], 3, axis=0),
    name="short",
    change=lambda ds, index: setattr(ds, "ImagePositionPatient", [0, 0, index * 2.5]),
)
ABDOMEN = beside(lambda hu: np.repeat(hu, 2, axis=0), name="abdomen", BodyPartExamined="ABDOMEN")
OTHER_PATIENT = beside(name="other", PatientID="another", PatientName="SOMEBODY^ELSE")
OTHER_STUDY = beside(name="study", StudyInstanceUID="1.2.826.0.1.3680043.8.498.77")


def dicomdir(folder: Path) -> None:
    other_object("1.2.840.10008.1.3.10", "")(folder)
    (folder / "object.dcm").rename(folder / "DICOMDIR")


def media_directory(name: str) -> Callable[[Path], None]:
    """A DICOMDIR, which says what it is in its meta information alone."""

    def plant(folder: Path) -> None:
        from pydicom import Dataset, uid
        from pydicom.dataset import FileMetaDataset

        index = Dataset()
        index.FileSetID, index.DirectoryRecordSequence = "ZEPHYRINE", []
        index.file_meta = FileMetaDataset()
        index.file_meta.MediaStorageSOPClassUID = uid.MediaStorageDirectoryStorage
        index.file_meta.MediaStorageSOPInstanceUID = "1.2.826.0.1.78"
        index.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        index.save_as(folder / name, enforce_file_format=True)

    return plant


def pictures(number: int) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        from PIL import Image

        for index in range(number):
            Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(folder / f"preview{index}.png")

    return plant


def texts(folder: Path) -> None:
    (folder / "report.txt").write_text("no scan")
    (folder / "report.pdf").write_bytes(b"%PDF-1.4 no scan")
    (folder / "Thumbs.db").write_bytes(b"no scan")
    (folder / ".DS_Store").write_bytes(b"no scan")


def resource_forks(folder: Path) -> None:
    for file in files_of(folder)[:3]:
        (folder / f"._{file.name}").write_bytes(b"\0\5\26\7 resource fork")


# ---------------------------------------------------------------------------------------------------------------------
# files
# ---------------------------------------------------------------------------------------------------------------------
def renamed(name: Callable[[int], str], which: Iterable[int] | None = None) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        files = files_of(folder)
        for index in range(len(files)) if which is None else which:
            files[index].rename(folder / f"new {name(index)}")
        for file in folder.glob("new *"):
            file.rename(folder / file.name.removeprefix("new "))

    return plant


def shuffled(index: int) -> int:
    return (index * 17 + 5) % 40


def without_preamble(folder: Path) -> None:
    for file in files_of(folder):
        content = file.read_bytes()
        length = int.from_bytes(content[140:144], "little")  # of group 0002
        file.write_bytes(content[144 + length :])
        file.rename(folder / file.stem)


def content(change: Callable[[bytes], bytes], which: Iterable[int] | None = None) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        files = files_of(folder)
        for index in range(len(files)) if which is None else which:
            files[index].write_bytes(change(files[index].read_bytes()))

    return plant


def garbage(data: bytes) -> bytes:
    return np.random.default_rng(len(data)).bytes(3000)


def copied(folder: Path) -> None:
    shutil.copy(files_of(folder)[7], folder / "copy of 7.dcm")


def doubled(change: Change | None = None, which: Sequence[int] = (7,), **values: Any) -> Callable[[Path], None]:
    """Slices once more, as instances of their own."""

    def plant(folder: Path) -> None:
        import pydicom

        files = files_of(folder)
        for index in which:
            dataset = pydicom.dcmread(files[index])
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.9.{index + 1}"
            for name, value in values.items():
                setattr(dataset, name, value)
            if change is not None:
                change(dataset, index)
            dataset.save_as(folder / f"doubled-{index:03d}.dcm")

    return plant


def brighter(dataset: Any, index: int) -> None:
    dataset.PixelData = (dataset.pixel_array + 50).astype("<u2").tobytes()


def higher(dataset: Any, index: int) -> None:
    place = [float(value) for value in dataset.ImagePositionPatient]
    dataset.ImagePositionPatient = [*place[:2], f"{place[2] + clean_volume()[1][0] / 2:.6g}"]
    brighter(dataset, index)


def timed(name: str, later: float) -> Callable[[Path], None]:
    """A time of every slice's own, the :func:`doubled` ones' ``later`` seconds later; no AcquisitionNumber."""

    from pydicom.datadict import dictionary_VR

    def change(dataset: Any, index: int) -> None:
        second = str(dataset.SOPInstanceUID).startswith("1.2.826.0.1.9.")
        dataset.InstanceNumber, dataset.AcquisitionNumber = index % 40 + 1, None
        seconds = later * second + index % 40 * 0.4
        clock = f"1159{seconds:05.2f}" if seconds < 60 else f"1200{seconds - 60:05.2f}"
        setattr(dataset, name, {"TM": clock, "DT": "20240229" + clock}.get(dictionary_VR(name), f"{later * second:g}"))

    return edited(change)


def removed(which: Iterable[int]) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        files = files_of(folder)
        for index in which:
            files[index].unlink()

    return plant


def left_out(*which: int) -> Callable[[Volume], Volume]:
    return lambda hu: np.delete(hu, which, axis=0)


# ---------------------------------------------------------------------------------------------------------------------
# geometry
# ---------------------------------------------------------------------------------------------------------------------
def turned(dataset: Any, rows: Volume, orientation: Sequence[float], place: Sequence[float]) -> None:
    dataset.PixelData = np.ascontiguousarray(rows).astype("<u2").tobytes()
    dataset.ImageOrientationPatient = list(orientation)
    dataset.ImagePositionPatient = [f"{float(value):.6g}" for value in place]


def prone(dataset: Any, index: int) -> None:
    x, y, z = dataset.ImagePositionPatient
    turned(dataset, dataset.pixel_array[::-1, ::-1], [-1, 0, 0, 0, -1, 0], [-x, -y, z])
    dataset.PatientPosition = "HFP"


def from_behind(dataset: Any, index: int) -> None:
    """Rows from posterior to anterior: the planes' normal points down."""
    x, y, z = dataset.ImagePositionPatient
    turned(dataset, dataset.pixel_array[::-1], [1, 0, 0, 0, -1, 0], [x, -y, z])


def decubitus(dataset: Any, index: int) -> None:
    x, y, z = dataset.ImagePositionPatient
    turned(dataset, dataset.pixel_array.T[::-1], [0, 1, 0, -1, 0, 0], [-x, y, z])
    dataset.PatientPosition = "HFDL"


def oblique(degrees: float) -> Change:
    angle = np.radians(degrees)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])

    def change(dataset: Any, index: int) -> None:
        dataset.ImageOrientationPatient = [f"{value:.6f}" for value in (*turn[:, 0], *turn[:, 1])]
        place = turn @ np.array(dataset.ImagePositionPatient, dtype=float)
        dataset.ImagePositionPatient = [f"{value:.6g}" for value in place]

    return change


def sheared(degrees: float) -> Callable[[Path], None]:
    step = clean_volume()[1][0] * np.tan(np.radians(degrees))
    return moved(lambda index: (0, index * step, 0))


def cropped(dataset: Any, index: int) -> None:
    """Its middle 36 rows."""
    plane = dataset.pixel_array
    dataset.Rows = 36
    dataset.PixelData = np.ascontiguousarray(plane[6:42]).tobytes()


def stretched(dataset: Any, index: int) -> None:
    """Rows of half the number."""
    plane = dataset.pixel_array
    dataset.Rows = plane.shape[0] // 2
    dataset.PixelData = np.ascontiguousarray(plane[::2]).tobytes()


# ---------------------------------------------------------------------------------------------------------------------
# pixels
# ---------------------------------------------------------------------------------------------------------------------
def corner(value: int) -> Callable[[Volume], Volume]:
    """A corner of each slice at ``value`` HU."""

    def change(hu: Volume) -> Volume:
        hu = hu.astype(int).copy()
        hu[..., :6, :6] = value
        return hu

    return change


def stored(value: Callable[[Volume], Volume]) -> Callable[[Volume], Volume]:
    return lambda hu: value(hu) + 1024


def padded(
    value: int, signed: bool, limit: int | None = None, vr: str | None = None, implicit: bool = False
) -> Callable[[Path], None]:
    """A corner of padding, labelled as such."""

    def change(dataset: Any, index: int) -> None:
        hu = corner(value)(dataset.pixel_array.astype(int) - 1024)
        shift = 0 if signed else 1024
        dataset.PixelRepresentation, dataset.RescaleIntercept = int(signed), str(-shift)
        dataset.PixelData = (hu + shift).astype("<i2" if signed else "<u2").tobytes()
        kind = vr or ("SS" if signed else "US")
        for tag, padding in ((0x00280120, value), (0x00280121, limit)):
            if padding is not None:
                dataset.add_new(tag, kind, (padding + shift) % 65536 if kind == "US" else padding + shift)

    how = {"implicit_vr": True, "little_endian": True} if implicit else {}
    if not implicit:
        return edited(change)

    def change_implicit(dataset: Any, index: int) -> None:
        change(dataset, index)
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2"

    return edited(change_implicit, **how)


def rescaled_apart(dataset: Any, index: int) -> None:
    """Its own slope and intercept, as PET/CT scanners and some others write them."""
    slope, intercept = 0.5 + 0.1 * (index % 4), -1024 - index
    hu = dataset.pixel_array.astype(int) - 1024
    dataset.PixelData = np.rint((hu - intercept) / slope).astype("<u2").tobytes()
    dataset.RescaleSlope, dataset.RescaleIntercept = f"{slope:.6g}", str(intercept)


def rescaled_values(hu: Volume) -> Volume:
    slope = (0.5 + 0.1 * (np.arange(len(hu)) % 4)).reshape(-1, 1, 1)
    intercept = (-1024 - np.arange(len(hu))).reshape(-1, 1, 1)
    return np.rint((hu - intercept) / slope) * slope + intercept


def lookup_table(dataset: Any, index: int) -> None:
    from pydicom import Dataset

    table = Dataset()
    table.add_new(0x00283002, "US", [2, 0, 16])
    table.ModalityLUTType = "HU"
    table.add_new(0x00283006, "US", [0, 1])
    dataset.ModalityLUTSequence = [table]
    del dataset.RescaleSlope, dataset.RescaleIntercept


def coloured(dataset: Any, index: int) -> None:
    grey = (dataset.pixel_array // 16).astype(np.uint8)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelData = np.stack([grey] * 3, axis=-1).tobytes()
    dataset["PixelData"].VR = "OB"


def lungs_alone(hu: Volume) -> Volume:
    return np.where((hu < -400) & (hu >= -950), hu, 0)


def body_alone(hu: Volume) -> Volume:
    return np.where(hu < -950, 0, hu)


def metal(hu: Volume) -> Volume:
    hu = hu.astype(int).copy()
    hu[..., 10:18, 10:19] = 9000
    return hu


# ---------------------------------------------------------------------------------------------------------------------
# transfer syntaxes, multi-frame
# ---------------------------------------------------------------------------------------------------------------------
def compressed(syntax: str, cut: int = 0, which: Iterable[int] | None = None) -> Callable[[Path], None]:
    """Compress without loss; leave out the last ``cut`` bytes of the compressed pixels of a slice."""

    def change(dataset: Any, index: int) -> None:
        from pydicom import uid
        from pydicom.encaps import encapsulate, generate_frames

        if syntax == "JPEG2000Lossless":  # pydicom has no encoder without a further package
            from PIL import Image

            packed = BytesIO()
            Image.fromarray(dataset.pixel_array.astype(np.uint16)).save(packed, "JPEG2000", no_jp2=True)
            dataset.PixelData = encapsulate([packed.getvalue()])
            dataset["PixelData"].VR = "OB"
            dataset.file_meta.TransferSyntaxUID = uid.JPEG2000Lossless
        else:
            if syntax == "JPEGLSLossless":
                pytest.importorskip("jpeg_ls", reason="nothing encodes JPEG-LS with Python 3.14")
            dataset.compress(getattr(uid, syntax), generate_instance_uid=False)
        if cut and index == 20:
            frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
            dataset.PixelData = encapsulate([frame[:-cut]])

    return edited(change, which)


def rewritten(syntax: str, **how: Any) -> Callable[[Path], None]:
    return edited(lambda dataset, index: setattr(dataset.file_meta, "TransferSyntaxUID", syntax), **how)


def big_endian(folder: Path) -> None:
    import pydicom

    for file in files_of(folder):
        dataset = pydicom.dcmread(file)
        dataset.PixelData = dataset.pixel_array.astype(">u2").tobytes()
        dataset.decode()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRBigEndian
        pydicom.dcmwrite(file, dataset, implicit_vr=False, little_endian=False, force_encoding=True)


ENHANCED_GROUPS = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness"),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept", "RescaleType"),
}


def functional_group(**sequences: dict[str, Any]) -> Any:
    from pydicom import Dataset

    item = Dataset()
    for sequence, values in sequences.items():
        inner = Dataset()
        for name, value in values.items():
            setattr(inner, name, value)
        setattr(item, sequence, [inner])
    return item


def enhanced(
    *,
    geometry: bool = True,
    phases: int = 1,
    change: Callable[[Any], None] = lambda whole: None,
    parts: int = 1,
    of: Callable[[int, Any], dict[str, dict[str, Any]]] = lambda phase, dataset: {},
) -> Callable[[Path], Path]:
    """The series as one multi-frame file whose frames are in no order.

    Args:
        change: of the file.
        parts: files of a concatenation into which it is split.
        of: further functional groups of a frame from its phase and the slice of the series.
    """

    def plant(folder: Path) -> Path:
        import pydicom

        datasets = [pydicom.dcmread(file) for file in files_of(folder)]
        frames = [(phase, datasets[shuffled(index)]) for phase in range(phases) for index in range(40)]
        whole = pydicom.dcmread(files_of(folder)[0])

        def group(dataset: Any, sequences: Iterable[str], more: dict[str, dict[str, Any]]) -> Any:
            values = {key: {name: dataset[name].value for name in ENHANCED_GROUPS[key]} for key in sequences}
            return functional_group(**values | more)

        for name in sum(ENHANCED_GROUPS.values(), ()):
            if geometry or name.startswith("Image"):
                delattr(whole, name)
        for file in files_of(folder):
            file.unlink()
        first, *shared = ENHANCED_GROUPS
        for part in range(parts):
            mine = frames[part * len(frames) // parts : (part + 1) * len(frames) // parts]
            if geometry:
                whole.SharedFunctionalGroupsSequence = [group(datasets[0], shared, {})]
                each = [group(dataset, [first], of(phase, dataset)) for phase, dataset in mine]
                whole.PerFrameFunctionalGroupsSequence = each
                whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
            if parts > 1:
                whole.ConcatenationUID, whole.InConcatenationNumber = "1.2.826.0.1.79", part + 1
                whole.SOPInstanceUID = whole.file_meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.79.{part}"
            whole.NumberOfFrames = len(mine)
            pixels = [dataset.pixel_array + 50 * phase for phase, dataset in mine]
            whole.PixelData = np.stack(pixels).astype("<u2").tobytes()
            change(whole)
            whole.save_as(folder / f"enhanced{part}.dcm")
        return folder

    return plant


def told_apart(higher: float = 0.0, **names: Callable[[int], Any]) -> Callable[[int, Any], dict[str, dict[str, Any]]]:
    """Phases that lie ``higher`` steps from each other, and what of FrameContentSequence tells them apart."""

    def of(phase: int, dataset: Any) -> dict[str, dict[str, Any]]:
        x, y, z = dataset.ImagePositionPatient
        place = [x, y, f"{float(z) + phase * higher * clean_volume()[1][0]:.6g}"]
        content = {name: value(phase) for name, value in names.items()}
        return {"PlanePositionSequence": {"ImagePositionPatient": place}, "FrameContentSequence": content}

    return of


def pixel_spacing_of_all(whole: Any) -> None:
    """Each frame has a pixel measure too, of its thickness."""
    for item in whole.PerFrameFunctionalGroupsSequence:
        item.update(functional_group(PixelMeasuresSequence={"SliceThickness": "8.08"}))


def real_jpeg_lossless(**values: Any) -> Callable[[Path], None]:
    """The clean geometry around the pixels of a real slice that is compressed by JPEG lossless (SV1)."""

    def change(dataset: Any, index: int) -> None:
        import pydicom

        real = pydicom.dcmread(DATA / "ct_syntaxes" / "1.2.840.10008.1.2.4.70.dcm")
        for name in (
            "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData",
            "RescaleIntercept", "RescaleSlope", "PixelSpacing", "PhotometricInterpretation",
        ):  # fmt: skip
            dataset[name] = real[name]
        dataset.file_meta.TransferSyntaxUID = real.file_meta.TransferSyntaxUID
        for name, value in values.items():
            setattr(dataset, name, value)

    return every(removed(range(10, 40)), edited(change))


@functools.cache
def real_slice() -> Volume:
    """HU of that slice, from its twin that is not compressed."""
    import pydicom

    real = pydicom.dcmread(DATA / "ct_syntaxes" / "1.2.840.10008.1.2.1.dcm")
    return real.pixel_array.astype(float) - 1024


# ---------------------------------------------------------------------------------------------------------------------
# NIfTI, NRRD, MetaImage
# ---------------------------------------------------------------------------------------------------------------------
def nifti(
    change: Callable[[Volume, Volume], tuple[Volume, Volume | None]] = lambda data, affine: (data, affine),
    then: Callable[[Any], None] = lambda image: None,
    name: str = "scan.nii.gz",
) -> Callable[[Path], Path]:
    """``change`` gets data (W, H, D) and RAS affine, ``then`` the image."""

    def plant(folder: Path) -> Path:
        import nibabel

        with TemporaryDirectory() as elsewhere:
            clean = nibabel.load(write_nifti(Path(elsewhere) / "clean.nii", *clean_volume()))
            image = nibabel.Nifti1Image(*change(np.asarray(clean.dataobj).copy(), clean.affine))
        image.header["descrip"] = b"ZEPHYRINE^OCTAVIA MRN-77431-Q"
        then(image)
        nibabel.save(image, folder / name)
        return folder / name

    return plant


def qform_only(image: Any) -> None:
    image.set_qform(image.affine, 1)
    image.set_sform(None, 0)


def with_qform(turn: Sequence[float], sform_code: int, qform_code: int) -> Callable[[Any], None]:
    """A qform whose axes are those of the sform, times 1 or -1."""

    def change(image: Any) -> None:
        affine = image.affine
        image.set_sform(affine, sform_code)
        image.set_qform(affine @ np.diag([*turn, 1.0]), qform_code)

    return change


def qform_turned(image: Any) -> None:
    """By 10 degrees, as a registration leaves it."""
    image.set_qform(about_x(10)(image, image.affine)[1], 1)


def about_x(degrees: float) -> Callable[[Volume, Volume], tuple[Volume, Volume]]:
    angle = np.radians(degrees)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return lambda data, affine: (data, turn @ affine)


def as_ras(data: Volume, affine: Volume) -> tuple[Volume, Volume]:
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    flip[:2, 3] = data.shape[0] - 1, data.shape[1] - 1
    return data[::-1, ::-1], affine @ flip


def as_sagittal(data: Volume, affine: Volume) -> tuple[Volume, Volume]:
    return data.transpose(1, 2, 0), affine[:, [1, 2, 0, 3]]


def itk(
    name: str,
    change: Callable[[bytes], bytes] = lambda content: content,
    *,
    pack: bool = False,
    hu: Callable[[Volume], Volume] = lambda hu: hu,
    vector: bool = False,
    scale: float = 1.0,
) -> Callable[[Path], Path]:
    """``change`` gets the bytes of the header file."""

    def plant(folder: Path) -> Path:
        import SimpleITK as sitk

        volume, (dz, dy, dx) = clean_volume()
        image = sitk.GetImageFromArray(hu(volume), isVector=vector)
        image.SetSpacing([scale * step for step in (dx, dy, dz)])
        image.SetOrigin(volume_origin(volume.shape, (dz, dy, dx)))
        image.SetMetaData("PatientName", "ZEPHYRINE^OCTAVIA")
        sitk.WriteImage(image, str(folder / name), useCompression=pack)
        (folder / name).write_bytes(change((folder / name).read_bytes()))
        return folder / name

    return plant


def as_las(content: bytes) -> bytes:
    """The header of an NRRD in left-posterior-superior as one in left-anterior-superior, of the same place."""
    head, end, voxels = content.partition(b"\n\n")
    head = head.replace(b"left-posterior-superior", b"left-anterior-superior")
    turned = re.sub(rb"\(([^,]+),([^,]+),", lambda found: b"(%s,%g," % (found[1], -float(found[2])), head)
    return turned + end + voxels


def replaced(pattern: bytes, by: bytes) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        changed = re.sub(pattern, by, content, count=1)
        assert changed != content, pattern
        return changed

    return change


def flipped_bit(content: bytes) -> bytes:
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


def file_changed(plant: Callable[[Path], Path], change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    def planted(folder: Path) -> Path:
        file = plant(folder)
        file.write_bytes(change(file.read_bytes()))
        return file

    return planted


def without(plant: Callable[[Path], Path], name: str) -> Callable[[Path], Path]:
    def planted(folder: Path) -> Path:
        file = plant(folder)
        (folder / name).unlink()
        return file

    return planted


# ---------------------------------------------------------------------------------------------------------------------
# slice folders
# ---------------------------------------------------------------------------------------------------------------------
def grey_of(hu: Volume) -> Volume:
    return np.rint(np.clip((hu + 1350.0) / 1500, 0, 1) * 255).astype(np.uint8)


def slices(
    name: Callable[[int], str] = lambda index: f"{index}.png",
    change: Callable[[Any, int], Any] = lambda image, index: image,
    after: Callable[[Path], None] = lambda folder: None,
    **how: Any,
) -> Callable[[Path], Path]:
    """A folder of PNG slices of :data:`PNG_SIZE`; ``change`` gets the Pillow image of each."""

    def plant(folder: Path) -> Path:
        from PIL import Image

        new = folder / "slices"
        new.mkdir()
        for index, plane in enumerate(grey_of(clean_volume()[0])):
            image = change(Image.fromarray(np.pad(plane, (PNG_SIZE - len(plane)) // 2)), index)
            if image is not None:
                image.save(new / name(index), **how)
        after(new)
        return new

    return plant


def grey_volume(hu: Volume) -> Volume:
    """What a folder of PNG slices holds, as levels."""
    return np.pad(grey_of(hu), ((0, 0), (8, 8), (8, 8)))


def with_marks(image: Any, index: int) -> Any:
    colour = np.stack([np.asarray(image)] * 3, axis=-1)
    colour[2:12, 2:20] = (255, 255, 0)
    return picture(colour)


def marked(levels: Volume) -> Volume:
    levels = levels.copy()
    levels[:, 2:12, 2:20] = 226  # of yellow
    return levels


def stretched_levels(hu: Volume) -> Volume:
    return np.stack([np.asarray(picture(plane[8:56]).resize((PNG_SIZE, PNG_SIZE))) for plane in grey_volume(hu)])


def unknown(levels: Volume, index: int) -> Volume:
    """NaN, which is not compared, in a slice."""
    levels = levels.astype(float)
    levels[index] = np.nan
    return levels


def of_16_bits(colour_type: int, channels: int) -> Callable[[Path], None]:
    """The slices as PNG of 16 bits a channel, which Pillow does not write: 12-bit values of CT in each."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")

    def plant(folder: Path) -> None:
        for file, plane in zip(sorted(folder.iterdir()), clean_volume()[0], strict=True):
            values = np.repeat((plane + 1024).astype(">u2")[..., None], channels, axis=2)
            rows = b"".join(b"\0" + row.tobytes() for row in values)
            sizes = b"".join(side.to_bytes(4, "big") for side in plane.shape[::-1])
            header = chunk(b"IHDR", sizes + bytes([16, colour_type, 0, 0, 0]))
            packed = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
            file.write_bytes(b"\x89PNG\r\n\x1a\n" + header + packed)

    return plant


def as_ppm(folder: Path) -> None:
    for file in folder.iterdir():
        file.write_bytes(b"P6 48 48 65535\n" + bytes(2 * 3 * 48 * 48 - 6) + b"\0\7" * 3)


def inverted_soft_tissue(grey: Volume) -> Volume:
    """The levels of a window from -160 to 240 HU, inverted, of those of -1350 to 150 HU."""
    hu = grey / 255 * 1500 - 1350
    return 255 - np.rint((hu + 160).clip(0, 400) / 400 * 255).astype(np.uint8)


def bare(image: Any, index: int) -> Any:
    """The air around the patient, which is below level 90 here, transparent with white beneath."""
    grey = np.asarray(image)
    return picture(np.stack([np.where(grey < 90, 255, grey)] * 3 + [np.where(grey < 90, 0, 255)], -1).astype(np.uint8))


def bare_levels(hu: Volume) -> Volume:
    grey = grey_volume(hu)
    return np.where(grey < 90, 0, grey)


def as_grey_alpha(image: Any, index: int) -> Any:
    return bare(image, index).convert("LA")


def as_palette(image: Any, index: int) -> Any:
    """Levels of a palette whose entry 0 is white and transparent."""
    levels = picture(np.where((grey := np.asarray(image)) < 90, 0, grey).astype(np.uint8)).convert("P")
    levels.putpalette([255] * 3 + [level for grey in range(1, 256) for level in (grey,) * 3])
    levels.info["transparency"] = 0
    return levels


def with_previews(*names: str) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        for name in names:
            shutil.copy(folder / "0.png", folder / name)

    return plant


def lying(image: Any, index: int) -> Any:
    from PIL import Image

    return image.transpose(Image.Transpose.ROTATE_90)


def turn_back() -> bytes:
    """EXIF: to be shown turned by 90 degrees."""
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


def picture(levels: Volume) -> Any:
    from PIL import Image

    return Image.fromarray(levels)


def deleted(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def written(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def changed_png(folder: Path) -> None:
    content = (folder / "20.png").read_bytes()
    place = int(0.9 * len(content))
    (folder / "20.png").write_bytes(content[:place] + b"\0" + content[place + 1 :])


def truncated_jpeg(folder: Path) -> None:
    from PIL import Image

    with Image.open(folder / "20.png") as image:
        image.save(folder / "20.jpg")
    (folder / "20.png").unlink()
    content = (folder / "20.jpg").read_bytes()
    (folder / "20.jpg").write_bytes(content[: len(content) // 2])


# ---------------------------------------------------------------------------------------------------------------------
# the table
# ---------------------------------------------------------------------------------------------------------------------
UNCHANGED, WARNED, REFUSED, SKIPPED = "unchanged", "warned", "refused", "skipped"


def unchanged(what: str, plant: Callable[[Path], Any], volume: Any = None, note: str = "") -> Defect:
    return Defect(what, plant, UNCHANGED, (), volume, note)


def warned(what: str, plant: Callable[[Path], Any], *codes: str, volume: Any = None, note: str = "") -> Defect:
    return Defect(what, plant, WARNED, codes, volume, note)


def refused(what: str, plant: Callable[[Path], Any], reason: str) -> Defect:
    return Defect(what, plant, REFUSED, (reason,))


def skipped(what: str, plant: Callable[[Path], Any], reason: str) -> Defect:
    return Defect(what, plant, SKIPPED, (reason,))


SIGNED = {"PixelRepresentation": 1, "RescaleIntercept": "0"}
NOT_DETECTED = "not detected"
LACKS = "without these slices"
STEP = 8.08  # mm, of the clean chest

DEFECTS: dict[str, list[Defect]] = {
    "What lies beside the series": [
        warned("thick slices of it", THICK, "several_series", note="the series of more slices"),
        warned("another kernel, as many slices", KERNEL, "several_series", note="the lower number"),
        warned("a series of more slices that is shorter than a chest", SHORT_SERIES, "several_series",
               note="the longer one"),
        warned("a series of more slices of another body part", ABDOMEN, "several_series", note="the chest"),
        warned("an axial reformat of more slices", REFORMAT, "several_series", note="the original"),
        unchanged("an axial reformat alone", alone(REFORMAT), lambda hu: np.repeat(hu, 2, axis=0), "the reformat"),
        unchanged("a coronal reformat", CORONAL),
        refused("a coronal reformat alone", alone(CORONAL), "coronal slices (90 degrees from axial)"),
        unchanged("a sagittal reformat", SAGITTAL),
        refused("a sagittal reformat alone", alone(SAGITTAL), "sagittal slices (90 degrees from axial)"),
        unchanged("a maximum intensity projection", MIP),
        skipped("a maximum intensity projection alone", alone(MIP), "projection or rendering"),
        unchanged("a volume rendering", RENDERING),
        unchanged("localizers", localizers),
        skipped("localizers alone", alone(localizers), "localizer"),
        warned("localizers in the series itself", localizers_inside, "other_images"),
        unchanged("a dose report", DOSE_REPORT),
        skipped("a dose report alone", alone(DOSE_REPORT), "modality SR, not CT"),
        unchanged("a presentation state", PRESENTATION_STATE),
        unchanged("structures", STRUCTURES),
        unchanged("secondary captures", SECONDARY_CAPTURE),
        skipped("secondary captures alone", alone(SECONDARY_CAPTURE), "secondary capture"),
        unchanged("the PET of a PET/CT", PET),
        skipped("a PET alone", alone(PET), "modality PT, not CT"),
        skipped("an MR alone", with_values(Modality="MR"), "modality MR, not CT"),
        warned("a CT of another study of the patient", OTHER_STUDY, "several_series", "several_studies",
               note="the lower number"),
        refused("a CT of another patient", OTHER_PATIENT, "holds CTs of 2 patients"),
        refused("slices of another patient between, the same UIDs", doubled(higher, range(40), PatientID="another"),
                "holds CTs of 2 patients"),
        unchanged("DICOMDIR", dicomdir),
        *mended("a DICOMDIR of another name", "an unreadable file, or a scan that is refused", "left out",
                unchanged("a DICOMDIR without a suffix of another name", media_directory("DIRFILE")),
                unchanged("a DICOMDIR named .dcm", media_directory("index.dcm"))),
        unchanged("text, PDF, system files", texts),
        unchanged("hidden `._` files", resource_forks),
        warned("a preview picture", pictures(1), "pictures"),
        refused("ten pictures", pictures(10), "many pictures beside DICOM files"),
        warned("a file of no DICOM that is named .dcm", lambda folder: (folder / "x.dcm").write_bytes(b"x") and None,
               "unreadable_files"),
    ],
    "Files of the series": [
        unchanged("no suffix, UIDs as names", renamed(lambda index: f"1.2.840.77.{index}")),
        unchanged("suffix in capitals", renamed(lambda index: f"{index}.DCM")),
        unchanged("names in reverse order", renamed(lambda index: f"{40 - index:03d}.dcm")),
        unchanged("names in no order", renamed(lambda index: f"{shuffled(index)}.dcm")),
        unchanged("no preamble, no suffix", without_preamble),
        refused("all named .txt", renamed(lambda index: f"{index}.txt"), "holds no scan"),
        warned("one named .txt", renamed(lambda index: f"{index}.txt", [20]), "missing_slices", volume=left_out(20),
               note=LACKS),
        refused("all named .jpg", renamed(lambda index: f"{index}.jpg"), "cannot be decoded"),
        unchanged("InstanceNumber in reverse", edited(lambda ds, i: setattr(ds, "InstanceNumber", 40 - i))),
        unchanged("InstanceNumber in no order", edited(lambda ds, i: setattr(ds, "InstanceNumber", shuffled(i)))),
        unchanged("InstanceNumber missing", with_values(InstanceNumber=None)),
        unchanged("InstanceNumber 1 in all", with_values(InstanceNumber=1)),
        unchanged("no SOPInstanceUID", with_values(SOPInstanceUID=None)),
        unchanged("one SOPInstanceUID in all", with_values(SOPInstanceUID="1.2.826.0.1.4")),
        unchanged("no SeriesInstanceUID", with_values(SeriesInstanceUID=None)),
        warned("a zero-byte file", content(lambda data: b"", [20]), "missing_slices", "unreadable_files",
               volume=left_out(20), note=LACKS),
        warned("a file cut within its header", content(lambda data: data[:700], [20]), "missing_slices",
               "unreadable_files", volume=left_out(20), note=LACKS),
        warned("the last file cut within its header", content(lambda data: data[:700], [39]), "unreadable_files",
               volume=left_out(39), note=LACKS),
        refused("a file cut within its pixels", content(lambda data: data[:-1000], [20]), "pixels cannot be decoded"),
        refused("garbage in all files", content(garbage), "holds no readable DICOM image"),
    ],
    "Which slices there are": [
        warned("one missing", removed([20]), "missing_slices", volume=left_out(20), note=LACKS),
        warned("two missing, apart", removed([10, 30]), "missing_slices", volume=left_out(10, 30), note=LACKS),
        refused("three missing of 40", removed([10, 20, 30]), "3 of 40 slices are missing"),
        refused("a gap of three slices", removed([19, 20, 21]), "the largest gap is 32.3 mm"),
        unchanged("the last two missing", removed([38, 39]), left_out(38, 39), NOT_DETECTED),
        warned("one copied within the folder", copied, "copied_files"),
        warned("one twice, another SOPInstanceUID", doubled(), "duplicate_slices"),
        refused("two different ones at one position", doubled(brighter), "1 positions hold several slices that differ"),
        warned("two phases at the same positions", doubled(brighter, range(40), AcquisitionNumber=2), "acquisitions",
               note="the first"),
        warned("two phases at positions between each other", doubled(higher, range(40), AcquisitionNumber=2),
               "acquisitions", note="the first"),
        warned("the same without AcquisitionNumber",
               every(doubled(higher, range(40)), edited(lambda ds, i: setattr(ds, "InstanceNumber", i % 40 + 1)),
                     with_values(AcquisitionNumber=None)),
               "interleaved", volume=lambda hu: np.stack([hu, hu + 50], 1).reshape(80, 48, 48), note="both phases"),
        *mended("two phases told apart by their times alone", "mixed, or refused", "one phase, or refused",
                *(warned(f"two phases {where}, {name} tells them apart",
                         every(doubled(change, range(40)), timed(name, 45)), "acquisitions", note="the first")
                  for name in ("AcquisitionTime", "AcquisitionDateTime", "ContentTime", "TriggerTime")
                  for where, change in (("between each other", higher), ("at the same positions", brighter))),
                refused("two phases at the same positions, taken by turns",
                        every(doubled(brighter, range(40)), timed("AcquisitionTime", 0.2)),
                        "40 positions hold several slices that differ")),
        unchanged("AcquisitionTime of every slice its own", timed("AcquisitionTime", 0)),
        *mended("a slice of another AcquisitionNumber where the others have a gap",
                "dropped as of another phase, and called missing", "taken, and told of",
                warned("one of another AcquisitionNumber", with_values([20], AcquisitionNumber=2), "acquisitions"),
                warned("one without AcquisitionNumber", with_values([20], AcquisitionNumber=None), "acquisitions")),
        unchanged("one of another SeriesInstanceUID, the last", with_values([39], SeriesInstanceUID="1.2.826.0.1.5"),
                  left_out(39), "not detected; the record's `series` names it"),
        refused("8 slices", removed(range(8, 40)), "8 slices, at least 10 are needed"),
        refused("a single slice", removed(range(1, 40)), "1 slice, at least 10 are needed"),
        warned("24 slices", removed(range(24, 40)), "few_slices", volume=lambda hu: hu[:24], note="of 24 slices"),
        warned("18 slices, 145 mm", removed(range(18, 40)), "few_slices", "short", volume=lambda hu: hu[:18],
               note="of 18 slices"),
        warned("every second slice, 16 mm apart", removed(range(1, 40, 2)), "few_slices", "thick_steps",
               volume=lambda hu: hu[::2], note="of 20 slices"),
    ],
    "Where the slices lie": [
        warned("a slice off its place by a fifth of the step", moved(lambda index: (0, 0, 0.2 * STEP), [20]),
               "uneven_spacing"),
        warned("steps of 8 and 10 mm", moved(lambda index: (0, 0, max(0, index - 20) * 2.0)), "uneven_spacing"),
        refused("steps of 8 and 16 mm", moved(lambda index: (0, 0, max(0, index - 20) * STEP)),
                "steps between slices change from 8.08 to 16.16 mm"),
        warned("gantry tilt of 12 degrees by its element", with_values(GantryDetectorTilt="12"), "gantry_tilt"),
        warned("gantry tilt of 12 degrees by the positions", sheared(12), "gantry_tilt"),
        refused("gantry tilt of 35 degrees", sheared(35), "gantry tilt of 35.0 degrees"),
        warned("table drift of 2 mm", moved(lambda index: (2 * np.sin(np.pi * index / 39), 0, 0)), "shifted_slices"),
        refused("table drift of 60 mm", moved(lambda index: (60 * np.sin(np.pi * index / 39), 0, 0)),
                "slices are shifted against each other by up to"),
        unchanged("prone, the planes turned", edited(prone)),
        unchanged("rows from behind to front", edited(from_behind)),
        unchanged("feet first", with_values(PatientPosition="FFS")),
        unchanged("decubitus, the planes turned by 90 degrees", edited(decubitus)),
        warned("planes 10 degrees from axial", edited(oblique(10)), "oblique"),
        refused("planes 40 degrees from axial", edited(oblique(40)), "oblique slices (40 degrees from axial)"),
        warned("another orientation in two slices of 40",
               with_values([38, 39], ImageOrientationPatient=[0, 1, 0, 1, 0, 0]),
               "mixed_stack", volume=left_out(38, 39), note=LACKS),
        refused("another orientation in half of the slices",
                with_values(range(20), ImageOrientationPatient=[0, 1, 0, 1, 0, 0]), "slices differ in orientation"),
        warned("another matrix in one slice", edited(stretched, [39]), "mixed_stack", volume=left_out(39), note=LACKS),
        refused("another matrix in half of the slices", edited(stretched, range(20)), "differ in orientation, matrix"),
        refused("another pixel spacing in half of the slices", with_values(range(20), PixelSpacing=[6, 6]),
                "differ in orientation, matrix or pixel spacing"),
        refused("no ImagePositionPatient", with_values(ImagePositionPatient=None),
                "slices without ImagePositionPatient"),
        refused("no ImageOrientationPatient", with_values(ImageOrientationPatient=None), "or ImageOrientationPatient"),
        refused("ImageOrientationPatient of zeros", with_values(ImageOrientationPatient=[0] * 6),
                "no two unit vectors"),
        refused("ImageOrientationPatient at no right angle",
                with_values(ImageOrientationPatient=[1, 0, 0, 0.6, 0.8, 0]),
                "no two unit vectors at a right angle"),
        refused("no PixelSpacing", with_values(PixelSpacing=None), "slices without PixelSpacing"),
        refused("PixelSpacing in metres", with_values(PixelSpacing=[0.0084, 0.0084]), "are these millimetres?"),
        refused("PixelSpacing in micrometres", with_values(PixelSpacing=[8410, 8410]), "are these millimetres?"),
        warned("PixelSpacing in centimetres", with_values(PixelSpacing=[0.84, 0.84]), "field_of_view"),
        *mended("HU volumes whose slices are no squares", "squashed to squares without a word", "told of",
                warned("pixels twice as high as wide", with_values(PixelSpacing=[16.82, 8.41]), "not_square"),
                warned("36 rows of 48 columns", edited(cropped), "not_square", volume=lambda hu: hu[:, 6:42],
                       note="of these rows")),
        warned("positions in centimetres",
               edited(lambda ds, i: setattr(ds, "ImagePositionPatient", [0, 0, f"{i * STEP / 10:.4f}"])), "short"),
        unchanged("the other way up, with an orientation that says nothing of it",
                  edited(lambda ds, i: setattr(ds, "ImagePositionPatient", [0, 0, f"{-i * STEP:.4f}"])),
                  lambda hu: hu[::-1], NOT_DETECTED),
    ],
    "Pixels": [
        refused("no rescale", with_values(RescaleSlope=None, RescaleIntercept=None),
                "40 of 40 slices have no RescaleSlope and RescaleIntercept: no HU"),
        refused("no rescale in one slice", with_values([20], RescaleSlope=None), "1 of 40 slices have no RescaleSlope"),
        refused("a modality lookup table in its place", edited(lookup_table), "a lookup table is not read"),
        warned("slope and intercept of every slice its own", edited(rescaled_apart), "rescale_differs",
               volume=rescaled_values, note="equal but for rounding"),
        refused("intercept 0 instead of -1024", with_values(RescaleIntercept="0"), "is it a CT in HU?"),
        refused("intercept -2048 instead of -1024", with_values(RescaleIntercept="-2048"), "is it a CT in HU?"),
        unchanged("intercept -1000 instead of -1024", with_values(RescaleIntercept="-1000"), lambda hu: hu + 24,
                  NOT_DETECTED),
        refused("slope 2 instead of 1", with_values(RescaleSlope="2"), "is it a CT in HU?"),
        refused("RescaleType HU_MOD", with_values(RescaleType="HU_MOD"), "RescaleType is not HU"),
        unchanged("RescaleType Houndsfield Unit", with_values(RescaleType="Houndsfield Unit")),
        unchanged("signed pixels", with_stored(lambda hu: hu, "<i2", **SIGNED)),
        unchanged("12 bits in 16", with_values(BitsStored=12, HighBit=11)),
        unchanged("12 bits in 16, an overlay in the others",
                  with_stored(lambda hu: hu + 1024 | 0x8000, BitsStored=12, HighBit=11)),
        unchanged("12 bits in 16, signed, the sign not extended",
                  with_stored(lambda hu: hu & 0xFFF, BitsStored=12, HighBit=11, **SIGNED)),
        *mended("values larger than BitsStored says", "cut to other values", "refused",
                refused("values of 11 bits, 10 BitsStored", with_values(BitsStored=10, HighBit=9),
                        "pixels have values beyond their 10 BitsStored"),
                refused("the same, RLE", every(compressed("RLELossless"), with_values(BitsStored=10, HighBit=9)),
                        "pixels have values beyond their 10 BitsStored"),
                refused("the same, JPEG-LS", every(compressed("JPEGLSLossless"), with_values(BitsStored=10, HighBit=9)),
                        "pixels have values beyond their 10 BitsStored"),
                refused("the same, in one slice", with_values([20], BitsStored=10, HighBit=9),
                        "pixels have values beyond their 10 BitsStored"),
                refused("padding of -3024, 12 BitsStored",
                        with_stored(corner(-3024), "<i2", BitsStored=12, HighBit=11, **SIGNED),
                        "pixels have values beyond their 12 BitsStored")),
        refused("12 bits in the upper part of 16", with_stored(lambda hu: hu + 1024 << 4, BitsStored=12, HighBit=15),
                "a HighBit of 15 with 12 BitsStored"),
        refused("8 bits instead of 16 in one slice", with_values([20], BitsAllocated=8, BitsStored=8, HighBit=7),
                "has 4608 bytes of pixels, the header describes 2304"),
        refused("one row fewer than there are", with_values(Rows=47), "the header describes 4512"),
        refused("one row more than there are", with_values(Rows=49), "pixels cannot be decoded"),
        unchanged("padding of -2000 HU, unlabelled", with_stored(corner(-2000), "<i2", **SIGNED), corner(-2000)),
        unchanged("padding, signed", padded(-2000, True), corner(-2000)),
        unchanged("padding, signed, written as unsigned", padded(-2000, True, vr="US"), corner(-2000)),
        unchanged("padding, signed, implicit value representation", padded(-2000, True, implicit=True), corner(-2000)),
        unchanged("padding, unsigned", padded(5000, False), corner(-2000), "0, as air"),
        unchanged("padding by a range of values", padded(-2500, True, limit=-1900), corner(-2500)),
        unchanged("padding of -1024 HU", padded(-1024, False), corner(-1024)),
        warned("padding of 40 HU", padded(40, True), "padding", volume=corner(40), note="taken for tissue"),
        unchanged("MONOCHROME1", with_values(PhotometricInterpretation="MONOCHROME1")),
        skipped("colour", edited(coloured), "colour image"),
        refused("one value in all pixels", with_stored(lambda hu: hu * 0 + 1000), "all voxels are the same"),
        warned("a slice of one value", with_stored(lambda hu: hu * 0, which=[20]), "blank_slices",
               volume=lambda hu: np.where(np.arange(40).reshape(-1, 1, 1) == 20, -1024, hu), note="with that slice"),
        warned("values beyond 4000 HU in 3 % of the voxels", with_stored(stored(metal)), "hu_range", volume=metal),
        warned("a slab of water, no lungs",
               with_stored(lambda hu: np.where(hu < -400, np.where(hu < -950, hu, 0), hu) + 1024), "no_chest",
               volume=lambda hu: np.where((hu < -400) & (hu >= -950), 0, hu), note="as it is"),
        *mended("HU volumes that are inverted", "answered without a word", "told of",
                warned("negated, air of 24 HU around a body of -1000",
                       with_stored(lambda hu: -1000 - hu, "<i2", **SIGNED), "inverted",
                       volume=lambda hu: -1000 - hu, note="as it is")),
        *mended("volumes of which all but a part was set to one value", "answered without a word", "told of",
                warned("all but the lungs of 0 HU", with_stored(stored(lungs_alone)), "masked", volume=lungs_alone,
                       note="as it is"),
                warned("all but the body of 0 HU", with_stored(stored(body_alone)), "masked", volume=body_alone,
                       note="as it is")),
        warned("compressed with loss before", with_values(LossyImageCompression="01"), "lossy"),
    ],
    "Transfer syntaxes and multi-frame": [
        unchanged("implicit little endian", rewritten("1.2.840.10008.1.2", implicit_vr=True, little_endian=True)),
        unchanged("explicit big endian", big_endian),
        unchanged("deflated", rewritten("1.2.840.10008.1.2.1.99")),
        unchanged("RLE", compressed("RLELossless")),
        unchanged("JPEG-LS", compressed("JPEGLSLossless")),
        unchanged("JPEG 2000, reversible", compressed("JPEG2000Lossless")),
        refused("RLE, a slice cut short", compressed("RLELossless", 200), "pixels cannot be decoded"),
        refused("JPEG-LS, a slice cut short", compressed("JPEGLSLossless", 200), "its compressed pixels end early"),
        refused("JPEG 2000, a slice cut short", compressed("JPEG2000Lossless", 200), "its compressed pixels end early"),
        unchanged("Enhanced CT, frames in no order", enhanced()),
        refused("Enhanced CT, two phases in it", enhanced(phases=2), "40 positions hold several slices that differ"),
        *mended("Enhanced CT of two phases", "both phases in one volume, or refused", "one phase, as of single frames",
                *(warned(f"Enhanced CT, two phases {where}, {name} tells them apart",
                         enhanced(phases=2, of=told_apart(higher, **{name: value})), "acquisitions", note="the first")
                  for name, value in (("FrameAcquisitionNumber", int), ("TemporalPositionIndex", int), ("StackID", str),
                                      ("FrameAcquisitionDateTime", "2024022910300{}".format))
                  for where, higher in {"between each other": 0.5, "at the same positions": 0.0}.items())),
        *mended("Enhanced CT in two files, each of a phase", "both phases in one volume", "one phase, or told of",
                warned("Enhanced CT, a file of each phase, FrameAcquisitionNumber tells them apart",
                       enhanced(phases=2, parts=2, of=told_apart(0.5, FrameAcquisitionNumber=int)), "acquisitions",
                       note="the first")),
        unchanged("Enhanced CT, a concatenation of two files", enhanced(parts=2)),
        *mended("Enhanced CT of which a file is missing", "answered without it", "refused",
                refused("Enhanced CT, the last of two files is missing, the first says two",
                        without(enhanced(parts=2, change=lambda ds: setattr(ds, "InConcatenationTotalNumber", 2)),
                                "enhanced1.dcm"), "1 of the 2 files of its concatenation are missing"),
                refused("Enhanced CT, the first of two files is missing", without(enhanced(parts=2), "enhanced0.dcm"),
                        "1 of the 2 files of its concatenation are missing")),
        *mended("Enhanced CT whose headers are odd", "refused for a wrong reason", "answered, or the reason is named",
                unchanged("Enhanced CT, PixelSpacing of all, SliceThickness of each frame",
                          enhanced(change=pixel_spacing_of_all)),
                refused("Enhanced CT, more frames said than described",
                        enhanced(change=lambda ds: setattr(ds, "NumberOfFrames", 41)),
                        "has 41 frames but describes 40")),
        refused("multi-frame without geometry", enhanced(geometry=False), "slices without ImagePositionPatient"),
    ],
    "NIfTI, NRRD, MetaImage": [
        unchanged("NIfTI, not compressed", nifti(name="scan.nii")),
        unchanged("NIfTI, compressed", nifti()),
        unchanged("NIfTI in RAS order", nifti(as_ras)),
        unchanged("NIfTI stored by sagittal planes", nifti(as_sagittal)),
        warned("NIfTI 10 degrees from the patient's axes", nifti(about_x(10)), "oblique"),
        refused("NIfTI 40 degrees from them", nifti(about_x(40)), "no axis of its voxels is near the patient's"),
        warned("NIfTI, sheared by 12 degrees",
               nifti(lambda data, affine: (data, affine + np.outer([0, 0.2126 * STEP, 0, 0], [0, 0, 1, 0]))),
               "gantry_tilt"),
        unchanged("NIfTI of four dimensions, one volume", nifti(lambda data, affine: (data[..., None], affine))),
        refused("NIfTI of two volumes", nifti(lambda data, affine: (np.stack([data] * 2, -1), affine)),
                "must be one 3-D volume, got shape (48, 48, 40, 2)"),
        refused("NIfTI without sform and qform", nifti(lambda data, affine: (data, None)), "neither sform nor qform"),
        unchanged("NIfTI, qform only", nifti(then=qform_only)),
        *mended("NIfTI whose sform and qform disagree about a side", "the sform was taken", "refused",
                *(refused(f"NIfTI, sform (code {sform}) and qform (code {qform}) of opposite {what}",
                          nifti(then=with_qform(turn, sform, qform)), "which side is which?")
                  for what, turn, codes in (("sides", (-1, 1, 1), ((1, 1), (2, 1), (1, 2), (4, 1))),
                                            ("ends", (1, 1, -1), ((1, 1), (2, 1))))
                  for sform, qform in codes)),
        unchanged("NIfTI, sform and qform of one orientation", nifti(then=with_qform((1, 1, 1), 1, 1))),
        unchanged("NIfTI, a qform turned by 10 degrees", nifti(then=qform_turned)),
        unchanged("NIfTI, scl_slope",
                  nifti(lambda data, affine: ((data + 1024).astype(np.int16), affine),
                        lambda image: image.header.set_slope_inter(1, -1024))),
        refused("NIfTI of 8 bits", nifti(lambda data, affine: (grey_of(data), affine)), "is it a CT in HU?"),
        refused("NIfTI, a voxel that is not a number",
                nifti(lambda data, affine: (np.where(np.indices(data.shape).sum(axis=0) == 9, np.nan, data), affine)),
                "not finite numbers"),
        refused("NIfTI in metres", nifti(lambda data, affine: (data, affine / 1000)), "are these millimetres?"),
        warned("NIfTI in centimetres", nifti(lambda data, affine: (data, affine @ np.diag([0.1, 0.1, 0.1, 1]))),
               "field_of_view", "short"),
        refused("NIfTI, compressed, cut short", file_changed(nifti(), lambda data: data[:-500]),
                "cannot be read as nifti"),
        refused("NIfTI, compressed, a bit flipped", file_changed(nifti(), flipped_bit), "cannot be read as nifti"),
        refused("NIfTI, cut short", file_changed(nifti(name="scan.nii"), lambda data: data[:-500]),
                "its header describes 184672"),
        refused("NIfTI, bytes left over", file_changed(nifti(name="scan.nii"), lambda data: data + bytes(500)),
                "its header describes 184672"),
        unchanged("NRRD", itk("scan.nrrd")),
        unchanged("NRRD, compressed", itk("scan.nrrd", pack=True)),
        unchanged("NRRD, header and voxels apart", itk("scan.nhdr")),
        refused("NRRD, its voxels not there", without(itk("scan.nhdr"), "scan.raw"), "cannot be read as itk"),
        refused("NRRD without space", itk("scan.nrrd", replaced(rb"space: .*", rb"space dimension: 3")),
                "nothing says how it is oriented"),
        *mended("a volume of which nothing says how it is oriented", "taken for LPS of 1 mm", "refused",
                refused("NRRD without space directions", itk("scan.nrrd", replaced(rb"space directions: .*\n", b"")),
                        "it has no space directions"),
                refused("MHA without TransformMatrix, AnatomicalOrientation alone",
                        itk("scan.mha", replaced(rb"TransformMatrix = .*\n", b"")), "it has no TransformMatrix"),
                refused("MHA without ElementSpacing", itk("scan.mha", replaced(rb"ElementSpacing = .*\n", b"")),
                        "it has no ElementSpacing")),
        *mended("a MetaImage whose AnatomicalOrientation is another than its TransformMatrix", "fine", "told of",
                warned("MHA, AnatomicalOrientation LAI", itk("scan.mha", replaced(rb"(AnatomicalO.* = ).*", rb"\1LAI")),
                       "other_orientation")),
        unchanged("MHA, AnatomicalOrientation by where axes go", itk("scan.mha", replaced(rb"= RAI", rb"= LPS"))),
        unchanged("MHA, AnatomicalOrientation unknown", itk("scan.mha", replaced(rb"= RAI", rb"= ???"))),
        *mended("NRRD in left-anterior-superior", "turned by 180 degrees with SimpleITK before 2.5.6",
                "right, as SimpleITK 2.5.6 is the oldest that is taken",
                unchanged("NRRD in left-anterior-superior", itk("scan.nrrd", as_las))),
        refused("NRRD in metres", itk("scan.nrrd", scale=0.001), "are these millimetres?"),
        refused("NRRD of colours", itk("scan.nrrd", hu=lambda hu: np.stack([grey_of(hu)] * 3, -1), vector=True),
                "must be one 3-D volume of scalars"),
        refused("NRRD, compressed, a bit flipped", itk("scan.nrrd", flipped_bit, pack=True), "cannot be"),
        refused("NRRD, a header line of nonsense", itk("scan.nrrd", replaced(rb"kinds:", rb"ZEPHYRINE^OCTAVIA:")),
                "cannot be read as itk"),
        unchanged("MHA", itk("scan.mha")),
        unchanged("MHA, compressed", itk("scan.mha", pack=True)),
        unchanged("MHD and raw", itk("scan.mhd")),
        refused("MHD, its voxels not there", without(itk("scan.mhd"), "scan.raw"), "cannot be read as itk"),
        refused("MHA, compressed, a bit flipped", itk("scan.mha", flipped_bit, pack=True), "its voxels are damaged"),
        refused("MHA, compressed, fewer bytes said",
                itk("scan.mha", replaced(rb"DataSize = 1", rb"DataSize = "), pack=True),
                "its CompressedDataSize is not the size"),
        refused("MHA, compressed, no bytes said",
                itk("scan.mha", replaced(rb"CompressedDataSize", rb"Other"), pack=True),
                "its CompressedDataSize is not the size"),
        refused("MHA, more dimensions than sizes", itk("scan.mha", replaced(rb"NDims = 3", rb"NDims = 8")),
                "NDims is not the number of sizes"),
        refused("MHA, fewer rows said", itk("scan.mha", replaced(rb"DimSize = 48 48", rb"DimSize = 48 40")),
                "holds 184320 bytes of voxels, its header describes 153600"),
        refused("MHA, the other byte order said", itk("scan.mha", replaced(rb"MSB = False", rb"MSB = True")),
                "is it a CT in HU?"),
        refused("NIfTI of garbage", file_changed(nifti(name="scan.nii"), garbage), "cannot be read as nifti"),
    ],
    "Folders of JPEG or PNG slices": [
        unchanged("names IM-0001.png", slices(lambda index: f"IM-{index:04d}.png")),
        unchanged("names slice_3.png", slices(lambda index: f"slice_{index}.png")),
        unchanged("names 12.PNG", slices(lambda index: f"{index}.PNG")),
        *mended("names of signed, decimal or hexadecimal numbers", "the slices in a wrong order",
                "in the order of the numbers",
                unchanged("names -12.5.png, millimetres", slices(lambda index: f"{2.5 * index - 50:g}.png")),
                unchanged("names slice_-12,50mm.png",
                          slices(lambda index: f"slice_{2.5 * index - 50:.2f}mm.png".replace(".", ",", 1))),
                unchanged("names -5.png, before and behind 0", slices(lambda index: f"{5 * index - 100}.png")),
                unchanged("names 0.25.png, quarters", slices(lambda index: f"{index / 4:g}.png")),
                unchanged("names 1f.png", slices(lambda index: f"{index:x}.png")),
                unchanged("names IM001F.png", slices(lambda index: f"IM{index:04X}.png")),
                warned("numbers left out of hexadecimal ones",
                       slices(lambda index: f"slice{index:02x}.png", after=deleted("slice14.png")), "missing_slices",
                       volume=lambda hu: np.delete(grey_volume(hu), 20, axis=0), note=LACKS)),
        *mended("a picture without a number among numbered slices", "a slice, and gaps were not looked for",
                "left out and told of",
                warned("a preview among them", slices(after=with_previews("preview.png")), "pictures"),
                warned("a preview among them, one missing",
                       slices(after=every(with_previews("preview.png"), deleted("20.png"))),
                       "missing_slices", "pictures",
                       volume=lambda hu: np.delete(grey_volume(hu), 20, axis=0), note=LACKS),
                warned("ten without a number among them",
                       slices(after=with_previews(*(f"view {letter}.png" for letter in "abcdefghij"))), "unnumbered",
                       volume=lambda hu: grey_volume(hu)[[*range(40), *[0] * 10]], note="with them, as slices")),
        warned("numbers left out", slices(after=deleted("20.png")), "missing_slices",
               volume=lambda hu: np.delete(grey_volume(hu), 20, axis=0), note=LACKS),
        warned("numbers twice", slices(lambda index: f"{'ab'[index // 20]}_{index % 20}.png"), "doubled_numbers"),
        unchanged("no numbers, the order of the names is not that of the slices",
                  slices(lambda index: f"{shuffled(index)}.png"),
                  lambda hu: grey_volume(hu)[np.argsort([shuffled(index) for index in range(40)])], NOT_DETECTED),
        warned("one of another size",
               slices(change=lambda image, index: image.resize((128, 128), 0) if index == 20 else image),
               "mixed_sizes", volume=lambda hu: unknown(grey_volume(hu), 20), note="that slice resized"),
        warned("not square", slices(change=lambda image, index: image.crop((0, 8, 64, 56))), "not_square",
               volume=stretched_levels,
               note="stretched"),
        warned("lying on their side, EXIF says so", slices(change=lying, exif=turn_back()), "exif"),
        warned("marks in colour", slices(change=with_marks), "colour", volume=lambda hu: marked(grey_volume(hu)),
               note="with the marks"),
        refused("a JPEG cut short", slices(after=truncated_jpeg), "20.jpg: cannot be decoded"),
        refused("a PNG, a byte changed", slices(after=changed_png), "20.png: cannot be decoded"),
        refused("an empty file", slices(after=written("20.png", b"")), "20.png: cannot be decoded"),
        refused("a text named .jpg", slices(after=written("20.jpg", b"no picture")), "20.jpg: cannot be decoded"),
        refused("16 bits", slices(change=lambda image, index: picture(np.asarray(image).astype(np.uint16) * 200)),
                "slices must be 8-bit images, got mode I;16"),
        *mended("pictures of 16 bits in colour or with transparency", "the low byte was lost", "refused",
                refused("16 bits, colour", slices(after=of_16_bits(2, 3)), "must be 8-bit images, got mode RGB;16B"),
                refused("16 bits, grey with transparency", slices(after=of_16_bits(4, 2)), "got mode LA;16B"),
                refused("16 bits, colour with transparency", slices(after=of_16_bits(6, 4)), "got mode RGBA;16B"),
                refused("16 bits, colour, PPM that is named .png", slices(after=as_ppm), "its content is PPM")),
        *mended("inverted pictures", "answered without a word", "told of",
                warned("inverted, air white", slices(change=lambda image, index: picture(255 - np.asarray(image))),
                       "inverted", volume=lambda hu: 255 - grey_volume(hu), note="as it is"),
                warned("inverted, of a window of soft tissue",
                       slices(change=lambda image, index: picture(inverted_soft_tissue(np.asarray(image)))), "inverted",
                       volume=lambda hu: inverted_soft_tissue(grey_volume(hu)), note="as it is")),
        *mended("masks", "answered without a word", "told of",
                *(warned(f"masks of {bits}", slices(change=lambda image, index, mode=mode: picture(
                    (np.asarray(image) > 150).astype(np.uint8) * 255).convert(mode)), "two_levels",
                    volume=lambda hu: (grey_volume(hu) > 150) * 255, note="as it is")
                  for bits, mode in {"8 bits": "L", "1 bit": "1"}.items())),
        *mended("transparent pixels", "had the colour beneath them, such as white air", "black, and told of",
                *(warned(f"{what}, transparent air with white beneath", slices(change=change), "transparent",
                         volume=bare_levels, note="on black")
                  for what, change in {"RGBA": bare, "LA": as_grey_alpha, "palette": as_palette}.items())),
        unchanged("RGBA, nothing transparent", slices(change=lambda image, index: image.convert("RGBA"))),
        refused("all black", slices(change=lambda image, index: image.point(lambda level: 0)), "all but one grey"),
        warned("one black", slices(change=lambda image, index: image.point(lambda level: 0) if index == 20 else image),
               "blank_slices", volume=lambda hu: np.where(np.arange(40).reshape(-1, 1, 1) == 20, 0, grey_volume(hu)),
               note="with that slice"),
        refused("8 pictures", slices(change=lambda image, index: image if index < 8 else None),
                "8 slices, at least 10"),
    ],
}  # fmt: skip


# of two at once, the second planted after the first
PAIRS = [
    ("one missing", "names in no order"),
    ("one missing", "localizers"),
    ("one missing", "slope and intercept of every slice its own"),
    ("one missing", "gantry tilt of 12 degrees by its element"),
    ("the last file cut within its header", "one missing"),
    ("localizers in the series itself", "one copied within the folder"),
    ("two phases at the same positions", "localizers"),
    ("a dose report", "a coronal reformat"),
    ("a maximum intensity projection", "thick slices of it"),
    ("RLE", "names in reverse order"),
    ("localizers in the series itself", "JPEG-LS"),
    ("deflated", "a zero-byte file"),
    ("prone, the planes turned", "one missing"),
    ("decubitus, the planes turned by 90 degrees", "names in no order"),
    ("feet first", "table drift of 2 mm"),
    ("24 slices", "planes 10 degrees from axial"),
    ("steps of 8 and 10 mm", "InstanceNumber in no order"),
    ("12 bits in 16", "MONOCHROME1"),
    ("padding, signed", "the PET of a PET/CT"),
    ("compressed with loss before", "DICOMDIR"),
    ("Enhanced CT, frames in no order", "a preview picture"),
    ("InstanceNumber missing", "names in no order"),
    ("no rescale", "a coronal reformat"),
    ("three missing of 40", "gantry tilt of 12 degrees by its element"),
    ("8 slices", "no PixelSpacing"),
    ("intercept 0 instead of -1024", "a preview picture"),
]


@dataclass(frozen=True)
class Tree:
    """A tree of folders, and the scans that are found in it.

    Args:
        what: in words.
        plant: writes it into a folder, from the folder of the clean series.
        scans: name -> codes of the warnings it is answered with.
        note: what is found, in words.
    """

    what: str
    plant: Callable[[Path, Path], None]
    scans: dict[str, tuple[str, ...]]
    note: str


def in_folders(*parts: tuple[str, slice]) -> Callable[[Path, Path], None]:
    """Copies of the clean series' files, some in each folder."""

    def plant(root: Path, clean: Path) -> None:
        for name, part in parts:
            (root / name).mkdir(parents=True, exist_ok=True)
            for file in files_of(clean)[part]:
                shutil.copy(file, root / name / file.name)

    return plant


def as_of(folder: Path, **values: Any) -> None:
    with_values(**values)(folder)
    edit(folder, lambda ds, index: setattr(ds, "SOPInstanceUID", f"1.2.826.0.1.{len(folder.name)}.{index + 1}"))


def chunked(root: Path, clean: Path) -> None:
    """Two series, thirty files a folder, as some media have them."""
    whole = root / "whole"
    in_folders(("whole", slice(None)))(root, clean)
    add_series(whole, name="second")
    for place, file in enumerate(sorted(whole.iterdir())):
        folder = root / "media" / str(place // 30)
        folder.mkdir(parents=True, exist_ok=True)
        file.rename(folder / file.name)
    whole.rmdir()


def one_uid_for_two(root: Path, clean: Path) -> None:
    in_folders(("one", slice(None)), ("second", slice(None)))(root, clean)
    as_of(root / "second", PatientID="another")


def phases_apart(root: Path, clean: Path) -> None:
    in_folders(("one", slice(None)), ("second", slice(None)))(root, clean)
    as_of(root / "second", AcquisitionNumber=2)


def with_links(root: Path, clean: Path) -> None:
    in_folders(("a/series", slice(None)))(root, clean)
    (root / "a" / "series" / "up").symlink_to(root, target_is_directory=True)
    (root / "a" / "nowhere").symlink_to(root / "none")


def with_cover(root: Path, clean: Path) -> None:
    in_folders(("a/series", slice(None)))(root, clean)
    pictures(1)(root / "a")
    (root / "empty").mkdir()
    in_folders((".hidden/series", slice(None)))(root, clean)


HALF = 20
TREES = [
    Tree("a series split over two folders", in_folders(("a/1", slice(HALF)), ("a/2", slice(HALF, None))), {"a/1": ()},
         "one scan, named by the first"),
    Tree("a series split over three folders, in no order",
         in_folders(("1", slice(0, None, 3)), ("2", slice(1, None, 3)), ("3", slice(2, None, 3))), {"1": ()},
         "one scan"),
    Tree("two series over three folders, thirty files in each", chunked, {"media/0": ("several_series",)}, "one scan"),
    Tree("a series copied into two folders", in_folders(("a", slice(None)), ("b", slice(None))), {"a": ("same_study",),
         "b": ("same_study",)}, "two scans, `same_study`"),
    Tree("two patients in two folders, the same UIDs", one_uid_for_two, {"one": (), "second": ()}, "two scans"),
    Tree("two phases in two folders, one SeriesInstanceUID", phases_apart, {"one": ("same_study",),
         "second": ("same_study",)}, "two scans, `same_study`"),
    Tree("a link that leads back up, a link to nothing", with_links, {"a/series": ()}, "one scan"),
    Tree("a picture above, an empty folder, a hidden one", with_cover, {"a/series": ()}, "one scan"),
]  # fmt: skip


def number_of_kinds() -> int:
    return sum(map(len, DEFECTS.values())) + len(TREES)


def table() -> str:
    """The rows as Markdown."""
    lines = []
    for group, defects in DEFECTS.items():
        lines += [f"### {group}", "", "| | answered | said | volume |", "|---|---|---|---|"]
        for defect in defects:
            answered = defect.outcome in (UNCHANGED, WARNED)
            said = ", ".join(f"`{code}`" for code in sorted(defect.says)) if answered else defect.says[0]
            volume = (defect.note or "unchanged") if answered else ""
            lines.append(f"| {defect.what} | {'yes' if answered else defect.outcome} | {said} | {volume} |")
        lines.append("")
    lines += ["### Trees of folders", "", "| | found |", "|---|---|"]
    return "\n".join([*lines, *(f"| {tree.what} | {tree.note} |" for tree in TREES)])


if __name__ == "__main__":
    print(table())
