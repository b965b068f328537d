"""Is one system better than another: differences on the same scans, over seeds where there are several, and tests.

A system is a way of training, given by the predictions of its runs (seeds). With one run each the question is about
these two trained models; with several it is about the ways of training, and chance is in the scans and in the seeds.
"""

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from ..data.groups import MIN_CELL
from ..evaluation.audit import power_of_gap
from ..evaluation.fairness_criteria import confusion_intervals
from ..evaluation.patients import Clusters
from ..evaluation.predictions import Judged, Predictions, as_predictions
from ..evaluation.resampling import TIE, Estimate, check_resampling, estimate, estimate_from
from . import paired, records
from .paired import TESTED, CompareError, Floats, Patterns
from .paired_auc import auc_differences
from .records import ComparedSystem, Comparison, DifferenceTest, PairComparison
from .words import verdicts

logger = logging.getLogger(__name__)


def compare(
    systems: Mapping[str, Judged | Sequence[Judged]], resamples: int = 10_000, permutations: int = 10_000,
    confidence: float = 0.95, seed: int = 0, min_cell: int = MIN_CELL,
) -> Comparison:  # fmt: skip
    """Compare the first system with each other one on the same scans.

    A number of a system is :func:`~.over_runs`; a difference is the other system minus the reference. Scans of unknown
    group are counted (``n_unknown``) and left out.

    A paired bootstrap draws the patients anew within class and group, the same for all runs; a scan whose patient is
    not known is a patient of its own. Where a difference varies less in it than what one unknown patient of each group
    and class could change, as of a single patient or of like answers, that takes its place (:meth:`.Patterns.unsure`).
    With one run each the intervals are its percentiles, widened to hold the observed value, and the test of P swaps
    (:func:`~.permute_patients`). Else intervals and tests are t, of the spread over patients and, where both systems
    have several runs, between runs (:func:`~.distance`). The difference in |gap| has the test and interval of
    :func:`~.gap_sizes`; none hold with more than two groups, nor for the worst cell, since the largest or lowest of
    several noisy numbers moves with the noise. Holm's adjustment is over P and |gap| of every comparison. The estimates
    of a single run are those of its audit for the same settings.

    Args:
        systems: name -> the table of its run, or a list of tables, one a run, each as :func:`~.audit` takes it; the
            first system is the reference. Scans are matched by name (column ``scan``) and may be in any order.
        confidence: of every interval; a test is at the level 1 - confidence.
        min_cell: scans of a group below which nothing is said of a difference.

    Raises:
        CompareError: the tables are not of the same scans, patients, classes and groups, or of fewer than two groups.
        ValueError: a setting is out of range.

    Example:
        >>> import pandas as pd
        >>> from fairlung.pipeline import compare
        >>> new = pd.DataFrame({"label": ["covid", "normal"] * 40, "sex": ["male"] * 40 + ["female"] * 40})
        >>> new["prediction"] = new["label"]
        >>> old = new.copy()
        >>> old.loc[40:59, "prediction"] = ["normal", "covid"] * 10  # half of the women wrong
        >>> result = compare({"old": old, "new": new}, resamples=500, permutations=500)
        >>> result.comparisons[0].differences["score"].value
        0.25
        >>> print(result.verdicts[0].level, "|", result.verdicts[0].text[:43])
        finding | P of new is 0.250 higher than that of old (
        >>> result.to_frame()[["system", "number", "value"]].head(1)
          system number  value
        0    new  score   0.25
    """
    check_resampling(confidence, resamples, permutations, min_cell)
    _check_order([table for tables in systems.values() for table in _runs(tables)])
    given = {name: [as_predictions(t) for t in _runs(tables)] for name, tables in systems.items()}
    aligned = {name: [t.known().present_groups() for t in tables] for name, tables in paired.align(given).items()}
    for name, tables in aligned.items():
        _warn_of_copies(name, tables)
    runs = [table for tables in aligned.values() for table in tables]
    first = runs[0]
    if len(first.group_names) < 2:
        names = ", ".join(first.group_names) or "none"
        raise CompareError(f"a comparison of fairness needs scans of two groups at least; there are scans of: {names}")
    number = itertools.count()
    columns = {name: [next(number) for _ in tables] for name, tables in aligned.items()}
    scans_rng, unsure_rng, tests_rng = np.random.default_rng(seed).spawn(3)
    patterns = Patterns.of(runs)
    numbers = paired.headline(patterns.confusions(patterns.count[None]), first.group_names)
    observed = {name: values[0] for name, values in numbers.items()}
    draws = paired.bootstrap_runs(patterns, first.group_names, resamples, scans_rng)
    whose = np.repeat(np.arange(len(columns)), [len(own) for own in columns.values()])
    least = paired.unsure_runs(patterns, first.group_names, observed, whose, max(100, resamples // 5), unsure_rng)
    evidence = _Evidence(patterns, columns, observed, draws, least)
    reference, *others = aligned
    tested = len([name for name in TESTED if name in paired.compared_numbers(observed)])
    level = (1 - confidence) / (tested * len(others))  # of the first step of Holm's, which one difference has to pass
    pairs = [_compare_pair(evidence, reference, other, permutations, confidence, level, tests_rng) for other in others]
    owner = first.patient if first.repeated else None
    pairs = [
        replace(p, aucs=auc_differences(aligned[reference], aligned[p.system], confidence, p.seeds, owner))
        for p in pairs
    ]
    compared = []
    for name, tables in aligned.items():
        done = ", ".join(sorted({table.postprocess for table in tables} - {""}))
        own = {key: value[columns[name]] for key, value in observed.items()}
        of_runs = [key for key in own if key != "abs_gap" or "gap" not in own]  # else it is the size of the mean gap
        sd = {key: float(own[key].std(ddof=1)) for key in of_runs} if len(tables) > 1 else None
        estimates = tuple(_run_estimates(table, resamples, confidence, seed) for table in tables)
        compared.append(ComparedSystem(name, done, paired.over_runs(own), sd, estimates))
    result = Comparison(
        n=len(first.label), n_unknown=len(next(iter(given.values()))[0].label) - len(first.label),
        class_names=first.class_names, group_names=first.group_names, group_by=first.group_by,
        group_scans=tuple(first.confusion()[:-1].sum((1, 2)).tolist()),
        n_patients=first.n_patients,
        synthetic=any(table.synthetic for table in runs), reference=reference,
        settings=records.ComparisonSettings(resamples, permutations, confidence, seed, min_cell),
        systems=tuple(compared), comparisons=tuple(_adjusted(pairs)),
    )  # fmt: skip
    return replace(result, verdicts=tuple(verdicts(result)))


def _runs(tables: Judged | Sequence[Judged]) -> Sequence[Judged]:
    return tables if isinstance(tables, (list, tuple)) else [tables]  # type: ignore[list-item]


def _check_order(tables: Sequence[Judged]) -> None:
    """CompareError where data frames without names of scans, which are matched by row, have rows in another order."""
    frames = [table for table in tables if isinstance(table, pd.DataFrame) and "scan" not in table]
    for frame in frames[1:]:
        first, own = frames[0].index, frame.index
        if len(own) == len(first) and not own.equals(first) and set(own) == set(first):
            raise CompareError("data frames have the same rows in another order, and no column 'scan' to match them by")


def _warn_of_copies(name: str, tables: Sequence[Predictions]) -> None:
    def alike(one: Predictions, other: Predictions) -> bool:
        if one.probabilities is None or other.probabilities is None:
            return np.array_equal(one.prediction, other.prediction)
        return np.array_equal(one.probabilities, other.probabilities)

    pairs = itertools.combinations(enumerate(tables, 1), 2)
    if same := next(((i, j) for (i, one), (j, other) in pairs if alike(one, other)), None):
        text = "%s: runs %d and %d have the same answers; if they are one run, intervals over runs are too narrow"
        logger.warning(text, name, *same)


class _Evidence(NamedTuple):
    patterns: Patterns  # of the R runs of all systems
    columns: dict[str, list[int]]  # system -> its runs among them
    observed: dict[str, Floats]  # name -> [R] of paired.headline
    draws: dict[str, Floats]  # name -> [B, R] of paired.bootstrap_runs
    least: dict[str, Floats]  # name -> [B, R] of paired.unsure_runs

    def drawn(self, name: str, a: list[int], b: list[int], sign: int = 1) -> tuple[Floats, Floats]:
        """Of runs ``a``, times ``sign``, and ``b`` the resamples, or where b - a varies less in them, the least."""
        parts = [(sign * draws[name][:, a], draws[name][:, b]) for draws in (self.least, self.draws)]
        return max(parts, key=lambda part: float((part[1].mean(1) - part[0].mean(1)).var()))


def _compare_pair(
    evidence: _Evidence, reference: str, other: str, permutations: int, confidence: float, level: float,
    rng: np.random.Generator,
) -> PairComparison:  # fmt: skip
    patterns, columns = evidence.patterns, evidence.columns
    a, b = columns[reference], columns[other]
    one_each, seeds = len(a) == len(b) == 1, min(len(a), len(b)) > 1
    differences, tests, score = _differences(evidence, a, b, seeds, confidence)
    share = None
    if one_each:
        pairs = {name: evidence.drawn(name, a, b) for name in differences.keys() - {"abs_gap"}}
        drawn = {name: (theirs - ours)[:, 0] for name, (ours, theirs) in pairs.items()}
        ends = {name: estimate_from(draw, differences[name].value, confidence) for name, draw in drawn.items()}
        differences |= {name: _in_range(name, found) for name, found in ends.items()}
        tests["score"] = _tested(paired.permute_patients(patterns, a[0], b[0], permutations, rng))
        share = _share_above(drawn["score"])
    given, alone, given_score = _differences(evidence, a, b, False, confidence) if seeds else (None, None, score)
    power = power_of_gap(score.value, given_score.spread.error()[0], int(patterns.count.sum()), 1 - level)
    planned = records.DifferencePower(power.detectable_gap, power.scans, paired.runs_needed(score, level))
    return PairComparison(other, reference, seeds, differences, share, tests, given, alone, planned)


def _differences(
    evidence: _Evidence, a: list[int], b: list[int], seeds: bool, confidence: float
) -> tuple[dict[str, Estimate], dict[str, DifferenceTest], paired.Distance]:
    """The t intervals and tests of runs ``a`` and ``b``, and the distance in P."""

    def distance(name: str, sign: int = 1) -> paired.Distance:
        value = evidence.observed[name]
        return paired.distance(sign * value[a], value[b], *evidence.drawn(name, a, b, sign), seeds)

    score = distance("score")
    found = {name: distance(name).estimate(confidence) for name in paired.compared_numbers(evidence.observed)}
    tests = {"score": _tested(score.test())}
    if "abs_gap" in found:
        found["abs_gap"], p = paired.gap_sizes(distance("gap"), distance("gap", -1), confidence)
        tests["abs_gap"] = _tested(p)
    return {name: _in_range(name, estimate) for name, estimate in found.items()}, tests, score


def _in_range(name: str, found: Estimate) -> Estimate:
    largest = 2.0 if name == "gap" else 1.0
    return Estimate(found.value, max(found.low, -largest), min(found.high, largest))


def _tested(p: float) -> DifferenceTest:
    return DifferenceTest(p, float("nan"))  # stands for p after Holm, which needs the tests of all comparisons


def _run_estimates(table: Predictions, resamples: int, confidence: float, seed: int) -> dict[str, Estimate]:
    """The intervals of :func:`~.audit`, from the same draws: a run has the same numbers in both."""
    rng, patients = np.random.default_rng(seed), Clusters.of(table)
    confusion, together = table.confusion()[:-1], patients.pooled() if patients else None
    found, _ = confusion_intervals(confusion, rng, resamples, confidence, patients=patients)
    pooled, _ = confusion_intervals(confusion.sum(0, keepdims=True), rng, resamples, confidence, patients=together)
    named = {name: found[name] for name in ("score", "gap", "abs_gap") if name in found} | {"f1_macro": pooled["score"]}
    named |= {f"f1_{group}": tuple(part[g] for part in found["group_f1"]) for g, group in enumerate(table.group_names)}
    return {name: estimate(*parts) for name, parts in named.items()}


def _share_above(draws: Floats) -> float:
    return float(((draws > TIE) + 0.5 * (np.abs(draws) <= TIE)).mean())


def _adjusted(pairs: Sequence[PairComparison]) -> list[PairComparison]:
    """With Holm's adjusted p of each test, over the tests of all comparisons."""
    tests = _with_holm([pair.tests for pair in pairs])
    given = iter(_with_holm([pair.tests_of_these_runs for pair in pairs if pair.tests_of_these_runs]))
    return [
        replace(pair, tests=own, tests_of_these_runs=next(given) if pair.tests_of_these_runs else None)
        for pair, own in zip(pairs, tests, strict=True)
    ]


def _with_holm(families: Sequence[Mapping[str, DifferenceTest]]) -> list[dict[str, DifferenceTest]]:
    adjusted = iter(holm([test.p_value for tests in families for test in tests.values()]))
    return [{name: replace(test, p_holm=next(adjusted)) for name, test in tests.items()} for tests in families]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, by statsmodels."""
    from statsmodels.stats.multitest import multipletests

    return multipletests(p_values, method="holm")[1].tolist() if p_values else []
