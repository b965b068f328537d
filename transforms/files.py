"""Files of a folder: visible ones, by suffix, in natural order; and what each kind of scan is called."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

SLICE_SUFFIXES = (".jpg", ".jpeg", ".png")
NIFTI_SUFFIXES = (".nii", ".nii.gz")
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
DICOM_SUFFIXES = (".dcm", ".ima", ".dicom")
# never DICOM: files that lie beside scans and need not be opened to know it
OTHER_SUFFIXES = (
    *SLICE_SUFFIXES, *NIFTI_SUFFIXES, *ITK_SUFFIXES, ".raw", ".zraw", ".csv", ".tsv", ".json", ".txt", ".xml", ".pdf",
    ".zip", ".tar", ".gz", ".tgz", ".rar", ".bz2", ".xz", ".7z", ".npy", ".npz", ".py", ".md", ".html", ".log",
)  # fmt: skip


def natural_key(name: str, ignore_case: bool = True) -> list[tuple[int, int, str]]:
    """Sort key that orders numbers inside names by value: 2.jpg before 10.jpg, IM-0009 before IM-0010.

    Example:
        >>> sorted(["10.jpg", "b.jpg", "2.jpg", "A.jpg"], key=natural_key)
        ['2.jpg', '10.jpg', 'A.jpg', 'b.jpg']
    """
    parts = re.split(r"(\d+)", name.lower() if ignore_case else name)
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts] + [(0, 0, name)]


def has_suffix(path: Path, suffixes: Sequence[str]) -> bool:
    return path.name.lower().endswith(tuple(suffixes))


def visible_entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, in natural order, without hidden entries (``._1.jpg``).

    An entry tells files from folders without asking the file system, which may be far away, for each.
    """
    with os.scandir(folder) as entries:
        return sorted((e for e in entries if not e.name.startswith(".")), key=lambda entry: natural_key(entry.name))


def visible(folder: Path) -> list[Path]:
    """What lies in a folder, in natural order, without hidden entries."""
    return [folder / entry.name for entry in visible_entries(folder)]


def visible_files(folder: Path) -> list[Path]:
    """The visible files of a folder in natural order."""
    return [folder / entry.name for entry in visible_entries(folder) if entry.is_file()]


def slice_files(folder: Path) -> list[Path]:
    """JPEG and PNG slices of a folder in natural order."""
    return [path for path in visible_files(folder) if has_suffix(path, SLICE_SUFFIXES)]


def named_voxels(header: str) -> str | None:
    """The voxel file that the text of a MetaImage or NRRD header names; LOCAL, a list or a pattern as it stands."""
    named = re.search(r"^(?:ElementDataFile *=|data ?file:) *(.+?) *$", header, re.IGNORECASE | re.MULTILINE)
    return named[1] if named else None
