"""Figures of an audit and of a comparison: intervals drawn as intervals, cells with their scans, calibration, curves.

They are narrow, so that they can be read on a phone, and a group has the same colour, marker and line in all of them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..common.plotting import CHARACTER, GREY, HATCHES, LINE, MARKERS, PALETTE, label_width, new_figure, plain, wrapped
from ..comparison.records import Comparison, PairComparison
from ..evaluation.calibration import BINS, bin_of
from ..evaluation.records import Audit, GroupResult
from ..evaluation.resampling import Interval
from ..evaluation.wording import POWER, in_percent, number_name, percent, span, span_text
from .figures import DARK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..evaluation.planning import Design, Plan

LINES = ("-", "--", "-.", ":")
WIDTH = 4.8  # inches
Number = tuple[str, Interval, int | None, bool]  # name, estimate, index of the style, with a sign
Row = tuple[str, Interval, int | None, float]  # text above the interval, estimate, index of the style, y


def group_style(index: int) -> dict[str, Any]:
    """Colour, marker and line of the group (or system) with this index; the first 7 differ in colour and marker."""
    round_, colour = divmod(index, len(PALETTE))
    marker, line = MARKERS[(colour + round_) % len(MARKERS)], LINES[(index + round_) % len(LINES)]
    return {"color": PALETTE[colour], "marker": marker, "linestyle": line}


def estimates_figure(audit: Audit) -> Figure:
    """P, F1 of each group and the gap, each with its interval (a forest plot).

    The gap stands over where most samples of a perfectly fair model lie, |gap| beside the mean that such a model shows.
    """
    overall, fair = audit.overall, audit.fair_model
    shares: list[Number] = [(number_name("score"), overall.score, None, False)]
    for index, group in enumerate(audit.groups):
        shares.append((f"{number_name(f'f1_{group.group}')}, n = {group.n}", group.f1, index, False))
    shares.append((number_name("f1_macro"), overall.f1_macro, None, False))
    gaps: list[Number] = [(number_name("abs_gap"), overall.abs_gap, None, False)]
    if overall.gap is not None:
        gaps.insert(0, (number_name("gap", audit.group_names), overall.gap, None, True))
    panels = [_labelled(shares), _labelled(gaps)]
    figure, (top, bottom) = _forest(panels, legend_lines=3)
    chance = 1 / len(audit.class_names)
    guessing = top.axvline(chance, color=GREY, linestyle=":", linewidth=1.2)
    top.set_xlim(0, 1)
    top.set_xlabel("F1", fontsize=9)
    tested = audit.permutation.p_value is not None  # else nothing is known of a fair model
    p95, mean = (fair.abs_gap_p95, fair.abs_gap_mean) if tested else (0.0, 0.0)
    reach = 1.12 * max(p95, *(max(abs(e.low), abs(e.high)) for _, e, _, _ in gaps), 0.01)
    low, high = fair.gap_low or 0.0, p95 if fair.gap_high is None else fair.gap_high
    marks, labels = [guessing], [f"guessing evenly: about {chance:.2f}"]
    bottom.axvline(0, color="black", linewidth=1)
    if tested:
        marks.append(bottom.axvspan(low, high, color="#DDDDDD", zorder=0))
        (expected,) = bottom.plot(
            mean, panels[1][-1][3], "d", color="white", markeredgecolor="black", markersize=7, zorder=5
        )
        marks.append(expected)
        of_samples = f"{percent(audit.settings.confidence)} of samples"
        labels += [f"a fair model: {of_samples}, {low:+.3f} to {high:+.3f}", f"a fair model: mean |gap| {mean:.3f}"]
    bottom.set_xlim(0 if overall.gap is None else -reach, reach)
    bottom.set_xlabel("difference in F1", fontsize=9)
    _legend(figure, marks, labels)
    return figure


def cells_figure(audit: Audit) -> Figure:
    """F1 of each class and group as a heat map, with interval and scans; a cell too small to judge is hatched."""
    classes, groups = audit.class_names, audit.group_names
    cells = {(cell.class_name, cell.group): cell for cell in audit.cells}
    values = np.array([[cells[name, group].f1.value for group in groups] for name in classes])
    names, heads = [wrapped(name) for name in classes], [wrapped(group) for group in groups]
    width, height = max(1.5, label_width(groups)), max(0.85, LINE * (1 + max(name.count("\n") for name in names)))
    head = LINE * (1 + max(name.count("\n") for name in heads))
    figure = new_figure(width * len(groups) + label_width(classes) + 0.5, height * len(classes) + head + 1.0)
    ax = figure.subplots()
    image = ax.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(*values.shape):
        cell = cells[classes[row], groups[column]]
        if cell.small:
            ax.axhspan(row - 0.5, row + 0.5, column / len(groups), (column + 1) / len(groups), facecolor="white",
                       edgecolor="#999999", hatch="///", linewidth=0)  # fmt: skip
        colour = "white" if values[row, column] > DARK and not cell.small else "black"
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5} if cell.small else None
        scans = f"n = {cell.n}" + (": no statement" if cell.small else "")
        said = f"{cell.f1.value:.3f}\n{span(cell.f1)}\n{scans}"
        ax.text(column, row, said, ha="center", va="center", fontsize=9, color=colour, bbox=box, linespacing=1.25)
    for set_ticks, texts in ((ax.set_xticks, heads), (ax.set_yticks, names)):
        set_ticks(range(len(texts)), texts, fontsize=9)
        set_ticks(np.arange(len(texts) - 1) + 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=2)
    ax.tick_params(which="both", length=0)
    ax.xaxis.tick_top()
    bar = figure.colorbar(image, ax=ax, location="bottom", fraction=0.05, pad=0.03, aspect=30)
    bar.set_label("F1", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return figure


def reliability_figure(group: GroupResult, index: int) -> Figure:
    """Accuracy against confidence, bin by bin with Wilson intervals, over the scans of each bin, of group ``index``."""
    assert group.calibration is not None
    curve = pd.DataFrame(group.calibration.reliability)
    style = group_style(index)
    title = _filled(f"{group.group}, n = {group.n}", 3.6)
    figure = new_figure(3.6, 4.1 + LINE * title.count("\n"))
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    top.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="calibrated")
    errors = np.abs(curve[["low", "high"]].to_numpy().T - curve["accuracy"].to_numpy())
    top.errorbar(
        curve["confidence"], curve["accuracy"], yerr=errors, color=style["color"], marker=style["marker"],
        linestyle="none", markeredgecolor="black", ecolor="black", elinewidth=1.2, capsize=3, markersize=7,
    )  # fmt: skip
    top.set_ylim(-0.03, 1.03)
    top.set_ylabel("accuracy", fontsize=9)
    top.set_title(plain(title), fontsize=10)
    top.legend(frameon=False, fontsize=8, loc="lower right")
    centres = (bin_of(curve["confidence"].to_numpy()) + 0.5) / BINS
    bars = bottom.bar(centres, curve["n"], 0.9 / BINS, color=style["color"], edgecolor="black", linewidth=0.6,
                      hatch=HATCHES[index % len(HATCHES)])  # fmt: skip
    bottom.bar_label(bars, fontsize=8, padding=1)
    bottom.set(xlim=(-0.03, 1.03), ylim=(0, 1.3 * curve["n"].max()))
    bottom.set_xlabel("confidence (probability of the predicted class)", fontsize=9)
    bottom.set_ylabel("scans", fontsize=9)
    bottom.yaxis.get_major_locator().set_params(integer=True, nbins=3)
    for ax in (top, bottom):
        _tidy(ax)
    return figure


def learning_curves_figure(
    history: pd.DataFrame, group_names: Sequence[str], marked_epoch: int | None, prefix: str = "val_"
) -> Figure:
    """Training loss, F1 of each group with P, and the gap by epoch.

    ``history`` has the columns ``epoch``, ``metric`` and ``value`` (else ValueError): ``train_loss``, and after
    ``prefix`` ``score``, ``gap`` (or ``abs_gap``) and ``f1_<group>``. What is missing is left out, but not everything.
    """
    if missing := [name for name in ("epoch", "metric", "value") if name not in history]:
        raise ValueError(f"history: no column {', '.join(missing)}; it has {', '.join(map(str, history.columns))}")
    curves = {str(name): rows.sort_values("epoch") for name, rows in history.groupby("metric")}
    dark = {"color": "black", "linestyle": "-", "marker": "."}
    score = [(f"{prefix}score", number_name("score"), dark | {"marker": ""})]
    for index, key in enumerate(f"f1_{name}" for name in group_names):
        score.append((f"{prefix}{key}", number_name(key), group_style(index)))
    gap = "gap" if f"{prefix}gap" in curves else "abs_gap"
    said = number_name(gap, group_names)
    loss = [("train_loss", "training loss", dark)]
    drawn = [("training loss", loss), ("F1, validation", score), (said, [(f"{prefix}{gap}", said, dark)])]
    panels = [(title, found) for title, lines in drawn if (found := [line for line in lines if line[0] in curves])]
    if not panels:
        raise ValueError(f"history: no metric of a learning curve; it has {', '.join(curves) or 'none'}")
    heights = [1.5 if len(lines) == 1 else 1.9 for _, lines in panels]
    figure = new_figure(WIDTH, sum(heights) + 0.4 + LINE * max(len(lines) for _, lines in panels))
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for ax, (title, lines) in zip(axes, panels, strict=True):
        for name, label, style in lines:
            x, y, text = curves[name]["epoch"], curves[name]["value"], plain(_filled(label, WIDTH))
            ax.plot(x, y, label=text, markersize=4, linewidth=1.5, **style)
        if title == said:
            ax.axhline(0, color=GREY, linewidth=1, linestyle=":")
        if title.startswith("F1"):
            ax.set_ylim(0, 1)
        if marked_epoch is not None:
            ax.axvline(marked_epoch, color="#D55E00", linewidth=1.5, linestyle=(0, (5, 2)))
        ax.set_title(plain(_filled(title, WIDTH)), fontsize=9, loc="left")
        if len(lines) > 1:
            short = max(len(label) for _, label, _ in lines) <= 14
            below = (0, -0.02 if ax is not axes[-1] else -0.25)
            ax.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=below, ncols=3 if short else 1)
        _tidy(ax)
    axes[-1].set_xlabel("epoch" if marked_epoch is None else f"epoch (dashed line: epoch {marked_epoch})", fontsize=9)
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    return figure


def differences_figure(comparison: PairComparison, group_names: Sequence[str]) -> Figure:
    """Differences of one system from the reference, each with its interval, over the line of no difference."""
    style = {f"f1_{name}": index for index, name in enumerate(group_names)}
    numbers = comparison.differences.items()
    rows = _labelled([(number_name(key, group_names), number, style.get(key), True) for key, number in numbers])
    figure, (ax,) = _forest([rows])
    reach = 1.12 * max(*(max(abs(e.low), abs(e.high)) for _, e, _, _ in rows), 0.01)
    ax.axvline(0, color="black", linewidth=1, zorder=1)
    ax.set_xlim(-reach, reach)
    ax.set_xlabel(plain(_filled(f"{comparison.system} minus {comparison.reference}", WIDTH - 0.4)), fontsize=9)
    return figure


def trade_off_figure(result: Comparison) -> Figure:
    """P against the gap (with more than two groups |gap|), a point a run, with its intervals as a cross."""
    runs = [(index, run) for index, system in enumerate(result.systems) for run in system.runs]
    key = "gap" if "gap" in runs[0][1] else "abs_gap"
    labels = [f"{s.name} ({len(s.runs)} {'run' if len(s.runs) == 1 else 'runs'})" for s in result.systems]
    lines = sum(_filled(label, WIDTH - 0.6).count("\n") + 1 for label in labels)
    figure = new_figure(WIDTH, 3.9 + LINE * lines)
    ax = figure.subplots()
    handles: dict[int, Any] = {}
    for index, run in runs:
        style, gap, score = group_style(index), run[key], run["score"]
        handles[index] = ax.errorbar(
            gap.value, score.value, xerr=_ends(gap), yerr=_ends(score),
            color=style["color"], marker=style["marker"], markeredgecolor="black", elinewidth=1, capsize=2,
            markersize=8, linestyle="none",
        )  # fmt: skip
    ax.axvline(0, color="black", linewidth=1, zorder=1)
    ax.set_xlabel(plain(_filled(number_name(key, result.group_names), WIDTH - 0.4)), fontsize=9)
    ax.set_ylabel(number_name("score"), fontsize=9)
    _tidy(ax)
    _legend(figure, [handles[index] for index in range(len(labels))], labels)
    return figure


def _labelled(rows: Sequence[Number]) -> list[Row]:
    """Rows with their text and their place in inches from the top, counted downwards."""
    placed: list[Row] = []
    y = 0.0
    for name, estimate, style, signed in rows:
        text = _filled(f"{name}: {span_text(estimate, signed)}", WIDTH - 0.2)
        y -= LINE * (text.count("\n") + 1) + 0.12
        placed.append((text, estimate, style, y))
        y -= 0.16
    return placed


def _forest(panels: Sequence[Sequence[Row]], legend_lines: int = 0) -> tuple[Figure, Any]:
    """A figure with an axis a panel, in which one unit of y is about an inch, and its rows drawn."""
    heights = [0.16 - rows[-1][3] for rows in panels]
    figure = new_figure(WIDTH, sum(heights) + LINE * (3 * len(panels) + legend_lines) + 0.2)
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0, "alpha": 0.85}  # over vertical lines
    for ax, rows, height in zip(axes, panels, heights, strict=True):
        ax.set(ylim=(-height, 0), yticks=[])
        ax.spines[["left"]].set_visible(False)
        _tidy(ax)
        for text, estimate, index, y in rows:
            style = {"color": "black", "marker": "o"} if index is None else group_style(index)
            ax.errorbar(
                estimate.value, y, xerr=_ends(estimate), color=style["color"], marker=style["marker"], markersize=7,
                markeredgecolor="black", ecolor="black", elinewidth=1.5, capsize=4, linestyle="none", zorder=4,
            )  # fmt: skip
            place = ax.get_yaxis_transform()
            ax.text(0, y + 0.1, plain(text), transform=place, fontsize=9, va="bottom", zorder=3, bbox=box)
    return figure, axes


def _ends(estimate: Interval) -> list[list[float]]:
    return [[estimate.value - estimate.low], [estimate.high - estimate.value]]


def plan_figure(design: Design, plans: Sequence[Plan]) -> Figure:
    """By its number of scans, the gap that a study finds and the margin that it shows a fair model's gap within."""
    figure = new_figure(WIDTH, 3.6)
    axes = figure.subplots()
    names = {"difference": "gap that is found", "equivalence": "margin that a fair model is shown within"}
    for index, plan in enumerate(plans):
        points = []
        for size in plan.size * np.linspace(0.75, 1.5, 7):
            with suppress(ValueError):  # no model has so large a gap, or a fair model's is larger
                points.append((design.plan(plan.purpose, size).scans, size))
        style = group_style(index)
        axes.plot(*zip(*points, strict=True), **style | {"marker": ""}, label=names[plan.purpose])
        axes.plot(plan.scans, plan.size, **style)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("scans", fontsize=9)
    axes.set_ylabel("gap or margin", fontsize=9)
    axes.set_title(f"What {in_percent(POWER)} of studies show", fontsize=10)
    axes.legend(fontsize=8, frameon=False)
    return figure


def _legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    texts = [plain(_filled(label, WIDTH - 0.6)) for label in labels]
    figure.legend(handles, texts, loc="outside lower left", frameon=False, fontsize=8, ncols=1)


def _filled(text: str, width: float) -> str:
    """Text broken into lines that fit into ``width`` inches."""
    return textwrap.fill(text, max(8, int(width / CHARACTER)), break_on_hyphens=False)


def _tidy(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8)
