"""The cohort: one CSV file that describes a data set, read strictly, counted by cell, and built from folders.

A row is a scan. Columns: ``scan`` (folder or file, relative to the CSV file's folder or absolute, or an address for
fsspec such as ``s3://bucket/scan``), ``label`` (class name), one or several group columns (``sex`` by default; empty or
"unknown" means unknown), and optionally ``split`` (train, val, test) and ``patient``. Other columns are kept as they
are.

Patient ids and ages never reach a message, a log or a repr.
"""

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from fairlung.transforms.addresses import is_remote, located
from fairlung.transforms.checks import check_whole

from ..common.names import UNKNOWN, UNKNOWN_GROUP
from . import cohort_checks as checks
from .cohort_checks import SPLITS, UNSPLIT, CohortError, listed
from .groups import MIN_CELL, SmallGroups, UnknownGroups, group_ids, group_values, joined, parent_groups

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Cohort:
    """A validated cohort; made by :func:`load_cohort`."""

    table: pd.DataFrame = field(repr=False)  # every column as text, index 0..n-1; it may name patients
    root: Path  # absolute folder of the CSV file; relative scans start here
    class_names: tuple[str, ...]
    group_names: tuple[str, ...]  # a scan of unknown group is -1, or of the group "unknown" where that is a name
    group_by: tuple[str, ...]  # columns whose values make the group; of several, a group is a combination

    def splits(self) -> tuple[str, ...]:
        """Splits with a scan, in the order train, val, test; ``("all",)`` for a file without a split column."""
        present = set(self._split_of_rows())
        return tuple(split for split in (*SPLITS, UNSPLIT) if split in present)

    def items(self, split: str) -> list[dict[str, Any]]:
        """What a data loader needs of each scan of a split, in the file's order; ValueError when there is none.

        ``image`` (absolute path or address), ``label`` (class index), ``group`` (group index, -1 unknown),
        ``group_values`` (in each group column, "" unknown) and ``scan`` (as written in the file).
        """
        rows = self._rows(split)
        values = group_values(rows, self.group_by)
        columns = {
            "image": [located(self.root, scan) for scan in rows["scan"]],
            "label": map(self.class_names.index, rows["label"]),
            "group": group_ids(joined(values), self.group_names)[0].tolist(),
            "group_values": values.to_numpy().tolist(),
            "scan": rows["scan"],
        }
        return [dict(zip(columns, item, strict=True)) for item in zip(*columns.values(), strict=True)]

    def training_items(self, min_cell: int = MIN_CELL, small_groups: SmallGroups = "keep") -> list[dict[str, Any]]:
        """:meth:`items` of the training split; ``leave_out`` gives small groups -1. CohortError if no group is left."""
        small = self._left_out(min_cell, small_groups)
        items = self.items("train")
        if small and not {item["group"] for item in items} - {UNKNOWN_GROUP, *small}:
            few = f"every one has fewer than min_cell = {min_cell} training scans"
            raise CohortError(f"small_groups leave_out leaves no group: {few}")
        return [item | {"group": UNKNOWN_GROUP} if item["group"] in small else item for item in items]

    def small_groups(self, min_cell: int = MIN_CELL) -> dict[str, int]:
        """Groups with fewer than ``min_cell`` scans in the training split, and how many they have."""
        check_whole("min_cell", min_cell, least=0)
        ids = Counter(item["group"] for item in self.items("train"))
        return {name: ids[g] for g, name in enumerate(self.group_names) if ids[g] < min_cell}

    def _left_out(self, min_cell: int, small_groups: SmallGroups) -> set[int]:
        checks.check_one_of("small_groups", small_groups, SmallGroups)
        small = self.small_groups(min_cell)
        return {self.group_names.index(name) for name in small} if small_groups == "leave_out" else set()

    @property
    def group_parents(self) -> list[int]:
        """The parent of each group, for an aggregation in two levels (:func:`~.parent_groups`)."""
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
        """Scans (``n``) of each ``split``, ``label`` and ``group``, zeros included; ``unknown`` if it occurs."""
        groups = self._groups().replace("", UNKNOWN)
        count = Counter(zip(self._split_of_rows(), self.table["label"], groups, strict=True))
        names = dict.fromkeys((*self.group_names, *([UNKNOWN] if (groups == UNKNOWN).any() else [])))
        rows = [(*cell, count[cell]) for cell in product(self.splits(), self.class_names, names)]
        return pd.DataFrame(rows, columns=["split", "label", "group", "n"])

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of which scan has which label, group and split, wherever the folder lies, in any order."""
        split = self.table["split"] if "split" in self.table else [""] * len(self.table)
        rows = zip(self.table["scan"], self.table["label"], self._groups(), split, strict=True)
        content = sorted([self._canonical(scan), *rest] for scan, *rest in rows)
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def _canonical(self, scan: str) -> str:
        if is_remote(scan):
            return scan
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
    columns: str = "",
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
        path: the CSV file, as :func:`~.read_table` reads it.
        class_names: in the order of their ids.
        group_names: in the order of their ids; of several columns the values joined, such as "male x <65". None takes
            the groups that occur, male before female, others in natural order; ``sex`` then holds these two only.
        group_by: the column that holds the group, or several, whose combinations are the groups.
        unknown_groups: ``leave_out``: a scan of unknown group has none, -1. ``own_group``: such scans, if there are
            any, are one more group, "unknown"; of several columns one unknown part is enough.
        age_bands: edges in years that make the column ``age_band`` of the column ``age``.
        allow_empty_cells: accept a class and group without a scan in some split; a class needs scans in train even so.
        columns: what the file calls some columns otherwise, such as ``path=scan,gender=sex``.

    Raises:
        CohortError: the file is unusable; one message with every problem, by line (the first 50, and how many more).
    """
    class_names = checks.checked_names(class_names, "class_names")
    by = checks.checked_columns(group_by)
    checks.check_one_of("unknown_groups", unknown_groups, UnknownGroups)
    names = None if group_names is None else checks.checked_group_names(group_names, by, unknown_groups)
    edges = None if age_bands is None else checks.check_age_bands(age_bands)
    if isinstance(require_splits, str) or not set(require_splits) <= set(SPLITS):
        raise ValueError(f"require_splits: {require_splits!r} is not a list of {', '.join(SPLITS)}")
    path = Path(os.path.abspath(path))
    renames = checks.renames(columns)
    table, in_rows = checks.read_table(path)
    table = checks.renamed(path, table, renames)
    resolved: tuple[str, ...] = ()
    problems = checks.column_problems(table, by, edges)
    if not problems:
        in_rows += checks.value_problems(table["label"], class_names)
        in_rows += [] if edges is None else checks.add_age_bands(table, edges)
        values = group_values(table, by)
        in_rows += checks.group_problems(values, names)
        in_rows += checks.row_problems(table, path.parent)
        in_rows += checks.patient_problems(table, by)
        resolved = checks.resolved_groups(values, names, unknown_groups)
        problems += checks.number_problems(resolved, names, by)
        problems += checks.split_problems(table, require_splits)
        counted = resolved if names or len(resolved) <= checks.MAX_GROUPS else ()
        problems += checks.cell_problems(table, values, class_names, counted, allow_empty_cells)
    problems += [text for _, text in sorted(in_rows, key=lambda problem: problem[0])]
    if problems:
        raise CohortError(checks.problem_report(path, problems))
    return Cohort(table.reset_index(drop=True), path.parent, class_names, resolved, by)


def warn_of_small_cells(cohort: Cohort, min_cell: int = MIN_CELL, small_groups: SmallGroups = "keep") -> None:
    """One warning that lists the groups and cells of the training split with fewer than ``min_cell`` scans."""
    from ..common.distributed import is_primary

    small = cohort.small_groups(min_cell)
    cells = cohort.cells()
    # the cells of a group that is left out, or that has few scans in all, say nothing more
    rows = cells[(cells["split"] == "train") & (cells["n"] < min_cell) & cells["group"].isin(cohort.group_names)]
    rows = rows[~rows["group"].isin(small)].sort_values("n", kind="stable")
    parts = []
    if small:
        what = "small_groups: leave_out takes them out of the aggregation; evaluations would still report them"
        if cohort._left_out(min_cell, small_groups):
            what = "left out of the aggregation over groups (small_groups: leave_out); evaluations report them"
        parts.append(f"groups: {listed([f'{name} {n}' for name, n in small.items()])} ({what})")
    if len(rows):
        parts.append(f"cells: {listed([f'{row.group} {row.label} {row.n}' for row in rows.itertuples()])}")
    if parts and is_primary():
        logger.warning(
            "fewer than %d training scans (min_cell) in %s. The loss of such a group or cell is that of a few scans, "
            "seen again and again: an aggregation that follows the worst group (CVaR) can chase their noise, and what "
            "they gain need not carry over to other scans.",
            *(min_cell, "; ".join(parts)),
        )
