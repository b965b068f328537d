"""All the numbers of a study, for its tables and its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ..evaluation.audit import fair_model
from ..evaluation.resampling import check_resampling
from .numbers import Best, Row, device_table, make_row, tell_best
from .quoted import quoted_numbers
from .record import StudyError, load_study, status_text
from .results import Results, read_results
from .selection import Selection, select_alpha

FAIR_SAMPLES = 1000  # draws of a perfectly fair model


@dataclass(frozen=True)
class StudyTables:
    """Everything that the page shows, as numbers.

    Args:
        results: the finished part of the study.
        rows: of Table 1, in the study's order.
        best: by number, of those that were tested.
        selections: of each system with several values of alpha.
        devices: Table 2, a row a configuration and device, and a row a difference.
        quoted: numbers of others by label.
        confidence: of every interval.
        resamples: bootstrap draws.
        seed: of the draws.
    """

    results: Results
    rows: tuple[Row, ...]
    best: tuple[Best, ...]
    selections: tuple[Selection, ...]
    devices: pd.DataFrame
    quoted: Mapping[str, Mapping[str, float]]
    confidence: float
    resamples: int
    seed: int


def study_tables(
    folders: Sequence[str | Path], confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> StudyTables:
    """All numbers of a study.

    Args:
        folders: the study, and others with which Table 2 is joined (one a machine).
        confidence: of every interval; tests are at the level 1 - confidence.
        resamples: bootstrap draws, and permutations.
        seed: same seed, same tables.

    Raises:
        StudyError: a folder is no study, nothing is finished, or the studies do not belong together.
        ValueError: a setting is out of range.
    """
    check_resampling(confidence, resamples)
    found = [read_results(load_study(folder)) for folder in folders]
    results = found[0]
    first = {run.label: run for run in reversed(results.study.runs)}
    rows = tuple(
        make_row(
            made, first[label].system, first[label].alpha, results.planned[label], confidence, resamples, seed
        )
        for label, made in results.replicates.items()
        if made
    )  # fmt: skip
    if not rows:
        raise StudyError(
            f"{results.study.folder}: no seed has all its folds yet ({status_text(results.study)}), so there is no "
            "number over all scans"
        )
    return StudyTables(
        results,
        rows,
        tell_best(results.replicates, confidence, resamples, seed),
        select_alpha(results, confidence, resamples, seed),
        device_table(found, confidence, resamples, seed),
        quoted_numbers(results),
        confidence,
        resamples,
        seed,
    )


def fair_gap(tables: StudyTables) -> tuple[str, float]:
    """The configuration of the highest P, and the mean |gap| of a perfectly fair model as good as it."""
    best = max(tables.rows, key=lambda row: row.estimates["score"].value)
    rng = np.random.default_rng(tables.seed)
    draws = [
        fair_model(replicate.predictions.present_groups().confusion()[:-1], FAIR_SAMPLES, rng)["abs_gap"].mean()
        for replicate in tables.results.replicates[best.label]
    ]
    return best.label, float(np.mean(draws))
