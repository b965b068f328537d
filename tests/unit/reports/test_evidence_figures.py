"""Figures of an audit and a comparison draw the numbers they are given, and nothing in them lies on anything else."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fairlung.pipeline.comparison.compare import compare
from fairlung.pipeline.comparison.records import Comparison
from fairlung.pipeline.evaluation.audit import audit
from fairlung.pipeline.evaluation.predictions import Predictions
from fairlung.pipeline.evaluation.records import Audit
from fairlung.pipeline.evaluation.resampling import Estimate
from fairlung.pipeline.reports.document import figure_picture
from fairlung.pipeline.reports.evidence_figures import (
    cells_figure,
    differences_figure,
    estimates_figure,
    group_style,
    learning_curves_figure,
    reliability_figure,
    trade_off_figure,
)

CLASSES = ("adenocarcinoma", "squamous_cell", "covid19", "normal")
LONG = ("small cell carcinoma of the lung", "b$\\x$", "interstitial-pneumonia/fibrosis_with_superinfection")
SITES = ("site_0", "Universitätsklinikum_Heidelberg_Thoraxklinik_am_Rohrbach", "c$_2$")


def predictions(classes: Sequence[str], groups: Sequence[str], seed: int = 0, per_cell: int = 12) -> Predictions:
    """Every cell has ``per_cell`` scans but the last, which has 3."""
    rng = np.random.default_rng(seed)
    cells = [(c, g) for c in range(len(classes)) for g in range(len(groups)) for _ in range(per_cell)]
    cells = cells[: 3 - per_cell]
    label, group = np.array(cells).T
    probabilities = rng.dirichlet(np.full(len(classes), 0.5), len(label))
    probabilities[np.arange(len(label)), label] += 0.6
    probabilities /= probabilities.sum(1, keepdims=True)
    names = np.array([f"s{i}" for i in range(len(label))])
    return Predictions(
        names, label, probabilities.argmax(1), group, probabilities, tuple(classes), tuple(groups), ("g",)
    )


@pytest.fixture(scope="module", params=["paper", "long names"])
def judged(request: pytest.FixtureRequest) -> Audit:
    names = (CLASSES, ("male", "female")) if request.param == "paper" else (LONG, SITES)
    return audit(predictions(*names), resamples=200, permutations=200)


@pytest.fixture(scope="module", params=["paper", "long names"])
def compared(request: pytest.FixtureRequest) -> Comparison:
    names = (CLASSES, ("male", "female")) if request.param == "paper" else (LONG, SITES)
    systems = {"CE": 2, "LA + CVaR, alpha 0.8, exact gradient, and a name that goes on": 3, "$x$": 1}
    runs = iter(range(6))
    tables = {name: [predictions(*names, seed=next(runs)) for _ in range(n)] for name, n in systems.items()}
    return compare(tables, resamples=200, permutations=200)


def history(groups: Sequence[str] = ("male", "female"), epochs: int = 5) -> pd.DataFrame:
    names = ["train_loss", "lr", "val_score", "val_gap", "val_abs_gap", *(f"val_f1_{name}" for name in groups)]
    rows = [(epoch, name, epoch / (10 + i)) for epoch in range(1, epochs + 1) for i, name in enumerate(names)]
    return pd.DataFrame(rows, columns=["epoch", "metric", "value"])


def assert_readable(figure: Any) -> None:
    """Texts of a figure, its axis labels and legends among them, are whole and do not touch."""
    from matplotlib.text import Text

    figure.canvas.draw()
    hidden = set()
    for axis in (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)):
        low, high = sorted(axis.get_view_interval())
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
            if not low <= tick.get_loc() <= high:  # matplotlib keeps it and does not draw it
                hidden |= {tick.label1, tick.label2}
    found = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    found = [text for text in found if text not in hidden]
    boxes = [(text.get_text(), text.get_window_extent()) for text in found]
    width, height = figure.canvas.get_width_height()
    for text, box in boxes:
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1, f"{text!r} is cut off"
    for (one, a), (other, b) in combinations(boxes, 2):
        across, along = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(across, along) <= 1, f"{one!r} lies on {other!r}"


def horizontal_intervals(ax: Any) -> list[tuple[float, float, float]]:
    """Value, low and high of each error bar with horizontal ends, from the top downwards."""
    found = []
    for container in ax.containers:
        (line,) = [c for c in container.lines[2] if np.ptp(c.get_segments()[0][:, 1]) == 0]
        segment = line.get_segments()[0]
        found.append((segment[0, 1], container.lines[0].get_xdata()[0], *segment[:, 0]))
    return [rest for _, *rest in sorted(found, reverse=True)]


def numbers(estimates: Sequence[Estimate]) -> list[list[float]]:
    return [[e.value, e.low, e.high] for e in estimates]


def test_intervals_are_drawn_where_the_audit_has_them(judged):
    top, bottom = estimates_figure(judged).axes
    overall = judged.overall
    shown = [overall.score, *(group.f1 for group in judged.groups), overall.f1_macro]
    np.testing.assert_allclose(horizontal_intervals(top), numbers(shown))
    gaps = [gap for gap in (overall.gap, overall.abs_gap) if gap is not None]
    np.testing.assert_allclose(horizontal_intervals(bottom), numbers(gaps))


def test_the_fair_model_stands_beside_the_gap(judged):
    _, bottom = estimates_figure(judged).axes
    (shade,) = bottom.patches
    fair = judged.fair_model
    p95 = fair.abs_gap_p95
    expected = (fair.gap_low, fair.gap_high) if judged.overall.gap is not None else (0, p95)
    assert (shade.get_x(), shade.get_x() + shade.get_width()) == pytest.approx(expected)
    diamonds = [line for line in bottom.lines if line.get_marker() == "d"]
    assert diamonds[0].get_xdata()[0] == judged.fair_model.abs_gap_mean
    left, right = bottom.get_xlim()
    assert left <= 0 < p95 < right
    assert (left < 0) == (judged.overall.gap is not None)


def test_heat_map_has_each_cell_and_hatches_the_small_one(judged):
    ax = cells_figure(judged).axes[0]
    values = np.asarray(ax.images[0].get_array())
    for cell in judged.cells:
        row, column = judged.class_names.index(cell.class_name), judged.group_names.index(cell.group)
        assert values[row, column] == cell.f1.value
        (text,) = [text.get_text() for text in ax.texts if text.get_position() == (column, row)]
        assert f"{cell.f1.low:.3f} to {cell.f1.high:.3f}" in text
        assert f"n = {cell.n}" in text
        assert ("no statement" in text) == cell.small == (cell.n == 3)
    (hatched,) = [patch for patch in ax.patches if patch.get_hatch()]
    assert hatched.get_xy()[1] == len(judged.class_names) - 1.5


def test_reliability_shows_accuracy_and_scans_of_each_bin(judged):
    for index, group in enumerate(judged.groups):
        top, bottom = reliability_figure(group, index).axes
        points = top.containers[0].lines[0]
        np.testing.assert_allclose(points.get_ydata(orig=False), [b.accuracy for b in group.calibration.reliability])
        np.testing.assert_allclose(points.get_xdata(orig=False), [b.confidence for b in group.calibration.reliability])
        bars = bottom.containers[0]
        assert [bar.get_height() for bar in bars] == [b.n for b in group.calibration.reliability]
        for bar, b in zip(bars, group.calibration.reliability, strict=True):
            # a bar stands in the middle of the tenth in which the mean confidence lies
            assert abs(bar.get_x() + bar.get_width() / 2 - b.confidence) <= 0.05 + 1e-9


def test_curves_show_what_is_there_and_mark_the_epoch():
    table = history().sample(frac=1, random_state=0)
    loss, f1, gap = learning_curves_figure(table, ("male", "female"), 4).axes
    np.testing.assert_allclose(loss.lines[0].get_ydata(), np.arange(1, 6) / 10)
    assert [text.get_text() for text in f1.get_legend().get_texts()] == ["P", "F1 male", "F1 female"]
    assert all(4 in [line.get_xdata()[0] for line in ax.lines] for ax in (loss, f1, gap))
    assert "epoch 4" in gap.get_xlabel()
    only = learning_curves_figure(table[table["metric"] == "train_loss"], ("male", "female"), None)
    assert len(only.axes) == 1 and only.axes[0].get_xlabel() == "epoch"


def test_curves_refuse_a_table_without_them():
    with pytest.raises(ValueError, match="no column metric, value"):
        learning_curves_figure(history()[["epoch"]], ("male", "female"), None)
    with pytest.raises(ValueError, match="no metric of a learning curve; it has lr"):
        learning_curves_figure(history().query("metric == 'lr'"), ("male", "female"), None)


def test_differences_are_drawn_where_the_comparison_has_them(compared):
    for comparison in compared.comparisons:
        (ax,) = differences_figure(comparison, compared.group_names).axes
        np.testing.assert_allclose(horizontal_intervals(ax), numbers(list(comparison.differences.values())))
        left, right = ax.get_xlim()
        assert left == -right  # no difference is in the middle


def test_trade_off_has_a_point_a_run_and_a_look_a_system(compared):
    (ax,) = trade_off_figure(compared).axes
    runs = [run for system in compared.systems for run in system.runs]
    key = "gap" if len(compared.group_names) == 2 else "abs_gap"
    points = [container.lines[0] for container in ax.containers]
    assert [p.get_xdata()[0] for p in points] == [run[key].value for run in runs]
    assert [p.get_ydata()[0] for p in points] == [run["score"].value for run in runs]
    looks = [(p.get_color(), p.get_marker()) for p in points]
    assert looks[0] == looks[1] and len(set(looks)) == 3 and len({marker for _, marker in looks}) == 3


def test_groups_differ_in_more_than_colour():
    styles = [group_style(index) for index in range(7)]
    assert len({style["marker"] for style in styles}) == 7
    assert len({tuple(sorted(group_style(index).items())) for index in range(28)}) == 28


def test_figures_are_readable(judged, compared):
    for figure in (estimates_figure(judged), cells_figure(judged), reliability_figure(judged.groups[1], 1)):
        assert_readable(figure)
    assert_readable(learning_curves_figure(history(judged.group_names), judged.group_names, 3))
    for comparison in compared.comparisons:
        assert_readable(differences_figure(comparison, compared.group_names))
    assert_readable(trade_off_figure(compared))


def test_a_figure_gives_the_same_bytes_twice_and_asks_for_nothing(judged):
    once, again = (figure_picture(estimates_figure(judged), "estimates", "alt") for _ in range(2))
    assert (once.svg, once.png) == (again.svg, again.png)
    assert once.svg is not None and b"<script" not in once.svg and b"<text" not in once.svg
    assert not [part for part in once.svg.split(b'href="')[1:] if not part.startswith(b"#")]
