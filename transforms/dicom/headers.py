"""DICOM headers: which files are slices of which series, without their pixels."""

import hashlib
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC
from pathlib import Path
from typing import Any

import numpy as np

from ..scan import Refusal
from ..tolerances import MAX_FRAMES

PREAMBLE, MAGIC = 128, b"DICM"
# of PS3.5 6.2: what stands after the tag of an explicit element; a file without preamble is known by it
VALUE_REPRESENTATIONS = {b"CS", b"UI", b"DA", b"TM", b"LO", b"SH", b"UL", b"OB", b"PN", b"IS", b"DS", b"AE"}
LONGEST_FIRST_ELEMENT = 128  # bytes of the first value in group 0008 of an implicit file

ENHANCED_CT = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
DICOMDIR = "1.2.840.10008.1.3.10"
META = 512  # bytes in which a file's meta information says what it is
OTHER_OBJECTS = {  # by the beginning of the SOP class
    "1.2.840.10008.5.1.4.1.1.7": "secondary capture",
    "1.2.840.10008.5.1.4.1.1.88": "structured report (such as a dose report)",
    "1.2.840.10008.5.1.4.1.1.11": "presentation state",
    "1.2.840.10008.5.1.4.1.1.66": "segmentation, registration or raw data",
    "1.2.840.10008.5.1.4.1.1.104": "encapsulated document",
}
# JPEG of 8 and 12 bits, JPEG-LS and JPEG 2000 as far as they may lose: not every file says that it did
LOSSY_SYNTAXES = tuple(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 53, 55, 81, 91))
# values of ImageType beyond the second; of a projection the values are no HU of a slice
LOCALIZERS = ("LOCALIZER", "SCOUT", "TOPOGRAM", "SURVIEW")
PROJECTIONS = ("MIP", "MINIP", "MAXIMUM", "MINIMUM", "PROJECTION", "RENDERING", "VRT", "SSD", "CPR", "SCREEN")  # words
REFORMATS = ("REFORMATTED", "MPR", "CSA MPR", "RESAMPLED", "AVERAGE")
CHEST_PARTS = ("CHEST", "THORAX", "LUNG", "LUNGS", "TSPINE", "HEART", "CHESTABDOMEN", "CHESTABDPELVIS", "WHOLEBODY")

TAGS = [
    "PatientID", "PatientName", "PatientBirthDate",
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID",
    "Modality", "ImageType", "SeriesNumber", "AcquisitionNumber",
    "AcquisitionDateTime", "AcquisitionDate", "AcquisitionTime", "TriggerTime", "ContentDate", "ContentTime",
    "TemporalPositionIndex", "ConcatenationUID", "InConcatenationNumber", "InConcatenationTotalNumber",
    "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BodyPartExamined", "GantryDetectorTilt", "RescaleSlope",
    "RescaleIntercept", "RescaleType", "ModalityLUTSequence", "PixelPaddingValue", "PixelPaddingRangeLimit",
    "PixelRepresentation",
    "LossyImageCompression", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
]  # fmt: skip

SeriesKey = tuple[str, str, str]
Acquisition = tuple[int | None, int | None, str]


@dataclass(frozen=True)
class SliceHeader:
    """What is known of a slice before its pixels are decoded. UIDs group files and are never shown.

    Args:
        path: of its file.
        frame: of a multi-frame file, from 0; None of a file that is one slice.
        patient: a digest of who it is, to tell patients apart.
        number: InstanceNumber.
        position: (x, y, z) mm of the first pixel's centre, LPS.
        orientation: direction cosines of a row and of a column, LPS.
        pixel_spacing: (between rows, between columns) mm.
        rescale: (slope, intercept) to HU; None where the file does not say.
        acquisition: its number, its position in time, the name of its stack.
        times: when it was acquired, after which moment of the heartbeat, when it was made; seconds, None is unknown.
        part: (UID, number, how many there are or 0) of a file that is a part of a concatenation.
        padding: (lowest, highest) stored value that stands for no pixel.
    """

    path: Path
    frame: int | None = None
    patient: str = ""
    study: str = ""
    series: str = ""
    instance: str = ""
    sop_class: str = ""
    modality: str = ""
    image_type: tuple[str, ...] = ()
    series_number: int | None = None
    number: int | None = None
    acquisition: Acquisition = (None, None, "")
    times: tuple[float | None, ...] = (None, None, None)
    part: tuple[str, int, int] | None = None
    position: tuple[float, float, float] | None = None
    orientation: tuple[float, ...] | None = None
    pixel_spacing: tuple[float, float] | None = None
    rows: int = 0
    columns: int = 0
    samples: int = 1
    body_part: str = ""
    tilt_degrees: float | None = None
    rescale: tuple[float, float] | None = None
    rescale_type: str = ""
    padding: tuple[float, float] | None = None
    lossy: bool = False
    has_lookup_table: bool = False


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(META)
    except OSError:
        return b""


def _is_index(head: bytes) -> bool:
    """Whether a file's first bytes say that it is a DICOMDIR, by its Media Storage SOP class."""
    uid = DICOMDIR.encode()
    return b"\x02\0\x02\0UI" + len(uid).to_bytes(2, "little") + uid in head


def is_index(path: Path) -> bool:
    """Whether a file is a DICOMDIR, an index of other files, whatever it is called."""
    return _is_index(_head(path))


def looks_like_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM does (:func:`begins_as_dicom`)."""
    return begins_as_dicom(_head(path))


def begins_as_dicom(head: bytes) -> bool:
    """Whether the first bytes of a file are DICOM's, and not those of a DICOMDIR.

    With the preamble, or with an element of group 0008 or 0002 in its place.
    """
    if head[PREAMBLE:].startswith(MAGIC):
        return not _is_index(head)
    if head[:2] not in (b"\x08\x00", b"\x02\x00") or len(head) < 12:
        return False
    return head[4:6] in VALUE_REPRESENTATIONS or int.from_bytes(head[4:8], "little") <= LONGEST_FIRST_ELEMENT


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Let pydicom take odd values without warnings and log entries, which quote them: they may name a patient."""
    import pydicom

    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), pydicom.config.disable_value_validation():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def read_headers(path: Path) -> list[SliceHeader]:
    """The slices of a file: one, or one a frame; none of a DICOMDIR.

    Raises:
        Refusal: the file cannot be read as DICOM.
    """
    import pydicom

    try:
        with quiet_pydicom():
            dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=TAGS, force=True)
            if DICOMDIR in (_text(dataset.file_meta, "MediaStorageSOPClassUID"), _text(dataset, "SOPClassUID")):
                return []
            if not len(dataset):
                raise Refusal("is no DICOM file")
            return _slices_of(dataset, path)
    except Refusal:
        raise
    except Exception as error:  # pydicom raises many kinds on damaged files
        raise Refusal(f"cannot be read as DICOM ({type(error).__name__})") from None


def _slices_of(dataset: Any, path: Path) -> list[SliceHeader]:
    image_type = _texts(dataset, "ImageType")
    common = SliceHeader(
        path=path,
        patient=_digest(dataset, ("PatientID", "PatientName", "PatientBirthDate")),
        study=_text(dataset, "StudyInstanceUID"),
        series=_text(dataset, "SeriesInstanceUID"),
        instance=_text(dataset, "SOPInstanceUID"),
        sop_class=_text(dataset, "SOPClassUID"),
        modality=_text(dataset, "Modality").upper(),
        image_type=image_type,
        series_number=_whole(dataset, "SeriesNumber"),
        number=_whole(dataset, "InstanceNumber"),
        acquisition=(_whole(dataset, "AcquisitionNumber"), _whole(dataset, "TemporalPositionIndex"), ""),
        times=(
            _moment(dataset, "AcquisitionDateTime") or _moment(dataset, "AcquisitionTime", "AcquisitionDate"),
            _number(dataset, "TriggerTime"),
            _moment(dataset, "ContentTime", "ContentDate"),
        ),
        part=_part(dataset),
        rows=_whole(dataset, "Rows") or 0,
        columns=_whole(dataset, "Columns") or 0,
        samples=_whole(dataset, "SamplesPerPixel") or 1,
        body_part=_text(dataset, "BodyPartExamined").upper().replace(" ", "").replace("_", ""),
        tilt_degrees=_number(dataset, "GantryDetectorTilt"),
        padding=_padding(dataset),
        lossy=_text(dataset, "LossyImageCompression") == "01" or _syntax(dataset) in LOSSY_SYNTAXES,
        has_lookup_table="ModalityLUTSequence" in dataset,
    )
    if not no_ct_slice(common) and not (common.rows and common.columns):
        raise Refusal("describes no image: it is damaged")
    frames = _whole(dataset, "NumberOfFrames") or 1
    if frames > MAX_FRAMES:
        raise Refusal(f"says that it has more than {MAX_FRAMES} frames")
    if common.sop_class in ENHANCED_CT or "PerFrameFunctionalGroupsSequence" in dataset:
        shared = _items(dataset, "SharedFunctionalGroupsSequence")[:1]
        per_frame = _items(dataset, "PerFrameFunctionalGroupsSequence")
        if len(per_frame) != frames:
            raise Refusal(f"has {frames} frames but describes {len(per_frame)}")
        return [_frame(common, index, [groups, *shared]) for index, groups in enumerate(per_frame)]
    if frames > 1:
        return [replace(common, frame=index) for index in range(frames)]  # nothing says where they lie
    return [_placed(common, dataset, dataset, dataset, dataset)]


def _frame(common: SliceHeader, index: int, groups: Sequence[Any]) -> SliceHeader:
    def group(name: str) -> list[Any]:
        return [item for each in groups for item in _items(each, name)[:1]]

    frame_type = _texts(group("CTImageFrameTypeSequence"), "FrameType")
    placed = _placed(
        common,
        group("PlanePositionSequence"),
        group("PlaneOrientationSequence"),
        group("PixelMeasuresSequence"),
        group("PixelValueTransformationSequence"),
    )
    tilt = _number(group("CTAcquisitionDetailsSequence"), "GantryDetectorTilt")
    content = group("FrameContentSequence")
    acquired, time = _whole(content, "FrameAcquisitionNumber"), _whole(content, "TemporalPositionIndex")
    of_file = common.acquisition
    return replace(
        placed,
        frame=index,
        number=index,  # that of the file is the same in all
        acquisition=(
            of_file[0] if acquired is None else acquired,
            of_file[1] if time is None else time,
            _text(content, "StackID"),
        ),
        times=(
            _moment(content, "FrameAcquisitionDateTime"),
            _number(group("CardiacSynchronizationSequence"), "NominalCardiacTriggerDelayTime"),
            _moment(content, "FrameReferenceDateTime"),
        ),
        image_type=frame_type or common.image_type,
        tilt_degrees=common.tilt_degrees if tilt is None else tilt,
    )


def _placed(common: SliceHeader, position: Any, orientation: Any, measures: Any, rescale: Any) -> SliceHeader:
    slope, intercept = _number(rescale, "RescaleSlope"), _number(rescale, "RescaleIntercept")
    return replace(
        common,
        position=_numbers(position, "ImagePositionPatient", 3),
        orientation=_numbers(orientation, "ImageOrientationPatient", 6),
        pixel_spacing=_numbers(measures, "PixelSpacing", 2),
        rescale=None if slope is None or intercept is None or slope == 0 else (slope, intercept),
        rescale_type=_text(rescale, "RescaleType").upper(),
    )


def _syntax(dataset: Any) -> str:
    return _text(getattr(dataset, "file_meta", None) or {}, "TransferSyntaxUID")


def _value(dataset: Any, name: str) -> Any:
    """A value; of several datasets, such as the groups of a frame and those of all, that of the first which has it."""
    try:
        if isinstance(dataset, list):
            return next((value for each in dataset if (value := each.get(name)) is not None), None)
        return dataset.get(name)
    except Exception:  # a value that cannot be decoded is a value that is not there
        return None


def _items(dataset: Any, name: str) -> list[Any]:
    return list(_value(dataset, name) or ())


def _text(dataset: Any, name: str) -> str:
    value = _value(dataset, name)
    return "" if value is None else str(value).strip(" \0")


def _digest(dataset: Any, names: Sequence[str]) -> str:
    return hashlib.sha256(repr([_text(dataset, name) for name in names]).encode()).hexdigest()


def _texts(dataset: Any, name: str) -> tuple[str, ...]:
    value = _value(dataset, name)
    if value is None:
        return ()
    return tuple(str(part).strip().upper() for part in ([value] if isinstance(value, str) else value))


def _numbers(dataset: Any, name: str, count: int) -> Any:
    value = _value(dataset, name)
    try:
        numbers = tuple(float(part) for part in value)  # type: ignore[union-attr]
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else None


def _number(dataset: Any, name: str) -> float | None:
    try:
        number = float(_value(dataset, name))
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None


def _whole(dataset: Any, name: str) -> int | None:
    number = _number(dataset, name)
    return None if number is None else int(number)


def _moment(dataset: Any, time: str, date: str = "") -> float | None:
    """Seconds of a date and time, or of a time and its date: for differences alone."""
    from pydicom.valuerep import DT

    text = _text(dataset, time).replace(":", "")  # 10:30:59 in old files
    try:
        moment = DT((_text(dataset, date).replace(".", "") or "19700101") + text if date else text) if text else None
        return None if moment is None else moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
    except (ValueError, OverflowError):
        return None


def _part(dataset: Any) -> tuple[str, int, int] | None:
    number = _whole(dataset, "InConcatenationNumber")
    if number is None:
        return None
    return _text(dataset, "ConcatenationUID"), number, _whole(dataset, "InConcatenationTotalNumber") or 0


def _padding(dataset: Any) -> tuple[float, float] | None:
    value, limit = (_stored_value(dataset, name) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit"))
    if value is None:
        return None
    return (value, value) if limit is None else (min(value, limit), max(value, limit))


def _stored_value(dataset: Any, name: str) -> float | None:
    value = _number(dataset, name)
    if value is not None and value > 32767 and _whole(dataset, "PixelRepresentation") == 1:
        return value - 65536  # written as unsigned, as some do, of signed pixels
    return value


def series_key(header: SliceHeader) -> SeriesKey:
    """What slices of one series share. The UID alone is not enough: an anonymizer may give all series the same."""
    return header.patient, header.study, header.series


def series_order(number: int | None) -> tuple[bool, int]:
    return number is None, number or 0


def no_ct_slice(header: SliceHeader) -> str:
    """Why an image says that it is no slice of a CT; "" for a slice."""
    beyond = header.image_type[2:]
    if header.modality and header.modality != "CT":
        return f"modality {plain_code(header.modality)}, not CT"
    for prefix, what in OTHER_OBJECTS.items():
        if header.sop_class == prefix or header.sop_class.startswith(f"{prefix}."):
            return what
    if any(word in value for value in beyond for word in LOCALIZERS):
        return "localizer"
    if any(word in PROJECTIONS for value in beyond for word in re.split(r"[ _]", value)):  # such as CSA MIP
        return "projection or rendering"
    if header.samples != 1:
        return "colour image"
    return ""


def plain_code(code: str) -> str:
    """A coded value for a message: nothing else, as any text may name a patient."""
    return code if code.isalnum() and len(code) <= 16 else "unknown"


def is_reformat(header: SliceHeader) -> bool:
    return any(value in REFORMATS for value in header.image_type[2:])


def is_original(header: SliceHeader) -> bool:
    return header.image_type[:2] in ((), ("ORIGINAL", "PRIMARY"))
