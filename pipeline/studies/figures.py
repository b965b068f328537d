"""Figures of a study: P against the gap with its Pareto front (the paper's Figure 3), and learning curves."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..common.plotting import CHARACTER, GREY, LINE, MARKERS, new_figure, plain, set_heading
from ..evaluation.wording import number_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .numbers import Estimate

WIDTH = 6.4  # inches
# Paul Tol's "muted" scheme, told apart with every common colour blindness, and black: the paper has nine configurations
PALETTE = ("#332288", "#CC6677", "#117733", "#88CCEE", "#882255", "#999933", "#44AA99", "#DDCC77", "#AA4499", "#000000")
CONTEXT = "#DDDDDD"  # of the other configurations, which are drawn behind one
COLUMNS = 3
NAME = 70  # characters of a line of a configuration's name
SYNTHETIC = "SYNTHETIC scans (phantoms)"

Configuration = tuple[str, "Mapping[str, Estimate]", Mapping[str, Sequence[float]]]


def configuration_style(index: int) -> dict[str, Any]:
    """Colour and marker of the configuration with this index, the same in all figures; the first 70 differ."""
    return {"color": PALETTE[index % len(PALETTE)], "marker": MARKERS[index % len(MARKERS)]}


def pareto_front(score: Sequence[float], abs_gap: Sequence[float]) -> list[int]:
    """Indices, by rising |gap|, of the points that no other dominates.

    A point dominates another when its P is not lower, its |gap| not larger, and one of them better.
    """
    points = list(zip(score, abs_gap, strict=True))

    def dominated(p: float, gap: float) -> bool:
        return any(q >= p and other <= gap and (q > p or other < gap) for q, other in points)

    front = [index for index, point in enumerate(points) if not dominated(*point)]
    return sorted(front, key=lambda index: (abs_gap[index], score[index]))


def study_trade_off_figure(configurations: Sequence[Configuration], *, synthetic: bool = False) -> Figure:
    """P against |gap|: seeds as faint points, means with intervals as crosses, the Pareto front.

    A configuration is its label, the estimates of ``score`` and ``abs_gap``, and their values by seed.
    """
    # a legend leaves out names that begin with _, so a space stands before each
    names = [textwrap.wrap(f" {plain(label)}", NAME) for label, *_ in configurations]
    widest = max(len(line) for name in names for line in name)
    columns = max(1, int(WIDTH / (0.8 * CHARACTER * widest + 0.4)))
    figure = new_figure(WIDTH, 4.3 + LINE * -(-sum(map(len, names)) // columns))
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
            label="\n".join(names[index]), **marker,
        )  # fmt: skip
    front = means[pareto_front(means[:, 1].tolist(), means[:, 0].tolist())]
    ax.margins(0.08)
    ax.set_xlim(left=min(ax.get_xlim()[0], 0.0) if means[:, 0].min() < 0.02 else None)
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    left = max(left, -0.02 * (right - left))  # no |gap| is below 0, but the markers at 0 need a little room
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
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=8, handletextpad=0.3)
    return figure


def sites_figure(rows: Sequence[tuple[str, str, Mapping[str, Estimate]]], *, synthetic: bool = False) -> Figure:
    """F1 at each site with its interval: a panel a group, a colour and marker a configuration.

    A row is a configuration's label, a site, and the estimates ``f1_<group>`` that it has there.
    """
    labels = list(dict.fromkeys(label for label, *_ in rows))
    sites = list(dict.fromkeys(site for _, site, _ in rows))
    keys = list(dict.fromkeys(key for *_, found in rows for key in found))
    names = [textwrap.wrap(f" {plain(label)}", NAME) for label in labels]
    columns = min(len(keys), 2)
    panels = -(-len(keys) // columns)
    figure = new_figure(WIDTH, 2.6 * panels + 0.5 + LINE * sum(map(len, names)))
    axes = figure.subplots(panels, columns, sharey=True, sharex=True, squeeze=False).ravel()
    for key, ax in zip(keys, axes, strict=False):
        for index, label in enumerate(labels):
            here = [(site, found[key]) for of, site, found in rows if of == label and key in found]
            place = [sites.index(site) + 0.6 * ((index + 0.5) / len(labels) - 0.5) for site, _ in here]
            reach = np.array([[e.value - e.low, e.high - e.value] for _, e in here]).reshape(-1, 2).T
            style = {**configuration_style(index), "linestyle": "none", "markersize": 5, "capsize": 2, "elinewidth": 1}
            ax.errorbar(place, [e.value for _, e in here], yerr=reach, **style,
                        label="\n".join(names[index]) if key == keys[0] else None)  # fmt: skip
        ax.set_title(plain(number_name(key)), fontsize=9)
        ax.set_xticks(range(len(sites)), [textwrap.fill(plain(site), 14) for site in sites])
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    for ax in axes[len(keys) :]:
        ax.set_visible(False)
    if synthetic:
        set_heading(figure, SYNTHETIC)
    figure.legend(loc="outside lower center", frameon=False, fontsize=8, handletextpad=0.3)
    return figure


def encoding_figure(points: Sequence[tuple[str, float, float]], labels: Sequence[str], target: str, *,
                    synthetic: bool = False) -> Figure:  # fmt: skip
    """A point a run, (label, AUC, |gap|): how well an attribute is read from its features against |gap|.

    The order of ``labels`` gives the colours.
    """
    shown = [label for label in labels if label in {point[0] for point in points}]
    figure = new_figure(WIDTH, 3.4 + LINE * len(shown))
    ax = figure.subplots()
    for label in shown:
        own = np.array([point[1:] for point in points if point[0] == label])
        name = textwrap.shorten(f" {plain(label)}", NAME, placeholder="...")
        ax.plot(*own.T, linestyle="none", label=f" {name}", **configuration_style(list(labels).index(label)))
    ax.set_xlabel(plain(f"AUC of a linear probe for {target} (right: read better)"), fontsize=9)
    ax.set_ylabel("|gap| in macro F1", fontsize=9)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8)
    if synthetic:
        set_heading(figure, SYNTHETIC)
    figure.legend(loc="outside lower center", frameon=False, fontsize=8, handletextpad=0.3)
    return figure


def curves_figure(curves: pd.DataFrame, group_names: Sequence[str], *, synthetic: bool = False) -> Figure:
    """P and the gap on the validation scans by epoch: one panel for each configuration, the others' means in grey.

    The line is the mean over runs, the shade one standard deviation either side. ``curves`` has the columns
    ``configuration``, ``run``, ``epoch``, ``metric`` and ``value``, and the metrics ``val_score`` (ValueError without)
    and, where they are there, ``val_gap`` or else ``val_abs_gap``.
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
    panel = 1.4 * len(metrics) + LINE * max(title.count("\n") + 1 for title in titles)
    figure = new_figure(width, blocks * panel + (0.7 if synthetic else 0.4))
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
    for column in range(columns):
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
