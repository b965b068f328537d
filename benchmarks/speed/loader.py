"""Reading JPEG scans: LoadScan against the published loader, cold, in one process."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import bundle
from .harness import Options, Result, alternate, copy_gbs, disk_gbs, forget, per_call, ratio_text, seconds_text
from .published import PublishedCode
from .scans import files_of, jpeg_scan

TARGETS = {300: (6.0, 15.0), 700: (15.0, 22.0)}


@contextmanager
def threads(number: int) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def published_volume(code: PublishedCode, folder: Path) -> np.ndarray:
    """[64, 256, 256] in [0, 1] as their data set makes it before it crops."""
    data = code.scans([folder])
    volume = data._load_scan(str(folder))
    return data._resize_depth(data._remove_non_lung_slices(volume), 64) / 255.0


def decoding_floor(folder: Path, draft: bool) -> float:
    """Seconds that Pillow alone needs for the 64 slices, in one thread."""
    from PIL import Image

    from fairlung.transforms.files import slice_files
    from fairlung.transforms.slices import sample_indices, trim_indices

    files = slice_files(folder)
    kept = trim_indices(len(files), 0.1)
    chosen = [files[k] for k in dict.fromkeys(kept[sample_indices(len(kept), 64)].tolist())]

    def run() -> None:
        for file in chosen:
            with Image.open(file) as image:
                if draft:
                    image.draft(None, (256, 256))
                image.load()
                np.asarray(image.resize((256, 256)))

    return per_call(run)


def measure(options: Options) -> Result:
    result = Result("loader")
    code = PublishedCode(options.published) if options.published else None
    cores = torch.get_num_threads()
    lengths = (20, 40) if options.small else (300, 700)
    size = 512 if not options.small else 128
    repeats = options.repeats or (2 if options.small else 7)
    load, load_fast = bundle.loader(), bundle.loader(fast_decode=True)
    for slices in lengths:
        folder = jpeg_scan(options.scratch, slices, size)
        files = files_of(folder)
        result.limits[f"disk_{slices}_slices_gb_per_s"] = disk_gbs(files)

        def exact(folder: Path = folder) -> Any:
            return load(folder)

        def fast(folder: Path = folder) -> Any:
            return load_fast(folder)

        def in_threads(number: int, run: Callable[[], Any]) -> Callable[[], Any]:
            def call() -> None:
                with threads(number):
                    run()

            return call

        grey = np.rint(exact().numpy()[0] * 255).astype(int)
        error = np.abs(np.rint(fast().numpy()[0] * 255).astype(int) - grey)
        variants: dict[str, Callable[[], Any]] = {}
        if code is not None:
            same = bool(np.array_equal(exact().numpy()[0], published_volume(code, folder)))
            if not same:
                raise AssertionError(f"{slices} slices: the volume is not the published one, bit for bit")
            result.equal[f"volume of {slices} slices"] = "bit for bit"
            variants["published"] = partial(published_volume, code, folder)
        variants["exact, 1 thread"] = in_threads(1, exact)
        variants["fast_decode, 1 thread"] = in_threads(1, fast)
        if cores > 1:
            variants[f"exact, {cores} threads"] = in_threads(cores, exact)
            variants[f"fast_decode, {cores} threads"] = in_threads(cores, fast)
        times = alternate(variants, repeats, before=partial(forget, files))
        floors = {False: decoding_floor(folder, False), True: decoding_floor(folder, True)}
        for name, timing in times.items():
            row = {"slices": slices, "reader": name, "a scan": seconds_text(timing)}
            row["times published"] = ratio_text(timing.ratio_of(times["published"])) if code else None
            row["in processor time"] = ratio_text(timing.busy.ratio_of(times["published"].busy)) if code else None
            if name == "published":
                row["share of the limit"] = row["grey levels off"] = None
            else:
                draft = name.startswith("fast")
                number = 1 if name.endswith("1 thread") else cores
                row["share of the limit"] = f"{floors[draft] / number / timing.median:.0%}"
                row["grey levels off"] = f"mean {error.mean():.2f}, most {error.max()}" if draft else "0"
            result.rows.append(row)
        if code is not None:
            for wanted, kind in zip(TARGETS.get(slices, (6.0, 15.0)), ("exact", "fast_decode"), strict=True):
                best = times[f"{kind}, {max(cores, 1)} thread{'s' if cores > 1 else ''}"].ratio_of(times["published"])
                one = times[f"{kind}, 1 thread"].ratio_of(times["published"])
                what = "bit-identical" if kind == "exact" else "fast_decode"
                result.target(
                    f"cold read of {slices} slices, {what}", f"{wanted:g}x",
                    f"{best[0]:.3g}x in {cores} threads, {one[0]:.3g}x in one", best[0] >= wanted,
                )  # fmt: skip
        result.extra[f"error_{slices}"] = {"mean": float(error.mean()), "most": int(error.max())}
    result.limits["copy_gb_per_s"] = copy_gbs()
    result.notes.append(
        "The limit is Pillow decoding and resizing the 64 chosen slices and nothing else, divided by the threads. "
        "Files are dropped from the system's cache before each read. `fast_decode` lets the JPEG decoder halve a slice "
        "while it decodes; its error is against the exact volume. Our times hold the intake's checks (is it a chest, "
        "is it blank), which the published loader does not make."
    )
    return result
