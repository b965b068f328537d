"""A cohort file made from a folder tree."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from fairlung.transforms.addresses import is_remote
from fairlung.transforms.discovery import is_volume, parts_of_scans, scan_kind, scans_below
from fairlung.transforms.files import SLICE_SUFFIXES, has_suffix, natural_key, visible, visible_files

from ..common.names import CHALLENGE_CLASSES, CLASS_ALIASES, CLASS_NAMES, SEXES
from ..common.tables import write_frame
from ..common.text import quoted
from .cohort_checks import SPLITS, CohortError, checked_names, problem_report

LAYOUTS = ("auto", "paper", "challenge")
PART = "its DICOM series goes on in another folder; put all its files into one"


class Skipped(NamedTuple):
    """Something in the tree that looked like data and is not in the cohort."""

    path: str
    reason: str


class BuiltCohort(NamedTuple):
    """What :func:`build_cohort` found."""

    table: pd.DataFrame  # scan (relative to the folder), label, sex, split
    skipped: list[Skipped]


def build_cohort(
    folder: str | os.PathLike[str], *, layout: str = "auto", class_names: Sequence[str] | None = None
) -> BuiltCohort:
    """Describe a folder tree ``.../<split>.../<class>/<male|female>/<scan>`` as a cohort table.

    A scan is what inference takes for one (:func:`~.scans_below`). It lies in a sex folder, a volume file also in a
    folder of its own. The split is the nearest folder above the class whose name starts with train, val or test, in any
    case, below ``folder``. Hidden files (``._*`` too) are ignored. The rows are in natural order of their paths.

    Args:
        layout: ``paper``: exactly ``<train|val|test>/<class>/<sex>/<scan>``, class folders named as the classes;
            ``challenge``: class folders A, G, covid, normal at any depth; ``auto``: both, and other spellings.
        class_names: the classes to take. When None: the paper's four, and with ``auto`` any folder that holds
            ``male`` or ``female`` counts as a class under its own name.

    Raises:
        CohortError: ``folder`` is not a folder, or holds no scan that can be used (with the reasons).
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout: {layout!r} is not one of {', '.join(LAYOUTS)}")
    names = None if class_names is None else checked_names(class_names, "class_names")
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
            found = list(_scans_in(place))
            parts = parts_of_scans(scan for scan, problem in found if not problem)
            for scan, problem in found:
                path = scan.relative_to(root).as_posix()
                problem = problem or (PART if scan in parts else unwritable(path))
                skipped += [Skipped(path, problem)] if problem else []
                rows += [] if problem else [(path, label, sex, split)]
        elif scan_kind(place) or any(map(is_volume, visible_files(place))):
            skipped.append(Skipped("/".join(here) or ".", "images that lie in no <class>/<male|female>/ folder"))

    # Whatever the file system allows in a name, a report of it can be printed.
    skipped = [Skipped(*(text.encode(errors="backslashreplace").decode() for text in entry)) for entry in skipped]
    skipped.sort(key=lambda entry: _path_key(entry.path))
    if not rows:
        reasons = [f"{entry.path}: {entry.reason}" for entry in skipped] or ["no <class>/<male|female>/<scan> folder"]
        raise CohortError("no usable scan\n" + problem_report(root, reasons))
    rows.sort(key=lambda row: _path_key(row[0]))
    return BuiltCohort(pd.DataFrame(rows, columns=["scan", "label", "sex", "split"], dtype=str), skipped)


def write_cohort(
    table: pd.DataFrame, path: str | os.PathLike[str], *, root: str | os.PathLike[str] | None = None
) -> Path:
    """Write a cohort file, with scans relative to its own folder, which must exist, and return its absolute path.

    ``root`` is the folder that the table's relative scans start from; by default that of ``path``. CohortError when a
    column is missing, or a scan does not exist (most likely ``root`` is not right).
    """
    path = Path(os.path.abspath(path))
    problems = [f"no column {name!r}" for name in ("scan", "label") if name not in table]
    if problems:
        raise CohortError(problem_report(path, problems))
    # Real folders: '..' out of a linked folder does not lead back to where the link stands.
    start = os.path.realpath(path.parent if root is None else root)
    target = os.path.realpath(path.parent)
    scans = []
    for scan in table["scan"]:
        fixed = is_remote(scan) or os.path.isabs(scan)
        scans.append(scan if fixed else Path(os.path.relpath(Path(start, scan), target)).as_posix())
        if not is_remote(scan) and not os.path.exists(path.parent / scans[-1]):
            problems.append(f"scan {quoted(scan)} does not exist under {start}")
    if problems:
        raise CohortError(problem_report(path, problems))
    write_frame(table.assign(scan=scans), path)
    return path


def _walk(folder: Path, ancestors: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Every visible folder under ``folder``, itself first, but nothing below a sex folder. Links are followed."""
    real = os.path.realpath(folder)
    if real in ancestors:
        return  # a link to a folder above it: following it would never end
    yield folder
    if folder.name.casefold() in SEXES and ancestors:
        return
    for child in visible(folder):
        if child.is_dir():
            yield from _walk(child, ancestors | {real})


def _path_key(path: str) -> list[list[tuple[int, int, str]]]:
    return [natural_key(part) for part in path.split("/")]


def _class_and_split(above: tuple[str, ...], layout: str, names: tuple[str, ...] | None) -> tuple[str, str, str]:
    """Label and split of a sex folder from the names of the folders above it; the third value says what is wrong."""
    if not above:
        return "", "", "no class folder above it"
    label = _class_of(above[-1], layout, names)
    if label is None:
        valid = names or (tuple(CHALLENGE_CLASSES) if layout == "challenge" else CLASS_NAMES)
        return "", "", f"class folder {above[-1]!r} is not one of {', '.join(valid)}"
    folders = [folder.casefold() for folder in reversed(above[:-1])]
    split = next((split for folder in folders for split in SPLITS if folder.startswith(split)), None)
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
    return (alias or folder) if names is None else alias if alias in names else None


def _scans_in(sex_folder: Path) -> Iterator[tuple[Path, str]]:
    """Each scan of a sex folder with "", and anything else in a scan's place with the reason why it is none."""
    for entry in visible(sex_folder):
        found = scans_below(entry)
        if entry in found:
            yield entry, ""
        elif entry.is_dir():
            volumes = [path for path in found if path.parent == entry and path.is_file()]
            if len(volumes) == 1:
                yield volumes[0], ""
            elif volumes:
                yield entry, f"{len(volumes)} volume files in one scan folder; which one is the scan?"
            elif scan_kind(entry):
                yield entry, "pictures with scans in folders below them; which one is the scan?"
            elif any(child.is_dir() for child in visible(entry)):
                yield entry, "no image in the scan folder itself, only further folders"
            else:
                yield entry, "no image, DICOM or volume file in it"
        elif not entry.exists():
            yield entry, "a link to nothing"
        elif has_suffix(entry, SLICE_SUFFIXES):
            yield entry, "a single image outside a scan folder"


def unwritable(path: str) -> str:
    """Why a path cannot be written to a cohort file and read back; empty when it can."""
    if path != path.strip():
        return "its name begins or ends with a space"
    return "" if path.encode(errors="replace").decode() == path else "its name is not UTF-8"
