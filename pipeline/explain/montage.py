"""The montage of a scan: its slices, the answer, and where the network looked."""

from __future__ import annotations

import bisect
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..common.plotting import new_figure
from ..data.intake_records import scan_facts
from ..inference.answers import Answer
from .grad_cam import error_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.figure import Figure

NOTICE = "Research software, not for diagnosis"
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
_Measure = Callable[[str, float, bool], float]


@contextmanager
def _boxes_for_strange_letters() -> Iterator[None]:
    """No warning where a name has letters that the font lacks: they are shown as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        yield


@_boxes_for_strange_letters()
def montage_figure(
    pixels: NDArray[np.floating], activation: NDArray[np.floating], answer: Answer, title: str
) -> Figure:
    """Slices spread evenly over a scan, each also under the activation, with the answer and the scan's warnings.

    ``pixels`` [D', h, w] in [0, 1] are the network's volume without padding, ``activation`` likewise. Each slice is
    shown at most once, its pixels untouched (:func:`~.error_picture`). The figure, of :data:`DPI`, has 1400 by 1000
    pixels for slices of 224, and is higher where there is much to say.
    """
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
    head = [_line(line, 13, bold=True) for line in _wrapped(title, 13, total_width - 2 * MARGIN, measure, bold=True)]
    head += [_line(NOTICE, 10, bold=True, colour=ORANGE), _gap(6)]
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
    for items, x, y in ((head, MARGIN, MARGIN), (side, 2 * MARGIN + grid[0], top)):
        for item in items:
            item.draw(axes, x, y)
            y += item.height
    for number, (pair, index) in enumerate(zip(pairs, distinct[chosen], strict=True)):
        x = MARGIN + number % COLUMNS * (width + SPACE)
        y = top + number // COLUMNS * (height + SPACE)
        figure.figimage(pair, x, total_height - y - height, origin="upper")
        _on_picture(axes, x + 4, y + 4, f"slice {index + 1}", ha="left", va="top")
        if intake["affine"] is not None and not number:
            _on_picture(axes, x + 4, y + height / 2, "R", ha="left", va="center")
    return figure


class _Item(NamedTuple):
    """A part of a column: its height in pixels, and what draws it with its upper left corner at x, y."""

    height: int
    draw: Callable[[Axes, int, int], object]


def _line(text: str, size: float = 9, **style: Any) -> _Item:
    return _Item(round(1.75 * size), partial(_text, text=text, size=size, **style))


def _gap(height: int) -> _Item:
    return _Item(height, lambda axes, x, y: None)


def _bar(name: str, number: str, probability: float, spread: float | None, predicted: bool) -> _Item:
    """A class: its name, its probability, and the members' standard deviation as a whisker."""

    def draw(axes: Axes, x: int, y: int) -> None:
        from matplotlib.patches import Rectangle

        _text(axes, x, y, name, bold=predicted)
        _text(axes, x + SIDE, y, number, bold=predicted, ha="right")
        colour = BLUE if predicted else "#999999"
        for width, face in ((SIDE, "#EEEEEE"), (SIDE * probability, colour)):
            axes.add_patch(Rectangle((x, y + 17), width, BAR, facecolor=face, linewidth=0))
        if spread is not None:
            ends = np.clip([probability - spread, probability + spread], 0, 1)
            middle = np.full(2, y + 17 + BAR / 2)
            axes.plot(x + SIDE * ends, middle, color="black", linewidth=1.2, marker="|", markersize=8)

    return _Item(32, draw)


def _scale(axes: Axes, x: int, y: int) -> None:
    """The colours of the activation."""
    from matplotlib import colormaps

    colours = np.repeat(colormaps["inferno"](np.linspace(0, 1, SIDE))[None], 12, axis=0)
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.figimage(colours, x, round(axes.get_ylim()[0]) - y - len(colours), origin="upper")
    for share, align in ((0, "left"), (0.5, "center"), (1, "right")):
        _text(axes, x + SIDE * share, y + 14, f"{share:g}", 8, ha=align)


def _answered(answer: Answer, measure: _Measure) -> list[_Item]:
    head = f"Predicted: {answer.prediction}"
    items = [_line(line, 12, bold=True) for line in _wrapped(head, 12, SIDE, measure, bold=True)]
    kind = "Probability" if answer.uncorrected is None else "Corrected probability"
    if answer.agreement is not None:
        kind += f" \u00b1 standard deviation of the members; {100 * answer.agreement:.0f} % agree"
    items += [*(_line(line, colour=GREY) for line in _wrapped(kind, 9, SIDE, measure)), _gap(6)]
    shown = sorted(answer.probabilities, key=lambda name: -answer.probabilities[name])[:MAX_BARS]
    for name, probability in answer.probabilities.items():
        if name in shown:
            predicted, spread = name == answer.prediction, answer.spread[name] if answer.spread else None
            number = f"{probability:.3f}" + ("" if spread is None else f" \u00b1 {spread:.3f}")
            shortened = _cut(name, 9, SIDE - 12 - measure(number, 9, predicted), measure, predicted)
            items.append(_bar(shortened, number, probability, spread, predicted))
    if left := [p for name, p in answer.probabilities.items() if name not in shown]:
        items.append(_line(f"{len(left)} more classes, together {sum(left):.3f}", colour=GREY))
    return [*items, _gap(10)]


def _reading(answer: Answer, peak: int | None, measure: _Measure) -> list[_Item]:
    """What the colours mean, how to read the slices, what the scan is, and what is doubtful about it."""
    intake, said = answer.intake, answer.warnings

    def text(said: str, **style: Any) -> list[_Item]:
        return [_line(line, **style) for line in _wrapped(said, 9, SIDE, measure)]

    items = [_line("What raised the class's score (Grad-CAM)", 9, bold=True), _gap(2), _Item(36, _scale)]
    where = "Nothing in the scan raised it: there is no overlay."
    if peak is not None:
        where = f"Share of its maximum, which is in slice {peak + 1}. Coarse: a region that mattered, not a lesion."
    items += text(where, colour=GREY)
    order = "Slices count from 1 at the feet. R: the patient's right."
    if intake["affine"] is None:
        order = "Slices count from 1 in the order of the files. Their orientation is not known."
    items += [*text(order, colour=GREY), _gap(10), _line("Scan", bold=True), *text(scan_facts(intake)), _gap(10)]
    items.append(_line(f"Quality warnings: {len(said) or 'none'}", bold=True, colour=ORANGE if said else "black"))
    for warning in said[:MAX_WARNINGS]:
        items += [*text(f"\u25b2 {warning}"), _gap(3)]
    if len(said) > MAX_WARNINGS:
        items += text(f"and {len(said) - MAX_WARNINGS} more: see the table of predictions", colour=GREY)
    return items


def _text(
    axes: Axes, x: float, y: float, text: str, size: float = 9, bold: bool = False, colour: str = "black",
    ha: str = "left",
) -> None:  # fmt: skip
    weight = "bold" if bold else "normal"
    axes.text(x, y, text, fontsize=size, fontweight=weight, color=colour, ha=ha, va="top", parse_math=False)


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


@_boxes_for_strange_letters()
def save_montage(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
