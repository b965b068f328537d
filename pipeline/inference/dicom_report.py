"""The answer to a scan that came from DICOM, as DICOM: a structured report, and the montage as a secondary capture.

The report is a Comprehensive 3D SR with a measurement report (TID 1500): one measurement group (TID 1501) holds the
probability of each class, the predicted class, which algorithm and checkpoint said so, the quality warnings and the
slices that the network saw. Classes of the benchmark have SNOMED CT codes. What has no standard code has one of the
private scheme ``99FAIRLUNG``: ``class``, ``prediction``, ``agreement``, ``uncorrected``, ``warning``, ``C-<class>`` for
another class, and ``P-<class>`` for the probability of any class (of a name that is long or not plain, its digest).

Nobody is named unless that is asked for. Of a source file only the tags in :data:`~.SOURCE_TAGS` are read (no name, ID,
date, description, institution or private tag), and their values are taken over one by one; the Patient and Study
attributes of what is written are empty, and ``PatientIdentityRemoved`` says YES. Kept are the UIDs of study, series,
instances and frame of reference: without them a reference is none. An archive that goes by the patient's ID, as Orthanc
does, files such objects with a patient and a study of their own; ``identity="keep"`` takes over what it files by
(:data:`~.IDENTITY_TAGS`). Both objects say that they are research (``ContentQualification`` RESEARCH), the report also
that it is preliminary and unverified.

The UID of an instance follows from all that it holds but the times of writing. So a repeated inference gives the same
instance, which an archive takes for the one it has. A series is one model's answers to one source series.
"""

from __future__ import annotations

import hashlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fairlung.transforms.checks import check_setting

from .. import __version__
from ..common.errors import UserError
from ..common.files import ScanPaths, replacing

if TYPE_CHECKING:
    from highdicom import SOPClass
    from ignite.engine import Engine
    from pydicom.dataset import Dataset

    from .answers import Answer
    from .dicom_objects import Model

IDENTITIES = REMOVE, KEEP = ("remove", "keep")  # what becomes of patient and study

# what repeating an inference changes
_CLOCK = {f"{of}{what}" for of in ("InstanceCreation", "Content") for what in ("Date", "Time")}
_CLOCK |= {"DateOfSecondaryCapture", "TimeOfSecondaryCapture"}


def write_dicom_answers(
    folder: str | Path, answer: Answer, model: Model, montage: str | Path | NDArray[np.uint8] | None = None,
    identity: str = REMOVE,
) -> list[Path]:  # fmt: skip
    """Write ``report.dcm`` and, with a montage, ``montage.dcm`` (what is in them: see the module).

    Each file is complete or absent. A file that already holds the same instance is left as it is; one of an earlier
    answer goes when it is not made now.

    Args:
        answer: of status ``ok``. Of its intake record ``files`` are referred to, which must be of one series; with
            ``shape`` and ``indices`` a single multi-frame file is referred to by the frames that were used. Its name
            is not written, as a name may identify somebody. Its warnings are written as they are.
        montage: a picture, or [H, W, 3] uint8, RGB. ``BurnedInAnnotation`` will say that it identifies nobody: it must
            show neither the scan's name nor anything else that could.
        identity: ``remove``, or ``keep`` the patient and the study of the source: the objects then name somebody.

    DicomReportError: no answer, source files that cannot be read or referred to, or a montage that is no picture. Of
    files that cannot be referred to, as they lack a UID, the montage is written all the same: it needs no reference.
    """
    check_setting("dicom_identity", identity, identity in IDENTITIES, f"one of {', '.join(IDENTITIES)}")
    folder = Path(folder)
    with _no_values_in_messages():
        # highdicom and pydicom are imported when the first report is written
        from .dicom_objects import MONTAGE, REPORT, montage_of, montage_pixels, report_of
        from .dicom_sources import DicomReportError, read_sources

        instances: dict[str, SOPClass] = {}
        try:
            sources = read_sources(answer, identity == KEEP)
            if not sources.problem:
                instances[REPORT] = report_of(sources, answer, model)
            if montage is not None:
                instances[MONTAGE] = montage_of(sources, montage_pixels(montage, answer.scan), model)
            for instance in instances.values():
                _seal(instance, sources.identity)
            if instances:
                folder.mkdir(parents=True, exist_ok=True)
            for name, instance in instances.items():
                _write(instance, folder / name)
        finally:
            for name in {REPORT, MONTAGE} - instances.keys():
                (folder / name).unlink(missing_ok=True)
        if sources.problem:
            alone = "; the montage was written, without references" if instances else ""
            raise DicomReportError(sources.problem + alone)
    return [folder / name for name in instances]


@contextmanager
def _no_values_in_messages() -> Iterator[None]:
    """Keep pydicom and highdicom from repeating values and UIDs; the errors raised here say what is wrong."""
    levels = {library: library.level for library in map(logging.getLogger, ("highdicom", "pydicom"))}
    for library in levels:
        library.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        for library, level in levels.items():
            library.setLevel(level)


def _seal(instance: SOPClass, identity: Dataset) -> None:
    """Say who is named, or that nobody is, and give the instance the UID that follows from its content."""
    from pydicom.dataset import Dataset

    from .dicom_objects import uid_of

    if identity:
        instance.update(identity)
    else:
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


def model_of(checkpoints: Sequence[str | Path]) -> Model:
    """fairlung, its version, and the SHA-256 of the checkpoint's file; of several, of their sorted digests."""
    from .dicom_objects import Model

    digests = []
    for path in checkpoints:
        with Path(path).open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    if len(digests) > 1:
        digests = [hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()]
    return Model("fairlung", __version__, digests[0])


class DicomWriter:
    """Engine handler: ``<folder>/<scan>/report.dcm`` and ``montage.dcm`` for each answered scan that came from DICOM.

    Attach it after :class:`~.PredictionWriter` and what makes the montages: ``montage_path`` gives for a scan's name a
    picture without that name in it, or None. A report that cannot be written is a warning in the answer.

    Args:
        identity: of patient and study: ``remove`` or ``keep`` (:func:`write_dicom_answers`).
    """

    def __init__(
        self, folder: str | Path, checkpoints: Sequence[str | Path], montage_path: Callable[[str], Path | None],
        identity: str = REMOVE,
    ) -> None:  # fmt: skip
        check_setting("dicom_identity", identity, identity in IDENTITIES, f"one of {', '.join(IDENTITIES)}")
        self.folder, self.checkpoints, self.montage_path = Path(folder), tuple(checkpoints), montage_path
        self.identity = identity
        self._name = ScanPaths()
        self._model: Model | None = None

    def attach(self, engine: Engine) -> None:
        if find_spec("highdicom") is None:
            raise UserError("dicom_out needs highdicom: pip install 'fairlung[dicom-out]'")
        from ignite.engine import Events

        from .answers import AnswerEvents

        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(AnswerEvents.ANSWERED, self._write)

    def _start(self, engine: Engine) -> None:
        if self._model is None:  # one process answers by one model, whatever becomes of the file
            self._model = model_of(self.checkpoints)

    def _write(self, engine: Engine) -> None:
        assert self._model is not None
        for answer in engine.state.answers:
            if answer.status != "ok":
                continue
            try:
                folder = self.folder / self._name(answer.scan)
                write_dicom_answers(folder, answer, self._model, self.montage_path(answer.scan), self.identity)
            except Exception as error:  # the answer must not be lost by its report
                answer.lacks("report", error)
