"""The paper's printed numbers, for comparison."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from .record import ALPHA
from .results import Results

GRADIENT = re.compile(r"\b(?:exact|published)(?: gradient)?\b", re.IGNORECASE)


@cache
def quoted_paper() -> Mapping[str, Any]:
    """The paper's printed Tables 1 and 2 with their source; quoted, not computed here."""
    return json.loads(Path(__file__).with_name("quoted_paper.json").read_text(encoding="utf-8"))


def quoted_row(label: str, alpha: float | None) -> dict[str, float] | None:
    """The paper's printed numbers for a configuration; None when it is none of the paper's.

    Args:
        label: of the configuration, such as ``LA+CVaR alpha 0.8`` or ``CE``.
        alpha: of CVaR; None where there is none.

    Returns:
        ``f1_male``, ``f1_female``, ``score`` and ``abs_gap`` as printed.
    """
    for row in quoted_paper()["table1"]["rows"]:
        same = (alpha is None) == (row["alpha"] is None) and (alpha is None or abs(alpha - row["alpha"]) < 1e-9)
        if same and _plain_label(label) in map(_plain_label, (row["configuration"], *row["also"])):
            return {key: row[key] for key in ("f1_male", "f1_female", "score", "abs_gap")}
    return None


def _plain_label(label: str) -> str:
    return re.sub(r"[^a-z0-9]", "", GRADIENT.sub("", ALPHA.sub("", label)).lower())


def quoted_numbers(results: Results) -> dict[str, Mapping[str, float]]:
    """Numbers of others beside the study's configurations, by label: the study's own quotes, else the paper's."""
    study = results.study
    if study.quoted is not None:
        return {label: study.quoted[label] for label in study.labels if label in study.quoted}
    if list(results.any_table.group_names) != quoted_paper()["groups"]:
        return {}
    first = {run.label: run for run in reversed(study.runs)}
    found = {label: quoted_row(label, first[label].alpha) for label in study.labels}
    return {label: row for label, row in found.items() if row is not None}
