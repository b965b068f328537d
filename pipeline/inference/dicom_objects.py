"""The two DICOM objects of an answer: the structured report and the montage as a secondary capture; their concepts."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from highdicom import SOPClass, sr
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sc import SCImage
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from .. import __version__
from .answers import Answer
from .dicom_sources import DicomReportError, Sources

REPORT, MONTAGE = "report.dcm", "montage.dcm"
MANUFACTURER = "fairlung"
NOT_FOR_DIAGNOSIS = "Research software, not a medical device. Not for diagnosis. Not verified by a physician."
SERIES_DESCRIPTION = "fairlung: research only, not for diagnosis"
SERIES_NUMBERS = {REPORT: 9901, MONTAGE: 9902}  # behind those of scanners and workstations
SCHEME = "99FAIRLUNG"
MAX_MEANING = 64  # characters of LO: code meanings, names of devices

_SQUAMOUS, _COVID = ("254634000", "Squamous cell carcinoma of lung"), ("840539006", "COVID-19")
# SNOMED CT; class names are compared by their letters and digits
STANDARD_CLASSES = {
    "adenocarcinoma": ("254626006", "Adenocarcinoma of lung"), "squamouscell": _SQUAMOUS,
    "squamouscellcarcinoma": _SQUAMOUS, "covid": _COVID, "covid19": _COVID, "normal": ("17621005", "Normal"),
}  # fmt: skip


def plain_text(text: str) -> str:
    """Without control characters, line breaks and backslashes, which separate values in DICOM."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f\\]", " ", text).split())


def own_code(value: str, meaning: str) -> Code:
    """A private concept."""
    return Code(value, SCHEME, plain_text(meaning)[:MAX_MEANING])


def _short(name: str) -> str:
    """A class name for a code value, which has 16 characters with its prefix: itself, or its digest."""
    plain = re.fullmatch(r"[A-Za-z0-9_.-]{1,14}", name)
    return name if plain else hashlib.sha256(name.encode()).hexdigest()[:14]


def class_code(name: str) -> Code:
    """The coded concept of a class: SNOMED CT where :data:`STANDARD_CLASSES` knows it, else a private code."""
    standard = STANDARD_CLASSES.get(re.sub(r"[\W_]+", "", name).lower())
    return Code(standard[0], "SCT", standard[1]) if standard else own_code(f"C-{_short(name)}", name)


def probability_code(name: str) -> Code:
    """The private concept "probability of a class", one a class: a reader may show names and values alone."""
    return own_code(f"P-{_short(name)}", f"Probability of {class_code(name).meaning}")


def uid_of(*what: object) -> str:
    """The UID of what is described, always the same one."""
    return generate_uid(entropy_srcs=["fairlung-dicom-report", *(f"\0{part}" for part in what)])


@dataclass(frozen=True)
class Model:
    """Which model answered; ValueError when a value is empty or too long."""

    name: str  # of the algorithm, 1 to 64 characters, as each value
    version: str  # of the algorithm
    digest: str  # of the checkpoint's file, such as its SHA-256

    def __post_init__(self) -> None:
        for what in ("name", "version", "digest"):
            value = getattr(self, what)
            if not 1 <= len(value) <= MAX_MEANING or plain_text(value) != value:
                raise ValueError(f"model {what} must be 1 to {MAX_MEANING} printable characters, got {value!r}")

    def uid(self, *what: object) -> str:
        """The UID of something that this model made."""
        return uid_of(*what, self.name, self.version, self.digest)


def _common(sources: Sources, model: Model, kind: str) -> dict[str, Any]:
    """The series and the equipment of either object."""
    scheme = CodingSchemeIdentificationItem(
        SCHEME, name="fairlung classes and answers", version=__version__, responsible_organization=MANUFACTURER
    )
    return {
        "series_instance_uid": model.uid(kind, sources.series),
        "series_number": SERIES_NUMBERS[kind], "series_description": SERIES_DESCRIPTION, "instance_number": 1,
        "sop_instance_uid": uid_of(kind),  # until the content is known
        "manufacturer": MANUFACTURER, "manufacturer_model_name": model.name, "device_serial_number": model.digest,
        "software_versions": (__version__, model.version), "content_qualification": "RESEARCH",
        "specific_character_set": "ISO_IR 192", "coding_schemes": [scheme],
    }  # fmt: skip


def _number(code: Code, value: float) -> sr.NumContentItem:
    """A property of a number, without unit."""
    relation = sr.RelationshipTypeValues.HAS_PROPERTIES
    return sr.NumContentItem(code, float(value), codes.UCUM.NoUnits, relationship_type=relation)


def _probability(name: str, answer: Answer) -> sr.Measurement:
    """The probability of a class (TID 300), modified by the class, with its spread and uncorrected value."""
    measurement = sr.Measurement(probability_code(name), float(answer.probabilities[name]), codes.UCUM.NoUnits)
    content, relation = sr.ContentSequence(), sr.RelationshipTypeValues.HAS_CONCEPT_MOD
    content.append(sr.CodeContentItem(own_code("class", "Class"), class_code(name), relationship_type=relation))
    if answer.spread:
        deviation = _number(codes.SCT.StandardDeviation, answer.spread[name])
        members = "Probabilities by the members of the ensemble"
        content.extend(sr.MeasurementStatisticalProperties([deviation], description=members))
    if answer.uncorrected:
        concept = own_code("uncorrected", "Probability before correction for prevalence")
        content.append(_number(concept, answer.uncorrected[name]))
    measurement[0].ContentSequence = content
    return measurement


def _measurement_group(sources: Sources, answer: Answer, model: Model) -> sr.MeasurementsAndQualitativeEvaluations:
    """All that is said of the scan (TID 1501)."""
    assert answer.prediction is not None
    measurements = [_probability(name, answer) for name in answer.probabilities]
    if answer.agreement is not None:
        agreement = own_code("agreement", "Share of the ensemble's members with the same prediction")
        measurements.append(sr.Measurement(agreement, float(answer.agreement), codes.UCUM.NoUnits))
    tracking = model.uid("tracking", sources.series)
    algorithm = sr.AlgorithmIdentification(
        name=model.name, version=model.version, parameters=[f"checkpoint digest: {model.digest}"],
        manufacturer=MANUFACTURER,
    )  # fmt: skip
    predicted = sr.QualitativeEvaluation(own_code("prediction", "Predicted class"), class_code(answer.prediction))
    image_of = sr.SourceImageForMeasurementGroup
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(identifier="Classification of the whole scan", uid=tracking),
        finding_sites=[sr.FindingSite(codes.SCT.Lung)], algorithm_id=algorithm,
        measurements=measurements, qualitative_evaluations=[predicted],
        source_images=[image_of(h.SOPClassUID, h.SOPInstanceUID, sources.frames) for h in sources.headers],
    )  # fmt: skip
    said = [(codes.DCM.Comment, NOT_FOR_DIAGNOSIS)]
    said += [(own_code("warning", "Quality warning"), warning) for warning in answer.warnings]
    for concept, text in said:
        plain = text.encode("utf-8", "backslashreplace").decode()  # a file name in it need not be Unicode
        item = sr.TextContentItem(concept, plain, relationship_type=sr.RelationshipTypeValues.CONTAINS)
        group[0].ContentSequence.append(item)
    return group


def report_of(sources: Sources, answer: Answer, model: Model) -> sr.Comprehensive3DSR:
    """The structured report of an answer (TID 1500)."""
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=model.uid("device"), name=MANUFACTURER, manufacturer_name=MANUFACTURER, model_name=model.name,
        serial_number=model.digest,
    )  # fmt: skip
    observer = sr.ObserverContext(observer_type=codes.DCM.Device, observer_identifying_attributes=device)
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=Code("24627-2", "LN", "CT Chest"), title=codes.DCM.ImagingMeasurementReport,
        imaging_measurements=[_measurement_group(sources, answer, model)], referenced_images=sources.headers,
    )  # fmt: skip
    return sr.Comprehensive3DSR(
        evidence=sources.headers, content=content, is_complete=True, is_final=False, is_verified=False,
        **_common(sources, model, REPORT),
    )  # fmt: skip


def montage_pixels(montage: str | Path | NDArray[np.uint8], scan: str) -> NDArray[np.uint8]:
    """[H, W, 3] uint8; transparent pixels become white."""
    if isinstance(montage, np.ndarray):
        if montage.dtype != np.uint8 or montage.ndim != 3 or montage.shape[2] != 3 or 0 in montage.shape:
            raise DicomReportError(f"{scan}: montage must be [H, W, 3] uint8, got {[*montage.shape]} {montage.dtype}")
        return np.ascontiguousarray(montage)
    try:
        with Image.open(montage) as image:
            rgba = image.convert("RGBA")
    except (OSError, SyntaxError, ValueError) as error:
        raise DicomReportError(f"{scan}: its montage cannot be read as a picture ({type(error).__name__})") from error
    page = Image.new("RGBA", rgba.size, "white")
    page.alpha_composite(rgba)
    return np.asarray(page.convert("RGB"))


def montage_of(sources: Sources, pixels: NDArray[np.uint8], model: Model) -> SOPClass:
    """The secondary capture that shows a montage [H, W, 3], without references where the sources allow none."""
    left_empty = ("patient_id", "patient_name", "patient_birth_date", "patient_sex", "accession_number", "study_id")
    empty: dict[str, Any] = dict.fromkeys((*left_empty, "referring_physician_name"), "")
    image = SCImage(
        pixel_array=pixels, photometric_interpretation="RGB", bits_allocated=8, coordinate_system="PATIENT",
        patient_orientation=("L", "P"), study_instance_uid=sources.study,
        **empty, **_common(sources, model, MONTAGE),
    )  # fmt: skip
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
        item.PurposeOfReferenceCodeSequence = [sr.CodedConcept.from_code(codes.DCM.SourceImageForMontage)]
        references.append(item)
    if references:
        image.SourceImageSequence = references
    return image
