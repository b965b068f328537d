"""Is one system better than another: differences on the same scans, over seeds where there are several, and tests.

A system is a way of training, given by the predictions of its runs (seeds). With one run each the question is about
these two trained models; with several it is about the ways of training, and chance is in the scans and in the seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .audit import confusion_intervals, power_of_gap
from .compare_words import verdicts
from .paired import (
    TESTED,
    TIE,
    CompareError,
    Floats,
    Patterns,
    align,
    bootstrap_runs,
    draw_weights,
    headline,
    permute_runs,
    permute_scans,
    runs_needed,
    smallest_p,
)
from .predictions import Predictions
from .resampling import check_resampling, estimate, interval


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
        - ``verdicts``, a list of ``{"level", "text"}``, see :class:`~.Verdict`.

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
    """The intervals of :func:`~.audit`, from the same draws: a run has the same numbers in both."""
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
