"""Is one system better than another: differences on the same scans, over seeds where there are several, and tests.

A system is a way of training, given by the predictions of its runs (seeds). With one run each the question is about
these two trained models; with several it is about the ways of training, and chance is in the scans and in the seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from math import ceil, comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .audit import POWER, Verdict, confusion_intervals, in_percent, planned, power_of_gap, span, summaries
from .bootstrap import check_resampling, estimate, interval
from .errors import UserError
from .labelled_predictions import Predictions

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TESTED = ("score", "abs_gap")
TIE = 1e-12  # differences nearer than this are equal: the same fractions added up in another order
LARGEST_EFFECT = 4.0  # in standard deviations; three runs show it, and above it the noncentral t is unreliable
CHUNK_BYTES = 200_000_000  # of the resamples worked on at a time


class CompareError(UserError, ValueError):
    """Systems that cannot be compared: not on the same scans, or with other classes or groups."""


# ---------------------------------------------------------------------------------------------------------------------
# the same scans
# ---------------------------------------------------------------------------------------------------------------------
def align(systems: Mapping[str, Sequence[Predictions]]) -> dict[str, list[Predictions]]:
    """Every table with the scans in the order of the first one.

    Args:
        systems: name -> a table a run; the order of the scans may differ.

    Raises:
        CompareError: fewer than two systems, one without a table, or tables that differ in classes, groups, scans, or
            the class or group of a scan; the first such scan is named.
    """
    if len(systems) < 2:
        raise CompareError(f"a comparison needs two systems at least, got {len(systems)}")
    for name, tables in systems.items():
        if not tables:
            raise CompareError(f"{name} has no predictions")
    first = next(iter(systems))
    reference = systems[first][0]
    return {
        name: [_like(reference, first, table, _called(name, r, tables)) for r, table in enumerate(tables)]
        for name, tables in systems.items()
    }


def _called(name: str, run: int, tables: Sequence[Predictions]) -> str:
    return name if len(tables) == 1 else f"{name} (run {run + 1})"


def _like(reference: Predictions, first: str, table: Predictions, name: str) -> Predictions:
    for what, mine, theirs in (
        ("classes", table.class_names, reference.class_names),
        ("groups", table.group_names, reference.group_names),
        ("group columns", table.group_by, reference.group_by),
    ):
        if mine != theirs:
            raise CompareError(
                f"{name} has the {what} {', '.join(mine)}; {first} has {', '.join(theirs)}. If they are the same, name "
                "them in one order for both"
            )
    place = {scan: i for i, scan in enumerate(table.scan.tolist())}
    missing = next((scan for scan in reference.scan.tolist() if scan not in place), None)
    if missing is not None:
        raise CompareError(f"not the same scans: {name} has no scan {missing!r}, which {first} has")
    if len(place) > len(reference.scan):
        extra = next(scan for scan in table.scan.tolist() if scan not in set(reference.scan.tolist()))
        raise CompareError(f"not the same scans: {name} has a scan {extra!r}, which {first} has not")
    table = table.take(np.array([place[scan] for scan in reference.scan.tolist()], dtype=np.int64))
    for what, own, other, names in (
        ("class", table.label, reference.label, table.class_names),
        ("group", table.group, reference.group, (*table.group_names, "unknown")),
    ):
        differs = np.flatnonzero(own != other)
        if len(differs):
            i = int(differs[0])
            scan = str(table.scan[i])
            raise CompareError(f"{what} of scan {scan!r}: {names[own[i]]} in {name}, {names[other[i]]} in {first}")
    return table


# ---------------------------------------------------------------------------------------------------------------------
# resampling
# ---------------------------------------------------------------------------------------------------------------------
def draw_weights(count: Ints, resamples: int, rng: np.random.Generator) -> Floats:
    """Bootstrap of n things of K kinds, as the share of each kind in a resample: [B, K], rows summing to 1.

    n - 1 of the n are drawn with replacement. The variance of a mean is then s^2 / n with the unbiased s^2, where n
    draws would give it too small by (n - 1) / n: half with two runs, a fifth less with a cell of five scans (Rao and
    Wu 1988).

    Args:
        count: [K] things of each kind, n together. With n = 1 there is nothing to draw.
    """
    n = int(count.sum())
    if n == 1:
        return np.tile(count.astype(float), (resamples, 1))
    return rng.multinomial(n - 1, count / n, size=resamples) / (n - 1)


@dataclass(frozen=True)
class Patterns:
    """Scans alike in group, class and every run's prediction, counted: no number here can tell them apart.

    A bootstrap or a permutation of the scans is then one draw a pattern, and 10,000 scans are no more work than their
    patterns.

    Args:
        group: [K] of each pattern.
        label: [K].
        prediction: [K, R] predicted class of each run.
        count: [K] scans with the pattern.
        groups: G.
        classes: C.
    """

    group: Ints
    label: Ints
    prediction: Ints
    count: Ints
    groups: int
    classes: int

    @classmethod
    def of(cls, runs: Sequence[Predictions]) -> Patterns:
        """Patterns of the predictions of R runs on the same scans, all of known group."""
        columns = [runs[0].group, runs[0].label, *(run.prediction for run in runs)]
        found, count = np.unique(np.stack(columns, axis=1), axis=0, return_counts=True)
        sizes = len(runs[0].group_names), len(runs[0].class_names)
        return cls(found[:, 0], found[:, 1], found[:, 2:], count, *sizes)

    def strata(self) -> list[tuple[int, int, Ints]]:
        """Group, class and patterns of each cell that has a scan."""
        cells = [
            (g, c, np.flatnonzero((self.group == g) & (self.label == c)))
            for g, c in np.ndindex(self.groups, self.classes)
        ]
        return [cell for cell in cells if len(cell[2])]

    def resample(self, resamples: int, rng: np.random.Generator) -> Floats:
        """Bootstrap of the scans within each class and group, as the weight of each pattern: [B, K].

        As in :func:`draw_weights`, n - 1 of the n scans of a cell are drawn, each standing for n / (n - 1), so that the
        cell keeps its n. The only scan of a cell is in every resample.
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
    """The numbers that systems are compared by, for any number of confusion tensors at once.

    Args:
        confusion: [..., G, C, C] counts, rows true, columns predicted; the same cells are empty in all of them.
        group_names: G names.

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
    parts = [
        headline(patterns.confusions(patterns.resample(size, rng)), group_names) for size in patterns.chunks(resamples)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


# ---------------------------------------------------------------------------------------------------------------------
# tests
# ---------------------------------------------------------------------------------------------------------------------
def permute_scans(
    patterns: Patterns, a: Sequence[int], b: Sequence[int], permutations: int, rng: np.random.Generator
) -> dict[str, float]:
    """Paired permutation test: are the trained models A and B alike on scans like these?

    Under the null hypothesis the predictions of A and of B for a scan could as well have been each other's. They are
    swapped with probability 1/2, scan by scan; with several runs the i-th of A with the i-th of B for all i at once.
    p = (1 + #{|d*| >= |d|}) / (1 + permutations), d the difference of the means over runs. Where the systems differ in
    one cell, and only in right or wrong, this is McNemar's exact test.

    It takes the runs as given: other seeds could give another answer, which :func:`permute_runs` asks.

    Args:
        patterns: of all runs.
        a: columns of the runs of A.
        b: columns of the runs of B, as many.

    Returns:
        p-value of ``score`` and ``abs_gap``.
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
    """Permutation test over runs: are the two ways of training alike?

    Under the null hypothesis the runs of both are draws from one distribution, so each choice of ``len(a)`` of them
    could as well have been A's. Exact, over all choices, where there are no more of them than ``permutations``; else
    p = (1 + #{|d*| >= |d|}) / (1 + permutations) over random ones.

    It takes the scans as given: ways of training that are alike over all scans, but not on each, may be told apart.
    The interval over scans and seeds is about both.

    Args:
        a: [Ra] a number of each run of A.
        b: [Rb].
    """
    values = np.concatenate([a, b])
    total, runs = values.sum(), len(a)
    distance = abs(float(b.mean() - a.mean()))
    exact = comb(len(values), runs) <= permutations
    if exact:
        chosen = np.array(list(combinations(range(len(values)), runs)))
    else:
        chosen = rng.permuted(np.tile(np.arange(len(values)), (permutations, 1)), axis=1)[:, :runs]
    sums = values[chosen].sum(1)
    drawn = (total - sums) / len(b) - sums / runs
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

    Args:
        a: [Ra] a number of each run of A.
        b: [Rb].

    Returns:
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


# ---------------------------------------------------------------------------------------------------------------------
# the comparison
# ---------------------------------------------------------------------------------------------------------------------
def compare(
    systems: Mapping[str, Sequence[Predictions]],
    resamples: int = 10_000,
    permutations: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare the first system with each other one on the same scans, as plain data (compare.json).

    A number of a system is the mean of its runs' numbers; a difference is the other system minus the reference. Scans
    of unknown group are counted (``n_unknown``) and left out.

    Intervals are percentiles of a paired bootstrap, widened to hold the observed value. It draws the scans anew within
    class and group, the same for all runs. Where a system has several runs, these are drawn too, for each system by
    itself, and the two deviations from what was observed are added: drawing runs out of resampled scans would count
    three times what a run gets right by chance on single scans (Owen 2007), adding counts it twice. Tests permute scans
    with one run each (:func:`permute_scans`), else runs (:func:`permute_runs`). Holm's adjustment is over P and the
    absolute gap of every comparison.

    Args:
        systems: name -> a table a run; the first is the reference. The order of the scans may differ.
        resamples: bootstrap draws.
        permutations: of each test.
        confidence: of every interval; a test is at the level 1 - confidence.
        seed: same seed, same result.

    Returns:
        - ``n``, ``n_unknown``, ``class_names``, ``group_names``, ``group_by``, ``reference`` (name), ``settings``;
          ``synthetic``, whether a table says that scans are phantoms;
        - ``systems``, a list: ``name``; ``postprocess``, what was done to its probabilities, if anything; ``values``,
          the mean over runs of each number of :func:`headline`; ``sd``, the
          standard deviation over runs of each, None with one run; ``runs``, for each run the estimates of score, gap
          (two groups), abs_gap, f1_macro and f1_<group>, the same as its audit gives for the same settings;
        - ``comparisons``, a list, one for each other system: ``system``, ``reference``;
          ``differences``, an estimate of each number of :func:`headline`;
          ``probability_better``: share of the draws in which the system has the higher ``score`` and the smaller
          ``abs_gap``, ties half;
          ``tests``: for ``score`` and ``abs_gap``, ``p_value``, ``p_holm``, ``unit`` (scans or runs permuted) and
          ``smallest_p`` that the test can give;
          ``differences_of_these_runs`` and ``tests_of_these_runs`` (``p_value``, ``p_holm``): the same with the runs
          taken as given, chance in the scans only; both None with one run each, the latter also when the numbers of
          runs differ;
          ``power`` of the difference in P: ``detectable`` on these scans with these runs, ``scans`` and ``runs`` (of
          each system) that would show the observed one in 80 % of studies; None where that cannot be said;
        - ``verdicts``, a list of ``{"level", "text"}``, see :class:`~.audit.Verdict`.

        An estimate is ``{"value", "low", "high"}``.

    Raises:
        CompareError: the tables are not of the same scans, classes and groups, or of fewer than two groups.
        ValueError: a setting is out of range.
    """
    check_resampling(confidence, resamples, permutations)
    aligned = {name: [table.known().present_groups() for table in tables] for name, tables in align(systems).items()}
    runs = [table for tables in aligned.values() for table in tables]
    first = runs[0]
    present = np.unique(first.group)
    if len(present) < 2:
        names = ", ".join(first.group_names[g] for g in present) or "none"
        raise CompareError(f"a comparison of fairness needs scans of two groups at least; there are scans of: {names}")
    columns, start = {}, 0
    for name, tables in aligned.items():
        columns[name] = list(range(start, start + len(tables)))
        start += len(tables)

    scans_rng, runs_rng, tests_rng = np.random.default_rng(seed).spawn(3)
    patterns = Patterns.of(runs)
    numbers = headline(patterns.confusions(patterns.count[None]), first.group_names)
    observed = {name: values[0] for name, values in numbers.items()}
    evidence = _Evidence(
        patterns,
        columns,
        observed,
        bootstrap_runs(patterns, first.group_names, resamples, scans_rng),
        {name: draw_weights(np.ones(len(c), dtype=np.int64), resamples, runs_rng) for name, c in columns.items()},
    )
    reference, *others = aligned
    comparisons = [_compare_pair(evidence, reference, other, permutations, confidence, tests_rng) for other in others]
    for key in ("tests", "tests_of_these_runs"):
        _adjust([test for comparison in comparisons for test in (comparison[key] or {}).values()])
    result: dict[str, Any] = {
        "n": len(first.label),
        "n_unknown": len(next(iter(systems.values()))[0].label) - len(first.label),
        "class_names": list(first.class_names),
        "group_names": list(first.group_names),
        "group_by": list(first.group_by),
        "synthetic": any(table.synthetic for table in runs),
        "reference": reference,
        "settings": {"resamples": resamples, "permutations": permutations, "confidence": confidence, "seed": seed},
        "systems": [
            {
                "name": name,
                "postprocess": ", ".join(sorted({table.postprocess for table in tables} - {""})),
                "values": {key: float(value[columns[name]].mean()) for key, value in observed.items()},
                "sd": (
                    {key: float(value[columns[name]].std(ddof=1)) for key, value in observed.items()}
                    if len(tables) > 1
                    else None
                ),
                "runs": [_run_estimates(table, resamples, confidence, seed) for table in tables],
            }
            for name, tables in aligned.items()
        ],
        "comparisons": comparisons,
    }
    result["verdicts"] = [asdict(verdict) for verdict in verdicts(result)]
    return result


@dataclass(frozen=True)
class _Evidence:
    """What all comparisons share.

    Args:
        patterns: of the R runs of all systems.
        columns: system -> its runs among them.
        observed: name -> [R] of :func:`headline`.
        draws: name -> [B, R] of :func:`bootstrap_runs`.
        weights: system -> [B, runs] of :func:`draw_weights`.
    """

    patterns: Patterns
    columns: dict[str, list[int]]
    observed: dict[str, Floats]
    draws: dict[str, Floats]
    weights: dict[str, Floats]


def _compare_pair(
    evidence: _Evidence, reference: str, other: str, permutations: int, confidence: float, rng: np.random.Generator
) -> dict[str, Any]:
    a, b = evidence.columns[reference], evidence.columns[other]
    observed = evidence.observed
    several = max(len(a), len(b)) > 1
    differences = {name: float(value[b].mean() - value[a].mean()) for name, value in observed.items()}
    given = {name: draw[:, b].mean(1) - draw[:, a].mean(1) for name, draw in evidence.draws.items()}
    drawn = given
    if several:
        weights = evidence.weights
        drawn = {
            name: given[name] + weights[other] @ value[b] - weights[reference] @ value[a] - differences[name]
            for name, value in observed.items()
        }
    swapped = permute_scans(evidence.patterns, a, b, permutations, rng) if len(a) == len(b) else None
    if several:
        p = {name: permute_runs(observed[name][a], observed[name][b], permutations, rng) for name in TESTED}
        unit, least = "runs", smallest_p(len(a), len(b), permutations)
    else:
        assert swapped is not None
        p, unit, least = swapped, "scans", 1 / (1 + permutations)
    power = power_of_gap(
        differences["score"], float(given["score"].std()), int(evidence.patterns.count.sum()), confidence
    )
    return {
        "system": other,
        "reference": reference,
        "differences": _estimates(differences, drawn, confidence),
        "probability_better": {"score": _share_above(drawn["score"]), "abs_gap": _share_above(-drawn["abs_gap"])},
        "tests": {name: {"p_value": p[name], "unit": unit, "smallest_p": least} for name in TESTED},
        "differences_of_these_runs": _estimates(differences, given, confidence) if several else None,
        "tests_of_these_runs": {name: {"p_value": swapped[name]} for name in TESTED} if several and swapped else None,
        "power": {
            "detectable": power["detectable_gap"],
            "scans": power["scans"],
            "runs": runs_needed(observed["score"][a], observed["score"][b], confidence),
        },
    }


def _run_estimates(table: Predictions, resamples: int, confidence: float, seed: int) -> dict[str, dict[str, float]]:
    """The intervals of :func:`~.audit.audit`, from the same draws: a run has the same numbers in both."""
    rng = np.random.default_rng(seed)
    confusion = table.confusion()[:-1]
    found, _ = confusion_intervals(confusion, rng, resamples, confidence)
    pooled, _ = confusion_intervals(confusion.sum(0, keepdims=True), rng, resamples, confidence)
    named: dict[str, tuple[Any, Any, Any]] = {n: found[n] for n in ("score", "gap", "abs_gap") if n in found}
    named["f1_macro"] = pooled["score"]
    for g, group in enumerate(table.group_names):
        value, low, high = found["group_f1"]
        named[f"f1_{group}"] = value[g], low[g], high[g]
    return {name: estimate(*found) for name, found in named.items()}


def _estimates(
    observed: Mapping[str, float], draws: Mapping[str, Floats], confidence: float
) -> dict[str, dict[str, float]]:
    return {name: estimate(value, *interval(draws[name], value, confidence)) for name, value in observed.items()}


def _share_above(draws: Floats) -> float:
    return float(((draws > TIE) + 0.5 * (np.abs(draws) <= TIE)).mean())


def _adjust(tests: Sequence[dict[str, Any]]) -> None:
    """Put Holm's adjusted p beside each raw one."""
    from statsmodels.stats.multitest import multipletests

    if tests:
        adjusted = multipletests([test["p_value"] for test in tests], method="holm")[1]
        for test, p in zip(tests, adjusted, strict=True):
            test["p_holm"] = float(p)


# ---------------------------------------------------------------------------------------------------------------------
# in words
# ---------------------------------------------------------------------------------------------------------------------
SHOWN = {"score": ("P", "higher", "lower"), "abs_gap": ("|gap|", "larger", "smaller")}


def verdicts(result: dict[str, Any]) -> list[Verdict]:
    """What the comparison says, in words: for each other system, the differences in P and |gap|, and what is missing.

    Args:
        result: of :func:`compare`, without its verdicts.
    """
    runs = {system["name"]: len(system["runs"]) for system in result["systems"]}
    family = len(TESTED) * len(result["comparisons"])
    found = []
    for comparison in result["comparisons"]:
        counts = runs[comparison["reference"]], runs[comparison["system"]]
        found += [_difference_verdict(comparison, name, result, family) for name in TESTED]
        if max(counts) == 1:
            found.append(_scans_verdict(comparison, result))
        else:
            found += _runs_verdicts(comparison, counts, result, family)
    for system in result["systems"]:
        if system["postprocess"]:
            text = f"The answers of {system['name']} were post-processed ({system['postprocess']})."
            found.append(Verdict("note", text))
    return found


def _difference_verdict(comparison: Mapping[str, Any], name: str, result: Mapping[str, Any], family: int) -> Verdict:
    confidence = result["settings"]["confidence"]
    estimate, test = comparison["differences"][name], comparison["tests"][name]
    several = test["unit"] == "runs"
    over = " over scans and seeds" if several else ""
    what = (
        f"{_difference(comparison, name, estimate)} ({in_percent(confidence)} interval{over} "
        f"{span(estimate, signed=True)}; p = {test['p_holm']:.3g} after Holm over {family} tests)"
    )
    if several and _too_few(comparison, result, family):
        return Verdict("inconclusive", f"{what}: so few runs cannot tell a difference of any size from none.")
    apart, small = _apart(estimate), test["p_holm"] < 1 - confidence
    if apart and small:
        whom = "the ways of training differ" if several else "these models differ on scans like these"
        return Verdict("finding", f"{what}: larger than chance explains, {whom}.")
    if apart or small:
        return Verdict(
            "inconclusive", f"{what}: on the border of what chance explains, the interval and the test do not agree."
        )
    return Verdict(
        "inconclusive",
        f"{what}: a difference of this size cannot be told from none on these data; that does not show that there is "
        "none.",
    )


def _apart(estimate: Mapping[str, float]) -> bool:
    return not estimate["low"] <= 0 <= estimate["high"]


def _too_few(comparison: Mapping[str, Any], result: Mapping[str, Any], family: int) -> bool:
    """Whether no p after Holm can be below the level."""
    return family * comparison["tests"]["score"]["smallest_p"] >= 1 - result["settings"]["confidence"]


def _difference(comparison: Mapping[str, Any], name: str, estimate: Mapping[str, float]) -> str:
    number, more, less = SHOWN[name]
    other, reference = comparison["system"], comparison["reference"]
    if abs(estimate["value"]) <= TIE:
        return f"{number} of {other} equals that of {reference}"
    way = more if estimate["value"] > 0 else less
    return f"{number} of {other} is {abs(estimate['value']):.3f} {way} than that of {reference}"


def _scans_verdict(comparison: Mapping[str, Any], result: Mapping[str, Any]) -> Verdict:
    power, n = comparison["power"], result["n"]
    text = "One run each: says nothing about other seeds."
    if power["scans"] is not None and power["scans"] > n:
        text += (
            f" To see this difference in P between these models in {in_percent(POWER)} of studies takes about "
            f"{planned(power['scans'])} scans in the same proportions ({power['scans'] / n:.1f} times as many)."
        )
    return Verdict("note", text)


def _runs_verdicts(
    comparison: Mapping[str, Any], counts: tuple[int, int], result: Mapping[str, Any], family: int
) -> list[Verdict]:
    settings = result["settings"]
    level = 1 - settings["confidence"]
    reference, other = comparison["reference"], comparison["system"]
    found = []
    if _too_few(comparison, result, family):
        least = family * comparison["tests"]["score"]["smallest_p"]
        enough = (r for r in range(2, 50) if family * smallest_p(r, r, settings["permutations"]) < level)
        found.append(
            Verdict(
                "no-statement",
                f"{_runs(counts[0])} of {reference} and {_runs(counts[1])} of {other} are too few for a statement "
                f"about other seeds: the smallest p that they can give is {min(least, 1):.2g} after Holm; it takes "
                f"{next(enough, 'more permutations and 50')} runs each.",
            )
        )
    given, tests = comparison["differences_of_these_runs"], comparison["tests_of_these_runs"]
    if tests is not None:
        parts = []
        for name in TESTED:
            apart = _apart(given[name]) and tests[name]["p_holm"] < level
            parts.append(
                f"{SHOWN[name][0]} {span(given[name], signed=True)}, p = {tests[name]['p_holm']:.3g} after Holm "
                f"({'larger than chance explains' if apart else 'cannot be told from none'})"
            )
        text = "These very runs, with chance in the scans only: difference in " + "; in ".join(parts)
        found.append(Verdict("note", f"{text}. Other seeds may give another."))
    single = next((name for name, runs in zip((reference, other), counts, strict=True) if runs == 1), None)
    if single is not None:
        found.append(Verdict("note", f"{single} has one run: how much its numbers change with the seed is not known."))
        return found
    spread = {system["name"]: system["sd"] for system in result["systems"]}
    text = (
        f"Between seeds P has a standard deviation of {spread[reference]['score']:.3f} ({reference}) and "
        f"{spread[other]['score']:.3f} ({other})"
    )
    needed = comparison["power"]["runs"]
    if needed is not None and needed > min(counts):
        text += f"; to see this difference in P in {in_percent(POWER)} of studies takes "
        text += f"about {planned(needed)} runs each"
    found.append(Verdict("note", f"{text}."))
    return found


def _runs(runs: int) -> str:
    return "1 run" if runs == 1 else f"{runs} runs"
