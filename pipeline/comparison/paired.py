"""Paired resampling of several systems' predictions of the same scans."""

from __future__ import annotations

import itertools
import logging
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..common.errors import UserError
from ..common.text import quoted, spelling
from ..evaluation.fairness_criteria import summaries
from ..evaluation.patient_column import warn_of_repeated
from ..evaluation.predictions import Ints, Predictions
from ..evaluation.resampling import TIE, Estimate, Floats
from ..evaluation.wording import POWER

logger = logging.getLogger(__name__)

TESTED = ("score", "abs_gap")
LARGEST_EFFECT = 1000.0  # in standard errors; every test sees it, and the noncentral t is finite
MOST_RUNS = 1000  # that are planned for
CHUNK_BYTES = 200_000_000  # memory of the resamples that are worked on at a time


class CompareError(UserError, ValueError):
    """Systems that cannot be compared: not on the same scans, or with other classes or groups."""


def align(systems: Mapping[str, Sequence[Predictions]]) -> dict[str, list[Predictions]]:
    """Every table (a system has one a run) with the scans in the order of the first one, and with one set of patients.

    Where some tables do not say whose their scans are, what the others say is taken, with a warning. Ids may differ
    from table to table, as digests of other keys do: which scans are of one patient is what counts.

    CompareError: fewer than two systems, one without a table, or tables that differ in classes, groups, scans, the
    class or group of a scan, or in which scans are of one patient; the first such scan is named.
    """
    if len(systems) < 2:
        raise CompareError(f"a comparison needs two systems at least, got {len(systems)}")
    if empty := [name for name, tables in systems.items() if not tables]:
        raise CompareError(f"{empty[0]} has no predictions")
    first = next(iter(systems))
    reference, aligned = systems[first][0], {}
    called = {
        name: [name] if len(tables) == 1 else [f"{name} (run {run + 1})" for run in range(len(tables))]
        for name, tables in systems.items()
    }
    for name, tables in systems.items():
        aligned[name] = [_like(reference, first, *pair) for pair in zip(tables, called[name], strict=True)]
    titles = itertools.chain.from_iterable(called.values())
    patient = _patients(dict(zip(titles, itertools.chain.from_iterable(aligned.values()), strict=True)))
    return {name: [replace(table, patient=patient) for table in tables] for name, tables in aligned.items()}


def _patients(tables: Mapping[str, Predictions]) -> Ints | None:
    """[N] a number a patient, that of the patient's first scan, of tables in one order; None where no table says it."""
    known = {name: table.patient for name, table in tables.items() if table.patient is not None}
    if not known:
        warn_of_repeated(next(iter(tables.values())).scan.tolist())
        return None
    (first, reference), *others = ((name, _first_of_patient(ids)) for name, ids in known.items())
    for name, own in others:
        if len(differs := np.flatnonzero(own != reference)):
            i = int(differs[0])
            # up to here both agree, so that the earlier scan begins a patient in both
            j, one, two = (own[i], name, first) if own[i] < reference[i] else (reference[i], first, name)
            scans = " and ".join(quoted(str(tables[first].scan[k])) for k in sorted((i, int(j))))
            raise CompareError(f"scans {scans} are of one patient in {one}, of two in {two}")
    if missing := [name for name in tables if name not in known]:
        text = "%s: not said whose the scans are; what %s says is taken"
        logger.warning(text, ", ".join(missing), first)
    return reference


def _first_of_patient(ids: Ints) -> Ints:
    _, first, patient = np.unique(ids, return_index=True, return_inverse=True)
    return first[patient].astype(np.int64)


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
        if alike := [scan for scan in place if scan not in wanted and spelling(scan) == spelling(lost[0])]:
            raise CompareError(f"scan {alike[0]!a} of {name} is written {lost[0]!a} in {first}: write it in one way")
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
    """P patterns: patients alike in group and in how many scans they have of which class and predictions of the runs.

    No number here can tell them apart. A scan whose patient is not known is a patient of its own.

    A bootstrap or a permutation of the patients is one draw a pattern: 10,000 are no more work than their patterns. The
    K kinds are the scans of a pattern that are alike; with a scan a patient, K = P.
    """

    group: Ints  # [K]
    label: Ints  # [K]
    prediction: Ints  # [K, R] predicted class of each run
    pattern: Ints  # [K] which pattern the kind is of
    each: Ints  # [K] scans of a patient with the pattern
    patients: Ints  # [P] patients with the pattern
    groups: int
    classes: int

    @classmethod
    def of(cls, runs: Sequence[Predictions]) -> Patterns:
        """Patterns of the predictions of R runs on the same scans, all of known group; the patients of the first."""
        first, columns = runs[0], [runs[0].group, runs[0].label, *(run.prediction for run in runs)]
        found, kind, count = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True, return_counts=True)
        kinds, pattern, each, patients = np.arange(len(found)), np.arange(len(found)), np.ones_like(count), count
        if first.patient is not None and first.repeated:
            pairs, scans = np.unique(np.column_stack([first.patient, kind.ravel()]), axis=0, return_counts=True)
            ends = np.flatnonzero(np.diff(pairs[:, 0])) + 1
            parts = np.split(np.column_stack([pairs[:, 1], scans]), ends)
            alike = sorted(Counter(tuple(map(tuple, part.tolist())) for part in parts).items())
            kinds, each = np.array([pair for own, _ in alike for pair in own], dtype=np.int64).T
            pattern = np.repeat(np.arange(len(alike)), [len(own) for own, _ in alike])
            patients = np.array([number for _, number in alike], dtype=np.int64)
        about = (pattern, each, patients, len(first.group_names), len(first.class_names))
        return cls(found[kinds, 0], found[kinds, 1], found[kinds, 2:], *about)

    @property
    def count(self) -> Ints:
        """[K] scans of each kind."""
        return self.patients[self.pattern] * self.each

    def strata(self) -> list[Ints]:
        """The patterns of each group and class that has a patient, and of the group's patients of several classes."""
        first = np.flatnonzero(np.diff(self.pattern, prepend=-1))
        least, most = (reduce.reduceat(self.label, first) for reduce in (np.minimum, np.maximum))
        label = np.where(least == most, least, self.classes)
        stratum = self.group[first] * (self.classes + 1) + label
        return [np.flatnonzero(stratum == one) for one in np.unique(stratum)]

    def scans(self, patients: NDArray[Any]) -> NDArray[Any]:
        """Scans of each kind [B, K] of so many patients of each pattern [B, P]."""
        return patients[:, self.pattern] * self.each

    def resample(self, resamples: int, rng: np.random.Generator) -> Floats:
        """Bootstrap of the patients of each stratum, as the weight of each kind of scan: [B, K].

        Each of the n - 1 patients that :func:`draw_weights` draws of a stratum stands for n / (n - 1) of them.
        """
        weights = np.ones((resamples, len(self.patients)))
        for inside in self.strata():
            weights[:, inside] = self.patients[inside].sum() * draw_weights(self.patients[inside], resamples, rng)
        return self.scans(weights)

    def unsure(self, systems: Ints, draws: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Confusion counts [B, R, G, C, C] in which one unknown patient a stratum is all that varies, and their mean.

        Of the n patients of a stratum each is taken for another one with a chance of 1 / (n + 1), whose answers to a
        class are drawn evenly, one for all runs of a system; ``systems`` [R] says whose a run is.
        """
        mean = np.zeros((len(systems), self.groups, self.classes, self.classes))
        found = np.zeros((draws, *mean.shape))
        for inside in self.strata():
            of = np.isin(self.pattern, inside)
            own, group = self.confusions(np.where(of, self.count, 0)[None])[0], self.group[of][0]
            n, scans = int(self.patients[inside].sum()), own[0, group].sum(-1)
            has, others = np.flatnonzero(scans), rng.binomial(n, 1 / (n + 1), draws)
            drawn = np.tile(np.maximum(others, 1)[:, None, None], (1, int(systems.max()) + 1, len(has)))
            said = rng.multinomial(drawn, np.full(self.classes, 1 / self.classes)) / drawn[..., None]
            share, known = (others / n)[:, None, None, None], own[:, group, has]
            found[:, :, group, has] += (1 - share) * known + share * scans[has, None] * said[:, systems]
            mean[:, group, has] += (n * known + scans[has, None] / self.classes) / (n + 1)
        return found, mean

    def confusions(self, counts: NDArray[Any]) -> Floats:
        """Confusion counts of every run when there are ``counts[b, k]`` scans of kind k: [B, R, G, C, C]."""
        runs = self.prediction.shape[1]
        found = np.zeros((len(counts), runs, self.groups, self.classes, self.classes))
        for g, c in np.ndindex(self.groups, self.classes):
            inside = np.flatnonzero((self.group == g) & (self.label == c))
            said = np.eye(self.classes)[self.prediction[inside]].reshape(len(inside), runs * self.classes)
            found[:, :, g, c] = (counts[:, inside].astype(float) @ said).reshape(len(counts), runs, self.classes)
        return found

    def chunks(self, draws: int) -> list[int]:
        """How many draws to make at a time."""
        numbers = 3 * len(self.pattern) + 10 * self.prediction.shape[1] * self.groups * self.classes**2
        size = max(1, CHUNK_BYTES // (8 * numbers))
        return [min(size, draws - start) for start in range(0, draws, size)]


def headline(confusion: NDArray[Any], group_names: Sequence[str]) -> dict[str, Floats]:
    """The numbers that systems are compared by, of confusion counts [..., G, C, C]; the first tells the empty cells.

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


def over_runs(numbers: Mapping[str, Sequence[float] | Floats]) -> dict[str, float]:
    """The numbers of a way of training: means over its runs, of a number of each run by name.

    The mean of |gap| over runs grows with their noise, of a fair way too, so with two groups ``abs_gap`` is the size of
    the mean gap. With more there is no sign, and it is the mean of |gap|.
    """
    found = {name: float(np.mean(values)) for name, values in numbers.items()}
    return found | {"abs_gap": abs(found["gap"])} if "gap" in found else found


def compared_numbers(numbers: Iterable[str]) -> list[str]:
    """Those of the numbers of :func:`headline` of whose difference an interval holds."""
    found = list(numbers)
    return [name for name in found if name != "worst_cell_f1" and (name != "abs_gap" or "gap" in found)]


def bootstrap_runs(
    patterns: Patterns, group_names: Sequence[str], resamples: int, rng: np.random.Generator
) -> dict[str, Floats]:
    """:func:`headline` of every run on the same resamples of :meth:`Patterns.resample`: name -> [B, R]."""
    drawn = (patterns.confusions(patterns.resample(size, rng)) for size in patterns.chunks(resamples))
    return _headlines(drawn, group_names)


def unsure_runs(
    patterns: Patterns, group_names: Sequence[str], observed: Mapping[str, Floats], systems: Ints, resamples: int,
    rng: np.random.Generator,
) -> dict[str, Floats]:  # fmt: skip
    """:func:`headline` of every run on the counts of :meth:`Patterns.unsure`, moved back to the ``observed`` [R]."""
    drawn = _headlines((patterns.unsure(systems, size, rng)[0] for size in patterns.chunks(resamples)), group_names)
    centre = headline(patterns.unsure(systems, 0, rng)[1], group_names)
    return {name: part - centre[name] + observed[name] for name, part in drawn.items()}


def _headlines(confusions: Iterable[Floats], group_names: Sequence[str]) -> dict[str, Floats]:
    parts = [headline(confusion, group_names) for confusion in confusions]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def permute_patients(patterns: Patterns, a: int, b: int, permutations: int, rng: np.random.Generator) -> float:
    """Paired permutation test of P, for runs ``a`` and ``b`` of ``patterns``: are the trained models alike?

    Null hypothesis: the two predictions of a patient's scans could as well have been each other's. They are swapped
    with probability 1/2, patient by patient, and p = (1 + #{|d*| >= |d|}) / (1 + permutations), d the difference in P.
    Where a patient has one scan, and the models differ in one cell, and only in right or wrong, this is McNemar's exact
    test. Models that have the same P and are otherwise not alike are told apart no more often than the level says:
    swapping adds to the spread of d*.
    """
    differs = patterns.prediction[:, a] != patterns.prediction[:, b]
    differ = np.bincount(patterns.pattern, differs) > 0
    count = np.where(differ, patterns.patients, 0)  # swapping equal predictions changes nothing
    observed = patterns.confusions(patterns.count[None])[0]
    distance = np.abs(np.diff(summaries(observed[[a, b]])["score"]))
    extreme = 0
    for size in patterns.chunks(permutations):
        moved = patterns.confusions(patterns.scans(rng.binomial(count, 0.5, size=(size, len(count)))))
        change = moved[:, b] - moved[:, a]
        drawn = summaries(observed[b] - change)["score"] - summaries(observed[a] + change)["score"]
        extreme += int((np.abs(drawn) >= distance - TIE).sum())
    return (1 + extreme) / (1 + permutations)


class Spread(NamedTuple):
    """The variance of a difference of means over runs, by where it comes from."""

    scans: float  # of the ways of training, or of these runs, when the scans are drawn anew
    runs: tuple[tuple[float, int], ...]  # of each system: s^2 between its runs and their number; () with runs as given

    def error(self, runs: int | None = None) -> tuple[float, float]:
        """Standard error and degrees of freedom, with ``runs`` runs of each system instead of its own.

        The error's square is the sum of its parts, the degrees of freedom Satterthwaite's (Welch 1947); the part of the
        scans, which many of them tell, has infinitely many.
        """
        parts = [(s2 / (runs or own), (runs or own) - 1) for s2, own in self.runs]
        variance = self.scans + sum(part for part, _ in parts)
        unsure = sum(part**2 / freedom for part, freedom in parts)
        return float(np.sqrt(variance)), variance**2 / unsure if unsure > 0 else float("inf")


class Distance(NamedTuple):
    """A difference, and its spread."""

    value: float
    spread: Spread

    def test(self) -> float:
        """p of a t test: is the true difference 0? The normal distribution takes t's place with runs as given."""
        from scipy import stats

        error, freedom = self.spread.error()
        if self.value == 0:
            return 1.0
        return float(2 * stats.t.sf(abs(self.value) / error, freedom)) if error > 0 else 0.0

    def estimate(self, confidence: float) -> Estimate:
        """The difference with its t interval, which leaves out 0 where :meth:`test` is below 1 - ``confidence``."""
        from scipy import stats

        error, freedom = self.spread.error()
        reach = float(stats.t.isf((1 - confidence) / 2, freedom)) * error
        return Estimate(self.value, self.value - reach, self.value + reach)


def distance(a: Floats, b: Floats, drawn_a: Floats, drawn_b: Floats, seeds: bool) -> Distance:
    """B - A of the means over runs, of a number of each run, [Ra] and [Rb], and of its draws over scans, [B, R].

    With ``seeds`` it is about the ways of training: chance is in the scans, the same for all runs, and in the runs,
    two of each system at least. With u the variance over scans of the mean of R runs, and v the mean of the variances
    of single runs, (v - u) / (R - 1) is what these very runs get right or wrong by chance on single scans or
    patients. The spread between runs holds it already, so it is taken out of the scans' part: adding both (Owen 2007)
    counts it twice.
    """
    scans = float((drawn_b.mean(1) - drawn_a.mean(1)).var())
    value = float(b.mean() - a.mean())
    value = value if abs(value) > TIE else 0.0
    if not seeds:
        return Distance(value, Spread(scans, ()))
    for drawn in (drawn_a, drawn_b):
        scans -= float(drawn.var(0).mean() - drawn.mean(1).var()) / (drawn.shape[1] - 1)
    return Distance(value, Spread(max(scans, 0.0), tuple((float(own.var(ddof=1)), len(own)) for own in (a, b))))


def gap_sizes(minus: Distance, plus: Distance, confidence: float) -> tuple[Estimate, float]:
    """|gap b| - |gap a| of two groups, its interval, and p of "the two gaps are of one size, of whatever sign".

    ``minus`` is gap b - gap a, ``plus`` gap b + gap a. The sizes are equal where one of the two is 0, so the null
    hypothesis is a union, and p is the larger p of their tests: an intersection-union test, whose level is at most that
    of its parts (Berger 1982). |gap b| - |gap a| = max(min(minus, plus), min(-minus, -plus)), and its interval is what
    this can be over the intervals of the two, so it leaves out 0 exactly where p is below 1 - ``confidence``. The
    nearer both gaps are to 0, the more cautious are both: noise makes a gap look larger, and that is no difference.
    """
    u, v = minus.estimate(confidence), plus.estimate(confidence)
    corners = [_size_difference(*corner) for corner in itertools.product((u.low, u.high), (v.low, v.high))]
    found = Estimate(_size_difference(u.value, v.value), min(corners), max(corners))
    return found, max(minus.test(), plus.test())


def _size_difference(minus: float, plus: float) -> float:
    return max(min(minus, plus), min(-minus, -plus))


def runs_needed(found: Distance, level: float) -> int | None:
    """Runs of each system with which the t test of ``found`` at ``level`` sees such a difference in 80 % of studies.

    By the noncentral t distribution, on as many scans. None when there is no difference, the runs are taken as given,
    or no number up to :data:`MOST_RUNS` is enough: then there are too few scans.
    """
    from scipy import stats

    if found.value == 0 or not found.spread.runs:
        return None

    def power(runs: int) -> float:
        error, freedom = found.spread.error(runs)
        effect = min(abs(found.value) / max(error, TIE), LARGEST_EFFECT)
        return float(stats.nct.sf(stats.t.isf(level / 2, freedom), freedom, effect))

    choices = range(2, MOST_RUNS + 1)
    place = bisect_left(choices, POWER, key=power)
    return choices[place] if place < len(choices) else None
