"""Figures of a study: P against the gap with its Pareto front (the paper's Figure 3), and learning curves."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..common.plotting import CHARACTER, GREY, LINE, MARKERS, new_figure, plain, set_heading
from ..evaluation.wording import number_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .numbers import Estimate


WIDTH = 6.4  # inches
# Paul Tol's "muted" scheme, told apart with every common colour blindness, and black: the paper has nine configurations
PALETTE = ("#332288", "#CC6677", "#117733", "#88CCEE", "#882255", "#999933", "#44AA99", "#DDCC77", "#AA4499", "#000000")
CONTEXT = "#DDDDDD"  # the other configurations behind one
COLUMNS = 3
SYNTHETIC = "SYNTHETIC scans (phantoms)"
LABEL_SIZE = 8  # points
DISTANCES = (7, 13, 20, 30, 42, 56, 75, 100)  # points between a mean and its label
ANGLES = 16
STRAY = 3000.0  # cost, in square pixels, of a label that is nearer to another mean than to its own
MARGIN = 2.0  # pixels around a label

Configuration = tuple[str, "Mapping[str, Estimate]", Mapping[str, Sequence[float]]]
Box = tuple[float, float, float, float]  # left, bottom, right, top


def configuration_style(index: int) -> dict[str, Any]:
    """Colour and marker of the configuration with this index, the same in all figures; the first 70 differ."""
    return {"color": PALETTE[index % len(PALETTE)], "marker": MARKERS[index % len(MARKERS)]}


def pareto_front(score: Sequence[float], abs_gap: Sequence[float]) -> list[int]:
    """Indices of the points that no other dominates, by |gap| rising; so P rises too.

    A point dominates another when its P is not lower, its |gap| not larger, and one of them better.
    """
    points = list(zip(score, abs_gap, strict=True))
    front = [
        index
        for index, (p, gap) in enumerate(points)
        if not any(q >= p and other <= gap and (q > p or other < gap) for q, other in points)
    ]
    return sorted(front, key=lambda index: (abs_gap[index], score[index]))


def study_trade_off_figure(configurations: Sequence[Configuration], *, synthetic: bool = False) -> Figure:
    """P against |gap|: seeds as faint points, means with intervals as crosses, labels beside them, the Pareto front.

    Args:
        configurations: label; estimates of ``score`` and ``abs_gap``; their value for each seed.
        synthetic: say in the heading that the scans are phantoms.
    """
    figure = new_figure(WIDTH, 4.8)
    ax = figure.subplots()
    means = np.array([[e["abs_gap"].value, e["score"].value] for _, e, _ in configurations])
    for index, (_, estimates, values) in enumerate(configurations):
        marker = {**configuration_style(index), "linestyle": "none"}
        if len(values["score"]) > 1:
            ax.plot(values["abs_gap"], values["score"], alpha=0.35, markersize=5, markeredgewidth=0, zorder=2, **marker)
        gap, score = estimates["abs_gap"], estimates["score"]
        ax.errorbar(
            gap.value, score.value,
            xerr=[[gap.value - gap.low], [gap.high - gap.value]],
            yerr=[[score.value - score.low], [score.high - score.value]],
            markeredgecolor="black", markersize=8, ecolor=(marker["color"], 0.6), elinewidth=1, capsize=2, zorder=4,
            **marker,
        )  # fmt: skip
    front = means[pareto_front(means[:, 1].tolist(), means[:, 0].tolist())]
    ax.margins(0.08)
    ax.set_xlim(left=min(ax.get_xlim()[0], 0.0) if means[:, 0].min() < 0.02 else None)
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    left = max(left, -0.02 * (right - left))  # a little of the side that no |gap| reaches, for the markers at 0
    steps = np.concatenate([[[front[0, 0], bottom]], front, [[right, front[-1, 1]]]])
    ax.plot(*steps.T, drawstyle="steps-post", color=GREY, linestyle=(0, (5, 2)), linewidth=1, zorder=1)
    ax.set_xlim(left, right)
    ax.set_ylim(bottom, top)
    ax.set_xlabel("|gap| in macro F1 (left is fairer)", fontsize=9)
    ax.set_ylabel("P, mean over groups of the macro F1 (up is better)", fontsize=9)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8)
    if synthetic:
        set_heading(figure, SYNTHETIC)
    _label_points(figure, ax, configurations)
    return figure


def _label_points(figure: Figure, ax: Axes, configurations: Sequence[Configuration]) -> None:
    """A label beside each mean, where it covers least: not another label, not a marker, as little as can be of a line.

    Each label, the most crowded mean first, takes the cheapest of many places around its mean; one that has to go far
    gets a thin line to its mean.
    """
    figure.draw_without_rendering()  # the layout, which labels must not change
    figure.set_layout_engine("none")
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    pixels = figure.dpi / 72
    transform = ax.transData.transform
    means = transform([[e["abs_gap"].value, e["score"].value] for _, e, _ in configurations])
    seeds = [transform(np.stack([v["abs_gap"], v["score"]], axis=1)) for _, _, v in configurations]
    markers = [(*(mean - 5 * pixels), *(mean + 5 * pixels)) for mean in means]
    dots = [(*(dot - 2 * pixels), *(dot + 2 * pixels)) for dots in seeds if len(dots) > 1 for dot in dots]
    lines = []
    for _, e, _ in configurations:
        gap, score = e["abs_gap"], e["score"]
        for ends in (
            [[gap.low, score.value], [gap.high, score.value]],
            [[gap.value, score.low], [gap.value, score.high]],
        ):
            (x0, y0), (x1, y1) = transform(ends)
            lines.append((x0 - 1, y0 - 1, x1 + 1, y1 + 1))
    # labels may use the whole figure above the axis and right of it, not the axes' own texts
    area = (ax.bbox.x0, ax.bbox.y0, figure.bbox.x1 - 3, ax.bbox.y1)
    taken: list[Box] = []
    distance = np.linalg.norm(means[:, None] - means[None], axis=-1)
    for index in np.argsort(np.sort(distance, axis=1)[:, : min(3, len(means))].sum(1), kind="stable"):
        label = plain(configurations[index][0])
        text = ax.text(0, 0, label, fontsize=LABEL_SIZE)
        size = text.get_window_extent(renderer)
        text.remove()
        best, place = np.inf, (0.0, 0.0)
        for far in DISTANCES:
            for angle in np.arange(ANGLES) * 2 * np.pi / ANGLES:
                way = np.array([np.cos(angle), np.sin(angle)])
                centre = means[index] + way * (far * pixels + np.abs(way) @ (size.width / 2, size.height / 2))
                box = (
                    centre[0] - size.width / 2 - MARGIN, centre[1] - size.height / 2 - MARGIN,
                    centre[0] + size.width / 2 + MARGIN, centre[1] + size.height / 2 + MARGIN,
                )  # fmt: skip
                outside = _area(box) - _overlap(box, area)
                cost = 50 * (outside + sum(_overlap(box, other) for other in taken))
                cost += 20 * sum(_overlap(box, other) for other in markers) + 4 * sum(_overlap(box, o) for o in dots)
                cost += 2 * sum(_overlap(box, other) for other in lines) + 6 * far * pixels
                cost += STRAY * (_distances(box, means).argmin() != index)
                if cost < best:
                    best, place, chosen, reach = cost, tuple(centre), box, far
        taken.append(chosen)
        arrow = {"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkB": 5} if reach > DISTANCES[0] else None
        at, text_at = ax.transData.inverted().transform([means[index], place])
        ax.annotate(
            label, at, text_at, ha="center", va="center",
            fontsize=LABEL_SIZE, arrowprops=arrow, zorder=6, annotation_clip=False,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.7},
        )  # fmt: skip


def _distances(box: Sequence[float], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """From a box to each point: [N]."""
    low, high = np.array(box[:2]), np.array(box[2:])
    return np.linalg.norm(np.maximum(0, np.maximum(low - points, points - high)), axis=1)


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0


def curves_figure(curves: pd.DataFrame, group_names: Sequence[str], *, synthetic: bool = False) -> Figure:
    """P and the gap on the validation scans by epoch, a panel a configuration over the means of the others in grey.

    The line is the mean over runs, the shade one standard deviation either side.

    Args:
        curves: columns ``configuration``, ``run``, ``epoch``, ``metric``, ``value``; the metrics ``val_score`` and, as
            far as they are there, ``val_gap`` or else ``val_abs_gap``.
        group_names: G names.
        synthetic: say in the heading that the scans are phantoms.

    Raises:
        ValueError: there is no ``val_score``.
    """
    present = set(curves["metric"])
    if "val_score" not in present:
        raise ValueError(f"curves: no val_score; there is {', '.join(sorted(present)) or 'nothing'}")
    gap = next((name for name in ("gap", "abs_gap") if f"val_{name}" in present), None)
    metrics = ["score", gap] if gap else ["score"]
    labels = list(dict.fromkeys(curves["configuration"]))
    columns = min(COLUMNS, len(labels))
    blocks = -(-len(labels) // columns)
    width = WIDTH if columns > 1 else 0.6 * WIDTH
    titles = [textwrap.fill(label, int(width / columns / CHARACTER)) for label in labels]
    lines = max(title.count("\n") + 1 for title in titles)
    figure = new_figure(width, blocks * (1.4 * len(metrics) + LINE * lines) + (0.7 if synthetic else 0.4))
    axes = figure.subplots(blocks * len(metrics), columns, sharex=True, sharey=False, squeeze=False)
    for offset, name in enumerate(metrics):
        rows = curves[curves["metric"] == f"val_{name}"]
        means = rows.groupby(["configuration", "epoch"])["value"].mean()
        panels = axes[offset :: len(metrics)].ravel()
        for index, ax in enumerate(panels):
            ax.sharey(panels[0])
            if index >= len(labels):
                ax.set_visible(False)
                continue
            for other in labels:
                if other in means.index:
                    ax.plot(means[other].index, means[other], color=CONTEXT, linewidth=1, zorder=1)
            _draw_curve(ax, rows[rows["configuration"] == labels[index]], configuration_style(index)["color"])
            if name == "gap":
                ax.axhline(0, color="black", linewidth=0.6, zorder=1)
            if offset == 0:
                ax.set_title(plain(titles[index]), fontsize=9)
            if index % columns == 0:
                ax.set_ylabel(plain(number_name(name)), fontsize=9)
            ax.spines[["top", "right"]].set_visible(False)
            ax.tick_params(labelsize=8, labelleft=index % columns == 0, labelbottom=False)
            ax.xaxis.get_major_locator().set_params(integer=True, nbins=5)
    for column in range(min(columns, len(labels))):
        last = axes[(len(labels) - 1 - column) // columns * len(metrics) + len(metrics) - 1, column]
        last.tick_params(labelbottom=True)
        last.set_xlabel("epoch", fontsize=9)
    if synthetic:
        set_heading(figure, SYNTHETIC)
    return figure


def _draw_curve(ax: Axes, rows: pd.DataFrame, colour: str) -> None:
    by_epoch = rows.groupby("epoch")["value"]
    mean, spread = by_epoch.mean(), by_epoch.std(ddof=1)
    ax.plot(mean.index, mean, linewidth=1.6, color=colour, marker="." if len(mean) < 2 else "", zorder=3)
    if spread.notna().any():
        ax.fill_between(mean.index, mean - spread, mean + spread, color=colour, alpha=0.25, linewidth=0, zorder=2)
