"""What keeps unpacking safe: limits, checks of names, and a look at what is on the disk in the end."""

import os
import re
import shutil
import stat
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from rich.filesize import decimal as readable_size

from ..common.errors import UserError

MAX_ENTRIES = 2_000_000
MAX_BYTES = 500 << 30
HARMLESS_BYTES = 100 << 20  # up to here the ratio is not looked at: empty slices compress well
LISTED = 5  # of what a message lists
MAX_DEPTH = 100  # folders one in another; walking through a thousand of them is beyond Python's recursion


class ArchiveError(UserError):
    """An archive that is not, or cannot safely be, unpacked; the message says why and what to do."""


def encrypted(archive: Path) -> ArchiveError:
    return ArchiveError(f"{archive}: encrypted; unpack it yourself with its password and give the folder")


def broken(archive: Path, error: Exception | str) -> ArchiveError:
    return ArchiveError(f"{archive}: damaged, truncated, or no such archive: {error}; get it again")


@dataclass(frozen=True)
class Limits:
    """What an archive may unpack to, the archives inside it included."""

    entries: int = MAX_ENTRIES  # files and folders
    bytes: int = MAX_BYTES
    ratio: float = 200.0  # size unpacked over size of the archive, from HARMLESS_BYTES on

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")


class Content(NamedTuple):
    files: int
    folders: int
    bytes: int


@dataclass
class Budget:
    """Counts what is to be unpacked against the limits, over an archive and those in it."""

    archive: Path
    limits: Limits
    packed: int
    entries: int = 0
    bytes: int = 0
    folders: set[int] = field(default_factory=set)  # hashes, as millions of names take gigabytes

    def add(self, name: str, size: int) -> None:
        """Count a file, or a folder if the name ends in a slash, and the folders above it that were not seen yet."""
        if size < 0:
            raise ArchiveError(f"{self.archive}: damaged: {name!r} has a negative size")
        folder, _, file = name.rpartition("/")
        self.entries += bool(file)
        while folder and hash(folder) not in self.folders:
            self.folders.add(hash(folder))
            self.entries += 1
            folder = folder.rpartition("/")[0]
        self.bytes += size
        self.check(self.entries, self.bytes)

    def check(self, entries: int, size: int) -> None:
        limits = self.limits
        if entries > limits.entries:
            raise ArchiveError(f"{self.archive}: more than {limits.entries:,} files and folders, the limit")
        if size > limits.bytes:
            raise ArchiveError(f"{self.archive}: unpacks to more than {readable_size(limits.bytes)}, the limit")
        if size > max(HARMLESS_BYTES, limits.ratio * self.packed):
            times = f"its {readable_size(self.packed)} unpack to more than {limits.ratio:g} times as much, the limit"
            why = "it is made to fill the disk, or its files are all but empty"
            raise ArchiveError(f"{self.archive}: {times}: {why}")

    def check_disk(self, folder: Path) -> None:
        if self.bytes > (free := shutil.disk_usage(folder).free):
            needed = f"{self.archive}: unpacks to {readable_size(self.bytes)}"
            raise ArchiveError(f"{needed}, but only {readable_size(free)} are free")


def examine(folder: Path) -> Content:
    """Count what is on the disk. A link or device is an error; modes are made usable."""
    files = folders = size = 0
    waiting = [folder]
    while waiting:
        with os.scandir(waiting.pop()) as found:
            for entry in found:
                status = entry.stat(follow_symlinks=False)
                is_folder = stat.S_ISDIR(status.st_mode)
                if not (is_folder or stat.S_ISREG(status.st_mode)):
                    raise ArchiveError(f"{entry.path}: {what_it_is(status.st_mode)}; pack without links and devices")
                waiting += [Path(entry.path)] if is_folder else []
                folders += is_folder
                files += not is_folder
                size += 0 if is_folder else status.st_size
                needed = stat.S_IRWXU if is_folder else stat.S_IRUSR | stat.S_IWUSR
                if status.st_mode & needed != needed:
                    os.chmod(entry.path, stat.S_IMODE(status.st_mode) | needed)
    return Content(files, folders, size)


def what_it_is(mode: int) -> str:
    return "a symbolic link" if stat.S_ISLNK(mode) else "neither a file nor a folder"


def check_name(archive: Path, name: str) -> None:
    reason = ""
    if not name.strip("/") or not all(sign.isprintable() or unicodedata.category(sign) == "Zs" for sign in name):
        reason = "cannot be the name of a file"
    elif name.startswith("/") or re.match("[A-Za-z]:", name):
        reason = "an absolute path, outside the target folder"
    elif ".." in name.split("/"):
        reason = "leads outside the target folder"
    elif name.count("/") >= MAX_DEPTH:
        reason = f"lies more than {MAX_DEPTH} folders deep"
    elif "\\" in name:
        reason = "has backslashes: folders or not? Pack it again with another program"
    if reason:
        raise ArchiveError(f"{archive}: {name!r} {reason}")
