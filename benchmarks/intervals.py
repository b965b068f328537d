"""How often do the audit's 95 % intervals cover the truth, and how often do its tests reject a true null hypothesis?

    python benchmarks/intervals.py [--datasets 1000] [--resamples 1000] [--seed 0] [--only patients]

Many data sets are drawn from known shares of predictions a class and group (Dirichlet around an accuracy), each is
audited, and the intervals are held against the known truth: F1, P and gap of the expected counts. Prints the tables of
docs/statistics.md. About 10 minutes on one core, and as long again for patients of several scans.
"""

from __future__ import annotations

import argparse
import time
from itertools import product

import numpy as np
from numpy.typing import NDArray

from fairlung.pipeline.evaluation.audit import confusion_intervals, permutation_test, summaries
from fairlung.pipeline.evaluation.calibration import group_calibration
from fairlung.pipeline.evaluation.patients import Clusters, design_effects
from fairlung.pipeline.evaluation.predictions import Predictions
from fairlung.pipeline.evaluation.resampling import wilson

CLASSES = 4
SUPPORTS = {
    "the paper's validation cells (12-25)": [[25, 12, 20, 20], [25, 13, 20, 20]],
    "a cell of 5": [[30, 30, 30, 30], [30, 5, 30, 30]],
    "100 a cell": [[100] * 4, [100] * 4],
}
PATIENTS = {name: SUPPORTS[of] for name, of in zip(("12-25", "30, one cell 5"), SUPPORTS, strict=False)}
ACCURACIES = (0.5, 0.85, 0.93)
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
    for (name, support), accuracy in product(PATIENTS.items(), ACCURACIES):
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


def draw_probabilities(size: int, rng: np.random.Generator) -> Predictions:
    """Labels drawn from probabilities that are then sharpened: an over-confident model, one group."""
    true = rng.dirichlet(np.full(CLASSES, 0.6), size)
    label = (rng.random(size)[:, None] > true.cumsum(1)).sum(1).clip(max=CLASSES - 1)
    shown = true**1.7 / (true**1.7).sum(1, keepdims=True)
    scan, group = np.arange(size).astype(str), np.zeros(size, dtype=np.int64)
    return Predictions(scan, label, shown.argmax(1), group, shown, tuple("abcd"), ("all",), ("sex",))


def print_calibration(datasets: int, resamples: int, rng: np.random.Generator) -> None:
    large = group_calibration(draw_probabilities(20_000, rng), rng, 2)["all"]
    print("\n| scans of a group | ECE | Brier score | AUC |\n|---|---|---|---|")
    for size in (40, 80, 300):
        found = [group_calibration(draw_probabilities(size, rng), rng, resamples)["all"] for _ in range(datasets)]
        shares = []
        for name in ("ece", "brier", "auc"):
            spans = [group[name] for group in found if group[name] is not None]
            shares.append(np.mean([span["low"] <= large[name]["value"] <= span["high"] for span in spans]))
        print(f"| {size} | {' | '.join(f'{share:.3f}' for share in shares)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["patients"])
    options = parser.parse_args()
    start = time.perf_counter()
    rng = np.random.default_rng(options.seed)
    error = 1.96 * np.sqrt(0.95 * 0.05 / options.datasets)
    print(f"{options.datasets} data sets a row, so a coverage of .95 is seen as .95 +/- {error:.3f}.\n")
    if not options.only:
        print_coverage(options.datasets, options.resamples, rng)
        print_type_one_error(options.datasets, 399, rng)
        print_calibration(options.datasets, options.resamples, rng)
    print_patients(options.datasets, options.resamples, rng)
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
