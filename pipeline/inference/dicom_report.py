"""The answer to a scan that came from DICOM, as DICOM: a structured report, and the montage as a secondary capture.

The report is a Comprehensive 3D SR with a measurement report (TID 1500): one measurement group (TID 1501) holds the
probability of each class, the predicted class, which algorithm and checkpoint said so, the quality warnings and the
slices that the network saw. Classes of the benchmark have SNOMED CT codes. What has no standard code has one of the
private scheme ``99FAIRLUNG``: ``class``, ``prediction``, ``agreement``, ``uncorrected``, ``warning``, ``C-<class>`` for
another class, and ``P-<class>`` for the probability of any class (of a name that is long or not plain, its digest).

Nobody is named. Of a source file only the tags in :data:`SOURCE_TAGS` are read (no name, ID, date, description,
institution or private tag), and their values are taken over one by one; the Patient and Study attributes of what is
written are empty, and ``PatientIdentityRemoved`` says YES. Kept are the UIDs of study, series, instances and frame of
reference: without them a reference is none, and an archive finds the study by its UID. One that checks the patient's
ID too will hold the objects for reconciliation; there the ID is filled in by those who may know it.

Both objects say that they are research (``ContentQualification`` RESEARCH), the report also that it is preliminary and
unverified.

The UID of an instance follows from all that it holds but the times of writing, which are all that changes when an
inference is repeated. So a repetition gives the same instance, which an archive takes for the one it has, and any
change gives another. A series is one model's answers to one source series.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..common.errors import UserError
from ..common.files import replacing

if TYPE_CHECKING:
    from highdicom import SOPClass
    from highdicom.sr import Comprehensive3DSR, Measurement, NumContentItem
    from pydicom.dataset import Dataset
    from pydicom.sr.coding import Code

    from .answers import Answer


REPORT = "report.dcm"
MONTAGE = "montage.dcm"
MANUFACTURER = "fairlung"
SCHEME = "99FAIRLUNG"
NOT_FOR_DIAGNOSIS = "Research software, not a medical device. Not for diagnosis. Not verified by a physician."
SERIES_DESCRIPTION = "fairlung: research only, not for diagnosis"
SERIES_NUMBERS = {REPORT: 9901, MONTAGE: 9902}  # behind those of scanners and workstations

# all that is read of a source file
REFERENCE_TAGS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
GEOMETRY = {"PixelSpacing": 2, "SliceThickness": 1, "ImagePositionPatient": 3, "ImageOrientationPatient": 6}
LOSSY_TAGS = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
FRAME_TAGS = ("NumberOfFrames", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
SOURCE_TAGS = (*REFERENCE_TAGS, "FrameOfReferenceUID", "Rows", "Columns", *GEOMETRY, *LOSSY_TAGS, *FRAME_TAGS)

# SNOMED CT; class names are compared by their letters and digits
STANDARD_CLASSES = {
    "adenocarcinoma": ("254626006", "Adenocarcinoma of lung"),
    "squamouscell": ("254634000", "Squamous cell carcinoma of lung"),
    "squamouscellcarcinoma": ("254634000", "Squamous cell carcinoma of lung"),
    "covid": ("840539006", "COVID-19"),
    "covid19": ("840539006", "COVID-19"),
    "normal": ("17621005", "Normal"),
}
MAX_MEANING = 64  # characters of LO: code meanings, names of devices
_UID = re.compile(r"[0-9.]{1,64}")  # leading zeros, which the standard forbids, occur and are referenced as they are
# what repeating an inference changes
_CLOCK = {
    "InstanceCreationDate",
    "InstanceCreationTime",
    "ContentDate",
    "ContentTime",
    "DateOfSecondaryCapture",
    "TimeOfSecondaryCapture",
}


class DicomReportError(UserError, ValueError):
    """A scan's answer cannot be written as DICOM; the message names the scan and the cause, and no identifier."""


@dataclass(frozen=True)
class Model:
    """Which model answered.

    Args:
        name: of the algorithm, 1 to 64 characters.
        version: of the algorithm, 1 to 64 characters.
        digest: of the checkpoint's file, such as its SHA-256.

    Raises:
        ValueError: a value is empty or too long.
    """

    name: str
    version: str
    digest: str

    def __post_init__(self) -> None:
        for what in ("name", "version", "digest"):
            value = getattr(self, what)
            if not 1 <= len(value) <= MAX_MEANING or _plain_text(value) != value:
                raise ValueError(f"model {what} must be 1 to {MAX_MEANING} printable characters, got {value!r}")


def write_dicom_answers(
    folder: str | Path, answer: Answer, model: Model, montage: str | Path | NDArray[np.uint8] | None = None
) -> list[Path]:
    """Write ``report.dcm`` and, with a montage, ``montage.dcm`` (what is in them: see the module).

    Each file is complete or absent. A file that already holds the same instance is left as it is; a ``montage.dcm``
    of an earlier answer goes when there is no montage now.

    Args:
        folder: of this scan alone; made when missing.
        answer: an answer of status ``ok``. Of its intake record ``files`` are referred to, which must be of one series;
            with ``shape`` and ``indices`` a single multi-frame file is referred to by the frames that were used (as a
            whole where its frames do not make the stack). Its name is for messages: a name may identify somebody, so
            it is not written. Its warnings are written as they are.
        model: who said it.
        montage: a picture, or [H, W, 3] uint8, RGB. ``BurnedInAnnotation`` will say that it identifies nobody: it must
            show neither the scan's name nor anything else that could.

    Returns:
        the paths of the files.

    Raises:
        DicomReportError: there is no answer, the source files cannot be read or referred to, or the montage is no
            picture.
    """
    with _no_values_in_messages():
        sources = _read_sources(answer)
        instances: dict[str, SOPClass] = {REPORT: _report(sources, answer, model)}
        if montage is not None:
            instances[MONTAGE] = _montage(sources, _pixels(montage, answer.scan), model)
        for instance in instances.values():
            _seal(instance)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, instance in instances.items():
            _write(instance, folder / name)
    if montage is None:
        (folder / MONTAGE).unlink(missing_ok=True)
    return [folder / name for name in instances]


@contextmanager
def _no_values_in_messages() -> Iterator[None]:
    """Keep the libraries from repeating values: pydicom quotes an odd one, in a warning and again in its log, and
    highdicom logs the UIDs of instances. What is wrong with a source is said by the errors raised here."""
    loggers = [logging.getLogger(name) for name in ("highdicom", "pydicom")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@dataclass(frozen=True)
class _Sources:
    """Headers with what a reference needs and nothing else.

    ``frames`` are the frames used of a single multi-frame file; ``lossy`` holds what was said of lossy compression.
    """

    headers: list[Dataset]
    frames: list[int] | None
    lossy: Dataset

    @property
    def first(self) -> Dataset:
        return self.headers[0]


def _read_sources(answer: Answer) -> _Sources:
    import pydicom

    scan, files = answer.scan, answer.intake.get("files")
    if answer.prediction is None:
        raise DicomReportError(f"{scan}: there is no answer to write")
    if not files:
        raise DicomReportError(f"{scan}: no DICOM file to refer to; only scans from DICOM are answered in DICOM")
    headers: dict[str, Dataset] = {}
    for number, path in enumerate(files, start=1):
        which = f"{scan}: source file {number} of {len(files)}"
        try:
            # a file without preamble may still be DICOM; what is none has none of the tags
            read = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=list(SOURCE_TAGS))
            header = _anonymous_header(read)
            if not headers:
                frames, lossy = _used_frames(read, answer.intake), _lossy(read)
        except Exception as error:  # the parser raises many kinds, and may quote what it read
            raise DicomReportError(f"{which} cannot be read as DICOM ({type(error).__name__})") from None
        problem = _problem(header)
        if problem:
            raise DicomReportError(f"{which} cannot be referred to: {problem}")
        headers.setdefault(header.SOPInstanceUID, header)
    for tag, what in (("StudyInstanceUID", "studies"), ("SeriesInstanceUID", "series")):
        count = len({header[tag].value for header in headers.values()})
        if count > 1:
            raise DicomReportError(f"{scan}: its source files are of {count} {what}; a report is about one")
    return _Sources(list(headers.values()), frames if len(headers) == 1 else None, lossy)


def _numbers(read: Dataset, tag: str) -> list[float]:
    """The finite numbers of an optional attribute; none when it holds anything else."""
    try:
        values = np.atleast_1d(read.get(tag) or []).astype(float)
    except (TypeError, ValueError, OverflowError):
        return []
    return values.tolist() if np.isfinite(values).all() else []


def _anonymous_header(read: Dataset) -> Dataset:
    """The attributes of a source that are needed, beside the empty ones that highdicom asks every source for."""
    from pydicom.dataset import Dataset

    header = Dataset()
    for tag in REFERENCE_TAGS:
        setattr(header, tag, str(read.get(tag, "")))
    frame_of_reference = str(read.get("FrameOfReferenceUID", ""))
    if _UID.fullmatch(frame_of_reference):
        header.FrameOfReferenceUID = frame_of_reference
    for tag in ("Rows", "Columns"):
        setattr(header, tag, int(read.get(tag) or 0))
    geometry = {tag: _numbers(read, tag) for tag in GEOMETRY}
    if all(len(geometry[tag]) == count for tag, count in GEOMETRY.items()):
        header.Modality = "CT"
        for tag, values in geometry.items():
            setattr(header, tag, values if len(values) > 1 else values[0])
    else:
        header.Modality = ""  # with CT highdicom asks for a plane, which frames and incomplete headers do not have
    header.PatientID = header.PatientName = header.PatientBirthDate = header.PatientSex = ""
    header.AccessionNumber = header.StudyID = header.ReferringPhysicianName = ""
    header.StudyDate = header.StudyTime = None
    return header


def _problem(header: Dataset) -> str:
    """Why a source cannot be referred to, or ""."""
    from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage

    for tag in REFERENCE_TAGS:
        if not _UID.fullmatch(header[tag].value):
            return f"its {tag} is no UID" if header[tag].value else f"it has no {tag}"
    if header.SOPClassUID not in (CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage):
        return "it is no CT Image, Enhanced CT Image or Legacy Converted Enhanced CT Image"
    return "" if header.Rows and header.Columns else "it has no Rows and Columns"


def _used_frames(read: Dataset, intake: Mapping[str, Any]) -> list[int] | None:
    """Numbers, from 1, of the frames that became the slices ``indices``; None for all, and when it cannot be told."""
    shape, indices = intake.get("shape"), intake.get("indices")
    per_frame = read.get("PerFrameFunctionalGroupsSequence") or []
    if not shape or not indices or len(per_frame) != shape[0]:
        return None
    shared = (read.get("SharedFunctionalGroupsSequence") or [read])[0]
    try:
        group = shared if "PlaneOrientationSequence" in shared else per_frame[0]
        plane = np.array(group.PlaneOrientationSequence[0].ImageOrientationPatient, dtype=float)
        positions = [frame.PlanePositionSequence[0].ImagePositionPatient for frame in per_frame]
        normal = np.cross(plane[:3], plane[3:])
        along = np.array(positions, dtype=float) @ normal * np.sign(normal[2])
    except (AttributeError, IndexError, TypeError, ValueError):
        return None
    order = np.argsort(along, kind="stable")
    if np.abs(normal).argmax() != 2 or any(b - a < 1e-3 for a, b in pairwise(along[order].tolist())):
        return None  # slices are not frames, or two frames are at one place
    frames = sorted({int(order[index]) + 1 for index in indices})
    return None if len(frames) == len(per_frame) else frames


def _lossy(read: Dataset) -> Dataset:
    """What is made of a picture that was compressed with loss must go on saying so."""
    from pydicom.dataset import Dataset

    said = Dataset()
    if read.get("LossyImageCompression") == "01":
        said.LossyImageCompression = "01"
        said.LossyImageCompressionRatio = [f"{value:.6g}" for value in _numbers(read, "LossyImageCompressionRatio")]
        methods = np.atleast_1d(read.get("LossyImageCompressionMethod") or []).tolist()
        said.LossyImageCompressionMethod = [name for name in methods if re.fullmatch(r"ISO_\d+_\d+", name)]
    return said


def _plain_text(text: str) -> str:
    """Without control characters, line breaks and backslashes, which separate values in DICOM."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f\\]", " ", text).split())


def _own_code(value: str, meaning: str) -> Code:
    from pydicom.sr.coding import Code

    return Code(value, SCHEME, _plain_text(meaning)[:MAX_MEANING])


def _short(name: str) -> str:
    """A class name for a code value, which has 16 characters with its prefix: itself, or its digest."""
    plain = re.fullmatch(r"[A-Za-z0-9_.-]{1,14}", name)
    return name if plain else hashlib.sha256(name.encode()).hexdigest()[:14]


def class_code(name: str) -> Code:
    """The coded concept of a class: SNOMED CT where :data:`STANDARD_CLASSES` knows it, else a private code."""
    from pydicom.sr.coding import Code

    standard = STANDARD_CLASSES.get(re.sub(r"[\W_]+", "", name).lower())
    return Code(standard[0], "SCT", standard[1]) if standard else _own_code(f"C-{_short(name)}", name)


def probability_code(name: str) -> Code:
    """The private concept "probability of a class".

    Each class has its own, so that a reader that shows names and values alone does not show one name with many values.
    """
    return _own_code(f"P-{_short(name)}", f"Probability of {class_code(name).meaning}")


def _uid(*what: object) -> str:
    from pydicom.uid import generate_uid

    return generate_uid(entropy_srcs=["fairlung-dicom-report", *(f"\0{part}" for part in what)])


def _common(sources: _Sources, model: Model, kind: str) -> dict[str, Any]:
    """What both objects are told about their series and equipment."""
    from highdicom.coding_schemes import CodingSchemeIdentificationItem

    scheme = CodingSchemeIdentificationItem(
        SCHEME, name="fairlung classes and answers", version=__version__, responsible_organization=MANUFACTURER
    )
    return {
        "series_instance_uid": _uid(kind, sources.first.SeriesInstanceUID, model.name, model.version, model.digest),
        "series_number": SERIES_NUMBERS[kind],
        "sop_instance_uid": _uid(kind),  # until the content is known
        "instance_number": 1,
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": model.name,
        "device_serial_number": model.digest,
        "software_versions": (__version__, model.version),
        "series_description": SERIES_DESCRIPTION,
        "content_qualification": "RESEARCH",
        "specific_character_set": "ISO_IR 192",
        "coding_schemes": [scheme],
    }


def _number(code: Code, value: float) -> NumContentItem:
    """A property of a number, without unit."""
    from highdicom import sr
    from pydicom.sr.codedict import codes

    return sr.NumContentItem(
        code, float(value), codes.UCUM.NoUnits, relationship_type=sr.RelationshipTypeValues.HAS_PROPERTIES
    )


def _probability(name: str, answer: Answer) -> Measurement:
    """The probability of a class (TID 300), modified by the class, with its spread and uncorrected value."""
    from highdicom import sr
    from pydicom.sr.codedict import codes

    measurement = sr.Measurement(probability_code(name), float(answer.probabilities[name]), codes.UCUM.NoUnits)
    content = sr.ContentSequence()
    content.append(
        sr.CodeContentItem(
            _own_code("class", "Class"), class_code(name), relationship_type=sr.RelationshipTypeValues.HAS_CONCEPT_MOD
        )
    )
    if answer.spread:
        content.extend(
            sr.MeasurementStatisticalProperties(
                [_number(codes.SCT.StandardDeviation, answer.spread[name])],
                description="Probabilities by the members of the ensemble",
            )
        )
    if answer.uncorrected:
        concept = _own_code("uncorrected", "Probability before correction for prevalence")
        content.append(_number(concept, answer.uncorrected[name]))
    measurement[0].ContentSequence = content
    return measurement


def _report(sources: _Sources, answer: Answer, model: Model) -> Comprehensive3DSR:
    from highdicom import sr
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    assert answer.prediction is not None
    first = sources.first
    measurements = [_probability(name, answer) for name in answer.probabilities]
    if answer.agreement is not None:
        agreement = _own_code("agreement", "Share of the ensemble's members with the same prediction")
        measurements.append(sr.Measurement(agreement, float(answer.agreement), codes.UCUM.NoUnits))
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            identifier="Classification of the whole scan",
            uid=_uid("tracking", first.SeriesInstanceUID, model.name, model.version, model.digest),
        ),
        finding_sites=[sr.FindingSite(codes.SCT.Lung)],
        algorithm_id=sr.AlgorithmIdentification(
            name=model.name,
            version=model.version,
            parameters=[f"checkpoint digest: {model.digest}"],
            manufacturer=MANUFACTURER,
        ),
        measurements=measurements,
        qualitative_evaluations=[
            sr.QualitativeEvaluation(_own_code("prediction", "Predicted class"), class_code(answer.prediction))
        ],
        source_images=[
            sr.SourceImageForMeasurementGroup(header.SOPClassUID, header.SOPInstanceUID, sources.frames)
            for header in sources.headers
        ],
    )
    said = [(codes.DCM.Comment, NOT_FOR_DIAGNOSIS)]
    said += [(_own_code("warning", "Quality warning"), warning) for warning in answer.warnings]
    for concept, text in said:
        group[0].ContentSequence.append(
            sr.TextContentItem(
                concept,
                text.encode("utf-8", "backslashreplace").decode(),  # a file name in it need not be Unicode
                relationship_type=sr.RelationshipTypeValues.CONTAINS,
            )
        )
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=_uid("device", model.name, model.version, model.digest),
        name=MANUFACTURER,
        manufacturer_name=MANUFACTURER,
        model_name=model.name,
        serial_number=model.digest,
    )
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(
            observer_device_context=sr.ObserverContext(
                observer_type=codes.DCM.Device, observer_identifying_attributes=device
            )
        ),
        procedure_reported=Code("24627-2", "LN", "CT Chest"),
        imaging_measurements=[group],
        title=codes.DCM.ImagingMeasurementReport,
        referenced_images=sources.headers,
    )
    return sr.Comprehensive3DSR(
        evidence=sources.headers,
        content=content,
        is_complete=True,
        is_final=False,
        is_verified=False,
        **_common(sources, model, REPORT),
    )


def _pixels(montage: str | Path | NDArray[np.uint8], scan: str) -> NDArray[np.uint8]:
    """[H, W, 3] uint8; transparent pixels become white."""
    if isinstance(montage, np.ndarray):
        if montage.dtype != np.uint8 or montage.ndim != 3 or montage.shape[2] != 3 or 0 in montage.shape:
            raise DicomReportError(
                f"{scan}: montage must be [H, W, 3] uint8, got {list(montage.shape)} {montage.dtype}"
            )
        return np.ascontiguousarray(montage)
    from PIL import Image

    try:
        with Image.open(montage) as image:
            rgba = image.convert("RGBA")
    except (OSError, SyntaxError, ValueError) as error:
        raise DicomReportError(f"{scan}: its montage cannot be read as a picture ({type(error).__name__})") from error
    page = Image.new("RGBA", rgba.size, "white")
    page.alpha_composite(rgba)
    return np.asarray(page.convert("RGB"))


def _montage(sources: _Sources, pixels: NDArray[np.uint8], model: Model) -> SOPClass:
    from highdicom.sc import SCImage
    from highdicom.sr import CodedConcept
    from pydicom.dataset import Dataset
    from pydicom.sr.codedict import codes

    first = sources.first
    image = SCImage(
        pixel_array=pixels,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),
        study_instance_uid=first.StudyInstanceUID,
        patient_id="",
        patient_name="",
        patient_birth_date="",
        patient_sex="",
        accession_number="",
        study_id="",
        referring_physician_name="",
        **_common(sources, model, MONTAGE),
    )
    image.PatientOrientation = []  # of many panels there is none; highdicom insists on one, the standard does not
    image.ConversionType = "WSD"  # made by a workstation
    image.SecondaryCaptureDeviceManufacturer = MANUFACTURER
    image.SecondaryCaptureDeviceManufacturerModelName = model.name
    image.SecondaryCaptureDeviceSoftwareVersions = [__version__, model.version]
    image.BodyPartExamined = "CHEST"
    image.BurnedInAnnotation = "NO"
    image.ImageComments = NOT_FOR_DIAGNOSIS
    image.DerivationDescription = "Montage of slices as the network saw them, and its answer"
    image.update(sources.lossy)
    references = []
    for header in sources.headers:
        item = Dataset()
        item.ReferencedSOPClassUID = header.SOPClassUID
        item.ReferencedSOPInstanceUID = header.SOPInstanceUID
        if sources.frames is not None:
            item.ReferencedFrameNumber = sources.frames
        item.SpatialLocationsPreserved = "NO"
        item.PurposeOfReferenceCodeSequence = [CodedConcept.from_code(codes.DCM.SourceImageForMontage)]
        references.append(item)
    image.SourceImageSequence = references
    return image


def _seal(instance: SOPClass) -> None:
    """Say that nobody is named, and give the instance the UID that follows from its content."""
    from pydicom.dataset import Dataset

    instance.PatientIdentityRemoved = "YES"
    instance.DeidentificationMethod = ["Patient and study attributes left empty", "UIDs retained"]
    for equipment in instance.ContributingEquipmentSequence:
        equipment.pop("ContributionDateTime", None)  # the time of writing, which is said once
    lasting = Dataset()
    lasting.update({element.tag: element for element in instance if element.keyword not in _CLOCK})
    buffer = io.BytesIO()
    lasting.save_as(buffer, implicit_vr=False, little_endian=True)
    uid = _uid(hashlib.sha256(buffer.getbuffer()).hexdigest())
    instance.SOPInstanceUID = instance.file_meta.MediaStorageSOPInstanceUID = uid


def _write(instance: SOPClass, path: Path) -> None:
    """Atomically; a file with the same instance stays, so that in a folder a UID never has two times of writing."""
    if _instance_uid(path) == instance.SOPInstanceUID:
        return
    with replacing(path) as part:
        instance.save_as(part, enforce_file_format=True)


def _instance_uid(path: Path) -> str | None:
    import pydicom

    try:
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SOPInstanceUID"]).get("SOPInstanceUID")
    except Exception:  # missing, or anything that is not ours: it is written anew
        return None
