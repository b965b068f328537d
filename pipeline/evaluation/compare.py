"""Is one system better than another: differences on the same scans, over seeds where there are several, and tests.

A system is a way of training, given by the predictions of its runs (seeds). With one run each the question is about
these two trained models; with several it is about the ways of training, and chance is in the scans and in the seeds.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

import numpy as np

from ..data.groups import MIN_CELL
from . import paired, records
from .audit import confusion_intervals, power_of_gap
from .compare_words import verdicts
from .paired import TESTED, TIE, CompareError, Floats, Patterns
from .predictions import Predictions
from .records import ComparedSystem, Comparison, GivenRunsTest, PairComparison, PermutationTest
from .resampling import Estimate, check_resampling, estimate, estimate_from

Test = TypeVar("Test", PermutationTest, GivenRunsTest)


def compare(
    systems: Mapping[str, Sequence[Predictions]], resamples: int = 10_000, permutations: int = 10_000,
    confidence: float = 0.95, seed: int = 0, min_cell: int = MIN_CELL,
) -> Comparison:  # fmt: skip
    """Compare the first system with each other one on the same scans.

    A number of a system is the mean of its runs' numbers; a difference is the other system minus the reference. Scans
    of unknown group are counted (``n_unknown``) and left out.

    Intervals are percentiles of a paired bootstrap, widened to hold the observed value. It draws the scans anew within
    class and group, the same for all runs. Where a system has several runs, these are drawn too, for each system by
    itself, and the two deviations from what was observed are added: drawing runs out of resampled scans would count
    three times what a run gets right by chance on single scans (Owen 2007), adding counts it twice. Tests permute scans
    with one run each (:func:`~.permute_scans`), else runs (:func:`~.permute_runs`). Holm's adjustment is over P and
    |gap| of every comparison. The estimates of a single run are those of its audit for the same settings.

    Args:
        systems: name -> a table a run; the first is the reference. The order of the scans may differ.
        confidence: of every interval; a test is at the level 1 - confidence.
        min_cell: scans of a group below which nothing is said of a difference.

    Raises:
        CompareError: the tables are not of the same scans, classes and groups, or of fewer than two groups.
        ValueError: a setting is out of range.

    Example:
        >>> import numpy as np
        >>> from fairlung.pipeline import compare
        >>> from fairlung.pipeline.evaluation.predictions import Predictions
        >>> label, sex = np.repeat([0, 1], 40), np.tile([0, 1], 40)
        >>> names = np.arange(80).astype(str)
        >>> def answers(wrong):  # of every fourth scan, or of none
        ...     said = np.where((np.arange(80) % 4 == 1) & wrong, 1 - label, label)
        ...     return Predictions(names, label, said, sex, None, ("covid", "normal"), ("male", "female"), ("sex",))
        >>> result = compare({"old": [answers(True)], "new": [answers(False)]}, resamples=500, permutations=500)
        >>> result.comparisons[0].differences["score"].value
        0.25
        >>> print(result.verdicts[0].level, "|", result.verdicts[0].text[:43])
        finding | P of new is 0.250 higher than that of old (
    """
    check_resampling(confidence, resamples, permutations)
    aligned = {name: [t.known().present_groups() for t in tables] for name, tables in paired.align(systems).items()}
    runs = [table for tables in aligned.values() for table in tables]
    first = runs[0]
    if len(first.group_names) < 2:
        names = ", ".join(first.group_names) or "none"
        raise CompareError(f"a comparison of fairness needs scans of two groups at least; there are scans of: {names}")
    number = itertools.count()
    columns = {name: [next(number) for _ in tables] for name, tables in aligned.items()}
    scans_rng, runs_rng, tests_rng = np.random.default_rng(seed).spawn(3)
    patterns = Patterns.of(runs)
    numbers = paired.headline(patterns.confusions(patterns.count[None]), first.group_names)
    observed = {name: values[0] for name, values in numbers.items()}
    draws = paired.bootstrap_runs(patterns, first.group_names, resamples, scans_rng)
    ones = {name: np.ones(len(c), dtype=np.int64) for name, c in columns.items()}
    weights = {name: paired.draw_weights(count, resamples, runs_rng) for name, count in ones.items()}
    evidence = _Evidence(patterns, columns, observed, draws, weights)
    reference, *others = aligned
    pairs = [_compare_pair(evidence, reference, other, permutations, confidence, tests_rng) for other in others]
    compared = []
    for name, tables in aligned.items():
        done = ", ".join(sorted({table.postprocess for table in tables} - {""}))
        own = {key: value[columns[name]] for key, value in observed.items()}
        mean = {key: float(value.mean()) for key, value in own.items()}
        sd = {key: float(value.std(ddof=1)) for key, value in own.items()} if len(tables) > 1 else None
        estimates = tuple(_run_estimates(table, resamples, confidence, seed) for table in tables)
        compared.append(ComparedSystem(name, done, mean, sd, estimates))
    result = Comparison(
        n=len(first.label), n_unknown=len(next(iter(systems.values()))[0].label) - len(first.label),
        class_names=first.class_names, group_names=first.group_names, group_by=first.group_by,
        group_scans=tuple(first.confusion()[:-1].sum((1, 2)).tolist()),
        synthetic=any(table.synthetic for table in runs), reference=reference,
        settings=records.ComparisonSettings(resamples, permutations, confidence, seed, min_cell),
        systems=tuple(compared), comparisons=tuple(_adjusted(pairs)),
    )  # fmt: skip
    return replace(result, verdicts=tuple(verdicts(result)))


class _Evidence(NamedTuple):
    patterns: Patterns  # of the R runs of all systems
    columns: dict[str, list[int]]  # system -> its runs among them
    observed: dict[str, Floats]  # name -> [R] of paired.headline
    draws: dict[str, Floats]  # name -> [B, R] of paired.bootstrap_runs
    weights: dict[str, Floats]  # system -> [B, runs] of paired.draw_weights


def _compare_pair(
    evidence: _Evidence, reference: str, other: str, permutations: int, confidence: float, rng: np.random.Generator
) -> PairComparison:
    patterns, columns, observed, draws, weights = evidence
    a, b = columns[reference], columns[other]
    several = max(len(a), len(b)) > 1
    differences = {name: float(value[b].mean() - value[a].mean()) for name, value in observed.items()}
    given = {name: draw[:, b].mean(1) - draw[:, a].mean(1) for name, draw in draws.items()}
    drawn = given
    swapped = paired.permute_scans(patterns, a, b, permutations, rng) if len(a) == len(b) else None
    if several:
        drawn = {
            name: given[name] + weights[other] @ value[b] - weights[reference] @ value[a] - differences[name]
            for name, value in observed.items()
        }
        p = {name: paired.permute_runs(observed[name][a], observed[name][b], permutations, rng) for name in TESTED}
        unit, least = "runs", paired.smallest_p(len(a), len(b), permutations)
    else:
        assert swapped is not None
        p, unit, least = swapped, "scans", 1 / (1 + permutations)
    power = power_of_gap(differences["score"], float(given["score"].std()), int(patterns.count.sum()), confidence)
    runs = paired.runs_needed(observed["score"][a], observed["score"][b], confidence)
    nan = float("nan")  # stands for p after Holm, which needs the tests of all comparisons
    alone = {name: GivenRunsTest(swapped[name], nan) for name in TESTED} if several and swapped else None
    return PairComparison(
        system=other, reference=reference, differences=_estimates(differences, drawn, confidence),
        probability_better={"score": _share_above(drawn["score"]), "abs_gap": _share_above(-drawn["abs_gap"])},
        tests={name: PermutationTest(p[name], unit, least, nan) for name in TESTED},
        differences_of_these_runs=_estimates(differences, given, confidence) if several else None,
        tests_of_these_runs=alone, power=records.DifferencePower(power.detectable_gap, power.scans, runs),
    )  # fmt: skip


def _run_estimates(table: Predictions, resamples: int, confidence: float, seed: int) -> dict[str, Estimate]:
    """The intervals of :func:`~.audit`, from the same draws: a run has the same numbers in both."""
    rng = np.random.default_rng(seed)
    confusion = table.confusion()[:-1]
    found, _ = confusion_intervals(confusion, rng, resamples, confidence)
    pooled, _ = confusion_intervals(confusion.sum(0, keepdims=True), rng, resamples, confidence)
    named = {name: found[name] for name in ("score", "gap", "abs_gap") if name in found} | {"f1_macro": pooled["score"]}
    named |= {f"f1_{group}": tuple(part[g] for part in found["group_f1"]) for g, group in enumerate(table.group_names)}
    return {name: estimate(*parts) for name, parts in named.items()}


def _estimates(observed: Mapping[str, float], draws: Mapping[str, Floats], confidence: float) -> dict[str, Estimate]:
    return {name: estimate_from(draws[name], value, confidence) for name, value in observed.items()}


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


def _with_holm(families: Sequence[Mapping[str, Test]]) -> list[dict[str, Test]]:
    from statsmodels.stats.multitest import multipletests

    if not families:
        return []
    p_values = [test.p_value for tests in families for test in tests.values()]
    adjusted = iter(map(float, multipletests(p_values, method="holm")[1]))
    return [{name: replace(test, p_holm=next(adjusted)) for name, test in tests.items()} for tests in families]
