"""Figures say the numbers they are given, and nothing in them lies on top of anything else."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest

from fairlung.pipeline.reports.figures import cohort_chart, confusion_figure

CLASSES = ("adenocarcinoma", "squamous_cell", "covid19", "normal")
WIDE = ("small cell carcinoma of the lung", "b$\\x$", "interstitial-pneumonia/fibrosis_with_superinfection")
SEXES = ("male", "female")
PAPER = {"train": (125, 125, 79, 5, 100, 100, 100, 100), "val": (25, 25, 12, 13, 20, 20, 20, 20)}


def paper_cells() -> pd.DataFrame:
    rows = [
        (split, *cell, n)
        for split, counts in PAPER.items()
        for cell, n in zip(product(CLASSES, SEXES), counts, strict=True)
    ]
    return pd.DataFrame(rows, columns=["split", "label", "group", "n"])


def wide_cells() -> pd.DataFrame:
    groups = ("site_0", "site_1", "Universitätsklinikum_Heidelberg", "site_3", "site_4", "unknown")
    rows = [(*cell, 1000 + index) for index, cell in enumerate(product(("train", "val", "test"), WIDE, groups))]
    return pd.DataFrame(rows, columns=["split", "label", "group", "n"])


def texts(figure):
    """Every visible text of a figure with its bounding box in pixels."""
    from matplotlib.text import Text

    figure.canvas.draw()
    found = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    return [(text.get_text(), text.get_window_extent()) for text in found]


def assert_readable(figure) -> None:
    boxes = texts(figure)
    width, height = figure.canvas.get_width_height()
    for text, box in boxes:
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1, f"{text!r} is cut off"
    for (one, a), (other, b) in combinations(boxes, 2):
        across = min(a.x1, b.x1) - max(a.x0, b.x0)
        along = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(across, along) <= 1, f"{one!r} lies on {other!r}"


def bar_heights(ax) -> list[list[int]]:
    return [[int(bar.get_height()) for bar in bars] for bars in ax.containers]


def test_chart_shows_the_papers_cells():
    figure = cohort_chart(paper_cells())
    train, val = figure.axes
    assert bar_heights(train) == [[125, 79, 100, 100], [125, 5, 100, 100]]
    assert bar_heights(val) == [[25, 12, 20, 20], [25, 13, 20, 20]]
    assert "n = 734" in train.get_title() and "n = 155" in val.get_title()
    assert "n = 889" in figure.get_suptitle()
    assert {"5", "79"} <= {text.get_text() for text in train.texts}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(SEXES)


def test_chart_counts_an_unlisted_combination_as_zero_and_puts_training_first():
    cells = pd.DataFrame([("val", "b", "y", 2), ("train", "a", "x", 3)], columns=["split", "label", "group", "n"])
    train, val = cohort_chart(cells).axes
    assert train.get_title().startswith("Training")
    assert bar_heights(train) == [[0, 0], [0, 3]]  # groups y, x by classes b, a: the order in which the table has them
    assert bar_heights(val) == [[2, 0], [0, 0]]


def test_chart_groups_differ_in_more_than_colour():
    rows = [("train", "a", f"site_{index}", 1) for index in range(12)]
    figure = cohort_chart(pd.DataFrame(rows, columns=["split", "label", "group", "n"]))
    styles = [(bars[0].get_facecolor(), bars[0].get_hatch()) for bars in figure.axes[0].containers]
    assert len(set(styles)) == 12
    assert len({hatch for _, hatch in styles[:7]}) == 7


@pytest.mark.parametrize(
    "cells", [paper_cells(), wide_cells(), paper_cells().iloc[:1]], ids=["paper", "wide", "one bar"]
)
def test_chart_is_readable(cells):
    assert_readable(cohort_chart(cells))


def test_chart_is_saved_where_asked(tmp_path):
    cohort_chart(paper_cells(), tmp_path / "cohort.png")
    assert (tmp_path / "cohort.png").read_bytes().startswith(b"\x89PNG")


def test_chart_refuses_what_is_no_cell_table():
    with pytest.raises(ValueError, match="no column group, n"):
        cohort_chart(paper_cells()[["split", "label"]])
    with pytest.raises(ValueError, match="no row"):
        cohort_chart(paper_cells().iloc[:0])
    with pytest.raises(ValueError, match="-4"):
        cohort_chart(paper_cells().assign(n=-4))


def test_confusion_shows_counts_and_row_shares():
    confusion = np.array([[[3, 1], [0, 0]], [[0, 5], [2, 6]]])
    figure = confusion_figure(confusion, ["ill", "well"], SEXES)
    first, second = figure.axes[:2]
    assert [text.get_text() for text in second.texts] == ["0", "5", "2", "6"]  # row by row: true, then predicted
    np.testing.assert_allclose(first.images[0].get_array(), [[0.75, 0.25], [0, 0]])
    np.testing.assert_allclose(second.images[0].get_array(), [[0, 1], [0.25, 0.75]])
    assert first.images[0].get_clim() == second.images[0].get_clim() == (0, 1)
    assert first.get_title() == "male (n = 4)" and second.get_title().endswith("(n = 13)")
    assert "n = 17" in figure.get_suptitle()
    assert [len([p for p in ax.patches if p.get_hatch()]) for ax in (first, second)] == [1, 0]  # the row without a scan


@pytest.mark.parametrize("unknown, panels", [(0, 2), (3, 3)])
def test_confusion_of_unknown_group_is_shown_only_when_it_counts_a_scan(unknown, panels):
    confusion = np.ones((3, 2, 2), int)
    confusion[2] = unknown
    figure = confusion_figure(confusion, ["ill", "well"], SEXES)
    titles = [ax.get_title() for ax in figure.axes if ax.images]
    assert len(titles) == panels
    assert any("unknown" in title for title in titles) == (unknown > 0)
    assert f"n = {8 + 4 * unknown}" in figure.get_suptitle()


@pytest.mark.parametrize(
    "classes, groups, scale",
    [(CLASSES, SEXES, 30), (WIDE, ("a", "Universitätsklinikum_Heidelberg", "c", "d", "e"), 99999), ("ab", ("all",), 3)],
    ids=["paper", "wide", "small"],
)
def test_confusion_is_readable(classes, groups, scale):
    confusion = np.full((len(groups), len(classes), len(classes)), scale)
    assert_readable(confusion_figure(confusion, list(classes), groups))


def test_confusion_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"\[2, 3, 2\]"):
        confusion_figure(np.ones((2, 3, 2)), CLASSES[:3], SEXES)
    with pytest.raises(ValueError, match=r"expected \[2, 4, 4\]"):
        confusion_figure(np.ones((4, 4, 4)), CLASSES, SEXES)
    for value in (-1, 0.5, np.nan, np.inf):
        with pytest.raises(ValueError, match="whole number"):
            confusion_figure(np.full((2, 4, 4), value), CLASSES, SEXES)


def test_figures_leave_pyplot_alone_and_load_matplotlib_late():
    code = (
        "import sys, numpy as np\n"
        "from fairlung.pipeline.reports.figures import confusion_figure\n"
        "assert 'matplotlib' not in sys.modules\n"
        "confusion_figure(np.ones((1, 2, 2)), ['a', 'b'], ['all'])\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
