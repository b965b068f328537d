"""Pieces that several reports share."""

from importlib.metadata import version
from typing import Any

from .. import __version__
from ..comparison.records import Comparison
from ..evaluation.records import Audit
from ..evaluation.resampling import Interval
from ..evaluation.wording import span, value_text

LIBRARIES = ("numpy", "scipy", "scikit-learn", "statsmodels", "fairlearn")
OPTIMISTIC = "The val split chooses the checkpoint of a training, so the numbers on it are optimistic."
NONE = "\u2013"  # in a table, where there is no number


def scan_facts(result: Audit | Comparison) -> tuple[tuple[str, str], ...]:
    unknown = result.n_unknown
    patients = f" of {result.n_patients:,} patients" if result.n_patients else ""
    scans = f"{result.n:,}{patients}" + (f" (and {unknown:,} of unknown group, left out)" if unknown else "")
    groups = f"{', '.join(result.group_names)} (by {', '.join(result.group_by)})"
    return ("Scans", scans), ("Classes", ", ".join(result.class_names)), ("Groups", groups)


def synthetic_badge(synthetic: bool | None) -> tuple[str, str]:
    """Badge and text of a report on phantoms; empty for other scans."""
    return ("SYNTHETIC", "The scans are phantoms: nothing here is about patients.") if synthetic else ("", "")


def value_and_span(estimate: Interval, signed: bool) -> tuple[str, str]:
    return value_text(estimate.value, signed), span(estimate, signed)


def library_versions() -> str:
    return ", ".join([f"fairlung {__version__}", *(f"{name} {version(name)}" for name in LIBRARIES)])


def readable_width(figure: Any) -> int:
    """CSS pixels under which the text of a wide figure would be too small; 0 for a narrow one."""
    pixels = 96 * figure.get_figwidth()
    return 0 if pixels <= 500 else int(0.77 * pixels)
