"""Predictions made from confusion counts: what the paper's tables, or a simulation, give."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fairlung.pipeline.evaluation.predictions import Predictions


def predictions_of(
    confusion: Any, class_names: Sequence[str] = "", group_names: Sequence[str] = ("male", "female")
) -> Predictions:
    """One row a scan of [G, C, C] counts, in the order group, label, prediction."""
    counts = np.asarray(confusion)
    group, label, prediction = (np.repeat(axis, counts.ravel()) for axis in np.indices(counts.shape).reshape(3, -1))
    names = tuple(class_names) or tuple("abcdefg"[: counts.shape[1]])
    scan = np.array([f"scan{i:04d}" for i in range(len(label))])
    return Predictions(scan, label, prediction, group, None, names, tuple(group_names), ("sex",))


def paper_cells() -> dict[str, Any]:
    """tests/data/paper_cells.json."""
    return json.loads((Path(__file__).parents[1] / "data" / "paper_cells.json").read_text())
