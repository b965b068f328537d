"""The cohort: one CSV file that describes a data set, read strictly, counted by cell, and built from folders.

A row is a scan. Columns: ``scan`` (folder or file, relative to the CSV file's folder or absolute), ``label`` (class
name), one or several group columns (``sex`` unless told otherwise; empty or "unknown" means unknown), and optionally
``split`` (train, val, test) and ``patient``. Other columns are kept as they are. Which classes there are is the
caller's to say; which groups, the caller's or the cohort's.

Patient ids and ages never reach a message, a log or a repr.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from fairlung.transforms.checks import check_whole

from ..common.names import UNKNOWN, UNKNOWN_GROUP
from .cohort_checks import (
    MAX_GROUPS,
    SPLITS,
    UNSPLIT,
    CohortError,
    add_age_bands,
    cell_problems,
    checked_group_names,
    checked_names,
    column_problems,
    group_problems,
    listed,
    number_problems,
    problem_report,
    read_table_lines,
    resolved_groups,
    row_problems,
    split_problems,
    value_problems,
)
from .groups import (
    AGE,
    MIN_CELL,
    SmallGroups,
    UnknownGroups,
    check_age_bands,
    group_columns,
    group_ids,
    group_values,
    joined,
    parent_groups,
)

logger = logging.getLogger(__name__)


# no groups: they say something else, are patients' own, or are what predictions.csv says beside the groups
NO_GROUPS = ("", "scan", "label", "split", "patient", AGE, "prediction", "synthetic", "postprocess")


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
        check_whole("min_cell", min_cell, least=0)
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

    Example:
        >>> from tempfile import mkdtemp
        >>> folder = Path(mkdtemp())
        >>> for scan in ("a", "b"):
        ...     (folder / scan).mkdir()
        >>> _ = (folder / "cohort.csv").write_text("scan,label,sex\\na,normal,male\\nb,normal,female\\n")
        >>> cohort = load_cohort(folder / "cohort.csv", class_names=["normal"])
        >>> cohort.group_names, cohort.class_counts("all")
        (('male', 'female'), {'normal': 2})

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
    class_names = checked_names(class_names, "class_names")
    columns = _checked_columns(group_by)
    if unknown_groups not in get_args(UnknownGroups):
        raise ValueError(f"unknown_groups must be one of {', '.join(get_args(UnknownGroups))}, got {unknown_groups!r}")
    names = None if group_names is None else checked_group_names(group_names, columns, unknown_groups)
    edges = None if age_bands is None else check_age_bands(age_bands)
    if isinstance(require_splits, str) or not set(require_splits) <= set(SPLITS):
        raise ValueError(f"require_splits: {require_splits!r} is not a list of {', '.join(SPLITS)}")
    path = Path(os.path.abspath(path))
    table, lines, in_rows = read_table_lines(path)
    resolved: tuple[str, ...] = ()
    problems = column_problems(table, columns, edges)
    if not problems:
        in_rows += value_problems(table, lines, "label", class_names)
        in_rows += [] if edges is None else add_age_bands(table, lines, edges)
        values = group_values(table, columns)
        in_rows += group_problems(values, lines, names)
        in_rows += row_problems(table, lines, path.parent)
        resolved = resolved_groups(values, names, unknown_groups)
        problems += number_problems(resolved, names, columns)
        problems += split_problems(table, require_splits)
        counted = resolved if names or len(resolved) <= MAX_GROUPS else ()
        problems += cell_problems(table, joined(values), class_names, counted, len(columns), allow_empty_cells)
    problems += [text for _, text in sorted(in_rows, key=lambda problem: problem[0])]
    if problems:
        raise CohortError(problem_report(path, problems))
    return Cohort(table, path.parent, class_names, resolved, columns)


def _checked_columns(group_by: str | Sequence[str]) -> tuple[str, ...]:
    columns = group_columns(group_by)
    for column in columns:
        if column == AGE:
            raise ValueError("group_by: ages are no groups; set age_bands, such as [65], and group by age_band")
        if column in NO_GROUPS or column.startswith("prob_"):
            raise ValueError(f"group_by: {column!r} cannot hold the group")
    return columns


def warn_of_small_cells(cohort: Cohort, min_cell: int = MIN_CELL, small_groups: SmallGroups = "keep") -> None:
    """One warning that lists the groups and cells of the training split with fewer than ``min_cell`` scans.

    What is said once at the start is that a group's loss is then that of few scans, and what can be done.

    Raises:
        ValueError: an argument makes no sense.
    """
    from ..common.distributed import is_primary

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
        parts.append(f"groups: {listed([f'{name} {n}' for name, n in small.items()])} ({what})")
    if len(rows):
        parts.append(f"cells: {listed([f'{row.group} {row.label} {row.n}' for row in rows.itertuples()])}")
    if parts and is_primary():
        logger.warning(
            "fewer than %d training scans (min_cell) in %s. The loss of such a group or cell is that of a few scans, "
            "seen again and again: an aggregation that follows the worst group (CVaR) can chase their noise, and what "
            "they gain need not carry over to other scans.",
            min_cell,
            "; ".join(parts),
        )
