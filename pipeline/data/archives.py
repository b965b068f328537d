"""Archives of scans, as challenges hand them out, unpacked safely: zip, tar, RAR.

Whatever an archive says, nothing is written outside the target folder, no more than the limits allow, and the target
is there only when it is complete. Zip and tar are unpacked by the standard library, RAR by the first of
:data:`RAR_PROGRAMS` that is installed and can.
"""

from __future__ import annotations

import atexit
import json
import logging
import lzma
import os
import re
import shutil
import stat
import struct
import subprocess
import tarfile
import tempfile
import time
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from string import ascii_lowercase
from typing import Any, BinaryIO, NamedTuple

import pandas as pd

from ..common.errors import UserError
from .cohort_checks import SPLITS, CohortError
from .cohort_folders import BuiltCohort, build_cohort

logger = logging.getLogger(__name__)


MAX_ENTRIES = 2_000_000
MAX_BYTES = 500 << 30
MAX_RATIO = 200.0
HARMLESS_BYTES = 100 << 20  # up to here the ratio is not looked at: empty slices compress well
MAX_DEPTH = 100  # folders one in another; walking through a thousand of them is beyond Python's recursion
MAX_TAR_HEADER = 10 << 20  # bytes of a long name or of extended attributes, which are read into memory
MARKER = ".fairlung-unpacked.json"
SUFFIXES = (".zip", ".rar", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
APPLE_JUNK = "__MACOSX"
WATCH_SECONDS = 1.0  # between two looks at what a program has written
LISTED = 5

# Program: its command line, from the archive and an existing folder. The order is that of trust in their decoders;
# bsdtar comes last, because it does not know every kind of RAR.
RAR_PROGRAMS: dict[str, Callable[[str, str], list[str]]] = {
    "unrar": lambda archive, to: ["x", "-p-", "-c-", "-cfg-", "-o+", "-y", "-idq", archive, f"{to}/"],
    "unar": lambda archive, to: ["-q", "-f", "-D", "-nr", "-k", "skip", "-o", to, archive],
    "7z": lambda archive, to: ["x", "-y", "-bso0", "-bsp0", f"-o{to}", archive],
    "7zz": lambda archive, to: ["x", "-y", "-bso0", "-bsp0", f"-o{to}", archive],
    "bsdtar": lambda archive, to: ["-x", "-f", archive, "-C", to],
}
INSTALL = (
    "install one (Debian, Ubuntu: apt install unar; macOS: brew install unar; or unrar from rarlab.com), "
    "or unpack the archive yourself and give the folder"
)


@dataclass(frozen=True)
class Limits:
    """What an archive may unpack to, the archives inside it included.

    Args:
        entries: number of files and folders.
        bytes: size of all files.
        ratio: size unpacked over size of the archive, from :data:`HARMLESS_BYTES` on.
    """

    entries: int = MAX_ENTRIES
    bytes: int = MAX_BYTES
    ratio: float = MAX_RATIO

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")


class Unpacked(NamedTuple):
    """What :func:`unpack` did: ``files`` and ``bytes`` in ``folder``; ``left_packed`` names archives left inside."""

    archive: Path
    folder: Path
    files: int
    bytes: int
    reused: bool
    left_packed: tuple[str, ...]


class Intake(NamedTuple):
    """What :func:`build_with_archives` found; ``built.table`` has scans relative to ``root``."""

    built: BuiltCohort
    root: Path
    unpacked: list[Unpacked]
    left_packed: list[Path]


class _Content(NamedTuple):
    files: int
    folders: int
    bytes: int


@dataclass
class _Budget:
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
            raise ArchiveError(f"{self.archive}: unpacks to more than {readable_bytes(limits.bytes)}, the limit")
        if size > max(HARMLESS_BYTES, limits.ratio * self.packed):
            raise ArchiveError(
                f"{self.archive}: its {readable_bytes(self.packed)} unpack to more than {limits.ratio:g} times as "
                "much, the limit: it is made to fill the disk, or its files are all but empty"
            )

    def check_disk(self, folder: Path) -> None:
        free = shutil.disk_usage(folder).free
        if self.bytes > free:
            raise ArchiveError(
                f"{self.archive}: unpacks to {readable_bytes(self.bytes)}, but only {readable_bytes(free)} are free"
            )


def readable_bytes(size: float) -> str:
    """A size for people: ``12.3 MB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def is_archive(path: Path) -> bool:
    """Whether a file is an archive by its name; of a multi-volume RAR only the first volume is."""
    if not path.name.casefold().endswith(SUFFIXES) or path.name.startswith(".") or not path.is_file():
        return False
    part = PART.fullmatch(path.name)
    return part is None or int(part["number"]) == 1


def archive_stem(path: Path) -> str:
    """The name of an archive without its suffix (``train1.tar.gz`` and ``train1.part1.rar``: ``train1``)."""
    part = PART.fullmatch(path.name)
    if part:
        return part["stem"]
    suffix = max((s for s in SUFFIXES if path.name.casefold().endswith(s)), key=len, default="")
    return path.name[: len(path.name) - len(suffix)]


def archives_in(folder: Path) -> list[Path]:
    """The archives in a folder tree, in the order of their paths, without hidden ones and linked folders.

    Raises:
        ArchiveError: a volume of a RAR lies there without the first.
    """
    found = []
    for here, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        parts = [part for part in map(PART.fullmatch, files) if part and not part.string.startswith(".")]
        firsts = {part["stem"].casefold() for part in parts if int(part["number"]) == 1}
        for part in parts:
            if part["stem"].casefold() not in firsts:
                raise ArchiveError(f"{os.path.join(here, part.string)}: a volume, but part 1 is not beside it")
        found += [path for path in (Path(here, name) for name in files) if is_archive(path)]
    return sorted(found)


def build_with_archives(
    source: str | os.PathLike[str],
    unpack_to: str | os.PathLike[str] | None = None,
    *,
    layout: str = "auto",
    class_names: Sequence[str] | None = None,
    limits: Limits | None = None,
) -> Intake:
    """:func:`.cohort.build_cohort` of a folder, of an archive, or of a folder with archives in it.

    Archives are unpacked when ``source`` is one, when ``unpack_to`` is given, or when the folder holds no usable scan
    beside them; else they are left and named in the result.

    Args:
        source: folder or archive.
        unpack_to: the folder for what is unpacked, one folder an archive; by default ``<name>_unpacked`` beside it.
        layout, class_names: as in :func:`.cohort.build_cohort`.
        limits: of each archive.

    Raises:
        ArchiveError: as :func:`unpack`; or ``unpack_to`` holds something else.
        CohortError, ValueError: as :func:`.cohort.build_cohort`.
    """
    source = Path(os.path.abspath(source))
    single = source.is_file()
    archives = [source] if single else archives_in(source) if source.is_dir() else []
    plain: BuiltCohort | None = None
    if not single:
        try:
            plain = build_cohort(source, layout=layout, class_names=class_names)
        except CohortError:
            if not archives:
                raise
        if plain is not None and (unpack_to is None or not archives):
            return Intake(plain, source, [], archives)
    stem = archive_stem(source) if single else source.name
    base = source.with_name(f"{stem}_unpacked") if unpack_to is None else Path(os.path.abspath(unpack_to))
    archives = [archive for archive in archives if not archive.is_relative_to(base)]
    unpacked = _unpack_all(archives, source.parent if single else source, base, limits)
    root = source if plain is not None and base.is_relative_to(source) else _root_of_splits(base)
    built = build_cohort(root, layout=layout, class_names=class_names)
    if plain is None or root == source:
        return Intake(built, root, unpacked, [])
    away = [Path(os.path.relpath(root / scan, source)).as_posix() for scan in built.table["scan"]]
    table = pd.concat([plain.table, built.table.assign(scan=away)], ignore_index=True)
    return Intake(BuiltCohort(table, plain.skipped + built.skipped), source, unpacked, [])


def unpack(archive: str | os.PathLike[str], target: str | os.PathLike[str], limits: Limits | None = None) -> Unpacked:
    """Unpack an archive, and the archives in it, into a folder that exists only once it is complete.

    An archive inside becomes a folder of its name in its place; archives inside that one are left as they are. A single
    top folder of the archive's own name is left out: ``train1.rar`` with ``train1/A/...`` gives ``target/A/...``.
    A target that was unpacked from the same archive (sizes and times unchanged) is kept as it is.

    Args:
        archive: zip, tar (plain, gz, bz2, xz) or RAR; of a multi-volume RAR the first volume.
        target: the folder; must not exist, be empty, or be the result of an earlier call.
        limits: what it may unpack to; by default :class:`Limits`.

    Raises:
        ArchiveError: no such archive, damaged, truncated, encrypted, beyond the limits; a path out of the target, a
            symbolic link or a device in it; no program for RAR; or ``target`` holds something else.
    """
    archive, target = Path(os.path.abspath(archive)), Path(os.path.abspath(target))
    if not archive.is_file():
        raise ArchiveError(f"{archive}: no such file")
    if not archive.name.casefold().endswith(SUFFIXES):
        raise ArchiveError(f"{archive}: neither a folder nor an archive; archives end in {', '.join(SUFFIXES)}")
    part = PART.fullmatch(archive.name)
    if part and int(part["number"]) != 1:
        raise ArchiveError(f"{archive}: not the first volume; give part 1")
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            return _reuse(archive, target)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as work:
            content = Path(work, "content")
            content.mkdir()
            begun = _identity(archive)
            try:
                volumes, left_packed = _unpack_nested(archive, content, limits or Limits())
                (content / MARKER).unlink(missing_ok=True)  # of a folder that was unpacked, and packed again
                found = _examine(content)
            except ArchiveError as error:  # an archive inside is called by its place in the outer one
                raise ArchiveError(str(error).replace(f"{content}{os.sep}", f"{archive}: ")) from error
            if not found.files:
                raise ArchiveError(f"{archive}: holds no file")
            if _identity(archive) != begun:
                raise ArchiveError(f"{archive}: changed while it was unpacked; wait until it is whole")
            record = {
                "volumes": [_identity(volume) for volume in volumes],
                "files": found.files,
                "bytes": found.bytes,
                "left_packed": left_packed,
            }
            (content / MARKER).write_text(json.dumps(record) + "\n")
            content.rename(target)
            return Unpacked(archive, target, found.files, found.bytes, False, left_packed)
    except OSError as error:
        raise ArchiveError(f"{archive}: cannot be unpacked to {target}: {error.strerror or error}") from error


def _unpack_all(archives: list[Path], root: Path, base: Path, limits: Limits | None) -> list[Unpacked]:
    """Each archive under ``root`` to the folder of its name at its place under ``base``."""
    targets: dict[Path, Path] = {}
    for archive in archives:
        target = base / archive.parent.relative_to(root) / archive_stem(archive)
        if target in targets:
            raise ArchiveError(f"{targets[target]} and {archive} would both become {target}; take one of them away")
        targets[target] = archive
    ours = {target.relative_to(base).parts[0] for target in targets}
    others = sorted(entry.name for entry in _visible(base) if entry.name not in ours) if base.is_dir() else []
    if others:
        raise ArchiveError(f"{base}: holds {', '.join(others[:LISTED])} already; choose another folder to unpack to")
    return [unpack(archive, target, limits) for target, archive in targets.items()]


def _root_of_splits(folder: Path) -> Path:
    """The folder that holds the splits, past folders that hold nothing but one other folder."""
    while True:
        inside = _visible(folder)
        if len(inside) != 1 or not inside[0].is_dir() or inside[0].name.casefold().startswith(SPLITS):
            return folder
        folder = inside[0]


def _visible(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]


def _identity(archive: Path) -> dict[str, Any]:
    status = archive.stat()
    return {"name": archive.name, "size": status.st_size, "time_ns": status.st_mtime_ns}


def _reuse(archive: Path, target: Path) -> Unpacked:
    try:
        record = json.loads((target / MARKER).read_text())
    except (OSError, ValueError):
        raise ArchiveError(
            f"{target}: not empty, and not unpacked from {archive.name}; choose another folder"
        ) from None
    volumes = [archive, *(archive.with_name(volume["name"]) for volume in record["volumes"][1:])]
    if not all(map(Path.is_file, volumes)) or [_identity(volume) for volume in volumes] != record["volumes"]:
        raise ArchiveError(f"{target}: unpacked from another state of {archive.name}; remove it to unpack anew")
    found = _examine(target)
    marker = (target / MARKER).stat().st_size
    if found.files - 1 < record["files"] or found.bytes - marker < record["bytes"]:
        raise ArchiveError(f"{target}: part of what {archive.name} held is gone; remove it to unpack anew")
    return Unpacked(archive, target, record["files"], record["bytes"], True, tuple(record["left_packed"]))


def _unpack_nested(archive: Path, content: Path, limits: Limits) -> tuple[list[Path], tuple[str, ...]]:
    """Unpack an archive and those in it; return its volumes and the archives that are left, by place."""
    budget = _Budget(archive, limits, archive.stat().st_size)
    volumes = _unpack_one(archive, content, budget)
    for path in archives_in(content):
        folder = path.parent / archive_stem(path)
        if os.path.lexists(folder):
            raise ArchiveError(f"{path}: a folder of its name is beside it; which one is meant?")
        folder.mkdir()
        for volume in _unpack_one(path, folder, budget):
            volume.unlink()
    return volumes, tuple(path.relative_to(content).as_posix() for path in archives_in(content))


def _unpack_one(archive: Path, folder: Path, budget: _Budget) -> list[Path]:
    """Unpack one archive into an empty folder, check what is on the disk then, and return its volumes."""
    name = archive.name.casefold()
    volumes = [archive]
    budget.folders.clear()  # those of another archive
    if name.endswith(".zip"):
        _unpack_zip(archive, folder, budget)
    elif name.endswith(".rar"):
        volumes = _unpack_rar(archive, folder, budget)
    else:
        _unpack_tar(archive, folder, budget)
    found = _examine(folder)
    budget.check(found.files + found.folders, found.bytes)
    inside = _visible(folder)
    if len(inside) == 1 and inside[0].is_dir() and inside[0].name.casefold() == archive_stem(archive).casefold():
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            top = inside[0].rename(Path(aside, "top"))
            for entry in list(top.iterdir()):
                entry.rename(folder / entry.name)
    return volumes


def _examine(folder: Path) -> _Content:
    """Count what is on the disk. A link or device is an error, whatever the archive said; modes are made usable."""
    files = folders = size = 0
    waiting = [folder]
    while waiting:
        with os.scandir(waiting.pop()) as found:
            for entry in found:
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    needed = stat.S_IRWXU
                    folders += 1
                    waiting.append(Path(entry.path))
                elif stat.S_ISREG(status.st_mode):
                    needed = stat.S_IRUSR | stat.S_IWUSR
                    files += 1
                    size += status.st_size
                else:
                    raise ArchiveError(f"{entry.path}: {_what(status.st_mode)}; pack without links and devices")
                if status.st_mode & needed != needed:
                    os.chmod(entry.path, stat.S_IMODE(status.st_mode) | needed)
    return _Content(files, folders, size)


def _what(mode: int) -> str:
    return "a symbolic link" if stat.S_ISLNK(mode) else "neither a file nor a folder"


def _check_name(archive: Path, name: str) -> None:
    parts = name.split("/")
    reason = ""
    if not name.strip("/") or not all(sign.isprintable() or unicodedata.category(sign) == "Zs" for sign in name):
        reason = "cannot be the name of a file"
    elif name.startswith("/") or re.match("[A-Za-z]:", name):
        reason = "an absolute path, outside the target folder"
    elif ".." in parts:
        reason = "leads outside the target folder"
    elif len(parts) > MAX_DEPTH:
        reason = f"lies more than {MAX_DEPTH} folders deep"
    elif "\\" in name:
        reason = "has backslashes: folders or not? Pack it again with another program"
    if reason:
        raise ArchiveError(f"{archive}: {name!r} {reason}")


def _unpack_zip(archive: Path, folder: Path, budget: _Budget) -> None:
    try:
        with zipfile.ZipFile(archive) as file:
            members = [info for info in file.infolist() if info.filename.split("/")[0] != APPLE_JUNK]
            for info in members:
                _check_name(archive, info.filename)
                mode = info.external_attr >> 16
                if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise ArchiveError(f"{archive}: {info.filename!r} is {_what(mode)}; pack without links and devices")
                if info.flag_bits & 1:
                    raise _encrypted(archive)
                budget.add(info.filename, info.file_size)
            budget.check_disk(folder)
            for info in members:
                file.extract(info, folder)
    except NotImplementedError as error:
        raise ArchiveError(f"{archive}: packed in a way that is not known here: {error}") from error
    except (zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
        raise _broken(archive, error) from error


TAR_EXTENSIONS = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)


class _StrictTarInfo(tarfile.TarInfo):
    """A header that is cut off or damaged is an error; tarfile takes it for the end of the archive.

    So is a size that leads back, which tarfile follows for ever, or fills the memory.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _StrictTarInfo:
        header = super().frombuf(buf, encoding, errors)
        most = MAX_TAR_HEADER if header.type in TAR_EXTENSIONS else header.size
        if not 0 <= header.size <= most:
            raise tarfile.InvalidHeaderError(f"a size of {header.size}")  # type: ignore[attr-defined]
        return header  # type: ignore[return-value]

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> _StrictTarInfo:
        try:
            return super().fromtarfile(tar)  # type: ignore[return-value]
        except tarfile.HeaderError as error:
            if isinstance(error, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
                raise
            raise tarfile.ReadError(f"at byte {tar.offset}: {error}") from error


def _unpack_tar(archive: Path, folder: Path, budget: _Budget) -> None:
    try:
        with tarfile.open(archive, "r:*", tarinfo=_StrictTarInfo) as file:
            while (member := file.next()) is not None:
                file.members.clear()  # type: ignore[attr-defined]  # a million of them need gigabytes
                if member.name == ".":
                    continue
                _check_name(archive, member.name)
                if not (member.isreg() or member.isdir() or member.islnk()):
                    kind = "a symbolic link" if member.issym() else "neither a file nor a folder"
                    raise ArchiveError(f"{archive}: {member.name!r} is {kind}; pack with tar --dereference")
                budget.add(f"{member.name}/" if member.isdir() else member.name, member.size if member.isreg() else 0)
                if member.isreg():  # a hard link to one of the same name keeps what it has
                    (folder / member.name).unlink(missing_ok=True)
                file.extract(member, folder, filter="data")
            while file.fileobj.read(1 << 20):  # type: ignore[union-attr]  # the checksum comes at the very end
                pass
    except (
        *(tarfile.TarError, EOFError, zlib.error, lzma.LZMAError),
        *(KeyError, ValueError, OverflowError, RecursionError),  # tarfile's own, from headers without sense
    ) as error:
        raise _broken(archive, error) from error


def _encrypted(archive: Path) -> ArchiveError:
    return ArchiveError(f"{archive}: encrypted; unpack it yourself with its password and give the folder")


def _broken(archive: Path, error: Exception) -> ArchiveError:
    return ArchiveError(f"{archive}: damaged, truncated, or no such archive: {error}; get it again")


def _unpack_rar(archive: Path, folder: Path, budget: _Budget) -> list[Path]:
    members, volumes = read_rar(archive)
    budget.packed += sum(volume.stat().st_size for volume in volumes[1:])
    listed: dict[str, RarMember] = {}
    for member in members:
        _check_name(archive, member.name)
        if member.link:
            raise ArchiveError(f"{archive}: {member.name!r} is a link; pack without links")
        if member.encrypted:
            raise _encrypted(archive)
        budget.add(f"{member.name}/" if member.directory else member.name, member.size)
        if not member.directory:
            listed[member.name] = member
    budget.check_disk(folder)
    programs = {name: found for name in RAR_PROGRAMS if (found := shutil.which(name))}
    if not programs:
        raise ArchiveError(f"{archive}: no program for RAR here ({', '.join(RAR_PROGRAMS)}): {INSTALL}")
    failures = []
    for name, program in programs.items():
        failure = _run(program, RAR_PROGRAMS[name], volumes, folder, budget)
        failure = failure or _difference(folder, listed)
        if not failure:
            return volumes
        failures.append(f"{name}: {failure}")
        for entry in folder.iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    raise ArchiveError(
        f"{archive}: damaged, or of a kind that no program here can unpack:\n  "
        + "\n  ".join(failures)
        + f"\n{INSTALL}"
    )


def _difference(folder: Path, listed: dict[str, RarMember]) -> str:
    """How the files on the disk differ from the archive's list; empty where they do not.

    Sizes and checksums are compared, not names: those of old archives are in no known encoding. The programs' word is
    not enough: bsdtar and others that use libarchive do not look at the checksums.
    """
    try:
        _examine(folder)
    except ArchiveError as error:
        return str(error)
    files = [Path(here, name) for here, _, names in os.walk(folder) for name in names]
    expected = Counter(member.size for member in listed.values())
    if Counter(path.stat().st_size for path in files) != expected:
        return (
            f"unpacked {len(files)} files, but the archive lists {len(listed)}, or their sizes are not as it lists them"
        )
    wanted = Counter((member.size, member.checksum) for member in listed.values() if member.checksum is not None)
    if wanted - Counter((path.stat().st_size, _checksum(path)) for path in files):
        return "the checksum of what it unpacked is wrong"
    return ""


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return value


def _run(
    program: str, command: Callable[[str, str], list[str]], volumes: list[Path], folder: Path, budget: _Budget
) -> str:
    """Unpack with a program, stop it beyond the limits, and return what it said when it failed.

    It is given links of plain names in a folder of their own: some programs take ``train1.rar`` and ``train2.rar`` for
    volumes of one archive, or a name that begins with a dash for an option.
    """
    with tempfile.TemporaryDirectory() as links, tempfile.TemporaryFile() as said:
        paths = []
        for volume in volumes:
            part = PART.fullmatch(volume.name)
            paths.append(
                Path(links, f"archive.part{part['number']}.rar" if part else f"archive{volume.suffix.lower()}")
            )
            paths[-1].symlink_to(volume)
        process = subprocess.Popen(
            [program, *command(str(paths[0]), str(folder))],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            env=os.environ | {"LC_ALL": "C.UTF-8"},  # names are Unicode
        )
        pause = WATCH_SECONDS
        try:
            while True:
                try:
                    code = process.wait(pause)
                    break
                except subprocess.TimeoutExpired:
                    started = time.monotonic()
                    budget.check(*_written(folder))
                    pause = max(WATCH_SECONDS, 20 * (time.monotonic() - started))
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        said.seek(0)
        lines = [line.strip() for line in said.read().decode(errors="replace").splitlines() if line.strip()]
    return "" if code == 0 else f"exit code {code}: {'; '.join(lines[-LISTED:]) or 'no message'}"


def _written(folder: Path) -> tuple[int, int]:
    """Entries and bytes in a folder that is being written to."""
    entries = size = 0
    for here, folders, files in os.walk(folder):
        entries += len(folders) + len(files)
        for name in files:
            try:
                size += os.lstat(os.path.join(here, name)).st_size
            except FileNotFoundError:  # a temporary name of the program's
                continue
    return entries, size


SIGNATURE_4 = b"Rar!\x1a\x07\x00"
SIGNATURE_5 = b"Rar!\x1a\x07\x01\x00"
PART = re.compile(r"(?P<stem>.*)\.part(?P<number>\d+)\.rar", re.IGNORECASE | re.DOTALL)
MAX_HEADER = 2 << 20  # bytes; the format's own bound
UNIX_5, UNIX_4 = 1, 3  # host systems whose attributes are a Unix mode
FILE_COPY = 5  # RAR 5 redirection that unpacks to a plain file; the others are links


class ArchiveError(UserError):
    """An archive that is not, or cannot safely be, unpacked; the message says why and what to do."""


class RarMember(NamedTuple):
    """An entry of a RAR archive: ``size`` in bytes, unpacked; ``checksum`` its CRC-32, None where that is not told."""

    name: str
    size: int
    directory: bool
    link: bool
    encrypted: bool
    checksum: int | None


class _Volume(NamedTuple):
    members: list[RarMember]
    is_volume: bool  # one of several
    more: bool  # another one follows
    continues: bool  # begins in the middle of a file


def read_rar(path: Path) -> tuple[list[RarMember], list[Path]]:
    """The entries of a RAR archive, one that spans volumes once, and the files that it consists of.

    Args:
        path: the archive, or its first volume; the others lie beside it, named as RAR names them
            (``x.part2.rar``, or ``x.r00`` after ``x.rar``).

    Raises:
        ArchiveError: not RAR, damaged, truncated, encrypted as a whole, or a volume is missing.
    """
    members: list[RarMember] = []
    first = _read(path)
    if first.continues:
        raise ArchiveError(f"{path}: not the first volume; give that one, under the name that RAR gave it")
    volumes = _volumes(path) if first.is_volume else [path]
    for i, volume in enumerate(volumes):
        read = _read(volume) if i else first
        members += read.members
        if read.more and i == len(volumes) - 1:
            raise ArchiveError(f"{volume}: the volume after this one is missing")
        if not read.more and i < len(volumes) - 1:
            raise ArchiveError(f"{volume}: says it is the last volume, but {volumes[i + 1].name} follows")
    return members, volumes


def _volumes(path: Path) -> list[Path]:
    """The volumes from the first on, as long as their numbers follow each other."""
    beside = {entry.name.casefold(): entry for entry in path.parent.iterdir()}
    part = PART.fullmatch(path.name)
    if part:
        digits = len(part["number"])
        names = (f"{part['stem']}.part{i:0{digits}d}.rar" for i in count(1))
    else:
        old = (f"{letter}{i:02d}" for letter in ascii_lowercase[ascii_lowercase.index("r") :] for i in range(100))
        names = (f"{path.stem}.{suffix}" for suffix in chain(["rar"], old))
    found = []
    for name in names:
        if name.casefold() not in beside:
            break
        found.append(beside[name.casefold()])
    return found


def _read(path: Path) -> _Volume:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(SIGNATURE_5))
        if start == SIGNATURE_5:
            version = _read_5
        elif start.startswith(SIGNATURE_4):
            version = _read_4
            file.seek(len(SIGNATURE_4))
        else:
            raise ArchiveError(f"{path}: not a RAR archive")
        try:
            return version(file, path, size)
        except (IndexError, struct.error, UnicodeDecodeError):
            raise ArchiveError(f"{path}: damaged: a header makes no sense") from None


def _take(file: BinaryIO, length: int, path: Path) -> bytes:
    data = file.read(length)
    if len(data) < length:
        raise _truncated(path)
    return data


def _truncated(path: Path) -> ArchiveError:
    return ArchiveError(f"{path}: truncated: it ends in the middle; get it again")


def _damaged(path: Path) -> ArchiveError:
    return ArchiveError(f"{path}: damaged: the checksum of a header is wrong; get it again")


def _protected(path: Path) -> ArchiveError:
    return ArchiveError(f"{path}: encrypted; unpack it yourself with its password and give the folder")


class _Fields:
    """The fields of a header in turn; IndexError where it ends too early."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def number(self) -> int:
        """A number of 7 bits a byte, the lowest first."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise IndexError("a number of more than 64 bits")

    def take(self, length: int) -> bytes:
        taken = self.data[self.at : self.at + length]
        if len(taken) < length:
            raise IndexError("a field beyond the header's end")
        self.at += length
        return taken

    def rest(self) -> bytes:
        return self.data[self.at :]


def _blocks_5(file: BinaryIO, path: Path, size: int) -> Iterator[tuple[int, int, _Fields, bytes]]:
    """Type, flags, further fields and extra area of each block, up to the end of the archive."""
    while True:
        (checksum,) = struct.unpack("<I", _take(file, 4, path))
        prefix = b""
        while not prefix or prefix[-1] >= 0x80:
            prefix += _take(file, 1, path)
            if len(prefix) > 3:
                raise _damaged(path)
        length = _Fields(prefix).number()
        if length > MAX_HEADER:
            raise _damaged(path)
        data = _take(file, length, path)
        if zlib.crc32(prefix + data) != checksum:
            raise _damaged(path)
        fields = _Fields(data)
        kind, flags = fields.number(), fields.number()
        extra_length = fields.number() if flags & 1 else 0
        data_length = fields.number() if flags & 2 else 0
        if extra_length > len(fields.rest()):
            raise _damaged(path)
        extra = data[len(data) - extra_length :] if extra_length else b""
        yield kind, flags, fields, extra
        if file.tell() + data_length > size:
            raise _truncated(path)
        file.seek(data_length, 1)


def _read_5(file: BinaryIO, path: Path, size: int) -> _Volume:
    members = []
    volume = continues = False
    for kind, flags, fields, extra in _blocks_5(file, path, size):
        if kind == 1:
            volume = bool(fields.number() & 1)
        elif kind == 2:
            member = _member_5(fields, extra)
            if flags & 8:  # it began in the volume before
                continues = True
            else:  # the checksum of one that goes on in the next is that of a part
                members.append(member._replace(checksum=None) if flags & 16 else member)
        elif kind == 4:
            raise _protected(path)
        elif kind == 5:
            return _Volume(members, volume, bool(fields.number() & 1), continues)
        elif kind != 3:
            raise ArchiveError(f"{path}: damaged, or of a newer kind of RAR: it holds a block of type {kind}")
    raise AssertionError("the blocks end by an error or at the end of the archive")


def _member_5(fields: _Fields, extra: bytes) -> RarMember:
    flags, unpacked, attributes = fields.number(), fields.number(), fields.number()
    fields.take(4 * bool(flags & 2))  # time
    checksum = struct.unpack("<I", fields.take(4))[0] if flags & 4 else None
    fields.number()  # compression
    host = fields.number()
    name = fields.take(fields.number()).decode()
    encrypted = False
    link = host == UNIX_5 and stat.S_ISLNK(attributes)
    records = _Fields(extra)
    while records.at < len(extra):
        record = _Fields(records.take(records.number()))
        kind = record.number()
        encrypted |= kind == 1
        if kind == 5:
            link |= record.number() != FILE_COPY
            checksum = None
    return RarMember(name, unpacked, bool(flags & 1), link, encrypted, checksum)


def _read_4(file: BinaryIO, path: Path, size: int) -> _Volume:
    members = []
    volume = continues = False
    while True:
        data = file.read(7)
        if not data:
            raise ArchiveError(f"{path}: truncated (no mark of its end), or written by a RAR older than 3.0")
        if len(data) < 7:
            raise _truncated(path)
        checksum, kind, flags, length = struct.unpack("<HBHH", data)
        if length < 7:
            raise _damaged(path)
        data += _take(file, length - 7, path)
        data_length = struct.unpack_from("<I", data, 7)[0] if flags & 0x8000 or kind in (0x74, 0x7A) else 0
        old_comment = flags & {0x73: 2, 0x74: 8}.get(kind, 0)  # not covered by the checksum
        if kind in (0x73, 0x74, 0x7B) and not old_comment and zlib.crc32(data[2:]) & 0xFFFF != checksum:
            raise _damaged(path)
        if kind == 0x73:
            volume = bool(flags & 1)
            if flags & 0x80:
                raise _protected(path)
        elif kind == 0x74:
            if flags & 0x100:
                data_length |= struct.unpack_from("<I", data, 32)[0] << 32
            if flags & 1:
                continues = True
            else:
                member = _member_4(data, flags)
                members.append(member._replace(checksum=None) if flags & 2 else member)
        elif kind == 0x7B:
            return _Volume(members, volume, bool(flags & 1), continues)
        elif not 0x75 <= kind <= 0x7A:
            raise ArchiveError(f"{path}: damaged: it holds a block of type {kind:#x}")
        if file.tell() + data_length > size:
            raise _truncated(path)
        file.seek(data_length, 1)


def _member_4(data: bytes, flags: int) -> RarMember:
    unpacked, host, checksum = struct.unpack_from("<IBI", data, 11)
    name_length, attributes = struct.unpack_from("<HI", data, 26)
    at = 32
    if flags & 0x100:
        unpacked |= struct.unpack_from("<I", data, 36)[0] << 32
        at += 8
    if len(data) < at + name_length:
        raise IndexError("a name beyond the header's end")
    name = _name_4(data[at : at + name_length], bool(flags & 0x200)).replace("\\", "/")
    directory = flags & 0xE0 == 0xE0 or (host == UNIX_4 and stat.S_ISDIR(attributes))
    link = host == UNIX_4 and stat.S_ISLNK(attributes)
    return RarMember(name, unpacked, directory, link, bool(flags & 4), checksum)


def _name_4(stored: bytes, unicode: bool) -> str:
    """A name: 8-bit text, UTF-8, or 8-bit text, NUL and what changes it to UTF-16 (two bits choose how, in turn)."""
    text, separator, encoded = stored.partition(b"\0")
    if not (unicode and separator):
        return text.decode("utf-8", "surrogateescape")
    units: list[int] = []
    high, at, flags, bits = encoded[0], 1, 0, 0
    while at < len(encoded):
        if not bits:
            flags, at, bits = encoded[at], at + 1, 8
            if at == len(encoded):
                break
        bits -= 2
        way = flags >> bits & 3
        if way < 2:
            units.append(encoded[at] | (high << 8 if way else 0))
            at += 1
        elif way == 2:
            units.append(encoded[at] | encoded[at + 1] << 8)
            at += 2
        else:
            run, shift, page = (encoded[at] & 0x7F) + 2, 0, 0
            if encoded[at] & 0x80:
                at += 1
                shift, page = encoded[at], high << 8
            at += 1
            start = len(units)
            units += [(byte + shift) & 0xFF | page for byte in text[start : start + run]]
    return struct.pack(f"<{len(units)}H", *units).decode("utf-16-le", "surrogatepass")


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
