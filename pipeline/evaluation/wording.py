"""How numbers and verdicts are worded, in every place that shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

POWER = 0.8


@dataclass(frozen=True)
class Verdict:
    """A statement in words; ``level`` is finding, inconclusive, no-statement or note."""

    level: Literal["finding", "inconclusive", "no-statement", "note"]
    text: str


def span(estimate: Mapping[str, float], signed: bool = False) -> str:
    """The interval of an estimate in words: ``0.783 to 0.906``."""
    sign = "+" if signed else ""
    return f"{estimate['low']:{sign}.3f} to {estimate['high']:{sign}.3f}"


def in_percent(share: float) -> str:
    """A share in whole per cent: ``95 %``."""
    return f"{100 * share:.0f} %"


def planned(number: float) -> str:
    """A number of scans or runs to plan with: up to two figures, as it is no more exact than that, and never fewer."""
    digits = max(0, len(str(int(number))) - 2)
    return f"{int(-(-number // 10**digits) * 10**digits):,}"


def span_text(estimate: Mapping[str, float], signed: bool = False) -> str:
    """An estimate in words: ``0.847 (0.783 to 0.906)``."""
    sign = "+" if signed else ""
    return f"{estimate['value']:{sign}.3f} ({estimate['low']:{sign}.3f} to {estimate['high']:{sign}.3f})"


def number_name(key: str, group_names: Sequence[str]) -> str:
    """What a number of :func:`~.headline` is called in tables and figures."""
    names = {"score": "P", "abs_gap": "|gap|", "f1_macro": "pooled macro F1", "worst_cell_f1": "lowest F1 of a cell"}
    names |= {"gap": f"gap ({' minus '.join(group_names)})"} | {f"f1_{name}": f"F1 {name}" for name in group_names}
    return names[key]
