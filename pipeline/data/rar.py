"""RAR archives: listed by rarfile, unpacked by a program that is installed, compared with the list."""

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
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import rarfile

from ..common.claims import temporary_folder
from .unpack_limits import LISTED, MAX_ENTRIES, ArchiveError, Budget, broken, check_name, encrypted, examine

rarfile.RAR_MAX_COMMENT = -1  # comments are not read: those of old archives are unpacked by running a program
rarfile.TRY_ENCODINGS = ("utf8",)  # of its guesses at old names, UTF-16 would hide one that leads out of the folder
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
    name: str
    size: int  # bytes, unpacked
    directory: bool
    link: bool
    encrypted: bool
    checksum: int | None  # CRC-32, None where the archive does not tell it


def read_rar(path: Path, most: int = MAX_ENTRIES) -> tuple[list[RarMember], list[Path]]:
    """At most ``most`` entries of a RAR archive, one that spans volumes once, and the volumes beside ``path``.

    rarfile reads the headers. It lets pass what is an error here: data that ends beyond the file, a volume without its
    last block, an archive inside another file.

    Raises:
        ArchiveError: not RAR, damaged, truncated, encrypted as a whole, or a volume is missing.
    """
    members: list[RarMember] = []
    sizes: dict[str, int] = {}
    ended: set[str] = set()

    def see(block: Any) -> None:
        file = block.volume_file
        if block.data_offset + block.add_size > sizes.setdefault(file, os.path.getsize(file)):
            raise ArchiveError(f"{file}: truncated: it ends in the middle; get it again")
        if block.type == rarfile.RAR_BLOCK_ENDARC:
            ended.add(file)
        if block.type == rarfile.RAR_BLOCK_FILE and not block.flags & rarfile.RAR_FILE_SPLIT_BEFORE:
            members.append(_member(block))
        if len(members) > most:
            raise ArchiveError(f"{path}: more than {most:,} files and folders, the limit")

    with path.open("rb") as start:
        if not start.read(len(rarfile.RAR5_ID)).startswith((rarfile.RAR_ID, rarfile.RAR5_ID)):
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
    if cut := next((volume for volume in archive.volumelist() if volume not in ended), None):
        if archive.needs_password():
            raise encrypted(path)
        raise ArchiveError(f"{cut}: truncated (no mark of its end), or written by a RAR older than 3.0")
    return members, [Path(volume) for volume in archive.volumelist()]


def _member(block: Any) -> RarMember:
    unix_link = block.host_os == rarfile.RAR_OS_UNIX and stat.S_ISLNK(block.mode)
    redirected = block.file_redir is not None
    copied = redirected and block.file_redir[0] == rarfile.RAR5_XREDIR_FILE_COPY
    # the checksum of a file that goes on in the next volume is that of a part
    told = not (redirected or block.flags & rarfile.RAR_FILE_SPLIT_AFTER)
    link, checksum = unix_link or (redirected and not copied), block.CRC if told else None
    name = block.filename.rstrip("/")
    return RarMember(name, block.file_size, block.is_dir(), link, block.needs_password(), checksum)


def unpack_rar(archive: Path, folder: Path, budget: Budget) -> list[Path]:
    members, volumes = read_rar(archive, budget.limits.entries)
    budget.packed += sum(volume.stat().st_size for volume in volumes[1:])
    for member in members:
        check_name(archive, member.name)
        if member.link:
            raise ArchiveError(f"{archive}: {member.name!r} is a link; pack without links")
        if member.encrypted:
            raise encrypted(archive)
        budget.add(f"{member.name}/" if member.directory else member.name, member.size)
    listed = {member.name: member for member in members if not member.directory}
    budget.check_disk(folder)
    programs = {name: found for name in RAR_PROGRAMS if (found := shutil.which(name))}
    if not programs:
        raise ArchiveError(f"{archive}: no program for RAR here ({', '.join(RAR_PROGRAMS)}): {INSTALL}")
    failures = []
    for name, program in programs.items():
        failure = _run(program, RAR_PROGRAMS[name], volumes, folder, budget) or _difference(folder, listed)
        if not failure:
            return volumes
        failures.append(f"{name}: {failure}")
        for entry in folder.iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    said = "\n  ".join(failures)
    raise ArchiveError(f"{archive}: damaged, or of a kind that no program here can unpack:\n  {said}\n{INSTALL}")


def _difference(folder: Path, listed: dict[str, RarMember]) -> str:
    """How the files on the disk differ from the archive's list, in sizes and checksums; empty where they do not.

    Names of old archives have no known encoding. Programs that use libarchive, as bsdtar, do not check checksums.
    """
    try:
        examine(folder)
    except ArchiveError as error:
        return str(error)
    files = [Path(here, name) for here, _, names in os.walk(folder) for name in names]
    if Counter(path.stat().st_size for path in files) != Counter(member.size for member in listed.values()):
        count = f"unpacked {len(files)} files, but the archive lists {len(listed)}"
        return f"{count}, or their sizes are not as it lists them"
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

    It gets links of plain names in a folder of their own: some programs take ``train1.rar`` and ``train2.rar`` for
    volumes of one archive, or a name that begins with a dash for an option.
    """
    with temporary_folder() as links, tempfile.TemporaryFile() as said:
        for volume in reversed(volumes):
            part = PART.fullmatch(volume.name)
            path = links / (f"archive.part{part['number']}.rar" if part else f"archive{volume.suffix.lower()}")
            path.symlink_to(volume)
        call = [program, *command(str(path), str(folder))]  # of the first volume
        unicode = os.environ | {"LC_ALL": "C.UTF-8"}  # for names
        process = subprocess.Popen(call, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, env=unicode)
        pause = WATCH_SECONDS
        try:
            while process.returncode is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(pause)
                    break
                started = time.monotonic()
                budget.check(*_written(folder))
                pause = max(WATCH_SECONDS, 20 * (time.monotonic() - started))
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        said.seek(0)
        lines = [line.strip() for line in said.read().decode(errors="replace").splitlines() if line.strip()]
    code = process.returncode
    return "" if code == 0 else f"exit code {code}: {'; '.join(lines[-LISTED:]) or 'no message'}"


def _written(folder: Path) -> tuple[int, int]:
    """Entries and bytes in a folder that is being written to."""
    entries = size = 0
    for here, folders, files in os.walk(folder):
        entries += len(folders) + len(files)
        for name in files:
            with suppress(FileNotFoundError):  # a temporary name of the program's
                size += os.lstat(os.path.join(here, name)).st_size
    return entries, size
