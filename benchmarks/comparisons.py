"""How often do the intervals of `fairlung compare` cover the truth, and how often do its tests find what is not there?

    python benchmarks/comparisons.py [--datasets 400] [--seed 0]

Two systems answer the same scans. Whether a run is right about a scan depends on the accuracy of its system for the
group, how hard the scan is (for both systems), the system's own taste, the seed and the seed's taste: a latent normal
variable. One run each is about these very models, so their seeds are alike. The truth is that of the expected answers.
Prints the table of docs/statistics.md. About eight minutes on one core.
"""

from __future__ import annotations

import argparse
import gc
import time

import numpy as np
from scipy.stats import norm

from fairlung.pipeline.evaluation.compare import compare
from fairlung.pipeline.evaluation.paired import headline
from fairlung.pipeline.evaluation.predictions import Predictions

CELLS = {  # class by class, men and women in turn
    "6 a cell": (6,) * 8,
    "the paper's 155": (25, 25, 12, 13, 20, 20, 20, 20),
    "with a cell of 5": (25, 25, 12, 5, 20, 20, 20, 20),
}
Accuracy = tuple[float, float]  # of men and women
ALIKE, BETTER = ((0.8, 0.7), (0.8, 0.7)), ((0.8, 0.7), (0.9, 0.8))
SIGN, BOTH = ((0.8, 0.6), (0.6, 0.8)), ((0.9, 0.7), (0.6, 0.8))
FAIR, FAIRER = ((0.97, 0.97), (0.85, 0.85)), ((0.95, 0.75), (0.85, 0.85))
PAPER = "the paper's 155"
SETTINGS: list[tuple[str, tuple[int, int], tuple[Accuracy, Accuracy]]] = [
    *(("6 a cell", (1, 1), systems) for systems in (ALIKE, SIGN, BOTH)),
    *((PAPER, (1, 1), systems) for systems in (ALIKE, BETTER, SIGN, BOTH, FAIR, FAIRER)),
    *(("with a cell of 5", (1, 1), systems) for systems in (ALIKE, FAIR)),
    *((PAPER, (3, 3), systems) for systems in (ALIKE, BETTER, SIGN, BOTH, FAIR, FAIRER)),
    *((PAPER, (10, 10), systems) for systems in (ALIKE, BETTER, SIGN, BOTH, FAIR, FAIRER)),
    *((PAPER, runs, systems) for runs in ((2, 2), (5, 20), (2, 10)) for systems in (ALIKE, SIGN)),
]
TASTE, SEED, SEEDS_TASTE = 0.3, 0.2, 0.5  # standard deviations beside 1, how hard a scan is
NUMBERS = ("score", "gap", "abs_gap")
NAMES = ("adenocarcinoma", "squamous_cell", "covid19", "normal"), ("male", "female")


def draw(
    cells: tuple[int, ...], runs: tuple[int, int], systems: tuple[Accuracy, Accuracy], rng: np.random.Generator
) -> dict[str, list[Predictions]]:
    """Predictions of systems A and B on newly drawn scans."""
    label, group = (np.repeat(values, cells) for values in (np.repeat(range(4), 2), np.tile([0, 1], 4)))
    scans = len(label)
    hard, mistaken_for = rng.normal(0, 1, scans), (label + rng.integers(1, 4, scans)) % 4
    over_seeds = SEED if max(runs) > 1 else 0.0
    spread = np.sqrt(1 + TASTE**2 + over_seeds**2 + SEEDS_TASTE**2)
    found: dict[str, list[Predictions]] = {}
    for name, number, accuracy in zip("AB", runs, systems, strict=True):
        ease = norm.ppf(accuracy)[group] * spread + hard + rng.normal(0, TASTE, scans)
        for _ in range(number):
            seed = rng.normal(0, over_seeds) + rng.normal(0, SEEDS_TASTE, scans)
            said = np.where(ease + seed > 0, label, mistaken_for)
            table = Predictions(np.arange(scans).astype(str), label, said, group, None, *NAMES, ("sex",))
            found.setdefault(name, []).append(table)
    return found


def truth(cells: tuple[int, ...], systems: tuple[Accuracy, Accuracy]) -> dict[str, float]:
    """What an interval has to cover: the numbers of the expected answers."""
    right = np.eye(4)
    answers = [[p * right + (1 - p) * (1 - right) / 3 for p in accuracy] for accuracy in systems]
    found = headline(np.array(answers) * np.array(cells).reshape(4, 2).T[..., None], NAMES[1])
    found["abs_gap"] = np.abs(found["gap"])
    return {name: float(found[name][1] - found[name][0]) for name in NUMBERS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    gc.freeze()  # statsmodels collects garbage at each adjustment, which would take nearly all of the time
    start = time.perf_counter()
    rng = np.random.default_rng(options.seed)
    error = 1.96 * np.sqrt(0.95 * 0.05 / options.datasets)
    print(f"{options.datasets} data sets a row, so a coverage of .95 is seen as .95 +/- {error:.3f}.\n")
    columns = "scans | runs | accuracy of A | of B | B - A in P | in absolute gap | covers P | gap | absolute gap"
    print(f"| {columns} | p < .05 for P | for absolute gap |\n|{'---|' * 11}")
    for cells, runs, systems in SETTINGS:
        true = truth(CELLS[cells], systems)
        covered: dict[str, list[bool]] = {number: [] for number in NUMBERS}
        rejected: dict[str, list[bool]] = {"score": [], "abs_gap": []}
        for _ in range(options.datasets):
            (result,) = compare(draw(CELLS[cells], runs, systems, rng), 400, 400).comparisons
            for number in NUMBERS:
                interval = result.differences[number]
                covered[number].append(interval.low <= true[number] <= interval.high)
            for number, test in result.tests.items():
                rejected[number].append(test.p_value < 0.05)
        men_and_women = (" / ".join(f"{share:.2f}" for share in accuracy) for accuracy in systems)
        shares = (f"{np.mean(each):.3f}" for each in (*covered.values(), *rejected.values()))
        differences = (f"{true[number]:+.3f}" for number in ("score", "abs_gap"))
        each = str(runs[0]) if runs[0] == runs[1] else " and ".join(map(str, runs))
        print("|", " | ".join((cells, each, *men_and_women, *differences, *shares)), "|", flush=True)
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
