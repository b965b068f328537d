"""How often do the audit's 95 % intervals cover the truth, and how often do its tests reject a true null hypothesis?

    python benchmarks/intervals.py [--datasets 1000] [--resamples 1000] [--seed 0] [--only TABLE]

Many data sets are drawn from known shares of predictions a class and group (Dirichlet around an accuracy), each is
audited, and the intervals are held against the known truth: F1, P and gap of the expected counts. Prints the tables of
docs/simulations.md. About an hour on one core; --only prints one table.
"""

from __future__ import annotations

import argparse
import time
from itertools import product

import numpy as np
from numpy.typing import NDArray

from fairlung.pipeline.evaluation.audit import audit, power_of_gap
from fairlung.pipeline.evaluation.calibration import auc_interval, group_calibration
from fairlung.pipeline.evaluation.fairness_criteria import (
    beyond_fair,
    confusion_intervals,
    equalized_odds_spans,
    equivalence,
    fair_model,
    in_mix,
    lowest,
    over_sites,
    parity_spans,
    permutation_test,
    resampled,
    standardised,
    summaries,
)  # fmt: skip
from fairlung.pipeline.evaluation.patients import Clusters, design_effects
from fairlung.pipeline.evaluation.planning import Design
from fairlung.pipeline.evaluation.predictions import Predictions
from fairlung.pipeline.evaluation.records import AuditSettings
from fairlung.pipeline.evaluation.resampling import partly_pooled, wilson
from fairlung.pipeline.evaluation.sensitivity import at_random

CLASSES = 4
SUPPORTS = {
    "the paper's validation cells (12-25)": [[25, 12, 20, 20], [25, 13, 20, 20]],
    "a cell of 5": [[30, 30, 30, 30], [30, 5, 30, 30]],
    "100 a cell": [[100] * 4, [100] * 4],
}
PATIENTS = {name: SUPPORTS[of] for name, of in zip(("12-25", "30, one cell 5"), SUPPORTS, strict=False)}
ACCURACIES = (0.5, 0.85, 0.93, 0.97, 0.99)
METHODS = ("smoothed", "percentile")


def draw_shares(accuracy: float, rng: np.random.Generator, groups: int = 2) -> NDArray[np.float64]:
    """True shares of predictions [G, C, C]: an accuracy a row around the given one, errors spread unevenly."""
    shares = np.zeros((groups, CLASSES, CLASSES))
    for g, c in np.ndindex(groups, CLASSES):
        right = rng.beta(10 * accuracy, 10 * (1 - accuracy))
        errors = rng.dirichlet(np.ones(CLASSES - 1)) * (1 - right)
        shares[g, c] = np.insert(errors, c, right)
    return shares


def coverage(support: NDArray[np.int64], accuracy: float, datasets: int, resamples: int, rng: np.random.Generator):
    """Method -> quantity -> share of data sets whose interval holds the truth, and its mean width."""
    hits: dict[str, dict[str, list]] = {method: {} for method in METHODS}
    for _ in range(datasets):
        shares = draw_shares(accuracy, rng)
        truth = summaries(shares * support[..., None])
        counts = rng.multinomial(support, shares)
        for method in METHODS:
            found, _ = confusion_intervals(counts, rng, resamples, method=method)
            for name in ("score", "gap", "group_f1", "cell_f1"):
                _, low, high = found[name]
                inside = (low - 1e-9 <= truth[name]) & (truth[name] <= high + 1e-9)
                hits[method].setdefault(name, []).append((inside, high - low))
        recall = [
            (lambda e, p: e.low <= p <= e.high)(wilson(counts[g, c, c], support[g, c]), shares[g, c, c])
            for g, c in np.ndindex(*support.shape)
        ]
        hits["smoothed"].setdefault("recall (Wilson)", []).append((np.array(recall), np.zeros(1)))
    return {
        method: {
            name: (np.mean([i for i, _ in rows], axis=0), np.mean([w for _, w in rows])) for name, rows in found.items()
        }
        for method, found in hits.items()
    }


def print_coverage(datasets: int, resamples: int, rng: np.random.Generator) -> None:
    print("| scans a cell | accuracy | method | P | gap | F1 of a group (worst) | F1 of a cell | width of gap |")
    print("|---|---|---|---|---|---|---|---|")
    for name, support in SUPPORTS.items():
        for accuracy in ACCURACIES:
            found = coverage(np.array(support), accuracy, datasets, resamples, rng)
            for method in METHODS:
                got = found[method]
                cells = got["cell_f1"][0]
                print(
                    f"| {name} | {accuracy} | {method} | {got['score'][0]:.3f} | {got['gap'][0]:.3f} | "
                    f"{got['group_f1'][0].min():.3f} | {cells.min():.3f}-{cells.max():.3f} | {got['gap'][1]:.3f} |",
                    flush=True,
                )
            recall = found["smoothed"]["recall (Wilson)"][0]
            print(
                f"| {name} | {accuracy} | Wilson, recall | | | | {recall.min():.3f}-{recall.max():.3f} | |", flush=True
            )


def print_type_one_error(datasets: int, permutations: int, rng: np.random.Generator) -> None:
    print("\n| scans a cell | accuracy | rejected at .05 by the permutation test | by the interval of the gap |")
    print("|---|---|---|---|")
    for name, support in SUPPORTS.items():
        for accuracy in ACCURACIES:
            rejected = excluded = 0
            for _ in range(datasets):
                shares = np.repeat(draw_shares(accuracy, rng, groups=1), 2, axis=0)  # the null hypothesis
                counts = rng.multinomial(np.array(support), shares)
                rejected += permutation_test(counts, permutations, rng) <= 0.05
                _, low, high = confusion_intervals(counts, rng, permutations)[0]["gap"]
                excluded += not low <= 0 <= high
            print(f"| {name} | {accuracy} | {rejected / datasets:.3f} | {excluded / datasets:.3f} |", flush=True)


def draw_patients(
    support: NDArray[np.int64], shares: NDArray[np.float64], scans: int, alike: float, mixed: float,
    rng: np.random.Generator,
) -> Predictions:  # fmt: skip
    """Predictions of the scans of patients [G, C]; two scans of a patient are answered by one draw by chance ``alike``.

    That is then their correlation. ``scans`` a patient, or 1 to 5 for 0. Of the share ``mixed`` of the patients every
    scan is of a class of its own.
    """
    group, label = (np.repeat(axis, support.ravel()) for axis in np.indices(support.shape).reshape(2, -1))
    patients = len(label)
    number = np.full(patients, scans) if scans else rng.integers(1, 6, patients)
    patient = np.repeat(np.arange(patients), number)
    drawn = np.where((rng.random(patients) < alike)[patient], rng.random(patients)[patient], rng.random(len(patient)))
    several = (rng.random(patients) < mixed)[patient]
    label, group = np.where(several, rng.integers(0, CLASSES, len(patient)), label[patient]), group[patient]
    said = (drawn[:, None] > shares.cumsum(-1)[group, label]).sum(1).clip(max=CLASSES - 1)
    names, about = np.arange(len(patient)).astype(str), (tuple("abcd"), ("male", "female"), ("sex",), "", False)
    return Predictions(names, label, said, group, None, *about, patient)


def print_patients(datasets: int, resamples: int, rng: np.random.Generator) -> None:
    print("\n| patients a cell | accuracy | scans a patient | correlation | P | gap | F1 of a group (worst) ", end="")
    print("| F1 of a cell | recall (Wilson) | gap, were scans resampled | rejected at .05 | were scans shuffled |")
    print("|---" * 12 + "|")
    several = [(scans, alike, 0.0) for scans, alike in product((2, 3, 5, 0), (1.0, 0.5, 0.0))]
    for (name, support), accuracy in product(PATIENTS.items(), ACCURACIES[:3]):
        for scans, alike, mixed in [(1, 1.0, 0.0), *several, (0, 0.5, 0.3)]:
            found = patient_row(np.array(support), accuracy, (scans, alike, mixed), datasets, resamples, rng)
            number = f"{scans or '1-5'}{', 30 % of several classes' if mixed else ''}"
            print(
                f"| {name} | {accuracy} | {number} | {alike if scans != 1 else ''} | {' | '.join(found)} |", flush=True
            )


def patient_row(
    support: NDArray[np.int64], accuracy: float, how: tuple[int, float, float], datasets: int, resamples: int,
    rng: np.random.Generator,
) -> list[str]:  # fmt: skip
    """Coverage of P, gap, F1 of groups and cells, recall, and gap by scans; rejections by patients and by scans."""
    hits: dict[str, list] = {}
    for _ in range(datasets):
        shares = draw_shares(accuracy, rng)
        table = draw_patients(support, shares, *how, rng)
        counts, patients = table.confusion()[:-1], Clusters.of(table)
        truth = summaries(shares * counts.sum(-1, keepdims=True))
        for by, clusters in (("", patients), ("by scans", None)):
            found, _ = confusion_intervals(counts, rng, resamples, patients=clusters)
            for name in ("score", "gap", "group_f1", "cell_f1"):
                _, low, high = found[name]
                inside = (low - 1e-9 <= truth[name]) & (truth[name] <= high + 1e-9)
                hits.setdefault(name + by, []).append(inside)
        effects = design_effects(patients, counts).recall
        spans = {at: wilson(counts[*at, at[1]], counts[at].sum(), effect=effects[at]) for at in np.ndindex(2, CLASSES)}
        hits.setdefault("recall", []).append([e.low <= shares[*at, at[1]] <= e.high for at, e in spans.items()])
        null = draw_patients(support, np.repeat(draw_shares(accuracy, rng, groups=1), 2, axis=0), *how, rng)
        for by, clusters in (("", Clusters.of(null)), ("by scans", None)):
            p = permutation_test(null.confusion()[:-1], 199, rng, clusters)
            hits.setdefault("test" + by, []).append(p <= 0.05)
    share = {name: np.mean(rows, axis=0) for name, rows in hits.items()}
    found = [f"{share[name]:.3f}" for name in ("score", "gap")] + [f"{share['group_f1'].min():.3f}"]
    found += [f"{share[name].min():.3f}-{share[name].max():.3f}" for name in ("cell_f1", "recall")]
    return found + [f"{share[name]:.3f}" for name in ("gapby scans", "test", "testby scans")]


def even_shares(*accuracies: float) -> NDArray[np.float64]:
    """Shares of predictions [G, C, C] of an accuracy a group, errors spread evenly."""
    wrong = [(1 - accuracy) / (CLASSES - 1) for accuracy in accuracies]
    return np.stack([np.full((CLASSES, CLASSES), w) + (1 - w * CLASSES) * np.eye(CLASSES) for w in wrong])


def print_several_groups(datasets: int, resamples: int, rng: np.random.Generator) -> None:
    print("\n| groups | scans a cell | |gap| | covered | width | above 0 | finding |\n|---|---|---|---|---|---|---|")
    for groups, size, worse in ((3, 20, 0.0), (3, 20, 0.15), (6, 20, 0.0), (6, 20, 0.15), (6, 100, 0.15)):
        shares = even_shares(0.8 - worse, *[0.8] * (groups - 1))
        support = np.full((groups, CLASSES), size)
        truth = summaries(shares * support[..., None])["abs_gap"]
        rows = []
        for _ in range(datasets):
            counts = rng.multinomial(support, shares)
            _, low, high = confusion_intervals(counts, rng, resamples)[0]["abs_gap"]
            told = low > 0 and permutation_test(counts, 199, rng) <= 0.05
            rows.append((low <= truth <= high, high - low, low > 0, told))
        covered, width, above, found = np.mean(rows, axis=0)
        shares = " | ".join(f"{share:.3f}" for share in (truth, covered, width, above, found))
        print(f"| {groups} | {size} | {shares} |", flush=True)


def print_power(datasets: int, resamples: int, rng: np.random.Generator) -> None:
    """Share of audits that find a gap on as many scans as are planned for the true one."""
    print("\n| accuracy of men, women | scans a class, men / women | gap | fair model's | planned | found |")
    print("|---|---|---|---|---|---|")
    alike, mixed = [[25, 12, 20, 20], [25, 13, 20, 20]], [[100, 60, 20, 20], [20, 60, 100, 20]]
    for accuracies, support in (
        ((0.99, 0.95), alike), ((0.97, 0.93), alike), ((0.85, 0.75), alike), ((0.6, 0.5), alike),
        ((0.85, 0.75), mixed), ((0.75, 0.85), mixed),
    ):  # fmt: skip
        shares, scans = even_shares(*accuracies), np.array(support)
        observed = shares * scans[..., None]
        smoothed = (observed + 1 / CLASSES) / (scans[..., None] + 1)
        draws = [summaries(rng.multinomial(scans, part, (4000, *scans.shape)))["gap"] for part in (smoothed, shares)]
        fair = np.broadcast_to((observed.sum(0) / scans.sum(0)[:, None]), observed.shape) * scans[..., None]
        gap, expected = (float(summaries(part)["gap"]) for part in (observed, fair))
        error, plain = (float(part.std()) for part in draws)
        planned = power_of_gap(beyond_fair(gap, expected), error, int(scans.sum()), unsmoothed=plain).scans
        many, found = np.rint(scans * planned / scans.sum()).astype(int), 0
        for _ in range(datasets):
            counts = rng.multinomial(many, shares)
            _, low, high = confusion_intervals(counts, rng, resamples)[0]["gap"]
            mean = fair_model(counts, 200, rng)["gap"].mean()
            apart = low > max(0, mean) or high < min(0, mean)
            found += apart and permutation_test(counts, 199, rng) <= 0.05
        sizes = " / ".join(", ".join(map(str, row)) for row in support)
        numbers = f"{gap:+.3f} | {expected:+.3f} | {planned:,.0f} | {found / datasets:.2f}"
        print(f"| {accuracies[0]}, {accuracies[1]} | {sizes} | {numbers} |", flush=True)


def print_plan(datasets: int, resamples: int, rng: np.random.Generator) -> None:
    """Share of studies that show what they were planned for, on as many scans as `fairlung plan` says."""
    print("\n| mix | recall | planned for | scans | found, first group worse | second group worse |")
    print("|---|---|---|---|---|---|")
    even = {name: {"men": 1, "women": 1} for name in "abcd"}
    mixed = even | {"b": {"men": 2, "women": 2}, "c": {"men": 0.8, "women": 0.25}}
    wanted = ("difference", 0.1), ("equivalence", 0.1), ("equivalence", 0.05)
    for (said, mix), recall, (purpose, size) in product((("even", even), ("mixed", mixed)), (0.7, 0.9), wanted):
        design, shares = Design(mix, dict.fromkeys(mix, recall)), []
        plan = design.plan(purpose, size)
        scans = np.array([cell.scans for cell in plan.cells]).reshape(2, -1)
        for losing in range(2 if purpose == "difference" else 1):
            answers = design.with_gap(size, losing) if purpose == "difference" else design.answers()
            found = 0
            for _ in range(datasets):
                counts = rng.multinomial(scans, answers)
                confidence = 0.95 if purpose == "difference" else 0.9
                _, low, high = confusion_intervals(counts, rng, resamples, confidence)[0]["gap"]
                if purpose == "equivalence":
                    found += -size < low and high < size
                else:
                    mean = fair_model(counts, 200, rng)["gap"].mean()
                    apart = low > max(0, mean) or high < min(0, mean)
                    found += apart and permutation_test(counts, 199, rng) <= 0.05
            shares.append(f"{found / datasets:.2f}")
        print(
            f"| {said} | {recall} | {purpose} {size} | {plan.scans:,} | {' | '.join((*shares, '')[:2])} |", flush=True
        )


def draw_sites(sites: int, sizes: NDArray[np.int64], spread: float, rng: np.random.Generator) -> Predictions:
    """Scans of sites whose accuracy, about .8, and gap differ by ``spread`` on the logit scale; the mean gap is 0."""
    parts = []
    for site, scans in zip(range(sites), sizes, strict=True):
        middle, gap = 1.4 + spread * rng.normal(), spread * rng.normal()
        for group, label in product(range(2), range(CLASSES)):
            right = rng.random(scans) < 1 / (1 + np.exp(-(middle + (gap / 2 if group == 0 else -gap / 2))))
            said = np.where(right, label, (label + rng.integers(1, CLASSES, scans)) % CLASSES)
            parts.append(np.stack([np.full(scans, label), said, np.full(scans, group), np.full(scans, site)]))
    label, said, group, site = np.concatenate(parts, axis=1)
    names = label.astype(str), tuple("abcd"), ("men", "women"), ("sex",)
    return Predictions(names[0], label, said, group, None, *names[1:], site=site)


def print_sites(datasets: int, resamples: int, rng: np.random.Generator) -> None:
    print("\n| sites | scans a class, group and site | sites differ | P | gap | gap, were scans resampled |")
    print("|---|---|---|---|---|---|")
    for sites, few, spread in product((3, 5, 10, 20), (5, 2), (0, 0.5)):
        sizes = np.linspace(few, 5 if few == 5 else 12, sites).astype(int)
        many = sum(draw_sites(sites, sizes, spread, rng).confusion()[:-1] for _ in range(400))
        truth, hits = {"score": float(summaries(np.asarray(many))["score"]), "gap": 0.0}, np.zeros(3)
        for _ in range(datasets):
            table = draw_sites(sites, sizes, spread, rng)
            found = over_sites(table)
            ends = [getattr(found, name) for name in truth]
            _, low, high = confusion_intervals(table.confusion()[:-1], rng, resamples)[0]["gap"]
            hits[:2] += [end.low <= true <= end.high for end, true in zip(ends, truth.values(), strict=True)]
            hits[2] += low <= 0 <= high
        shares = " | ".join(f"{share:.3f}" for share in hits / datasets)
        differ, size = "yes" if spread else "no", "5" if few == 5 else "2 to 12"
        print(f"| {sites} | {size} | {differ} | {shares} |", flush=True)


def draw_probabilities(size: int, rng: np.random.Generator, power: float = 1.7, groups: int = 1) -> Predictions:
    """Labels drawn from probabilities that are then raised to a power (over-confident above 1), ``size`` a group."""
    true = rng.dirichlet(np.full(CLASSES, 0.6), size * groups)
    label = (rng.random(len(true))[:, None] > true.cumsum(1)).sum(1).clip(max=CLASSES - 1)
    shown = true**power / (true**power).sum(1, keepdims=True)
    scan, group, names = np.arange(len(true)).astype(str), np.repeat(np.arange(groups), size), map(str, range(groups))
    return Predictions(scan, label, shown.argmax(1), group, shown, tuple("abcd"), tuple(names), ("sex",))


def print_calibration(datasets: int, resamples: int, rng: np.random.Generator) -> None:
    print("\n| probabilities | scans of a group | ECE | covers ECE | Brier score | AUC | called miscalibrated |")
    print("|---|---|---|---|---|---|---|")
    for said, power in (("calibrated", 1.0), ("to the power of 1.2", 1.2), ("of 1.7", 1.7), ("of 0.7", 0.7)):
        large = group_calibration(draw_probabilities(8000, rng, power), rng, 2)["0"]
        truth = {"ece": 0.0 if power == 1 else large.ece.value, "brier": large.brier.value, "auc": large.auc.value}
        for size in (40, 80, 300):
            drawn = (draw_probabilities(size, rng, power) for _ in range(datasets))
            found = [group_calibration(table, rng, resamples)["0"] for table in drawn]
            shares = []
            for name, value in truth.items():
                ends = [getattr(group, name) for group in found if getattr(group, name) is not None]
                shares.append(np.mean([end.low <= value <= end.high for end in ends]))
            alarms = np.mean([group.ece_p_value <= 0.05 for group in found])
            numbers = " | ".join(f"{share:.3f}" for share in (*shares, alarms))
            print(f"| {said} | {size} | {truth['ece']:.3f} | {numbers} |", flush=True)
    print("\n| confidence | calibrated tables of 8 groups of 60 with a finding on calibration |\n|---|---|")
    for confidence in (0.99, 0.95, 0.8, 0.5):
        found = 0
        for _ in range(datasets // 10):
            result = audit(draw_probabilities(60, rng, 1.0, groups=8), 1000, 100, confidence)
            found += any(v.level == "finding" and "Probabilities of" in v.text for v in result.verdicts)
        print(f"| {confidence} | {found / (datasets // 10):.3f} |", flush=True)


def print_auc(datasets: int, rng: np.random.Generator) -> None:
    """Two classes: scores of one normal distribution each, of which the positives' may be wider, or have outliers."""
    from scipy.stats import norm

    print("\n| AUC | positive, negative scans | one shape | positives three times as wide | some positives at chance |")
    print("|---|---|---|---|---|")
    for area, m, n in (
        (0.7, 20, 60), (0.9, 5, 40), (0.9, 20, 60), (0.97, 12, 50), (0.99, 50, 50), (0.99, 15, 45), (0.995, 20, 60),
        (0.99, 100, 300),
    ):  # fmt: skip
        label, shares = np.repeat([0, 1], [n, m]), []
        for width, outliers in ((1.0, 0.0), (3.0, 0.0), (1.0, 2 * (1 - area))):
            apart = 20.0 if outliers else norm.ppf(area) * np.hypot(1, width)
            hits = 0
            for _ in range(datasets):
                chance = rng.random(m) < outliers
                positive = np.where(chance, rng.normal(0, 1, m), rng.normal(apart, width, m))
                p = 1 / (1 + np.exp(-np.concatenate([rng.normal(0, 1, n), positive])))
                found = auc_interval(label, np.stack([1 - p, p], axis=1))
                hits += found.low <= area <= found.high
            shares.append(f"{hits / datasets:.3f}")
        print(f"| {area} | {m}, {n} | {' | '.join(shares)} |", flush=True)


def covers(low: NDArray[np.float64], truth: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.bool_]:
    return (low - 1e-9 <= truth) & (truth <= high + 1e-9)


def true_differences(expected: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Largest differences [C] in a true or false positive rate, and in the share predicted, of expected counts."""
    hits, true, said = np.diagonal(expected, axis1=1, axis2=2), expected.sum(2), expected.sum(1)
    scans = true.sum(1, keepdims=True)
    rates = np.stack([hits / true, (said - hits) / (scans - true)])
    return np.ptp(rates, axis=1).max(0), np.ptp(said / scans, axis=0)


def print_criteria(datasets: int, resamples: int, rng: np.random.Generator) -> None:
    """Coverage of the audit's further criteria; the groups differ as the cells do, or not at all."""
    print(
        "\n| patients a cell | accuracy | scans a patient | groups | equalised odds | parity | gap in one mix ", end=""
    )
    print("| lowest F1 of a cell | of a group | the usual interval of the lowest cell |\n" + "|---" * 10 + "|")
    for (name, cells), accuracy, scans, alike in product(SUPPORTS.items(), ACCURACIES[:4], (1, 3), (False, True)):
        if scans == 3 and (accuracy == 0.97 or name == "100 a cell"):
            continue
        support, hits = np.array(cells), []
        for _ in range(datasets):
            shares = np.repeat(draw_shares(accuracy, rng, 1), 2, axis=0) if alike else draw_shares(accuracy, rng)
            table = draw_patients(support, shares, scans, 0.5, 0.0, rng)
            counts, patients = table.confusion()[:-1], Clusters.of(table)
            settings = AuditSettings(resamples, 100, 0.95, "smoothed", 0)
            expected = shares * counts.sum(-1, keepdims=True)
            found, draws = confusion_intervals(counts, rng, resamples, patients=patients)
            (odds, shown), truth = true_differences(expected), summaries(expected)
            in_odds = covers(*np.insert(equalized_odds_spans(counts, 0.95, patients), 1, odds, axis=0))
            parity = parity_spans(counts, *resampled(counts, resamples, rng, "smoothed", patients), 0.95)
            in_parity = covers(*np.insert(parity, 1, shown, axis=0))
            mixed = standardised(counts, rng, settings, patients, table.class_names)
            gap = in_mix(expected, counts.sum((0, 2)))["gap"]
            low = lowest(found, draws, table, 0.95)
            least, worst = truth["cell_f1"].min(), found["cell_f1"][0].argmin()
            usual = covers(found["cell_f1"][1].flat[worst], least, found["cell_f1"][2].flat[worst])
            row = [in_odds.mean(), in_parity.mean(), mixed.gap.low <= gap <= mixed.gap.high]
            row += [covers(low.cell_f1.low, least, low.cell_f1.high)]
            row += [covers(low.group_f1.low, truth["group_f1"].min(), low.group_f1.high), usual]
            hits.append(row)
        numbers = " | ".join(f"{share:.3f}" for share in np.mean(hits, axis=0))
        print(f"| {name} | {accuracy} | {scans} | {'alike' if alike else 'differ'} | {numbers} |", flush=True)


def print_equivalence(datasets: int, resamples: int, rng: np.random.Generator) -> None:
    """How often a gap is called equivalent within a margin, where it is the margin (an error), and where it is 0."""
    print("\n| scans a cell | scans a patient | accuracy of men, women | gap = margin | called equivalent ", end="")
    print("| where the gap is 0 |")
    print("|---" * 6 + "|")
    rows = [(20, 1, 0.85, 0.7), (20, 1, 0.6, 0.45), (100, 1, 0.85, 0.75), (100, 1, 0.97, 0.92), (400, 1, 0.85, 0.8)]
    for size, scans, better, worse in [*rows, (100, 3, 0.85, 0.75)]:
        support, shares = np.full((2, CLASSES), size), even_shares(better, worse)
        margin, called = float(summaries(shares * support[..., None])["gap"]), []
        for _ in range(datasets):
            told = []
            for of in (shares, np.repeat(shares[:1], 2, axis=0)):
                table = draw_patients(support, of, scans, 0.5, 0.0, rng)
                counts, patients = table.confusion()[:-1], Clusters.of(table)
                found = confusion_intervals(counts, rng, resamples, patients=patients)
                told.append(equivalence(*found, 0.95, margin).equivalent)
            called.append(told)
        shares_called = " | ".join(f"{share:.3f}" for share in np.mean(called, axis=0))
        print(f"| {size} | {scans} | {better}, {worse} | {margin:.3f} | {shares_called} |", flush=True)


def print_small_cells(datasets: int, rng: np.random.Generator) -> None:
    """Coverage, width and error of the partly pooled recall of a small cell, beside Wilson's."""
    print("\n| scans of the small cell | other cells | recall | in the small cell | pooled covers it | width ", end="")
    print(
        "| mean error | Wilson covers it | width | mean error | all cells, pooled | all, Wilson |\n" + "|---" * 12 + "|"
    )
    for size, others, accuracy, odd in product((5, 9, 13), (30,), (0.6, 0.85, 0.95), (0.0, None, -0.2, -0.4)):
        n, rows = np.full((2, CLASSES), others), []
        n[1, 1] = size
        for _ in range(datasets):
            recall = np.tile(rng.beta(10 * accuracy, 10 * (1 - accuracy), CLASSES), (2, 1))
            if odd is None:
                recall = rng.beta(10 * accuracy, 10 * (1 - accuracy), recall.shape)
            else:
                recall[1, 1] = max(recall[1, 1] + odd, 0.02)
            hits = rng.binomial(n, recall)
            pooled, raw = (
                partly_pooled(hits, n).ravel(),
                [wilson(*pair) for pair in zip(hits.flat, n.flat, strict=True)],
            )
            found = [[e.low <= t <= e.high for e, t in zip(of, recall.flat, strict=True)] for of in (pooled, raw)]
            at = np.ravel_multi_index((1, 1), n.shape)
            row = [
                x
                for of, hit in zip((pooled, raw), found, strict=True)
                for x in (hit[at], of[at].high - of[at].low, of[at].value - recall[1, 1])
            ]
            rows.append([*row, *map(np.mean, found)])
        numbers = " | ".join(f"{value:.3f}" for value in np.mean(rows, axis=0))
        said = "as likely other as any" if odd is None else "as in the other group" if not odd else f"{odd:+g}"
        print(f"| {size} | {others} | {accuracy} | {said} | {numbers} |", flush=True)


def print_wrong_records(datasets: int, resamples: int, rng: np.random.Generator) -> None:
    """Coverage of the gap that records changed at random have in expectation, and the share of findings."""
    print("\n| scans a cell | accuracy of men, women | changed | gap | covered | finding |\n" + "|---" * 6 + "|")
    for size, (better, worse) in product((20, 100), ((0.85, 0.85), (0.85, 0.75))):
        support, shares = np.full((2, CLASSES), size), even_shares(better, worse)
        expected, rows = shares * support[..., None], {}
        for _ in range(datasets):
            table = draw_patients(support, shares, 1, 1.0, 0.0, rng)
            settings = AuditSettings(resamples, resamples, 0.95, "smoothed", 0)
            for what, share in (("group", 0.02), ("group", 0.1), ("label", 0.1)):
                if what == "group":
                    truth = (1 - share) * expected + share * expected[::-1]
                else:
                    others = expected.sum(1, keepdims=True) - expected
                    truth = (1 - share) * expected + share * others / (CLASSES - 1)
                gap, found = float(summaries(truth)["gap"]), at_random(table, what, share, settings, rng)
                rows.setdefault((what, share, gap), []).append((found.gap.low <= gap <= found.gap.high, found.finding))
        for (what, share, gap), got in rows.items():
            numbers = " | ".join(f"{value:.3f}" for value in np.mean(got, axis=0))
            print(f"| {size} | {better}, {worse} | {share:.0%} of the {what}s | {gap:.3f} | {numbers} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    tables = {
        "coverage": lambda: print_coverage(options.datasets, options.resamples, rng),
        "level": lambda: print_type_one_error(options.datasets, 399, rng),
        "groups": lambda: print_several_groups(options.datasets, options.resamples, rng),
        "power": lambda: print_power(options.datasets // 2, options.resamples, rng),
        "plan": lambda: print_plan(options.datasets // 2, options.resamples, rng),
        "sites": lambda: print_sites(options.datasets, options.resamples, rng),
        "calibration": lambda: print_calibration(options.datasets, options.resamples, rng),
        "auc": lambda: print_auc(options.datasets, rng),
        "patients": lambda: print_patients(options.datasets, options.resamples, rng),
        "criteria": lambda: print_criteria(options.datasets, options.resamples, rng),
        "equivalence": lambda: print_equivalence(options.datasets, options.resamples, rng),
        "small-cells": lambda: print_small_cells(options.datasets, rng),
        "wrong-records": lambda: print_wrong_records(options.datasets, options.resamples, rng),
    }
    parser.add_argument("--only", choices=tables, help="one table, by default all")
    options = parser.parse_args()
    start = time.perf_counter()
    rng = np.random.default_rng(options.seed)
    error = 1.96 * np.sqrt(0.95 * 0.05 / options.datasets)
    print(f"{options.datasets} data sets a row, so a coverage of .95 is seen as .95 +/- {error:.3f}.\n")
    for table in [options.only] if options.only else tables:
        tables[table]()
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
