"""All the numbers of a study, for its tables and its page, and the paper's printed ones beside them."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..common.names import CLASS_NAMES
from ..evaluation.fairness_criteria import fair_model
from ..evaluation.patients import Clusters
from ..evaluation.resampling import check_resampling
from .numbers import Best, Row, device_table, make_row, tell_best
from .record import ALPHA, StudyError, load_study, status_text
from .results import Results, read_results
from .selection import Selection, select_alpha
from .sites import SiteRow, site_rows

FAIR_SAMPLES = 1000  # draws of a perfectly fair model
GRADIENT = re.compile(r"\b(?:exact|published)(?: gradient)?\b", re.IGNORECASE)


@dataclass(frozen=True)
class StudyTables:
    results: Results
    rows: tuple[Row, ...]  # of Table 1, in the study's order
    best: tuple[Best, ...]  # by number, of those that were tested
    selections: tuple[Selection, ...]  # of each system with several values of alpha
    devices: pd.DataFrame  # Table 2, a row a configuration and device, and a row a difference
    quoted: Mapping[str, Mapping[str, float]]  # numbers of others by label
    sites: tuple[SiteRow, ...]  # of each configuration at each site that was left out
    confidence: float
    resamples: int
    seed: int


def study_tables(
    folders: Sequence[str | Path], confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> StudyTables:
    """All numbers of the study in the first folder; Table 2 joins the others (one a machine).

    ``confidence`` is that of every interval, and tests are at the level 1 - confidence. ``resamples`` counts bootstrap
    draws, and permutations.

    Raises:
        StudyError: a folder is no study, nothing is finished, or the studies do not belong together.
        ValueError: a setting is out of range.
    """
    check_resampling(confidence, resamples)
    found = [read_results(load_study(folder)) for folder in folders]
    results = found[0]
    first = {run.label: run for run in reversed(results.study.runs)}
    settings = confidence, resamples, seed
    whole = ((first[label], made) for label, made in results.replicates.items() if made)
    rows = tuple(make_row(made, run.system, run.alpha, results.planned[run.label], *settings) for run, made in whole)
    if not rows:
        text = f"{results.study.folder}: no seed has all its folds yet ({status_text(results.study)})"
        raise StudyError(f"{text}, so there is no number over all scans")
    best, selections = tell_best(results.replicates, *settings), select_alpha(results, *settings)
    devices = device_table(found, *settings)
    sites = site_rows(results, *settings)
    return StudyTables(results, rows, best, selections, devices, quoted_numbers(results), sites, *settings)


def fair_gap(tables: StudyTables) -> tuple[str, float]:
    """The configuration of the highest P, and the mean |gap| of a perfectly fair model as good as it."""
    best = max(tables.rows, key=lambda row: row.estimates["score"].value)
    rng = np.random.default_rng(tables.seed)
    judged = (replicate.predictions.known().present_groups() for replicate in tables.results.replicates[best.label])
    counts = ((table.confusion()[:-1], Clusters.of(table)) for table in judged)
    draws = [fair_model(table, FAIR_SAMPLES, rng, patients)["abs_gap"].mean() for table, patients in counts]
    return best.label, float(np.mean(draws))


@cache
def quoted_paper() -> Mapping[str, Any]:
    """The paper's printed Tables 1 and 2 with their source; quoted, not computed here."""
    return json.loads(Path(__file__).with_name("quoted_paper.json").read_text(encoding="utf-8"))


def quoted_row(label: str, alpha: float | None) -> dict[str, float] | None:
    """The paper's printed ``f1_male``, ``f1_female``, ``score`` and ``abs_gap``; None where it lacks the configuration.

    A label is such as ``LA+CVaR alpha 0.8`` or ``CE``.
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
    table = results.any_table
    if list(table.group_names) != quoted_paper()["groups"] or {*table.class_names} != {*CLASS_NAMES}:
        return {}
    first = {run.label: run for run in reversed(study.runs)}
    found = {label: quoted_row(label, first[label].alpha) for label in study.labels}
    return {label: row for label, row in found.items() if row is not None}
