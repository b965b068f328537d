"""What a DICOM answer takes over from the scan's own files: references and geometry, and nothing that names anybody."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage, generate_uid
from pydicom.valuerep import PersonName

from fairlung.transforms.remote import fetched_files
from fairlung.transforms.scan import Refusal

from ..common.errors import UserError
from .answers import Answer

# All that is read of a source file.
REFERENCE_TAGS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
# read where the objects are to be filed with the patient: modules Patient, General Study and Patient Study
IDENTITY_TAGS = (
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientBirthTime", "PatientSex",
    "PatientIdentityRemoved", "DeidentificationMethod", "StudyDate", "StudyTime", "AccessionNumber", "StudyID",
    "ReferringPhysicianName", "StudyDescription", "PatientAge", "PatientSize", "PatientWeight",
)  # fmt: skip
GEOMETRY = {"PixelSpacing": 2, "SliceThickness": 1, "ImagePositionPatient": 3, "ImageOrientationPatient": 6}
LOSSY_TAGS = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
FRAME_TAGS = ("NumberOfFrames", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
SOURCE_TAGS = (*REFERENCE_TAGS, "FrameOfReferenceUID", "Rows", "Columns", *GEOMETRY, *LOSSY_TAGS, *FRAME_TAGS)
_UID = re.compile(r"[0-9.]{1,64}")  # leading zeros, which the standard forbids, occur and are referenced as they are


class DicomReportError(UserError, ValueError):
    """A scan's answer cannot be written as DICOM; the message names the scan and the cause, and no identifier."""


class Sources(NamedTuple):
    """Headers with what a reference needs and nothing else."""

    headers: list[Dataset]  # empty where they cannot be referred to
    frames: list[int] | None  # those used of a single multi-frame file
    lossy: Dataset  # what was said of lossy compression
    identity: Dataset  # patient and study; empty unless it was asked for
    study: str  # UID
    series: str  # UID
    problem: str = ""  # why they cannot be referred to


def read_sources(answer: Answer, identity: bool = False) -> Sources:
    """What an answer in DICOM takes over; with ``identity`` also :data:`IDENTITY_TAGS`.

    Files without a valid UID, as those of some public data sets, and files of several series cannot be referred to.
    The study's UID is then the files' own if they agree on one, else it follows from their content, as that of the
    series does.

    DicomReportError: no answer, no DICOM, or files that cannot be read.
    """
    scan, files = answer.scan, answer.intake.get("files")
    if answer.prediction is None:
        raise DicomReportError(f"{scan}: there is no answer to write")
    if not files:
        raise DicomReportError(f"{scan}: no DICOM file to refer to; only scans from DICOM are answered in DICOM")
    try:
        with fetched_files(files) as local:
            return _sources(answer, local, identity)
    except Refusal as error:
        raise DicomReportError(f"{scan}: its files cannot be fetched again: {error}") from None


def _sources(answer: Answer, files: Sequence[str], identity: bool) -> Sources:
    scan, tags = answer.scan, [*SOURCE_TAGS, *IDENTITY_TAGS * identity]
    headers: list[Dataset] = []
    problem = ""
    for number, path in enumerate(files, start=1):
        which = f"{scan}: source file {number} of {len(files)}"
        try:
            # force: a file without preamble may still be DICOM; another file has none of the tags
            read = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=tags)
            if not len(read):
                raise ValueError("no DICOM")
            header = _anonymous_header(read)
            if not headers:
                frames, lossy = _used_frames(read, answer.intake), _lossy(read)
                known = _identity(read) if identity else Dataset()
        except Exception as error:  # the parser raises many kinds, and may quote what it read
            raise DicomReportError(f"{which} cannot be read as DICOM ({type(error).__name__})") from None
        headers.append(header)
        if not problem and (found := _problem(header)):
            problem = f"{which} cannot be referred to: {found}"
    studies, series = ({header[tag].value for header in headers} for tag in ("StudyInstanceUID", "SeriesInstanceUID"))
    for uids, what in ((studies, "studies"), (series, "series")):
        if len(uids) > 1 and not problem:
            problem = f"{scan}: its source files are of {len(uids)} {what}; a report is about one"
    if problem:
        own = next(iter(studies)) if len(studies) == 1 else ""
        content = _content_digest(files)
        study = own if _UID.fullmatch(own) else _derived("study", content)
        return Sources([], None, lossy, known, study, _derived("series", content), problem)
    distinct: dict[str, Dataset] = {}
    for header in headers:
        distinct.setdefault(header.SOPInstanceUID, header)
    frames = frames if len(distinct) == 1 else None
    return Sources([*distinct.values()], frames, lossy, known, *studies, *series)


def _content_digest(files: Sequence[str]) -> str:
    """SHA-256 of what is in files, of which nobody knows who does not have them."""
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _derived(what: str, content: str) -> str:
    """The UID, always the same one, of what has none; not that of another implementation or of a name."""
    return str(generate_uid(entropy_srcs=["fairlung-source", what, content]))


def _identity(read: Dataset) -> Dataset:
    """Patient and study as the source has them, in Unicode; what cannot be decoded is left out."""
    known = Dataset()
    for tag in IDENTITY_TAGS:
        with suppress(Exception):  # of odd values pydicom raises many kinds
            value = read.get(tag)
            if value is not None:
                setattr(known, tag, str(value) if isinstance(value, PersonName) else value)
    return known


def _numbers(read: Dataset, tag: str) -> list[float]:
    """The finite numbers of an optional attribute; none when it holds anything else."""
    try:
        values = np.atleast_1d(read.get(tag) or []).astype(float)
    except (TypeError, ValueError, OverflowError):
        return []
    return values.tolist() if np.isfinite(values).all() else []


def _anonymous_header(read: Dataset) -> Dataset:
    """The attributes of a source that are needed, beside the empty ones that highdicom asks every source for."""
    header = Dataset()
    for tag in REFERENCE_TAGS:
        setattr(header, tag, str(read.get(tag, "")))
    if _UID.fullmatch(frame_of_reference := str(read.get("FrameOfReferenceUID", ""))):
        header.FrameOfReferenceUID = frame_of_reference
    header.Rows, header.Columns = (int(read.get(tag) or 0) for tag in ("Rows", "Columns"))
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
    said = Dataset()
    if read.get("LossyImageCompression") == "01":
        said.LossyImageCompression = "01"
        said.LossyImageCompressionRatio = [f"{value:.6g}" for value in _numbers(read, "LossyImageCompressionRatio")]
        methods = np.atleast_1d(read.get("LossyImageCompressionMethod") or []).tolist()
        said.LossyImageCompressionMethod = [name for name in methods if re.fullmatch(r"ISO_\d+_\d+", name)]
    return said
