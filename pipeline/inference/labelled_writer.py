"""The engine handler that writes the predictions of labelled scans, a row a scan."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from ignite.engine import Engine, Events

from ..common.distributed import gather_interleaved, is_primary, world_size
from ..common.files import replacing, told
from ..common.tables import csv_bytes, csv_rows
from ..data.groups import group_columns
from ..evaluation.predictions import PROBABILITY, SYNTHETIC
from .about_scans import AboutScans
from .parts import own_part

logger = logging.getLogger(__name__)


class LabelledPredictionWriter:
    """Writes a row a labelled scan: scan, label, the group columns, prediction, prob_<class>, and patient and site.

    Probabilities are the softmax of the raw logits: the loss may carry the class prior, so they are the posterior under
    the class frequencies that :class:`~.TrainingRecord` saves. Group columns hold what the cohort says. The rows reach
    the disk batch by batch, in ``<path>.part``, which becomes ``path`` after the epoch.

    Args:
        group_by: one or several group columns; the batch has ``group_values``, a list of N values a column.
        best_path: also copy the table here in epochs whose key metric is the best so far.
        synthetic: whether the scans are phantoms; a column ``synthetic`` (yes) then goes wherever the table goes.
        about: the patient, as a keyed digest, and the site, as far as the cohort has them.
    """

    def __init__(
        self, path: str | Path, class_names: Sequence[str], group_by: str | Sequence[str],
        best_path: str | Path | None = None, synthetic: bool = False, about: AboutScans | None = None,
    ) -> None:  # fmt: skip
        self.path = Path(path)
        self.class_names = tuple(class_names)
        self.best_path = None if best_path is None else Path(best_path)
        self.mark = ["yes"] if synthetic else []
        self.columns = ["scan", "label", *group_columns(group_by), "prediction"]
        self.columns += [*(PROBABILITY + name for name in self.class_names), *([SYNTHETIC] if synthetic else [])]
        self.about = about
        self.columns += [] if about is None else about.columns

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._complete)

    def _start(self, engine: Engine) -> None:
        if self.about is not None:
            self.about.share()
        with told(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            own_part(self.path).write_bytes(csv_bytes([self.columns]))

    def _add(self, engine: Engine) -> None:
        batch, rows = engine.state.batch, []
        for i, row in enumerate(torch.softmax(engine.state.output["pred"].float(), dim=1).cpu()):
            groups = [column[i] for column in batch["group_values"]]
            answer = [self.class_names[int(row.argmax())], *(f"{p:.6f}" for p in row.tolist())]
            if not row.isfinite().all():
                answer = [""] * len(answer)
                logger.warning("%s has no answer: the network's output is not finite", batch["scan"][i])
            scan, label = batch["scan"][i], self.class_names[int(batch["label"][i])]
            rows.append([scan, label, *groups, *answer, *self.mark, *(self.about.row(scan) if self.about else [])])
        with told(self.path), own_part(self.path).open("ab") as file:
            file.write(csv_bytes(rows))

    def _complete(self, engine: Engine) -> None:
        part = own_part(self.path)
        if world_size() > 1:
            rows = gather_interleaved(csv_rows(part.read_bytes())[1:])
            if not is_primary():
                part.unlink()
                return
            with told(self.path):
                part.write_bytes(csv_bytes([self.columns, *rows]))
        part.replace(self.path)
        if self.best_path is not None and engine.state.best_metric_epoch == engine.state.epoch:
            with replacing(self.best_path) as best:
                shutil.copyfile(self.path, best)
