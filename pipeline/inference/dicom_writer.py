"""DICOM answers during an inference: a handler that writes :mod:`.dicom_report`'s objects for each answered scan."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ignite.engine import Engine, Events

from .. import __version__
from ..common.files import ScanPaths
from .dicom_report import write_dicom_answers

if TYPE_CHECKING:
    from .dicom_objects import Model

logger = logging.getLogger(__name__)


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
    picture without that name in it, or None. Objects that cannot be written are a warning that names the scan; the
    answer stands in the table all the same.
    """

    def __init__(
        self, folder: str | Path, checkpoints: Sequence[str | Path], montage_path: Callable[[str], Path | None]
    ) -> None:
        self.folder, self.checkpoints, self.montage_path = Path(folder), tuple(checkpoints), montage_path
        self._name = ScanPaths()
        self._model: Model | None = None

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._write)

    def _start(self, engine: Engine) -> None:
        if self._model is None:  # one process answers by one model, whatever becomes of the file
            self._model = model_of(self.checkpoints)

    def _write(self, engine: Engine) -> None:
        assert self._model is not None
        for answer in engine.state.answers:
            if answer.status != "ok" or answer.intake.get("kind") != "dicom":
                continue
            try:
                folder = self.folder / self._name(answer.scan)
                write_dicom_answers(folder, answer, self._model, self.montage_path(answer.scan))
            except Exception as error:  # the answer must not be lost by its report
                logger.warning("%s: no DICOM report: %s: %s", answer.scan, type(error).__name__, error)
