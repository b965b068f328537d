"""A scan that has been opened, what is recorded about it, and the errors that refuse it."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .addresses import shown

Record = dict[str, Any]


@dataclass(frozen=True)
class ScanSource:
    """Where a scan lies; a plain path stands for one with defaults. As text it is without the login of an address.

    Args:
        path: of a file or folder, or its address for fsspec, such as ``s3://bucket/scan``.
        more: further folders in which the same DICOM series goes on.
        series: which series of the folder, from 1 in the order of :func:`~.read_folder`; None chooses.
        problem: why there is nothing to read, such as an archive that could not be unpacked.
        expected: the problem is none (an archive of other things): the scan is skipped, not refused.
        aside: pictures in a tree of DICOM scans: too few of them are such as a viewer's logo, and skipped.
        told: warnings that come from where it lies, ``code: text``.
        listed: of a remote scan, the digest of the files in each of its folders when it was found.
    """

    path: str
    more: tuple[str, ...] = ()
    series: int | None = None
    problem: str = ""
    expected: bool = False
    aside: bool = False
    told: tuple[str, ...] = ()
    listed: tuple[str, ...] = ()

    def __fspath__(self) -> str:
        return self.path

    def __str__(self) -> str:
        return shown(self.path) if self.series is None else f"{shown(self.path)}#{self.series}"


def as_source(scan: str | os.PathLike[str] | ScanSource) -> ScanSource:
    """A path as :class:`ScanSource`."""
    return scan if isinstance(scan, ScanSource) else ScanSource(os.fspath(scan))


class ScanError(ValueError):
    """A scan cannot be turned into a volume; the message names the scan's path and the cause.

    ``record`` is the intake record as far as it was known, with status ``refused`` (or ``skipped``) and the reason.
    """

    def __init__(self, message: str, record: Record | None = None) -> None:
        super().__init__(message)
        self.record = record


class Refusal(Exception):
    """Why a scan cannot be answered, without its name; :class:`~.LoadScan` adds that and the record."""

    status = "refused"


class Skipped(Refusal):
    """The file says itself that it is no chest CT, such as a localizer: nobody expects an answer."""

    status = "skipped"


@dataclass
class OpenScan:
    """A scan whose headers have been read; slices are decoded when they are asked for.

    Args:
        kind: ``dicom``, ``slices``, ``nifti`` or ``itk``.
        shape: (D, H, W): D from inferior to superior, H from anterior to posterior, W from right to left.
        affine: [4, 4] from voxel (x, y, z) = (index along W, H, D) to RAS millimetres; None without geometry.
        read: distinct ascending indices along D -> [n, H, W], HU or 8-bit grey.
        orientation: stored axes as letters towards which they grow, such as ``LPS``; "" without geometry.
        decoder: library that decodes.
        slices_found: slices in the files, those left out included.
        warnings: ``code: text``.
        series: which DICOM series was chosen, out of how many, and why.
        tilt_degrees: of the gantry.
        value_range: lowest and highest value read, padding aside.
        file_of: path of each of the D slices, where they are files.
    """

    kind: str
    shape: tuple[int, int, int]
    affine: np.ndarray | None
    read: Callable[[Sequence[int]], np.ndarray]
    orientation: str = ""
    decoder: str = ""
    slices_found: int = 0
    warnings: list[str] = field(default_factory=list)
    series: str = ""
    tilt_degrees: float | None = None
    value_range: tuple[float, float] | None = None
    file_of: Sequence[Path] | None = None

    @property
    def spacing(self) -> tuple[float, float, float] | None:
        """(dz, dy, dx) in millimetres: lengths of the steps along D, H, W."""
        if self.affine is None:
            return None
        dx, dy, dz = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return dz, dy, dx


def new_record(kind: str = "", status: str = "ok", reason: str = "") -> Record:
    """The intake record of a scan of which nothing else is known; every value is plain, so that it can be cached."""
    return {
        "kind": kind,
        "status": status,
        "reason": reason,
        "warnings": [],
        "series": "",
        "slices_found": 0,
        "slices_used": 0,
        "shape": None,
        "spacing": None,
        "affine": None,
        "indices": [],
        "orientation": "",
        "value_range": None,
        "tilt_degrees": None,
        "decoder": "",
        "files": [],
    }


def describe(scan: OpenScan, indices: Sequence[int]) -> Record:
    """The intake record of an opened scan of which the slices ``indices`` are taken."""
    used = sorted(set(indices))
    files = scan.file_of if scan.kind == "dicom" and scan.file_of is not None else []
    return new_record(scan.kind) | {
        "warnings": list(scan.warnings),
        "series": scan.series,
        "slices_found": scan.slices_found or scan.shape[0],
        "slices_used": len(used),
        "shape": list(scan.shape),
        "spacing": None if scan.spacing is None else [round(step, 4) for step in scan.spacing],
        "affine": None if scan.affine is None else scan.affine.tolist(),
        "indices": list(indices),
        "orientation": scan.orientation,
        "value_range": None if scan.value_range is None else list(scan.value_range),
        "tilt_degrees": scan.tilt_degrees,
        "decoder": scan.decoder,
        "files": list(dict.fromkeys(str(files[i]) for i in used if files)),
    }
