"""Alpha chosen on the scans that chose the epoch, and what that gives on the scans that judge."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from .numbers import Row, make_row, number_keys
from .record import StudyRun
from .results import Results, numbers_of, replicate_groups, replicates_of, score_on_choosing_scans


@dataclass(frozen=True)
class Selection:
    name: str  # of the row, "<configuration>, alpha chosen"
    alphas: tuple[float, ...]  # among which was chosen
    # A row a choice: seed, repeat, fold, device, alpha, score_choosing, score, gap (two groups), abs_gap; the gaps are
    # NaN of a fold that has scans of one group only.
    choices: pd.DataFrame
    row: Row | None  # of the chosen ones; None when no seed has all folds and alphas
    lacking: int  # choices that cannot be made, as a run is missing
    optimism: float | None  # of the best row, expected_best of as many means over seeds; None when it is not known


def expected_best(choices: int, spread: float) -> float:
    """How much the best of several equal configurations looks better than it is: ``spread`` x E[max of K normals].

    E[max] = integral of x K phi(x) Phi(x)^(K-1), by scipy. K is ``choices`` (1 or more), ``spread`` the standard
    deviation of what is chosen among: runs, or means of S runs, which vary sqrt(S) times less.
    """
    from scipy import stats

    return spread * float(stats.norm.expect(lambda x: x * choices * stats.norm.cdf(x) ** (choices - 1)))


def select_alpha(
    results: Results, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[Selection, ...]:
    """What choosing alpha on the scans that chose the epoch gives on the scans that judge.

    Of each seed and fold that has every alpha, the run of the highest P on its choosing scans is taken (of equal ones
    the first), and the judged scans of the taken runs are put together as in :func:`~.read_results`. () of a study in
    which no scans choose.
    """
    if results.study.fixed_epoch:
        return ()
    families: dict[tuple[str, str], list[StudyRun]] = {}
    for run in results.study.runs:
        if run.alpha is not None:
            families.setdefault(run.family, []).append(run)
    found = []
    for (system, label), runs in families.items():
        alphas = tuple(dict.fromkeys(run.alpha for run in runs if run.alpha is not None))
        if len(alphas) < 2:
            continue
        name = f"{label}, alpha chosen"
        taken, lacking = _choose(results, runs, len(alphas))
        grouped = [[run for run, _ in group] for group in taken.values()]
        replicates = [r for group in grouped for r in replicates_of(results.study, group, results.tables, name)]
        planned = max(len(replicates), len(taken))
        row = make_row(replicates, system, None, planned, confidence, resamples, seed) if replicates else None
        choices = [_choice(results, run, score) for group in taken.values() for run, score in group]
        optimism = _optimism(results, {run.label for run in runs}, len(alphas))
        found.append(Selection(name, alphas, pd.DataFrame(choices), row, lacking, optimism))
    return tuple(found)


def _choose(
    results: Results, runs: Sequence[StudyRun], alphas: int
) -> tuple[dict[tuple[Any, ...], list[tuple[StudyRun, float]]], int]:
    """The best run of each fold and its P where it was chosen, by seed; and how many choices lack a run."""
    taken: dict[tuple[Any, ...], list[tuple[StudyRun, float]]] = {}
    situations: dict[tuple[Any, ...], list[StudyRun]] = {}
    for (_, *key), group in replicate_groups(results.study, runs).items():
        for run in group:
            situations.setdefault((*key, run.fold), []).append(run)
    lacking = 0
    for (*key, _), candidates in situations.items():
        chosen = taken.setdefault(tuple(key), [])
        scores = [score_on_choosing_scans(run) if run.id in results.tables else None for run in candidates]
        known = [score for score in scores if score is not None]
        if len(candidates) < alphas or len(known) < len(scores):
            lacking += 1
        else:
            best = int(np.argmax(known))
            chosen.append((candidates[best], known[best]))
    return taken, lacking


def _choice(results: Results, run: StudyRun, score: float) -> dict[str, Any]:
    table = results.tables[run.id]
    numbers = dict(numbers_of(table))
    if len(table.present_groups().group_names) < 2:  # this fold has scans of one group only
        numbers |= dict.fromkeys(("gap", "abs_gap"), float("nan"))
    at = {"seed": run.seed, "repeat": run.repeat, "fold": run.fold, "device": run.device, "alpha": run.alpha}
    judged = {name: numbers[name] for name in number_keys(results.judged) if not name.startswith("f1_")}
    return at | {"score_choosing": score} | judged


def _optimism(results: Results, labels: set[str], choices: int) -> float | None:
    """:attr:`Selection.optimism`: the spread of a row is the standard error s / sqrt(S) of its mean over S seeds."""
    values = [[r.numbers["score"] for r in results.replicates[label]] for label in labels]
    errors = [np.var(each, ddof=1) / len(each) for each in values if len(each) > 1]
    return expected_best(choices, float(np.sqrt(np.mean(errors)))) if errors else None
