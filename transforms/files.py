"""Files of a folder: visible ones, by suffix, in natural order."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

SLICE_SUFFIXES = (".jpg", ".jpeg", ".png")


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key that orders numbers inside names by value: 2.jpg before 10.jpg, IM-0009 before IM-0010."""
    parts = re.split(r"(\d+)", name)
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part.lower()) for part in parts] + [(0, 0, name)]


def has_suffix(path: Path, suffixes: Sequence[str]) -> bool:
    return path.name.lower().endswith(tuple(suffixes))


def visible_files(folder: Path) -> list[Path]:
    """Files of a folder in natural order, without hidden ones (``._1.jpg``)."""
    with os.scandir(folder) as entries:  # tells files from folders without asking the file system for each
        names = [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_file()]
    return [folder / name for name in sorted(names, key=natural_key)]


def slice_files(folder: Path) -> list[Path]:
    """JPEG and PNG slices of a folder in natural order."""
    return [path for path in visible_files(folder) if has_suffix(path, SLICE_SUFFIXES)]
