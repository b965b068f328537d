"""metrics.json and the confusion matrices of a labelled table."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..common import run_folder
from ..common.distributed import is_primary
from ..data.groups import group_columns
from ..evaluation.metrics import fairness_summary
from ..evaluation.predictions import load_predictions

logger = logging.getLogger(__name__)


def write_evaluation(
    predictions: str | Path,
    class_names: Sequence[str],
    group_names: Sequence[str],
    group_by: str | Sequence[str] = "sex",
    split: str = "",
    checkpoint: str = "",
) -> dict[str, Any]:
    """Summarise a labelled prediction table beside it: metrics.json, and confusion.png where matplotlib is installed.

    Returns:
        the content of metrics.json: split, checkpoint, whether the scans are synthetic, class and group names, the
        group columns, confusion counts, and ``metrics`` (:func:`~.fairness_summary`); nothing in processes other than
        the first, which write nothing.
    """
    if not is_primary():
        return {}
    predictions = Path(predictions)
    columns = group_columns(group_by)
    # Only the predicted class counts here, so one scan whose output is not finite does not lose the others.
    table = load_predictions(predictions, class_names, group_names, columns, with_probabilities=False)
    confusion = torch.from_numpy(table.confusion())
    result = {
        "split": split,
        "checkpoint": checkpoint,
        "synthetic": table.synthetic,
        "class_names": list(class_names),
        "group_names": list(group_names),
        "group_by": list(columns),
        "confusion": confusion.tolist(),
        "metrics": fairness_summary(confusion, class_names, group_names),
    }
    predictions.with_name(run_folder.METRICS).write_text(json.dumps(result, indent=2) + "\n")
    try:
        from .figures import confusion_figure

        figure = confusion_figure(confusion.numpy(), list(class_names), list(group_names), synthetic=table.synthetic)
    except ImportError as error:  # a training must not end on a missing picture
        logger.warning("no picture of the confusion matrices: %s", error)
    else:
        figure.savefig(predictions.with_name(run_folder.CONFUSION), dpi=150, bbox_inches="tight")
    return result
