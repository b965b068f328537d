"""Are the bytes of the voxels whole? NRRD and MetaImage readers do not look at the checksum of what they unpack.

A damaged stream is then read as a volume of which a part is right. zlib and gzip streams end with a checksum of all
they hold; voxels that are not compressed have none, and of them only the number can be compared with the header.
"""

import gzip
import re
import zlib
from pathlib import Path
from typing import NamedTuple

from .scan import Refusal
from .tolerances import TRAILING_BYTES

PIECE = 1 << 16  # a thousand times as much when it is unpacked, at most
EITHER_HEADER = 47  # zlib's window bits: zlib or gzip, whichever it is
# of MetaImage, in small letters
PER_AXIS = ("elementspacing", "elementsize", "offset", "position", "origin", "centerofrotation")
MATRICES = ("transformmatrix", "rotation", "orientation")
LONGEST_NAME = 255
LONGEST_HEADER = 1 << 16


class VoxelBytes(NamedTuple):
    """Where a header says that its voxels lie: file, offset in bytes, whether they are packed."""

    file: Path
    offset: int
    packed: bool


def check_metaimage_header(path: Path) -> dict[str, str]:
    """The fields of a MetaImage header; ValueError where it lacks values that it announces: ITK can end the process."""
    fields, _ = _metaimage_fields(path)
    sizes = fields.get("dimsize", "").split()
    if not sizes or not all(size.isdecimal() and int(size) for size in sizes):
        raise ValueError("its header is damaged: DimSize")
    counts = {"ndims": 1} | dict.fromkeys(PER_AXIS, len(sizes)) | dict.fromkeys(MATRICES, len(sizes) ** 2)
    for name, count in counts.items():
        if name in fields and len(fields[name].split()) != count:
            raise ValueError(f"its header is damaged: {name}")
    if fields.get("ndims") != str(len(sizes)):
        raise ValueError("its header is damaged: NDims is not the number of sizes")
    if not 0 < len(fields.get("elementdatafile", "")) <= LONGEST_NAME:
        raise ValueError("its header is damaged: ElementDataFile")
    # ITK takes it for LPS of 1 mm then, whatever AnatomicalOrientation says
    if not any(name in fields for name in MATRICES):
        raise Refusal("it has no TransformMatrix: nothing says how it is oriented")
    if "elementspacing" not in fields and "elementsize" not in fields:
        raise Refusal("it has no ElementSpacing: nothing says how large its voxels are")
    return fields


def check_nrrd_header(path: Path) -> dict[str, str]:
    """The fields of an NRRD header.

    Refusal where it has no space directions: ITK takes its axes for those of the space, its voxels for 1 mm.
    """
    fields, _ = _nrrd_fields(path)
    if fields.get("spacedirections", "").count("(") < 3:
        raise Refusal("it has no space directions: nothing says how it is oriented")
    return fields


def check_voxel_bytes(path: Path, nbytes: int) -> None:
    """ValueError where the voxels of an NRRD or MetaImage are not ``nbytes`` unpacked, or fail their checksum."""
    found = (_of_nrrd if path.name.lower().endswith((".nrrd", ".nhdr")) else _of_metaimage)(path)
    if found is not None:
        check_number(_unpacked(found) if found.packed else found.file.stat().st_size - found.offset, nbytes)


def check_rest(stream: gzip.GzipFile, nbytes: int) -> None:
    """Read a gzip file to its end, where its checksum is, and compare its length with what the header describes.

    Raises:
        OSError, EOFError, zlib.error: the file is damaged.
        ValueError: it holds more or less.
    """
    while stream.read(PIECE):
        pass
    check_number(stream.tell(), nbytes)


def check_number(found: int, described: int) -> None:
    """ValueError where the number of bytes found is not what the header describes."""
    if not 0 <= found - described <= TRAILING_BYTES:
        raise ValueError(f"holds {found} bytes of voxels, its header describes {described}")


def _unpacked(voxels: VoxelBytes) -> int:
    """Number of bytes in a packed stream whose checksum is right."""
    unpack = zlib.decompressobj(EITHER_HEADER)
    total = 0
    with voxels.file.open("rb") as file:
        file.seek(voxels.offset)
        try:
            while not unpack.eof and (piece := file.read(PIECE)):
                total += len(unpack.decompress(piece))
        except zlib.error as error:
            raise ValueError("its voxels are damaged: their checksum is wrong, or they cannot be unpacked") from error
    if not unpack.eof:
        raise ValueError("its voxels end early")
    return total


def _nrrd_fields(path: Path) -> tuple[dict[str, str], int]:
    """Values by names in small letters without spaces, and the length of the header."""
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        while file.tell() < LONGEST_HEADER and (line := file.readline(LONGEST_HEADER)):
            _check_text(line)
            text = line.decode("latin-1").rstrip("\r\n")
            if not text:
                break
            name, colon, value = text.partition(": ")
            if colon and ":=" not in name:
                fields[re.sub(r"\s", "", name).lower()] = value.strip()
        return fields, file.tell()


def _of_nrrd(path: Path) -> VoxelBytes | None:
    fields, offset = _nrrd_fields(path)
    encoding = fields.get("encoding", "").lower()
    if encoding not in ("raw", "gzip", "gz") or any(int(fields.get(skip, 0)) for skip in ("lineskip", "byteskip")):
        return None
    return _placed(path, fields.get("datafile"), offset, encoding != "raw")


def _metaimage_fields(path: Path) -> tuple[dict[str, str], int]:
    """Values by names in small letters, and the length of the header."""
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        while file.tell() < LONGEST_HEADER and (line := file.readline(LONGEST_HEADER)):
            _check_text(line)
            name, _, value = line.decode("latin-1").partition("=")
            fields[name.strip().lower()] = value.strip()
            if name.strip().lower() == "elementdatafile":
                break
        return fields, file.tell()


def _of_metaimage(path: Path) -> VoxelBytes | None:
    fields, offset = _metaimage_fields(path)
    if fields.get("binarydata", "true").lower() not in ("true", "1") or fields.get("headersize", "0") != "0":
        return None
    packed = fields.get("compresseddata", "false").lower() in ("true", "1")
    data = fields.get("elementdatafile")
    found = _placed(path, None if data and data.lower() == "local" else data, offset, packed)
    # the reader takes that many bytes, keeps what it could unpack of them, and leaves the rest as memory happens to be
    if found is not None and packed:
        size = str(found.file.stat().st_size - found.offset)
        if fields.get("compresseddatasize") != size:
            raise ValueError("its CompressedDataSize is not the size of its voxels")
    return found


def _check_text(line: bytes) -> None:
    """Refusal where a header's line holds a zero byte: readers would stop there and use the part before it."""
    if b"\0" in line:
        raise Refusal("its header is damaged")


def _placed(path: Path, data: str | None, offset: int, packed: bool) -> VoxelBytes | None:
    if data is None:
        return VoxelBytes(path, offset, packed)
    file = path.parent / data
    return VoxelBytes(file, 0, packed) if file.is_file() else None  # a list or a pattern of several files
