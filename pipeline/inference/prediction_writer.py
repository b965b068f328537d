"""Engine handlers that write prediction tables of new scans, a row a scan: anew, or added to a table."""

import csv
import json
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from torch import Tensor

from fairlung.transforms.checks import check_setting

from ..common.distributed import barrier, is_primary, world_size
from ..common.errors import EXIT_SOME_FAILED, UserError
from ..common.files import (
    WriteError,
    append_durably,
    encoded,
    finite,
    replace_durably,
    told,
    whole_records,
)
from ..common.tables import csv_bytes, csv_rows
from ..common.text import one_line
from ..data.intake_records import SEPARATOR
from ..data.pseudonyms import Pseudonyms
from ..evaluation.predictions import POSTPROCESS, PROBABILITY
from ..postprocessing.fitted import Fitted
from .answers import STATUSES, Answer, AnswerEvents, answer_scans
from .labelled_writer import LabelledPredictionWriter
from .parts import in_order, own_part, parts_of

logger = logging.getLogger(__name__)

SPREAD = "spread_"  # before the class name in the column of the members' standard deviation
AGREEMENT = "agreement"
ADDED = "new"  # after the names of files that hold what several processes add to a table
STUDY = "study"
NOT_UNICODE = re.compile("[\ud800-\udfff]")
ESCAPED = re.compile(r"\\(udc[89a-f][0-9a-f])")  # what the table's encoding makes of a byte that is not Unicode
WARNING_CODE = re.compile(r"([a-z_]+):")
_ELSEWHERE = "choose another output folder, or move the table away"
# keys of an object of the JSON, in order
OBJECT = (
    "scan", "status", "reason", "prediction", "probabilities", "spread", "agreement", "uncorrected", "prevalence",
    "models", "runtime", "warnings", STUDY, "intake",
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


class PredictionWriter:
    """Writes a row a new scan, and beside the table a JSON of the same name with the numbers in full.

    The columns are scan, prediction, prob_<class>, for an ensemble also spread_<class> and agreement, for corrected
    probabilities also ``postprocess`` (what was done), then status (ok|failed|skipped), reason, warnings and, with
    ``pseudonyms``, study: see :class:`Answer`. The JSON is a list of objects in the same order, with the record of how
    the scan was read (without its files), the probabilities before a correction (``uncorrected``), the ``prevalence``
    corrected for, the ``models`` that answered, a line each, and the ``runtime`` that computed them: rows of one table
    may be of several. Of each batch
    ``engine.state.answers`` holds the answers in its order when :attr:`AnswerEvents.ANSWERED` is fired, for the
    handlers attached after this; rows are written when those have made their pictures and reports, or failed to.

    The rows reach the disk batch by batch, in ``<path>.part``, which becomes ``path`` when the epoch is complete. Where
    several processes share the scans, all call :meth:`begin` before and :meth:`join` after it, and each has its part.
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
        engine.add_event_handler(Events.EPOCH_STARTED, lambda: self.start())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: self.complete())

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
        """Take up the rows that are there: of a table that is written anew, none.

        PredictionTableError under torchrun with restarts, each of which would begin at the first scan.
        """
        if os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
            raise PredictionTableError(
                "a restart would answer every scan again: with --max_restarts give --append True, which keeps the rows "
                "that are there"
            )

    def begin(self) -> None:
        """Remove what broken runs have left, before any process of this one writes."""
        if self.pseudonyms is not None:
            self.pseudonyms.share()
        if is_primary():
            self._remove_parts()
        barrier()

    def join(self, scans: Sequence[str]) -> None:
        """Make one table of what several processes have answered; the rows of ``scans`` get their order."""
        barrier()
        if world_size() > 1 and is_primary():
            self._finish(scans)

    def report(self) -> None:
        """Log what the table holds; exit with :data:`EXIT_SOME_FAILED` if a scan failed or all were skipped."""
        if not is_primary():
            return
        self.recover()  # also of a table to which nothing was added
        counts = [self.counts[kind] for kind in ("ok", "with warnings", "skipped", "failed")]
        logger.info("%d scans answered (%d of them with warnings), %d skipped, %d failed: %s", *counts, self.path)
        by_count = sorted(self.codes.items(), key=lambda item: (-item[1], item[0]))
        if told := ", ".join(f"{count} {code}" for code, count in by_count):
            logger.info("scans with each kind of warning: %s", told)
        if self.counts["failed"] or (self.counts["skipped"] and not self.counts["ok"]):
            sys.exit(EXIT_SOME_FAILED)

    def start(self) -> None:
        """Be ready for answers."""
        self.counts.clear()
        self.codes.clear()
        with told(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            own_part(self.path).write_bytes(csv_bytes([self.columns]))
            own_part(self.json_path).write_bytes(b"")

    def _add(self, engine: Engine) -> None:
        runtime = getattr(getattr(engine, "inferer", None), "runtime", None)
        answers = [
            replace(answer, runtime=runtime) for answer in self.answer(engine.state.batch, engine.state.output["pred"])
        ]
        engine.state.answers = answers
        engine.fire_event(AnswerEvents.ANSWERED)
        self.add(answers)

    def add(self, answers: Sequence[Answer]) -> None:
        """Bring answers to the disk, and log those that are none."""
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
        self._append(answers, own_part(self.path), own_part(self.json_path))
        return answers

    def _kept(self) -> str:
        """What is there of a run that cannot write on."""
        count = sum(self.counts[status] for status in STATUSES)
        return f"the {count} answers until then are kept in {own_part(self.path)}, and taken up by --append True"

    def _append(self, answers: Sequence[Answer], table: Path, objects: Path) -> None:
        # objects first: a row never lacks its object, and an object without its row is not looked at
        append_durably(objects, b"".join(json_line(self.record(answer)) for answer in answers))
        append_durably(table, csv_bytes([csv_text(self.cells(answer)) for answer in answers]))

    def _count(self, status: str, warnings: Iterable[str]) -> None:
        told = list(filter(None, warnings)) if status == "ok" else []
        self.counts[status] += 1
        self.counts["with warnings"] += bool(told)
        self.codes.update({found[1] for found in map(WARNING_CODE.match, told) if found})

    def complete(self, scans: Sequence[str] = ()) -> None:
        """Make the table of what was added; the rows of ``scans`` get their order. Several processes :meth:`join`."""
        if world_size() == 1:
            self._finish(scans)

    def _finish(self, scans: Sequence[str] = ()) -> None:
        tables, objects = parts_of(self.path), parts_of(self.json_path)
        lines = [line for part in objects for line in part.read_bytes().splitlines(keepends=True)]
        replace_durably(self.json_path, json_list(in_order(lines, scans, lambda line: json.loads(line)["scan"])))
        if world_size() == 1 and not scans:  # the rows are in their order
            own_part(self.path).replace(self.path)
        else:
            rows = [row for part in tables for row in csv_rows(part.read_bytes())[1:]]
            replace_durably(self.path, csv_bytes([self.columns, *in_order(rows, scans, lambda row: row[0])]))
            self._count_rows(dict(zip(self.columns, row, strict=True)) for row in rows)
        self._remove_parts()

    def _remove_parts(self) -> None:
        for path in (self.path, self.json_path):
            for part in [*parts_of(path), *parts_of(path, ADDED)]:
                part.unlink()

    def _count_rows(self, rows: Iterable[Mapping[str, str]]) -> None:
        self.counts.clear()
        self.codes.clear()
        for row in rows:
            self._count(row["status"], row["warnings"].split(SEPARATOR))


def _pairs(table: Path, objects: Path, kind: str = "part") -> list[tuple[Path, Path]]:
    """The parts of a table, each with that of its JSON, which may be missing."""
    parts = parts_of(table, kind)
    return [(part, objects.with_name(objects.name + part.name.removeprefix(table.name))) for part in parts]


def _to_add(part: Path) -> Path:
    name, _, kind = part.name.rpartition(".")
    return part.with_name(f"{name}.{kind.replace('part', ADDED)}")


class AppendingPredictionWriter(PredictionWriter):
    """As :class:`PredictionWriter`, but rows are added to ``path`` itself, batch by batch.

    A process that is killed loses the batch in work at most. A row that a kill cut off is dropped when the next process
    takes the table up (:meth:`recover`), and its scan is not among :attr:`answered`. The JSON is brought up to date
    after each epoch, from a journal beside it. A scan that has a row, of whatever status, keeps it, unless it is to be
    answered again (:meth:`answer_again`). One process at a time may add to a table; several that share the scans add to
    files of their own, ``<path>.new`` and so on, which :meth:`join` or the next process adds to the table.
    """

    _recovered = False

    @property
    def _journal(self) -> Path:
        """Objects of rows that the JSON does not have yet; a broken run without append leaves none of this name."""
        return self.json_path.with_name(f"{self.json_path.name}l.part")

    @property
    def _own_files(self) -> tuple[Path, Path]:
        """The table and the journal to which this process adds."""
        if world_size() == 1:
            return self.path, self._journal
        return own_part(self.path, ADDED), own_part(self.json_path, ADDED)

    def recover(self) -> None:
        """Take up the table, once: check and count its rows, and cut off what a kill left of the last one.

        Of several processes the first one mends it, and the others read what it then is.
        """
        if self._recovered:
            return
        if is_primary():
            self._take_up_parts()
            self._cut_off()
            self._take_up_added()
        barrier()
        for row in self._checked(self.path.read_bytes() if self.path.exists() else b""):
            self.answered |= {row["scan"], original_name(row["scan"])}
            self._count(row["status"], row["warnings"].split(SEPARATOR))
        self._recovered = True
        if is_primary() and self._journal.exists():
            self._finish()

    def _cut_off(self) -> None:
        """Remove the last row where it is not whole; PredictionTableError where the file is no table of this kind."""
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = whole_records(content)
        if not whole and not csv_bytes([self.columns]).startswith(content):
            raise PredictionTableError(f"{self.path} is no table of predictions; {_ELSEWHERE}")
        self._checked(content[:whole])
        if whole < len(content):
            logger.warning("%s: its last row was cut off and is dropped; its scan is to be answered again", self.path)
            os.truncate(self.path, whole)

    def _begin(self, table: Path) -> None:
        if not table.exists() or not table.stat().st_size:
            append_durably(table, csv_bytes([self.columns]))

    def _take_up_parts(self) -> None:
        """Rows of a run without append that was broken off begin the table, unless there is one."""
        if not self.path.exists():
            for part, objects in _pairs(self.path, self.json_path):
                begins = not self.path.exists()
                if objects.exists():
                    objects.replace(self._journal if begins else _to_add(objects))
                part.replace(self.path if begins else _to_add(part))
        for path in [*parts_of(self.path), *parts_of(self.json_path)]:
            logger.warning("%s, of a run that was to replace the table and was broken off, is removed", path)
            path.unlink()

    def _take_up_added(self) -> None:
        """Add the rows of several processes to the table; one that is cut off in the middle loses nothing by it."""
        for part, objects in _pairs(self.path, self.json_path, ADDED):
            content = part.read_bytes()
            rows = self._checked(content[: whole_records(content)])
            self._begin(self.path)
            if objects.exists():
                lines = objects.read_bytes()
                append_durably(self._journal, lines[: lines.rfind(b"\n") + 1])
            append_durably(self.path, csv_bytes([[*row.values()] for row in rows]))
            objects.unlink(missing_ok=True)
            part.unlink()

    def _kept(self) -> str:
        with suppress(OSError):  # the JSON may need more room than there is; the next process writes it
            self.complete()
        return f"the rows until then are kept in {self.path}; the same command goes on"

    def answer_again(self, scans: Iterable[str]) -> None:
        """The next answers to these scans take the place of the rows that they have; until then the rows stay."""
        for scan in scans:
            self.answered -= {scan, encoded(scan).decode()}

    def begin(self) -> None:
        if self.pseudonyms is not None:
            self.pseudonyms.share()
        self.recover()

    def start(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.recover()
        self._begin(self._own_files[0])

    def _write(self, answers: Sequence[Answer]) -> Sequence[Answer]:
        new: dict[str, Answer] = {}
        for answer in answers:
            if answer.scan in self.answered or answer.scan in new:
                logger.warning("%s has a row in %s already, which stays", one_line(answer.scan), self.path)
            else:
                new[answer.scan] = answer
        self._append([*new.values()], *self._own_files)
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

    def _finish(self, scans: Sequence[str] = ()) -> None:
        """Leave the last row of each scan, rewrite the JSON, an object a row, and remove the journal."""
        self._take_up_added()
        known = {record["scan"]: json_line(record) for record in json_objects(self.json_path)}
        journal = self._journal.read_bytes() if self._journal.exists() else b""
        for line in journal[: journal.rfind(b"\n") + 1].splitlines(keepends=True):
            known[json.loads(line)["scan"]] = line  # the last counts: the one before may have lost its row
        rows = self._checked(self.path.read_bytes() if self.path.exists() else b"")
        last = {row["scan"]: row for row in rows}
        ordered = in_order(last, scans, str)
        if ordered != [row["scan"] for row in rows]:
            replace_durably(self.path, csv_bytes([self.columns, *([*last[scan].values()] for scan in ordered)]))
        self._count_rows(last.values())
        lines = [known.get(scan) or json_line(self._record_of(last[scan])) for scan in ordered]
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
