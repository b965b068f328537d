"""Figures of a study."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from simulated_studies import (
    SEXES,
)

from fairlung.pipeline.studies.figures import curves_figure, pareto_front, study_trade_off_figure
from fairlung.pipeline.studies.numbers import over_seeds


def test_figures_of_phantoms_say_so():
    estimates = over_seeds([0.1, 0.2], "abs_gap")
    configurations = [("a", {"score": estimates, "abs_gap": estimates}, {"score": [0.1], "abs_gap": [0.2]})]
    curves = pd.DataFrame({"configuration": "a", "run": "1", "epoch": [1, 2], "metric": "val_score", "value": 0.5})
    for make in (
        lambda flag: study_trade_off_figure(configurations, synthetic=flag),
        lambda flag: curves_figure(curves, SEXES, synthetic=flag),
    ):
        assert "SYNTHETIC" in make(True).get_suptitle()
        assert not make(False).get_suptitle()


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_the_pareto_front(points):
    score, gap = zip(*points, strict=True)
    front = pareto_front(score, gap)

    def dominates(i: int, j: int) -> bool:
        return score[i] >= score[j] and gap[i] <= gap[j] and points[i] != points[j]

    everyone = range(len(points))
    assert not any(dominates(i, j) for j in front for i in everyone)
    assert all(any(dominates(i, j) for i in front) for j in everyone if j not in front)
    assert [gap[i] for i in front] == sorted(gap[i] for i in front)
    assert [score[i] for i in front] == sorted(score[i] for i in front)


def configurations(count: int, seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    made = []
    for index in range(count):
        centre = rng.uniform((0.02, 0.7), (0.15, 0.85))
        values = {"abs_gap": np.abs(centre[0] + rng.normal(0, 0.03, 4)), "score": centre[1] + rng.normal(0, 0.02, 4)}
        estimates = {key: over_seeds(value, key) for key, value in values.items()}
        made.append((f"LA+CVaR alpha 0.{index}", estimates, values))
    return made


@pytest.mark.parametrize("count", [1, 9, 30])
def test_the_legend_names_every_configuration_beside_the_axes(count):
    shown = configurations(count)
    shown[0] = ("_$x$ " + "wide " * 40, *shown[0][1:])
    figure = study_trade_off_figure(shown)
    figure.canvas.draw()
    (ax,), (legend,) = figure.axes, figure.legends
    names = [" ".join(text.get_text().replace("\\$", "$").split()) for text in legend.get_texts()]
    assert names == [label.strip() for label, *_ in shown]
    box, inside = legend.get_window_extent(), figure.bbox
    assert box.y1 <= ax.get_window_extent().y0 and ax.get_window_extent().height > 0.4 * inside.width
    for text in legend.get_texts():
        place = text.get_window_extent()
        assert inside.x0 <= place.x0 and place.x1 <= inside.x1 and inside.y0 <= place.y0


def test_learning_curves_draw_the_mean_over_runs():
    rows = [
        {
            "configuration": name,
            "run": f"{name}{run}",
            "epoch": epoch,
            "metric": metric,
            "value": base + run * epoch / 10,
        }
        for name, base in (("a", 0.2), ("b", 0.3))
        for run in range(3)
        for epoch in (1, 2, 3)
        for metric in ("val_score", "val_gap", "train_loss")
    ]
    curves = pd.DataFrame(rows)
    figure = curves_figure(curves, SEXES)
    expected = curves[curves["metric"] == "val_score"].groupby(["configuration", "epoch"])["value"].mean()
    for ax, name in zip(figure.axes[:2], "ab", strict=True):
        line = max(ax.lines, key=lambda line: line.get_linewidth())
        assert ax.get_title() == name and list(line.get_ydata()) == pytest.approx(list(expected[name]))
        assert ax.collections  # the spread
    with pytest.raises(ValueError, match="no val_score; there is train_loss"):
        curves_figure(curves[curves["metric"] == "train_loss"], SEXES)
