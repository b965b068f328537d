"""The figures of a run: who is in the cohort, and what is mistaken for what in each group.

Matplotlib is imported when a figure is made, and without pyplot: no window, no state that outlives the figure.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..common.names import UNKNOWN
from ..common.plotting import CHARACTER, HATCHES, PALETTE, label_width, new_figure, plain, set_heading, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

SPLIT_TITLES = {"train": "Training", "val": "Validation", "test": "Test", "all": "All scans"}
DARK = 0.55  # row share from which a count is written in white


def cohort_chart(cells: pd.DataFrame, path: str | os.PathLike[str] | None = None, *, synthetic: bool = False) -> Figure:
    """Scans of each class and group as grouped bars, a panel for each split (the paper's Fig. 1, training first).

    Args:
        cells: columns ``split``, ``label``, ``group``, ``n`` of ``Cohort.cells()``; a combination not listed counts 0.
        path: where to save the figure as well; the suffix chooses the format.
        synthetic: say in the heading that the scans are phantoms.

    ValueError: a column is missing, there is no row, or a count is negative.
    """
    if missing := [name for name in ("split", "label", "group", "n") if name not in cells]:
        raise ValueError(f"cells: no column {', '.join(missing)}; it has {', '.join(map(str, cells.columns))}")
    if cells.empty:
        raise ValueError("cells: no row")
    if (cells["n"] < 0).any():
        raise ValueError(f"cells: n must not be negative, got {cells['n'].min()}")
    from matplotlib.patches import Patch

    labels, groups = list(dict.fromkeys(cells["label"])), list(dict.fromkeys(cells["group"]))
    present = list(dict.fromkeys(cells["split"]))
    splits = sorted(present, key=[*SPLIT_TITLES, *present].index)
    counts = cells.groupby(["split", "label", "group"])["n"].sum()
    class_width = max(label_width(labels), len(groups) * (len(str(cells["n"].max())) + 1) * CHARACTER) + 0.15
    panel_width = max(len(labels) * class_width, 2.0) + 0.6
    figure = new_figure(panel_width * len(splits), 3.9)
    styles = {group: _bar_style(group, index) for index, group in enumerate(groups)}
    for ax, split in zip(figure.subplots(1, len(splits), squeeze=False)[0], splits, strict=True):
        _draw_bars(ax, [[int(counts.get((split, label, group), 0)) for label in labels] for group in groups], styles)
        ax.set_xticks(range(len(labels)), [wrapped(label) for label in labels], fontsize=9)
        ax.set_xlim(-0.55, len(labels) - 0.45)
        ax.set_title(f"{plain(SPLIT_TITLES.get(split, split))} (n = {int(counts[split].sum())})", fontsize=10)
    set_heading(figure, f"{'SYNTHETIC scans' if synthetic else 'Scans'} by class and group (n = {int(counts.sum())})")
    handles = [Patch(edgecolor="black", linewidth=0.6, **style) for style in styles.values()]
    columns = min(len(groups), max(1, int(figure.get_figwidth() / (label_width(groups) + 0.7))))
    names = [wrapped(group) for group in groups]
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _draw_bars(ax: Axes, heights: Sequence[Sequence[int]], styles: Mapping[str, Mapping[str, Any]]) -> None:
    """The bars of one panel: heights [G, C], a style for each group."""
    width = 0.84 / len(heights)
    for index, (row, style) in enumerate(zip(heights, styles.values(), strict=True)):
        places = np.arange(len(row)) + (index - (len(heights) - 1) / 2) * width
        ax.bar_label(ax.bar(places, row, width, edgecolor="black", linewidth=0.6, **style), fontsize=8, padding=1)
    ax.locator_params(axis="y", integer=True)
    ax.set_ylim(0, 1.18 * max(1, *map(max, heights)))  # the count of the tallest bar stays inside the axes
    ax.tick_params(axis="x", length=0)
    ax.tick_params(axis="y", labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_ylabel("scans", fontsize=9)


def confusion_figure(
    confusion: np.ndarray, class_names: Sequence[str], group_names: Sequence[str], *, synthetic: bool = False
) -> Figure:
    """Confusion matrices of the groups side by side: counts, and in colour the share of the row (of the true class).

    The row of a class without a scan in the group is hatched: it has no share.

    Args:
        confusion: [G, C, C] counts, rows true, columns predicted; or [G + 1, C, C], whose last matrix (unknown group)
            is shown when it counts any scan.
        synthetic: say in the heading that the scans are phantoms.

    ValueError: the shape does not fit the names, or a value is not a count.
    """
    counts = np.asarray(confusion)
    classes, groups = len(class_names), list(group_names)
    shapes = [(len(groups) + extra, classes, classes) for extra in (0, 1)]
    if counts.shape not in shapes or not classes or not groups:
        expected = f"{list(shapes[0])} or {list(shapes[1])} for {len(groups)} groups and {classes} classes"
        raise ValueError(f"confusion: shape {list(counts.shape)}, expected {expected}")
    if not np.isfinite(counts).all() or (counts < 0).any() or (counts != np.floor(counts)).any():
        raise ValueError("confusion: every value must be a whole number, 0 or more")
    counts = counts.astype(np.int64)
    if len(counts) > len(groups):
        groups, counts = (groups, counts[:-1]) if not counts[-1].any() else ([*groups, UNKNOWN], counts)
    cell = max(label_width(class_names), (len(str(counts.max())) + 1) * CHARACTER, 0.55)
    side = max(cell * classes, 1.6)
    names = [wrapped(name) for name in class_names]
    label_height = 0.18 * max(name.count("\n") + 1 for name in names)
    title_height = 0.2 * max(wrapped(group).count("\n") + 1 for group in groups)
    width = (side + 0.25) * len(groups) + (label_width(class_names) + 0.5) + 0.9
    figure = new_figure(width, side + label_height + title_height + 1.1)
    axes = figure.subplots(1, len(groups), squeeze=False, sharey=True)[0]
    for ax, matrix, group in zip(axes, counts, groups, strict=True):
        image = _draw_confusion(ax, matrix)
        ax.set_xticks(range(classes), names, fontsize=9)
        ax.set_yticks(range(classes), names, fontsize=9)
        ax.tick_params(length=0)
        title = f"{group} (n = {matrix.sum()})"
        fits = len(title) * CHARACTER < side
        ax.set_title(plain(title) if fits else f"{wrapped(group)}\n(n = {matrix.sum()})", fontsize=10)
        ax.set_xlabel("predicted", fontsize=9)
    axes[0].set_ylabel("true", fontsize=9)
    bar = figure.colorbar(image, ax=list(axes), fraction=0.04, pad=0.02)
    bar.set_label("share of the true class", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    set_heading(figure, f"Confusion by group{' on SYNTHETIC scans' if synthetic else ''} (n = {counts.sum()})")
    return figure


def _draw_confusion(ax: Axes, matrix: np.ndarray) -> AxesImage:
    """One [C, C] matrix of counts; returns the image, whose colour scale is [0, 1] for every matrix."""
    support = matrix.sum(1, keepdims=True)
    share = matrix / np.maximum(support, 1)
    image = ax.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="equal")
    for row, column in np.ndindex(*matrix.shape):
        colour = "white" if share[row, column] > DARK else "black"
        ax.text(column, row, str(matrix[row, column]), ha="center", va="center", fontsize=9, color=colour)
    for row in np.flatnonzero(support == 0):
        ax.axhspan(row - 0.5, row + 0.5, facecolor="none", edgecolor="#CCCCCC", hatch="///", linewidth=0)
    return image


def _bar_style(group: str, index: int) -> dict[str, Any]:
    if group == UNKNOWN:
        return {"facecolor": "#BBBBBB", "hatch": "---"}
    # Hatches move on by one with each round of the colours, so that 49 groups all look different.
    round_, colour = divmod(index, len(PALETTE))
    return {"facecolor": PALETTE[colour], "hatch": HATCHES[(colour + round_) % len(HATCHES)]}
