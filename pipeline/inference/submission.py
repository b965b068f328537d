"""The challenge's submission: the names of the unlabelled test scans, one file a class, from a table of predictions."""

import os
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pandas as pd

from fairlung.transforms.files import DICOM_SUFFIXES, ITK_SUFFIXES, NIFTI_SUFFIXES
from fairlung.transforms.tables import guarded

from ..common.errors import UserError
from ..common.names import CHALLENGE_CLASSES, CLASS_ALIASES, CLASS_NAMES
from ..common.text import quoted
from ..evaluation.predictions import LISTED, columns_text, read_table

# class: its file, in the challenge's spelling (A, G, covid, normal)
FILES = {name: f"{key.upper() if len(key) == 1 else key}.csv" for key, name in CHALLENGE_CLASSES.items()}


class SubmissionError(UserError):
    """Predictions that cannot be submitted; the message names the scans and says why."""


class Submission(NamedTuple):
    """What :func:`write_submission` wrote: each file with its number of scans, and the scans that are in none."""

    files: dict[Path, int]
    missing: list[str]


def submission_name(scan: str) -> str:
    """The name the challenge knows a scan by: its folder's name, or its file's without the suffix of a volume."""
    name = PurePosixPath(scan.replace(os.sep, "/")).name
    suffixes = (s for s in (*NIFTI_SUFFIXES, *ITK_SUFFIXES, *DICOM_SUFFIXES) if name.casefold().endswith(s))
    return name[: len(name) - len(max(suffixes, key=len, default=""))]


def write_submission(
    predictions: str | os.PathLike[str], folder: str | os.PathLike[str], *, allow_missing: bool = False,
    overwrite: bool = False,
) -> Submission:  # fmt: skip
    """Write ``A.csv``, ``G.csv``, ``covid.csv`` and ``normal.csv``: one scan name a line, no header.

    Every scan is in exactly one file, in the order of the table; a class without a scan gets an empty file.

    Args:
        predictions: a table with columns ``scan`` and ``prediction``, as inference writes it. A row of ``status``
            ``skipped`` is no scan and in no file; another ``status`` than ``ok``, or no prediction, is a failed scan.
        allow_missing: leave failed scans out instead of stopping.

    Raises:
        SubmissionError: scans failed, a class is none of the challenge's, two scans have one name, or the files exist.
        PredictionsError: no such table, or nothing in it.
    """
    predictions, folder = Path(predictions), Path(folder)
    table = read_table(predictions)
    for column in ("scan", "prediction"):
        if column not in table:
            raise SubmissionError(f"{predictions}: no column {column!r}; it has {columns_text(table)}")
    lines, faults, failed, skipped = _sorted_scans(table)
    if faults:
        raise SubmissionError(_listing(f"{predictions} cannot be submitted", faults))
    if failed and not allow_missing:
        title = f"{predictions}: {len(failed)} of {len(table)} scans have no prediction"
        raise SubmissionError(_listing(f"{title} (--allow-missing leaves them out)", failed, len(failed)))
    files = {folder / FILES[label]: names for label, names in lines.items()}
    there = ", ".join(path.name for path in files if path.exists())
    if there and not overwrite:
        raise SubmissionError(f"{folder}: already there: {there}; choose another folder, or --overwrite replaces them")
    folder.mkdir(parents=True, exist_ok=True)
    for path, names in files.items():
        path.write_text("".join(f"{name}\n" for name in names), encoding="utf-8", newline="\n")
    return Submission({path: len(names) for path, names in files.items()}, [*failed, *skipped])


def _sorted_scans(table: pd.DataFrame) -> tuple[dict[str, list[str]], list[str], list[str], list[str]]:
    """Names of a table's scans by class; and what is wrong with scans, which failed, and which were skipped."""
    lines: dict[str, list[str]] = {name: [] for name in FILES}
    scan_of: dict[str, str] = {}
    faults, failed, skipped = [], [], []
    status = table["status"] if "status" in table else ["ok"] * len(table)
    reasons = table["reason"] if "reason" in table else [""] * len(table)
    for scan, answer, state, reason in zip(table["scan"], table["prediction"], status, reasons, strict=True):
        if state == "skipped":  # no chest CT, so none of the challenge's scans
            skipped.append(f"{quoted(scan)}: skipped, {reason or 'no chest CT'}")
            continue
        name = submission_name(scan)
        label = answer if answer in CLASS_NAMES else CLASS_ALIASES.get(answer.casefold())
        if not name or not name.isprintable() or '"' in name or "," in name or guarded(name) != name:
            faults.append(f"{quoted(scan)}: its name cannot be a line of the file")
        elif name in scan_of:
            faults.append(f"{quoted(scan_of[name])} and {quoted(scan)} are both called {name!r}")
        elif state == "ok" and answer and label is None:
            faults.append(f"{quoted(scan)}: class {quoted(answer)} is none of {', '.join(CLASS_NAMES)}")
        scan_of.setdefault(name, scan)
        if state != "ok" or not answer:
            failed.append(f"{quoted(scan)}: {reason or 'no prediction'}")
        elif label is not None:
            lines[label].append(name)
    return lines, faults, failed, skipped


def _listing(title: str, lines: list[str], count: int = LISTED) -> str:
    more = [f"and {len(lines) - count} more"] if len(lines) > count else []
    return "\n  ".join([f"{title}:", *lines[:count], *more])
