"""DICOM: headers of a folder, its series, which of them is the chest CT, and where its slices lie.

Only headers are read here. Files are DICOM by their content; slices belong together by patient, StudyInstanceUID and
SeriesInstanceUID, and by orientation, matrix and pixel spacing; they are ordered by position along their normal.
"""

from __future__ import annotations

import hashlib
import logging
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from .geometry import RAS_OF_LPS
from .scan import Refusal, Skipped
from .tolerances import (
    DRIFT_MM,
    GAP_STEPS,
    MAX_DRIFT_MM,
    MAX_FRAMES,
    MAX_GAP_MM,
    MAX_MISSING,
    MAX_OBLIQUE_DEGREES,
    MAX_STEP_RATIO,
    MAX_TILT_DEGREES,
    MIN_EXTENT_MM,
    MIN_SLICES,
    OBLIQUE_DEGREES,
    SAME_DIRECTION,
    SAME_PIXEL_SPACING,
    SAME_POSITION_MM,
    STRAY_SLICES,
    TILT_DEGREES,
    UNEVEN_STEP,
    UNIT_VECTORS,
)

PREAMBLE, MAGIC = 128, b"DICM"
# of PS3.5 6.2: what stands after the tag of an explicit element; a file without preamble is known by it
VALUE_REPRESENTATIONS = {b"CS", b"UI", b"DA", b"TM", b"LO", b"SH", b"UL", b"OB", b"PN", b"IS", b"DS", b"AE"}
LONGEST_FIRST_ELEMENT = 128  # bytes of the first value in group 0008 of an implicit file

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
DICOMDIR = "1.2.840.10008.1.3.10"
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
    "TemporalPositionIndex", "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BodyPartExamined", "GantryDetectorTilt", "RescaleSlope",
    "RescaleIntercept", "RescaleType", "ModalityLUTSequence", "PixelPaddingValue", "PixelPaddingRangeLimit",
    "PixelRepresentation",
    "LossyImageCompression", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
]  # fmt: skip


SeriesKey = tuple[str, str, str]


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
    acquisition: tuple[int | None, int | None] = (None, None)
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


@dataclass
class Series:
    """The slices of a series that make one stack.

    Args:
        slices: along D, from inferior to superior, once :meth:`lay_out` has been called.
        problem: why it cannot be answered; None = it can.
        affine: stored voxel (column, row, slice) -> RAS mm.
    """

    slices: list[SliceHeader]
    number: int = 0
    found: int = 0
    problem: Refusal | None = None
    warnings: list[str] = field(default_factory=list)
    affine: np.ndarray | None = None
    tilt_degrees: float | None = None

    @property
    def first(self) -> SliceHeader:
        return self.slices[0]

    @property
    def extent_mm(self) -> float:
        """From end to end; 0 of a single slice without geometry."""
        return 0.0 if self.affine is None else len(self.slices) * float(np.linalg.norm(self.affine[:3, 2]))


# ---------------------------------------------------------------------------------------------------------------------
# headers
# ---------------------------------------------------------------------------------------------------------------------
def looks_like_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM does: with the preamble, or with an element of group 0008 or 0002 in its place."""
    try:
        with path.open("rb") as file:
            head = file.read(PREAMBLE + len(MAGIC))
    except OSError:
        return False
    if head[PREAMBLE:] == MAGIC:
        return True
    if head[:2] not in (b"\x08\x00", b"\x02\x00") or len(head) < 12:
        return False
    return head[4:6] in VALUE_REPRESENTATIONS or int.from_bytes(head[4:8], "little") <= LONGEST_FIRST_ELEMENT


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Let pydicom take odd values as they are and say nothing: it quotes them, in a warning and again in its log. What
    is made of a value tells of it."""
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
    """The slices of a file: one, or one a frame.

    Raises:
        Refusal: the file cannot be read as DICOM.
    """
    import pydicom

    try:
        with quiet_pydicom():
            dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=TAGS, force=True)
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
        acquisition=(_whole(dataset, "AcquisitionNumber"), _whole(dataset, "TemporalPositionIndex")),
        rows=_whole(dataset, "Rows") or 0,
        columns=_whole(dataset, "Columns") or 0,
        samples=_whole(dataset, "SamplesPerPixel") or 1,
        body_part=_text(dataset, "BodyPartExamined").upper().replace(" ", "").replace("_", ""),
        tilt_degrees=_number(dataset, "GantryDetectorTilt"),
        padding=_padding(dataset),
        lossy=_text(dataset, "LossyImageCompression") == "01" or _syntax(dataset) in LOSSY_SYNTAXES,
        has_lookup_table="ModalityLUTSequence" in dataset,
    )
    if not _no_ct_slice(common) and not (common.rows and common.columns):
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
    def group(name: str) -> Any:
        return next((item for each in groups for item in _items(each, name)[:1]), {})

    frame_type = _texts(group("CTImageFrameTypeSequence"), "FrameType")
    placed = _placed(
        common,
        group("PlanePositionSequence"),
        group("PlaneOrientationSequence"),
        group("PixelMeasuresSequence"),
        group("PixelValueTransformationSequence"),
    )
    tilt = _number(group("CTAcquisitionDetailsSequence"), "GantryDetectorTilt")
    return replace(
        placed,
        frame=index,
        number=None,  # of the file
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
    try:
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


# ---------------------------------------------------------------------------------------------------------------------
# series of a folder
# ---------------------------------------------------------------------------------------------------------------------
def read_folder(files: Iterable[Path]) -> tuple[list[Series], list[str]]:
    """The series among DICOM files, each laid out and judged, in the order of their SeriesNumber.

    Returns:
        series, and a warning where files could not be read.
    """
    headers: list[SliceHeader] = []
    unreadable: Counter[str] = Counter()
    for file in files:
        try:
            headers += read_headers(file)
        except Refusal as error:
            unreadable[str(error)] += 1
    headers = [header for header in headers if header.sop_class != DICOMDIR]
    by_series: dict[SeriesKey, list[SliceHeader]] = defaultdict(list)
    for header in headers:
        by_series[series_key(header)].append(header)
    # not by UID, which is random: by number, then by what lies first in the folder
    ordered = sorted(by_series.values(), key=lambda found: (_order(found[0].series_number), str(found[0].path)))
    series = [judged(found) for found in ordered]
    for number, each in enumerate(series, start=1):
        each.number = number
    told = [f"{count} files: {reason}" for reason, count in sorted(unreadable.items())]
    return series, [f"unreadable_files: {'; '.join(told)}"] if told else []


def series_key(header: SliceHeader) -> SeriesKey:
    """What slices of one series share. The UID alone is not enough: an anonymizer may give all series the same."""
    return header.patient, header.study, header.series


def _order(number: int | None) -> tuple[bool, int]:
    return number is None, number or 0


def judged(headers: list[SliceHeader]) -> Series:
    """A series from the headers of its files: what it is, its largest stack, where that stack's slices lie."""
    found = len(headers)
    reasons = list(map(_no_ct_slice, headers))
    skipped = Counter(filter(None, reasons))
    kept = [header for header, reason in zip(headers, reasons, strict=True) if not reason]
    if not kept:
        return Series(headers, found=found, problem=Skipped(skipped.most_common(1)[0][0]))
    series = Series(kept, found=found)
    if skipped:
        strays = ", ".join(f"{count} {what}" for what, count in skipped.most_common())
        series.warnings.append(f"other_images: in the series are also {strays}, left out")
    try:
        lay_out(series)
    except Refusal as error:
        series.problem = error
    return series


def _no_ct_slice(header: SliceHeader) -> str:
    """Why an image is by its own account no slice of a CT; "" for one that is."""
    beyond = header.image_type[2:]
    if header.modality and header.modality != "CT":
        return f"modality {_plain(header.modality)}, not CT"
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


def _plain(code: str) -> str:
    """A coded value for a message: nothing else, as any text may name a patient."""
    return code if code.isalnum() and len(code) <= 16 else "unknown"


def is_reformat(header: SliceHeader) -> bool:
    return any(value in REFORMATS for value in header.image_type[2:])


def is_original(header: SliceHeader) -> bool:
    return header.image_type[:2] in ((), ("ORIGINAL", "PRIMARY"))


def lay_out(series: Series) -> None:
    """Order the slices of a series from inferior to superior, and check where they lie.

    Raises:
        Refusal: they do not make one axial stack within the tolerances.
    """
    _keep_one_stack(series)
    _drop_copies(series)
    first = series.first
    if first.orientation is None or any(header.position is None for header in series.slices):
        if len(series.slices) == 1 and first.frame is None:
            return  # one slice has no order; it is taken as it lies
        raise Refusal("slices without ImagePositionPatient or ImageOrientationPatient: their order cannot be known")
    if first.pixel_spacing is None:
        raise Refusal("slices without PixelSpacing")
    row, column = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    lengths = np.linalg.norm([row, column], axis=1)
    if np.abs(lengths - 1).max() > UNIT_VECTORS or abs(row @ column) > UNIT_VECTORS:
        raise Refusal("ImageOrientationPatient holds no two unit vectors at a right angle")
    row, column = row / lengths[0], column / lengths[1]
    normal = np.cross(row, column)
    _check_plane(series, normal)
    series.slices.sort(key=lambda header: float(normal @ np.array(header.position)) * np.sign(normal[2]))
    _split_acquisitions(series, normal)
    _check_numbers(series)
    positions = np.array([header.position for header in series.slices])
    steps = np.abs(np.diff(positions @ normal))
    step = _check_steps(series, steps)
    direction = _check_line(series, positions, normal * np.sign(normal[2]), step)
    rows_mm, columns_mm = first.pixel_spacing
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1], lps[:3, 2] = row * columns_mm, column * rows_mm, direction
    lps[:3, 3] = series.first.position
    series.affine = RAS_OF_LPS @ lps


def _keep_one_stack(series: Series) -> None:
    """Keep the largest group of slices with one orientation, matrix and pixel spacing."""
    stacks: list[list[SliceHeader]] = []
    for header in series.slices:
        for stack in stacks:
            if _same_stack(stack[0], header):
                stack.append(header)
                break
        else:
            stacks.append([header])
    largest = max(stacks, key=len)
    strays = len(series.slices) - len(largest)
    if strays > STRAY_SLICES * len(series.slices):
        sizes = ", ".join(str(len(stack)) for stack in sorted(stacks, key=len, reverse=True)[:5])
        raise Refusal(
            f"its {len(series.slices)} slices differ in orientation, matrix or pixel spacing ({len(stacks)} stacks of "
            f"{sizes})"
        )
    if strays:
        series.warnings.append(f"mixed_stack: {strays} slices of another orientation, matrix or spacing are left out")
        series.slices = largest


def _same_stack(one: SliceHeader, other: SliceHeader) -> bool:
    if (one.rows, one.columns) != (other.rows, other.columns):
        return False
    return _close(one.orientation, other.orientation, SAME_DIRECTION, 0) and _close(
        one.pixel_spacing, other.pixel_spacing, 0, SAME_PIXEL_SPACING
    )


def _close(one: Sequence[float] | None, other: Sequence[float] | None, absolute: float, relative: float) -> bool:
    if one is None or other is None:
        return one is other
    return bool(np.allclose(one, other, atol=absolute, rtol=relative))


def _drop_copies(series: Series) -> None:
    """Of files that are one SOP instance keep one; where slices lie apart the same UID makes no copies of them."""
    unique = {
        (header.instance or str(header.path), header.frame, header.position): header
        for header in reversed(series.slices)
    }
    copies = len(series.slices) - len(unique)
    if copies:
        series.warnings.append(f"copied_files: {copies} files are copies of others and left out")
        series.slices = list(unique.values())[::-1]


def _check_plane(series: Series, normal: np.ndarray) -> None:
    angle = float(np.degrees(np.arccos(min(1.0, abs(normal[2])))))
    if angle > MAX_OBLIQUE_DEGREES:
        plane = {0: "sagittal", 1: "coronal", 2: "oblique"}[int(np.abs(normal).argmax())]
        raise Refusal(f"{plane} slices ({angle:.0f} degrees from axial)")
    if angle > OBLIQUE_DEGREES:
        series.warnings.append(f"oblique: slices are {angle:.0f} degrees from axial")


def _split_acquisitions(series: Series, normal: np.ndarray) -> None:
    """Where several slices lie at one position, keep one acquisition, or one of slices that are equal."""
    from .dicom_pixels import same_pixels

    acquisitions: dict[Any, list[SliceHeader]] = defaultdict(list)
    for header in series.slices:
        acquisitions[header.acquisition].append(header)
    places = _places(series.slices, normal)
    if len(places) == len(series.slices) and not _interleaved(series.slices, len(acquisitions)):
        return
    # of equal ones the one acquired first, not the one that files happen to name first
    largest = max(sorted(acquisitions.values(), key=lambda found: _acquired(found[0])), key=len)
    if len(acquisitions) > 1 and _covers(largest, series.slices, places, normal):
        series.warnings.append(
            f"acquisitions: {len(acquisitions)} acquisitions of the same region, one of {len(largest)} slices is taken"
        )
        series.slices = largest
        return
    if len(places) == len(series.slices):
        raise Refusal(f"slices of {len(acquisitions)} acquisitions lie between each other, and none covers the scan")
    doubled = [place for place in places if len(place) > 1]
    for place in doubled:
        if not all(same_pixels(place[0], other) for other in place[1:]):
            at = float(normal @ np.array(place[0].position))
            raise Refusal(
                f"{len(doubled)} positions hold several slices that differ (the first at {at:.1f} mm): which of them "
                "belong together cannot be told"
            )
    series.warnings.append(f"duplicate_slices: {len(series.slices) - len(places)} slices lie twice in the series")
    series.slices = [place[0] for place in places]


def _interleaved(slices: Sequence[SliceHeader], acquisitions: int) -> bool:
    """Whether slices in order leave an acquisition and come back to it: two phases, and not two blocks of one scan."""
    changes = sum(one.acquisition != other.acquisition for one, other in pairwise(slices))
    return changes >= acquisitions


def _acquired(header: SliceHeader) -> list[tuple[bool, int]]:
    return [_order(number) for number in header.acquisition]


def _check_numbers(series: Series) -> None:
    """Warn where every second slice counts on by itself: two acquisitions that nothing else tells apart."""
    numbers = [header.number for header in series.slices if header.number is not None]
    if len(numbers) < len(series.slices) or len(numbers) < MIN_SLICES or _counts(numbers):
        return
    if _counts(numbers[::2]) and _counts(numbers[1::2]):
        series.warnings.append("interleaved: by their numbers every second slice is of another acquisition")


def _counts(numbers: Sequence[int]) -> bool:
    steps = np.diff(numbers)
    return bool((steps > 0).all() or (steps < 0).all())


def _covers(
    some: Sequence[SliceHeader], slices: Sequence[SliceHeader], places: Sequence[Any], normal: np.ndarray
) -> bool:
    """Whether some of the slices are a stack of their own that reaches from end to end of all of them."""
    if len(_places(some, normal)) < len(some):
        return False
    if len(places) < len(slices):
        return len(some) >= len(places) * (1 - MAX_MISSING)
    ends, all_ends = (np.array([found[-1].position, found[0].position]) @ normal for found in (some, slices))
    return bool(abs(ends[0] - ends[1]) >= abs(all_ends[0] - all_ends[1]) * (1 - MAX_MISSING))


def _places(slices: Sequence[SliceHeader], normal: np.ndarray) -> list[list[SliceHeader]]:
    """Slices in order, those at one position together."""
    places: list[list[SliceHeader]] = []
    last = None
    for header in slices:
        at = float(normal @ np.array(header.position))
        if last is not None and abs(at - last) < SAME_POSITION_MM:
            places[-1].append(header)
        else:
            places.append([header])
            last = at
    return places


def _check_steps(series: Series, steps: np.ndarray) -> float:
    """The mean step from slice to slice in mm; 1 for a single slice.

    Raises:
        Refusal: too much is missing, or the step changes within the stack.
    """
    if not len(steps):
        return 1.0
    step = float(np.median(steps))
    low, high = np.percentile(steps, [10, 90])
    if high > MAX_STEP_RATIO * low:
        raise Refusal(f"steps between slices change from {low:.2f} to {high:.2f} mm")
    gaps = steps[steps > GAP_STEPS * step]
    missing = int(sum(round(gap / step) - 1 for gap in gaps))
    total = len(steps) + 1 + missing
    if missing:
        said = f"{missing} of {total} slices are missing, the largest gap is {gaps.max():.1f} mm"
        if missing > MAX_MISSING * total or gaps.max() - step > MAX_GAP_MM:
            raise Refusal(said)
        series.warnings.append(f"missing_slices: {said}")
    whole = np.maximum(1, np.round(steps / step))
    off = np.abs(steps / step - whole)
    if off.max() > UNEVEN_STEP:
        series.warnings.append(
            f"uneven_spacing: steps between slices are {steps.min():.2f} to {steps.max():.2f} mm, mostly {step:.2f}"
        )
    return float(steps.sum() / (len(steps) + missing))


def _check_line(series: Series, positions: np.ndarray, normal: np.ndarray, step: float) -> np.ndarray:
    """The step from slice to slice as a vector, LPS mm.

    Raises:
        Refusal: slices are sheared or shifted against each other beyond the tolerances.
    """
    along = (positions - positions[0]) @ normal
    across = positions - positions[0] - along[:, None] * normal
    slope = np.zeros(3) if along[-1] == 0 else (along @ across) / (along @ along)
    shear = float(np.degrees(np.arctan(np.linalg.norm(slope))))
    stated = max((abs(header.tilt_degrees or 0.0) for header in series.slices), default=0.0)
    tilt = max(shear, stated)
    series.tilt_degrees = round(tilt, 2)
    if tilt > MAX_TILT_DEGREES:
        raise Refusal(f"gantry tilt of {tilt:.1f} degrees")
    if tilt > TILT_DEGREES:
        series.warnings.append(f"gantry_tilt: {tilt:.1f} degrees; the stack is sheared, not resampled")
    drift = float(np.linalg.norm(across - along[:, None] * slope, axis=1).max())
    if drift > MAX_DRIFT_MM:
        raise Refusal(f"slices are shifted against each other by up to {drift:.0f} mm")
    if drift > DRIFT_MM:
        series.warnings.append(f"shifted_slices: slices are shifted against each other by up to {drift:.1f} mm")
    return (normal + slope) * step


# ---------------------------------------------------------------------------------------------------------------------
# which of them
# ---------------------------------------------------------------------------------------------------------------------
def choose(series: Sequence[Series], min_slices: int) -> Series:
    """The chest CT among the series of a folder.

    Of the series that can be answered the first by these rules, in turn: the body part is the chest or not stated; as
    long as a chest; original rather than derived, and that rather than reformatted; more slices; the lower number.

    Raises:
        Refusal: none can be answered; says why of each. Or those of several patients can.
    """
    for each in series:
        if each.problem is None and len(each.slices) < min_slices:
            each.problem = too_few(len(each.slices), min_slices)
    answerable = [each for each in series if each.problem is None]
    if answerable:
        best = min(answerable, key=_rank)
        alike = [each.first for each in answerable if _rank(each)[:2] == _rank(best)[:2]]
        patients, studies = ({getattr(first, what) for first in alike} for what in ("patient", "study"))
        if len(patients) > 1:
            raise Refusal(
                f"holds CTs of {len(patients)} patients: which is meant cannot be known; give each a folder of its "
                "own, or have every series answered"
            )
        if len(studies) > 1:
            best.warnings.append(f"several_studies: CTs of {len(studies)} studies, of which one is answered")
        return best
    if not series:
        raise Refusal("holds no readable DICOM image")
    kind: Callable[[str], Refusal] = Skipped if all(isinstance(s.problem, Skipped) for s in series) else Refusal
    if len(series) == 1:
        raise kind(str(series[0].problem))
    raise kind("; ".join(f"series {each.number}: {each.problem}" for each in series))


def too_few(found: int, min_slices: int) -> Refusal:
    return Refusal(f"{found} slice{'s' * (found != 1)}, at least {min_slices} are needed")


def _rank(series: Series) -> tuple[Any, ...]:
    first = series.first
    elsewhere = bool(first.body_part) and first.body_part not in CHEST_PARTS
    origin = 0 if is_original(first) else 2 if is_reformat(first) else 1
    return elsewhere, series.extent_mm < MIN_EXTENT_MM, origin, -len(series.slices), series.number


def choice(chosen: Series, series: Sequence[Series]) -> str:
    """What was chosen and why not the others, for the record; "" where there was one series."""
    if len(series) == 1:
        return ""
    others = "; ".join(f"{each.number}: {each.problem or _what(each)}" for each in series if each is not chosen)
    return f"{chosen.number} of {len(series)} ({_what(chosen)}); not {others}"


def _what(series: Series) -> str:
    first = series.first
    origin = "original" if is_original(first) else "reformatted" if is_reformat(first) else "derived"
    elsewhere = "" if not first.body_part or first.body_part in CHEST_PARTS else f", {_plain(first.body_part).lower()}"
    return f"{len(series.slices)} slices, {origin}{elsewhere}"
