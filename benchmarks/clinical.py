"""How often do the intervals of pipeline/evaluation/clinical.py and paired_auc.py cover the truth?

    python benchmarks/clinical.py [--datasets 300] [--resamples 400] [--seed 0] [--only TABLE]

Scores are normal, of one variance a class, the positives' also three times as wide or with some of them like negatives.
Prints the tables of docs/simulations.md. A quarter of an hour on one core; --only prints one table.
"""

from __future__ import annotations

import argparse
import time
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm
from sklearn.metrics import average_precision_score

from fairlung.pipeline.comparison.paired_auc import auc_differences, auc_distance
from fairlung.pipeline.evaluation.calibration import auc_shares
from fairlung.pipeline.evaluation.clinical import average_precision, clinical
from fairlung.pipeline.evaluation.patients import resample_scans
from fairlung.pipeline.evaluation.predictions import Predictions

Floats = NDArray[np.float64]
SHAPES = ("one shape", "positives three times as wide", "some positives at chance")
SPECIFICITY = 0.9


def positives(area: float, shape: str, z: Floats, rng: np.random.Generator) -> Floats:
    """Scores of positives, of standard normal ``z``, where negatives' are standard normal and the AUC is ``area``."""
    if shape == SHAPES[2]:
        return z + np.where(rng.random(len(z)) < 2 * (1 - area), 0, 20.0)
    width = 3.0 if shape == SHAPES[1] else 1.0
    return norm.ppf(area) * np.hypot(1, width) + width * z


def alike(patients: int, scans: int, correlation: float, rng: np.random.Generator) -> tuple[NDArray[np.int64], Floats]:
    """The patient of each scan, and normal numbers, one for all scans of a patient by chance ``correlation``."""
    number = np.full(patients, scans) if scans else rng.integers(1, 6, patients)
    patient = np.repeat(np.arange(patients), number)
    same = (rng.random(patients) < correlation)[patient]
    return patient, np.where(same, rng.normal(size=patients)[patient], rng.normal(size=len(patient)))


def draw_groups(
    ill: list[int], well: list[int], apart: list[float], moved: list[float], scans: int, correlation: float,
    rng: np.random.Generator,
) -> Predictions:  # fmt: skip
    """Two groups whose ill patients' scores lie ``apart`` from the others', those of all of them ``moved``."""
    parts = []
    for g, y in product((0, 1), (0, 1)):
        patient, z = alike((well, ill)[y][g], scans, correlation, rng)
        one = np.ones_like(patient)
        parts.append((g * one, y * one, patient + 10_000 * (2 * g + y), z + moved[g] + y * apart[g]))
    group, label, patient, score = (np.concatenate(column) for column in zip(*parts, strict=True))
    p = 1 / (1 + np.exp(-score))
    shown, names = np.stack([1 - p, p], 1), np.arange(len(p)).astype(str)
    about = (("normal", "covid"), ("male", "female"), ("sex",), "", False, None if scans == 1 else patient)
    return Predictions(names, label, shown.argmax(1), group, shown, *about)


def print_groups(datasets: int, resamples: int, rng: np.random.Generator) -> None:
    print("\n| ill, normal patients of men / women | scans a patient | correlation | true sensitivity | ", end="")
    print(
        "sensitivity | difference | specificity | difference | underdiagnosis | difference | overdiagnosis | ", end=""
    )
    print("difference | AUPRC |\n" + "|---" * 13 + "|")
    sizes = (([60, 60], [20, 20]), ([25, 25], [40, 15]), ([100, 100], [100, 100]))
    where = (([1.5, 1.5], [0.0, 0.0]), ([2.5, 1.8], [-1.0, -0.3]), ([3.5, 3.5], [-1.5, -1.5]))
    rows = [(size, at, 1, 1.0) for size, at in product(sizes, where)]
    rows += [(sizes[0], where[1], *how) for how in ((3, 1.0), (3, 0.5), (3, 0.0), (0, 0.5))]
    rows += [(sizes[1], where[1], 3, 1.0), (sizes[2], where[1], 3, 0.5)]
    for (ill, well), (apart, moved), scans, correlation in rows:
        middle, shift = np.array(moved), np.array(apart)
        share = np.array(well) / sum(well)
        at = brentq(lambda t, m=middle, s=share: (s * norm.cdf(t - m)).sum() - SPECIFICITY, -9, 9)
        truths = norm.sf(at - middle - shift), norm.cdf(at - middle), norm.cdf(-middle - shift), norm.sf(-middle)
        many = draw_groups([60 * n for n in ill], [60 * n for n in well], apart, moved, 50, 0.0, rng)
        areas = [
            average_precision_score(many.label[many.group == g], many.probabilities[many.group == g, 1])
            for g in (0, 1)
        ]  # fmt: skip
        hits = []
        for _ in range(datasets):
            table = draw_groups(ill, well, apart, moved, scans, correlation, rng)
            found = clinical(table, rng, resamples, specificity=SPECIFICITY, min_cell=1)
            point, said, row = found.operating_points[0], found.diagnosis, []
            of = point.sensitivities, point.specificities, said.underdiagnosis, said.overdiagnosis
            for number, true in zip(of, truths, strict=True):
                ends = [*(one.value for one in number.groups), number.difference.difference]
                row += [e.low <= t <= e.high for e, t in zip(ends, (*true, true[0] - true[1]), strict=True)]
            row += [
                e.average_precision.low <= areas[g] <= e.average_precision.high
                for g in (0, 1) for e in found.retrieval if (e.group, e.class_name) == (("male", "female")[g], "covid")
            ]  # fmt: skip
            hits.append(row)
        got = np.mean(hits, axis=0)
        texts = [f"{got[k]:.3f}, {got[k + 1]:.3f} | {got[k + 2]:.3f}" for k in range(0, 12, 3)]
        patients = " / ".join(f"{a}, {b}" for a, b in zip(ill, well, strict=True))
        true = " / ".join(f"{one:.2f}" for one in truths[0])
        how = f"{scans or '1-5'} | {correlation if scans != 1 else ''} | {true}"
        print(f"| {patients} | {how} | {' | '.join(texts)} | {got[12]:.3f}, {got[13]:.3f} |", flush=True)


def print_auprc(datasets: int, resamples: int, rng: np.random.Generator) -> None:
    print(f"\n| AUC | positive, negative scans | {' | '.join(SHAPES)} |\n|---|---|---|---|---|")
    for area, (m, n) in product((0.75, 0.9, 0.97, 0.995), ((10, 90), (15, 45), (30, 70), (100, 300))):
        label, texts = np.repeat([0, 1], [n, m]), []
        for shape in SHAPES:
            k = 300_000 // n
            many = np.concatenate([rng.normal(size=n * k), positives(area, shape, rng.normal(size=m * k), rng)])
            truth, hits = average_precision_score(np.repeat(label, k), many), 0
            for _ in range(datasets):
                score = np.concatenate([rng.normal(size=n), positives(area, shape, rng.normal(size=m), rng)])
                found = average_precision(label == 1, score, resample_scans(label, None, resamples, rng))
                hits += found.low <= truth <= found.high
            texts.append(f"{hits / datasets:.3f} of {truth:.2f}")
        print(f"| {area} | {m}, {n} | {' | '.join(texts)} |", flush=True)


def print_difference(datasets: int, rng: np.random.Generator) -> None:
    print(f"\n| AUCs | positive, negative scans | {' | '.join(SHAPES)} |\n|---|---|---|---|---|")
    pairs = ((0.95, 0.95), (0.85, 0.85), (0.99, 0.99), (0.98, 0.90))
    for areas, (m, n) in product(pairs, ((15, 60), (30, 100), (100, 300))):
        label, texts = np.repeat([0, 1], [n, m]), []
        for shape in SHAPES:
            told = none = 0
            for _ in range(datasets):
                common, found = rng.normal(size=n + m), []
                for area in areas:
                    z = np.sqrt(0.6) * common + np.sqrt(0.4) * rng.normal(size=n + m)
                    score = np.concatenate([z[:n], positives(area, shape, z[n:], rng)])
                    found.append(auc_shares(label, np.stack([-score, score], 1)))
                area, share = ([part[k][..., 1][None] for part in found] for k in (0, 1))
                moved = auc_distance(area, share, label, False, None)
                if moved.spread.error()[0] == 0:
                    none += 1
                    continue
                ends = moved.estimate(0.95)
                told += not ends.low <= areas[1] - areas[0] <= ends.high
            texts.append(f"{told / (datasets - none):.3f}{f' ({none} without)' if none else ''}")
        print(f"| {areas[0]}, {areas[1]} | {m}, {n} | {' | '.join(texts)} |", flush=True)


def draw_runs(
    scans: list[int], apart: float, runs: int, spread: float, each: int, rng: np.random.Generator, common: Floats
) -> list[Predictions]:
    """Runs of a system on ``scans`` of four classes, ``each`` of a patient; ``spread`` is between runs."""
    label = np.repeat(np.arange(4), scans)
    found = []
    for _ in range(runs):
        noise = np.sqrt(0.6) * common + np.sqrt(0.4) * np.repeat(rng.normal(size=(len(label) // each, 4)), each, axis=0)
        logits = noise + (apart + spread * rng.normal()) * np.eye(4)[label]
        shown = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        names, about = np.arange(len(label)).astype(str), (tuple("abcd"), ("male", "female"), ("sex",), "", False)
        found.append(
            Predictions(names, label, shown.argmax(1), label % 2, shown, *about, np.arange(len(label)) // each)
        )
    return found


def print_mean(datasets: int, rng: np.random.Generator) -> None:
    print("\n| scans of four classes | runs | scans a patient | told apart, mean AUC | a class (worst) | by scans |")
    print("|---|---|---|---|---|---|")
    for scans, runs, each in (
        ([48, 30, 39, 39], 1, 1), ([48, 30, 39, 39], 3, 1), ([144, 90, 117, 117], 1, 3), ([150] * 4, 1, 1),
        ([150] * 4, 1, 3), ([150] * 4, 3, 3),
    ):  # fmt: skip
        rows = []
        for _ in range(datasets):
            common = np.repeat(rng.normal(size=(sum(scans) // each, 4)), each, axis=0)
            a, b = (draw_runs(scans, 1.5, runs, 0.2 * (runs > 1), each, rng, common) for _ in range(2))
            found = auc_differences(a, b, 0.95, runs > 1, a[0].patient if each > 1 else None)
            by_scans = auc_differences(a, b, 0.95, runs > 1)
            rows.append([one.p_value < 0.05 for one in found] + [by_scans[0].p_value < 0.05])
        mean, *classes, scan = np.mean(rows, axis=0)
        sizes = ", ".join(map(str, scans))
        print(f"| {sizes} | {runs} | {each} | {mean:.3f} | {max(classes):.3f} | {scan:.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", type=int, default=300)
    parser.add_argument("--resamples", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    tables = {
        "groups": lambda: print_groups(options.datasets, options.resamples, rng),
        "auprc": lambda: print_auprc(options.datasets, options.resamples, rng),
        "difference": lambda: print_difference(options.datasets, rng),
        "mean": lambda: print_mean(options.datasets, rng),
    }
    parser.add_argument("--only", choices=tables, help="one table, by default all")
    options = parser.parse_args()
    start = time.perf_counter()
    rng = np.random.default_rng(options.seed)
    for table in [options.only] if options.only else tables:
        tables[table]()
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
