"""RAR archives: listed by rarfile, unpacked by a program that is installed, compared with the list."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import rarfile

from .unpack_limits import LISTED, MAX_ENTRIES, ArchiveError, Budget, broken, check_name, encrypted, examine

rarfile.RAR_MAX_COMMENT = -1  # comments are not read: those of old archives are unpacked by running a program
rarfile.TRY_ENCODINGS = ("utf8",)  # of its guesses at old names, UTF-16 would hide one that leads out of the folder
SIGNATURES = (rarfile.RAR_ID, rarfile.RAR5_ID)
PART = re.compile(r"(?P<stem>.*)\.part(?P<number>\d+)\.rar", re.IGNORECASE | re.DOTALL)
WATCH_SECONDS = 1.0  # between two looks at what a program has written

# Program: its command line, from the archive and an existing folder. The order is that of trust in their decoders;
# bsdtar comes last, because it does not know every kind of RAR.
RAR_PROGRAMS: dict[str, Callable[[str, str], list[str]]] = {
    "unrar": lambda archive, to: ["x", "-p-", "-c-", "-cfg-", "-o+", "-y", "-idq", archive, f"{to}/"],
    "unar": lambda archive, to: ["-q", "-f", "-D", "-nr", "-k", "skip", "-o", to, archive],
    "7z": lambda archive, to: ["x", "-y", "-bso0", "-bsp0", f"-o{to}", archive],
    "bsdtar": lambda archive, to: ["-x", "-f", archive, "-C", to],
}
INSTALL = (
    "install one (Debian, Ubuntu: apt install unar; macOS: brew install unar; or unrar from rarlab.com), "
    "or unpack the archive yourself and give the folder"
)


class RarMember(NamedTuple):
    """An entry of a RAR archive: ``size`` in bytes, unpacked; ``checksum`` its CRC-32, None where that is not told."""

    name: str
    size: int
    directory: bool
    link: bool
    encrypted: bool
    checksum: int | None


def read_rar(path: Path, most: int = MAX_ENTRIES) -> tuple[list[RarMember], list[Path]]:
    """The entries of a RAR archive, one that spans volumes once, and the files that it consists of.

    rarfile reads the headers. What it lets pass is an error here: data that ends beyond the file, a volume without its
    last block, an archive inside another file.

    Args:
        path: the archive, or its first volume; the others lie beside it, named as RAR names them
            (``x.part2.rar``, or ``x.r00`` after ``x.rar``).
        most: entries; of more no list is made, which would fill the memory.

    Raises:
        ArchiveError: not RAR, damaged, truncated, encrypted as a whole, or a volume is missing.
    """
    members: list[RarMember] = []
    sizes: dict[str, int] = {}
    ended: set[str] = set()

    def see(block: Any) -> None:
        file = block.volume_file
        if file not in sizes:
            sizes[file] = os.path.getsize(file)
        if block.data_offset + block.add_size > sizes[file]:
            raise ArchiveError(f"{file}: truncated: it ends in the middle; get it again")
        if block.type == rarfile.RAR_BLOCK_ENDARC:
            ended.add(file)
        if block.type == rarfile.RAR_BLOCK_FILE and not block.flags & rarfile.RAR_FILE_SPLIT_BEFORE:
            members.append(_member(block))
        if len(members) > most:
            raise ArchiveError(f"{path}: more than {most:,} files and folders, the limit")

    with path.open("rb") as start:
        if not start.read(len(rarfile.RAR5_ID)).startswith(SIGNATURES):
            raise ArchiveError(f"{path}: not a RAR archive")
    try:
        archive = rarfile.RarFile(str(path), errors="strict", info_callback=see)
    except rarfile.NeedFirstVolume:
        raise ArchiveError(f"{path}: not the first volume; give that one, under the name that RAR gave it") from None
    except ArchiveError:
        raise
    except Exception as error:  # of many kinds, where a header makes no sense
        if str(error).startswith("Cannot open next volume"):
            raise ArchiveError(f"{list(sizes)[-1]}: the volume after this one is missing") from None
        raise broken(path, error) from error
    for volume in archive.volumelist():
        if volume not in ended:
            if archive.needs_password():
                raise encrypted(path)
            raise ArchiveError(f"{volume}: truncated (no mark of its end), or written by a RAR older than 3.0")
    return members, [Path(volume) for volume in archive.volumelist()]


def _member(block: Any) -> RarMember:
    unix_link = block.host_os == rarfile.RAR_OS_UNIX and stat.S_ISLNK(block.mode)
    redirected = block.file_redir is not None
    copied = redirected and block.file_redir[0] == rarfile.RAR5_XREDIR_FILE_COPY
    # the checksum of a file that goes on in the next volume is that of a part
    told = not (redirected or block.flags & rarfile.RAR_FILE_SPLIT_AFTER)
    return RarMember(
        block.filename.rstrip("/"),
        block.file_size,
        block.is_dir(),
        unix_link or (redirected and not copied),
        block.needs_password(),
        block.CRC if told else None,
    )


def unpack_rar(archive: Path, folder: Path, budget: Budget) -> list[Path]:
    members, volumes = read_rar(archive, budget.limits.entries)
    budget.packed += sum(volume.stat().st_size for volume in volumes[1:])
    listed: dict[str, RarMember] = {}
    for member in members:
        check_name(archive, member.name)
        if member.link:
            raise ArchiveError(f"{archive}: {member.name!r} is a link; pack without links")
        if member.encrypted:
            raise encrypted(archive)
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
        examine(folder)
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
    program: str, command: Callable[[str, str], list[str]], volumes: list[Path], folder: Path, budget: Budget
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
