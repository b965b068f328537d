"""What can be wrong with a cohort file, found all at once."""

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fairlung.transforms import tables
from fairlung.transforms.addresses import has_login, is_remote, shown
from fairlung.transforms.tables import KNOWN_COLUMNS

from ..common.errors import UserError
from ..common.names import CLASS_ALIASES, JOIN, SEX_SPELLINGS, SEXES, SPLIT_SPELLINGS, UNKNOWN
from ..common.text import did_you_mean, hint_at, nearest, one_line, quoted, spelling, spelling_key
from .groups import (
    AGE,
    AGE_BAND,
    NO_VALUE,
    UnknownGroups,
    age_bands,
    doubtful_values,
    group_columns,
    group_values,
    joined,
    occurring_groups,
    stands_for_none,
    years,
)

SPLITS = ("train", "val", "test")
UNSPLIT = "all"  # what a file without a split column is called as a whole
MAX_PROBLEMS = 50
MAX_GROUPS = 100  # that a cohort may give by itself; more are no groups but a mistaken column
MAX_AGE = 130
NO_AGE = f"age is not a number from 0 to {MAX_AGE}; leave it empty where it is unknown"
# no groups: they say something else, are patients' own, or are what predictions.csv says beside the groups
NO_GROUPS = ("", "scan", "label", "split", "patient", AGE, "prediction", "synthetic", "postprocess")

Names = tuple[str, ...]
Problem = tuple[int, str]  # line of the file, text


class CohortError(UserError, ValueError):
    """The cohort cannot be used; the message lists everything that is wrong with it."""


def listed(names: Sequence[Any], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more


def _at(line: int, text: str, more: int = 0) -> Problem:
    return line, f"line {line}{f' and {more} more' if more else ''}: {text}"


def _lines(values: pd.Series) -> dict[str, Sequence[int]]:
    """The lines of each value of a column."""
    return values.groupby(values, sort=False).groups


def _where(lines: Sequence[int], text: str) -> Problem:
    """One problem for all rows that have a value."""
    return _at(lines[0], text, len(lines) - 1)


def check_one_of(argument: str, value: str, choices: Any) -> None:
    """ValueError when a value is none of those of a Literal type."""
    if value not in get_args(choices):
        raise ValueError(f"{argument} must be one of {', '.join(get_args(choices))}, got {value!r}")


def check_age_bands(edges: Sequence[int]) -> tuple[int, ...]:
    """The edges of age bands, in whole years; ValueError when they are no increasing positive numbers."""
    whole = isinstance(edges, Sequence) and all(isinstance(edge, int) and not isinstance(edge, bool) for edge in edges)
    if not whole or not edges or edges[0] <= 0 or any(a >= b for a, b in pairwise(edges)):
        raise ValueError(f"age_bands must be increasing whole years above 0, such as [65] or [50, 65], got {edges!r}")
    if edges[-1] > MAX_AGE:
        raise ValueError(f"age_bands must be at most {MAX_AGE} years, got {edges[-1]}")
    return tuple(edges)


def checked_columns(group_by: str | Sequence[str]) -> tuple[str, ...]:
    columns = group_columns(group_by)
    for column in columns:
        if column == AGE:
            raise ValueError("group_by: ages are no groups; set age_bands, such as [65], and group by age_band")
        if column in NO_GROUPS or column.startswith("prob_"):
            raise ValueError(f"group_by: {column!r} cannot hold the group")
    return columns


def checked_names(names: Sequence[str], argument: str) -> tuple[str, ...]:
    if isinstance(names, str) or not names:
        raise ValueError(f"{argument}: {names!r} is not a list of at least one name")
    for name in names:
        if not isinstance(name, str) or not name or name != name.strip():
            raise ValueError(f"{argument}: {name!r} is not a name (text without space at its ends)")
    if len(set(names)) < len(names):
        raise ValueError(f"{argument}: {list(names)!r} names something twice")
    alike = {spelling_key(name): name for name in names}
    if argument == "class_names" and (other := [name for name in names if alike[spelling_key(name)] != name]):
        raise ValueError(f"class_names: {other[0]!r} is written {alike[spelling_key(other[0])]!r} as well")
    return tuple(names)


def checked_group_names(names: Sequence[str], columns: Names, unknown_groups: UnknownGroups) -> Names:
    names = checked_names(names, "group_names")
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


def read_table(path: Path) -> tuple[pd.DataFrame, list[Problem]]:
    """The rows as stripped text by the line on which they start, and those left out that do not fit the header.

    A column ``split`` without any value, as in a file that is still to be split, is left out.
    """
    try:
        header, rows = found = tables.read_table(path, misfits=True)
    except FileNotFoundError:
        raise CohortError(f"{path}: no such file") from None
    except tables.TableError as error:
        raise CohortError(f"{path}: {error}") from None
    if not rows:
        raise CohortError(f"{path}: a header and no rows")
    ragged = [_at(line, text) for line, text in found.misfits().items()]
    fitting = {line: [cell.strip() for cell in row] for line, row in rows if len(row) == len(header)}
    table = pd.DataFrame(list(fitting.values()), index=list(fitting), columns=header, dtype=str)
    return table.drop(columns=[name for name in table if name == "split" and not table[name].any()]), ragged


def renames(columns: str) -> dict[str, str]:
    """``path=scan,gender=sex`` as ``{"path": "scan", "gender": "sex"}``; ValueError where it is no such pairs."""
    pairs = [pair.strip().partition("=") for pair in columns.split(",") if pair.strip()]
    if not all(old.strip() and new.strip() for old, _, new in pairs):
        raise ValueError(f"columns must be such as path=scan,gender=sex, got {columns!r}")
    return {old.strip(): new.strip() for old, _, new in pairs}


def renamed(path: Path, table: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """A table with other names for some columns; CohortError where one is not there, or a name would be there twice."""
    for name, meant in names.items():
        if name not in table:
            raise CohortError(f"{path}: no column {quoted(name)} to take for {meant!r}{did_you_mean(name, table)}")
    table = table.rename(columns=names)
    if table.columns.has_duplicates:
        twice = table.columns[table.columns.duplicated()].unique()
        raise CohortError(f"{path}: there would be two columns {listed(sorted(twice))}")
    return table


def column_problems(table: pd.DataFrame, columns: Names, edges: tuple[int, ...] | None) -> list[str]:
    problems = []
    if edges is not None and AGE_BAND in table:
        problems.append(f"there is a column {AGE_BAND!r} already; leave out age_bands, or the column")
    for name in ("scan", "label", *columns, *(() if edges is None else (AGE,))):
        if name not in table and (name != AGE_BAND or edges is None):
            # a misspelt column, if one is near; others are not shown: without a header, they are a patient's row
            near = nearest(name, [column for column in table.columns if column not in KNOWN_COLUMNS])
            hint = f" (is it {quoted(near[0])}?)" if near else ""
            if name == AGE_BAND and AGE in table:
                hint = "; age_bands, such as [65], makes it of the column 'age'"
            problems.append(f"no column {name!r} in the first line{hint}")
    if problems and len(table.columns) == 1:
        problems.append("the header is one single column: separate the columns with commas")
    return problems


def value_problems(values: pd.Series, valid: Sequence[str], *, may_be_empty: bool = False) -> Iterator[Problem]:
    for value, lines in _lines(values).items():
        if value and value not in valid:
            hint = _did_you_mean(value, valid)
            yield _where(lines, f"{values.name} {quoted(value)} is unknown{hint}; valid: {', '.join(valid)}")
        elif not value and not may_be_empty:
            yield _where(lines, f"{values.name} is empty")


def add_age_bands(table: pd.DataFrame, edges: tuple[int, ...]) -> list[Problem]:
    """Add the column age_band; what is no age is a problem, and is not shown: it may be anything of a patient."""
    table[AGE_BAND], wrong = banded(table[AGE], edges)
    return [_at(line, NO_AGE) for line in table.index[wrong]]


def banded(ages: pd.Series, edges: tuple[int, ...]) -> tuple[list[str], NDArray[np.bool_]]:
    """[N] the band of each age as it is written, "" where it is unknown, and [N] whether it is no age."""
    written = group_values(ages.to_frame(), [str(ages.name)])[ages.name]
    found = years(written)
    wrong = (written != "").to_numpy() & ~((found >= 0) & (found <= MAX_AGE))
    return age_bands(np.where(wrong, np.nan, found), edges), wrong


def group_problems(values: pd.DataFrame, names: Names | None) -> Iterator[Problem]:
    for name, column in values.items():
        if names is None:
            if name == "sex":
                yield from value_problems(column, SEXES, may_be_empty=True)
            else:
                lines = _lines(column)
                for value, text, other in doubtful_values(column):
                    yield _where(lines[value], text + (f" in line {lines[other][0]}" if other else ""))
    for name, column in values.items() if len(values.columns) > 1 else ():
        for line, value in column.items():
            if JOIN in value:
                yield _at(line, f"{name} {quoted(value)} holds {JOIN!r}, which joins the values of a group")
    if names is not None:
        yield from value_problems(joined(values).rename(JOIN.join(values.columns)), names, may_be_empty=True)


def resolved_groups(values: pd.DataFrame, names: Names | None, unknown_groups: UnknownGroups) -> Names:
    found = names
    if found is None:
        valid = values.assign(sex=values["sex"].where(values["sex"].isin(SEXES), "")) if "sex" in values else values
        # where no sex is known there are two of them even so
        found = occurring_groups(valid) or (SEXES if list(values) == ["sex"] else ())
    unknown = bool((values == "").any(axis=1).any())
    return (*found, UNKNOWN) if unknown and unknown_groups == "own_group" and UNKNOWN not in found else found


def number_problems(found: Names, names: Names | None, columns: Names) -> list[str]:
    """Whether there are any groups, and not so many that the column is most likely mistaken."""
    if not set(found) - {UNKNOWN}:
        return [f"no scan has a group by {', '.join(columns)}: a value is missing in every row"]
    if names is None and len(found) > MAX_GROUPS:
        many = f"{len(found)} groups by {', '.join(columns)}: is it the right column?"
        return [f"{many} More than {MAX_GROUPS} must be listed in group_names"]
    return []


def row_problems(table: pd.DataFrame, root: Path) -> Iterator[Problem]:
    """What is wrong with splits and scans."""
    if "split" in table:
        yield from value_problems(table["split"], SPLITS)
    first_line: dict[str, int] = {}
    for line, scan in table["scan"].items():
        if not scan:
            yield _at(line, "scan is empty")
            continue
        if is_remote(scan):  # whether it exists shows when it is read
            if has_login(scan):
                safe = f"{quoted(shown(scan))} is given with a login or a query, which tables and logs would repeat"
                yield _at(line, f"scan {safe}; credentials come from the environment")
            place = scan.rstrip("/")
        elif not os.path.exists(place := os.path.realpath(root / scan)):
            # Resolved, so that the same scan under two spellings or links cannot lie in train and in val.
            yield _at(line, f"scan {quoted(scan)} does not exist ({quoted(place)})")
        if first_line.setdefault(place, line) != line:
            yield _at(line, f"scan {quoted(shown(scan))} is the scan of line {first_line[place]} again")


def patient_problems(table: pd.DataFrame, columns: Names) -> Iterator[Problem]:
    """A patient in several splits, or of both sexes where groups are by sex, and words for none; no id is shown."""
    rows = table[table["patient"] != ""] if "patient" in table else table.iloc[:0]
    patients = rows.get("patient", pd.Series(dtype=str))
    for word, its in patients[patients.map(stands_for_none)].groupby(patients, sort=False):
        where = f"line{'s' * (len(its) > 1)} {listed(list(its.index), most=10)}"
        yield (
            its.index[0],
            f"patient {quoted(str(word))} ({where}) {NO_VALUE}, and would be one patient: leave it empty",
        )
    # ids that differ in case or zeros may be of two patients; of one, they would judge what was trained on
    if "split" in rows:
        yield from _several(rows[rows["split"].isin(SPLITS)], patients.map(spelling_key), "split", "in ")
    if "sex" in rows and "sex" in columns:
        yield from _several(rows[rows["sex"].isin(SEXES)], patients.map(spelling), "sex", "")


def _several(rows: pd.DataFrame, patients: pd.Series, column: str, word: str) -> Iterator[Problem]:
    for _, its in rows.groupby(patients.loc[rows.index], sort=False):
        lines = {value: list(part.index) for value, part in its.groupby(column, sort=False)}
        if len(lines) > 1:
            named = (f"{word}{value} (line{'s' * (len(of) > 1)} {listed(of, most=10)})" for value, of in lines.items())
            odd = ", the id written in several ways" if its["patient"].nunique() > 1 else ""
            yield its.index[0], f"one patient is {' and '.join(named)}{odd}"


def split_problems(table: pd.DataFrame, require_splits: Sequence[str]) -> list[str]:
    if require_splits and "split" not in table:
        made = "`fairlung split` makes them, and a study of protocol nested makes folds of its own"
        return [f"no column 'split', but these splits are needed: {', '.join(require_splits)}; {made}"]
    return [f"{split}: no scan at all" for split in require_splits if split not in set(table["split"])]


def cell_problems(
    table: pd.DataFrame, values: pd.DataFrame, class_names: Names, group_names: Names, allow_empty_cells: bool
) -> list[str]:
    splits = table["split"].tolist() if "split" in table else [UNSPLIT] * len(table)
    filled = set(zip(splits, table["label"], joined(values).replace("", UNKNOWN), strict=True))
    classes_of = {split: {label for its, label, _ in filled if its == split} for split in splits}
    groups_known = any(group in group_names for _, _, group in filled)
    problems = []
    for split in filter(classes_of.__contains__, (*SPLITS, UNSPLIT)):
        empty = []
        for label in class_names:
            if split == "train" and label not in classes_of[split]:
                problems.append(f"{split}: no {label} scan at all")
            elif groups_known and not allow_empty_cells:
                empty += [f"{group} {label}" for group in group_names if (split, label, group) not in filled]
        if len(values.columns) == 1:
            problems += [f"{split}: no {cell} scan" for cell in empty]
        elif empty:
            problems.append(
                f"{split}: {len(empty)} of {len(group_names) * len(class_names)} cells have no scan: {listed(empty)}; "
                "combinations often have none: set allow_empty_cells to true, and F1 counts as 0 there; or take fewer "
                "columns, wider bands"
            )
    return problems


def _did_you_mean(value: str, valid: Sequence[str]) -> str:
    """A hint at the nearest valid name: by spelling, else what is short or long for it, else nothing."""
    key = value.casefold()
    begun = [name for name in valid if name.casefold().startswith(key) or key.startswith(name.casefold())]
    near = nearest(value, valid) or begun
    alias = (CLASS_ALIASES | SEX_SPELLINGS | SPLIT_SPELLINGS).get(key, "")
    if value.isdecimal() and set(valid) == set(SEXES):
        return " (a number does not say which it is)"
    return hint_at(near if len(near) == 1 else [alias] if alias in valid else [])


def problem_report(path: Path, problems: list[str]) -> str:
    more = [f"  ... and {len(problems) - MAX_PROBLEMS} more"] if len(problems) > MAX_PROBLEMS else []
    head = f"{path}: {len(problems)} problem{'s' if len(problems) > 1 else ''}"
    return "\n".join([head, *(f"  - {one_line(problem)}" for problem in problems[:MAX_PROBLEMS]), *more])
