"""Paired resampling of several systems' predictions of the same scans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import ceil, comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common.errors import UserError
from ..common.text import quoted
from .audit import summaries
from .predictions import Ints, Predictions
from .resampling import Floats
from .wording import POWER

TESTED = ("score", "abs_gap")
TIE = 1e-12  # smaller differences come of adding up the same fractions in another order
LARGEST_EFFECT = 4.0  # in standard deviations; three runs show it, and above it the noncentral t is unreliable
CHUNK_BYTES = 200_000_000  # memory of the resamples that are worked on at a time


class CompareError(UserError, ValueError):
    """Systems that cannot be compared: not on the same scans, or with other classes or groups."""


def align(systems: Mapping[str, Sequence[Predictions]]) -> dict[str, list[Predictions]]:
    """Every table (a system has one a run) with the scans in the order of the first one.

    CompareError: fewer than two systems, one without a table, or tables that differ in classes, groups, scans, or the
    class or group of a scan; the first such scan is named.
    """
    if len(systems) < 2:
        raise CompareError(f"a comparison needs two systems at least, got {len(systems)}")
    if empty := [name for name, tables in systems.items() if not tables]:
        raise CompareError(f"{empty[0]} has no predictions")
    first = next(iter(systems))
    reference, aligned = systems[first][0], {}
    for name, tables in systems.items():
        called = [name] if len(tables) == 1 else [f"{name} (run {run + 1})" for run in range(len(tables))]
        aligned[name] = [_like(reference, first, *pair) for pair in zip(tables, called, strict=True)]
    return aligned


def _like(reference: Predictions, first: str, table: Predictions, name: str) -> Predictions:
    for what, mine, theirs in (
        ("classes", table.class_names, reference.class_names),
        ("groups", table.group_names, reference.group_names),
        ("group columns", table.group_by, reference.group_by),
    ):
        if mine != theirs:
            found = f"{name} has the {what} {', '.join(mine)}; {first} has {', '.join(theirs)}"
            raise CompareError(f"{found}. If they are the same, name them in one order for both")
    wanted = dict.fromkeys(reference.scan.tolist())
    place = {scan: i for i, scan in enumerate(table.scan.tolist())}
    if lost := [scan for scan in wanted if scan not in place]:
        raise CompareError(f"not the same scans: {name} has no scan {quoted(lost[0])}, which {first} has")
    if extra := [scan for scan in place if scan not in wanted]:
        raise CompareError(f"not the same scans: {name} has a scan {quoted(extra[0])}, which {first} has not")
    table = table.take(np.array([place[scan] for scan in wanted], dtype=np.int64))
    for what, own, other, names in (
        ("class", table.label, reference.label, table.class_names),
        ("group", table.group, reference.group, (*table.group_names, "unknown")),
    ):
        if len(differs := np.flatnonzero(own != other)):
            i = int(differs[0])
            both = f"{names[own[i]]} in {name}, {names[other[i]]} in {first}"
            raise CompareError(f"{what} of scan {quoted(str(table.scan[i]))}: {both}")
    return table


def draw_weights(count: Ints, resamples: int, rng: np.random.Generator) -> Floats:
    """Bootstrap of n things, ``count`` [K] by kind, as the share of each kind in a resample: [B, K].

    n - 1 of the n are drawn with replacement. The variance of a mean is then s^2 / n with the unbiased s^2, where n
    draws would give it too small by (n - 1) / n: half with two runs, a fifth less with a cell of five scans (Rao and
    Wu 1988). With n = 1 there is nothing to draw.
    """
    n = int(count.sum())
    if n == 1:
        return np.tile(count.astype(float), (resamples, 1))
    return rng.multinomial(n - 1, count / n, size=resamples) / (n - 1)


@dataclass(frozen=True)
class Patterns:
    """K patterns: scans alike in group, class and every run's prediction, which no number here can tell apart.

    A bootstrap or a permutation of the scans is one draw a pattern: 10,000 scans are no more work than their patterns.
    """

    group: Ints  # [K]
    label: Ints  # [K]
    prediction: Ints  # [K, R] predicted class of each run
    count: Ints  # [K] scans with the pattern
    groups: int
    classes: int

    @classmethod
    def of(cls, runs: Sequence[Predictions]) -> Patterns:
        """Patterns of the predictions of R runs on the same scans, all of known group."""
        first, columns = runs[0], [runs[0].group, runs[0].label, *(run.prediction for run in runs)]
        found, count = np.unique(np.stack(columns, axis=1), axis=0, return_counts=True)
        return cls(found[:, 0], found[:, 1], found[:, 2:], count, len(first.group_names), len(first.class_names))

    def strata(self) -> list[tuple[int, int, Ints]]:
        """Group, class and patterns of each cell that has a scan."""
        return [
            (g, c, inside)
            for g, c in np.ndindex(self.groups, self.classes)
            if len(inside := np.flatnonzero((self.group == g) & (self.label == c)))
        ]

    def resample(self, resamples: int, rng: np.random.Generator) -> Floats:
        """Bootstrap of the scans within each class and group, as the weight of each pattern: [B, K].

        Each of the n - 1 scans that :func:`draw_weights` draws of a cell stands for n / (n - 1): the cell keeps its n.
        """
        weights = np.ones((resamples, len(self.count)))
        for _, _, inside in self.strata():
            weights[:, inside] = self.count[inside].sum() * draw_weights(self.count[inside], resamples, rng)
        return weights

    def confusions(self, counts: NDArray[Any]) -> Floats:
        """Confusion counts of every run when pattern k stands for ``counts[b, k]`` scans: [B, R, G, C, C]."""
        runs = self.prediction.shape[1]
        found = np.zeros((len(counts), runs, self.groups, self.classes, self.classes))
        for g, c, inside in self.strata():
            said = np.eye(self.classes)[self.prediction[inside]].reshape(len(inside), -1)
            found[:, :, g, c] = (counts[:, inside].astype(float) @ said).reshape(len(counts), runs, self.classes)
        return found

    def chunks(self, draws: int) -> list[int]:
        """How many draws to make at a time."""
        numbers = 3 * len(self.count) + 10 * self.prediction.shape[1] * self.groups * self.classes**2
        size = max(1, CHUNK_BYTES // (8 * numbers))
        return [min(size, draws - start) for start in range(0, draws, size)]


def headline(confusion: NDArray[Any], group_names: Sequence[str]) -> dict[str, Floats]:
    """The numbers that systems are compared by, of confusion counts [..., G, C, C] with the same empty cells.

    Returns:
        name -> [...]: ``score`` (P), with two groups ``gap``, ``abs_gap``, ``f1_macro`` (groups pooled),
        ``worst_cell_f1`` (lowest F1 of a class and group that has a scan), ``f1_<group>``.
    """
    found = summaries(confusion)
    filled = confusion.reshape(-1, *confusion.shape[-3:])[0].sum(-1) > 0
    numbers: dict[str, Floats] = {name: found[name] for name in ("score", "gap", "abs_gap") if name in found}
    numbers["f1_macro"] = summaries(confusion.sum(-3, keepdims=True))["score"]
    numbers["worst_cell_f1"] = found["cell_f1"][..., filled].min(-1)
    for g, group in enumerate(group_names):
        if f"f1_{group}" in numbers:
            raise CompareError(f"a group named {group!r} gives the name f1_{group} twice; rename it")
        numbers[f"f1_{group}"] = found["group_f1"][..., g]
    return numbers


def bootstrap_runs(
    patterns: Patterns, group_names: Sequence[str], resamples: int, rng: np.random.Generator
) -> dict[str, Floats]:
    """:func:`headline` of every run on the same resamples of the scans within class and group: name -> [B, R]."""
    drawn = (patterns.confusions(patterns.resample(size, rng)) for size in patterns.chunks(resamples))
    parts = [headline(confusion, group_names) for confusion in drawn]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def permute_scans(
    patterns: Patterns, a: Sequence[int], b: Sequence[int], permutations: int, rng: np.random.Generator
) -> dict[str, float]:
    """Paired permutation test: are the trained models A and B alike on scans like these? p by name in :data:`TESTED`.

    Under the null hypothesis the predictions of A and of B for a scan could as well have been each other's. They are
    swapped with probability 1/2, scan by scan; with several runs the i-th of A with the i-th of B for all i at once.
    p = (1 + #{|d*| >= |d|}) / (1 + permutations), d the difference of the means over runs. Where the systems differ in
    one cell, and only in right or wrong, this is McNemar's exact test.

    It takes the runs as given: other seeds could give another answer, which :func:`permute_runs` asks. ``a`` and ``b``
    are the columns of the runs in ``patterns``, as many of A as of B.
    """
    if len(a) != len(b):
        raise ValueError(f"scans can be swapped between equal numbers of runs only, got {len(a)} and {len(b)}")
    a, b = list(a), list(b)
    differs = (patterns.prediction[:, a] != patterns.prediction[:, b]).any(1)
    count = np.where(differs, patterns.count, 0)  # swapping equal predictions changes nothing
    observed = patterns.confusions(patterns.count[None])
    extreme = dict.fromkeys(TESTED, 0)
    distance = _differences(observed[:, a], observed[:, b])
    for size in patterns.chunks(permutations):
        moved = patterns.confusions(rng.binomial(count, 0.5, size=(size, len(count))))
        change = moved[:, b] - moved[:, a]
        drawn = _differences(observed[:, a] + change, observed[:, b] - change)
        for name in TESTED:
            extreme[name] += int((np.abs(drawn[name]) >= np.abs(distance[name]) - TIE).sum())
    return {name: (1 + extreme[name]) / (1 + permutations) for name in TESTED}


def _differences(a: Floats, b: Floats) -> dict[str, Floats]:
    """B - A of the means over the second axis, the runs."""
    found_a, found_b = summaries(a), summaries(b)
    return {name: found_b[name].mean(1) - found_a[name].mean(1) for name in TESTED}


def permute_runs(a: Floats, b: Floats, permutations: int, rng: np.random.Generator) -> float:
    """Permutation test over runs: are the two ways of training alike? ``a`` [Ra] and ``b`` [Rb] are numbers of runs.

    Under the null hypothesis the runs of both are draws from one distribution, so each choice of ``len(a)`` of them
    could as well have been A's. Exact, over all choices, where there are no more of them than ``permutations``; else
    p = (1 + #{|d*| >= |d|}) / (1 + permutations) over random ones.

    It takes the scans as given: ways of training that are alike over all scans, but not on each, may be told apart.
    The interval over scans and seeds is about both.
    """
    values, runs = np.concatenate([a, b]), len(a)
    distance = abs(float(b.mean() - a.mean()))
    exact = comb(len(values), runs) <= permutations
    if exact:
        chosen = np.array(list(combinations(range(len(values)), runs)))
    else:
        chosen = rng.permuted(np.tile(np.arange(len(values)), (permutations, 1)), axis=1)[:, :runs]
    sums = values[chosen].sum(1)
    drawn = (values.sum() - sums) / len(b) - sums / runs
    extreme = int((np.abs(drawn) >= distance - TIE).sum())
    return extreme / len(chosen) if exact else (1 + extreme) / (1 + permutations)


def smallest_p(a: int, b: int, permutations: int) -> float:
    """The smallest p that :func:`permute_runs` can give for ``a`` and ``b`` runs."""
    choices = comb(a + b, a)
    if choices > permutations:
        return 1 / (1 + permutations)
    return (2 if a == b else 1) / choices  # with equal numbers, a choice and its rest are the same distance apart


def runs_needed(a: Floats, b: Floats, confidence: float = 0.95) -> int | None:
    """Runs of each system with which a t test over runs sees the observed difference in 80 % of studies.

    None when a system has one run (no spread is known), or the difference or the spread is 0.
    """
    from statsmodels.stats.power import TTestIndPower

    if min(len(a), len(b)) < 2:
        return None
    difference = abs(float(b.mean() - a.mean()))
    spread = float(np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2))
    if difference <= TIE or spread <= TIE:
        return None
    effect = min(difference / spread, LARGEST_EFFECT)
    test, alpha = TTestIndPower(), 1 - confidence
    if test.power(effect, 2, alpha) >= POWER:
        return 2
    return ceil(float(test.solve_power(effect, power=POWER, alpha=alpha)))
