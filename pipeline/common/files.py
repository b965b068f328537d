"""Files that survive a kill, written as a whole or appended durably; and file names for scans."""

import errno
import hashlib
import io
import json
import math
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import UserError

FORBIDDEN = re.compile(r'[\x00-\x1f\x7f-\x9f\ud800-\udfff<>:"|?*\\]')  # on some system; half pairs: in no Unicode name
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # no file names on Windows
OURS = (".png", ".nii.gz")  # a folder of such a name could stand where a file of ours must be
NAME_BYTES = 160  # of one part of a path; file systems take 255, and suffixes are added


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a disk that is full, or beyond its quota or a limit
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)  # a folder that may not be written to
UNWRITABLE = (*FULL, *REFUSED, errno.EIO)  # or a disk that is broken


class WriteError(UserError, OSError):
    """A file that cannot be written, for a reason that the user can mend."""


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Say in one line which file cannot be written, where the disk is full or the folder read-only."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNWRITABLE or isinstance(error, WriteError):
            raise
        said = WriteError(f"{path} cannot be written: {error.strerror}")
        said.errno = error.errno
        raise said from error


def why_unreadable(path: str | Path, error: BaseException | None = None) -> str:
    """Why a file that torch should have saved cannot be read, in words: torch's ``error`` is about its options."""
    if "WeightsUnpickler error" in str(error):
        return "it holds more than tensors and plain data, of which nothing is run"
    try:
        with Path(path).open("rb") as file:
            head = file.read(40)
    except OSError as error:
        return error.strerror or str(error)
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer: git lfs pull brings the file itself"
    if not head:
        return "it is empty"
    return "it was cut short, or is damaged" if head.startswith(b"PK") else "it is no file that torch saved"


@contextmanager
def replacing(path: Path, name: str = "") -> Iterator[Path]:
    """Write a file so that a reader finds the old content or the new, never a part.

    Yields a hidden path beside it, which becomes ``path`` when the block ends, and is gone when it fails. Where several
    processes may write the file at once, each needs its own ``name`` for it; the file's has the suffix of the format.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder, replacing(Path(folder, "a.txt")) as part:
        ...     print(part.name, part.write_text("whole"))
        .a.txt 5
    """
    part = path.with_name(name or f".{path.name}")
    with told(path):
        try:
            yield part
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


# a file name need not be Unicode; it must not stop the others' answers
TEXT: dict[str, Any] = {"newline": "", "encoding": "utf-8", "errors": "backslashreplace"}


def whole_records(content: bytes) -> int:
    """Length of a CSV file up to the end of its last whole record: a line feed outside quotes."""
    end = position = quotes = 0
    for line in io.BytesIO(content):
        position += len(line)
        quotes += line.count(b'"')
        if line.endswith(b"\n") and quotes % 2 == 0:
            end = position
    return end


def append_durably(path: Path, content: bytes) -> None:
    """Add bytes to a file, on the disk when this returns; all, or (where the disk is full) none."""
    with told(path), path.open("ab", buffering=0) as file:
        size = file.seek(0, io.SEEK_END)
        try:
            written = 0
            while written < len(content):
                written += file.write(content[written:])
            os.fsync(file.fileno())
        except BaseException:
            file.truncate(size)
            raise


def replace_durably(path: Path, content: bytes) -> None:
    """:func:`replacing`, on the disk when this returns."""
    with replacing(path) as part, part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def encoded(text: str) -> bytes:
    """Text as all tables have it: a name that is not Unicode stays told from others (:data:`TEXT`)."""
    return text.encode(TEXT["encoding"], TEXT["errors"])


def finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file as a whole, never half."""
    with replacing(path) as part:
        part.write_text(json.dumps(content, indent=2))


def json_or_nothing(path: Path) -> dict[str, Any]:
    """What a process has left in a JSON file; nothing where it left no object, or none that can be read."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


class ScanPaths:
    """A relative path for each scan's files: like the scan's name, inside the folder, and no other scan's.

    A name that every file system takes stays as it is. Any other is mended and marked by a digest of the name, as is a
    name that differs from an earlier one in case alone.
    """

    def __init__(self) -> None:
        self._paths: dict[str, str] = {}
        self._taken: set[str] = set()

    def __call__(self, scan: str) -> str:
        """Path without suffix, parts separated by ``/``.

        Example:
            >>> paths = ScanPaths()
            >>> paths("a/b/0001"), paths("../x.nii.gz"), paths("study#2")
            ('a/b/0001', '_/x.nii.gz-77eff4a9', 'study#2')
        """
        if scan not in self._paths:
            *folders, name = map(_safe_part, scan.split("/"))
            path = "/".join([*(f"{part}_" if part.lower().endswith(OURS) else part for part in folders), name])
            digest = hashlib.sha256(scan.encode("utf-8", "surrogatepass")).hexdigest()
            if path != scan or _key(path) in self._taken:
                path += f"-{digest[:8]}"
            while _key(path) in self._taken:
                path += "-"
            self._taken.add(_key(path))
            self._paths[scan] = path
        return self._paths[scan]


def _key(path: str) -> str:
    """The same for two paths that some file system takes for one."""
    return unicodedata.normalize("NFKC", path).casefold()


def _safe_part(part: str) -> str:
    safe = FORBIDDEN.sub("_", part).strip(" .") or "_"
    safe = f"_{safe}" if DEVICES.fullmatch(safe) else safe
    return safe.encode()[:NAME_BYTES].decode(errors="ignore").rstrip(" .")
