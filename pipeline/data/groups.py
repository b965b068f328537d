"""Groups of scans from the columns of a table: one column, several crossed, bands of age.

The cohort, predictions.csv, the metrics and every audit take groups from here. A value that is empty or says "unknown"
is unknown, and so is a combination with an unknown part.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from fairlung.transforms.files import natural_key

from ..common.names import JOIN, SEXES, UNKNOWN, UNKNOWN_GROUP
from ..common.text import cut, quoted, spelling_key

MIN_CELL = 10  # scans of a class and group below which no statement about the cell is made
AGE = "age"  # column, years
AGE_BAND = "age_band"  # column that age bands make of it
DICOM_AGE = re.compile(r"(\d{1,3})([DWMY])")
IN_A_YEAR = {"D": 365.25, "W": 365.25 / 7, "M": 12, "Y": 1}
# what programs write where there is no value
MISSING = ("na", "n/a", "n.a.", "#n/a", "nan", "<na>", "null", "none", "missing", "?", "-", "--")
NO_VALUE = "is what many tables write where there is no value"

UnknownGroups = Literal["leave_out", "own_group"]
SmallGroups = Literal["keep", "leave_out"]


def group_columns(group_by: str | Sequence[str]) -> tuple[str, ...]:
    """The columns of a ``group_by``, which names one or lists several different ones."""
    columns = (group_by,) if isinstance(group_by, str) else tuple(group_by)
    for column in columns:
        if not isinstance(column, str) or not column:
            raise ValueError(f"group_by: {column!r} is not the name of a column")
    if not columns or len(set(columns)) < len(columns):
        raise ValueError(f"group_by must name one column or several different ones, got {list(columns)!r}")
    return columns


def group_values(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """The group columns of a table of text, without space at the ends; "" is unknown."""
    values = table[list(columns)].apply(lambda column: column.str.strip())
    return values.mask(values.apply(lambda column: column.str.lower() == UNKNOWN), "")


def doubtful_values(values: pd.Series) -> Iterator[tuple[str, str, str]]:
    """Values of a column that may be another value, or none, misspelt; what is said of each; and the other value.

    A value is told of when an earlier one has its :func:`~.spelling_key`, or when it is a word for a missing one.
    """
    first: dict[str, str] = {}
    for value in values.unique():
        other = first.setdefault(spelling_key(value), value)
        if value.casefold() in MISSING:
            yield value, f"{values.name} {quoted(value)} {NO_VALUE}: leave it empty, or list it in group_names", ""
        elif other != value:
            shown = quoted if value.casefold() == other.casefold() else ascii  # which tells look-alikes apart
            yield value, f"{values.name} {shown(cut(value))} is written {shown(cut(other))}", other


def stands_for_none(value: str) -> bool:
    """Whether a text is what many tables write where there is no value, or "unknown"."""
    return value.strip().casefold() in (*MISSING, UNKNOWN)


def years(written: pd.Series) -> NDArray[np.float64]:
    """Ages in years, as numbers or as DICOM has them (065Y, 018M); NaN where it is neither."""

    def number(text: str) -> str | float:
        found = DICOM_AGE.fullmatch(text)
        return int(found[1]) / IN_A_YEAR[found[2]] if found else text

    return pd.to_numeric(written.map(number), errors="coerce").to_numpy(dtype=float)


def joined(values: pd.DataFrame) -> pd.Series:
    """The name of each row's group, from :func:`group_values`; "" where any part of it is unknown."""
    names = values.agg(JOIN.join, axis=1) if len(values) else pd.Series(dtype=str)
    return names.mask((values == "").any(axis=1), "")


def occurring_groups(values: pd.DataFrame) -> tuple[str, ...]:
    """The groups that occur in :func:`group_values`: combinations, male before female, others in natural order.

    A single column of no other values than the two sexes has both of them, so that a gap keeps its sign.
    """
    occurring = values[(values != "").all(axis=1)].drop_duplicates()
    found = [set(occurring[column]) for column in occurring]
    orders = [[*SEXES] if values <= set(SEXES) else sorted(values, key=natural_order) for values in found]
    if len(orders) == 1:
        return tuple(orders[0]) if len(occurring) else ()
    rows = occurring.itertuples(index=False, name=None)
    return tuple(map(JOIN.join, sorted(rows, key=lambda parts: [*map(list.index, orders, parts)])))


def natural_order(name: str) -> tuple[int, list[tuple[int, int, str]]]:
    """Sort key: "<65" first, numbers by value, ">=65" last, ties ("1" and "01") by the exact text."""
    return {"<": -1, ">": 1}.get(name[:1], 0), natural_key(name, ignore_case=False)


def group_ids(names: pd.Series, group_names: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """[N] the id of each row's group, and [N] whether its group is none of ``group_names``; names of :func:`joined`.

    Scans of unknown group have the id of the group "unknown" where there is one; else, and where the group is none of
    the names, it is -1.
    """
    known = names.where(names != "", UNKNOWN)
    ids = pd.Index(group_names).get_indexer(pd.Index(known)).astype(np.int64)
    return np.where(ids < 0, UNKNOWN_GROUP, ids), (ids < 0) & (names != "").to_numpy()


def parent_groups(group_names: Sequence[str], columns: Sequence[str]) -> list[int]:
    """The parent of each group: which value of the first column it has, counted as they appear.

    Of a single column every group is its own parent, and so is "unknown" of several.
    """
    firsts = [name.split(JOIN)[0] if len(columns) > 1 else name for name in group_names]
    order = list(dict.fromkeys(firsts))
    return [order.index(first) for first in firsts]


def age_band_names(edges: Sequence[int]) -> tuple[str, ...]:
    """The bands between edges: [50, 65] gives "<50", "50-64" (completed years), ">=65"."""
    between = [str(a) if b == a + 1 else f"{a}-{b - 1}" for a, b in pairwise(edges)]
    return (f"<{edges[0]}", *between, f">={edges[-1]}")


def age_bands(ages: ArrayLike, edges: Sequence[int]) -> list[str]:
    """The band of each age in years, which holds its lower edge; "" for NaN."""
    names = np.array([*age_band_names(edges), ""])
    years = np.asarray(ages, dtype=float)
    index = np.where(np.isnan(years), len(edges) + 1, np.searchsorted(edges, years, side="right"))
    return names[index].tolist()
