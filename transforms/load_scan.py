"""One loader for every kind of chest CT scan.

Whatever the file format, a scan becomes a float32 volume [1, D, H, W] in [0, 1] in one orientation (LPS): D from
inferior to superior, H from anterior to posterior, W from the patient's right to the left. A slice folder carries no
geometry: its slices are taken in natural order of their names, as they are.

Beside the volume stands the intake record: what was found, used, and is doubtful about it.
"""

import os
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Transform
from torch.nn.functional import interpolate

from .dicom.choice import choice, choose, read_folder, too_few
from .dicom.pixels import check_rescale, read_hu
from .discovery import scan_kind, source_files
from .files import slice_files
from .geometry import turn_to_lps
from .plausibility import air_of_grey, check_chest, check_grey, check_hu, grey_counts, hu_of
from .remote import fetched
from .scan import OpenScan, Record, Refusal, ScanError, ScanSource, Skipped, as_source, describe, new_record
from .slice_folder import open_slices
from .slices import SampleSlices, SliceSelector, TrimSlices
from .tolerances import FEW_SLICES, FIELD_MM, LUNG_BELOW_HU, MAX_ASPECT, MIN_EXTENT_MM, MIN_SLICES, THICK_STEP_MM
from .volume_files import open_itk, open_nifti

QUOTED = r"\"[^\"]*\"?"
LUNG_WINDOW = (-1350.0, 150.0)
RECORD = "intake"  # the key of the record in an item


def window(hu: np.ndarray, low: float, high: float) -> np.ndarray:
    """Linear window: ``(HU - low) / (high - low)`` clipped to [0, 1], float32."""
    return np.clip((hu.astype(np.float32) - low) / (high - low), 0, 1)


def open_scan(
    source: ScanSource, size: int | None = None, min_slices: int = MIN_SLICES, fast_decode: bool = False
) -> OpenScan:
    """Read a scan's headers and check them; no slice is decoded.

    Args:
        source: where it lies.
        size: slices of a slice folder are resized to size x size; None keeps them.
        min_slices: a scan of fewer is refused.
        fast_decode: see :func:`~.open_slices`.

    Raises:
        Refusal: the scan is missing, ambiguous, unreadable, or outside the tolerances.
    """
    path = Path(source.path)
    kind = None
    try:
        kind = scan_kind(path)
        if kind == "mixed":
            raise Refusal("many pictures beside DICOM files; leave the scan alone in its folder")
        if kind is None:
            raise Refusal("holds no scan" if path.exists() else "does not exist")
        if kind == "dicom":
            scan = _open_dicom(source, min_slices)
        elif kind == "slices":
            scan = open_slices(path, size, fast_decode)
        else:
            scan = {"nifti": open_nifti, "itk": open_itk}[kind](path)
    except Refusal:
        raise
    except Exception as error:  # readers raise many kinds; a user needs the scan and the cause
        raise _unreadable(kind or "scan", error) from None  # a traceback would quote what the library says
    found = scan.shape[0]
    scan.warnings += source.told
    if found < min_slices:
        if kind == "slices" and source.aside:
            raise Skipped(f"{found} picture{'s' * (found != 1)} among DICOM scans, such as a logo: no scan")
        raise too_few(found, min_slices)
    if found < FEW_SLICES:
        scan.warnings.append(f"few_slices: {found} slices")
    if scan.spacing is not None and found > 1 and found * scan.spacing[0] < MIN_EXTENT_MM:
        scan.warnings.append(f"short: from end to end {found * scan.spacing[0]:.0f} mm, less than a chest")
    if scan.spacing is not None and found > 1 and scan.spacing[0] > THICK_STEP_MM:
        scan.warnings.append(f"thick_steps: slices are {scan.spacing[0]:.1f} mm apart")
    if scan.spacing is not None:
        high, field = (count * step for count, step in zip(scan.shape[1:], scan.spacing[1:], strict=True))
        if max(high, field) > MAX_ASPECT * min(high, field):
            scan.warnings.append(f"not_square: slices are {field:.0f} x {high:.0f} mm and become squares")
        if not FIELD_MM[0] <= field <= FIELD_MM[1]:
            scan.warnings.append(f"field_of_view: slices are {field:.0f} mm wide; is the pixel spacing in millimetres?")
    return scan


def _unreadable(kind: str, error: Exception) -> Refusal:
    name = type(error).__name__
    if kind == "dicom":  # what a DICOM library says may quote a header, and so may what others put between quotes
        return Refusal(f"cannot be read as {kind} ({name})")
    said = str(error).strip().splitlines() or [name]
    if said[-1].startswith("Reason: "):  # ITK quotes whatever the operating system said last
        said = ["its header or its voxels are damaged or missing"]
    return Refusal(f"cannot be read as {kind} ({re.sub(QUOTED, '...', said[-1])})")


def _open_dicom(source: ScanSource, min_slices: int) -> OpenScan:
    series, told = read_folder(source_files(source))
    asked = [each for each in series if source.series in (None, each.number)]
    chosen = choose(asked, min_slices, told)
    told += [*chosen.warnings, *check_rescale(chosen.slices)]
    chose = choice(chosen, series) if source.series is None else ""
    if chose and sum(each.problem is None for each in series) > 1:
        told.append(f"several_series: {chose}")
    folder = Path(source.path)
    if source.series is None and folder.is_dir() and (pictures := len(slice_files(folder))):
        told.append(f"pictures: {pictures} pictures beside the DICOM files are not used")
    slices, first = chosen.slices, chosen.first
    stored = first.columns, first.rows, len(slices)
    turn = None if chosen.affine is None else turn_to_lps(chosen.affine, stored)

    def read(indices: Sequence[int]) -> np.ndarray:
        planes = np.empty((len(indices), *scan.shape[1:]), dtype=np.float32)
        decoders = set()
        for place, (hu, decoder) in enumerate(read_hu([slices[index] for index in indices])):
            decoders.add(decoder)
            planes[place] = hu if turn is None else turn.slices(hu.T[..., None])[0]
        scan.decoder = ", ".join(sorted(decoders))
        return planes

    scan = OpenScan(
        "dicom",
        stored[::-1] if turn is None else turn.shape,
        None if turn is None else turn.affine,
        read,
        orientation="" if turn is None else turn.orientation,
        slices_found=chosen.found,
        warnings=told,
        series=chose,
        tilt_degrees=chosen.tilt_degrees,
        file_of=[header.path for header in slices],
    )
    return scan


def _selected(depth: int, select: Sequence[SliceSelector]) -> np.ndarray:
    indices = np.arange(depth)
    for selector in select:
        indices = indices[selector.indices(len(indices))]
    return indices


class LoadScan(Transform):
    """Read a scan of any kind into a float32 volume [1, D, H, W] in [0, 1] (orientation: see the module).

    Accepts a folder of JPEG or PNG slices, a folder with DICOM files, a DICOM, NIfTI, NRRD, MHA or MHD file, or its
    address for fsspec (``s3://...``): its files are then fetched for as long as it takes to read them. Of several
    DICOM series the chest CT is chosen (:func:`~.choose`). Slices of 8 bits are divided by 255; everything
    else must be HU and is windowed.

    Only the selected slices are decoded: of a slice folder, DICOM, and NIfTI whose last axis is that of the slices.

    Example:
        >>> from tempfile import mkdtemp
        >>> from PIL import Image
        >>> folder = Path(mkdtemp())
        >>> for number in range(3):
        ...     Image.linear_gradient("L").save(folder / f"{number}.png")
        >>> volume, record = LoadScan(size=64, min_slices=1).read(folder)
        >>> tuple(volume.shape), record["slices_used"]
        ((1, 3, 64, 64), 3)

    Args:
        select: slice selectors applied in turn.
        window: HU that become 0 and 1.
        size: slices of a slice folder are resized to size x size with Pillow's bicubic filter while they are read, as
            the published loader does it; None keeps them. HU volumes are never resized here (use ``Resized``).
        min_slices: scans of fewer slices are refused.
        fast_decode: let the JPEG decoder shrink slices towards ``size`` (:func:`~.open_slices`): faster,
            and no longer the published volume to the bit. Other kinds of scans are read as before.

    Raises:
        ScanError: the scan is missing, empty, ambiguous, unreadable, or implausible; carries the record.
    """

    def __init__(
        self,
        *,
        select: Sequence[SliceSelector] = (),
        window: Sequence[float] = LUNG_WINDOW,
        size: int | None = None,
        min_slices: int = MIN_SLICES,
        fast_decode: bool = False,
    ) -> None:
        low, high = window
        if not low < high:
            raise ValueError(f"window must rise from low to high, got {tuple(window)}")
        if size is not None and size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        if min_slices < 1:
            raise ValueError(f"min_slices must be at least 1, got {min_slices}")
        bad = [selector for selector in select if not isinstance(selector, SliceSelector)]
        if bad:
            raise ValueError(f"select must hold slice selectors (TrimSlices, SampleSlices), got {bad[0]!r}")
        self.select = tuple(select)
        self.window = (float(low), float(high))
        self.size = size
        self.min_slices = min_slices
        self.fast_decode = bool(fast_decode)

    def __call__(self, scan: str | os.PathLike[str] | ScanSource) -> torch.Tensor:
        return self.read(scan)[0]

    def read(self, scan: str | os.PathLike[str] | ScanSource) -> tuple[torch.Tensor, Record]:
        """The volume and its intake record."""
        source = as_source(scan)
        opened: OpenScan | None = None
        indices: list[int] = []
        try:
            if source.problem:
                raise (Skipped if source.expected else Refusal)(source.problem)
            with fetched(source) as (local, addresses):
                opened = open_scan(local, self.size, self.min_slices, self.fast_decode)
                indices = _selected(opened.shape[0], self.select).tolist()
                volume = self._volume(opened, indices)
        except Refusal as error:
            record = new_record() if opened is None else describe(opened, indices)
            record |= {"status": error.status, "reason": str(error)}
            raise ScanError(f"{source}: {error}", record) from error
        record = describe(opened, indices)
        return volume, record | {"files": [addresses.get(file, file) for file in record["files"]]}

    def _volume(self, scan: OpenScan, indices: list[int]) -> torch.Tensor:
        distinct, back = np.unique(indices, return_inverse=True)
        try:
            values = scan.read(distinct.tolist())
        except Refusal:
            raise
        except Exception as error:
            raise _unreadable(scan.kind, error) from None
        if scan.kind == "slices":
            scan.value_range = float(values.min()), float(values.max())
            counts = grey_counts(values)
            scan.warnings += check_grey(counts) + check_chest(values, air_of_grey(counts))
            scaled = np.divide(values, np.float32(255), dtype=np.float32)
        else:
            scan.warnings += check_hu(values)
            known = hu_of(values)
            scan.value_range = float(known.min()), float(known.max())
            scan.warnings += check_chest(values, LUNG_BELOW_HU)
            scaled = window(values, *self.window)
        if not np.array_equal(distinct, indices):
            scaled = scaled[back]
        return torch.from_numpy(np.ascontiguousarray(scaled))[None]


def read_scan(
    scan: str | os.PathLike[str] | ScanSource, *, num_slices: int | None = None, trim_fraction: float = 0.0,
    window: Sequence[float] = LUNG_WINDOW, size: int | None = None, min_slices: int = MIN_SLICES,
) -> tuple[torch.Tensor, Record]:  # fmt: skip
    """A scan of any kind as a float32 volume [1, D, H, W] in [0, 1], and the record of how it was read.

    Example:
        A CT of 12 slices, without a tenth of them at each end:

        >>> from tempfile import mkdtemp
        >>> import nibabel
        >>> from fairlung.transforms import read_scan
        >>> path = Path(mkdtemp(), "ct.nii.gz")
        >>> hu = np.random.default_rng(0).normal(-600, 300, (32, 24, 12)).astype(np.int16)  # x, y, z
        >>> nibabel.save(nibabel.Nifti1Image(hu, np.diag([9.0, 9.0, 20.0, 1.0])), path)
        >>> volume, record = read_scan(path, trim_fraction=0.1)
        >>> tuple(volume.shape), record["slices_found"], record["spacing"]
        ((1, 9, 24, 32), 12, [20.0, 9.0, 9.0])

    Args:
        num_slices: D, drawn evenly (:class:`~.SampleSlices`); None takes every slice.
        trim_fraction: of the slices, left out at each end first (:class:`~.TrimSlices`).
        size: H and W, of a slice folder as of :class:`LoadScan`, else means over areas; None keeps those that it has.
        window, min_slices: as :class:`LoadScan` takes them.

    Raises:
        ScanError: the scan is missing, empty, ambiguous, unreadable, or implausible; carries the record.
        ValueError: a setting is out of range.
    """
    select: list[SliceSelector] = [TrimSlices(trim_fraction)]
    select += [] if num_slices is None else [SampleSlices(num_slices)]
    volume, record = LoadScan(select=select, window=window, size=size, min_slices=min_slices).read(scan)
    if size is not None and volume.shape[2:] != (size, size):
        volume = interpolate(volume[None], (volume.shape[1], size, size), mode="area")[0]
    return volume, record


class LoadScand(MapTransform):
    """Dictionary version of :class:`LoadScan`: replaces paths by volumes, and puts the record under ``intake``."""

    def __init__(
        self,
        keys: KeysCollection,
        *,
        select: Sequence[SliceSelector] = (),
        window: Sequence[float] = LUNG_WINDOW,
        size: int | None = None,
        min_slices: int = MIN_SLICES,
        fast_decode: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.load = LoadScan(select=select, window=window, size=size, min_slices=min_slices, fast_decode=fast_decode)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key], d[RECORD] = self.load.read(d[key])
        return d
