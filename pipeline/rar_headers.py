"""What a RAR archive says is in it, read from its headers without unpacking anything.

The programs that unpack RAR list it in a format of their own each, and some of them take a truncated archive for a
whole one. Formats: RAR 5.0 archive format (https://www.rarlab.com/technote.htm); RAR 1.5 to 4 as in the technical
note of RAR 4 (TechNote.txt).
"""

from __future__ import annotations

import re
import stat
import struct
import zlib
from collections.abc import Iterator
from itertools import chain, count
from pathlib import Path
from string import ascii_lowercase
from typing import BinaryIO, NamedTuple

from .errors import UserError

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


# --- RAR 5 ----------------------------------------------------------------------------------------------------------


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


# --- RAR 1.5 to 4 ---------------------------------------------------------------------------------------------------


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
