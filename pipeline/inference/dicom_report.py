"""The answer to a scan that came from DICOM, as DICOM: a structured report, and the montage as a secondary capture.

The report is a Comprehensive 3D SR with a measurement report (TID 1500): one measurement group (TID 1501) holds the
probability of each class, the predicted class, which algorithm and checkpoint said so, the quality warnings and the
slices that the network saw. Classes of the benchmark have SNOMED CT codes. What has no standard code has one of the
private scheme ``99FAIRLUNG``: ``class``, ``prediction``, ``agreement``, ``uncorrected``, ``warning``, ``C-<class>`` for
another class, and ``P-<class>`` for the probability of any class (of a name that is long or not plain, its digest).

Nobody is named. Of a source file only the tags in :data:`~.SOURCE_TAGS` are read (no name, ID, date, description,
institution or private tag), and their values are taken over one by one; the Patient and Study attributes of what is
written are empty, and ``PatientIdentityRemoved`` says YES. Kept are the UIDs of study, series, instances and frame of
reference: without them a reference is none, and an archive finds the study by its UID. One that checks the patient's
ID too will hold the objects for reconciliation; there the ID is filled in by those who may know it. Both objects say
that they are research (``ContentQualification`` RESEARCH), the report also that it is preliminary and unverified.

The UID of an instance follows from all that it holds but the times of writing. So a repeated inference gives the same
instance, which an archive takes for the one it has. A series is one model's answers to one source series.
"""

from __future__ import annotations

import hashlib
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..common.files import replacing

if TYPE_CHECKING:
    from highdicom import SOPClass

    from .answers import Answer
    from .dicom_objects import Model

# what repeating an inference changes
_CLOCK = {
    "InstanceCreationDate", "InstanceCreationTime", "ContentDate", "ContentTime", "DateOfSecondaryCapture",
    "TimeOfSecondaryCapture",
}  # fmt: skip


def write_dicom_answers(
    folder: str | Path, answer: Answer, model: Model, montage: str | Path | NDArray[np.uint8] | None = None
) -> list[Path]:
    """Write ``report.dcm`` and, with a montage, ``montage.dcm`` (what is in them: see the module).

    Each file is complete or absent. A file that already holds the same instance is left as it is; a ``montage.dcm``
    of an earlier answer goes when there is no montage now.

    Args:
        answer: of status ``ok``. Of its intake record ``files`` are referred to, which must be of one series; with
            ``shape`` and ``indices`` a single multi-frame file is referred to by the frames that were used. Its name
            is not written, as a name may identify somebody. Its warnings are written as they are.
        montage: a picture, or [H, W, 3] uint8, RGB. ``BurnedInAnnotation`` will say that it identifies nobody: it must
            show neither the scan's name nor anything else that could.

    Raises:
        DicomReportError: no answer, source files that cannot be read or referred to, or a montage that is no picture.
    """
    with _no_values_in_messages():
        # highdicom and pydicom are imported when the first report is written
        from .dicom_objects import MONTAGE, REPORT, montage_of, montage_pixels, report_of
        from .dicom_sources import read_sources

        sources = read_sources(answer)
        instances: dict[str, SOPClass] = {REPORT: report_of(sources, answer, model)}
        if montage is not None:
            instances[MONTAGE] = montage_of(sources, montage_pixels(montage, answer.scan), model)
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
    """Keep pydicom and highdicom from repeating values and UIDs; the errors raised here say what is wrong."""
    levels = {logger: logger.level for logger in map(logging.getLogger, ("highdicom", "pydicom"))}
    for logger in levels:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def _seal(instance: SOPClass) -> None:
    """Say that nobody is named, and give the instance the UID that follows from its content."""
    from pydicom.dataset import Dataset

    from .dicom_objects import uid_of

    instance.PatientIdentityRemoved = "YES"
    instance.DeidentificationMethod = ["Patient and study attributes left empty", "UIDs retained"]
    for equipment in instance.ContributingEquipmentSequence:
        equipment.pop("ContributionDateTime", None)  # the time of writing, which is said once
    lasting = Dataset()
    lasting.update({element.tag: element for element in instance if element.keyword not in _CLOCK})
    buffer = io.BytesIO()
    lasting.save_as(buffer, implicit_vr=False, little_endian=True)
    uid = uid_of(hashlib.sha256(buffer.getbuffer()).hexdigest())
    instance.SOPInstanceUID = instance.file_meta.MediaStorageSOPInstanceUID = uid


def _write(instance: SOPClass, path: Path) -> None:
    """Atomically; a file with the same instance stays, so that in a folder a UID never has two times of writing."""
    import pydicom

    with suppress(Exception):  # missing, or anything that is not ours: it is written anew
        old = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SOPInstanceUID"])
        if old.get("SOPInstanceUID") == instance.SOPInstanceUID:
            return
    with replacing(path) as part:
        instance.save_as(part, enforce_file_format=True)
