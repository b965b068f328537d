"""Archives of scans, as challenges hand them out, unpacked safely: zip, tar, RAR.

Nothing is written outside the target folder or beyond the limits, and the target exists only when it is complete.
The standard library unpacks zip and tar; RAR takes the first of :data:`~.RAR_PROGRAMS` that is installed and can.
"""

from __future__ import annotations

import json
import logging
import lzma
import os
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from fairlung.transforms.addresses import file_name, is_remote, plain_name, shown
from fairlung.transforms.files import visible
from fairlung.transforms.remote import fetched_file, file_at, files_below
from fairlung.transforms.scan import Refusal

from ..common.claims import process_folder, temporary_folder
from .cohort_checks import SPLITS, CohortError
from .cohort_drafts import draft_cohort
from .cohort_folders import BuiltCohort, build_cohort
from .rar import LISTED, PART, unpack_rar
from .unpack_limits import ArchiveError, Budget, Limits, broken, check_name, encrypted, examine, what_it_is

logger = logging.getLogger(__name__)

MAX_TAR_HEADER = 10 << 20  # bytes of a long name or of extended attributes, which are read into memory
MARKER = ".fairlung-unpacked.json"
SUFFIXES = (".zip", ".rar", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
ORPHAN = "a volume of an archive, but part 1 is not beside it"
DAMAGE = (EOFError, zlib.error, lzma.LZMAError, ValueError)  # what the libraries raise beside errors of their own
TAR_EXTENSIONS = (b"L", b"K", b"x", b"g", b"X")  # long names and links (GNU), attributes (POSIX, Solaris)

Root = tuple[str, str, str]


class Unpacked(NamedTuple):
    """What :func:`unpack` did."""

    archive: Path
    folder: Path
    files: int
    bytes: int
    reused: bool
    left_packed: tuple[str, ...]  # archives left inside


class Intake(NamedTuple):
    """What :func:`build_with_archives` found."""

    built: BuiltCohort  # its scans are relative to root
    root: Path
    unpacked: list[Unpacked]
    left_packed: list[Path]


def is_archive(path: Path) -> bool:
    """Whether a file is an archive by its name; of a multi-volume RAR only the first volume is."""
    named = path.name.casefold().endswith(SUFFIXES) and not path.name.startswith(".")
    return named and path.is_file() and not _is_later_volume(path)


def _is_later_volume(path: Path) -> bool:
    return (part := PART.fullmatch(path.name)) is not None and int(part["number"]) != 1


def archive_stem(path: Path) -> str:
    """The name of an archive without its suffix (``train1.tar.gz`` and ``train1.part1.rar``: ``train1``)."""
    if part := PART.fullmatch(path.name):
        return part["stem"]
    suffix = max((s for s in SUFFIXES if path.name.casefold().endswith(s)), key=len, default="")
    return path.name[: len(path.name) - len(suffix)]


def archives_in(folder: Path) -> list[Path]:
    """The archives of a folder tree, sorted, without hidden ones; ArchiveError for a RAR volume without the first."""
    files = list(_files(folder))
    if orphan := next(filter(_is_orphan, files), None):
        raise ArchiveError(f"{orphan}: {ORPHAN}")
    return sorted(filter(is_archive, files))


def build_with_archives(
    source: str | os.PathLike[str],
    unpack_to: str | os.PathLike[str] | None = None,
    *,
    layout: str = "auto",
    class_names: Sequence[str] | None = None,
    folders: pd.DataFrame | None = None,
    limits: Limits | None = None,
) -> Intake:
    """A cohort of a folder, of an archive, or of a folder with archives in it.

    It is :func:`~.build_cohort`'s, or with the layout ``any`` :func:`~.draft_cohort`'s, which takes ``folders``.

    Archives are unpacked when ``source`` is one, when ``unpack_to`` is given, or when the folder holds no usable scan
    beside them; else they stay packed and the result names them. ``unpack_to``, by default ``<name>_unpacked`` beside
    ``source``, gets one folder an archive. ``limits`` hold for each archive. Raises as :func:`unpack` and
    :func:`~.build_cohort` do, and ArchiveError where ``unpack_to`` holds something else.
    """
    describe: Callable[[Path], BuiltCohort] = partial(build_cohort, layout=layout, class_names=class_names)
    if layout == "any":
        describe = partial(draft_cohort, patients={}, folders=folders)
    source = Path(os.path.abspath(source))
    single = source.is_file()
    archives = [source] if single else archives_in(source) if source.is_dir() else []
    plain: BuiltCohort | None = None
    if not single:
        with suppress(CohortError) if archives else nullcontext():
            plain = describe(source)
        if plain is not None and (unpack_to is None or not archives):
            return Intake(plain, source, [], archives)
    stem = archive_stem(source) if single else source.name
    base = source.with_name(f"{stem}_unpacked") if unpack_to is None else Path(os.path.abspath(unpack_to))
    archives = [archive for archive in archives if not archive.is_relative_to(base)]
    unpacked = _unpack_all(archives, source.parent if single else source, base, limits)
    root = source if plain is not None and base.is_relative_to(source) else _root_of_splits(base)
    built = describe(root)
    if plain is None or root == source:
        return Intake(built, root, unpacked, [])
    away = [Path(os.path.relpath(root / scan, source)).as_posix() for scan in built.table["scan"]]
    table = pd.concat([plain.table, built.table.assign(scan=away)], ignore_index=True)
    return Intake(BuiltCohort(table, plain.skipped + built.skipped), source, unpacked, [])


def unpack(archive: str | os.PathLike[str], target: str | os.PathLike[str], limits: Limits | None = None) -> Unpacked:
    """Unpack an archive, and the archives in it, into a folder that exists only once it is complete.

    An archive inside becomes a folder of its name in its place; archives inside that one are left as they are. A single
    top folder of the archive's own name is left out: ``train1.rar`` with ``train1/A/...`` gives ``target/A/...``.

    Args:
        archive: zip, tar (plain, gz, bz2, xz) or RAR; of a multi-volume RAR the first volume.
        target: must not exist, or be empty; the result of an earlier call with the same archive (sizes and times
            unchanged) is kept as it is.

    Raises:
        ArchiveError: no such archive, damaged, truncated, encrypted, beyond the limits; a path out of the target, a
            symbolic link or a device in it; no program for RAR; or ``target`` holds something else.
    """
    archive, target = Path(os.path.abspath(archive)), Path(os.path.abspath(target))
    if not archive.is_file():
        raise ArchiveError(f"{archive}: no such file")
    if not archive.name.casefold().endswith(SUFFIXES):
        raise ArchiveError(f"{archive}: neither a folder nor an archive; archives end in {', '.join(SUFFIXES)}")
    if _is_later_volume(archive):
        raise ArchiveError(f"{archive}: not the first volume; give part 1")
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            return _reuse(archive, target)
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(target.parent, f".{target.name}.") as work:
            content = work / "content"
            content.mkdir()
            begun = _identity(archive)
            try:
                volumes, left_packed = _unpack_nested(archive, content, limits or Limits())
                (content / MARKER).unlink(missing_ok=True)  # of a folder that was unpacked, and packed again
                found = examine(content)
            except ArchiveError as error:  # an archive inside is called by its place in the outer one
                raise ArchiveError(str(error).replace(f"{content}{os.sep}", f"{archive}: ")) from error
            if not found.files:
                raise ArchiveError(f"{archive}: holds no file")
            if _identity(archive) != begun:
                raise ArchiveError(f"{archive}: changed while it was unpacked; wait until it is whole")
            states = list(map(_identity, volumes))
            record = {"volumes": states, "files": found.files, "bytes": found.bytes, "left_packed": left_packed}
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
    others = sorted(entry.name for entry in visible(base) if entry.name not in ours) if base.is_dir() else []
    if others:
        raise ArchiveError(f"{base}: holds {', '.join(others[:LISTED])} already; choose another folder to unpack to")
    return [unpack(archive, target, limits) for target, archive in targets.items()]


def _root_of_splits(folder: Path) -> Path:
    """The folder that holds the splits, past folders that hold nothing but one other folder."""
    while True:
        inside = visible(folder)
        if len(inside) != 1 or not inside[0].is_dir() or inside[0].name.casefold().startswith(SPLITS):
            return folder
        folder = inside[0]


def _identity(archive: Path) -> dict[str, Any]:
    status = archive.stat()
    return {"name": archive.name, "size": status.st_size, "time_ns": status.st_mtime_ns}


def _reuse(archive: Path, target: Path) -> Unpacked:
    try:
        record = json.loads((target / MARKER).read_text())
    except (OSError, ValueError):
        why = f"not empty, and not unpacked from {archive.name}; choose another folder"
        raise ArchiveError(f"{target}: {why}") from None
    volumes = [archive, *(archive.with_name(volume["name"]) for volume in record["volumes"][1:])]
    if not all(map(Path.is_file, volumes)) or list(map(_identity, volumes)) != record["volumes"]:
        raise ArchiveError(f"{target}: unpacked from another state of {archive.name}; remove it to unpack anew")
    found = examine(target)
    if found.files - 1 < record["files"] or found.bytes - (target / MARKER).stat().st_size < record["bytes"]:
        raise ArchiveError(f"{target}: part of what {archive.name} held is gone; remove it to unpack anew")
    return Unpacked(archive, target, record["files"], record["bytes"], True, tuple(record["left_packed"]))


def _unpack_nested(archive: Path, content: Path, limits: Limits) -> tuple[list[Path], tuple[str, ...]]:
    """Unpack an archive and those in it; return its volumes and the archives that are left, by place."""
    budget = Budget(archive, limits, archive.stat().st_size)
    volumes = _unpack_one(archive, content, budget)
    for path in archives_in(content):
        folder = path.parent / archive_stem(path)
        if os.path.lexists(folder):
            raise ArchiveError(f"{path}: a folder of its name is beside it; which one is meant?")
        folder.mkdir()
        for volume in _unpack_one(path, folder, budget):
            volume.unlink()
    return volumes, tuple(path.relative_to(content).as_posix() for path in archives_in(content))


def _unpack_one(archive: Path, folder: Path, budget: Budget) -> list[Path]:
    """Unpack one archive into an empty folder, check what is on the disk then, and return its volumes."""
    budget.folders.clear()  # those of another archive
    name = archive.name.casefold()
    unpack_it = _unpack_zip if name.endswith(".zip") else unpack_rar if name.endswith(".rar") else _unpack_tar
    volumes = unpack_it(archive, folder, budget) or [archive]
    found = examine(folder)
    budget.check(found.files + found.folders, found.bytes)
    inside = visible(folder)
    if len(inside) == 1 and inside[0].is_dir() and inside[0].name.casefold() == archive_stem(archive).casefold():
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            for entry in list(inside[0].rename(Path(aside, "top")).iterdir()):
                entry.rename(folder / entry.name)
    return volumes


def _unpack_zip(archive: Path, folder: Path, budget: Budget) -> None:
    try:
        with zipfile.ZipFile(archive) as file:
            members = [info for info in file.infolist() if info.filename.split("/")[0] != "__MACOSX"]
            for info in members:
                check_name(archive, info.filename)
                mode = info.external_attr >> 16
                if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                    what = f"{info.filename!r} is {what_it_is(mode)}"
                    raise ArchiveError(f"{archive}: {what}; pack without links and devices")
                if info.flag_bits & 1:
                    raise encrypted(archive)
                budget.add(info.filename, info.file_size)
            budget.check_disk(folder)
            for info in members:
                file.extract(info, folder)
    except NotImplementedError as error:
        raise ArchiveError(f"{archive}: packed in a way that is not known here: {error}") from error
    except (zipfile.BadZipFile, *DAMAGE) as error:
        raise broken(archive, error) from error


class _StrictTarInfo(tarfile.TarInfo):
    """Headers that tarfile takes for the end of the archive (cut off, damaged) or follows for ever are errors here."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:  # the entry that tarfile leaves to subclasses
        most = MAX_TAR_HEADER if self.type in TAR_EXTENSIONS else self.size
        if not 0 <= self.size <= most:
            raise tarfile.InvalidHeaderError(f"a size of {self.size}")  # type: ignore[attr-defined]
        return super()._proc_member(tar)  # type: ignore[misc]

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> _StrictTarInfo:
        try:
            return super().fromtarfile(tar)  # type: ignore[return-value]
        except tarfile.HeaderError as error:
            if isinstance(error, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
                raise
            raise tarfile.ReadError(f"at byte {tar.offset}: {error}") from error


def _unpack_tar(archive: Path, folder: Path, budget: Budget) -> None:
    try:
        with tarfile.open(archive, "r:*", tarinfo=_StrictTarInfo) as file:
            while (member := file.next()) is not None:
                file.members.clear()  # type: ignore[attr-defined]  # a million of them need gigabytes
                if member.name == ".":
                    continue
                check_name(archive, member.name)
                if not (member.isreg() or member.isdir() or member.islnk()):
                    kind = "a symbolic link" if member.issym() else "neither a file nor a folder"
                    raise ArchiveError(f"{archive}: {member.name!r} is {kind}; pack with tar --dereference")
                budget.add(f"{member.name}/" if member.isdir() else member.name, member.size if member.isreg() else 0)
                if member.isreg():  # a hard link to one of the same name keeps what it has
                    (folder / member.name).unlink(missing_ok=True)
                file.extract(member, folder, filter="data")
            while file.fileobj.read(1 << 20):  # type: ignore[union-attr]  # the checksum comes at the very end
                pass
    except (tarfile.TarError, KeyError, OverflowError, RecursionError, *DAMAGE) as error:  # of headers without sense
        raise broken(archive, error) from error


def scan_roots(scans: str | Path, limits: Limits | None = None) -> list[Root]:
    """A path and the archives at or below it, unpacked, as roots to look for scans in.

    What is unpacked may name patients: it lies in a temporary folder, which goes when the process ends. ``limits`` hold
    for each archive. A root is (prefix of the names of its scans, path, problem). The prefix of an archive is its path
    relative to ``scans``; the problem says why it could not be unpacked, else it is "". An archive at an address is
    fetched, and stays no longer than it takes to unpack it.
    """
    if is_remote(scans):
        return _remote_roots(str(scans), limits or Limits())
    root = Path(scans).expanduser()
    if root.is_file() and is_archive(root):
        return [_unpacked(root, root.name, limits)]
    roots = [("", str(root), "")]
    for path in _files(root):
        name = path.relative_to(root).as_posix()
        if is_archive(path):
            roots.append(_unpacked(path, name, limits))
        elif _is_orphan(path):
            roots.append((name, str(path), ORPHAN))
    return roots


def _remote_roots(address: str, limits: Limits) -> list[Root]:
    if address.casefold().partition("?")[0].endswith(SUFFIXES):
        return [_fetched(address, file_name(address), limits)]
    try:
        files = [] if file_at(address) else files_below(address)
    except Refusal as error:
        raise ValueError(f"--scans: {shown(address)}: {error}") from None
    start = len(address.rstrip("/")) + 1
    archives = [file for file in files if file.casefold().endswith(SUFFIXES)]
    return [("", address, ""), *(_fetched(file, plain_name(file[start:], address), limits) for file in archives)]


def _fetched(address: str, name: str, limits: Limits) -> Root:
    if PART.fullmatch(name.rpartition("/")[2]):
        return name, address, "a RAR archive of several volumes is read from a local folder only"
    try:
        with fetched_file(address, limits.bytes) as archive:
            return _unpacked(archive, name, limits)
    except Refusal as error:
        return name, address, str(error)


def _files(root: Path) -> Iterator[Path]:
    """Files below a folder without hidden ones and linked folders, in the order of their paths."""
    for here, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(here, name) for name in sorted(files) if not name.startswith("."))


def _is_orphan(path: Path) -> bool:
    if not _is_later_volume(path):
        return False
    parts = filter(None, map(PART.fullmatch, os.listdir(path.parent)))
    stems = {part["stem"].casefold() for part in parts if int(part["number"]) == 1}
    return archive_stem(path).casefold() not in stems


def _unpacked(archive: Path, name: str, limits: Limits | None) -> Root:
    archive = Path(os.path.abspath(archive))  # as errors name it
    folder = Path(tempfile.mkdtemp(dir=process_folder()))
    try:
        done = unpack(archive, folder / "scans", limits)
    except (ArchiveError, OSError) as error:
        return name, str(archive), str(error).splitlines()[0].replace(f"{archive}: ", "").rstrip(":")
    for left in done.left_packed:
        logger.warning("%s: %s is an archive in an archive in an archive, and left packed", name, left)
    return name, str(done.folder), ""
