"""Cohort files to begin with: of a table in other words, and of scans in folders that say nothing."""

import os
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from fairlung.transforms.discovery import dicom_files, find_scans
from fairlung.transforms.scan import as_source
from fairlung.transforms.tables import KNOWN_COLUMNS, TableError

from ..common.names import CLASS_ALIASES, CLASS_NAMES, SEX_SPELLINGS, SEXES, SPLIT_SPELLINGS
from ..common.tables import read_frame
from ..common.text import did_you_mean, quoted
from .cohort_checks import SPLITS, CohortError, renamed
from .cohort_folders import PART, BuiltCohort, Skipped, unwritable
from .groups import AGE, DICOM_AGE, MISSING, years

COLUMNS = ("scan", "label", "sex", "age", "split", "patient")
FOLDER = "folder"  # column of a table of folders
OUT = "-"  # label of folders whose scans are left out
SEX_WORDS = SEX_SPELLINGS | dict.fromkeys((*MISSING, "unknown"), "") | {name: name for name in SEXES}
LABEL_WORDS = CLASS_ALIASES | {name: name for name in CLASS_NAMES}
SPLIT_WORDS = SPLIT_SPELLINGS | {name: name for name in SPLITS}


class Translated(NamedTuple):
    """What :func:`translated` made of a table."""

    table: pd.DataFrame  # all of its columns, as text
    said: list[str]  # what was taken for what, in how many rows


def names_of(labels: Iterable[str]) -> list[str]:
    """The classes that occur: the benchmark's in its order, then others sorted."""
    found = set(labels) - {""}
    return [*(name for name in CLASS_NAMES if name in found), *sorted(found - set(CLASS_NAMES))]


def translated(
    path: str | os.PathLike[str], columns: Mapping[str, str] | None = None, class_names: Sequence[str] | None = None
) -> Translated:
    """Read a table of scans that names columns and values otherwise than a cohort file does.

    Columns and values of other case, M, Female, validation, 065Y and words for a missing sex are taken for what they
    are. What is left to doubt, such as a sex of 0, stays as it is, for :func:`~.load_cohort` to refuse.

    Args:
        columns: other columns by what the table calls them, such as ``{"path": "scan", "gender": "sex"}``.
        class_names: the classes; None takes the benchmark's, and any other label as it is written.

    Raises:
        CohortError: no table, no such column, or two columns of one name.
    """
    return _in_our_words(_columns_of(path, columns or {}, ("scan", "label")), class_names)


def folder_table(
    path: str | os.PathLike[str], columns: Mapping[str, str] | None = None, class_names: Sequence[str] | None = None
) -> Translated:
    """Read a table that says of folders what their scans are, for :func:`draft_cohort`, in words as :func:`translated`.

    Column ``folder``: the name of a folder, or a pattern of names such as ``P*``; case does not matter. Any other
    column of a cohort file but ``scan`` and ``patient``; the label ``-`` leaves the folder's scans out.

    Raises:
        CohortError: no table, no such column, a folder without a name or in two rows, a column that no folder can have.
    """
    found = _in_our_words(_columns_of(path, columns or {}, (FOLDER,)), class_names)
    names = found.table[FOLDER].str.casefold()
    if wrong := [name for name in ("scan", "patient") if name in found.table]:
        raise CohortError(f"{path}: a folder says nothing of the column {wrong[0]!r}; take it out")
    if twice := names[names.duplicated() | (names == "")].tolist():
        what = f"the folder {quoted(twice[0])} is in two rows" if twice[0] else "a row names no folder"
        raise CohortError(f"{path}: {what}")
    return found


def _columns_of(path: str | os.PathLike[str], columns: Mapping[str, str], needed: Sequence[str]) -> pd.DataFrame:
    try:
        table = read_frame(Path(path)).apply(lambda column: column.str.strip())
    except (FileNotFoundError, TableError) as error:
        raise CohortError(f"{path}: {error if isinstance(error, TableError) else 'no such file'}") from None
    table = renamed(Path(path), table, columns)
    known = {*KNOWN_COLUMNS, *needed} - {*table}
    table = renamed(Path(path), table, {name: name.casefold() for name in table if name.casefold() in known})
    if missing := [name for name in needed if name not in table]:
        hint = f"{did_you_mean(missing[0], table)}; --columns NAME={missing[0]} says which it is"
        raise CohortError(f"{path}: no column {missing[0]!r}{hint}")
    return table


def _in_our_words(table: pd.DataFrame, class_names: Sequence[str] | None) -> Translated:
    classes = {name.casefold(): name for name in class_names or CLASS_NAMES}
    aliases = {alias: name for alias, name in CLASS_ALIASES.items() if name in (class_names or ())}
    said = []
    for name, words in ("label", aliases | classes), ("sex", SEX_WORDS), ("split", SPLIT_WORDS):
        for value in table[name].unique() if name in table else ():
            meant = words.get(value.casefold(), value)
            if meant != value and value not in classes.values():
                rows = table[name] == value
                said.append(f"{name} {quoted(value)} is {meant or 'unknown'} in {rows.sum()} rows")
                table.loc[rows, name] = meant
    if AGE in table:
        table[AGE] = [_age_text(age) or age for age in table[AGE]]
    return Translated(table, said)


def draft_cohort(
    folder: str | os.PathLike[str], patients: dict[str, str] | None = None, folders: pd.DataFrame | None = None
) -> BuiltCohort:
    """A row for each scan of any folder tree, with what folders and DICOM headers say; the rest is to be filled in.

    Class, sex and split are those of the nearest folder of such a name. Sex and age (years) are the header's; where it
    and the folder differ, no sex is written. The column ``patient`` numbers the patients of DICOM series: neither their
    names nor their ids are in the table. ``patients`` keeps the numbers of folders that go into one table. What a
    :func:`folder_table` says of a scan's folders, each column from the nearest that says anything, comes before what
    folders are called, and its age before the header's.

    Raises:
        CohortError: no scan in it.
    """
    root = Path(os.path.abspath(folder))
    try:
        found = find_scans(root)
    except FileNotFoundError as error:
        raise CohortError(f"{root}: no usable scan: {error}") from None
    rows, skipped = [], []
    patients = {} if patients is None else patients
    for item in found:
        source = as_source(item["image"])
        scan = Path(source.path).relative_to(root).as_posix()
        if problem := PART if source.more else unwritable(scan):
            skipped.append(Skipped(scan, problem))
            continue
        said = {} if folders is None else _said_of(scan, folders)
        if said.get("label") == OUT:
            skipped.append(Skipped(scan, f"its folder has the label {OUT}"))
            continue
        patient, sex, age = _of_header(Path(source.path))
        label, of_folder, split = (_nearest_folder(scan, words) for words in (LABEL_WORDS, SEX_WORDS, SPLIT_WORDS))
        of_folder = said.pop("sex", of_folder)
        sex = "" if {sex, of_folder} == {*SEXES} else sex or of_folder
        number = patients.setdefault(patient, str(len(patients) + 1)) if patient else ""
        rows.append(dict(zip(COLUMNS, (scan, label, sex, age, split, number), strict=True)) | said)
    if not rows:
        raise CohortError(f"{root}: no usable scan: {skipped[0].path}: {skipped[0].reason}")
    columns = dict.fromkeys([*COLUMNS, *([] if folders is None else folders.columns.drop(FOLDER))])
    return BuiltCohort(pd.DataFrame(rows, columns=list(columns), dtype=str).fillna(""), skipped)


def _said_of(scan: str, folders: pd.DataFrame) -> dict[str, str]:
    """What a table of folders says of a scan: a whole name comes before a pattern, and of patterns the first."""
    found: dict[str, str] = {}
    names = folders[FOLDER].str.casefold().tolist()
    for part in reversed(scan.casefold().split("/")):
        same = [row for row, name in enumerate(names) if name == part]
        for row in same + [row for row, name in enumerate(names) if fnmatchcase(part, name)]:
            for column, value in folders.iloc[row].drop(FOLDER).items():
                if value:
                    found.setdefault(str(column), value)
    return found


def unused_folders(folders: pd.DataFrame, built: BuiltCohort) -> list[str]:
    """The folders of a table that no scan of a cohort lies in."""
    scans = [*built.table["scan"], *(entry.path for entry in built.skipped)]
    parts = {part for scan in scans for part in scan.casefold().split("/")}
    return [n for n in folders[FOLDER] if not any(p == n.casefold() or fnmatchcase(p, n.casefold()) for p in parts)]


def _nearest_folder(scan: str, words: Mapping[str, str]) -> str:
    """What the nearest folder means that has one of the words for its name; a letter alone may mean anything."""
    folders = (folder.casefold() for folder in reversed(scan.split("/")))
    return next((words[name] for name in folders if len(name) > 2 and words.get(name)), "")


def _of_header(path: Path) -> tuple[str, str, str]:
    """Who the patient is, the sex, and the age in years, of a DICOM file or a folder of them; "" where it says none."""
    import pydicom

    from fairlung.transforms.dicom.headers import quiet_pydicom

    tags = ["PatientID", "PatientName", "PatientBirthDate", "PatientSex", "PatientAge"]
    try:
        file = dicom_files(path)[0] if path.is_dir() else path
        with quiet_pydicom():
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(tags))
            *who, sex, age = (str(header.get(tag) or "").strip() for tag in tags)
    except Exception:  # no DICOM file, or a damaged one: reading it as a scan says why
        return "", "", ""
    return "\n".join(who).strip(), SEX_WORDS.get(sex.casefold(), ""), _age_text(age)


def _age_text(written: str) -> str:
    """An age as DICOM has it in years, "" where it is none."""
    (age,) = years(pd.Series([written]))
    return f"{age:.4g}" if DICOM_AGE.fullmatch(written) else ""
