"""A folder of JPEG or PNG slices: grey, 8 bits, in natural order of their names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .scan import OpenScan, Refusal
from .tolerances import COLOUR_LEVELS, COLOUR_SHARE, GAP_STEPS, MAX_ASPECT

SLICE_SUFFIXES = (".jpg", ".jpeg", ".png")
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")
EXIF_ORIENTATION = 0x0112


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key that orders numbers inside names by value: 2.jpg before 10.jpg, IM-0009 before IM-0010."""
    parts = re.split(r"(\d+)", name)
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part.lower()) for part in parts] + [(0, 0, name)]


def has_suffix(path: Path, suffixes: Sequence[str]) -> bool:
    return path.name.lower().endswith(tuple(suffixes))


def visible_files(folder: Path) -> list[Path]:
    """Files of a folder in natural order, without hidden ones (``._1.jpg``)."""
    files = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return sorted(files, key=lambda path: natural_key(path.name))


def slice_files(folder: Path) -> list[Path]:
    """JPEG and PNG slices of a folder in natural order."""
    return [path for path in visible_files(folder) if has_suffix(path, SLICE_SUFFIXES)]


def open_slices(path: Path, size: int | None) -> OpenScan:
    """A folder of slices; each is decoded, and resized to ``size`` when it is given, as it is read.

    Height and width are those of the first slice that is read, and 0 before.
    """
    files = slice_files(path)

    def read(indices: Sequence[int]) -> np.ndarray:
        planes, (height, width), told = _read(files, indices, size)
        scan.shape = (len(files), height, width)
        scan.warnings += told
        return planes

    scan = OpenScan("slices", (len(files), 0, 0), None, read, decoder="Pillow", file_of=files)
    scan.warnings += _numbering(files)
    return scan


def _numbering(files: Sequence[Path]) -> list[str]:
    """Warnings about the last number in the names: numbers left out, and such that come twice."""
    numbers = [int(found[-1]) for found in (re.findall(r"\d+", file.stem) for file in files) if found]
    if len(numbers) < len(files) or len(files) < 3:
        return []
    told = []
    doubled = sum(count - 1 for count in Counter(numbers).values())
    if doubled:
        told.append(f"doubled_numbers: {doubled} slices have the number of another")
    steps = np.diff(sorted(set(numbers)))
    if len(steps):
        step = float(np.median(steps))
        missing = int(sum(round(gap / step) - 1 for gap in steps if gap > GAP_STEPS * step))
        if missing:
            told.append(f"missing_slices: by the numbers in the names {missing} slices are missing")
    return told


def _read(
    files: Sequence[Path], indices: Sequence[int], size: int | None
) -> tuple[np.ndarray, tuple[int, int], list[str]]:
    """[n, H, W] uint8, (height, width) of the first slice, warnings."""
    from PIL import Image, ImageOps

    decoded: list[np.ndarray] = []
    sizes: list[tuple[int, int]] = []
    seen: Counter[str] = Counter()
    for index in indices:
        file = files[index]
        try:
            with Image.open(file) as image:
                if image.mode not in EIGHT_BIT_MODES:
                    raise Refusal(f"{file.name}: slices must be 8-bit images, got mode {image.mode}")
                image.load()
                upright: Any = image
                if image.getexif().get(EXIF_ORIENTATION, 1) not in (0, 1):
                    upright = ImageOps.exif_transpose(image)
                    seen["exif"] += 1
                seen["colour"] += _is_coloured(upright)
                grey = upright.convert("L")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise Refusal(f"{file.name}: cannot be decoded ({error})") from error
        seen["not square"] += max(grey.size) > MAX_ASPECT * min(grey.size)
        sizes.append((grey.height, grey.width))
        # Pillow's default filter (bicubic) on 8-bit grey, as the published loader has it, to the bit
        decoded.append(np.asarray(grey if size is None else grey.resize((size, size))))
    shapes = sorted({plane.shape for plane in decoded})
    if len(shapes) > 1:
        raise Refusal(f"slices differ in size {shapes}; give a size to resize them to")
    warnings = []
    if len(set(sizes)) > 1:
        warnings.append(f"mixed_sizes: slices have {len(set(sizes))} sizes and are resized to one")
    if seen["not square"]:
        warnings.append(f"not_square: {seen['not square']} slices are not square and are stretched")
    if seen["exif"]:
        warnings.append(f"exif: {seen['exif']} slices were turned as their EXIF orientation says")
    if seen["colour"]:
        warnings.append(f"colour: {seen['colour']} slices hold colour, such as marks or a screenshot")
    return np.stack(decoded), sizes[0], warnings


def _is_coloured(image: Any) -> bool:
    if image.mode not in ("RGB", "RGBA", "P", "CMYK", "YCbCr"):
        return False
    channels = np.asarray(image.convert("RGB"))[::4, ::4].astype(np.int16)
    spread = channels.max(axis=2) - channels.min(axis=2)
    return bool((spread > COLOUR_LEVELS).mean() > COLOUR_SHARE)
