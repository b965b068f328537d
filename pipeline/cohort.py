"""The cohort: one CSV file that describes a data set, read strictly, counted by cell, and built from folders.

A row is a scan. Columns: ``scan`` (folder or file, relative to the CSV file's folder or absolute), ``label`` (class
name), one or several group columns (``sex`` unless told otherwise; empty or "unknown" means unknown), and optionally
``split`` (train, val, test) and ``patient``. Other columns are kept as they are. Which classes there are is the
caller's to say; which groups, the caller's or the cohort's.

Patient ids and ages never reach a message, a log or a repr.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import pandas as pd
from rich.markup import escape
from rich.table import Table

from .errors import UserError
from .groups import (
    AGE,
    AGE_BAND,
    JOIN,
    MAX_AGE,
    MIN_CELL,
    SmallGroups,
    UnknownGroups,
    age_bands,
    check_age_bands,
    group_columns,
    group_ids,
    group_values,
    joined,
    occurring_groups,
    parent_groups,
)
from .names import CLASS_NAMES, SEXES, UNKNOWN, UNKNOWN_GROUP

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
UNSPLIT = "all"  # what a file without a split column is called as a whole
KNOWN_COLUMNS = ("scan", "label", "sex", "split", "patient", "site", "age")
# no groups: they say something else, are patients' own, or are what predictions.csv says beside the groups
NO_GROUPS = ("", "scan", "label", "split", "patient", AGE, "prediction", "synthetic", "postprocess")
MAX_GROUPS = 100  # that a cohort may give by itself; more are no groups but a mistaken column
MAX_PROBLEMS = 50
MAX_LINES_NAMED = 10
MAX_CELLS_NAMED = 12
MAX_VALUE_LENGTH = 120

CHALLENGE_CLASSES = dict(zip(("a", "g", "covid", "normal"), CLASS_NAMES, strict=True))
CLASS_ALIASES = CHALLENGE_CLASSES | {"covid-19": "covid19", "covid_19": "covid19", "healthy": "normal"}
LAYOUTS = ("auto", "paper", "challenge")
# What fairlung.transforms.load_scan reads (the two packages do not import each other).
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
DICOM_SUFFIXES = (".dcm", ".ima")
VOLUME_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
DICOM_PREAMBLE = 128


class CohortError(UserError, ValueError):
    """The cohort cannot be used; the message lists everything that is wrong with it."""


@dataclass(frozen=True, eq=False)
class Cohort:
    """A validated cohort; made by :func:`load_cohort`.

    Attributes:
        table: every column of the file as text, in its order, index 0..n-1. Not in the repr: it may name patients.
        root: absolute folder of the CSV file; relative scans start here.
        class_names: class ``i`` is ``class_names[i]``.
        group_names: group ``i`` is ``group_names[i]``. A scan of unknown group is -1, or has the group "unknown" when
            that is one of the names.
        group_by: the columns whose values make the group; of several, a group is a combination.
    """

    table: pd.DataFrame = field(repr=False)
    root: Path
    class_names: tuple[str, ...]
    group_names: tuple[str, ...]
    group_by: tuple[str, ...]

    def splits(self) -> tuple[str, ...]:
        """Splits with a scan, in the order train, val, test; ``("all",)`` for a file without a split column."""
        present = set(self._split_of_rows())
        return tuple(split for split in (*SPLITS, UNSPLIT) if split in present)

    def items(self, split: str) -> list[dict[str, Any]]:
        """What a data loader needs of each scan of a split, in the file's order.

        Returns:
            Dictionaries of ``image`` (absolute path), ``label`` (class index), ``group`` (group index, -1 unknown),
            ``group_values`` (its value in each group column, "" unknown) and ``scan`` (as written in the file).

        Raises:
            ValueError: no scan is in ``split``; names the splits that there are.
        """
        rows = self._rows(split)
        values = group_values(rows, self.group_by)
        ids, _ = group_ids(joined(values), self.group_names)
        return [
            {
                "image": str(self.root / scan),
                "label": self.class_names.index(label),
                "group": int(group),
                "group_values": list(of_columns),
                "scan": scan,
            }
            for scan, label, group, of_columns in zip(
                rows["scan"], rows["label"], ids, values.itertuples(index=False, name=None), strict=True
            )
        ]

    def training_items(self, min_cell: int = MIN_CELL, small_groups: SmallGroups = "keep") -> list[dict[str, Any]]:
        """:meth:`items` of the training split; with ``leave_out`` scans of a group of :meth:`small_groups` have none.

        Raises:
            CohortError: no group is left.
            ValueError: an argument makes no sense, or there is no training split.
        """
        small = self._left_out(min_cell, small_groups)
        items = self.items("train")
        if small and not {item["group"] for item in items} - {UNKNOWN_GROUP, *small}:
            raise CohortError(
                f"small_groups leave_out leaves no group: every one has fewer than min_cell = {min_cell} training scans"
            )
        return [item | {"group": UNKNOWN_GROUP} if item["group"] in small else item for item in items]

    def small_groups(self, min_cell: int = MIN_CELL) -> dict[str, int]:
        """Groups with fewer than ``min_cell`` scans in the training split, and how many they have."""
        if isinstance(min_cell, bool) or not isinstance(min_cell, int) or min_cell < 0:
            raise ValueError(f"min_cell must be a whole number, 0 or more, got {min_cell!r}")
        ids = Counter(item["group"] for item in self.items("train"))
        return {name: ids[g] for g, name in enumerate(self.group_names) if ids[g] < min_cell}

    def _left_out(self, min_cell: int, small_groups: SmallGroups) -> set[int]:
        if small_groups not in get_args(SmallGroups):
            raise ValueError(f"small_groups must be one of {', '.join(get_args(SmallGroups))}, got {small_groups!r}")
        small = self.small_groups(min_cell)
        return {self.group_names.index(name) for name in small} if small_groups == "leave_out" else set()

    @property
    def group_parents(self) -> list[int]:
        """The parent of each group: its value in the first group column, for an aggregation in two levels.

        A list of G ids, in the order in which the parents appear in ``group_names``. With one column every group is
        its own parent; the group "unknown" always is.
        """
        return parent_groups(self.group_names, self.group_by)

    def class_counts(self, split: str) -> dict[str, int]:
        """Scans of each class in a split, in the order of ``class_names``, zeros included. Raises as :meth:`items`."""
        count = Counter(self._rows(split)["label"])
        return {name: count[name] for name in self.class_names}

    @property
    def synthetic(self) -> bool:
        """Whether any scan says that it is a phantom (column ``synthetic``); results must then say so too."""
        return "synthetic" in self.table and bool((self.table["synthetic"] == "yes").any())

    def cells(self) -> pd.DataFrame:
        """Scans of each split, class and group.

        Returns:
            Columns ``split``, ``label``, ``group``, ``n``: every combination, zeros included. The group ``unknown`` has
            rows only when some scan of the cohort is of unknown group, or when it is a group of its own.
        """
        groups = self._groups().replace("", UNKNOWN)
        count = Counter(zip(self._split_of_rows(), self.table["label"], groups, strict=True))
        names = dict.fromkeys((*self.group_names, *([UNKNOWN] if (groups == UNKNOWN).any() else [])))
        rows = [(*cell, count[cell]) for cell in product(self.splits(), self.class_names, names)]
        return pd.DataFrame(rows, columns=["split", "label", "group", "n"])

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of which scan has which label, group and split.

        The order of rows and columns, other columns, where the folder lies, and whether a scan inside it is written
        relative or absolute make no difference.
        """
        split = self.table["split"] if "split" in self.table else [""] * len(self.table)
        rows = zip(self.table["scan"], self.table["label"], self._groups(), split, strict=True)
        content = sorted([self._canonical(scan), *rest] for scan, *rest in rows)
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def _canonical(self, scan: str) -> str:
        path = Path(os.path.normpath(self.root / scan))
        if Path(scan).is_absolute() and not path.is_relative_to(self.root):
            return path.as_posix()
        return Path(os.path.relpath(path, self.root)).as_posix()

    def _split_of_rows(self) -> list[str]:
        return self.table["split"].tolist() if "split" in self.table else [UNSPLIT] * len(self.table)

    def _rows(self, split: str) -> pd.DataFrame:
        if split not in self.splits():
            raise ValueError(f"no scan is in split {split!r}; splits of this cohort: {', '.join(self.splits())}")
        return self.table[[value == split for value in self._split_of_rows()]]

    def _groups(self) -> pd.Series:
        """The name of each scan's group, "" where it is unknown."""
        return joined(group_values(self.table, self.group_by))


def load_cohort(
    path: str | os.PathLike[str],
    *,
    class_names: Sequence[str],
    group_names: Sequence[str] | None = None,
    group_by: str | Sequence[str] = "sex",
    unknown_groups: UnknownGroups = "leave_out",
    age_bands: Sequence[int] | None = None,
    allow_empty_cells: bool = False,
    require_splits: Sequence[str] = (),
) -> Cohort:
    """Read and check a cohort file.

    Args:
        path: the CSV file (UTF-8, comma).
        class_names: the classes, in the order of their ids; at least one.
        group_names: the groups, in the order of their ids; at least one. Of several columns a group is called as its
            values joined, such as "male x <65". None takes the groups that occur, male before female, others in
            natural order; the column ``sex`` then holds male and female only.
        group_by: the column that holds the group, or several, whose combinations are the groups.
        unknown_groups: ``leave_out``: a scan of unknown group has none, -1. ``own_group``: such scans, if there are
            any, are one more group, "unknown"; of several columns one unknown part is enough.
        age_bands: edges in years that make the column ``age_band`` of the column ``age``; None makes none.
        allow_empty_cells: accept a class and group without a scan in some split. A class without any scan in train is
            an error even so: its prior would be zero.
        require_splits: splits that must have at least one scan.

    Raises:
        CohortError: the file is unusable; one message with every problem, by line of the file (the first 50, and how
            many more).
        ValueError: an argument makes no sense.
    """
    class_names = _checked_names(class_names, "class_names")
    columns = group_columns(group_by)
    for column in columns:
        if column == AGE:
            raise ValueError("group_by: ages are no groups; set age_bands, such as [65], and group by age_band")
        if column in NO_GROUPS or column.startswith("prob_"):
            raise ValueError(f"group_by: {column!r} cannot hold the group")
    if unknown_groups not in get_args(UnknownGroups):
        raise ValueError(f"unknown_groups must be one of {', '.join(get_args(UnknownGroups))}, got {unknown_groups!r}")
    names = None if group_names is None else _checked_group_names(group_names, columns, unknown_groups)
    edges = None if age_bands is None else check_age_bands(age_bands)
    if isinstance(require_splits, str) or not set(require_splits) <= set(SPLITS):
        raise ValueError(f"require_splits: {require_splits!r} is not a list of {', '.join(SPLITS)}")
    path = Path(os.path.abspath(path))
    table, lines, ragged = _read(path)

    problems = _column_problems(table, columns, edges)
    in_rows = list(ragged)
    resolved: tuple[str, ...] = ()
    if not problems:
        in_rows += _value_problems(table, lines, "label", class_names)
        if edges is not None:
            in_rows += _add_age_bands(table, lines, edges)
        values = group_values(table, columns)
        in_rows += _group_problems(values, lines, names)
        resolved = _resolved_groups(values, names, unknown_groups)
        if not set(resolved) - {UNKNOWN}:
            problems.append(f"no scan has a group by {', '.join(columns)}: a value is missing in every row")
        elif names is None and len(resolved) > MAX_GROUPS:
            problems.append(
                f"{len(resolved)} groups by {', '.join(columns)}: is it the right column? More than {MAX_GROUPS} must "
                "be listed in group_names"
            )
            resolved = ()
        if "split" in table:
            in_rows += _value_problems(table, lines, "split", SPLITS)
        in_rows += _scan_problems(table, lines, path.parent)
        if {"patient", "split"} <= set(table):
            in_rows += _patient_problems(table, lines)
        problems += _split_problems(table, require_splits)
        problems += _cell_problems(table, joined(values), class_names, resolved, len(columns), allow_empty_cells)
    problems += [text for _, text in sorted(in_rows, key=lambda problem: problem[0])]
    if problems:
        raise CohortError(_report(path, problems))
    return Cohort(table, path.parent, class_names, resolved, columns)


def warn_of_small_cells(cohort: Cohort, min_cell: int = MIN_CELL, small_groups: SmallGroups = "keep") -> None:
    """One warning that lists the groups and cells of the training split with fewer than ``min_cell`` scans.

    What is said once at the start is that a group's loss is then that of few scans, and what can be done.

    Raises:
        ValueError: an argument makes no sense.
    """
    from .distributed import is_primary

    left_out = bool(cohort._left_out(min_cell, small_groups))
    small = cohort.small_groups(min_cell)
    cells = cohort.cells()
    # the cells of a group that is left out, or that has few scans in all, say nothing more
    rows = cells[(cells["split"] == "train") & (cells["n"] < min_cell) & cells["group"].isin(cohort.group_names)]
    rows = rows[~rows["group"].isin(small)].sort_values("n", kind="stable")
    parts = []
    if small:
        what = (
            "left out of the aggregation over groups (small_groups: leave_out); evaluations report them"
            if left_out
            else "small_groups: leave_out takes them out of the aggregation; evaluations would still report them"
        )
        parts.append(f"groups: {_listed([f'{name} {n}' for name, n in small.items()])} ({what})")
    if len(rows):
        parts.append(f"cells: {_listed([f'{row.group} {row.label} {row.n}' for row in rows.itertuples()])}")
    if parts and is_primary():
        logger.warning(
            "fewer than %d training scans (min_cell) in %s. The loss of such a group or cell is that of a few scans, "
            "seen again and again: an aggregation that follows the worst group (CVaR) can chase their noise, and what "
            "they gain need not carry over to other scans.",
            min_cell,
            "; ".join(parts),
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_CELLS_NAMED} more" if len(names) > MAX_CELLS_NAMED else ""
    return ", ".join(names[:MAX_CELLS_NAMED]) + more


def format_cells(cohort: Cohort) -> Table:
    """A rich table of the scans of each split, class and group, with totals."""
    cells = cohort.cells()
    groups = list(dict.fromkeys(cells["group"]))
    out = Table(title=escape(f"{len(cohort.table)} scans by split, class and {JOIN.join(cohort.group_by)}"))
    for heading in ("split", "class"):
        out.add_column(heading)
    for heading in (*groups, "total"):
        out.add_column(escape(heading), justify="right")
    for split in cohort.splits():
        counts = cells[cells["split"] == split].pivot(index="label", columns="group", values="n")
        for position, label in enumerate(cohort.class_names):
            row = [int(n) for n in counts.loc[label, groups].to_numpy()]
            out.add_row(split if position == 0 else "", escape(label), *map(str, row), str(sum(row)))
        total = [int(n) for n in counts[groups].sum()]
        out.add_row("", "total", *map(str, total), str(sum(total)), style="bold", end_section=True)
    return out


# --- reading and checking -------------------------------------------------------------------------------------------

Problem = tuple[int, str]  # line of the file, text


def _checked_names(names: Sequence[str], argument: str) -> tuple[str, ...]:
    if isinstance(names, str) or not names:
        raise ValueError(f"{argument}: {names!r} is not a list of at least one name")
    for name in names:
        if not isinstance(name, str) or not name or name != name.strip():
            raise ValueError(f"{argument}: {name!r} is not a name (text without space at its ends)")
    if len(set(names)) < len(names):
        raise ValueError(f"{argument}: {list(names)!r} names something twice")
    return tuple(names)


def _checked_group_names(
    names: Sequence[str], columns: tuple[str, ...], unknown_groups: UnknownGroups
) -> tuple[str, ...]:
    names = _checked_names(names, "group_names")
    if UNKNOWN in names and unknown_groups != "own_group":
        raise ValueError(
            f"group_names: {UNKNOWN!r} is reserved; leave the cell empty where the group is unknown, and set "
            "unknown_groups to own_group to make such scans a group"
        )
    for name in names:
        if name != UNKNOWN and len(columns) > 1 and len(name.split(JOIN)) != len(columns):
            example = JOIN.join(f"<{column}>" for column in columns)
            raise ValueError(f"group_names: {name!r} is no group by {', '.join(columns)}: they are called {example!r}")
    return names


def _read(path: Path) -> tuple[pd.DataFrame, list[int], list[Problem]]:
    """The rows as stripped text, the line on which each starts, and the rows that do not fit the header (left out).

    The csv module, not pandas: pandas neither tells lines nor refuses an unclosed quote or a short row.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise CohortError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise CohortError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as CSV UTF-8"
        ) from None
    except OSError as error:
        raise CohortError(f"{path}: cannot be read: {error.strerror}") from None
    if "\0" in text:
        raise CohortError(f"{path}: not a CSV file (it holds binary data)")
    if not text.strip():
        raise CohortError(f"{path}: the file is empty")

    records: list[tuple[int, list[str]]] = []
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        for record in reader:
            if any(cell.strip() for cell in record) or len(record) > 1:
                records.append((line, [cell.strip() for cell in record]))
            line = reader.line_num + 1
    except csv.Error as error:
        raise CohortError(f"{path}: not a CSV file: line {line}: {error}") from None

    _, header = records[0]
    repeated = [name for name, count in Counter(header).items() if count > 1]
    if repeated:
        # the line may be no header but a row of patients: show names of ours alone
        shown = [name for name in repeated if name in KNOWN_COLUMNS]
        raise CohortError(f"{path}: columns named twice{': ' if shown else ''}{', '.join(map(repr, shown))}")
    if len(records) == 1:
        raise CohortError(f"{path}: a header and no rows")
    # What stands in a row that does not fit is not shown: which of it is a patient id is anybody's guess.
    ragged = [
        (line, f"line {line}: {len(record)} values, but the header has {len(header)}")
        for line, record in records[1:]
        if len(record) != len(header)
    ]
    fitting = [(line, record) for line, record in records[1:] if len(record) == len(header)]
    table = pd.DataFrame([record for _, record in fitting], columns=header, dtype=str)
    return table, [line for line, _ in fitting], ragged


def _column_problems(table: pd.DataFrame, columns: tuple[str, ...], edges: tuple[int, ...] | None) -> list[str]:
    problems = []
    if edges is not None and AGE_BAND in table:
        problems.append(f"there is a column {AGE_BAND!r} already; leave out age_bands, or the column")
    derived = () if edges is None else (AGE_BAND,)
    for name in ("scan", "label", *columns, *(() if edges is None else (AGE,))):
        if name not in table and name not in derived:
            hint = _near_column(name, list(table.columns))
            if name == AGE_BAND and AGE in table:
                hint = "; age_bands, such as [65], makes it of the column 'age'"
            problems.append(f"no column {name!r} in the first line{hint}")
    if problems and len(table.columns) == 1 and re.search(r"[;\t|]", table.columns[0]):
        problems.append("the header is one single column: separate the columns with commas")
    return problems


def _near_column(name: str, columns: list[str]) -> str:
    """A misspelt column, if one is near. Others are not shown: without a header, they are a patient's row."""
    near = difflib.get_close_matches(name, [c for c in columns if c not in KNOWN_COLUMNS], n=1, cutoff=0.6)
    return f" (is it {_shown(near[0])}?)" if near else ""


def _value_problems(
    table: pd.DataFrame, lines: list[int], column: str, valid: Sequence[str], *, may_be_empty: bool = False
) -> Iterator[Problem]:
    for line, value in zip(lines, table[column], strict=True):
        if value in valid or (may_be_empty and not value):
            continue
        if not value:
            yield line, f"line {line}: {column} is empty"
        else:
            hint = _did_you_mean(value, valid)
            yield line, f"line {line}: {column} {_shown(value)} is unknown{hint}; valid: {', '.join(valid)}"


def _add_age_bands(table: pd.DataFrame, lines: list[int], edges: tuple[int, ...]) -> list[Problem]:
    """Add the column age_band; what is no age is a problem, and is not shown: it may be anything of a patient."""
    written = group_values(table, [AGE])[AGE]
    years = pd.to_numeric(written, errors="coerce").to_numpy(dtype=float)
    wrong = (written != "").to_numpy() & ~((years >= 0) & (years <= MAX_AGE))
    table[AGE_BAND] = age_bands(np.where(wrong, np.nan, years), edges)
    said = f"age is not a number from 0 to {MAX_AGE}; leave it empty where it is unknown"
    return [(lines[i], f"line {lines[i]}: {said}") for i in np.flatnonzero(wrong)]


def _group_problems(values: pd.DataFrame, lines: list[int], names: tuple[str, ...] | None) -> Iterator[Problem]:
    columns = list(values.columns)
    if names is None:
        for column in columns:
            if column == "sex":
                yield from _value_problems(values, lines, column, SEXES, may_be_empty=True)
            else:
                yield from _spelling_problems(values[column], lines)
    if len(columns) == 1:
        if names is not None:
            yield from _value_problems(values, lines, columns[0], names, may_be_empty=True)
        return
    for column in columns:
        for line, value in zip(lines, values[column], strict=True):
            if JOIN in value:
                yield line, f"line {line}: {column} {_shown(value)} holds {JOIN!r}, which joins the values of a group"
    if names is not None:
        group = JOIN.join(columns)
        yield from _value_problems(joined(values).to_frame(group), lines, group, names, may_be_empty=True)


def _spelling_problems(values: pd.Series, lines: list[int]) -> Iterator[Problem]:
    """Values that differ in case alone: most likely one group."""
    first: dict[str, tuple[str, int]] = {}
    for line, value in zip(lines, values, strict=True):
        other, there = first.setdefault(value.casefold(), (value, line))
        if other != value:
            yield line, f"line {line}: {values.name} {_shown(value)} is written {_shown(other)} in line {there}"


def _resolved_groups(
    values: pd.DataFrame, names: tuple[str, ...] | None, unknown_groups: UnknownGroups
) -> tuple[str, ...]:
    found = names
    if found is None:
        valid = values.assign(sex=values["sex"].where(values["sex"].isin(SEXES), "")) if "sex" in values else values
        # where no sex is known there are two of them even so
        found = occurring_groups(valid) or (SEXES if list(values) == ["sex"] else ())
    unknown = bool((values == "").any(axis=1).any())
    return (*found, UNKNOWN) if unknown and unknown_groups == "own_group" and UNKNOWN not in found else found


def _scan_problems(table: pd.DataFrame, lines: list[int], root: Path) -> Iterator[Problem]:
    first_line: dict[str, int] = {}
    for line, scan in zip(lines, table["scan"], strict=True):
        if not scan:
            yield line, f"line {line}: scan is empty"
            continue
        # Resolved, so that the same scan under two spellings or links cannot lie in train and in val.
        place = os.path.realpath(root / scan)
        if not os.path.exists(place):
            yield line, f"line {line}: scan {_shown(scan)} does not exist ({_shown(place)})"
        if place in first_line:
            yield line, f"line {line}: scan {_shown(scan)} is the scan of line {first_line[place]} again"
        first_line.setdefault(place, line)


def _patient_problems(table: pd.DataFrame, lines: list[int]) -> Iterator[Problem]:
    lines_of: defaultdict[str, defaultdict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for line, patient, split in zip(lines, table["patient"], table["split"], strict=True):
        if patient and split in SPLITS:
            lines_of[patient][split].append(line)
    for by_split in lines_of.values():
        if len(by_split) > 1:
            where = " and in ".join(f"{split} ({_named_lines(rows)})" for split, rows in by_split.items())
            yield min(min(rows) for rows in by_split.values()), f"one patient is in {where}"


def _split_problems(table: pd.DataFrame, require_splits: Sequence[str]) -> list[str]:
    if require_splits and "split" not in table:
        return [f"no column 'split', but these splits are needed: {', '.join(require_splits)}"]
    return [f"{split}: no scan at all" for split in require_splits if split not in set(table["split"])]


def _cell_problems(
    table: pd.DataFrame,
    groups: pd.Series,
    class_names: tuple[str, ...],
    group_names: tuple[str, ...],
    num_columns: int,
    allow_empty_cells: bool,
) -> list[str]:
    splits = table["split"].tolist() if "split" in table else [UNSPLIT] * len(table)
    filled = set(zip(splits, table["label"], groups.replace("", UNKNOWN), strict=True))
    classes_of = {split: {label for its, label, _ in filled if its == split} for split in splits}
    groups_known = any(group in group_names for _, _, group in filled)
    problems = []
    for split in [split for split in (*SPLITS, UNSPLIT) if split in classes_of]:
        empty = []
        for label in class_names:
            if split == "train" and label not in classes_of[split]:
                problems.append(f"{split}: no {label} scan at all")
            elif groups_known and not allow_empty_cells:
                empty += [f"{group} {label}" for group in group_names if (split, label, group) not in filled]
        if num_columns == 1:
            problems += [f"{split}: no {cell} scan" for cell in empty]
        elif empty:
            problems.append(
                f"{split}: {len(empty)} of {len(group_names) * len(class_names)} cells have no scan: {_listed(empty)}; "
                "combinations often have none: set allow_empty_cells to true, and F1 counts as 0 there; or take fewer "
                "columns, wider bands"
            )
    return problems


def _did_you_mean(value: str, valid: Sequence[str]) -> str:
    """A hint at the nearest valid name: by spelling, else what is short or long for it, else nothing."""
    by_key = {name.casefold(): name for name in reversed(valid)}
    near = difflib.get_close_matches(value.casefold(), list(by_key), n=1)
    if not near:
        near = [key for key in by_key if key.startswith(value.casefold()) or value.casefold().startswith(key)]
    if len(near) == 1:
        return f", did you mean {by_key[near[0]]!r}?"
    alias = CLASS_ALIASES.get(value.casefold())
    return f", did you mean {alias!r}?" if alias in valid else ""


def _shown(value: str) -> str:
    return repr(value if len(value) <= MAX_VALUE_LENGTH else value[: MAX_VALUE_LENGTH - 3] + "...")


def _named_lines(lines: list[int]) -> str:
    named = ", ".join(map(str, lines[:MAX_LINES_NAMED]))
    more = f" and {len(lines) - MAX_LINES_NAMED} more" if len(lines) > MAX_LINES_NAMED else ""
    return f"line{'s' if len(lines) > 1 else ''} {named}{more}"


def _report(path: Path, problems: list[str]) -> str:
    listed = [f"  - {problem}" for problem in problems[:MAX_PROBLEMS]]
    if len(problems) > MAX_PROBLEMS:
        listed.append(f"  ... and {len(problems) - MAX_PROBLEMS} more")
    return "\n".join([f"{path}: {len(problems)} problem{'s' if len(problems) > 1 else ''}", *listed])


# --- building from folders ------------------------------------------------------------------------------------------


class Skipped(NamedTuple):
    """Something in the tree that looked like data and is not in the cohort."""

    path: str
    reason: str


class BuiltCohort(NamedTuple):
    """What :func:`build_cohort` found.

    ``table`` has the columns ``scan`` (relative to the folder), ``label``, ``sex``, ``split``; ``skipped`` is the rest.
    """

    table: pd.DataFrame
    skipped: list[Skipped]


def build_cohort(
    folder: str | os.PathLike[str], *, layout: str = "auto", class_names: Sequence[str] | None = None
) -> BuiltCohort:
    """Describe a folder tree ``.../<split>.../<class>/<male|female>/<scan>`` as a cohort table.

    A scan is a folder of slice images or DICOM files, a volume file, a folder that holds one volume file and no slices,
    or a single DICOM file. The split is the nearest folder above the class whose name starts with train, val or test,
    in any case, below ``folder``. Hidden files (``._*`` too) are ignored.

    Args:
        folder: the root of the tree.
        layout: ``paper``: exactly ``<train|val|test>/<class>/<sex>/<scan>``, class folders named as the classes;
            ``challenge``: class folders A, G, covid, normal at any depth; ``auto``: both, and other spellings.
        class_names: the classes to take. When None: the paper's four, and with ``auto`` any folder that holds
            ``male`` or ``female`` counts as a class under its own name.

    Returns:
        The table, rows in natural order of their paths whatever the file system's order; and what was left out and why.

    Raises:
        CohortError: ``folder`` is not a folder, or holds no scan that can be used (with the reasons).
        ValueError: an argument makes no sense.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout: {layout!r} is not one of {', '.join(LAYOUTS)}")
    names = None if class_names is None else _checked_names(class_names, "class_names")
    root = Path(os.path.abspath(folder))
    if not root.is_dir():
        raise CohortError(f"{root}: not a folder")

    rows: list[tuple[str, str, str, str]] = []
    skipped: list[Skipped] = []
    for place in _walk(root):
        here = place.relative_to(root).parts
        if here and here[-1].casefold() in SEXES:
            sex, above = here[-1].casefold(), here[:-1]
            label, split, reason = _class_and_split(above, layout, names)
            if reason:
                skipped.append(Skipped("/".join(here), reason))
                continue
            for scan, problem in _scans_in(place):
                path = scan.relative_to(root).as_posix()
                problem = problem or _unwritable(path)
                if problem:
                    skipped.append(Skipped(path, problem))
                else:
                    rows.append((path, label, sex, split))
        elif _has_slices(place) or _volumes_in(place):
            skipped.append(Skipped("/".join(here) or ".", "images that lie in no <class>/<male|female>/ folder"))

    # Whatever the file system allows in a name, a report of it can be printed.
    skipped = [Skipped(*(text.encode(errors="backslashreplace").decode() for text in entry)) for entry in skipped]
    skipped.sort(key=lambda entry: _natural(entry.path))
    if not rows:
        reasons = [f"{entry.path}: {entry.reason}" for entry in skipped] or ["no <class>/<male|female>/<scan> folder"]
        raise CohortError("no usable scan\n" + _report(root, reasons))
    rows.sort(key=lambda row: _natural(row[0]))
    return BuiltCohort(pd.DataFrame(rows, columns=["scan", "label", "sex", "split"], dtype=str), skipped)


def write_cohort(
    table: pd.DataFrame, path: str | os.PathLike[str], *, root: str | os.PathLike[str] | None = None
) -> Path:
    """Write a cohort file, with scans relative to its own folder.

    Args:
        table: at least the columns ``scan`` and ``label``.
        path: the CSV file to write; its folder must exist.
        root: the folder that the table's relative scans start from, e.g. the one given to :func:`build_cohort`;
            when None: the folder of ``path``.

    Returns:
        ``path``, absolute.

    Raises:
        CohortError: a column is missing, or a scan does not exist (most likely ``root`` is not right).
    """
    path = Path(os.path.abspath(path))
    problems = [f"no column {name!r}" for name in ("scan", "label") if name not in table]
    if problems:
        raise CohortError(_report(path, problems))
    # Real folders: '..' out of a linked folder does not lead back to where the link stands.
    start = os.path.realpath(path.parent if root is None else root)
    target = os.path.realpath(path.parent)
    scans = []
    for scan in table["scan"]:
        if Path(scan).is_absolute():
            scans.append(scan)
        else:
            scans.append(Path(os.path.relpath(os.path.join(start, scan), target)).as_posix())
        if not os.path.exists(path.parent / scans[-1]):
            problems.append(f"scan {_shown(scan)} does not exist under {start}")
    if problems:
        raise CohortError(_report(path, problems))
    table.assign(scan=scans).to_csv(path, index=False, encoding="utf-8", lineterminator="\n")
    return path


def _walk(folder: Path, ancestors: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Every visible folder under ``folder``, itself first, but nothing below a sex folder. Links are followed."""
    real = os.path.realpath(folder)
    if real in ancestors:
        return  # a link to a folder above it: following it would never end
    yield folder
    if folder.name.casefold() in SEXES and ancestors:
        return
    for child in _visible(folder):
        if child.is_dir():
            yield from _walk(child, ancestors | {real})


def _visible(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return [folder / entry.name for entry in entries if not entry.name.startswith(".")]


def _natural(path: str) -> tuple[tuple[tuple[str | int, ...], ...], str]:
    """Sort key: folder by folder, numbers by value, letters whatever their case; ties by the exact text."""
    parts = (re.split(r"(\d+)", part.casefold()) for part in path.split("/"))
    return tuple(tuple(int(bit) if i % 2 else bit for i, bit in enumerate(part)) for part in parts), path


def _class_and_split(above: tuple[str, ...], layout: str, names: tuple[str, ...] | None) -> tuple[str, str, str]:
    """Label and split of a sex folder from the names of the folders above it; the third value says what is wrong."""
    if not above:
        return "", "", "no class folder above it"
    label = _class_of(above[-1], layout, names)
    if label is None:
        valid = names or (tuple(CHALLENGE_CLASSES) if layout == "challenge" else CLASS_NAMES)
        return "", "", f"class folder {above[-1]!r} is not one of {', '.join(valid)}"
    split = next(filter(None, map(_split_of, reversed(above[:-1]))), None)
    if split is None:
        return "", "", "no folder above the class starts with train, val or test; give the folder that holds the splits"
    if layout == "paper" and (len(above) != 2 or above[0].casefold() not in SPLITS):
        return "", "", "not at <train|val|test>/<class>/<sex>, as the paper layout wants it"
    return label, split, ""


def _class_of(folder: str, layout: str, names: tuple[str, ...] | None) -> str | None:
    key = folder.casefold()
    if layout == "challenge":
        label = CHALLENGE_CLASSES.get(key)
        return label if names is None or label in names else None
    # The name itself comes before what it may be short for: a cohort may well have a class called A.
    literal = {name.casefold(): name for name in names or CLASS_NAMES}
    if layout == "paper" or key in literal:
        return literal.get(key)
    alias = CLASS_ALIASES.get(key)
    if names is None:
        return alias or folder
    return alias if alias in names else None


def _split_of(folder: str) -> str | None:
    return next((split for split in SPLITS if folder.casefold().startswith(split)), None)


def _scans_in(sex_folder: Path) -> Iterator[tuple[Path, str]]:
    """Each scan of a sex folder, or what stands in a scan's place with the reason why it is none (empty: it is one)."""
    for entry in _visible(sex_folder):
        if entry.is_dir():
            if _has_slices(entry):
                yield entry, ""
            elif len(volumes := _volumes_in(entry)) == 1:
                yield volumes[0], ""
            elif volumes:
                yield entry, f"{len(volumes)} volume files in one scan folder; which one is the scan?"
            elif any(child.is_dir() for child in _visible(entry)):
                yield entry, "no image in the scan folder itself, only further folders"
            else:
                yield entry, "no image, DICOM or volume file in it"
        elif not entry.exists():
            yield entry, "a link to nothing"
        elif _has_suffix(entry, (*VOLUME_SUFFIXES, *DICOM_SUFFIXES)) or _is_bare_dicom(entry):
            yield entry, ""
        elif _has_suffix(entry, IMAGE_SUFFIXES):
            yield entry, "a single image outside a scan folder"


def _has_slices(folder: Path) -> bool:
    entries = _visible(folder)
    by_name = any(_has_suffix(entry, (*IMAGE_SUFFIXES, *DICOM_SUFFIXES)) and entry.is_file() for entry in entries)
    return by_name or any(map(_is_bare_dicom, entries))


def _volumes_in(folder: Path) -> list[Path]:
    return [entry for entry in _visible(folder) if _has_suffix(entry, VOLUME_SUFFIXES) and entry.is_file()]


def _has_suffix(path: Path, suffixes: tuple[str, ...]) -> bool:
    return path.name.casefold().endswith(suffixes)


def _is_bare_dicom(path: Path) -> bool:
    """A DICOM file without its suffix, as scanners export them (the name is often a UID)."""
    if not re.fullmatch(r"(\.\d+)?", path.suffix) or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(DICOM_PREAMBLE + 4)[DICOM_PREAMBLE:] == b"DICM"


def _unwritable(path: str) -> str:
    """Why a path cannot be written to a cohort file and read back; empty when it can."""
    if path != path.strip():
        return "its name begins or ends with a space"
    try:
        path.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    return ""
