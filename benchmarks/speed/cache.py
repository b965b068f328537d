"""A warm epoch from the cache against the published loader, which reads every slice of every scan in every epoch."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fairlung.pipeline.common.volumes import unit_range

from . import bundle
from .harness import Options, Result, alternate, copy_gbs, ratio_text
from .published import PublishedCode
from .scans import jpeg_scan

MB_A_SCAN = 4.2
PUBLISHED = "published, every slice read again"
TIMES = 8  # as many scans as the published loader reads: six of ours would be over in 25 ms


def slices_and_size(options: Options) -> tuple[int, int]:
    return (12, 64) if options.small else (300, 512)


def scans(options: Options, number: int) -> list[Path]:
    """Scans under names of their own: links to one."""
    slices, size = slices_and_size(options)
    scan = jpeg_scan(options.scratch, slices, size)
    folder = options.scratch / f"cohort_{slices}_{size}"
    folder.mkdir(exist_ok=True)
    links = [folder / f"{k:04d}" for k in range(number)]
    for link in links:
        if not link.exists():
            os.symlink(scan, link)
    return links


def dataset(
    folders: list[Path], cache_dir: Path | str, augmentation: str | list[Any] = "augmentation", in_memory: bool = False
) -> Any:
    """The bundle's data set of these scans."""
    from fairlung.pipeline.data.dataset import ScanDataset

    (volumes,) = bundle.parts("volume_transforms")
    augment = bundle.parts(augmentation)[0] if isinstance(augmentation, str) else augmentation
    data = [{"image": str(path), "label": 0, "group": 0} for path in folders]
    return ScanDataset(data, volumes, augment, cache_dir=cache_dir, in_memory=in_memory)


def in_float32() -> list[Any]:
    """The same augmentation by stock transforms alone, which hand on float32."""
    from monai.transforms import EnsureTyped, RandScaleIntensityd, ScaleIntensityRanged, ThresholdIntensityd

    turns = bundle.parts("augmentation")[0][:3]
    unit = ScaleIntensityRanged("image", 0, 255, 0, 1)
    bright = RandScaleIntensityd("image", factors=0.2, prob=1.0)
    cut = ThresholdIntensityd("image", 1.0, above=False, cval=1.0)
    return [*turns, unit, bright, cut, EnsureTyped("image", track_meta=False)]


def epoch_of(data: Any) -> Callable[[], None]:
    def run() -> None:
        for index in range(len(data)):
            data[index]

    return run


def to_device(items: list[dict[str, Any]]) -> None:
    """What prepare_batch does with a batch of one, for each item."""
    for item in items:
        unit_range(item["image"][None], item["brightness"])


def epoch_through(data: Any, workers: int) -> Callable[[], None]:
    from monai.data import DataLoader

    loader = DataLoader(data, batch_size=2, num_workers=workers, persistent_workers=workers > 0)

    def run() -> None:
        for _ in loader:
            pass

    return run


def measure(options: Options) -> Result:
    result = Result("cache")
    code = PublishedCode(options.published) if options.published else None
    number = 2 if options.small else 6
    folders = scans(options, number * TIMES)
    store = options.scratch / f"volumes_{number}_{int(options.small)}"
    on_disk, in_memory = dataset(folders, store), dataset(folders, store, in_memory=True)
    for data in (on_disk, in_memory):
        data.prepare()
    variants: dict[str, Callable[[], Any]] = {}
    if code is not None:
        theirs = code.scans(folders[:number])
        ours = dataset(folders, store, "center_crop")
        same = bool(np.array_equal(unit_range(ours[0]["image"]).numpy(), theirs[0][0].numpy()))
        if not same:
            raise AssertionError("the cached volume, cropped, is not the published one")
        result.equal["validation volume from the cache"] = "bit for bit"
        variants[PUBLISHED] = epoch_of(code.scans(folders[:number], train=True))
    variants["from disk, as stored"] = epoch_of(on_disk.volumes)
    variants["from memory, as stored"] = epoch_of(in_memory.volumes)
    variants["from disk, augmented"] = epoch_of(on_disk)
    variants["from memory, augmented"] = epoch_of(in_memory)
    variants["from disk, augmented in float32 by stock transforms"] = epoch_of(dataset(folders, store, in_float32()))
    item = on_disk[0]
    variants["8 bits to [0, 1] with brightness, on the device (here the CPU)"] = partial(
        to_device, [item] * len(folders)
    )
    if not options.small:
        workers = os.cpu_count() or 1
        variants[f"from disk, augmented, {workers} workers"] = epoch_through(on_disk, workers)
    times = alternate(variants, options.repeats or (1 if options.small else 3))
    result.limits["copy_gb_per_s"] = copy_gbs()
    size = float(in_memory.volumes[0]["image"].nbytes)
    crop = size * 224**2 / 256**2
    for name, timing in times.items():
        count = number * (1 if name == PUBLISHED else TIMES)
        rate = count / timing.median
        row = {"volumes": name, "a volume": f"{timing.median / count * 1e3:.3g} ms", "volumes/s": f"{rate:.3g}"}
        if code is not None:
            base = times[PUBLISHED]
            row["times published"] = ratio_text(tuple(count / number * value for value in timing.ratio_of(base)))  # type: ignore[arg-type]
        written = None if name == PUBLISHED or "as stored" in name else crop
        written = 4 * crop if "float32" in name or "[0, 1]" in name else written
        row["share of the limit"] = written and f"{written * rate / 1e9 / result.limits['copy_gb_per_s']:.0%}"
        result.rows.append(row)
    files = list(store.rglob("*.pt"))
    disk = float(np.mean([path.stat().st_size for path in files]))
    result.extra |= {"bytes_in_memory": size, "bytes_on_disk": disk}
    if code is not None:
        base = times[PUBLISHED]
        plain, full = (TIMES * times[f"from disk, {kind}"].ratio_of(base)[0] for kind in ("as stored", "augmented"))
        result.target(
            "warm epoch read from the cache", "200x published", f"{plain:.3g}x as stored, {full:.3g}x augmented",
            full >= 200,
        )  # fmt: skip
    result.target(
        "cache of 889 scans", f"<= {MB_A_SCAN} MB a scan on disk and in memory",
        f"{disk / 1e6:.2f} MB on disk, {size / 1e6:.2f} MB in memory", max(disk, size) <= MB_A_SCAN * 1.005e6,
    )  # fmt: skip
    result.notes.append(
        "The limit is copying memory: an item has to be written once, in 8 bits, or in float32 where the row says so. "
        f"{number} scans of {slices_and_size(options)[0]} slices for the published loader and {len(folders)} for "
        "the others a repeat; the files are in the system's cache on both sides, ours may be in the processor's."
    )
    return result
