"""Preprocessed volumes on disk: shared by processes and runs, bounded in size, never a reason to fail."""

import io
import logging
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from monai.data import PersistentDataset
from monai.utils import convert_to_tensor

from ..common.files import replacing, why_unreadable

logger = logging.getLogger(__name__)

GIGABYTE = 10**9
# of the limit: when eviction starts (below 1, else every write to a nearly full folder would look at it), and ends
_FULL_SHARE, _KEPT_SHARE = 0.95, 0.9
_LOOKS = 16  # a writer looks at the folder again when it has written this part of the room it saw
_ABANDONED = 3600.0  # seconds after which an unfinished file is one of a process that was killed


def evict(folder: str | Path, limit: float, keep: Path | None = None) -> int:
    """Remove the least recently used volumes of a folder of more than 95 % of ``limit``, until 90 % of it are left.

    Any number of processes may evict, read and write at once: each removes the same oldest files, one that was used
    meanwhile stays, and whoever has a file open reads it to its end (POSIX; other systems refuse to remove it). A
    reader that finds its volume gone computes it. ``keep`` is the volume that was just written. Both ``limit`` and the
    returned size of the volumes that are left are in bytes.
    """
    volumes, now = [], time.time()
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                status = entry.stat()
                if entry.name.endswith(".pt"):
                    volumes.append((status.st_mtime_ns, status.st_size, entry.path))
                elif entry.name.endswith(".part") and now - status.st_mtime > _ABANDONED:
                    os.unlink(entry.path)
    total = sum(size for _, size, _ in volumes)
    if total <= _FULL_SHARE * limit:
        return total
    for used, size, path in sorted(volumes):
        if total <= _KEPT_SHARE * limit:
            break
        with suppress(OSError):
            if path != str(keep) and os.stat(path).st_mtime_ns == used:
                os.unlink(path)
                total -= size
    return total


class VolumeCache(PersistentDataset):
    """MONAI's ``PersistentDataset`` for cohorts larger than memory and for many processes at once. The differences:

    - A volume is written under another name and renamed, so it is there as a whole or not at all. Processes that
      compute the same one at once write the same; the last one stays.
    - A file that cannot be read is computed anew with a warning. A cache that cannot be written (full, read-only) is a
      warning too, given once.
    - With ``limit``, the least recently used volumes of the folder go; a read sets the file's modification time. Only
      writers list the folder, once in a while: more than 16 of them may exceed the limit for a moment.
    - Scans are looked at (:meth:`fingerprint`) when they are first used, not all of them at construction.
    - A volume is mapped into memory, not copied, unless it is to be held there (``mapped``) or may be evicted: when a
      mapped file goes, a network file system kills the process.

    Args:
        data: items with ``image``, the path of the scan.
        transform: deterministic; ``hash_transform`` gives the digest of its settings.
        cache_dir: None keeps nothing.
        fingerprint: of a path: what changes when the scan does.
        limit: of the folder in GB (10^9 bytes).
        mapped: map volumes into memory where there is no limit; False reads them.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable,
        cache_dir: str | Path | None,
        fingerprint: Callable[[str], str],
        hash_transform: Callable[..., bytes],
        limit: float | None = None,
        mapped: bool = True,
    ) -> None:
        if limit is not None and not 0 < limit < float("inf"):
            raise ValueError(f"cache_limit must be positive, in GB, or null for none, got {limit}")
        super().__init__(data=data, transform=transform, cache_dir=cache_dir, hash_transform=hash_transform)
        self.limit = None if limit is None else limit * GIGABYTE
        self.mapped = mapped and limit is None
        self.fingerprints: list[str | None] = [None] * len(data)
        self._fingerprint = fingerprint
        self._until_look = 0.0  # bytes to write before the folder is looked at again
        self._warned = False

    def fingerprint(self, index: int) -> str:
        """Of the scan as it was when it was first used."""
        if (known := self.fingerprints[index]) is None:
            known = self.fingerprints[index] = self._fingerprint(self.data[index]["image"])
        return known

    def path(self, index: int) -> Path | None:
        """Where the volume of a scan is, or would be; None without a folder."""
        if self.cache_dir is None:
            return None
        return self.cache_dir / f"{self.hash_func(self._item(index)).decode()}{self.transform_hash}.pt"

    def record(self, index: int) -> Mapping[str, Any]:
        """What an item has beside tensors. The voxels of one that is in the cache are not read."""
        path = self.path(index)
        item = None if path is None else self._read(path, mapped=True)
        item = self[index] if item is None else item
        return {name: value for name, value in item.items() if not isinstance(value, torch.Tensor)}

    def _item(self, index: int) -> dict[str, Any]:
        return {**self.data[index], "fingerprint": self.fingerprint(index)}

    def _transform(self, index: int) -> Any:
        path = self.path(index)
        if path is None:
            return self.transform(deepcopy(self.data[index]))
        item = self._read(path, self.mapped)
        if item is None:
            computed = self._pre_transform(deepcopy(self._item(index)))
            item = convert_to_tensor(computed, convert_numeric=False, track_meta=False)
            self._write(path, item)
        return self._post_transform(item)

    def _read(self, path: Path, mapped: bool) -> Any:
        """The content of a file; None when there is none that can be read."""
        try:
            item = torch.load(path, weights_only=True, mmap=mapped)
        except FileNotFoundError:
            return None
        except Exception as error:  # torch raises many kinds for files that were cut short or are none of its own
            said = "%s in the cache cannot be read and is made anew: %s"
            logger.warning(said, path.name, why_unreadable(path, error))
            return None
        if self.limit is not None:
            with suppress(OSError):  # another process evicted it, or the file is another user's
                os.utime(path)
        return item

    def _write(self, path: Path, item: Any) -> None:
        content = io.BytesIO()
        torch.save(item, content)
        try:
            with replacing(path, f".{uuid.uuid4().hex}.part") as part:
                part.write_bytes(content.getbuffer())
            self._make_room(path, content.getbuffer().nbytes)
        except OSError as error:
            if not self._warned:
                logger.warning("the training goes on without a cache in %s: %s", path.parent, error)
            self._warned = True

    def _make_room(self, path: Path, written: int) -> None:
        self._until_look -= written
        if self.limit is not None and self._until_look <= 0:
            left = evict(path.parent, self.limit, keep=path)
            self._until_look = (self.limit - left) / _LOOKS
