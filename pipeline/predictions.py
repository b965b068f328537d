"""Prediction tables: one row a scan, written as they are made, and the summary of a labelled table."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import Tensor

from .distributed import gather_interleaved, is_primary, rank, world_size
from .errors import UserError
from .groups import group_columns
from .labelled_predictions import POSTPROCESS, PROBABILITY, SYNTHETIC, load_predictions
from .metrics import fairness_summary

if TYPE_CHECKING:
    from .postprocess import Fitted

logger = logging.getLogger(__name__)

# a file name need not be Unicode; it must not stop the others' answers
TEXT: dict[str, Any] = {"newline": "", "encoding": "utf-8", "errors": "backslashreplace"}
EVALUATION_FILES = ("predictions.csv", "metrics.json", "audit.json", "confusion.png")
# patterns of what is made of them later; with the files above, all that an evaluation leaves
REPORT_FILES = ("report.html", "report.md", "report_files/*.png")
REVIEW_FILES = ("cells.csv", "intake.csv", "intake.json", *REPORT_FILES, "errors/errors.json", "errors/*.png")
EXIT_SOME_FAILED = 3  # exit code of an inference in which some scans failed, or none was answered
SPREAD = "spread_"  # before the class name in the column of the members' standard deviation
AGREEMENT = "agreement"
SEPARATOR = "; "  # between the warnings of a scan in the table
NOT_UNICODE = re.compile("[\ud800-\udfff]")
ESCAPED = re.compile(r"\\(udc[89a-f][0-9a-f])")  # what TEXT makes of a byte that is not Unicode

Status = Literal["ok", "failed", "skipped"]


class PredictionTableError(UserError, ValueError):
    """A table of predictions that rows cannot be added to; the message says why and what to do."""


# ---------------------------------------------------------------------------------------------------------------------
# the answer to a new scan
# ---------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Answer:
    """What is said of one new scan.

    Args:
        scan: its name.
        status: ``ok`` (answered), ``failed``, or ``skipped`` (by what it says of itself no chest CT, such as a
            localizer; no failure).
        reason: why there is no answer; empty when ``ok``.
        prediction: the most probable class; None without an answer.
        probabilities: class -> probability, corrected where a correction was given; empty without an answer.
        spread: class -> standard deviation of its probability between the members of an ensemble (sample standard
            deviation, n - 1); None for one network and without an answer.
        warnings: what to know about the scan, each ``code: text``.
        intake: the record of how the scan was read, ``files`` included; empty where there is none.
        agreement: share of the members, in [0, 1], whose own most probable class is ``prediction``; None as ``spread``.
        uncorrected: class -> probability before the correction; None without one.
    """

    scan: str
    status: Status
    reason: str
    prediction: str | None
    probabilities: dict[str, float]
    spread: dict[str, float] | None
    warnings: list[str]
    intake: dict[str, Any]
    agreement: float | None = None
    uncorrected: dict[str, float] | None = None


def answer_scans(
    batch: Mapping[str, Any], logits: Tensor, class_names: Sequence[str], correction: Fitted | None = None
) -> list[Answer]:
    """The answers to the N new scans of a batch, in its order.

    A member's probabilities are the softmax of its logits. The answer is the mean of the members' probabilities, and
    the correction, if any, is applied to that mean. Spread and agreement are of the members' probabilities, each under
    the same correction: they are read beside the corrected answer, and disagreement about a class that the prior makes
    rare is as small as its probability.

    Args:
        batch: ``scan`` (N names), ``reason`` (N texts, empty = readable), and ``intake`` (N records, may be absent: no
            warnings and no skipped scan then).
        logits: [N, C] of one network, or [N, M, C] of M members.
        class_names: C names.
        correction: map of the probabilities (:class:`~.postprocess.Fitted`), such as for a prevalence.

    Raises:
        ValueError: the logits are of another number of scans or classes.
    """
    names, scans = tuple(class_names), list(batch["scan"])
    members = logits.detach().cpu().double()  # on the CPU first: not every accelerator has doubles
    members = members[:, None] if members.ndim == 2 else members
    if members.ndim != 3 or members.shape[0] != len(scans) or members.shape[2] != len(names):
        raise ValueError(
            f"logits must be [{len(scans)}, {len(names)}] or [{len(scans)}, members, {len(names)}] for {len(scans)} "
            f"scans and {len(names)} classes, got {list(logits.shape)}"
        )
    own = torch.softmax(members, dim=2).numpy()
    finite = np.isfinite(own).all((1, 2))
    own[~finite] = 1 / len(names)  # stands in, never shown
    raw = final = own.mean(1)
    if correction is not None:
        final = correction.transform(raw, names)
        own = correction.transform(own.reshape(-1, len(names)), names).reshape(own.shape)
    winner = final.argmax(1)
    several = own.shape[1] > 1
    spread = own.std(1, ddof=1) if several else None
    agreement = (own.argmax(2) == winner[:, None]).mean(1)
    intake = batch.get("intake") or [{}] * len(scans)
    answers = []
    for i, scan in enumerate(scans):
        record = dict(intake[i] or {})
        status, reason = _status(batch["reason"][i], record, bool(finite[i]))
        ok = status == "ok"
        answers.append(
            Answer(
                scan=scan,
                status=status,
                reason=_line(reason),
                prediction=names[winner[i]] if ok else None,
                probabilities=_by_class(names, final[i]) if ok else {},
                spread=_by_class(names, spread[i]) if ok and spread is not None else None,
                warnings=[_line(text) for text in record.get("warnings") or ()],
                intake=record,
                agreement=float(agreement[i]) if ok and several else None,
                uncorrected=_by_class(names, raw[i]) if ok and correction is not None else None,
            )
        )
    return answers


def _status(reason: str, intake: Mapping[str, Any], finite: bool) -> tuple[Status, str]:
    if intake.get("status") == "skipped":
        return "skipped", reason or intake.get("reason") or ""
    if reason or intake.get("status") == "refused":
        return "failed", reason or intake.get("reason") or "refused"
    return ("ok", "") if finite else ("failed", "the network's output is not finite")


def _by_class(names: Sequence[str], values: np.ndarray) -> dict[str, float]:
    return dict(zip(names, values.tolist(), strict=True))


def _line(text: str) -> str:
    return " ".join(str(text).split())


# ---------------------------------------------------------------------------------------------------------------------
# files that survive a kill
# ---------------------------------------------------------------------------------------------------------------------
def whole_records(content: bytes) -> int:
    """Length of the part of a CSV file that ends with its last whole record.

    A record ends at a line feed outside quotes; what comes after the last one was cut off while it was written.
    """
    end = position = quotes = 0
    for line in io.BytesIO(content):
        position += len(line)
        quotes += line.count(b'"')
        if line.endswith(b"\n") and quotes % 2 == 0:
            end = position
    return end


def append_durably(path: Path, content: bytes) -> None:
    """Add bytes to a file, on the disk when this returns; all of them, or (where the disk is full) none."""
    with path.open("ab", buffering=0) as file:
        size = file.seek(0, io.SEEK_END)
        try:
            written = 0
            while written < len(content):
                written += file.write(content[written:])
            os.fsync(file.fileno())
        except BaseException:
            file.truncate(size)
            raise


def replace_durably(path: Path, content: bytes) -> None:
    """Write a file anew: whoever reads it finds the old content or the new, never a part."""
    part = path.with_name(f"{path.name}.tmp")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def encoded(text: str) -> bytes:
    """Text as all tables have it: a name that is not Unicode stays told from others (:data:`TEXT`)."""
    return text.encode(TEXT["encoding"], TEXT["errors"])


def _csv(rows: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return encoded(text.getvalue())


def _json_line(record: Mapping[str, Any]) -> bytes:
    """An object on one line; what is not Unicode as the table writes it, and what is no number as null."""
    text = json.dumps(_finite(record), ensure_ascii=False, allow_nan=False)
    return NOT_UNICODE.sub(lambda found: f"\\\\u{ord(found[0]):04x}", text).encode() + b"\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _json_list(lines: Iterable[bytes]) -> bytes:
    return b"[\n" + b",\n".join(line.rstrip(b"\n") for line in lines) + b"\n]\n"


# ---------------------------------------------------------------------------------------------------------------------
# the writer
# ---------------------------------------------------------------------------------------------------------------------
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
        members: networks that answer, M: 1, or of an :class:`~.ensemble.Ensemble`. New scans only.
        correction: what is done to the probabilities (:class:`~.postprocess.Fitted`); new scans only.
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
        if self.append:
            self._recover()
        return self._answered

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
