"""How numbers and verdicts are worded, in every place that shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from .resampling import Interval

POWER = 0.8
MOST_PLANNED = 1_000_000  # scans; more are called that and more
# What a person reads, by the key of the number in JSON, CSV and MLflow; F1 of a group is `f1_<group>`.
NAMES = {
    "score": "P", "gap": "gap", "abs_gap": "|gap|", "f1_macro": "pooled macro F1", "worst_cell_f1": "worst cell F1",
    "f1": "F1", "precision": "precision", "recall": "recall", "accuracy": "accuracy",
    "auc": "AUC", "brier": "Brier score", "ece": "ECE", "nll": "NLL",
    "underdiagnosis": "underdiagnosis", "overdiagnosis": "overdiagnosis", "sensitivity": "sensitivity",
    "specificity": "specificity", "average_precision": "AUPRC", "equity_scaled_auc": "ES-AUC",
}  # fmt: skip

ABOUT_NUMBERS = (
    "P is the mean over the groups of their macro F1. The gap is that of the first group minus that of the second; of "
    "more groups there is |gap|, the largest difference. 0 is fair."
)
NO_NORMAL_CLASS = "no class is called normal, healthy or no finding; fairlung audit --normal names one"
SHARE_HIGHER = "share of resamples with the higher P"


@dataclass(frozen=True)
class Verdict:
    """A statement in words; ``level`` is finding, warning, inconclusive, no-statement or note."""

    level: Literal["finding", "warning", "inconclusive", "no-statement", "note"]
    text: str


def number_name(key: str, group_names: Sequence[str] = ()) -> str:
    """The name of a ``key`` of :data:`NAMES` or ``<key>_<group>``: ``P``, ``F1 male``, ``gap (male minus female)``."""
    if key == "gap" and group_names:
        return f"{NAMES[key]} ({' minus '.join(group_names)})"
    number, _, group = key.partition("_")
    return NAMES[key] if key in NAMES else f"{NAMES[number]} {group}"


def value_text(value: float, signed: bool = False) -> str:
    """A number in words: ``0.847``."""
    return f"{value:{'+' if signed else ''}z.3f}"


def span(estimate: Interval, signed: bool = False) -> str:
    """The interval of an estimate in words: ``0.783 to 0.906``."""
    return f"{value_text(estimate.low, signed)} to {value_text(estimate.high, signed)}"


def span_text(estimate: Interval, signed: bool = False) -> str:
    """An estimate in words: ``0.847 (0.783 to 0.906)``."""
    return f"{value_text(estimate.value, signed)} ({span(estimate, signed)})"


def few_scans(scans: Mapping[str, int], least: int) -> str:
    """Groups of which nothing is said, by their scans: ``fewer than 10 scans of women (3)``; empty when there is none.

    The one floor under the verdicts of an audit, a comparison and a post-processing, and under tables.
    """
    small = ", ".join(f"{name} ({n})" for name, n in scans.items() if n < least)
    return f"fewer than {least} scans of {small}" if small else ""


def in_percent(share: float) -> str:
    """A share in whole per cent: ``95 %``."""
    return f"{100 * share:.0f} %"


def percent(share: float) -> str:
    """A share that somebody chose, with its decimals: ``97.5 %``."""
    return f"{100 * share:g} %"


def one_time_in(confidence: float) -> str:
    """How often chance goes beyond what it stays below with a confidence: ``one time in 20``."""
    return f"one time in {1 / (1 - confidence):.3g}"


def planned(number: float) -> str:
    """A number of scans or runs to plan with: up to two figures, as it is no more exact than that, and never fewer."""
    if number > MOST_PLANNED:
        return f"{MOST_PLANNED:,} or more"
    digits = max(0, len(str(int(number))) - 2)
    return f"{int(-(-number // 10**digits) * 10**digits):,}"
