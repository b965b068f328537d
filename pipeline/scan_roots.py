"""What ``--scans`` may be beside a folder or a scan: an archive, or a folder with archives in it."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .archives import Limits, is_archive, unpack
from .rar_headers import PART, ArchiveError

logger = logging.getLogger(__name__)

Root = tuple[str, str, str]


def scan_roots(scans: str | Path, limits: Limits | None = None) -> list[Root]:
    """A path and the archives at or below it, unpacked, as roots to look for scans in.

    What is unpacked may name patients, as the archive does: it lies in a temporary folder and is removed when the
    process ends.

    Args:
        scans: a folder, an archive, or anything else, which is left as it is.
        limits: of each archive.

    Returns:
        (prefix of the names of its scans, path, problem) a root. The prefix of an archive is its path relative to
        ``scans``; the problem says why it could not be unpacked, else it is "".
    """
    root = Path(scans).expanduser()
    if root.is_file() and is_archive(root):
        return [_unpacked(root, root.name, limits)]
    roots = [("", str(root), "")]
    if root.is_dir():
        for path in _files(root):
            name = path.relative_to(root).as_posix()
            if is_archive(path):
                roots.append(_unpacked(path, name, limits))
            elif _is_orphan(path):
                roots.append((name, str(path), "a volume of an archive, but part 1 is not beside it"))
    return roots


def _files(root: Path) -> Iterator[Path]:
    """Files below a folder without hidden ones and linked folders, in the order of their paths."""
    for here, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(here, name) for name in sorted(files) if not name.startswith("."))


def _is_orphan(path: Path) -> bool:
    part = PART.fullmatch(path.name)
    if part is None or int(part["number"]) == 1:
        return False
    beside = filter(None, map(PART.fullmatch, os.listdir(path.parent)))
    return not any(other["stem"] == part["stem"] and int(other["number"]) == 1 for other in beside)


def _unpacked(archive: Path, name: str, limits: Limits | None) -> Root:
    archive = Path(os.path.abspath(archive))  # as errors name it
    folder = Path(tempfile.mkdtemp(prefix="fairlung-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        done = unpack(archive, folder / "scans", limits)
    except (ArchiveError, OSError) as error:
        said = str(error).splitlines()[0].replace(f"{archive}: ", "")
        return name, str(archive), said.rstrip(":")
    for left in done.left_packed:
        logger.warning("%s: %s is an archive in an archive in an archive, and left packed", name, left)
    return name, str(done.folder), ""
