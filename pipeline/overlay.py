"""What the network looked at in a new scan: a montage a scan, and the activation as NIfTI in the scan's own space.

Both are Grad-CAM of the predicted class (:mod:`.error_gallery` says what it is and is not): which region raised the
class's score, coarsely, not that the region is diseased. A map is the exact inverse of what preprocessing did to the
geometry (slices chosen, each resized, the middle cut out), so that it opens on the scan in any viewer.
"""

from __future__ import annotations

import bisect
import hashlib
import logging
import re
import unicodedata
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.transforms import CenterSpatialCrop
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from .cnn_rnn import slice_counts
from .ensemble import Ensemble
from .error_gallery import LAST_STAGE, class_activation, error_picture, explain_with_grad_cam
from .figures import new_figure
from .predictions import Answer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.figure import Figure
    from monai.visualize import GradCAM

logger = logging.getLogger(__name__)

NOTICE = "Research software, not for diagnosis"

# ---------------------------------------------------------------------------------------------------------------------
# names of files
# ---------------------------------------------------------------------------------------------------------------------
FORBIDDEN = re.compile(r'[\x00-\x1f\x7f-\x9f\ud800-\udfff<>:"|?*\\]')  # on some system; half pairs: in no Unicode name
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # no file names on Windows
OURS = (".png", ".nii.gz")  # a folder of such a name could stand where a file of ours must be
NAME_BYTES = 160  # of one part of a path; file systems take 255, and suffixes are added


class ScanPaths:
    """A relative path for each scan's files: like the scan's name, inside the folder, and no other scan's.

    A name that every file system takes stays as it is. Any other is mended and marked by a digest of the name, as is
    one that differs from an earlier one in upper and lower case alone.
    """

    def __init__(self) -> None:
        self._paths: dict[str, str] = {}
        self._taken: set[str] = set()

    def __call__(self, scan: str) -> str:
        """Path without suffix, parts separated by ``/``.

        Example:
            >>> paths = ScanPaths()
            >>> paths("a/b/0001"), paths("../x.nii.gz"), paths("study#2")
            ('a/b/0001', '_/x.nii.gz-77eff4a9', 'study#2')
        """
        if scan not in self._paths:
            parts = scan.split("/")
            path = "/".join([*map(_safe_folder, parts[:-1]), _safe_part(parts[-1])])
            digest = hashlib.sha256(scan.encode("utf-8", "surrogatepass")).hexdigest()
            if path != scan or _key(path) in self._taken:
                path += f"-{digest[:8]}"
            while _key(path) in self._taken:
                path += "-"
            self._taken.add(_key(path))
            self._paths[scan] = path
        return self._paths[scan]


def _key(path: str) -> str:
    """The same for two paths that some file system takes for one."""
    return unicodedata.normalize("NFKC", path).casefold()


def _safe_part(part: str) -> str:
    safe = FORBIDDEN.sub("_", part).strip(" .") or "_"
    safe = f"_{safe}" if DEVICES.fullmatch(safe) else safe
    return safe.encode()[:NAME_BYTES].decode(errors="ignore").rstrip(" .")


def _safe_folder(part: str) -> str:
    safe = _safe_part(part)
    return f"{safe}_" if safe.lower().endswith(OURS) else safe


# ---------------------------------------------------------------------------------------------------------------------
# the activation in the scan's own space
# ---------------------------------------------------------------------------------------------------------------------
LEVELS = 255  # of a map's uint8
# 1 / 255, rounded down: no value reads back above 1
SLOPE = float(np.nextafter(np.float32(1 / LEVELS), np.float32(0)))
DESCRIPTION_BYTES = 79  # of NIfTI's descrip, and a zero


def map_to_scan(
    activation: NDArray[np.floating], indices: Sequence[int], shape: Sequence[int], image_size: int, crop_size: int
) -> NDArray[np.uint8]:
    """An activation on the network's volume, on the grid of the whole scan.

    Each slice is put back where the central crop cut it out (0 around it), resized to the scan's rows and columns
    (linearly; filtered where that is a reduction, so that no voxel of the network's is passed over), and between the
    slices that the network saw there is linear interpolation. Slices that became several of the network's, as those of
    a short scan do, take the mean of these. Slices outside the range that the network saw (the trimmed ends) are 0: it
    had no part in them, which says nothing of what is there.

    Needs memory for the result and a few slices.

    Args:
        activation: [D', h, w] in [0, 1], the network's volume: w = h = the smaller of ``crop_size`` and
            ``image_size``.
        indices: D' slices of the scan that became the network's, in [0, D).
        shape: (D, H, W) of the scan.
        image_size: rows and columns to which slices were resized.
        crop_size: rows and columns of the central crop.

    Returns:
        [D, H, W] in 0 to 255, 255 = 1.

    Raises:
        ValueError: the arguments do not fit each other.
    """
    depth, height, width = (int(size) for size in shape)
    rows, columns = CenterSpatialCrop((crop_size, crop_size)).compute_slices((image_size, image_size))
    expected = (len(indices), rows.stop - rows.start, columns.stop - columns.start)
    if activation.shape != expected or not len(indices):
        raise ValueError(f"activation has the shape {activation.shape}, which must be {expected}")
    if not 0 <= min(indices) <= max(indices) < depth:
        raise ValueError(f"indices must be in [0, {depth}), got {min(indices)} to {max(indices)}")
    seen, source = np.unique(np.asarray(indices), return_inverse=True)

    def in_scan(number: int) -> NDArray[np.float32]:
        frame = torch.zeros(1, 1, image_size, image_size)
        frame[0, 0, rows, columns] = torch.from_numpy(activation[source == number].mean(axis=0, dtype=np.float32))
        return functional.interpolate(frame, (height, width), mode="bilinear", antialias=True)[0, 0].numpy() * LEVELS

    result = np.zeros((depth, height, width), dtype=np.uint8)
    below = in_scan(0)
    result[seen[0]] = np.rint(below)
    for number, (first, last) in enumerate(pairwise(seen.tolist()), start=1):
        above = in_scan(number)
        for index in range(first + 1, last + 1):
            result[index] = np.rint(below + (above - below) * np.float32((index - first) / (last - first)))
        below = above
    return result


def write_map(
    path: str | Path, volume: NDArray[np.uint8], affine: Sequence[Sequence[float]] | None, description: str
) -> None:
    """Write a map as NIfTI whose values read back in [0, 1].

    The affine is the sform; the qform says the same, and is left out where it cannot (a sheared grid, such as that of
    a tilted gantry): readers that know only orthogonal axes then refuse the file instead of showing it shifted.

    Without an affine (slice folders) the voxels are units, sform and qform have code 0 (no orientation is known), and
    the description says so. The axes are then as in the pictures: to the right, down, and in order of file names.

    Args:
        path: ending in .nii or .nii.gz.
        volume: [D, H, W], 255 = 1.
        affine: 4 x 4, voxel (x, y, z) = index (W, H, D) to RAS mm, or None.
        description: for the header, cut to what fits in there (79 bytes of ASCII).
    """
    import nibabel

    voxels = volume.transpose(2, 1, 0)
    image = nibabel.Nifti1Image(voxels, None if affine is None else np.asarray(affine, dtype=float))
    header = image.header
    header.set_slope_inter(SLOPE, 0)  # set, it also stops nibabel from choosing another
    header.set_xyzt_units("mm" if affine is not None else "unknown")
    header["cal_min"], header["cal_max"] = 0, 1  # the range in which a viewer shows it
    if affine is None:
        description = f"no geometry; {description}"
    else:
        image.set_sform(affine, "scanner")
        image.set_qform(affine, "scanner")
        corner = (*voxels.shape, 1)
        if np.abs((header.get_qform() - np.asarray(affine)) @ corner).max() > min(header.get_zooms()) / 10:
            image.set_qform(None, "unknown")
    header["descrip"] = description.encode("ascii", "replace")[:DESCRIPTION_BYTES]
    nibabel.save(image, str(path))


# ---------------------------------------------------------------------------------------------------------------------
# the montage
# ---------------------------------------------------------------------------------------------------------------------
SLICES = 8
COLUMNS = 2  # of pairs: a slice, and the same under the activation
DPI = 100
MARGIN = 16  # pixels, as are all lengths below
SPACE = 8  # between pairs
SIDE = 440  # width of the column of text
MAX_BARS = 12
BAR = 9
MAX_TEXT = 400  # characters of a warning or name that are shown
MAX_WARNINGS = 12
GREY, BLUE, ORANGE = "#555555", "#0072B2", "#D55E00"


def montage_figure(
    pixels: NDArray[np.floating], activation: NDArray[np.floating], answer: Answer, title: str
) -> Figure:
    """Slices spread evenly over a scan, each also under the activation, with the answer and the scan's warnings.

    Slices are those that the network saw, their pixels untouched (:func:`~.error_gallery.error_picture`), each slice
    of the scan at most once.

    Args:
        pixels: [D', h, w] in [0, 1], the network's volume without padding.
        activation: [D', h, w] in [0, 1].
        answer: what is said of the scan, with its intake record.
        title: above all, such as the scan's name.

    Returns:
        Figure of :data:`DPI`, 1400 by 1000 pixels for slices of 224; higher where there is much to say.
    """
    with warnings.catch_warnings():  # a name in letters that the font lacks is shown as boxes
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        return _montage_figure(pixels, activation, answer, title)


def _montage_figure(
    pixels: NDArray[np.floating], activation: NDArray[np.floating], answer: Answer, title: str
) -> Figure:
    intake = answer.intake
    distinct, first = np.unique(intake["indices"], return_index=True)
    count = min(SLICES, len(distinct))
    chosen = ((np.arange(count) + 0.5) * len(distinct) / count).astype(int)
    pairs = [np.asarray(error_picture(pixels[k], activation[k])) for k in first[chosen]]
    height, width = pairs[0].shape[:2]
    rows = -(-SLICES // COLUMNS)  # of a short scan too: the text beside them has the same room
    grid = (COLUMNS * width + (COLUMNS - 1) * SPACE, rows * height + (rows - 1) * SPACE)

    total_width = 3 * MARGIN + grid[0] + SIDE
    measure = _measure()
    lines = _wrapped(title, 13, total_width - 2 * MARGIN, measure, bold=True)
    head: list[_Item] = [*(_Text(line, 13, bold=True) for line in lines)]
    head += [_Text(NOTICE, 10, bold=True, colour=ORANGE), _Gap(6)]
    side = _answered(answer, measure)
    peak = np.unravel_index(activation.argmax(), activation.shape)[0] if activation.max() > 0 else None
    side += _reading(answer, None if peak is None else int(intake["indices"][peak]), measure)
    top = MARGIN + sum(item.height for item in head)
    total_height = top + max(grid[1], sum(item.height for item in side)) + MARGIN

    figure = new_figure(total_width / DPI, total_height / DPI)
    figure.set_layout_engine("none")
    figure.set_dpi(DPI)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, total_width), ylim=(total_height, 0))  # one unit is one pixel
    axes.set_axis_off()
    axes.set_zorder(1)  # above the pictures
    _draw_column(axes, head, MARGIN, MARGIN)
    _draw_column(axes, side, 2 * MARGIN + grid[0], top)
    sides = intake["affine"] is not None
    for number, (pair, index) in enumerate(zip(pairs, distinct[chosen], strict=True)):
        x = MARGIN + number % COLUMNS * (width + SPACE)
        y = top + number // COLUMNS * (height + SPACE)
        figure.figimage(pair, x, total_height - y - height, origin="upper")
        _on_picture(axes, x + 4, y + 4, f"slice {index + 1}", ha="left", va="top")
        if sides and not number:
            _on_picture(axes, x + 4, y + height / 2, "R", ha="left", va="center")
    return figure


@dataclass(frozen=True)
class _Text:
    """One line."""

    text: str
    size: float = 9
    bold: bool = False
    colour: str = "black"

    @property
    def height(self) -> int:
        return round(1.75 * self.size)

    def draw(self, axes: Axes, x: int, y: int) -> None:
        _text(axes, x, y, self)


@dataclass(frozen=True)
class _Gap:
    height: int

    def draw(self, axes: Axes, x: int, y: int) -> None:
        pass


@dataclass(frozen=True)
class _Bar:
    """A class: its name, its probability, and the members' standard deviation as a whisker."""

    name: str
    probability: float
    spread: float | None
    predicted: bool
    height: int = 32

    @property
    def number(self) -> str:
        return f"{self.probability:.3f}" + ("" if self.spread is None else f" \u00b1 {self.spread:.3f}")

    def draw(self, axes: Axes, x: int, y: int) -> None:
        from matplotlib.patches import Rectangle

        _text(axes, x, y, _Text(self.name, bold=self.predicted))
        _text(axes, x + SIDE, y, _Text(self.number, bold=self.predicted), ha="right")
        top = y + 17
        axes.add_patch(Rectangle((x, top), SIDE, BAR, facecolor="#EEEEEE", linewidth=0))
        colour = BLUE if self.predicted else "#999999"
        axes.add_patch(Rectangle((x, top), SIDE * self.probability, BAR, facecolor=colour, linewidth=0))
        if self.spread is not None:
            ends = np.clip([self.probability - self.spread, self.probability + self.spread], 0, 1)
            middle = np.full(2, top + BAR / 2)
            axes.plot(x + SIDE * ends, middle, color="black", linewidth=1.2, marker="|", markersize=8)


@dataclass(frozen=True)
class _Scale:
    """The colours of the activation."""

    height: int = 36

    def draw(self, axes: Axes, x: int, y: int) -> None:
        from matplotlib import colormaps

        colours = np.repeat(colormaps["inferno"](np.linspace(0, 1, SIDE))[None], 12, axis=0)
        figure = axes.get_figure(root=True)
        assert figure is not None
        figure.figimage(colours, x, round(axes.get_ylim()[0]) - y - len(colours), origin="upper")
        for share, align in ((0, "left"), (0.5, "center"), (1, "right")):
            _text(axes, x + SIDE * share, y + 14, _Text(f"{share:g}", 8), ha=align)


_Item = _Text | _Gap | _Bar | _Scale
_Measure = Callable[[str, float, bool], float]


def _answered(answer: Answer, measure: _Measure) -> list[_Item]:
    head = f"Predicted: {answer.prediction}"
    items: list[_Item] = [_Text(line, 12, bold=True) for line in _wrapped(head, 12, SIDE, measure, bold=True)]
    kind = "Probability" if answer.uncorrected is None else "Corrected probability"
    if answer.agreement is not None:
        kind += f" \u00b1 standard deviation of the members; {100 * answer.agreement:.0f} % agree"
    items += [*(_Text(line, colour=GREY) for line in _wrapped(kind, 9, SIDE, measure)), _Gap(6)]
    shown = sorted(answer.probabilities, key=lambda name: -answer.probabilities[name])[:MAX_BARS]
    for name, probability in answer.probabilities.items():
        if name in shown:
            predicted, spread = name == answer.prediction, answer.spread[name] if answer.spread else None
            bar = _Bar("", probability, spread, predicted)
            room = SIDE - 12 - measure(bar.number, 9, predicted)
            items.append(replace(bar, name=_cut(name, 9, room, measure, predicted)))
    if left := [p for name, p in answer.probabilities.items() if name not in shown]:
        items.append(_Text(f"{len(left)} more classes, together {sum(left):.3f}", colour=GREY))
    return [*items, _Gap(10)]


def _reading(answer: Answer, peak: int | None, measure: _Measure) -> list[_Item]:
    """What the colours mean, how to read the slices, what the scan is, and what is doubtful about it."""
    intake, said = answer.intake, answer.warnings

    def text(said: str, **style: Any) -> list[_Item]:
        return [_Text(line, **style) for line in _wrapped(said, 9, SIDE, measure)]

    items: list[_Item] = [_Text("What raised the class's score (Grad-CAM)", 9, bold=True), _Gap(2), _Scale()]
    where = "Nothing in the scan raised it: there is no overlay."
    if peak is not None:
        where = f"Share of its maximum, which is in slice {peak + 1}. Coarse: a region that mattered, not a lesion."
    items += text(where, colour=GREY)
    if intake["affine"] is None:
        order = "Slices count from 1 in the order of the files. Their orientation is not known."
    else:
        order = "Slices count from 1 at the feet. R: the patient's right."
    items += [*text(order, colour=GREY), _Gap(10), _Text("Scan", bold=True), *text(scan_facts(intake)), _Gap(10)]
    items.append(_Text(f"Quality warnings: {len(said) or 'none'}", bold=True, colour=ORANGE if said else "black"))
    for warning in said[:MAX_WARNINGS]:
        items += [*text(f"\u25b2 {warning}"), _Gap(3)]
    if len(said) > MAX_WARNINGS:
        items += text(f"and {len(said) - MAX_WARNINGS} more: see the table of predictions", colour=GREY)
    return items


def scan_facts(intake: Mapping[str, Any]) -> str:
    """Kind, slices and voxel size in words: ``dicom, 64 of 80 slices, 1.25 x 0.7 x 0.7 mm``; what is unknown is out."""
    facts = [str(intake["kind"])] if intake.get("kind") else []
    used, found = intake.get("slices_used"), intake.get("slices_found")
    if used is not None and found is not None:
        facts.append(f"{used} of {found} slices")
    if intake.get("spacing"):
        facts.append(f"{spacing_text(intake['spacing'])} mm")
    return ", ".join(facts)


def spacing_text(spacing: Sequence[float]) -> str:
    """Millimetres along D, H and W: ``1.25 x 0.703 x 0.703``."""
    return " x ".join(f"{length:.3g}" for length in spacing)


def _draw_column(axes: Axes, items: Sequence[_Item], x: int, y: int) -> None:
    for item in items:
        item.draw(axes, x, y)
        y += item.height


def _text(axes: Axes, x: float, y: float, line: _Text, ha: str = "left") -> None:
    axes.text(x, y, line.text, fontsize=line.size, fontweight="bold" if line.bold else "normal", color=line.colour,
              ha=ha, va="top", parse_math=False)  # fmt: skip


def _on_picture(axes: Axes, x: float, y: float, said: str, ha: str, va: str) -> None:
    box = {"facecolor": "black", "edgecolor": "none", "alpha": 0.6, "pad": 1.5}
    axes.text(x, y, said, fontsize=8, color="white", ha=ha, va=va, bbox=box)


def _measure() -> _Measure:
    """Pixels that a text is wide at a font size."""
    from matplotlib.font_manager import FontProperties

    renderer: RendererAgg = new_figure(1, 1).canvas.get_renderer()  # type: ignore[attr-defined]
    renderer.dpi = DPI
    fonts: dict[tuple[float, bool], FontProperties] = {}

    def measure(text: str, size: float, bold: bool) -> float:
        font = fonts.setdefault((size, bold), FontProperties(size=size, weight="bold" if bold else "normal"))
        return renderer.get_text_width_height_descent(text, font, ismath=False)[0]

    return measure


def _printable(text: str) -> str:
    text = text.encode("utf-8", "backslashreplace").decode()
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split()) or "-"


def _cut(text: str, size: float, width: float, measure: _Measure, bold: bool) -> str:
    """One line that is no wider than ``width`` pixels, its end left out where it must."""
    text = _printable(text)[:MAX_TEXT]
    if measure(text, size, bold) <= width:
        return text
    return f"{text[: _fitting(text, width - measure('...', size, bold), measure, size, bold)]}..."


def _fitting(text: str, width: float, measure: _Measure, size: float, bold: bool) -> int:
    """How many of a text's signs are no wider than ``width`` pixels, at least one."""
    return max(1, bisect.bisect_right(range(1, len(text) + 1), width, key=lambda n: measure(text[:n], size, bold)))


def _wrapped(text: str, size: float, width: float, measure: _Measure, bold: bool = False) -> list[str]:
    """Lines no wider than ``width`` pixels, broken at spaces, or after ``/``, ``_`` or ``-``, where there are any."""
    text = _printable(text)
    if len(text) > MAX_TEXT:
        text = f"{text[: MAX_TEXT * 2 // 3]} ... {text[-MAX_TEXT // 3 :]}"
    lines = [""]
    for piece in re.findall(r"[^\s/_-]*[\s/_-]?", text):
        if lines[-1] and measure((lines[-1] + piece).rstrip(), size, bold) > width:
            lines.append("")
        while lines[-1] == "" and measure(piece.rstrip(), size, bold) > width:  # wider than a line: broken anywhere
            count = _fitting(piece, width, measure, size, bold)
            lines[-1:] = [piece[:count], ""]
            piece = piece[count:]
        lines[-1] += piece
    return [line.rstrip() for line in lines]


# ---------------------------------------------------------------------------------------------------------------------
# the handler
# ---------------------------------------------------------------------------------------------------------------------
class OverlayWriter:
    """Explains each answered scan of an inference: ``<folder>/<scan>.png`` and ``<folder>/<scan>_map.nii.gz``.

    Grad-CAM of the predicted class. Of an ensemble, the members' activations are averaged, each as a share of its own
    maximum, and the mean again is taken as a share of its maximum; so are those of the mirrored volumes.

    Attach it after :class:`~.predictions.PredictionWriter`, whose answers it shows, and after what loads the
    checkpoint. A picture or map that cannot be made is a warning that names the scan; those of an earlier run are
    removed, so that none is mistaken for this one's.

    The networks are copied to be explained; the copies live from the first answered scan to the end of the epoch.

    Args:
        folder: where to write; folders in it follow the scans' names (:class:`ScanPaths`).
        network: classifier of [N, 1, D, H, W], an :class:`~.ensemble.Ensemble`, or a sequence of classifiers.
        class_names: C names.
        image_size: rows and columns to which slices are resized.
        crop_size: rows and columns of the central crop.
        target_layer: module whose output the overlay explains; None takes the one that the network names
            (``explained_layer``), or the last stage of R3D18Classifier.
        maps: whether to write the NIfTI maps too.
        mirror: whether mirrored volumes (left and right exchanged) took part in the answer.
        named: whether a montage shows the scan's name; a picture that leaves the project may have to do without.

    Raises:
        ValueError: a size is not positive, there is no network, or a network has no module ``target_layer``.
    """

    def __init__(
        self,
        folder: str | Path,
        network: nn.Module | Sequence[nn.Module],
        class_names: Sequence[str],
        image_size: int,
        crop_size: int,
        target_layer: str | None = None,
        maps: bool = True,
        mirror: bool = False,
        named: bool = True,
    ) -> None:
        for name, size in (("image_size", image_size), ("crop_size", crop_size)):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {size!r}")
        if isinstance(network, Ensemble):
            network = network.networks
        self.networks = list(network) if isinstance(network, (Sequence, nn.ModuleList)) else [network]
        if not self.networks:
            raise ValueError("network must be at least one, got none")
        self.target_layers = [target_layer or str(getattr(n, "explained_layer", LAST_STAGE)) for n in self.networks]
        for member, layer in zip(self.networks, self.target_layers, strict=True):
            if layer not in dict(member.named_modules()):
                raise ValueError(f"target_layer: the network has no module {layer!r}")
        self.folder = Path(folder)
        self.class_names = tuple(class_names)
        self.image_size, self.crop_size = image_size, crop_size
        self.maps, self.mirror, self.named = maps, mirror, named
        self._name = ScanPaths()
        self._explained: list[GradCAM] = []
        self._montages: dict[str, Path] = {}
        self._maps: dict[str, Path] = {}

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._explain)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._release)

    def montage_path(self, scan: str) -> Path | None:
        """The montage of a scan; None where none was written."""
        return self._montages.get(scan)

    def map_path(self, scan: str) -> Path | None:
        """The map of a scan; None where none was written."""
        return self._maps.get(scan)

    def _start(self, engine: Engine) -> None:
        self._name = ScanPaths()
        self._montages.clear()
        self._maps.clear()

    def _release(self, engine: Engine) -> None:
        self._explained.clear()

    def _explain(self, engine: Engine) -> None:
        batch, answers = engine.state.batch, getattr(engine.state, "answers", [])
        if [answer.scan for answer in answers] != list(batch["scan"]):
            raise RuntimeError("OverlayWriter must be attached after the PredictionWriter, whose answers it shows")
        for answer, image in zip(answers, batch["image"], strict=True):
            path = self.folder / self._name(answer.scan)
            montage, map_ = path.with_name(f"{path.name}.png"), path.with_name(f"{path.name}_map.nii.gz")
            try:
                montage.unlink(missing_ok=True)
                map_.unlink(missing_ok=True)
                if answer.status == "ok":
                    self._write(answer, image, montage, map_)
            except Exception as error:  # the answer must not be lost by its picture: memory, a full disk, odd input
                what = "map" if answer.scan in self._montages else "overlay"
                logger.warning("%s: no %s: %s: %s", answer.scan, what, type(error).__name__, error)

    def _write(self, answer: Answer, image: Tensor, montage: Path, map_: Path) -> None:
        intake = answer.intake
        depth = slice_counts(image[None])[0]
        if depth != len(intake["indices"]):
            raise ValueError(f"{len(intake['indices'])} indices of a volume of {depth} slices")
        assert answer.prediction is not None
        activation = self._activation(image, self.class_names.index(answer.prediction), depth)
        title = answer.scan if self.named else "Chest CT"
        figure = montage_figure(image[0, :depth].cpu().numpy(), activation, answer, title)
        montage.parent.mkdir(parents=True, exist_ok=True)
        _replaced(montage, lambda part: _save(figure, part))
        self._montages[answer.scan] = montage
        if not self.maps:
            return
        if intake["shape"] is None:
            raise ValueError("the scan's shape is not known")
        volume = map_to_scan(activation, intake["indices"], intake["shape"], self.image_size, self.crop_size)
        description = f"Grad-CAM of {answer.prediction}, share of maximum; not for diagnosis"
        _replaced(map_, lambda part: write_map(part, volume, intake["affine"], description))
        self._maps[answer.scan] = map_

    def _activation(self, image: Tensor, class_index: int, depth: int) -> NDArray[np.float32]:
        """[depth, H, W] in [0, 1], without padding: the mean over the members, and over both ways round."""
        if not self._explained:  # not before the first scan: the weights are loaded when the run starts
            self._explained = [
                explain_with_grad_cam(member, layer)
                for member, layer in zip(self.networks, self.target_layers, strict=True)
            ]
        activations = []
        for member in self._explained:
            activations.append(_share(class_activation(member, image, class_index)[:depth]))
            if self.mirror:
                activations.append(_share(class_activation(member, image.flip(-1), class_index)[:depth, :, ::-1]))
        return _share(np.mean(activations, axis=0))


def _share(activation: NDArray[np.float32]) -> NDArray[np.float32]:
    """As a share of its maximum, which may have been in the padding."""
    peak = activation.max()
    return activation / peak if peak > 0 else activation


def _save(figure: Figure, path: Path) -> None:
    with warnings.catch_warnings():  # see montage_figure
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(path, dpi=DPI, metadata={"Software": None})


def _replaced(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file that is there as a whole or not at all."""
    part = path.with_name(f".{path.name}")  # keeps the suffix, which says the format
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
