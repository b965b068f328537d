"""A folder of JPEG or PNG slices: grey, 8 bits, in the order of the numbers in their names."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .files import slice_files
from .plausibility import check_levels
from .scan import OpenScan, Refusal
from .slice_names import in_order
from .tolerances import COLOUR_LEVELS, COLOUR_SHARE, MAX_ASPECT

EIGHT_BIT_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")
# of files named .jpg or .png, by their content; others may hold more than 8 bits in a mode that Pillow calls RGB
FORMATS = ("JPEG", "MPO", "PNG", "GIF", "BMP", "WEBP")
EXIF_ORIENTATION = 0x0112
EXIF_ON_ITS_SIDE = (5, 6, 7, 8)


def open_slices(path: Path, size: int | None, fast_decode: bool = False) -> OpenScan:
    """A folder of slices; each is decoded, and resized to ``size`` when it is given, as it is read.

    Slices are decoded in as many threads as torch may use: all cores in a process that reads alone, one in a worker.

    Height and width are those of the first slice that is read, and 0 before.

    Args:
        path: the folder.
        size: slices become size x size; None keeps theirs.
        fast_decode: let the JPEG decoder shrink a slice by 2, 4 or 8 while it decodes, as far as it stays no smaller
            than ``size``. About twice as fast; the mean of the pixels then stands for the bicubic filter, so grey
            levels differ (docs/performance.md). Nothing changes for slices less than twice as large as ``size``, and
            for PNG.
    """
    files, told = in_order(slice_files(path))

    def read(indices: Sequence[int]) -> np.ndarray:
        planes, (height, width), told = _read([files[index] for index in indices], size, fast_decode)
        scan.shape = (len(files), height, width)
        scan.warnings += told
        return planes

    scan = OpenScan("slices", (len(files), 0, 0), None, read, decoder="Pillow", warnings=told, file_of=files)
    return scan  # which read fills in


SAID_OF = {
    "turned": "exif: {} slices were turned as their EXIF orientation says",
    "coloured": "colour: {} slices hold colour, such as marks or a screenshot",
    "transparent": "transparent: {} slices have transparent pixels, which are put on black",
}


class _Slice(NamedTuple):
    grey: np.ndarray  # [H, W] uint8
    shape: tuple[int, int]  # (height, width) in the file
    turned: bool
    coloured: bool
    transparent: bool
    levels: np.ndarray  # [256] pixels of each level, of some in the file


def _read(files: Sequence[Path], size: int | None, fast_decode: bool) -> tuple[np.ndarray, tuple[int, int], list[str]]:
    """[n, H, W] uint8, (height, width) of the first slice, warnings."""
    from PIL import Image

    Image.preinit()  # its registration of decoders is not made for several threads
    decode = partial(_decoded, size=size, fast_decode=fast_decode)
    threads = min(torch.get_num_threads(), len(files))
    if threads > 1:  # Pillow decodes and resizes outside of the interpreter's lock
        shares = [files[len(files) * k // threads : len(files) * (k + 1) // threads] for k in range(threads)]
        with ThreadPoolExecutor(threads) as pool:
            parts = pool.map(lambda share: [decode(file) for file in share], shares)
            slices = [each for part in parts for each in part]
    else:
        slices = [decode(file) for file in files]
    shapes = sorted({each.grey.shape for each in slices})
    if len(shapes) > 1:
        raise Refusal(f"slices differ in size {shapes}; give a size to resize them to")
    warnings = []
    sizes = {each.shape for each in slices}
    if len(sizes) > 1:
        warnings.append(f"mixed_sizes: slices have {len(sizes)} sizes and are resized to one")
    stretched = sum(max(each.shape) > MAX_ASPECT * min(each.shape) for each in slices)
    if stretched:
        warnings.append(f"not_square: {stretched} slices are not square and are stretched")
    for what, said in SAID_OF.items():
        if count := sum(getattr(each, what) for each in slices):
            warnings.append(said.format(count))
    warnings += check_levels(np.sum([each.levels for each in slices], axis=0))
    return np.stack([each.grey for each in slices]), slices[0].shape, warnings


def _decoded(file: Path, size: int | None, fast_decode: bool) -> _Slice:
    from PIL import Image, ImageOps

    try:
        with _opened(file) as image:
            if image.format not in FORMATS:
                raise Refusal(f"{file.name}: slices must be JPEG or PNG, its content is {image.format}")
            if (mode := _stored_mode(image)) not in EIGHT_BIT_MODES:
                raise Refusal(f"{file.name}: slices must be 8-bit images, got mode {mode}")
            width, height = image.size
            if fast_decode and size is not None:
                image.draft(None, (size, size))  # type: ignore[arg-type]  # None keeps the mode
            image.load()
            upright: Any = image
            orientation = image.getexif().get(EXIF_ORIENTATION, 1)
            turned = orientation not in (0, 1)
            if turned:
                upright = ImageOps.exif_transpose(image)
            coloured = _is_coloured(upright)
            grey = upright.convert("L")
            on_black = _on_black(upright) if upright.has_transparency_data else grey
            transparent = on_black is not grey and on_black.tobytes() != grey.tobytes()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Refusal(f"{file.name}: cannot be decoded ({error})") from error
    # Pillow's default filter (bicubic) on 8-bit grey, as the published loader has it, to the bit
    resized = on_black if size is None or grey.size == (size, size) else on_black.resize((size, size))
    shape = (width, height) if orientation in EXIF_ON_ITS_SIDE else (height, width)
    levels = np.bincount(np.asarray(on_black)[::4, ::4].ravel(), minlength=256)
    return _Slice(np.asarray(resized), shape, turned, coloured, transparent, levels)


def _opened(file: Path) -> Any:
    """A Pillow image; of a PNG, whose checksums Pillow passes over when it decodes, after a look at them."""
    from PIL import Image

    image = Image.open(file)
    if image.format != "PNG":
        return image
    with image:
        image.verify()
    return Image.open(file)


def _stored_mode(image: Any) -> str:
    """The mode of an opened image; that of the file's pixels where they have 16 bits, of which Pillow keeps 8."""
    stored = str(image.tile[0].args) if image.format == "PNG" and image.tile else ""
    return stored if ";16" in stored else image.mode


def _on_black(image: Any) -> Any:
    """Grey, where what is transparent shows black: the colour beneath is whatever a program left there."""
    from PIL import Image

    return Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA")).convert("L")


def _is_coloured(image: Any) -> bool:
    if image.mode not in ("RGB", "RGBA", "P", "CMYK", "YCbCr"):
        return False
    channels = np.asarray(image.convert("RGB"))[::4, ::4].astype(np.int16)
    spread = channels.max(axis=2) - channels.min(axis=2)
    return bool((spread > COLOUR_LEVELS).mean() > COLOUR_SHARE)
