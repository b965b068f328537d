"""What an evaluation can answer of two checklists for papers: CLAIM 2024 and TRIPOD+AI.

Tejani et al., Checklist for Artificial Intelligence in Medical Imaging (CLAIM): 2024 Update, Radiology: AI 6 (2024).
Collins et al., TRIPOD+AI statement, BMJ 385 (2024) e078378. The items' names here are short forms of theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .. import __version__
from ..evaluation.audit_words import few_groups, p_text
from ..evaluation.records import Audit
from ..evaluation.wording import percent, span_text
from ..networks.catalogue import said_of_weights
from .document import Table
from .evidence import Evidence

NOT_STATED = "not stated"


class Known(NamedTuple):
    """What the answers are made of."""

    evidence: Evidence
    model: Mapping[str, Any]  # settings of the checkpoint

    @property
    def audit(self) -> Audit:
        return self.evidence.audit

    @property
    def trained(self) -> Mapping[str, Any]:
        """Settings of the training."""
        return self.evidence.settings


class Item(NamedTuple):
    claim: str  # number, "" where the other checklist alone asks
    tripod: str
    topic: str
    key: str = ""  # where the answer is from
    answer: Callable[[Known], str | None] = lambda known: None


def _named(values: Mapping[str, Any], *names: str) -> str | None:
    """``epochs 70, batch_size 2`` of the settings that are known."""
    return ", ".join(f"{name} {values[name]}" for name in names if values.get(name) is not None) or None


def _splits(known: Known) -> str | None:
    cells = known.evidence.cells
    if cells is None:
        return None
    return ", ".join(f"{split} {n:,} scans" for split, n in cells.groupby("split", sort=False)["n"].sum().items())


def _intervals(known: Known) -> str:
    settings = known.audit.settings
    return (
        f"{percent(settings.confidence)} intervals by {settings.resamples:,} {settings.method} bootstrap resamples; "
        f"permutation test of the gap, {settings.permutations:,} draws, {p_text(known.audit.permutation.p_value)}"
    )


def _performance(known: Known) -> str:
    overall = known.audit.overall
    found = [
        f"P {span_text(overall.score)}",
        *(f"F1 {group.group} {span_text(group.f1)}" for group in known.audit.groups),
    ]
    gap = f"|gap| {span_text(overall.abs_gap)}" if overall.gap is None else f"gap {span_text(overall.gap, signed=True)}"
    return "; ".join([*found, gap, *filter(None, [few_groups(known.audit)])])


ITEMS = (
    Item("7", "5a", "Sources of the scans"),
    Item("8", "6b", "Who was eligible"),
    Item("9", "7", "Preprocessing", "settings of the checkpoint",
         lambda known: _named(known.model, "window", "trim_fraction", "num_slices", "image_size", "crop_size")),
    Item("11", "", "De-identification"),
    Item("12", "11", "Missing data", "n_unknown",
         lambda known: f"{known.audit.n_unknown} scans of unknown {', '.join(known.audit.group_by)}, in no number"),
    Item("14", "8a", "Reference standard"),
    Item("19", "12a", "How scans were assigned to splits", "cells.csv", _splits),
    Item("20", "", "Level at which splits are disjoint"),
    Item("21", "10", "Intended sample size"),
    Item("22", "22", "The model", "settings.json", lambda known: _named(known.trained, "network")),
    Item("23", "18f", "Software", "version", lambda known: f"fairlung {__version__}, MONAI, PyTorch; Apache-2.0"),
    Item("24", "", "Initial weights", "settings.json", lambda known: said_of_weights(known.trained)),
    Item("25", "12c", "Training", "settings.json", lambda known: _named(
        known.trained, "system", "epochs", "batch_size", "accumulate", "learning_rate", "weight_decay", "seed")),
    Item("", "13", "Class imbalance", "settings.json", lambda known: _named(known.trained, "system", "tau")),
    Item("", "14", "Fairness in training", "settings.json", lambda known: _named(known.trained, "system", "alpha")),
    Item("26", "12c", "How the final model was chosen", "history.csv", lambda known: known.evidence.marked_by or None),
    Item("28", "12e", "Measures of performance", "overall", lambda known: (
        "F1, precision and recall of each class and group; P, the mean of the groups' macro F1; the gap of groups")),
    Item("29", "12e", "Uncertainty and significance", "settings, permutation", _intervals),
    Item("30", "", "Robustness"),
    Item("31", "", "Explanations", "errors.json", lambda known: (
        f"Grad-CAM of {len(known.evidence.errors)} errors; not validated" if known.evidence.errors else None)),
    Item("32", "", "Internal test data", "metrics.json", lambda known: (
        f"{known.audit.n:,} scans of the split {known.evidence.split}" if known.evidence.split else None)),
    Item("33", "", "External test data"),
    Item("36", "20b", "Who was judged", "groups", lambda known: ", ".join(
        f"{group.group} {group.n:,} scans" for group in known.audit.groups)),
    Item("37", "23a", "Performance, with intervals, by group", "overall, groups", _performance),
    Item("39", "", "Failures", "worst_cell", lambda known: (
        f"lowest F1: {known.audit.worst_cell.group} {known.audit.worst_cell.class_name}, "
        f"{span_text(known.audit.worst_cell.f1)}, {known.audit.worst_cell.n} scans")),
    Item("42", "18c", "Protocol"),
    Item("44", "18a", "Funding"),
)  # fmt: skip


def checklist(evidence: Evidence, model: Mapping[str, Any]) -> Table:
    """The items with their answers; "not stated" where the evidence has none, never a guess.

    Args:
        model: settings of the checkpoint (:func:`~.model_settings`), empty where it is not at hand.
    """
    known = Known(evidence, model)
    rows = []
    for item in ITEMS:
        answer = item.answer(known)
        rows.append((item.claim, item.tripod, item.topic, answer or NOT_STATED, item.key if answer else ""))
    return Table("Reporting checklists", ("CLAIM 2024", "TRIPOD+AI", "item", "answer", "from"), tuple(rows))
