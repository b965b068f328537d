"""One loader for every kind of chest CT scan.

Whatever the file format, a scan becomes a float32 volume [1, D, H, W] in [0, 1] in one orientation (LPS): D from
inferior to superior, H from anterior to posterior, W from the patient's right to the left. A slice folder carries no
geometry: its slices are taken in natural order of their names, as they are.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor, NibabelReader
from monai.transforms import MapTransform, Orientation, Transform

from .slices import SliceSelector

logger = logging.getLogger(__name__)

SLICE_SUFFIXES = (".jpg", ".jpeg", ".png")
DICOM_SUFFIXES = (".dcm", ".ima")
NIFTI_SUFFIXES = (".nii", ".nii.gz")
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
DICOM_MAGIC = (128, b"DICM")
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")
LUNG_WINDOW = (-1350.0, 150.0)


class ScanError(ValueError):
    """A scan cannot be turned into a volume; the message names the scan's path and the cause."""


# ---------------------------------------------------------------------------------------------------------------------
# what lies where
# ---------------------------------------------------------------------------------------------------------------------
def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key that orders numbers inside names by value: 2.jpg before 10.jpg, IM-0009 before IM-0010."""
    parts = re.split(r"(\d+)", name)
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part.lower()) for part in parts] + [(0, 0, name)]


def _has_suffix(path: Path, suffixes: Sequence[str]) -> bool:
    return path.name.lower().endswith(tuple(suffixes))


def _is_dicom(path: Path) -> bool:
    if _has_suffix(path, DICOM_SUFFIXES):
        return True
    if path.suffix and not path.suffix[1:].isdigit():  # names such as 1.2.840.3 carry no suffix
        return False
    offset, magic = DICOM_MAGIC
    with path.open("rb") as file:
        return file.read(offset + len(magic))[offset:] == magic


def _visible_files(folder: Path) -> list[Path]:
    files = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return sorted(files, key=lambda path: natural_key(path.name))


def slice_files(folder: Path) -> list[Path]:
    """JPEG and PNG slices of a folder in natural order; hidden files (``._1.jpg``) are not slices."""
    return [path for path in _visible_files(folder) if _has_suffix(path, SLICE_SUFFIXES)]


def scan_kind(path: Path) -> str | None:
    """``slices``, ``dicom``, ``nifti`` or ``itk`` for a path that holds a scan, else None.

    ``mixed`` is a folder with pictures beside DICOM files: which of them is the scan cannot be told.
    """
    if path.is_dir():
        files = _visible_files(path)
        pictures = any(_has_suffix(file, SLICE_SUFFIXES) for file in files)
        if any(_is_dicom(file) for file in files):
            return "mixed" if pictures else "dicom"
        return "slices" if pictures else None
    if not path.is_file():
        return None
    if _has_suffix(path, NIFTI_SUFFIXES):
        return "nifti"
    if _has_suffix(path, ITK_SUFFIXES):
        return "itk"
    return "dicom" if _is_dicom(path) else None


def find_scans(root: str | Path) -> list[dict[str, str]]:
    """Every scan at or below a path, in natural order.

    A folder with slices or DICOM files in it is one scan; every NIfTI, NRRD, MHA file is one. Pictures in a folder that
    has scans below it are no scan (a preview, most likely): a warning says so.

    Args:
        root: a folder tree, or one scan.

    Returns:
        ``{"image": path, "scan": path relative to root}`` a scan.

    Raises:
        FileNotFoundError: root does not exist, or no scan is found in it.
    """
    root = Path(root).expanduser()
    if not root.exists():
        raise FileNotFoundError(f"--scans: {root} does not exist")
    found = _walk(root) if root.is_dir() else [root] if scan_kind(root) else []
    if not found:
        kinds = ", ".join((*SLICE_SUFFIXES, *DICOM_SUFFIXES, *NIFTI_SUFFIXES, *ITK_SUFFIXES))
        raise FileNotFoundError(f"--scans: no scan found in {root} (looked for {kinds})")
    return [
        {"image": str(path), "scan": path.name if path == root else path.relative_to(root).as_posix()} for path in found
    ]


def _walk(folder: Path) -> list[Path]:
    below = []
    for path in sorted(folder.iterdir(), key=lambda path: natural_key(path.name)):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            below += _walk(path)
        elif scan_kind(path) in ("nifti", "itk"):
            below.append(path)
    kind = scan_kind(folder)
    if kind == "slices" and below:
        logger.warning("%s: the pictures in it are not taken for a scan, as there are scans below it", folder)
        return below
    return [folder, *below] if kind else below


# ---------------------------------------------------------------------------------------------------------------------
# reading
# ---------------------------------------------------------------------------------------------------------------------
def _read_slices(path: Path, select: Sequence[SliceSelector], size: int | None) -> np.ndarray:
    """[D, H, W] uint8; decodes and resizes only the selected slices, each distinct slice once."""
    from PIL import Image

    files = slice_files(path)
    indices = _selected(len(files), select)
    decoded = {}
    for index in np.unique(indices).tolist():
        try:
            with Image.open(files[index]) as image:
                if image.mode not in EIGHT_BIT_MODES:
                    raise ScanError(f"{files[index]}: slices must be 8-bit images, got mode {image.mode}")
                grey = image.convert("L")
                # Pillow's default filter (bicubic) on 8-bit grey, as the published loader has it, to the bit
                decoded[index] = np.asarray(grey if size is None else grey.resize((size, size)))
        except (OSError, SyntaxError) as error:
            raise ScanError(f"{files[index]}: cannot be decoded ({error})") from error
    shapes = {slice_.shape for slice_ in decoded.values()}
    if len(shapes) > 1:
        raise ScanError(f"{path}: slices differ in size {sorted(shapes)}; give a size to resize them to")
    return np.stack([decoded[index] for index in indices.tolist()])


def _read_dicom(path: Path) -> np.ndarray:
    import SimpleITK as sitk

    if path.is_file():
        return _oriented(sitk.ReadImage(str(path)), path)
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(path))
    if not series:
        raise ScanError(f"{path}: no readable DICOM series")
    files = [sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path), uid) for uid in series]
    if len(series) > 1:
        counts = ", ".join(str(len(names)) for names in files)
        raise ScanError(
            f"{path}: {len(series)} DICOM series in one folder (of {counts} files); give each its own folder"
        )
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files[0])
    return _oriented(reader.Execute(), path)


def _read_itk(path: Path) -> np.ndarray:
    import SimpleITK as sitk

    return _oriented(sitk.ReadImage(str(path)), path)


def _oriented(image: Any, path: Path) -> np.ndarray:
    """[D, H, W] of a SimpleITK image, turned to LPS."""
    import SimpleITK as sitk

    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise ScanError(
            f"{path}: must be one 3-D volume of scalars, got {image.GetDimension()} dimensions "
            f"with {image.GetNumberOfComponentsPerPixel()} components"
        )
    return sitk.GetArrayFromImage(sitk.DICOMOrient(image, "LPS"))


def _read_nifti(path: Path) -> np.ndarray:
    reader = NibabelReader()
    voxels, meta = reader.get_data(reader.read(str(path)))
    if voxels.ndim != 3:
        raise ScanError(f"{path}: must be one 3-D volume, got shape {tuple(voxels.shape)}")
    volume = Orientation(axcodes="LPS", labels=None)(MetaTensor(voxels[None], affine=meta["affine"]))
    return volume[0].numpy().transpose(2, 1, 0)


def _selected(depth: int, select: Sequence[SliceSelector]) -> np.ndarray:
    indices = np.arange(depth)
    for selector in select:
        indices = indices[selector.indices(len(indices))]
    return indices


def window(hu: np.ndarray, low: float, high: float) -> np.ndarray:
    """Linear window: ``(HU - low) / (high - low)`` clipped to [0, 1], float32."""
    return np.clip((hu.astype(np.float32) - low) / (high - low), 0, 1)


class LoadScan(Transform):
    """Read a scan of any kind into a float32 volume [1, D, H, W] in [0, 1] (orientation: see the module).

    Accepts a folder of JPEG or PNG slices, a folder with one DICOM series, a single DICOM file, a NIfTI, NRRD, MHA or
    MHD file. Slices of 8 bits are divided by 255; everything else is taken as HU and windowed.

    Args:
        select: slice selectors applied in turn. Of a slice folder only the selected slices are decoded.
        window: HU that become 0 and 1.
        size: slices of a slice folder are resized to size x size with Pillow's bicubic filter while they are read, as
            the published loader does it; None keeps them. HU volumes are never resized here (use ``Resized``).

    Raises:
        ScanError: the scan is missing, empty, ambiguous, unreadable, or has no contrast inside the window.
    """

    def __init__(
        self,
        *,
        select: Sequence[SliceSelector] = (),
        window: Sequence[float] = LUNG_WINDOW,
        size: int | None = None,
    ) -> None:
        low, high = window
        if not low < high:
            raise ValueError(f"window must rise from low to high, got {tuple(window)}")
        if size is not None and size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        bad = [selector for selector in select if not isinstance(selector, SliceSelector)]
        if bad:
            raise ValueError(f"select must hold slice selectors (TrimSlices, SampleSlices), got {bad[0]!r}")
        self.select = tuple(select)
        self.window = (float(low), float(high))
        self.size = size

    def __call__(self, path: str | Path) -> torch.Tensor:
        path = Path(path)
        kind = scan_kind(path)
        if kind == "mixed":
            raise ScanError(f"{path}: pictures beside DICOM files; leave the scan alone in its folder")
        if kind is None:
            raise ScanError(f"{path}: {'holds no scan' if path.exists() else 'does not exist'}")
        if kind == "slices":
            volume = _read_slices(path, self.select, self.size).astype(np.float32) / 255
        else:
            read = {"dicom": _read_dicom, "itk": _read_itk, "nifti": _read_nifti}[kind]
            try:
                hu = read(path)
            except ScanError:
                raise
            except Exception as error:  # readers raise many kinds; a user needs the scan and the cause
                said = str(error).strip().splitlines() or [type(error).__name__]
                raise ScanError(f"{path}: cannot be read as {kind} ({said[-1]})") from error
            if not np.isfinite(hu).all():
                raise ScanError(f"{path}: holds voxels that are not finite numbers")
            volume = window(hu[_selected(len(hu), self.select)], *self.window)
            if volume.min() == volume.max():
                raise ScanError(f"{path}: all voxels look the same in the window {self.window}; is it a CT in HU?")
        return torch.from_numpy(np.ascontiguousarray(volume))[None]


class LoadScand(MapTransform):
    """Dictionary version of :class:`LoadScan`: replaces paths by volumes."""

    def __init__(
        self,
        keys: KeysCollection,
        *,
        select: Sequence[SliceSelector] = (),
        window: Sequence[float] = LUNG_WINDOW,
        size: int | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.load = LoadScan(select=select, window=window, size=size)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.load(d[key])
        return d
