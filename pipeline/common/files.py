"""Files that survive a kill: written as a whole, appended durably."""

import io
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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
    with path.open("ab", buffering=0) as file:
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
