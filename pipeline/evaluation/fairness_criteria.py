"""Criteria of fairness on counts of predictions: P, the gap and others, their intervals and tests.

Everything here is a function of counts [G, C, C] of G groups and C classes, rows true, and of resamples of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray

from . import records
from .metrics import class_scores
from .patients import Clusters
from .predictions import Predictions
from .resampling import TIE, Estimate, Floats, estimate, interval, newcombe

IntervalMethod = Literal["smoothed", "percentile"]
PERMUTATION_CHUNK = 20_000_000  # predictions shuffled at a time, which bounds memory
Numbers = Callable[[NDArray[Any]], dict[str, Floats]]


def summaries(confusion: NDArray[Any]) -> dict[str, Floats]:
    """P, gap, |gap| and F1 of confusion counts [..., G, C, C], rows true; :func:`~.class_scores` has the formulas.

    Returns:
        ``score`` [...], ``abs_gap`` [...], ``group_f1`` [..., G], ``cell_f1`` [..., G, C]; with two groups ``gap``
        [...], first minus second.
    """
    cell = class_scores(torch.from_numpy(np.ascontiguousarray(confusion)))["f1"].numpy()
    group = cell.mean(-1)
    found = {"score": group.mean(-1), "group_f1": group, "cell_f1": cell, "abs_gap": np.ptp(group, axis=-1)}
    if group.shape[-1] == 2:
        found["gap"] = group[..., 0] - group[..., 1]
    return found


def row_shares(confusion: NDArray[Any], method: IntervalMethod = "smoothed") -> Floats:
    """Shares of the predictions of each true class and group that resamples are drawn from, of counts [G, C, C].

    ``percentile`` takes the observed shares. ``smoothed`` adds one scan a row, spread evenly over the C predictions
    (Agresti and Coull's idea for a proportion, as a Dirichlet(1/C) prior): a cell that was right 5 times out of 5 is
    not certain to be right. Rows sum to 1; an empty row is even.
    """
    counts = np.asarray(confusion, dtype=float)
    classes, support = counts.shape[-1], counts.sum(-1, keepdims=True)
    if method == "percentile":
        return np.where(support > 0, counts / np.maximum(support, 1), 1 / classes)
    return (counts + 1 / classes) / (support + 1)


def bootstrap_confusion(
    confusion: NDArray[Any], resamples: int, rng: np.random.Generator, method: IntervalMethod = "smoothed"
) -> NDArray[np.int64]:
    """Bootstrap resamples [B, G, C, C] of the scans within each class and group: one multinomial draw a row."""
    shares = row_shares(confusion, method)
    return rng.multinomial(np.asarray(confusion).sum(-1), shares, size=(resamples, *shares.shape[:2]))


def resampled(
    confusion: NDArray[Any], resamples: int, rng: np.random.Generator, method: IntervalMethod,
    patients: Clusters | None,
) -> tuple[NDArray[Any], Floats]:  # fmt: skip
    """Resamples [B, G, C, C] of scans or patients, and their mean [G, C, C]."""
    if patients is not None:
        return patients.bootstrap(resamples, rng, method == "smoothed")
    mean = row_shares(confusion, method) * np.asarray(confusion).sum(-1, keepdims=True)
    return bootstrap_confusion(confusion, resamples, rng, method), mean


def confusion_intervals(
    confusion: NDArray[Any], rng: np.random.Generator, resamples: int = 10_000, confidence: float = 0.95,
    method: IntervalMethod = "smoothed", patients: Clusters | None = None, numbers: Numbers = summaries,
) -> tuple[dict[str, tuple[Any, Any, Any]], dict[str, Floats]]:  # fmt: skip
    """Intervals of every number of :func:`summaries`, or of other ``numbers`` of that name.

    ``smoothed`` draws from smoothed shares (:func:`row_shares`). That moves means over cells towards chance, so the
    draws of P, the gap and the F1 of a group are moved back to what was observed; those of a single cell are not,
    which is what gives a cell that was always right a lower end. ``percentile`` is the plain bootstrap. How often
    each covers the truth: benchmarks/intervals.py, docs/statistics.md. With ``patients`` these are drawn, not scans
    (:meth:`.Clusters.bootstrap`).

    |gap| of two groups has the interval of the gap, folded. With more, resampling makes the largest difference larger;
    its interval is |gap| +- c, where the range over groups of what the F1 of a group misses is at most c with the given
    confidence. Every difference of two groups is within c of the truth then (Tukey's simultaneous intervals), and so is
    the largest.

    Returns:
        name -> (value, low, high), and the draws behind them, name -> [B, ...].
    """
    observed = numbers(np.asarray(confusion, dtype=float))
    draws, centre = map(numbers, resampled(confusion, resamples, rng, method, patients))
    found: dict[str, tuple[Any, Any, Any]] = {}
    for name, value in observed.items():
        recentre = method == "smoothed" and name in ("score", "gap", "group_f1")
        shift = value - centre[name] if recentre else 0.0
        low, high = np.clip(interval(draws[name], value, confidence, shift), -1.0 if name == "gap" else 0.0, 1)
        found[name] = (value, low, high)
        draws[name] = draws[name] + shift
    if "gap" in found:  # the gap and its size must not contradict each other
        value, low, high = found["gap"]
        ends = np.abs([low, high])
        found["abs_gap"] = (np.abs(value), np.float64(0) if low <= 0 <= high else ends.min(), ends.max())
    else:
        value, reach = observed["abs_gap"], np.ptp(draws["group_f1"] - observed["group_f1"], axis=-1)
        width = np.quantile(reach, confidence)
        found["abs_gap"] = (value, np.maximum(0, value - width), np.minimum(1, value + width))
    return found, draws


def fair_model(
    confusion: NDArray[Any], resamples: int, rng: np.random.Generator, patients: Clusters | None = None
) -> dict[str, Floats]:
    """:func:`summaries` [B, ...] of a perfectly fair model of the same overall behaviour on scans like these.

    Every group's predictions are drawn from the shares of all groups together, class by class, for counts [G, C, C].
    |gap| of a fair model is never 0 on a finite sample: an observed |gap| means something only beside this. Its signed
    gap is not 0 on average either where the groups have different proportions of classes, as precision depends on them.
    """
    if patients is not None:
        return summaries(patients.alike(resamples, rng))
    counts = np.asarray(confusion)
    shares = np.broadcast_to(row_shares(counts.sum(0, keepdims=True), "percentile"), counts.shape)
    return summaries(rng.multinomial(counts.sum(-1), shares, size=(resamples, *counts.shape[:2])))


def permutation_test(
    confusion: NDArray[Any], permutations: int, rng: np.random.Generator, patients: Clusters | None = None,
    numbers: Numbers = summaries, by_counts: bool = False,
) -> float:  # fmt: skip
    """p-value of the gap of counts [G, C, C] when groups are shuffled among the scans of each class.

    Under the null hypothesis the group of a scan says nothing about its prediction once its class is known. The gap of
    two groups is held against the mean over shuffles, which is not 0 where their classes have different proportions;
    with more groups the statistic t is |gap|. p = #{t* >= t} / (1 + permutations), the observed t among the t*.
    With ``patients`` these are shuffled whole (:meth:`.Clusters.shuffled`). ``by_counts`` draws other shuffles of scans
    of the same distribution, and quickly (:func:`shuffled_counts`).
    """
    shuffle = shuffled_counts if by_counts else _shuffled
    counts = np.asarray(confusion, dtype=np.int64)
    name = "gap" if len(counts) == 2 else "abs_gap"
    found = [numbers(counts[None])[name]]
    size = max(1, min(permutations, PERMUTATION_CHUNK // max(1, int(counts.sum()))))
    for start in range(0, permutations, size):
        b = min(size, permutations - start)
        found.append(numbers(shuffle(counts, b, rng) if patients is None else patients.shuffled(b, rng))[name])
    statistic = np.concatenate(found)
    if len(counts) == 2:
        statistic = np.abs(statistic - statistic.mean())
    return float((statistic >= statistic[0] - TIE).mean())


def _shuffled(counts: NDArray[np.int64], permutations: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """[B, G, C, C]: the scans of each class shuffled between the groups."""
    groups, classes, _ = counts.shape
    shuffled = np.zeros((permutations, groups, classes, classes), dtype=np.int64)
    for label in range(classes):
        predictions = np.repeat(np.arange(classes, dtype=np.int16), counts[:, label].sum(0))
        order = rng.permuted(np.broadcast_to(predictions, (permutations, len(predictions))), axis=1)
        ends = np.cumsum(counts[:, label].sum(-1))
        for group, part in enumerate(np.split(order, ends[:-1], axis=1)):
            for predicted in range(classes):
                shuffled[:, group, label, predicted] = (part == predicted).sum(1)
    return shuffled


def shuffled_counts(counts: NDArray[np.int64], permutations: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """[B, G, C, C] as if the scans of each class were shuffled between the groups, by hypergeometric draws.

    The work does not grow with the scans.
    """
    groups, classes, _ = counts.shape
    found = np.zeros((permutations, *counts.shape), dtype=np.int64)
    pool = np.broadcast_to(counts.sum(0), found[:, 0].shape)
    for g in range(groups - 1):
        wanted, others = np.broadcast_to(counts[g].sum(-1), (permutations, classes)), pool.sum(-1)
        for predicted in range(classes):
            others = others - pool[..., predicted]
            found[:, g, :, predicted] = rng.hypergeometric(pool[..., predicted], others, wanted)
            wanted = wanted - found[:, g, :, predicted]
        pool = pool - found[:, g]
    found[:, -1] = pool
    return found


def beyond_fair(gap: float, expected: float) -> float:
    """How much further from 0 a gap is than 0 and what a fair model shows are; 0 where it lies between them.

    That distance is what a finding is about: the gap is not 0, and it is not what the mix of classes alone gives.
    """
    return max(gap - max(0.0, expected), min(0.0, expected) - gap, 0.0)


def is_apart(gap: Estimate, expected: float) -> bool:
    """Whether a gap of two groups is not 0, and not what the mix of classes alone gives a fair model on average."""
    return bool(gap.low > max(0.0, expected) or gap.high < min(0.0, expected))


def differences(
    known: Predictions, rng: np.random.Generator, settings: records.AuditSettings, patients: Clusters | None
) -> records.Differences:
    """Equalized-odds and demographic-parity differences of each class by fairlearn, with our intervals."""
    points, confusion = group_differences(known), known.confusion()[:-1]
    odds = equalized_odds_spans(confusion, settings.confidence, patients)
    drawn, mean = resampled(confusion, settings.resamples, rng, cast(IntervalMethod, settings.method), patients)
    parity = parity_spans(confusion, drawn, mean, settings.confidence)

    def estimates(values: Mapping[str, float], spans: Floats) -> dict[str, Estimate]:
        return {name: estimate(value, *spans[:, known.class_names.index(name)]) for name, value in values.items()}

    return replace(
        points, equalized_odds_intervals=estimates(points.equalized_odds, odds),
        demographic_parity_intervals=estimates(points.demographic_parity, parity),
    )  # fmt: skip


def equalized_odds_spans(confusion: NDArray[Any], confidence: float, patients: Clusters | None = None) -> Floats:
    """Ends [2, C] of intervals of the largest difference in a true or false positive rate, of counts [G, C, C].

    The largest of several differences is biased upward, so all are held at once: that of two groups has Newcombe's
    interval (1998, method 10: of the Wilson intervals of both) at the level of Bonferroni for all pairs and both rates.
    Each end is the largest of the ends of their sizes, so that the interval holds the largest where all hold. With
    ``patients`` Wilson's intervals take scans for as many fewer as their correlation says.
    """
    counts = np.asarray(confusion)
    hits, true, said = np.diagonal(counts, axis1=1, axis2=2), counts.sum(2), counts.sum(1)
    scans = true.sum(1, keepdims=True)
    effects = np.ones((2, *true.shape))
    if patients is not None:
        own = patients.patterns.sum(2)
        effects[:] = [patients.design_effect(size) for size in (own, own.sum(1, keepdims=True) - own)]
    level = 1 - (1 - confidence) / (len(counts) * (len(counts) - 1))  # pairs of groups, two rates
    ends = np.zeros((2, true.shape[1]))
    for c in range(true.shape[1]):
        for part, whole, effect in zip((hits, said - hits), (true, scans - true), effects, strict=True):
            for pair in map(list, combinations(range(len(counts)), 2)):
                _, low, high = newcombe(part[pair, c], whole[pair, c], level, effect[pair, c])
                ends[:, c] = np.maximum(ends[:, c], [max(low, -high, 0.0), min(max(-low, high), 1.0)])
    return ends


def parity_spans(confusion: NDArray[Any], drawn: NDArray[Any], mean: Floats, confidence: float) -> Floats:
    """Ends [2, C] of intervals of the largest difference in the share predicted, of counts [G, C, C].

    As for |gap| of several groups: the difference -+ c, where the range over groups of what the resamples ``drawn``
    [B, G, C, C] miss their ``mean`` by is at most c with the given confidence.
    """
    observed, draws, centre = (part.sum(-2) / part.sum((-2, -1))[..., None] for part in (confusion, drawn, mean))
    width = np.quantile(np.ptp(draws - centre, axis=-2), confidence, axis=0)
    return np.clip(np.ptp(observed, axis=-2) + np.stack([-width, width]), 0, 1)


def lowest_spans(values: Floats, draws: Floats, confidence: float) -> Estimate:
    """The lowest of several true values: the lowest observed one, and an interval that allows for its being chosen.

    ``values`` [K] were observed, ``draws`` [B, K] are their resamples. The lowest of many is biased downward. The lower
    end is the lowest of the lower ends, each at the level of its own side: the true lowest value is that of one cell,
    whose own end fails no more often. The upper end is the lowest of the upper ends, and these are held at once (Sidak
    1967), since any of them may fail.
    """
    tail = (1 - confidence) / 2
    low = np.minimum(np.quantile(draws, tail, axis=0), values).min()
    high = np.maximum(np.quantile(draws, (1 - tail) ** (1 / len(values)), axis=0), values).min()
    return estimate(values.min(), np.clip(low, 0, 1), np.clip(high, 0, 1))


def lowest(
    found: Mapping[str, Any], draws: Mapping[str, Floats], known: Predictions, confidence: float
) -> records.Lowest:
    """The true lowest F1 of a cell with a scan, and of a group; ``found`` and ``draws`` are of all numbers."""
    filled = known.confusion()[:-1].sum(-1) > 0
    worst = known.group_names[int(found["group_f1"][0].argmin())]
    of_groups = lowest_spans(found["group_f1"][0], draws["group_f1"], confidence)
    return records.Lowest(
        lowest_spans(found["cell_f1"][0][filled], draws["cell_f1"][:, filled], confidence), worst, of_groups
    )


def in_mix(confusion: NDArray[Any], scans: Floats) -> dict[str, Floats]:
    """:func:`summaries` of counts [..., G, C, C] were every group's scans of each class as many as ``scans`` [C].

    Direct standardisation (Fleiss 1981): the shares of the predictions of each class are those observed.
    """
    counts = np.asarray(confusion, dtype=float)
    return summaries(counts / np.maximum(counts.sum(-1, keepdims=True), TIE) * scans[:, None])


def standardised(
    confusion: NDArray[Any], rng: np.random.Generator, settings: records.AuditSettings, patients: Clusters | None,
    class_names: Sequence[str],
) -> records.Standardised | None:  # fmt: skip
    """The gap were the classes in every group in the proportions of all scans together.

    Recall does not depend on the mix of classes and precision does, so that F1 does. None where a group lacks a class.
    """
    counts = np.asarray(confusion)
    scans = counts.sum((0, 2))
    used = scans > 0
    if (counts.sum(-1)[:, used] == 0).any():
        return None
    numbers, method = partial(in_mix, scans=scans.astype(float)), cast(IntervalMethod, settings.method)
    found, _ = confusion_intervals(counts, rng, settings.resamples, settings.confidence, method, patients, numbers)
    p_value: float | None = permutation_test(counts, settings.permutations, rng, patients, numbers, by_counts=True)
    if patients and patients.stayed() == counts.sum():
        p_value = None
    mix = dict(zip(class_names, (scans / scans.sum()).tolist(), strict=True))
    gap = estimate(*found["gap"]) if "gap" in found else None
    return records.Standardised(mix=mix, gap=gap, abs_gap=estimate(*found["abs_gap"]), p_value=p_value)


def equivalence(
    found: Mapping[str, Any], draws: Mapping[str, Floats], confidence: float, margin: float | None
) -> records.Equivalence | None:
    """Whether the gaps of all pairs of groups lie inside -+ ``margin``, by two one-sided tests (Schuirmann 1987).

    Both tests at the level alpha = 1 - confidence reject where the interval at 1 - 2 alpha lies inside; of several
    pairs all must (Berger 1982). None where there is no such interval, at a confidence of .5 or less.
    """
    inner = 1 - 2 * (1 - confidence)
    if inner <= TIE:
        return None
    values, drawn = found["group_f1"][0], draws["group_f1"]
    pairs = [
        estimate(
            values[a] - values[b], *np.clip(interval(drawn[:, a] - drawn[:, b], values[a] - values[b], inner), -1, 1)
        )
        for a, b in combinations(range(len(values)), 2)
    ]
    smallest = max(max(abs(pair.low), abs(pair.high)) for pair in pairs)
    inside = None if margin is None else smallest < margin
    return records.Equivalence(inner, pairs[0] if len(values) == 2 else None, smallest, margin, inside)


def group_differences(predictions: Predictions) -> records.Differences:
    """Equalized-odds and demographic-parity differences of each class against the rest, in [0, 1], by fairlearn.

    A class with an empty or full group has no rate, and so no equalized odds.
    """
    from fairlearn.metrics import demographic_parity_difference, equalized_odds_difference

    known = predictions.known()
    group = np.array(known.group_names)[known.group]
    odds: dict[str, float] = {}
    parity: dict[str, float] = {}
    if len(set(group)) < 2:
        return records.Differences()
    for c, name in enumerate(known.class_names):
        true, said = known.label == c, known.prediction == c
        parity[name] = float(demographic_parity_difference(true, said, sensitive_features=group))
        if all(0 < true[group == g].sum() < (group == g).sum() for g in set(group)):
            odds[name] = float(equalized_odds_difference(true, said, sensitive_features=group))
    return records.Differences(odds, parity)


def over_sites(known: Predictions | Sequence[Predictions], confidence: float = 0.95) -> records.BySite | None:
    """P and the gap with intervals in which the scans of a site count as one thing that chance draws.

    Of several tables, as of the seeds of a study, which have the same scans at the same sites, theta is their mean.

    The jackknife over K sites: theta +- t(K - 1) sqrt((K - 1) / K sum_k (theta_k - theta)^2), where theta_k is without
    site k (CV3 of MacKinnon, Nielsen and Webb 2023, which is advised where clusters are few and of uneven size). There
    is no interval where without some site a class and group has no scan, as theta_k is another number then, nor where
    every site has the same number, which says nothing of how sites differ.

    Raises:
        ValueError: all scans are of one site.
    """
    from scipy.stats import t

    tables = [known] if isinstance(known, Predictions) else list(known)
    if any(table.site is None for table in tables):
        return None
    sites = np.unique(cast("Any", tables[0].site))
    if len(sites) < 2:
        raise ValueError("all scans are of one site: sites cannot be told apart")
    counts = np.stack([table.confusion()[:-1] for table in tables])
    inside = [[table.take(table.site == site).confusion()[:-1] for table in tables] for site in sites]
    without = counts - np.array(inside)  # [K, tables, G, C, C]
    if ((without.sum(-1) == 0) & (counts.sum(-1) > 0)).any():
        return records.BySite(len(sites), None, None)
    whole, parts = summaries(counts), summaries(without)
    found: dict[str, Estimate | None] = {"score": None, "gap": None}
    for name in found.keys() & whole.keys():
        value = float(whole[name].mean())
        error = np.sqrt((len(sites) - 1) / len(sites) * ((parts[name].mean(-1) - value) ** 2).sum())
        if error <= TIE:
            continue
        reach = float(t.ppf(1 - (1 - confidence) / 2, len(sites) - 1) * error)
        found[name] = Estimate(value, max(value - reach, -1.0 if name == "gap" else 0.0), min(value + reach, 1.0))
    return records.BySite(len(sites), **found)
