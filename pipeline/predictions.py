"""Prediction tables: one row a scan, written as they are made, and the summary of a labelled table."""

from __future__ import annotations

import csv
import json
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from .distributed import gather_interleaved, is_primary, rank, world_size
from .groups import group_columns
from .labelled_predictions import SYNTHETIC, load_predictions
from .metrics import fairness_summary

logger = logging.getLogger(__name__)

# a file name need not be Unicode; it must not stop the others' answers
TEXT: dict[str, Any] = {"newline": "", "encoding": "utf-8", "errors": "backslashreplace"}
EVALUATION_FILES = ("predictions.csv", "metrics.json", "audit.json", "confusion.png")
# patterns of what is made of them later; with the files above, all that an evaluation leaves
REPORT_FILES = ("report.html", "report.md", "report_files/*.png")
REVIEW_FILES = ("cells.csv", *REPORT_FILES, "errors/errors.json", "errors/*.png")
EXIT_SOME_FAILED = 3  # exit code of an inference in which some scans failed and the others are done


class PredictionWriter:
    """Writes a row a scan: names, prediction, one probability a class; labelled or new scans alike.

    Probabilities are the softmax of the raw logits: the loss carried the class prior, so they estimate the posterior
    under balanced classes.

    Labelled scans (with ``group_by``) have columns scan, label, the group columns, prediction, prob_<class>, and those
    of a cohort with phantoms also ``synthetic`` (yes), which goes wherever the table goes. A group column holds what
    the cohort says, so that the table can be judged by any of them later. New scans have scan, prediction,
    prob_<class>, status (ok|failed), reason; a failed scan has no prediction.

    Rows reach the disk batch by batch, in ``<path>.part``, which becomes ``path`` when the epoch is complete.

    Args:
        path: the CSV.
        class_names: C names.
        group_by: name of the group column, or names of several; None for new scans. The batch has their values as
            ``group_values``, a list of N values a column.
        best_path: also copy the table here in epochs whose key metric is the best so far.
        synthetic: whether labelled scans are phantoms.
    """

    def __init__(
        self,
        path: str | Path,
        class_names: Sequence[str],
        group_by: str | Sequence[str] | None = None,
        best_path: str | Path | None = None,
        synthetic: bool = False,
    ) -> None:
        self.path = Path(path)
        self.class_names = tuple(class_names)
        self.group_columns = None if group_by is None else group_columns(group_by)
        probabilities = [f"prob_{name}" for name in self.class_names]
        if self.group_columns is None:
            self.columns = ["scan", "prediction", *probabilities, "status", "reason"]
        else:
            self.columns = ["scan", "label", *self.group_columns, "prediction", *probabilities]
            self.columns += [SYNTHETIC] if synthetic else []
        self.best_path = None if best_path is None else Path(best_path)
        self.failed = 0
        self.done = 0

    @property
    def _part(self) -> Path:
        return self.path.with_name(f"{self.path.name}.part{rank() or ''}")

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._append)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._complete)

    def _start(self, engine: Engine) -> None:
        self.failed = self.done = 0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._part.open("w", **TEXT) as file:
            csv.writer(file).writerow(self.columns)

    def _append(self, engine: Engine) -> None:
        probabilities = torch.softmax(engine.state.output["pred"].float(), dim=1).cpu()
        with self._part.open("a", **TEXT) as file:
            writer = csv.writer(file)
            for i, row in enumerate(probabilities):
                writer.writerow(self._row(engine.state.batch, i, row))

    def _row(self, batch: dict[str, Any], i: int, probabilities: torch.Tensor) -> list[str]:
        prediction = self.class_names[int(probabilities.argmax())]
        answer = [prediction, *(f"{p:.6f}" for p in probabilities.tolist())]
        if self.group_columns is not None:
            groups = [column[i] for column in batch["group_values"]]
            self.done += 1
            mark = ["yes"] if SYNTHETIC in self.columns else []
            return [batch["scan"][i], self.class_names[int(batch["label"][i])], *groups, *answer, *mark]
        reason = batch["reason"][i] or ("" if probabilities.isfinite().all() else "the network's output is not finite")
        if reason:
            self.failed += 1
            logger.warning("%s failed: %s", batch["scan"][i], reason)
            return [batch["scan"][i], *[""] * len(answer), "failed", reason]
        self.done += 1
        return [batch["scan"][i], *answer, "ok", ""]

    def _complete(self, engine: Engine) -> None:
        if world_size() > 1:
            header, *rows = self._part.read_text(encoding="utf-8").splitlines(keepends=True)
            rows = gather_interleaved(rows)
            if not is_primary():
                self._part.unlink()
                return
            self._part.write_text("".join([header, *rows]), encoding="utf-8", newline="")
        self._part.replace(self.path)
        if self.best_path is not None and engine.state.best_metric_epoch == engine.state.epoch:
            shutil.copyfile(self.path, self.best_path)

    def report(self) -> None:
        """Say where the predictions are; exit with :data:`EXIT_SOME_FAILED` when scans failed."""
        logger.info("%d scans answered, %d failed: %s", self.done, self.failed, self.path)
        if self.failed:
            sys.exit(EXIT_SOME_FAILED)


def write_evaluation(
    predictions: str | Path,
    class_names: Sequence[str],
    group_names: Sequence[str],
    group_by: str | Sequence[str] = "sex",
    split: str = "",
    checkpoint: str = "",
) -> dict[str, Any]:
    """Summarise a labelled prediction table beside it: metrics.json, and confusion.png where matplotlib is installed.

    Returns:
        the content of metrics.json: split, checkpoint, whether the scans are synthetic, class and group names, the
        group columns, confusion counts, and ``metrics`` (:func:`~.metrics.fairness_summary`).
    """
    predictions = Path(predictions)
    columns = group_columns(group_by)
    # one scan whose output is not finite must not lose the others: what counts here is the predicted class
    table = load_predictions(predictions, class_names, group_names, columns, with_probabilities=False)
    confusion = torch.from_numpy(table.confusion())
    result = {
        "split": split,
        "checkpoint": checkpoint,
        "synthetic": table.synthetic,
        "class_names": list(class_names),
        "group_names": list(group_names),
        "group_by": list(columns),
        "confusion": confusion.tolist(),
        "metrics": fairness_summary(confusion, class_names, group_names),
    }
    predictions.with_name("metrics.json").write_text(json.dumps(result, indent=2) + "\n")
    try:
        from .figures import confusion_figure

        figure = confusion_figure(confusion.numpy(), list(class_names), list(group_names), synthetic=table.synthetic)
    except ImportError as error:  # a training must not end on a missing picture
        logger.warning("no picture of the confusion matrices: %s", error)
    else:
        figure.savefig(predictions.with_name("confusion.png"), dpi=150, bbox_inches="tight")
    return result
