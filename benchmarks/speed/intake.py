"""Reading DICOM series: the chosen slices alone against the whole series by SimpleITK's reader."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np

from . import bundle
from .harness import Options, Result, disk_gbs, in_process, peak_of
from .scans import dicom_scan, files_of


def read_chosen(folder: str, warm: str) -> dict[str, float]:
    """Our loader, after its libraries are loaded."""
    load = bundle.loader()
    load(warm)
    return peak_of(lambda: load(folder))


def read_whole(folder: str, warm: str) -> dict[str, float]:
    """SimpleITK's series reader, then the same choice of slices and the window."""
    whole_series(warm)
    return peak_of(lambda: whole_series(folder))


def whole_series(folder: str) -> np.ndarray:
    import SimpleITK as sitk

    from fairlung.transforms.slices import sample_indices, trim_indices

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(folder))
    hu = sitk.GetArrayFromImage(reader.Execute())
    kept = trim_indices(len(hu), 0.1)
    chosen = hu[kept[sample_indices(len(kept), 64)]]
    return np.clip((chosen.astype(np.float32) + 1350) / 1500, 0, 1)


def measure(options: Options) -> Result:
    result = Result("intake")
    lengths, size = ((20, 40), 64) if options.small else ((300, 700), 512)
    warm = str(dicom_scan(options.scratch, 12, 64))
    for slices in lengths:
        folder = dicom_scan(options.scratch, slices, size)
        ours = bundle.loader()(folder).numpy()[0]
        difference = float(np.abs(ours - whole_series(str(folder))).max())
        if difference > 1e-6:
            raise AssertionError(f"{slices} slices: SimpleITK's volume differs by {difference}")
        result.equal[f"volume of {slices} DICOM slices"] = f"SimpleITK's within {difference:.0e}"
        result.limits[f"disk_{slices}_slices_gb_per_s"] = disk_gbs(files_of(folder))
        runs: dict[str, list[dict[str, Any]]] = {"chosen slices": [], "whole series, SimpleITK": []}
        for _ in range(options.repeats or (1 if options.small else 3)):
            for name, function in zip(runs, ("read_chosen", "read_whole"), strict=True):
                runs[name].append(in_process("intake", function, str(folder), warm))
        seconds = {name: statistics.median(run["seconds"] for run in found) for name, found in runs.items()}
        base = seconds["whole series, SimpleITK"]
        for name, found in runs.items():
            result.rows.append(
                {
                    "slices": slices, "reader": name, "a scan": f"{seconds[name]:.3g} s",
                    "times the whole series": f"{base / seconds[name]:.3g}x",
                    "peak memory above the start": f"{min(run['above'] for run in found) / 1e6:.0f} MB",
                }
            )  # fmt: skip
    result.notes.append(
        "Uncompressed 16-bit slices of 512 x 512, in the system's cache, each reading in a process of its own after a "
        "short scan has loaded the libraries. Ours reads and checks every header of the series, then the pixels of the "
        "64 chosen slices; its volume is float32 at full resolution, as is SimpleITK's after the same choice."
    )
    return result
