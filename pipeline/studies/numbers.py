"""What the finished part of a study says: means, intervals, the best, the chosen alpha, differences between devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..evaluation.audit import confusion_intervals, fair_model
from ..evaluation.compare import compare
from ..evaluation.paired import TESTED, TIE, CompareError
from ..evaluation.predictions import Predictions
from ..evaluation.resampling import Estimate, check_resampling
from ..evaluation.wording import Verdict, in_percent, number_name, span
from .quoted import quoted_numbers
from .record import StudyError, StudyRun, load_study, status_text
from .results import (
    UNKNOWN_DEVICE,
    Replicate,
    Results,
    numbers_of,
    read_results,
    replicate_groups,
    replicates_of,
    score_on_choosing_scans,
)

SEEDS, SCANS = "seeds", "scans"  # what an interval is over
BEST = {"score": "highest", "abs_gap": "smallest"}
FAIR_SAMPLES = 1000  # of a perfectly fair model


@dataclass(frozen=True)
class Row:
    """One configuration in numbers.

    Args:
        label: of the configuration.
        system: without alpha and seed.
        alpha: of CVaR; None where there is none, or it was chosen.
        estimates: by name, f1_<group>, score, gap (two groups), abs_gap: mean over replicates and its interval.
        values: the same names, of each replicate.
        replicates: how many (seeds, or seeds x repeats).
        planned: how many there are to be.
        over: what the interval is over, SEEDS or, with one replicate, SCANS.
    """

    label: str
    system: str
    alpha: float | None
    estimates: Mapping[str, Estimate]
    values: Mapping[str, Sequence[float]]
    replicates: int
    planned: int
    over: str


@dataclass(frozen=True)
class Best:
    """Whether the best configuration can be told from the next.

    Args:
        number: ``score`` or ``abs_gap``.
        label: of the best.
        rivals: those it was held against, each ``{"system", "difference", "p_value", "p_holm", "smallest_p", "unit"}``,
            the next best first; empty where nothing could be tested.
        apart: the difference to every rival is beyond the noise over scans and seeds.
        verdict: in words.
    """

    number: str
    label: str
    rivals: tuple[Mapping[str, Any], ...]
    apart: bool
    verdict: Verdict


@dataclass(frozen=True)
class Selection:
    """Alpha chosen on the scans that chose, judged on those that judge.

    Args:
        name: of the row, ``<configuration>, alpha chosen``.
        alphas: among which was chosen.
        choices: a row a choice: ``seed``, ``repeat``, ``fold``, ``device``, ``alpha``, ``score_choosing``, ``score``,
            ``gap`` (two groups), ``abs_gap``; the gaps are NaN of a fold that has scans of one group only.
        row: of the chosen ones; None when no seed has all folds and alphas.
        lacking: choices that cannot be made, as a run is missing.
        optimism: expected gain of P by choosing the best of as many equal ones, at this study's spread between seeds;
            None when the spread is not known.
    """

    name: str
    alphas: tuple[float, ...]
    choices: pd.DataFrame
    row: Row | None
    lacking: int
    optimism: float | None


@dataclass(frozen=True)
class StudyTables:
    """Everything that the page shows, as numbers.

    Args:
        results: the finished part of the study.
        rows: of Table 1, in the study's order.
        best: by number, of those that were tested.
        selections: of each system with several values of alpha.
        devices: Table 2, a row a configuration and device, and a row a difference.
        quoted: numbers of others by label.
        confidence: of every interval.
        resamples: bootstrap draws.
        seed: of the draws.
    """

    results: Results
    rows: tuple[Row, ...]
    best: tuple[Best, ...]
    selections: tuple[Selection, ...]
    devices: pd.DataFrame
    quoted: Mapping[str, Mapping[str, float]]
    confidence: float
    resamples: int
    seed: int


def number_keys(table: Predictions) -> tuple[str, ...]:
    """The numbers of a row in their order: F1 of each group, P, the signed gap where there are two groups, |gap|.

    A group without a scan has none.

    Raises:
        StudyError: fewer than two groups have a scan.
    """
    present = table.present_groups().group_names
    if len(present) < 2:
        raise StudyError(
            f"a study of fairness needs judged scans of two groups at least; there are scans of: "
            f"{', '.join(present) or 'none'}"
        )
    signed = ("gap",) if len(table.group_names) == 2 else ()
    return (*(f"f1_{name}" for name in present), "score", *signed, "abs_gap")


def over_seeds(values: Sequence[float], number: str, confidence: float = 0.95) -> Estimate:
    """Mean over seeds and its t interval, cut to the range of the number.

    mean +- t_{n-1} s / sqrt(n): scipy's. It speaks of other seeds on these very scans, not of other scans.

    Args:
        values: one a seed, two at least.
        number: its name; a signed gap is in [-1, 1], everything else in [0, 1].

    Raises:
        ValueError: fewer than two values.
    """
    from scipy import stats

    if len(values) < 2:
        raise ValueError(f"an interval over seeds needs two at least, got {len(values)}")
    mean, error = float(np.mean(values)), float(stats.sem(values))
    if error <= TIE:
        return Estimate(mean, mean, mean)
    low, high = stats.t.interval(confidence, len(values) - 1, loc=mean, scale=error)
    return Estimate(mean, max(low, -1.0 if number == "gap" else 0.0), min(high, 1.0))


def over_scans(table: Predictions, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """The audit's intervals of one table: number -> :class:`Estimate`. Groups without a scan have none."""
    table = table.present_groups()
    found, _ = confusion_intervals(table.confusion()[:-1], np.random.default_rng(seed), resamples, confidence)
    numbers = {name: Estimate(*map(float, found[name])) for name in ("score", "gap", "abs_gap") if name in found}
    value, low, high = found["group_f1"]
    f1 = {f"f1_{n}": Estimate(float(value[g]), float(low[g]), float(high[g])) for g, n in enumerate(table.group_names)}
    return f1 | numbers


def make_row(
    replicates: Sequence[Replicate],
    system: str,
    alpha: float | None,
    planned: int,
    confidence: float,
    resamples: int,
    seed: int,
) -> Row:
    """Mean and interval of each number over the replicates of one configuration, one at least."""
    keys = number_keys(replicates[0].predictions)
    values = {key: [replicate.numbers[key] for replicate in replicates] for key in keys}
    if len(replicates) > 1:
        estimates = {key: over_seeds(value, key, confidence) for key, value in values.items()}
    else:
        judged = over_scans(replicates[0].predictions, confidence, resamples, seed)
        estimates = {key: judged[key]._replace(value=values[key][0]) for key in keys}
    over = SEEDS if len(replicates) > 1 else SCANS
    return Row(replicates[0].label, system, alpha, estimates, values, len(replicates), planned, over)


def tell_best(
    replicates: Mapping[str, Sequence[Replicate]],
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[Best, ...]:
    """Is the highest P (and the smallest |gap|) beyond the noise?

    The best is held against the next by :func:`~.compare`, paired over scans, with chance in scans and seeds.
    Testing the winner against the runner-up alone, at the full level, is a valid test of the winner against all (Hung
    and Fithian, Rank verification for exponential families, Annals of Statistics 2019); as that supposes equal spread,
    configurations with fewer seeds than the next are tested too. Holm's adjustment is over all tests made here. With
    one seed a configuration nothing is told apart: how much seeds change is not known.

    Args:
        replicates: by label, two configurations with one at least; otherwise the result is empty.
    """
    from statsmodels.stats.multitest import multipletests

    runs = {label: [r.predictions for r in made] for label, made in replicates.items() if made}
    if len(runs) < 2:
        return ()
    found: dict[str, list[dict[str, Any]]] = {}
    why: dict[str, str] = {}
    order: dict[str, list[str]] = {}
    for number, sign in zip(TESTED, (-1, 1), strict=True):
        means = {label: float(np.mean([r.numbers[number] for r in replicates[label]])) for label in runs}
        order[number] = sorted(runs, key=lambda label: sign * means[label])
        best, after, *others = order[number]
        rivals = [after, *(label for label in others if len(runs[label]) < len(runs[after]))]
        try:
            result = compare({label: runs[label] for label in (best, *rivals)}, resamples, resamples, confidence, seed)
        except CompareError as error:
            found[number], why[number] = [], str(error)
            continue
        found[number] = [
            {"system": c.system, "difference": c.differences[number], **vars(c.tests[number])}
            for c in result.comparisons
        ]
    tests = [test for made in found.values() for test in made]
    if tests:
        adjusted = multipletests([test["p_value"] for test in tests], method="holm")[1]
        for test, p in zip(tests, adjusted, strict=True):
            test["p_holm"] = float(p)
    return tuple(
        _best(number, order[number][0], found[number], len(tests), confidence, why.get(number, "")) for number in TESTED
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
        if r["unit"] == SCANS or r["p_holm"] >= level or r["difference"].low <= 0 <= r["difference"].high
    ]  # fmt: skip
    shown = close[0] if close else rivals[0]
    difference, over = shown["difference"], SCANS if shown["unit"] == SCANS else "scans and seeds"
    whom = "the next" if shown is rivals[0] else "another"
    what = (
        f"{label} has the {BEST[number]} {name}. From it to {whom}, {shown['system']}, it is "
        f"{difference.value:+.3f} ({in_percent(confidence)} interval over {over} {span(difference, signed=True)}; "
        f"p = {shown['p_holm']:.3g} after Holm over {tests} tests)"
    )
    if not close:
        return Best(number, label, tuple(rivals), True, Verdict("finding", f"{what}: larger than chance explains."))
    if shown["unit"] == SCANS:
        reason = "one seed each, so how much the seed alone changes is not known"
    elif tests * shown["smallest_p"] >= level:
        reason = "so few seeds cannot tell a difference of any size from none"
    else:
        reason = f"the best cannot be told from {whom}"
    verdict = Verdict("inconclusive", f"{what}: {reason}. No {name} is in bold.")
    return Best(number, label, tuple(rivals), False, verdict)


def expected_best(choices: int, spread: float) -> float:
    """How much the best of several equal configurations looks better than it is: ``spread`` x E[max of K normals].

    E[max] = integral of x K phi(x) Phi(x)^(K-1), by scipy.

    Args:
        choices: K, 1 or more.
        spread: standard deviation between runs.
    """
    from scipy import stats

    return spread * float(stats.norm.expect(lambda x: x * choices * stats.norm.cdf(x) ** (choices - 1)))


def select_alpha(
    results: Results, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[Selection, ...]:
    """What choosing alpha on the scans that chose the epoch gives on the scans that judge.

    For each seed and fold, the run of the highest P on its choosing scans is taken (the first in the study's order of
    equal ones), and the judged scans of the taken runs are put together as in :func:`~.read_results`. A
    seed and fold that lacks a run of one alpha is left out.
    """
    study = results.study
    families: dict[tuple[str, str], list[StudyRun]] = {}
    for run in study.runs:
        if run.alpha is not None:
            families.setdefault(run.family, []).append(run)
    found = []
    for (system, label), runs in families.items():
        alphas = tuple(dict.fromkeys(run.alpha for run in runs if run.alpha is not None))
        if len(alphas) > 1:
            found.append(_selection(results, system, label, alphas, runs, confidence, resamples, seed))
    return tuple(found)


def _selection(
    results: Results,
    system: str,
    label: str,
    alphas: tuple[float, ...],
    runs: Sequence[StudyRun],
    confidence: float,
    resamples: int,
    seed: int,
) -> Selection:
    study = results.study
    keys = number_keys(results.judged)
    situations: dict[tuple[Any, ...], list[StudyRun]] = {}
    for (_, *key), group in replicate_groups(study, runs).items():
        for run in group:
            situations.setdefault((*key, run.fold), []).append(run)
    taken: dict[tuple[Any, ...], list[StudyRun]] = {}
    choices: list[dict[str, Any]] = []
    lacking = 0
    for (*key, fold), candidates in situations.items():
        scores = [score_on_choosing_scans(run) if run.id in results.tables else None for run in candidates]
        if len(candidates) < len(alphas) or None in scores:
            lacking += 1
            continue
        best = int(np.argmax(np.array(scores, dtype=float)))
        run = candidates[best]
        taken.setdefault(tuple(key), []).append(run)
        numbers = numbers_of(results.tables[run.id])
        if len(results.tables[run.id].present_groups().group_names) < 2:  # of this fold
            numbers = numbers | dict.fromkeys(("gap", "abs_gap"), float("nan"))
        choices.append(
            {"seed": run.seed, "repeat": run.repeat, "fold": fold, "device": run.device, "alpha": run.alpha}
            | {"score_choosing": scores[best]}
            | {name: numbers[name] for name in keys if not name.startswith("f1_")}
        )
    name = f"{label}, alpha chosen"
    replicates = [r for group in taken.values() for r in replicates_of(study, group, results.tables, name)]
    row = None
    if replicates:
        planned = max(len(replicates), len({key[:-1] for key in situations}))
        row = make_row(replicates, system, None, planned, confidence, resamples, seed)
    groups = {run.label for run in runs}
    spreads = [
        np.var([r.numbers["score"] for r in results.replicates[each]], ddof=1)
        for each in groups
        if len(results.replicates[each]) > 1
    ]
    optimism = expected_best(len(alphas), float(np.sqrt(np.mean(spreads)))) if spreads else None
    return Selection(name, alphas, pd.DataFrame(choices), row, lacking, optimism)


def device_table(
    found: Sequence[Results], confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> pd.DataFrame:
    """The same configurations and seeds on different devices (the paper's Table 2).

    Args:
        found: of one study or several, joined by label, seed and repeat, and fold where each is a replicate.

    Returns:
        a row a configuration and device (``kind`` "device"), and, where a configuration ran on several, a row for each
        other device minus the first over the seeds that both have (``kind`` "difference"). Columns ``configuration``,
        ``device``, ``kind``, ``seeds``, ``over``, each number with ``_low`` and ``_high``, and for a difference
        ``p_score`` and ``p_abs_gap`` (Holm over the table).

    Raises:
        StudyError: two studies hold the same run, or were not judged alike.
    """
    from statsmodels.stats.multitest import multipletests

    _joinable(found)
    by_device: dict[str, dict[str, list[Replicate]]] = {}
    systems = {run.label: run for results in found for run in results.study.runs}
    for results in found:
        for label, replicates in results.replicates.items():
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
            pairs = _common(devices[first], devices[other])
            if not pairs:
                continue
            a, b = ([r.predictions for r in side] for side in zip(*pairs, strict=True))
            try:
                result = compare({first: a, other: b}, resamples, resamples, confidence, seed)
            except CompareError as error:
                raise StudyError(f"{label} on {first} and on {other} cannot be compared: {error}") from error
            (comparison,) = result.comparisons
            keys = number_keys(a[0])
            differences = {key: comparison.differences[key] for key in keys}
            line = {"configuration": label, "device": f"{other} minus {first}", "kind": "difference",
                    "seeds": len(pairs), "over": "scans and seeds" if len(pairs) > 1 else SCANS}  # fmt: skip
            rows.append(line | columns_of(differences))
            tests += [(rows[-1], f"p_{key}", comparison.tests[key].p_value) for key in TESTED]
    if tests:
        adjusted = multipletests([p for *_, p in tests], method="holm")[1]
        for (line, key, _), p in zip(tests, adjusted, strict=True):
            line[key] = float(p)
    return pd.DataFrame(rows)


def _joinable(found: Sequence[Results]) -> None:
    first = found[0].study
    seen: dict[Any, Path] = {}
    for results in found:
        study = results.study
        for what in ("protocol", "folds", "reported_split"):
            if getattr(study, what) != getattr(first, what):
                raise StudyError(
                    f"{study.folder} has the {what.replace('_', ' ')} {getattr(study, what)}, {first.folder} "
                    f"{getattr(first, what)}: their numbers do not belong side by side"
                )
        for run in study.runs:
            key = run.label, run.seed, run.repeat, run.fold, run.device
            if run.status == "finished" and seen.setdefault(key, study.folder) != study.folder:
                raise StudyError(
                    f"{seen[key]} and {study.folder} both have {run.label}, seed {run.seed}, on "
                    f"{run.device or UNKNOWN_DEVICE}: is it the same study twice?"
                )


def _common(a: Sequence[Replicate], b: Sequence[Replicate]) -> list[tuple[Replicate, Replicate]]:
    return [(x, y) for x in a for y in b if (x.seed, x.repeat, x.fold) == (y.seed, y.repeat, y.fold)]


def columns_of(estimates: Mapping[str, Estimate]) -> dict[str, float]:
    return {
        f"{name}{end}": value
        for name, found in estimates.items()
        for end, value in zip(("", "_low", "_high"), found, strict=True)
    }


def study_tables(
    folders: Sequence[str | Path], confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> StudyTables:
    """All numbers of a study.

    Args:
        folders: the study, and others with which Table 2 is joined (one a machine).
        confidence: of every interval; tests are at the level 1 - confidence.
        resamples: bootstrap draws, and permutations.
        seed: same seed, same tables.

    Raises:
        StudyError: a folder is no study, nothing is finished, or the studies do not belong together.
        ValueError: a setting is out of range.
    """
    check_resampling(confidence, resamples)
    found = [read_results(load_study(folder)) for folder in folders]
    results = found[0]
    first = {run.label: run for run in reversed(results.study.runs)}
    rows = tuple(
        make_row(
            made, first[label].system, first[label].alpha, results.planned[label], confidence, resamples, seed
        )
        for label, made in results.replicates.items()
        if made
    )  # fmt: skip
    if not rows:
        raise StudyError(
            f"{results.study.folder}: no seed has all its folds yet ({status_text(results.study)}), so there is no "
            "number over all scans"
        )
    return StudyTables(
        results,
        rows,
        tell_best(results.replicates, confidence, resamples, seed),
        select_alpha(results, confidence, resamples, seed),
        device_table(found, confidence, resamples, seed),
        quoted_numbers(results),
        confidence,
        resamples,
        seed,
    )


def fair_gap(tables: StudyTables) -> tuple[str, float]:
    """The configuration of the highest P, and the mean |gap| of a perfectly fair model as good as it."""
    best = max(tables.rows, key=lambda row: row.estimates["score"].value)
    rng = np.random.default_rng(tables.seed)
    draws = [
        fair_model(replicate.predictions.present_groups().confusion()[:-1], FAIR_SAMPLES, rng)["abs_gap"].mean()
        for replicate in tables.results.replicates[best.label]
    ]
    return best.label, float(np.mean(draws))
