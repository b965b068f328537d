"""Engine handlers that write prediction tables, a row a scan: of labelled scans, of new ones, and added to a table."""

import csv
import json
import logging
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor

from fairlung.transforms.checks import check_setting

from ..common.distributed import gather_interleaved, is_primary, rank, world_size
from ..common.errors import EXIT_SOME_FAILED, UserError
from ..common.files import (
    WriteError,
    append_durably,
    encoded,
    finite,
    replace_durably,
    replacing,
    told,
    whole_records,
)
from ..common.tables import csv_bytes, csv_rows
from ..common.text import one_line
from ..data.groups import group_columns
from ..data.intake_records import SEPARATOR
from ..data.pseudonyms import Pseudonyms
from ..evaluation.predictions import POSTPROCESS, PROBABILITY, SYNTHETIC
from ..postprocessing.fitted import Fitted
from .about_scans import AboutScans
from .answers import STATUSES, Answer, AnswerEvents, answer_scans

logger = logging.getLogger(__name__)

SPREAD = "spread_"  # before the class name in the column of the members' standard deviation
AGREEMENT = "agreement"
STUDY = "study"
NOT_UNICODE = re.compile("[\ud800-\udfff]")
ESCAPED = re.compile(r"\\(udc[89a-f][0-9a-f])")  # what the table's encoding makes of a byte that is not Unicode
WARNING_CODE = re.compile(r"([a-z_]+):")
_ELSEWHERE = "choose another output folder, or move the table away"
# keys of an object of the JSON, in order
OBJECT = (
    "scan", "status", "reason", "prediction", "probabilities", "spread", "agreement", "uncorrected", "prevalence",
    "models", "warnings", STUDY, "intake",
)  # fmt: skip


class PredictionTableError(UserError, ValueError):
    """A table of predictions that rows cannot be added to; the message says why and what to do."""


def csv_text(cells: Sequence[str | float | None]) -> list[str]:
    """Cells as they stand in the CSV: numbers with six digits, nothing where there is none."""
    return ["" if cell is None else f"{cell:.6f}" if isinstance(cell, float) else cell for cell in cells]


def original_name(scan: str) -> str:
    """A scan's name of the CSV with the bytes, not Unicode, that it may have had."""
    return ESCAPED.sub(lambda found: chr(int(found[1][1:], 16)), scan)


def json_line(record: Mapping[str, Any]) -> bytes:
    """An object on one line; what is not Unicode as the table writes it, and what is no number as null."""
    text = json.dumps(finite(record), ensure_ascii=False, allow_nan=False)
    return NOT_UNICODE.sub(lambda found: f"\\\\u{ord(found[0]):04x}", text).encode() + b"\n"


def json_list(lines: Iterable[bytes]) -> bytes:
    """The JSON of objects that are given a line each."""
    return b"[\n" + b",\n".join(line.rstrip(b"\n") for line in lines) + b"\n]\n"


def json_objects(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON of ours; of anything else none: the table is what counts."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return []
    records = found if isinstance(found, list) else []
    return [record for record in records if isinstance(record, dict) and "scan" in record]


def stated(correction: Fitted) -> str:
    """A correction in the column ``postprocess``: the method and, of a prior, the class frequencies."""
    target, source = (correction.settings.get(name) or {} for name in ("target", "source"))
    to = [f"{name}={share:.6g}" for name, share in target.items()]
    even = len(set(source.values())) <= 1
    return " ".join([correction.method, *to, *([] if even else ["from", *(f"{n}={s:.6g}" for n, s in source.items())])])


def _part(path: Path) -> Path:
    """Where this process writes a file until it is complete."""
    return path.with_name(f"{path.name}.part{rank() or ''}")


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
            _part(self.path).write_bytes(csv_bytes([self.columns]))

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
        with told(self.path), _part(self.path).open("ab") as file:
            file.write(csv_bytes(rows))

    def _complete(self, engine: Engine) -> None:
        part = _part(self.path)
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


class PredictionWriter:
    """Writes a row a new scan, and beside the table a JSON of the same name with the numbers in full.

    The columns are scan, prediction, prob_<class>, for an ensemble also spread_<class> and agreement, for corrected
    probabilities also ``postprocess`` (what was done), then status (ok|failed|skipped), reason, warnings and, with
    ``pseudonyms``, study: see :class:`Answer`. The JSON is a list of objects in the same order, with the record of how
    the scan was read (without its files), the probabilities before a correction (``uncorrected``), the ``prevalence``
    corrected for, and the ``models`` that answered, a line each: rows of one table may be of several. Of each batch
    ``engine.state.answers`` holds the answers in its order when :attr:`AnswerEvents.ANSWERED` is fired, for the
    handlers attached after this; rows are written when those have made their pictures and reports, or failed to.

    The rows reach the disk batch by batch, in ``<path>.part``, which becomes ``path`` when the epoch is complete.
    """

    def __init__(
        self, path: str | Path, class_names: Sequence[str], members: int = 1, correction: Fitted | None = None,
        models: Sequence[str] = (),
        pseudonyms: Pseudonyms | None = None,
    ) -> None:  # fmt: skip
        check_setting("members", members, members >= 1, "at least 1")
        self.path = Path(path)
        self.json_path = self.path.with_suffix(".json")
        self.class_names = tuple(class_names)
        self.members, self.correction = members, correction
        self.models, self.pseudonyms = [*models], pseudonyms
        self.postprocess = "" if correction is None else stated(correction)
        self.columns = ["scan", "prediction", *(PROBABILITY + name for name in self.class_names)]
        self.columns += [*(SPREAD + name for name in self.class_names), AGREEMENT] if members > 1 else []
        self.columns += [POSTPROCESS] if correction is not None else []
        self.columns += ["status", "reason", "warnings", *([STUDY] if pseudonyms is not None else [])]
        self.answered: set[str] = set()  # names of the scans that had a row before this run
        self.counts: Counter[str] = Counter()  # rows by status, and of the answered ones "with warnings"
        self.codes: Counter[str] = Counter()  # answered rows by the code of each of their warnings

    def attach(self, engine: Engine) -> None:
        engine.register_events(*AnswerEvents)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._complete)

    def answer(self, batch: Mapping[str, Any], logits: Tensor) -> list[Answer]:
        """The answers to a batch (:func:`answer_scans`), not written; ValueError for another number of networks."""
        given = 1 if logits.ndim == 2 else logits.shape[1]
        if given != self.members:
            raise ValueError(f"members is {self.members}, but the logits {list(logits.shape)} are of {given}")
        answers = answer_scans(batch, logits, self.class_names, self.correction)
        return answers if self.pseudonyms is None else [answer.under(self.pseudonyms) for answer in answers]

    def cells(self, answer: Answer) -> list[str | float | None]:
        """The row of an answer, None where there is no value."""
        row = [answer.scan, answer.prediction, *map(answer.probabilities.get, self.class_names)]
        if self.members > 1:
            row += [*map((answer.spread or {}).get, self.class_names), answer.agreement]
        if self.correction is not None:
            row.append(self.postprocess)
        row += [answer.status, answer.reason, SEPARATOR.join(answer.warnings)]
        return [*row, answer.study] if STUDY in self.columns else row

    def record(self, answer: Answer) -> dict[str, Any]:
        prevalence = None if self.correction is None else self.correction.settings.get("target")
        intake = {name: value for name, value in answer.intake.items() if name != "files"}
        said = {**vars(answer), "prevalence": prevalence, "models": self.models, "intake": intake}
        return {name: said[name] for name in OBJECT}

    def recover(self) -> None:
        """Take up the rows that are there: of a table that is written anew, none."""

    def report(self) -> None:
        """Log what the table holds; exit with :data:`EXIT_SOME_FAILED` if a scan failed or all were skipped."""
        self.recover()  # also of a table to which nothing was added
        counts = [self.counts[kind] for kind in ("ok", "with warnings", "skipped", "failed")]
        logger.info("%d scans answered (%d of them with warnings), %d skipped, %d failed: %s", *counts, self.path)
        by_count = sorted(self.codes.items(), key=lambda item: (-item[1], item[0]))
        if told := ", ".join(f"{count} {code}" for code, count in by_count):
            logger.info("scans with each kind of warning: %s", told)
        if self.counts["failed"] or (self.counts["skipped"] and not self.counts["ok"]):
            sys.exit(EXIT_SOME_FAILED)

    def _start(self, engine: Engine) -> None:
        self.counts.clear()
        self.codes.clear()
        if self.pseudonyms is not None:
            self.pseudonyms.share()
        with told(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _part(self.path).write_bytes(csv_bytes([self.columns]))
            _part(self.json_path).write_bytes(b"")

    def _add(self, engine: Engine) -> None:
        answers = self.answer(engine.state.batch, engine.state.output["pred"])
        engine.state.answers = answers
        engine.fire_event(AnswerEvents.ANSWERED)
        try:
            written = self._write(answers)
        except WriteError as error:
            raise WriteError(f"{error}; {self._kept()}") from error
        for answer in written:
            self._count(answer.status, answer.warnings)
            if answer.status != "ok":
                log = logger.warning if answer.status == "failed" else logger.info
                log("%s %s: %s", one_line(answer.scan), answer.status, one_line(answer.reason))

    def _write(self, answers: Sequence[Answer]) -> Sequence[Answer]:
        """Write answers, and return the ones that were written."""
        self._append(answers, _part(self.path), _part(self.json_path))
        return answers

    def _kept(self) -> str:
        """What is there of a run that cannot write on."""
        count = sum(self.counts[status] for status in STATUSES)
        return f"the {count} answers until then are kept in {_part(self.path)}, and taken up by --append True"

    def _append(self, answers: Sequence[Answer], table: Path, objects: Path) -> None:
        # objects first: a row never lacks its object, and an object without its row is not looked at
        append_durably(objects, b"".join(json_line(self.record(answer)) for answer in answers))
        append_durably(table, csv_bytes([csv_text(self.cells(answer)) for answer in answers]))

    def _count(self, status: str, warnings: Iterable[str]) -> None:
        told = list(filter(None, warnings)) if status == "ok" else []
        self.counts[status] += 1
        self.counts["with warnings"] += bool(told)
        self.codes.update({found[1] for found in map(WARNING_CODE.match, told) if found})

    def _complete(self, engine: Engine) -> None:
        part, json_part = _part(self.path), _part(self.json_path)
        objects = json_part.read_bytes().splitlines(keepends=True)
        if world_size() > 1:
            rows = gather_interleaved(csv_rows(part.read_bytes())[1:])
            objects = gather_interleaved(objects)
            if not is_primary():
                part.unlink()
                json_part.unlink()
                return
            with told(self.path):
                part.write_bytes(csv_bytes([self.columns, *rows]))
        replace_durably(self.json_path, json_list(objects))
        json_part.unlink()
        part.replace(self.path)


class AppendingPredictionWriter(PredictionWriter):
    """As :class:`PredictionWriter`, but rows are added to ``path`` itself, batch by batch.

    A process that is killed loses the batch in work at most. A row that a kill cut off is dropped when the next process
    takes the table up (:meth:`recover`), and its scan is not among :attr:`answered`. The JSON is brought up to date
    after each epoch, from a journal beside it. A scan that has a row, of whatever status, keeps it, unless it is to be
    answered again (:meth:`answer_again`). One process at a time may add to a table.
    """

    _recovered = False

    @property
    def _journal(self) -> Path:
        """Objects of rows that the JSON does not have yet; a broken run without append leaves none of this name."""
        return self.json_path.with_name(f"{self.json_path.name}l.part")

    def recover(self) -> None:
        """Take up the table, once: check and count its rows, and cut off what a kill left of the last one."""
        if self._recovered:
            return
        self._take_up_parts()
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = whole_records(content)
        if not whole and not csv_bytes([self.columns]).startswith(content):
            raise PredictionTableError(f"{self.path} is no table of predictions; {_ELSEWHERE}")
        rows = self._checked(content[:whole])
        if whole < len(content):
            logger.warning("%s: its last row was cut off and is dropped; its scan is to be answered again", self.path)
            os.truncate(self.path, whole)
        for row in rows:
            self.answered |= {row["scan"], original_name(row["scan"])}
            self._count(row["status"], row["warnings"].split(SEPARATOR))
        self._recovered = True
        if self._journal.exists():
            self._complete()

    def _take_up_parts(self) -> None:
        """Rows of a run without append that was broken off begin the table, unless there is one."""
        part, objects = _part(self.path), _part(self.json_path)
        if part.exists() and not self.path.exists():
            if objects.exists():
                objects.replace(self._journal)
            part.replace(self.path)
        for path in filter(Path.exists, (part, objects)):
            logger.warning("%s, of a run that was to replace the table and was broken off, is removed", path)
            path.unlink()

    def _kept(self) -> str:
        with suppress(OSError):  # the JSON may need more room than there is; the next process writes it
            self._complete()
        return f"the rows until then are kept in {self.path}; the same command goes on"

    def answer_again(self, scans: Iterable[str]) -> None:
        """The next answers to these scans take the place of the rows that they have; until then the rows stay."""
        for scan in scans:
            self.answered -= {scan, encoded(scan).decode()}

    def _start(self, engine: Engine) -> None:
        if world_size() > 1:
            raise ValueError("append is for one process: several would write into one table")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.recover()
        if not self.path.exists() or not self.path.stat().st_size:
            append_durably(self.path, csv_bytes([self.columns]))

    def _write(self, answers: Sequence[Answer]) -> Sequence[Answer]:
        new: dict[str, Answer] = {}
        for answer in answers:
            if answer.scan in self.answered or answer.scan in new:
                logger.warning("%s has a row in %s already, which stays", one_line(answer.scan), self.path)
            else:
                new[answer.scan] = answer
        self._append([*new.values()], self.path, self._journal)
        self.answered.update(new)
        return [*new.values()]

    def _checked(self, content: bytes) -> list[dict[str, str]]:
        """The rows of a table; PredictionTableError for no table, other columns or another correction."""
        try:
            header, *rows = csv_rows(content) or [self.columns]
        except (UnicodeDecodeError, csv.Error) as error:
            raise PredictionTableError(f"{self.path} is no table of predictions ({error}); {_ELSEWHERE}") from error
        if [*header, STUDY] == self.columns:
            self.columns = header  # a table of a version that told no studies goes on without them
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
        if others := {row[POSTPROCESS] for row in table if self.correction is not None} - {self.postprocess}:
            raise PredictionTableError(
                f"{self.path} has rows that were corrected otherwise:\n  there: {', '.join(sorted(others))}\n  "
                f"now:   {self.postprocess}\n{_ELSEWHERE}"
            )
        return table

    def _complete(self, engine: Engine | None = None) -> None:
        """Leave the last row of each scan, rewrite the JSON, an object a row, and remove the journal."""
        known = {record["scan"]: json_line(record) for record in json_objects(self.json_path)}
        journal = self._journal.read_bytes() if self._journal.exists() else b""
        for line in journal[: journal.rfind(b"\n") + 1].splitlines(keepends=True):
            known[json.loads(line)["scan"]] = line  # the last counts: the one before may have lost its row
        rows = self._checked(self.path.read_bytes() if self.path.exists() else b"")
        last = {row["scan"]: row for row in rows}
        if len(last) < len(rows):
            replace_durably(self.path, csv_bytes([self.columns, *([*row.values()] for row in last.values())]))
        self.counts.clear()
        self.codes.clear()
        for row in last.values():
            self._count(row["status"], row["warnings"].split(SEPARATOR))
        lines = [known.get(scan) or json_line(self._record_of(row)) for scan, row in last.items()]
        replace_durably(self.json_path, json_list(lines))
        self._journal.unlink(missing_ok=True)

    def _record_of(self, row: Mapping[str, str]) -> dict[str, Any]:
        """The object that a row gives where its own is gone, such as when the JSON was removed."""

        def numbers(prefix: str) -> dict[str, float]:
            return {name: float(row[prefix + name]) for name in self.class_names if row.get(prefix + name)}

        answer = Answer(
            scan=row["scan"], status=row["status"], reason=row["reason"],  # type: ignore[arg-type]
            prediction=row["prediction"] or None,
            probabilities=numbers(PROBABILITY), spread=numbers(SPREAD) or None,
            agreement=float(row[AGREEMENT]) if row.get(AGREEMENT) else None,
            warnings=row["warnings"].split(SEPARATOR) if row["warnings"] else [], intake={}, study=row.get(STUDY, ""),
        )  # fmt: skip
        return self.record(answer) | {"models": []}  # another run's row: nothing says of which


def prediction_writer_of(
    path: str | Path, class_names: Sequence[str], group_by: str | Sequence[str] | None = None, append: bool = False,
    **settings: Any,
) -> LabelledPredictionWriter | PredictionWriter:  # fmt: skip
    """The writer of labelled scans with ``group_by``, else of new ones, added to a table with ``append``."""
    if group_by is None:
        return (AppendingPredictionWriter if append else PredictionWriter)(path, class_names, **settings)
    if append:
        raise ValueError("append is for new scans, and group_by makes labelled ones")
    return LabelledPredictionWriter(path, class_names, group_by, **settings)
