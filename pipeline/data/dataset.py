"""Scans as data sets: of a cohort, with a cache of the deterministic transforms; and new ones, for inference.

Their deterministic transforms are built here alone: training, validation and inference see the same volumes.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import sys
import threading
import types
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import monai
import numpy as np
import torch
from monai.data import CacheDataset, Dataset
from monai.transforms import CenterSpatialCropd, Compose, EnsureTyped, Lambda, Lambdad, Resized, SpatialPadd
from torch.utils.data import DataLoader
from tqdm import tqdm

from fairlung.transforms import FirstSlices, LoadScand, SampleSlices, TrimSlices, find_scans, to_grey_levels
from fairlung.transforms.addresses import is_remote, shown
from fairlung.transforms.checks import check_setting
from fairlung.transforms.files import named_voxels
from fairlung.transforms.remote import remote_fingerprint
from fairlung.transforms.scan import Refusal, ScanError, new_record

from .. import __version__
from ..common.distributed import barrier, is_first_here, is_primary, of_first_here, usable_cores
from ..common.errors import UserError
from ..common.volumes import PADDING, cut_to_unit_range
from .augmentation import Augmentation, to_unit_range
from .intake_records import failure_reason, record_of, warning_counts, write_intake
from .pseudonyms import Pseudonyms
from .sampling import Draw
from .volume_cache import GIGABYTE, VolumeCache

logger = logging.getLogger(__name__)

LISTED = 5  # pairs that a message shows when there are more


class UnreadableScansError(UserError, ValueError):
    """Scans of a cohort cannot be read; lists every one with its reason."""


class SameScanError(UserError, ValueError):
    """A scan is in two splits, under two names: what is measured on one would have been learnt from the other."""


class AugmentationError(UserError, ValueError):
    """The augmentation cannot be applied to a scan's volume, or gives one that no network takes; names both."""


def scan_fingerprint(path: str | Path) -> str:
    """Digest of the names, sizes and modification times of a scan's files: changes when the scan is replaced.

    Of a remote scan what the listing says in place of times, such as an ETag; ScanError where it cannot be listed.
    """
    if is_remote(path):
        try:
            return remote_fingerprint(str(path))
        except Refusal as error:
            raise ScanError(f"{shown(str(path))}: {error}") from None
    path = Path(path)
    if path.is_dir():
        with os.scandir(path) as entries:  # not Path.iterdir: three times as fast, and a scan may have 1,000 files
            found = sorted((entry.name, entry.stat()) for entry in entries)
    else:
        voxels = _voxel_files(path) if path.name.lower().endswith((".mhd", ".nhdr")) else []
        found = [(file.name, file.stat()) for file in (path, *voxels)]
    digest = hashlib.sha256()
    for name, status in found:
        digest.update(os.fsencode(name) + f"\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _voxel_files(header: Path) -> list[Path]:
    """The voxel file that a MetaImage or NRRD header names; all files beside it where it names a list or pattern."""
    named = named_voxels(header.read_text(encoding="latin-1"))
    voxels = header.parent / named if named else header
    return [voxels] if voxels.is_file() else sorted(file for file in header.parent.iterdir() if file.is_file())


def transform_digest(transforms: Sequence[Callable]) -> bytes:
    """Digest of the attributes of deterministic transforms and of fairlung's and MONAI's versions.

    The same settings give the same digest in every process. For ``PersistentDataset(hash_transform=...)``.
    """
    described = repr((__version__, monai.__version__, [_describe(transform, ()) for transform in transforms]))
    return hashlib.sha256(described.encode()).hexdigest().encode()


def _describe(value: Any, parents: tuple[int, ...]) -> Any:
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, Path)):
        return repr(value)
    if id(value) in parents:
        return "..."
    parents = (*parents, id(value))
    if isinstance(value, Mapping):
        return [(repr(key), _describe(value[key], parents)) for key in sorted(value, key=repr)]
    if isinstance(value, (set, frozenset)):
        return sorted(repr(_describe(item, parents)) for item in value)
    if isinstance(value, (list, tuple)):
        return [_describe(item, parents) for item in value]
    if isinstance(value, (np.ndarray, torch.Tensor)):
        array = np.asarray(value)
        return (str(array.dtype), array.shape, hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest())
    if isinstance(value, np.random.RandomState):
        return "random state"  # deterministic transforms carry one without using it
    if isinstance(value, functools.partial):
        return [_describe(part, parents) for part in (value.func, value.args, value.keywords, vars(value))]
    if isinstance(value, types.FunctionType) and value.__name__ == "<lambda>":
        raise TypeError("a lambda cannot be told from another: use a named function in cached transforms")
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        return f"{value.__module__}.{value.__qualname__}"
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if not hasattr(value, "__dict__"):
        return (name, repr(value))
    # MONAI adds a thread-local to a transform when it is first used
    return (name, _describe({k: v for k, v in vars(value).items() if not isinstance(v, threading.local)}, parents))


class ScanDataset(Dataset):
    """Items of a split with their volumes: cached preprocessing, then augmentation.

    Augmentation other than moving voxels gets volumes in [0, 1] (:class:`~.Augmentation`).

    Only the volume is cached, by the scan's path and fingerprint and the preprocessing's settings: labels, groups and
    augmentation may change freely, and splits, folds and runs share one ``cache_dir``. An item that is indexed by a
    :class:`~.Draw` is augmented by the draw's seed, else by the random state of the process.

    Args:
        data: items with ``image`` (path) and anything else that should reach the batch.
        preprocessing: deterministic dictionary transforms of ``image``, cached.
        cache_dir: folder of the :class:`~.VolumeCache`; None or "" keeps no cache on disk.
        in_memory: also hold the volumes in memory, from :meth:`prepare` on.
        cache_limit: GB of the folder above which the least recently used volumes go.
        pseudonyms: what scans are called, in items and intake records.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        preprocessing: Sequence[Callable] | Callable,
        augmentation: Sequence[Callable] | Callable = (),
        cache_dir: str | Path | None = None,
        in_memory: bool = False,
        cache_limit: float | None = None,
        pseudonyms: Pseudonyms | None = None,
    ) -> None:
        self.pseudonyms = pseudonyms or Pseudonyms()
        self._read_by: tuple[Any, ...] = (
            preprocessing, augmentation, cache_dir, in_memory, cache_limit, self.pseudonyms
        )  # fmt: skip
        data = self.pseudonyms.items(data)
        super().__init__(data=data, transform=Augmentation(augmentation))
        self.in_memory = in_memory
        self.cached = VolumeCache(
            data=[{"image": str(item["image"])} for item in data],
            # as a transform of MONAI's: a plain function would run after the cached part
            transform=Compose([*_listed(preprocessing), Lambda(without_paths), Lambda(with_digest)]),
            cache_dir=cache_dir or None,
            fingerprint=scan_fingerprint,
            hash_transform=transform_digest,
            limit=cache_limit,
            mapped=not in_memory,
        )
        self.volumes: Dataset = self.cached

    def with_data(self, data: Sequence[Mapping[str, Any]]) -> ScanDataset:
        """The same for other scans."""
        return type(self)(data, *self._read_by)

    def prepare(
        self, num_workers: int = 0, description: str = "reading scans", intake: str | Path = ""
    ) -> dict[str, str]:
        """Read every scan once, with a progress bar, so that a broken one shows before training starts.

        UnreadableScansError lists all scans that fail. ``intake`` is the file of all intake records
        (:func:`~.write_intake`); the log then counts their warnings. Returns the digest of each scan's volume; of none
        where no volume would be kept, and so none is read.
        """
        if not self.in_memory and self.cached.cache_dir is None:
            self._try_augmentation()
            return {}
        if not is_first_here():
            barrier()  # the first process of a host fills the cache on disk, the others find it filled
        if is_primary():
            logger.info("%s: %d", description, len(self))
        loader = one_by_one(Attempts(self.cached), num_workers)
        progress = tqdm(loader, desc=description, unit="scan", leave=False, disable=None if is_primary() else True)
        failed, records, size, digests = [], [], 0, {}
        for index, (item, attempt) in enumerate(zip(self.data, progress, strict=True)):
            scan = str(item.get("scan", item["image"]))
            failed += [self.pseudonyms.text(attempt.failure, scan)] if attempt.failure else []
            records += [{"scan": scan, **self.pseudonyms.record(scan, attempt.record)}] if attempt.record else []
            # so that later loader processes need not look at the scan's files again
            self.cached.fingerprints[index] = attempt.fingerprint
            size += attempt.size
            digests[scan] = attempt.digest
        if intake and records and is_primary():
            write_intake(records, Path(intake))
            if counts := warning_counts(records):
                told = ", ".join(f"{count} {code}" for code, count in counts.items())
                logger.warning("of %d scans read: %s (%s)", len(records), told, intake)
        if failed:
            raise UnreadableScansError(f"{len(failed)} of {len(self)} scans cannot be read:\n  " + "\n  ".join(failed))
        if is_first_here():
            barrier()
        if self.cached.limit is not None and size > self.cached.limit and is_primary():
            logger.warning(
                "the %d volumes need %.1f GB, cache_limit is %.1f GB: some of them will be made anew in every epoch",
                len(self), size / GIGABYTE, self.cached.limit / GIGABYTE,
            )  # fmt: skip
        if self.in_memory:
            self.volumes = CacheDataset(self.cached, transform=Compose([]), copy_cache=False, progress=False)
        self._try_augmentation()
        return digests

    def _try_augmentation(self) -> None:
        """A setting of it that cannot be shows in this process, as one line, before a loader's process meets it."""
        if self.transform.stock and self.data:
            self[Draw(0, seed=0)]

    def volume(self, index: int) -> Any:
        """The volume of a scan as the network sees it."""
        return self[index]["image"]

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, Draw):
            return super().__getitem__(index)
        with self.seeded(index.seed):
            return super().__getitem__(index.index)

    @contextmanager
    def seeded(self, seed: int) -> Iterator[None]:
        """Within it, the augmentation draws what ``seed`` says."""
        self.transform.set_random_state(seed=seed)
        if not self.transform.stock:
            yield
            return
        with torch.random.fork_rng(devices=[]):  # a transform that is none of MONAI's draws from torch's own
            torch.default_generator.manual_seed(seed)
            yield

    def _transform(self, index: int) -> Any:
        item = {**self.data[index], "image": self.volumes[index]["image"]}
        try:
            return self.transform(item)
        except Exception as error:
            raise AugmentationError(f"{item.get('scan', 'a scan')}: {failure_reason(error)}") from error


def read_scans(folder: str | Path, num_workers: int = 0, **datasets: ScanDataset) -> None:
    """:meth:`ScanDataset.prepare` of each split, its intake records in ``<folder>/<split>.csv``.

    SameScanError lists the scans whose volume another split has under another name.
    """
    found: dict[str, tuple[str, str]] = {}  # split and scan of each digest
    twice = []
    for split, dataset in datasets.items():
        digests = dataset.prepare(num_workers, f"reading {split} scans", Path(folder, f"{split}.csv"))
        for scan, digest in digests.items():
            other_split, other = found.setdefault(digest, (split, scan))
            twice += [f"{other} ({other_split}) and {scan} ({split})"] if other_split != split else []
    if twice:
        shown = "; ".join([*twice[:LISTED], *([f"and {len(twice) - LISTED} more"] if len(twice) > LISTED else [])])
        raise SameScanError(f"the same scan is in two splits: {shown}")


class _Attempt(NamedTuple):
    failure: str  # why the scan cannot be read, or ""
    record: Mapping[str, Any]  # the intake record, if any
    fingerprint: str | None
    size: int  # bytes in the cache
    digest: str  # of the volume


class Attempts(torch.utils.data.Dataset):
    """Reads the volumes of a cache for their side effect: what is read is there."""

    def __init__(self, volumes: VolumeCache) -> None:
        self.volumes = volumes

    def __len__(self) -> int:
        return len(self.volumes)

    def __getitem__(self, index: int) -> _Attempt:
        try:
            read = self.volumes.record(index)
        except Exception as error:
            return _Attempt(failure_reason(error), record_of(error) or {}, None, 0, "")
        path, size = self.volumes.path(index), 0
        with suppress(OSError):  # evicted, or the folder cannot be written
            size = path.stat().st_size if path else 0
        fingerprint = self.volumes.fingerprint(index) if path else None
        return _Attempt("", read.get("intake") or {}, fingerprint, size, read["digest"])


def _listed(transforms: Sequence[Callable] | Callable) -> Sequence[Callable]:
    if isinstance(transforms, Compose):
        return transforms.transforms
    return transforms if isinstance(transforms, Sequence) else [transforms]


def without_paths(item: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
    """An item whose intake record names no files: paths may name patients, and the item is cached."""
    return {**item, "intake": {**item["intake"], "files": []}} if "intake" in item else dict(item)


def with_digest(item: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
    """An item with the digest of its volume, by which a scan is known under another name."""
    volume = np.ascontiguousarray(np.asarray(item["image"]))
    return {**item, "digest": hashlib.sha256(volume.tobytes()).hexdigest()}


def scan_finder(all_series: bool = False, one_per_study: bool = False) -> Callable[..., Sequence[Mapping[str, Any]]]:
    """:func:`~.find_scans` with both settings chosen, to be called with a root, or several.

    Of several processes the first one of each host looks, and the others take what it found.
    """
    check_setting("one_per_study", one_per_study, not (one_per_study and all_series), "false with all_series")
    find = functools.partial(find_scans, all_series=all_series, one_per_study=one_per_study)
    return functools.partial(of_first_here, find)


class NewScanDataset(Dataset):
    """Unlabelled scans for inference: one that cannot be read becomes an item that says why, not an exception.

    Items have ``image``, ``scan``, ``reason`` (empty when all went well) and ``intake``, the record of how the scan was
    read: from the transform or, of a scan that is refused, the exception's attribute ``record``. A scan whose record
    has the status ``skipped`` is no failure; its reason says what it is.

    Args:
        data: ``{"image": path or source, "scan": name}`` a scan.
        image_shape: [1, D, H, W] of the volume that stands in for a failed scan.
    """

    def __init__(self, data: Sequence[Mapping[str, Any]], transform: Callable, image_shape: Sequence[int]) -> None:
        super().__init__(data=data, transform=transform)
        self.image_shape = tuple(image_shape)

    def with_data(self, data: Sequence[Mapping[str, Any]]) -> NewScanDataset:
        """The same for other scans."""
        return type(self)(data, self.transform, self.image_shape)

    def failed(self, index: int, reason: str, record: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The item of a scan that has no volume, with the intake record as far as it is known."""
        intake = new_record(status="refused", reason=reason) | dict(record or {})
        if intake["status"] == "skipped":
            reason = intake["reason"] or reason
        elif intake["status"] == "ok":  # it was read, and failed later
            intake |= {"status": "refused", "reason": reason}
        image = torch.zeros(self.image_shape)
        return {"image": image, "scan": self.data[index]["scan"], "reason": reason, "intake": intake}

    def _transform(self, index: int) -> Any:
        item = self.data[index]
        record: Mapping[str, Any] | None = None
        try:
            read = self.transform({"image": item["image"]})
            record = read.get("intake")
            image = torch.as_tensor(read["image"])
            if tuple(image.shape) != self.image_shape:
                raise ValueError(f"{item['image']}: preprocessing gave {tuple(image.shape)}, not {self.image_shape}")
        except Exception as error:
            return self.failed(index, failure_reason(error), record_of(error) or record)
        return {"image": image, "scan": item["scan"], "reason": "", "intake": record or new_record()}


def default_num_workers() -> int:
    """Loader processes that fit this machine: one a core, at most 8; torchrun's processes of a host share the cores."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(8, usable_cores() // processes))


def start_method(num_workers: int) -> str | None:
    """How a loader's processes begin: as forks on Linux, whatever its Python's default.

    Processes begun anew, the default of Python 3.14, would each import all once more, hold volumes kept in memory once
    more, and refuse a transform that cannot be pickled. None where there are no processes: PyTorch takes nothing else.
    """
    return "fork" if num_workers and sys.platform == "linux" else None


def one_by_one(dataset: Any, num_workers: int) -> DataLoader:
    """The items of a data set as they are, from ``num_workers`` processes."""
    context = start_method(num_workers)
    return DataLoader(dataset, num_workers=num_workers, multiprocessing_context=context, batch_size=None)


def volume_transforms(
    window: Sequence[float],
    image_size: int,
    num_slices: int,
    trim_fraction: float = 0.0,
    min_slices: int = 1,
    fast_decode: bool = False,
    every_slice: bool = False,
    further: Sequence[Callable] = (),
) -> list[Callable]:
    """From a scan's path to a volume of grey levels, uint8 [1, D, image_size, image_size]; this part is cached.

    8 bits lose nothing of 8-bit slices, and half a grey level (0.2 % of the window) at most of HU.

    Args:
        window: HU that become 0 and 255.
        num_slices: D.
        trim_fraction: of the slices, left out at each end.
        min_slices: a scan of fewer slices is refused.
        fast_decode: JPEG slices are shrunk while they are decoded; grey levels differ a little.
        every_slice: take every slice in order, at most ``num_slices`` (D differs); else sample ``num_slices`` evenly.
        further: deterministic transforms of the volume, cached too. They get [0, 1] in float32, and what they give is
            cut off at 0 and 1 (:func:`~.cut_to_unit_range`).
    """
    select = [TrimSlices(trim_fraction), FirstSlices(num_slices) if every_slice else SampleSlices(num_slices)]
    load = LoadScand(
        "image", window=window, size=image_size, min_slices=min_slices, fast_decode=fast_decode, select=select
    )
    resize = Resized("image", [-1 if every_slice else num_slices, image_size, image_size], mode="area")
    in_range = functools.partial(cut_to_unit_range, source="volume_transforms::further")
    further = [*further, Lambdad("image", in_range, track_meta=False)] if further else []
    return [load, resize, *further, Lambdad("image", to_grey_levels, track_meta=False)]


def center_crop(num_slices: int, crop_size: int, padded: bool = False) -> list[Callable]:
    """The central ``crop_size`` rows and columns as a plain tensor of the same type.

    ``padded``: volumes of up to ``num_slices`` slices become [0, 1] in float32 and are filled up (:func:`pad_slices`).
    """
    crop = CenterSpatialCropd("image", [-1 if padded else num_slices, crop_size, crop_size])
    filled = [to_unit_range(), pad_slices(num_slices)] if padded else []
    return [crop, *filled, EnsureTyped("image", track_meta=False)]


def pad_slices(num_slices: int) -> Callable:
    """Fill a volume in [0, 1] up to ``num_slices`` with slices of :data:`~.PADDING`, which no real voxel has."""
    return SpatialPadd("image", [num_slices, -1, -1], method="end", mode="constant", value=PADDING)
