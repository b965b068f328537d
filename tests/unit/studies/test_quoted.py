"""The paper's printed numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fairlung.pipeline.studies.summary import quoted_row

ROOT = Path(__file__).parents[3]


def test_quoted_numbers_are_the_papers_own(data_dir):
    printed = json.loads((data_dir / "paper_cells.json").read_text())["systems"]
    for label, alpha in (("CE", None), ("LA", None), ("CVaR", 0.7), ("LA+CVaR alpha 0.8", 0.8)):
        row = quoted_row(label, alpha)
        expected = printed[label]["printed"]
        assert row is not None and row["score"] == expected["score"]
        assert (row["f1_male"], row["f1_female"]) == (expected["f1_male"], expected["f1_female"])
        assert row["abs_gap"] == pytest.approx(abs(row["f1_male"] - row["f1_female"]), abs=1.5e-4)
        assert row["score"] == pytest.approx((row["f1_male"] + row["f1_female"]) / 2, abs=1e-4)


@pytest.mark.parametrize(
    ("label", "alpha", "score"),
    [
        ("CE", None, 0.7413), ("LA only", None, 0.7986), ("CVaR only, alpha 0.7", 0.7, 0.8165),
        ("LA + CVaR (\u03b1 = 0.4)", 0.4, 0.7379), ("LA+CVaR alpha 0.9, published gradient", 0.9, 0.8260),
        ("LA+CVaR alpha 0.95", 0.95, None), ("CVaR", 0.8, None), ("CNN-RNN", None, None), ("focal", None, None),
        ("LA+CVaR", None, None),
    ],
)  # fmt: skip
def test_which_labels_are_quoted(label, alpha, score):
    row = quoted_row(label, alpha)
    assert (None if row is None else row["score"]) == score


def test_the_quotes_are_packaged():
    assert "quoted_paper.json" in (ROOT / "setup.cfg").read_text()
    assert (ROOT / "pipeline" / "studies" / "quoted_paper.json").is_file()
