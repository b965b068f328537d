"""How far the verdict on the gap of two groups leans on the records: what if some sexes or labels are wrong?"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from . import records
from .fairness_criteria import IntervalMethod, confusion_intervals, is_apart, permutation_test, summaries
from .patients import Clusters
from .predictions import Predictions
from .resampling import Floats, estimate, interval

SHARES = (0.01, 0.02, 0.05, 0.1)  # of the records that may be wrong
TABLES = 20  # of changed records that an answer is the mean of
MOST_CHANGED = 1000  # records that are tried for the fewest that turn the verdict


def tipping_point(
    known: Predictions,
    settings: records.AuditSettings,
    found: Mapping[str, Any],
    fair: records.FairModel,
    p_value: float,
    rng: np.random.Generator,
) -> records.TippingPoint | None:
    """What becomes of the gap of two groups, its interval and its verdict when records are changed.

    First at random: a share of the scans (of patients, and of their scans together, where they have several) goes to
    the other group, or a share of the scans to another class, each as likely. The numbers are the mean over
    such tables, and their resamples together. This asks whether the verdict needs every record to be right. It does not
    undo errors that are in the table already: where these are random they have made the gap smaller.

    Then in the worst case, for the fewest records that turn a finding into none, or none into one: each step takes the
    change that moves the gap most. Fewer may do, as nobody tried all sets of them.

    ``found``, ``fair`` and ``p_value`` are what the audit says of the gap. A change never takes the last scan of a
    class from a group. None with more than two groups.
    """
    if "gap" not in found:
        return None
    finding = is_apart(estimate(*found["gap"]), fair.gap_mean or 0.0) and p_value <= 1 - settings.confidence
    whats = ("group", "label") if len(np.unique(known.label)) > 1 else ("group",)
    tried = [at_random(known, what, share, settings, rng) for what in whats for share in SHARES]
    rows = {(row.what, row.n): row for row in tried}.values()  # of few scans, shares that are one record are one row
    fewest = {what: _fewest(known, what, settings, finding) for what in whats}
    return records.TippingPoint(tuple(rows), fewest["group"], fewest.get("label"))


def fair_gap(confusion: NDArray[Any]) -> float:
    """The gap of a fair model of counts [2, C, C] in expectation: both groups with the shares of both together."""
    pooled = confusion.sum(0)
    shares = pooled / np.maximum(pooled.sum(-1, keepdims=True), 1)
    return float(summaries(shares * confusion.sum(-1, keepdims=True))["gap"])


def _judged(
    confusion: NDArray[Any], patients: Clusters | None, settings: records.AuditSettings, part: int,
    rng: np.random.Generator,
) -> tuple[float, Floats, float]:  # fmt: skip
    """The gap of a table, its resamples and p, of a ``part`` of the draws of the audit."""
    draws, permutations = (max(100, number // part) for number in (settings.resamples, settings.permutations))
    method = cast(IntervalMethod, settings.method)
    found, drawn = confusion_intervals(confusion, rng, draws, settings.confidence, method, patients)
    return (
        float(found["gap"][0]),
        drawn["gap"],
        permutation_test(confusion, permutations, rng, patients, by_counts=True),
    )


def changed(known: Predictions, what: str, share: float, rng: np.random.Generator) -> tuple[Predictions, int]:
    """A table with a share of its groups or labels (``what``) changed at random, at least one; and how many.

    Of each class and group one scan (patient) stays, so that no cell is emptied.
    """
    patient = known.patient if what == "group" and known.repeated else None
    _, first, of = np.unique(
        np.arange(len(known.label)) if patient is None else patient, return_index=True, return_inverse=True
    )
    number = max(1, round(share * len(first)))
    order = rng.permutation(len(first))
    rank = np.argsort(order)[of]  # of each scan, by its record
    cell = known.group * len(known.class_names) + known.label
    by_rank = np.argsort(rank, kind="stable")
    _, kept = np.unique(cell[by_rank], return_index=True)
    free = np.setdiff1d(order, of[by_rank[kept]], assume_unique=False)
    taken = np.isin(of, rng.permutation(free)[:number])
    if what == "group":
        return replace(known, group=np.where(taken, 1 - known.group, known.group)), min(number, len(free))
    classes = np.unique(known.label)  # those that the scans are of
    step = rng.integers(1, len(classes), len(known.label))
    other = classes[(np.searchsorted(classes, known.label) + step) % len(classes)]
    return replace(known, label=np.where(taken, other, known.label)), min(number, len(free))


def at_random(
    known: Predictions, what: str, share: float, settings: records.AuditSettings, rng: np.random.Generator
) -> records.WrongRecords:
    """What becomes of the gap when a share of the groups or labels (``what``) is changed at random."""
    tables = min(TABLES, max(3, settings.resamples // 500))
    found, expected, number = [], [], 0
    for _ in range(tables):
        table, number = changed(known, what, share, rng)
        confusion = table.confusion()[:-1]
        found.append(_judged(confusion, Clusters.of(table), settings, 2 * tables, rng))
        expected.append(fair_gap(confusion))
    values, draws, p_values = zip(*found, strict=True)
    value = float(np.mean(values))
    gap = estimate(value, *np.clip(interval(np.concatenate(draws), value, settings.confidence), -1, 1))
    p_value = float(np.mean(p_values))
    finding = is_apart(gap, float(np.mean(expected))) and p_value <= 1 - settings.confidence
    return records.WrongRecords(what, share, number, gap, p_value, finding)


def _fewest(known: Predictions, what: str, settings: records.AuditSettings, finding: bool) -> int | None:
    """The fewest records found that turn the verdict, of at most a tenth of them; None where none do.

    Labels of patients with several scans are not tried.
    """
    patients = Clusters.of(known)
    if patients is not None and what == "label":
        return None
    clusters = _single_scans(known) if patients is None else patients
    path = _worst_path(clusters, what, finding)

    def turned(steps: int) -> bool:
        of = Clusters(clusters.patterns, path[steps])
        confusion = np.einsum("pg,pck->gck", of.count, of.patterns).astype(np.int64)
        rng = np.random.default_rng(settings.seed)
        value, draws, p_value = _judged(confusion, of if patients else None, settings, 10, rng)
        gap = estimate(value, *interval(draws, value, settings.confidence))
        return (is_apart(gap, fair_gap(confusion)) and p_value <= 1 - settings.confidence) != finding

    low, high = 0, len(path) - 1  # no record turns it; all of the path do
    if not high or not turned(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if turned(middle) else (middle, high)
    return high


def _single_scans(known: Predictions) -> Clusters:
    """Scans of single patients, each kind of label and prediction a pattern."""
    counts, classes = known.confusion()[:-1], len(known.class_names)
    return Clusters(np.eye(classes**2).reshape(-1, classes, classes), counts.reshape(len(counts), -1).T)


def _worst_path(clusters: Clusters, what: str, finding: bool) -> list[NDArray[np.int64]]:
    """The counts [P, 2] after each step that moves the gap most: towards 0 of a ``finding``, else away from it."""
    patterns, count = clusters.patterns, clusters.count
    start = np.einsum("pg,pck->gck", count, patterns)
    used = start.sum(-1) > 0
    if what == "group":
        moves = [(p, g, p, 1 - g) for p, g in np.ndindex(*count.shape)]
    else:
        classes = range(patterns.shape[-1])
        there = [c for c in classes if used[0, c]]
        moves = [
            (c * len(classes) + k, g, d * len(classes) + k, g)
            for g in range(2) for c in there for d in there if c != d for k in classes
        ]  # fmt: skip
    source, of, target, to = np.array(moves).T
    delta = np.zeros((len(moves), *start.shape))
    at = np.arange(len(moves))
    np.add.at(delta, (at, of), -patterns[source])
    np.add.at(delta, (at, to), patterns[target])
    sign = (-1 if finding else 1) * (np.sign(summaries(start)["gap"] - fair_gap(start)) or 1)
    path = [count]
    for _ in range(min(MOST_CHANGED, int(count.sum()) // 10)):
        trial = start + delta
        possible = (path[-1][source, of] > 0) & ((trial.sum(-1) > 0) == used).all((1, 2))
        if not possible.any():
            break
        best = int(np.where(possible, sign * summaries(np.maximum(trial, 0))["gap"], -np.inf).argmax())
        start, count = trial[best], path[-1].copy()
        count[source[best], of[best]] -= 1
        count[target[best], to[best]] += 1
        path.append(count)
    return path
