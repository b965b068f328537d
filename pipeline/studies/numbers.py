"""What the finished part of a study says: means and intervals, the best, differences between devices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..comparison.compare import compare, holm
from ..comparison.paired import TESTED, CompareError, over_runs
from ..comparison.words import NO_INTERVAL, few_groups
from ..evaluation.fairness_criteria import confusion_intervals
from ..evaluation.patients import Clusters
from ..evaluation.predictions import Predictions
from ..evaluation.resampling import TIE, Estimate
from ..evaluation.wording import Verdict, in_percent, number_name, span
from .record import StudyError
from .results import UNKNOWN_DEVICE, Replicate, Results

SEEDS, SCANS = "seeds", "scans"  # what an interval is over
BEST = {"score": "highest", "abs_gap": "smallest"}


@dataclass(frozen=True)
class Row:
    """One configuration in numbers, which are named f1_<group>, score, gap (two groups) and abs_gap."""

    label: str
    system: str  # without alpha and seed
    alpha: float | None  # of CVaR; None where there is none, or it was chosen
    estimates: Mapping[str, Estimate]  # over_runs of the replicates, and intervals
    values: Mapping[str, Sequence[float]]  # of each replicate
    replicates: int  # seeds, or seeds x repeats
    planned: int  # how many there are to be
    over: str  # what the interval is over, SEEDS or, with one replicate, SCANS


@dataclass(frozen=True)
class Best:
    """Whether the best configuration can be told from the next."""

    number: str  # score or abs_gap
    label: str
    # The next best first, each {"system", "difference", "p_value", "p_holm", "seeds"}; () if nothing could be tested.
    rivals: tuple[Mapping[str, Any], ...]
    apart: bool  # the difference to every rival is beyond the noise over scans and seeds
    verdict: Verdict


def number_keys(table: Predictions) -> tuple[str, ...]:
    """The numbers of a row in their order: F1 of each group that has a scan, P, the gap of two groups, |gap|.

    StudyError: fewer than two groups have a scan.
    """
    present = table.present_groups().group_names
    if len(present) < 2:
        there = f"there are scans of: {', '.join(present) or 'none'}"
        raise StudyError(f"a study of fairness needs judged scans of two groups at least; {there}")
    signed = ("gap",) if len(table.group_names) == 2 else ()
    return (*(f"f1_{name}" for name in present), "score", *signed, "abs_gap")


def over_seeds(values: Sequence[float], number: str, confidence: float = 0.95) -> Estimate:
    """Mean over seeds and its t interval, mean +- t_{n-1} s / sqrt(n) by scipy, cut to the range of the number.

    It speaks of other seeds on these very scans, not of other scans. A signed ``gap`` is in [-1, 1], every other
    ``number`` in [0, 1]. ValueError: fewer than two different values, which tell nothing of other seeds.
    """
    from scipy import stats

    if alike(values):
        raise ValueError(f"an interval over seeds needs two different values at least, got {list(values)}")
    mean, error = float(np.mean(values)), float(stats.sem(values))
    low, high = stats.t.interval(confidence, len(values) - 1, loc=mean, scale=error)
    return Estimate(mean, max(low, -1.0 if number == "gap" else 0.0), min(high, 1.0))


def alike(values: Sequence[float]) -> bool:
    """Whether all are one number, so that a t interval would be no wider than a point."""
    return float(np.ptp(values)) <= TIE


def over_scans(table: Predictions, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """The audit's intervals of one table: number -> :class:`Estimate`. Groups without a scan have none."""
    table = table.known().present_groups()
    counts, rng, patients = table.confusion()[:-1], np.random.default_rng(seed), Clusters.of(table)
    found, _ = confusion_intervals(counts, rng, resamples, confidence, patients=patients)
    numbers = {name: Estimate(*map(float, found[name])) for name in ("score", "gap", "abs_gap") if name in found}
    value, low, high = found["group_f1"]
    f1 = {f"f1_{n}": Estimate(float(value[g]), float(low[g]), float(high[g])) for g, n in enumerate(table.group_names)}
    return f1 | numbers


def make_row(
    replicates: Sequence[Replicate], system: str, alpha: float | None, planned: int, confidence: float, resamples: int,
    seed: int,
) -> Row:  # fmt: skip
    """Each number of one configuration, :func:`~.over_runs` of its replicates, one at least, with its interval.

    It is over seeds, or over scans with one replicate and where all replicates have one value. That of |gap| of two
    groups is that of the gap, folded.
    """
    values = _values(replicates)
    differ = {key: over_seeds(value, key, confidence) for key, value in values.items() if not alike(value)}
    same = values.keys() - differ.keys()
    judged = over_scans(replicates[0].predictions, confidence, resamples, seed) if same else {}
    found = differ | {key: judged[key]._replace(value=values[key][0]) for key in same}
    if "gap" in differ:
        value, low, high = differ["gap"]
        found["abs_gap"] = Estimate(abs(value), max(low, -high, 0.0), max(-low, high))
    estimates = {key: found[key] for key in number_keys(replicates[0].predictions)}
    over = SEEDS if len(replicates) > 1 else SCANS
    return Row(replicates[0].label, system, alpha, estimates, values, len(replicates), planned, over)


def _values(replicates: Sequence[Replicate]) -> dict[str, list[float]]:
    """The numbers of each replicate, with the gap wherever two groups have scans."""
    keys = number_keys(replicates[0].predictions)
    found = {key: [replicate.numbers[key] for replicate in replicates] for key in keys}
    first, second, *more = (np.array(value) for key, value in found.items() if key.startswith("f1_"))
    return found if more else {"gap": (first - second).tolist()} | found


def tell_best(
    replicates: Mapping[str, Sequence[Replicate]], confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[Best, ...]:
    """Is the highest P (and the smallest |gap|) beyond the noise?

    :func:`~.compare` holds the best against the next, paired over scans, with chance in scans and seeds. Testing the
    winner against the runner-up alone, at the full level, is a valid test of the winner against all (Hung and Fithian,
    Rank verification for exponential families, Annals of Statistics 2019). That supposes equal spread, so
    configurations with fewer seeds than the next are tested too. Holm's adjustment is over all tests made here. With
    one seed a configuration nothing is told apart: how much seeds change is not known. Nor is |gap| of more than two
    groups (:func:`~.compare`). The result is empty with fewer than two configurations.
    """
    runs = {label: [r.predictions for r in made] for label, made in replicates.items() if made}
    if len(runs) < 2:
        return ()
    found: dict[str, list[dict[str, Any]]] = {}
    why: dict[str, str] = {}
    first: dict[str, str] = {}
    for number, sign in zip(TESTED, (-1, 1), strict=True):
        means = {label: over_runs(_values(replicates[label]))[number] for label in runs}
        best, after, *others = sorted(runs, key=lambda label: sign * means[label])
        first[number] = best
        rivals = [after, *(label for label in others if len(runs[label]) < len(runs[after]))]
        try:
            result = compare({label: runs[label] for label in (best, *rivals)}, resamples, resamples, confidence, seed)
        except CompareError as error:
            found[number], why[number] = [], str(error)
            continue
        if missing := few_groups(result) or ("" if number in result.comparisons[0].tests else NO_INTERVAL):
            found[number], why[number] = [], missing
            continue
        found[number] = [
            {"system": c.system, "difference": c.differences[number], "seeds": c.seeds} | vars(c.tests[number])
            for c in result.comparisons
        ]
    tests = [test for made in found.values() for test in made]
    for test, p in zip(tests, holm([test["p_value"] for test in tests]), strict=True):
        test["p_holm"] = p
    return tuple(
        _best(number, first[number], found[number], len(tests), confidence, why.get(number, "")) for number in TESTED
    )


def _best(
    number: str, label: str, rivals: Sequence[Mapping[str, Any]], tests: int, confidence: float, why: str
) -> Best:
    name = number_name(number, ())
    if why:
        verdict = Verdict("no-statement", f"{name} of {label} is the {BEST[number]}; nothing was tested: {why}")
        return Best(number, label, (), False, verdict)
    level = 1 - confidence
    close = [
        r for r in rivals
        if not r["seeds"] or r["p_holm"] >= level or r["difference"].low <= 0 <= r["difference"].high
    ]  # fmt: skip
    shown = close[0] if close else rivals[0]
    difference, over = shown["difference"], "scans and seeds" if shown["seeds"] else SCANS
    whom = "the next" if shown is rivals[0] else "another"
    what = (
        f"{label} has the {BEST[number]} {name}. From it to {whom}, {shown['system']}, it is "
        f"{difference.value:+.3f} ({in_percent(confidence)} interval over {over} {span(difference, signed=True)}; "
        f"p = {shown['p_holm']:.3g} after Holm over {tests} tests)"
    )
    if not close:
        return Best(number, label, tuple(rivals), True, Verdict("finding", f"{what}: larger than chance explains."))
    reason = f"the best cannot be told from {whom}"
    if not shown["seeds"]:
        reason = "there is one seed only, so how much the seed alone changes is not known"
    verdict = Verdict("inconclusive", f"{what}: {reason}. No {name} is in bold.")
    return Best(number, label, tuple(rivals), False, verdict)


def device_table(
    found: Sequence[Results], confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> pd.DataFrame:
    """The same configurations and seeds on different devices (the paper's Table 2), of one study or several.

    Studies are joined by label, seed and repeat, and by fold where each is a replicate. A configuration has a row for
    each device (``kind`` "device") and, where it ran on several, one for each other device minus the first over the
    seeds that both have ("difference"). Columns: ``configuration``, ``device``, ``kind``, ``seeds``, ``over``, each
    number with ``_low`` and ``_high``, and of a difference ``p_score`` and ``p_abs_gap`` (Holm over the table).

    Raises:
        StudyError: two studies hold the same run, or were not judged alike.
    """
    _joinable(found)
    by_device: dict[str, dict[str, list[Replicate]]] = {}
    systems = {run.label: run for results in found for run in results.study.runs}
    for label, replicates in (item for results in found for item in results.replicates.items()):
        for replicate in replicates:
            by_device.setdefault(label, {}).setdefault(replicate.device, []).append(replicate)
    rows: list[dict[str, Any]] = []
    tests: list[tuple[dict[str, Any], str, float]] = []
    for label, devices in by_device.items():
        for device, made in devices.items():
            row = make_row(made, systems[label].system, systems[label].alpha, len(made), confidence, resamples, seed)
            rows.append({"configuration": label, "device": device, "kind": "device", "seeds": row.replicates,
                         "over": row.over} | columns_of(row.estimates))  # fmt: skip
        first, *others = devices
        for other in others:
            both = product(devices[first], devices[other])
            pairs = [(x, y) for x, y in both if (x.seed, x.repeat, x.fold) == (y.seed, y.repeat, y.fold)]
            if not pairs:
                continue
            a, b = ([r.predictions for r in side] for side in zip(*pairs, strict=True))
            try:
                result = compare({first: a, other: b}, resamples, resamples, confidence, seed)
            except CompareError as error:
                raise StudyError(f"{label} on {first} and on {other} cannot be compared: {error}") from error
            (comparison,) = result.comparisons
            differences = {k: comparison.differences[k] for k in number_keys(a[0]) if k in comparison.differences}
            line = {"configuration": label, "device": f"{other} minus {first}", "kind": "difference",
                    "seeds": len(pairs), "over": "scans and seeds" if comparison.seeds else SCANS}  # fmt: skip
            rows.append(line | columns_of(differences))
            tests += [(rows[-1], f"p_{key}", test.p_value) for key, test in comparison.tests.items()]
    for (line, key, _), p in zip(tests, holm([p for *_, p in tests]), strict=True):
        line[key] = p
    return pd.DataFrame(rows)


def _joinable(found: Sequence[Results]) -> None:
    first = found[0].study
    seen: dict[Any, Path] = {}
    for results in found:
        study = results.study
        for what in ("protocol", "folds", "reported_split"):
            mine, theirs = getattr(study, what), getattr(first, what)
            if mine != theirs:
                said = f"{study.folder} has the {what.replace('_', ' ')} {mine}, {first.folder} {theirs}"
                raise StudyError(f"{said}: their numbers do not belong side by side")
        for run in study.runs:
            key = run.label, run.seed, run.repeat, run.fold, run.device
            if run.status == "finished" and seen.setdefault(key, study.folder) != study.folder:
                what = f"{run.label}, seed {run.seed}, on {run.device or UNKNOWN_DEVICE}"
                raise StudyError(f"{seen[key]} and {study.folder} both have {what}: is it the same study twice?")


def columns_of(estimates: Mapping[str, Estimate]) -> dict[str, float]:
    ends = ("", "_low", "_high")
    return {f"{name}{end}": value for name, found in estimates.items() for end, value in zip(ends, found, strict=True)}
