"""What all figures share: colours, hatches, headings, widths."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINE = 0.17  # inches of a line of text
GREY = "#555555"

# Okabe and Ito's colours, told apart with every common colour blindness; black is left out (the counts are black).
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "ooo", "+++")
NAME_WIDTH = 12  # characters of a class name on one line
CHARACTER = 0.085  # inches of one character at the font size of the tick labels, rounded up


def new_figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def set_heading(figure: Figure, text: str) -> None:
    columns = int(figure.get_figwidth() / (1.3 * CHARACTER))  # headings are bold and larger than tick labels
    figure.suptitle(textwrap.fill(text, columns), fontsize=11, fontweight="bold")


def wrapped(name: str) -> str:
    """A name on lines of at most NAME_WIDTH characters, broken after ``_``, ``-``, ``/`` or a space if it has them."""
    lines = [""]
    for piece in filter(None, re.findall(r"[^_\-/ ]*[_\-/ ]?", name)):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > NAME_WIDTH:
            lines.append("")
        lines[-1] += piece
    # A word of one or two letters more is left whole: better a slightly wider label than "adenocarcinom-a".
    return plain("\n".join(part for line in lines for part in textwrap.wrap(line, NAME_WIDTH + 3) or [""]))


def plain(text: str) -> str:
    """``text`` with dollar signs kept from starting mathematics."""
    return text.replace("$", r"\$")


def label_width(names: Sequence[str]) -> float:
    """Inches that the widest wrapped name needs."""
    return max(len(line) for name in names for line in wrapped(name).split("\n")) * CHARACTER
