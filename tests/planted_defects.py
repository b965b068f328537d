"""Defects that scans come with, each planted in a clean one, and what the intake answers: the table of docs/intake.md.

A defect is planted in a copy of a chest phantom that draws no warning by itself. ``python tests/planted_defects.py``
prints the table; test_intake_defects.py holds every row against the intake, and the documentation against the table.
"""

from __future__ import annotations

import functools
import gzip
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from fairlung.pipeline.phantom import synthesize
from fairlung.pipeline.scan_writers import volume_origin, write_dicom_series, write_nifti

DATA = Path(__file__).parent / "data"
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
    """

    what: str
    plant: Callable[[Path], Path | None]
    outcome: str
    says: tuple[str, ...] = ()
    volume: Callable[[Volume], Volume] | None = None
    note: str = ""


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


def add_series(folder: Path, stack: Volume | None = None, *, name: str, change: Change | None = None, **values: Any) -> None:
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


LOCALIZER = beside(in_plane(1), name="scout", change=as_plane(1), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])


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
        dataset.SeriesInstanceUID += ".77"
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SeriesInstanceUID + ".1"
        dataset.SeriesNumber = 501
        dataset.save_as(folder / "object.dcm")

    return plant


DOSE_REPORT = other_object("1.2.840.10008.5.1.4.1.1.88.67", "SR")
PRESENTATION_STATE = other_object("1.2.840.10008.5.1.4.1.1.11.1", "PR")
STRUCTURES = other_object("1.2.840.10008.5.1.4.1.1.481.3", "RTSTRUCT")
SECONDARY_CAPTURE = beside(
    lambda hu: hu[:12], name="capture", SOPClassUID="1.2.840.10008.5.1.4.1.1.7", ImageType=["DERIVED", "SECONDARY"]
)
MIP = beside(
    lambda hu: np.maximum(hu[:-1], hu[1:]), name="mip", ImageType=["DERIVED", "SECONDARY", "AXIAL", "MIP"]
)
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
            dataset.compress(getattr(uid, syntax), generate_instance_uid=False)
        if cut and index == 20:
            frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
            dataset.PixelData = encapsulate([frame[:-cut]])

    return edited(change, which)


def rewritten(syntax: str, **how: Any) -> Callable[[Path], None]:
    def change(dataset: Any, index: int) -> None:
        dataset.file_meta.TransferSyntaxUID = syntax
        if how.get("little_endian") is False:
            dataset.PixelData = dataset.pixel_array.astype(">u2").tobytes()

    return edited(change, **how)


def enhanced(*, geometry: bool = True, phases: int = 1) -> Callable[[Path], Path]:
    """The series as one multi-frame file whose frames are in no order."""

    def plant(folder: Path) -> Path:
        import pydicom
        from pydicom import Dataset

        datasets = [pydicom.dcmread(file) for file in files_of(folder)]
        order = [shuffled(index) for index in range(40)] * phases
        whole = pydicom.dcmread(files_of(folder)[0])
        names = {
            "PlanePositionSequence": ("ImagePositionPatient",),
            "PlaneOrientationSequence": ("ImageOrientationPatient",),
            "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness"),
            "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept", "RescaleType"),
        }

        def group(dataset: Any, sequences: Iterable[str]) -> Any:
            item = Dataset()
            for sequence in sequences:
                inner = Dataset()
                for name in names[sequence]:
                    setattr(inner, name, dataset[name].value)
                setattr(item, sequence, [inner])
            return item

        if geometry:
            first, *shared = names
            whole.SharedFunctionalGroupsSequence = [group(datasets[0], shared)]
            whole.PerFrameFunctionalGroupsSequence = [group(datasets[index], [first]) for index in order]
            whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
        for name in sum(names.values(), ()):
            if geometry or name.startswith("Image"):
                delattr(whole, name)
        whole.NumberOfFrames = len(order)
        whole.PixelData = b"".join(datasets[index].PixelData for index in order)
        for file in files_of(folder):
            file.unlink()
        whole.save_as(folder / "enhanced.dcm")
        return folder

    return plant


def real_jpeg_lossless(**values: Any) -> Callable[[Path], None]:
    """The clean geometry around the pixels of a real slice that is compressed by JPEG lossless (SV1)."""

    def change(dataset: Any, index: int) -> None:
        import pydicom

        real = pydicom.dcmread(next((DATA / "ct_syntaxes").glob("*1.2.840.10008.1.2.4.70.dcm")))
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

    real = pydicom.dcmread(next((DATA / "ct_syntaxes").glob("*ExplicitTransferSyntax_1.2.840.10008.1.2.1.dcm")))
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

        write_nifti(folder / "clean.nii", *clean_volume())
        clean = nibabel.load(folder / "clean.nii")
        image = nibabel.Nifti1Image(*change(np.asarray(clean.dataobj), clean.affine))
        image.header["descrip"] = b"ZEPHYRINE^OCTAVIA MRN-77431-Q"
        then(image)
        nibabel.save(image, folder / name)
        return folder / name

    return plant


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
            large = np.kron(plane[:32, :32], np.ones((2, 2), np.uint8)) if False else np.pad(plane, 8)
            image = change(Image.fromarray(large), index)
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
    from PIL import Image

    return Image.fromarray(colour)


def marked(levels: Volume) -> Volume:
    levels = levels.copy()
    levels[:, 2:12, 2:20] = 226  # of yellow
    return levels


def exif_turned(image: Any, index: int) -> Any:
    """Stored lying on its side, with the mark that says so."""
    from PIL import Image

    turned_image = image.transpose(Image.Transpose.ROTATE_90)
    turned_image.getexif()[0x0112] = 6
    return turned_image


def written(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def truncated_jpeg(folder: Path) -> None:
    from PIL import Image

    with Image.open(folder / "20.png") as image:
        image.save(folder / "20.jpg")
    (folder / "20.png").unlink()
    content = (folder / "20.jpg").read_bytes()
    (folder / "20.jpg").write_bytes(content[: len(content) // 2])
