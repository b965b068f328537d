"""Prediction tables: one row a scan, written as they are made, and the summary of a labelled table."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor

from ..common.distributed import gather_interleaved, is_primary, rank, world_size
from ..common.errors import EXIT_SOME_FAILED, UserError
from ..common.files import append_durably, encoded, finite, replace_durably, whole_records
from ..data.groups import group_columns
from ..data.intake_records import SEPARATOR
from ..evaluation.predictions import POSTPROCESS, PROBABILITY, SYNTHETIC
from .answers import Answer, answer_scans

if TYPE_CHECKING:
    from ..postprocessing.fitted import Fitted
import logging

logger = logging.getLogger(__name__)


SPREAD = "spread_"  # before the class name in the column of the members' standard deviation
AGREEMENT = "agreement"
NOT_UNICODE = re.compile("[\ud800-\udfff]")
ESCAPED = re.compile(r"\\(udc[89a-f][0-9a-f])")  # what TEXT makes of a byte that is not Unicode


class PredictionTableError(UserError, ValueError):
    """A table of predictions that rows cannot be added to; the message says why and what to do."""


def _csv(rows: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return encoded(text.getvalue())


def _json_line(record: Mapping[str, Any]) -> bytes:
    """An object on one line; what is not Unicode as the table writes it, and what is no number as null."""
    text = json.dumps(finite(record), ensure_ascii=False, allow_nan=False)
    return NOT_UNICODE.sub(lambda found: f"\\\\u{ord(found[0]):04x}", text).encode() + b"\n"


def _json_list(lines: Iterable[bytes]) -> bytes:
    return b"[\n" + b",\n".join(line.rstrip(b"\n") for line in lines) + b"\n]\n"


class PredictionWriter:
    """Writes a row a scan: names, prediction, one probability a class; labelled or new scans alike.

    Probabilities are the softmax of the raw logits: the loss carried the class prior, so they estimate the posterior
    under balanced classes. ``correction`` maps them to another prior.

    Labelled scans (with ``group_by``) have columns scan, label, the group columns, prediction, prob_<class>, and those
    of a cohort with phantoms also ``synthetic`` (yes), which goes wherever the table goes. A group column holds what
    the cohort says, so that the table can be judged by any of them later.

    New scans have scan, prediction, prob_<class>, for an ensemble also spread_<class> and agreement, for corrected
    probabilities also ``postprocess`` (what was done), then status (ok|failed|skipped), reason, warnings: see
    :class:`Answer`. A scan without an answer has no prediction and no numbers. Beside the table stands a JSON of the
    same name: a list of objects in the same order, with numbers in full, the record of how the scan was read (without
    its files), the probabilities before a correction (``uncorrected``) and the ``prevalence`` corrected for. After each
    batch ``engine.state.answers`` holds its answers, a list of :class:`Answer` in the order of the batch, so that
    handlers attached after this one show the same numbers.

    Rows reach the disk batch by batch, in ``<path>.part``, which becomes ``path`` when the epoch is complete.

    With ``append``, rows are added to ``path`` itself, batch by batch, so that a process that is killed loses the batch
    in work at most. A row that a kill cut off is dropped when the next process starts, and its scan is not among
    :attr:`answered`. The JSON is brought up to date after each epoch, from a journal beside it. A scan that has a row
    keeps it. One process at a time may add to a table.

    Args:
        path: the CSV.
        class_names: C names.
        group_by: name of the group column, or names of several; None for new scans. The batch has their values as
            ``group_values``, a list of N values a column.
        best_path: also copy the table here in epochs whose key metric is the best so far.
        synthetic: whether labelled scans are phantoms.
        members: networks that answer, M: 1, or of an :class:`~.Ensemble`. New scans only.
        correction: what is done to the probabilities (:class:`~.Fitted`); new scans only.
        append: keep the rows of a table that is there and add to it; new scans only.

    Raises:
        ValueError: a setting of new scans for labelled ones, or ``members`` below 1.
    """

    def __init__(
        self,
        path: str | Path,
        class_names: Sequence[str],
        group_by: str | Sequence[str] | None = None,
        best_path: str | Path | None = None,
        synthetic: bool = False,
        members: int = 1,
        correction: Fitted | None = None,
        append: bool = False,
    ) -> None:
        if members < 1:
            raise ValueError(f"members must be at least 1, got {members}")
        if group_by is not None and (members > 1 or correction is not None or append):
            raise ValueError("members, correction and append are for new scans, and group_by makes labelled ones")
        self.path = Path(path)
        self.class_names = tuple(class_names)
        self.group_columns = None if group_by is None else group_columns(group_by)
        self.members, self.correction, self.append = members, correction, append
        self.postprocess = "" if correction is None else _stated(correction)
        probabilities = [PROBABILITY + name for name in self.class_names]
        if self.group_columns is None:
            spread = [*(SPREAD + name for name in self.class_names), AGREEMENT] if members > 1 else []
            changed = [POSTPROCESS] if correction is not None else []
            self.columns = ["scan", "prediction", *probabilities, *spread, *changed, "status", "reason", "warnings"]
        else:
            self.columns = ["scan", "label", *self.group_columns, "prediction", *probabilities]
            self.columns += [SYNTHETIC] if synthetic else []
        self.best_path = None if best_path is None else Path(best_path)
        self.json_path = self.path.with_suffix(".json")
        self.counts: Counter[str] = Counter()  # rows by status, and of those answered the ones "with warnings"
        self._answered: set[str] = set()
        self._recovered = False

    @property
    def answered(self) -> set[str]:
        """With ``append``, the names of the scans that have a row, whatever their status; else nothing.

        Raises:
            PredictionTableError: ``path`` is a table of other columns, or no table.
        """
        self.recover()
        return self._answered

    def recover(self) -> None:
        """With ``append``, mend the table that is there, before rows are added; see :attr:`answered` for the errors."""
        if self.append:
            self._recover()

    @property
    def _part(self) -> Path:
        return self.path.with_name(f"{self.path.name}.part{rank() or ''}")

    @property
    def _json_part(self) -> Path:
        return self.json_path.with_name(f"{self.json_path.name}.part{rank() or ''}")

    @property
    def _journal(self) -> Path:
        """With ``append``: objects of rows that the JSON does not have yet. Another name than that of a broken run."""
        return self.json_path.with_name(f"{self.json_path.name}l.part")

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._complete)

    def answer(self, batch: Mapping[str, Any], logits: Tensor) -> list[Answer]:
        """The answers to a batch of new scans (:func:`answer_scans`); nothing is written or counted.

        Raises:
            ValueError: the logits are not those of ``members`` networks.
        """
        given = 1 if logits.ndim == 2 else logits.shape[1]
        if given != self.members:
            raise ValueError(f"members is {self.members}, but the logits {list(logits.shape)} are of {given}")
        return answer_scans(batch, logits, self.class_names, self.correction)

    def cells(self, answer: Answer) -> list[str | float | None]:
        """The row of an answer, a value a column; None where there is none."""
        ok, classes = answer.status == "ok", self.class_names
        spread = [answer.spread[name] if answer.spread else None for name in classes] if self.members > 1 else []
        return [
            answer.scan,
            answer.prediction,
            *(answer.probabilities[name] if ok else None for name in classes),
            *spread,
            *([answer.agreement] if self.members > 1 else []),
            *([self.postprocess] if self.correction is not None else []),
            answer.status,
            answer.reason,
            SEPARATOR.join(answer.warnings),
        ]

    def record(self, answer: Answer) -> dict[str, Any]:
        """The object of an answer in the JSON."""
        return {
            "scan": answer.scan,
            "status": answer.status,
            "reason": answer.reason,
            "prediction": answer.prediction,
            "probabilities": answer.probabilities,
            "spread": answer.spread,
            "agreement": answer.agreement,
            "uncorrected": answer.uncorrected,
            "prevalence": self._prevalence,
            "warnings": answer.warnings,
            "intake": {name: value for name, value in answer.intake.items() if name != "files"},
        }

    @property
    def _prevalence(self) -> dict[str, float] | None:
        return None if self.correction is None else self.correction.settings.get("target")

    def _start(self, engine: Engine) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.append:
            if world_size() > 1:
                raise ValueError("append is for one process: several would write into one table")
            self._recover()
            if not self.path.exists() or not self.path.stat().st_size:
                append_durably(self.path, _csv([self.columns]))
            return
        self.counts.clear()
        self._part.write_bytes(_csv([self.columns]))
        if self.group_columns is None:
            self._json_part.write_bytes(b"")

    def _add(self, engine: Engine) -> None:
        batch, logits = engine.state.batch, engine.state.output["pred"]
        if self.group_columns is not None:
            self._add_labelled(batch, torch.softmax(logits.float(), dim=1).cpu())
            return
        answers = self.answer(batch, logits)
        engine.state.answers = answers
        if self.append:
            answers = self._new(answers)
        table, objects = (self.path, self._journal) if self.append else (self._part, self._json_part)
        # objects first: a row never lacks its object, and an object without its row is not looked at
        append_durably(objects, b"".join(_json_line(self.record(answer)) for answer in answers))
        append_durably(table, _csv([_text(self.cells(answer)) for answer in answers]))
        if self.append:
            self._answered.update(answer.scan for answer in answers)
        for answer in answers:
            self._count(answer.status, bool(answer.warnings))
            if answer.status != "ok":
                log = logger.warning if answer.status == "failed" else logger.info
                log("%s %s: %s", answer.scan, answer.status, answer.reason)

    def _add_labelled(self, batch: Mapping[str, Any], probabilities: Tensor) -> None:
        rows = []
        mark = ["yes"] if SYNTHETIC in self.columns else []
        assert self.group_columns is not None
        for i, row in enumerate(probabilities):
            groups = [column[i] for column in batch["group_values"]]
            answer = [self.class_names[int(row.argmax())], *(f"{p:.6f}" for p in row.tolist())]
            rows.append([batch["scan"][i], self.class_names[int(batch["label"][i])], *groups, *answer, *mark])
            self._count("ok", False)
        with self._part.open("ab") as file:
            file.write(_csv(rows))

    def _new(self, answers: Sequence[Answer]) -> list[Answer]:
        new: dict[str, Answer] = {}
        for answer in answers:
            if answer.scan in self._answered or answer.scan in new:
                logger.warning("%s has a row in %s already, which stays", answer.scan, self.path)
            else:
                new[answer.scan] = answer
        return list(new.values())

    def _count(self, status: str, warned: bool) -> None:
        self.counts[status] += 1
        self.counts["with warnings"] += status == "ok" and warned

    def _complete(self, engine: Engine) -> None:
        if self.append:
            self._update_json()
            return
        rows = objects = None
        if world_size() > 1:
            rows = gather_interleaved(_rows(self._part.read_bytes())[1:])
            if self.group_columns is None:
                objects = gather_interleaved(self._json_part.read_bytes().splitlines(keepends=True))
            if not is_primary():
                self._part.unlink()
                self._json_part.unlink(missing_ok=True)
                return
        if rows is not None:
            self._part.write_bytes(_csv([self.columns, *rows]))
        if self.group_columns is None:
            if objects is None:
                objects = self._json_part.read_bytes().splitlines(keepends=True)
            replace_durably(self.json_path, _json_list(objects))
            self._json_part.unlink()
        self._part.replace(self.path)
        if self.best_path is not None and engine.state.best_metric_epoch == engine.state.epoch:
            shutil.copyfile(self.path, self.best_path)

    # ---- append ----------------------------------------------------------------------------------------------------
    def _recover(self) -> None:
        """Once: take up the table at ``path``, less what a kill cut off."""
        if self._recovered:
            return
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = whole_records(content)
        if not whole and not _csv([self.columns]).startswith(content):
            raise PredictionTableError(f"{self.path} is no table of predictions; {_ELSEWHERE}")
        rows = self._checked(content[:whole])
        if whole < len(content):
            logger.warning("%s: its last row was cut off and is dropped; its scan is to be answered again", self.path)
            os.truncate(self.path, whole)
        for row in rows:
            self._answered |= {row["scan"], ESCAPED.sub(lambda found: chr(int(found[1][1:], 16)), row["scan"])}
            self._count(row["status"], bool(row["warnings"]))
        self._recovered = True
        if self._journal.exists():
            self._update_json()

    def _checked(self, content: bytes) -> list[dict[str, str]]:
        """The rows of a table of ours.

        Raises:
            PredictionTableError: it is none, or one of other columns or of another correction.
        """
        try:
            header, *rows = _rows(content) or [self.columns]
        except (UnicodeDecodeError, csv.Error) as error:
            raise PredictionTableError(f"{self.path} is no table of predictions ({error}); {_ELSEWHERE}") from error
        if header != self.columns:
            raise PredictionTableError(
                f"{self.path} has other columns than what is answered now:\n  there: {', '.join(header)}\n  "
                f"now:   {', '.join(self.columns)}\nIts rows are of other classes, of another number of networks, or "
                f"not of inference; {_ELSEWHERE}"
            )
        for number, row in enumerate(rows, start=2):
            if len(row) != len(self.columns):
                raise PredictionTableError(f"{self.path}: row {number} has {len(row)} values; {_ELSEWHERE}")
        table = [dict(zip(self.columns, row, strict=True)) for row in rows]
        others = {row[POSTPROCESS] for row in table if self.correction is not None} - {self.postprocess}
        if others:
            raise PredictionTableError(
                f"{self.path} has rows that were corrected otherwise:\n  there: {', '.join(sorted(others))}\n  "
                f"now:   {self.postprocess}\n{_ELSEWHERE}"
            )
        return table

    def _update_json(self) -> None:
        """Rewrite the JSON, an object for each row of the table, and let go of the journal."""
        known: dict[str, bytes] = {}
        for record in _objects(self.json_path):
            known[record["scan"]] = _json_line(record)
        journal = self._journal.read_bytes() if self._journal.exists() else b""
        for line in journal[: journal.rfind(b"\n") + 1].splitlines(keepends=True):
            known[json.loads(line)["scan"]] = line  # the last counts: the one before may have lost its row
        rows = self._checked(self.path.read_bytes() if self.path.exists() else b"")
        lines = [known.get(row["scan"]) or _json_line(self._record_of(row)) for row in rows]
        replace_durably(self.json_path, _json_list(lines))
        self._journal.unlink(missing_ok=True)

    def _record_of(self, row: Mapping[str, str]) -> dict[str, Any]:
        """The object of a row whose own is gone, such as where the JSON was removed: what the row says."""

        def numbers(prefix: str) -> dict[str, float]:
            return {name: float(row[prefix + name]) for name in self.class_names if row.get(prefix + name)}

        answer = Answer(
            scan=row["scan"],
            status=row["status"],  # type: ignore[arg-type]
            reason=row["reason"],
            prediction=row["prediction"] or None,
            probabilities=numbers(PROBABILITY),
            spread=numbers(SPREAD) or None,
            warnings=row["warnings"].split(SEPARATOR) if row["warnings"] else [],
            intake={},
            agreement=float(row[AGREEMENT]) if row.get(AGREEMENT) else None,
        )
        return self.record(answer)

    def report(self) -> None:
        """Say what the table holds and where it is.

        Exits with :data:`EXIT_SOME_FAILED` when a scan of the table failed, or there are scans and none was answered.
        """
        if self.append:
            self._recover()  # also of a table to which nothing was added
        logger.info(
            "%d scans answered (%d of them with warnings), %d skipped, %d failed: %s",
            self.counts["ok"],
            self.counts["with warnings"],
            self.counts["skipped"],
            self.counts["failed"],
            self.path,
        )
        if self.counts["failed"] or (self.counts["skipped"] and not self.counts["ok"]):
            sys.exit(EXIT_SOME_FAILED)


_ELSEWHERE = "choose another output folder, or move the table away"


def _stated(correction: Fitted) -> str:
    """A correction in the column ``postprocess``: the method and, of a prior, the class frequencies."""
    target, source = (correction.settings.get(name) or {} for name in ("target", "source"))
    to = [f"{name}={share:.6g}" for name, share in target.items()]
    even = len(set(source.values())) <= 1
    return " ".join([correction.method, *to, *([] if even else ["from", *(f"{n}={s:.6g}" for n, s in source.items())])])


def _text(cells: Sequence[str | float | None]) -> list[str]:
    return ["" if cell is None else f"{cell:.6f}" if isinstance(cell, float) else cell for cell in cells]


def _rows(content: bytes) -> list[list[str]]:
    text = content.decode("utf-8-sig")  # a spreadsheet program may have saved it
    return [row for row in csv.reader(io.StringIO(text, newline="")) if row]


def _objects(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON of ours; of anything else none: the table is what counts."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return []
    records = found if isinstance(found, list) else []
    return [record for record in records if isinstance(record, dict) and "scan" in record]
