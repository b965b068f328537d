"""Phantom scans for the benchmarks, made once and kept: one drawn chest, its slices repeated to the length."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np

DRAWN = 64  # slices that are drawn; synthesis costs more than anything that is timed
SIZE = 512


def _drawn(size: int, slices: int) -> tuple[np.ndarray, tuple[float, float, float]]:
    from fairlung.pipeline.phantoms.anatomy import synthesize

    scan = synthesize("adenocarcinoma", "female", rng=np.random.default_rng(0), shape=(slices, size, size))
    return scan.hu, scan.spacing


def jpeg_scan(scratch: Path, slices: int, size: int = SIZE, name: str = "") -> Path:
    """A folder of JPEG slices."""
    folder = scratch / (name or f"jpeg_{slices}_{size}")
    if folder.is_dir():
        return folder
    from fairlung.pipeline.phantoms.writers import write_jpg_folder

    drawn = scratch / f"drawn_{size}"
    if not drawn.is_dir():
        scratch.mkdir(parents=True, exist_ok=True)
        part = scratch / f"drawn_{size}.{os.getpid()}"
        write_jpg_folder(part, _drawn(size, DRAWN)[0])
        part.rename(drawn)
    part = scratch / f"{folder.name}.{os.getpid()}"
    part.mkdir()
    for number in range(slices):
        shutil.copyfile(drawn / f"{number * DRAWN // slices}.jpg", part / f"{number}.jpg")
    part.rename(folder)
    return folder


def copy_of(scan: Path, folder: Path, backwards: bool = False) -> Path:
    """The same slices in another folder, which shares their files where the file system can.

    ``backwards`` they make another volume: a training refuses one that is in two splits.
    """
    if not folder.is_dir():
        part = folder.with_name(f"{folder.name}.{os.getpid()}")
        part.mkdir(parents=True)
        files = sorted(scan.iterdir())
        for file, named in zip(files, reversed(files) if backwards else files, strict=True):
            try:
                os.link(file, part / named.name)
            except OSError:
                shutil.copyfile(file, part / named.name)
        part.rename(folder)
    return folder


def dicom_scan(scratch: Path, slices: int, size: int = SIZE) -> Path:
    """A DICOM series; its slices repeat those of the drawn chest, its step is that of a chest of so many slices."""
    folder = scratch / f"dicom_{slices}_{size}"
    if folder.is_dir():
        return folder
    from fairlung.pipeline.phantoms.writers import write_dicom_series

    scratch.mkdir(parents=True, exist_ok=True)
    hu, (dz, dy, dx) = _drawn(size, DRAWN)
    repeated = hu[np.arange(slices) * DRAWN // slices]
    part = scratch / f"{folder.name}.{os.getpid()}"
    write_dicom_series(part, repeated, (round(dz * DRAWN / slices, 4), dy, dx), sex="female", age=60)
    part.rename(folder)
    return folder


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


def grey_volumes(number: int, shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """[number, 1, D, H, W] uint8 of smooth random blobs: for steps and epochs, where only the size matters."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((number, *(max(2, side // 16) for side in shape)), dtype=np.float32)
    volumes = coarse
    for axis, side in enumerate(shape, start=1):
        volumes = np.take(volumes, np.arange(side) * volumes.shape[axis] // side, axis=axis)
    return (volumes * 255).astype(np.uint8)[:, None]
