"""The two DICOM objects of an answer: the structured report and the montage as a secondary capture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from .dicom_codes import MAX_MEANING, SCHEME, class_code, own_code, plain_text, probability_code, uid_of
from .dicom_sources import DicomReportError, Sources

if TYPE_CHECKING:
    from highdicom import SOPClass
    from highdicom.sr import Comprehensive3DSR, Measurement, MeasurementsAndQualitativeEvaluations, NumContentItem
    from pydicom.sr.coding import Code

    from .answers import Answer

REPORT = "report.dcm"
MONTAGE = "montage.dcm"
MANUFACTURER = "fairlung"
NOT_FOR_DIAGNOSIS = "Research software, not a medical device. Not for diagnosis. Not verified by a physician."
SERIES_DESCRIPTION = "fairlung: research only, not for diagnosis"
SERIES_NUMBERS = {REPORT: 9901, MONTAGE: 9902}  # behind those of scanners and workstations


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
            if not 1 <= len(value) <= MAX_MEANING or plain_text(value) != value:
                raise ValueError(f"model {what} must be 1 to {MAX_MEANING} printable characters, got {value!r}")

    def uid(self, *what: object) -> str:
        """The UID of something that this model made."""
        return uid_of(*what, self.name, self.version, self.digest)


def _common(sources: Sources, model: Model, kind: str) -> dict[str, Any]:
    """What both objects are told about their series and equipment."""
    from highdicom.coding_schemes import CodingSchemeIdentificationItem

    scheme = CodingSchemeIdentificationItem(
        SCHEME, name="fairlung classes and answers", version=__version__, responsible_organization=MANUFACTURER
    )
    return {
        "series_instance_uid": model.uid(kind, sources.first.SeriesInstanceUID),
        "series_number": SERIES_NUMBERS[kind],
        "sop_instance_uid": uid_of(kind),  # until the content is known
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
            own_code("class", "Class"), class_code(name), relationship_type=sr.RelationshipTypeValues.HAS_CONCEPT_MOD
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
        concept = own_code("uncorrected", "Probability before correction for prevalence")
        content.append(_number(concept, answer.uncorrected[name]))
    measurement[0].ContentSequence = content
    return measurement


def _measurement_group(sources: Sources, answer: Answer, model: Model) -> MeasurementsAndQualitativeEvaluations:
    """All that is said of the scan (TID 1501)."""
    from highdicom import sr
    from pydicom.sr.codedict import codes

    assert answer.prediction is not None
    measurements = [_probability(name, answer) for name in answer.probabilities]
    if answer.agreement is not None:
        agreement = own_code("agreement", "Share of the ensemble's members with the same prediction")
        measurements.append(sr.Measurement(agreement, float(answer.agreement), codes.UCUM.NoUnits))
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            identifier="Classification of the whole scan",
            uid=model.uid("tracking", sources.first.SeriesInstanceUID),
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
            sr.QualitativeEvaluation(own_code("prediction", "Predicted class"), class_code(answer.prediction))
        ],
        source_images=[
            sr.SourceImageForMeasurementGroup(header.SOPClassUID, header.SOPInstanceUID, sources.frames)
            for header in sources.headers
        ],
    )
    said = [(codes.DCM.Comment, NOT_FOR_DIAGNOSIS)]
    said += [(own_code("warning", "Quality warning"), warning) for warning in answer.warnings]
    for concept, text in said:
        group[0].ContentSequence.append(
            sr.TextContentItem(
                concept,
                text.encode("utf-8", "backslashreplace").decode(),  # a file name in it need not be Unicode
                relationship_type=sr.RelationshipTypeValues.CONTAINS,
            )
        )
    return group


def report_of(sources: Sources, answer: Answer, model: Model) -> Comprehensive3DSR:
    """The structured report of an answer (TID 1500)."""
    from highdicom import sr
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    device = sr.DeviceObserverIdentifyingAttributes(
        uid=model.uid("device"),
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
        imaging_measurements=[_measurement_group(sources, answer, model)],
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


def montage_pixels(montage: str | Path | NDArray[np.uint8], scan: str) -> NDArray[np.uint8]:
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


def montage_of(sources: Sources, pixels: NDArray[np.uint8], model: Model) -> SOPClass:
    """The secondary capture that shows a montage [H, W, 3]."""
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
