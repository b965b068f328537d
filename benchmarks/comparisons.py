"""How often do the intervals of `fairlung compare` cover the truth, and how often does it find what is not there?

    python benchmarks/comparisons.py [--datasets 300] [--seed 0]

Two systems answer the same scans. Whether a run is right about a scan depends on the cell, how hard the scan is (for
both systems), the system's own taste, the seed and the seed's taste: a latent normal variable. The truth is the mean
over many seeds and twenty times the scans. Prints the table of docs/statistics.md. About half an hour on one core.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from fairlung.pipeline.evaluation.audit import summaries
from fairlung.pipeline.evaluation.compare import compare
from fairlung.pipeline.evaluation.predictions import Predictions

CELLS = {
    "the paper's 155": (25, 25, 12, 13, 20, 20, 20, 20),  # class by class, men and women in turn
    "with a cell of 5": (25, 25, 12, 5, 20, 20, 20, 20),
}
SETTINGS = [  # cells, runs each, difference of the systems, deviation over seeds
    *((cells, 1, difference, 0.0) for cells in CELLS for difference in (0.0, 0.4)),
    *(("the paper's 155", runs, difference, 0.2) for runs in (3, 5, 10) for difference in (0.0, 0.4)),
]
EASE = np.array(
    [[1.0, 1.0, 1.0, 1.0], [0.7, 0.2, 0.7, 0.7]]
)  # latent mean of a group and class: women are served worse
NUMBERS = ("score", "gap", "abs_gap")
NAMES = ("adenocarcinoma", "squamous_cell", "covid19", "normal"), ("male", "female")


def draw(
    cells: tuple[int, ...], runs: int, difference: float, over_seeds: float, rng: np.random.Generator
) -> dict[str, list[Predictions]]:
    """Predictions of systems A and B, which is better by ``difference``, on newly drawn scans."""
    label, group = (np.repeat(values, cells) for values in (np.repeat(range(4), 2), np.tile([0, 1], 4)))
    scans = len(label)
    hard, mistaken_for = rng.normal(0, 1, scans), (label + rng.integers(1, 4, scans)) % 4
    systems: dict[str, list[Predictions]] = {}
    for name, better in (("A", 0.0), ("B", difference)):
        taste = rng.normal(0, 0.3, scans)
        for _ in range(runs):
            seed = rng.normal(0, over_seeds) + rng.normal(0, 0.5, scans)
            said = np.where(EASE[group, label] + better + hard + taste + seed > 0, label, mistaken_for)
            table = Predictions(np.arange(scans).astype(str), label, said, group, None, *NAMES, ("sex",))
            systems.setdefault(name, []).append(table)
    return systems


def differences(systems: dict[str, list[Predictions]]) -> dict[str, float]:
    """B - A of the means over runs."""
    found = {name: summaries(np.stack([run.confusion()[:-1] for run in runs])) for name, runs in systems.items()}
    return {name: float(found["B"][name].mean() - found["A"][name].mean()) for name in NUMBERS}


def truth(cells: tuple[int, ...], difference: float, over_seeds: float, rng: np.random.Generator) -> dict[str, float]:
    """What an interval has to cover."""
    if not difference:
        return dict.fromkeys(NUMBERS, 0.0)
    large = tuple(20 * n for n in cells)
    drawn = [differences(draw(large, 1, difference, over_seeds, rng)) for _ in range(300)]
    return {name: float(np.mean([found[name] for found in drawn])) for name in NUMBERS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start = time.perf_counter()
    rng = np.random.default_rng(options.seed)
    error = 1.96 * np.sqrt(0.95 * 0.05 / options.datasets)
    print(f"{options.datasets} data sets a row, so a coverage of .95 is seen as .95 +/- {error:.3f}.\n")
    print("| scans | runs each | B - A in P | covers P | gap | absolute gap | p <= .05 for P | finding, P |")
    print("|---|---|---|---|---|---|---|---|")
    for name, runs, difference, over_seeds in SETTINGS:
        true = truth(CELLS[name], difference, over_seeds, rng)
        covered: dict[str, list[bool]] = {number: [] for number in NUMBERS}
        rejected, found = [], []
        for _ in range(options.datasets):
            result = compare(draw(CELLS[name], runs, difference, over_seeds, rng), 1000, 400).comparisons[0]
            for number in NUMBERS:
                interval = result.differences[number]
                covered[number].append(interval.low <= true[number] <= interval.high)
            p, interval = result.tests["score"].p_value, result.differences["score"]
            rejected.append(p <= 0.05)
            found.append(p <= 0.05 and not interval.low <= 0 <= interval.high)
        shares = " | ".join(f"{np.mean(covered[number]):.3f}" for number in NUMBERS)
        print(
            f"| {name} | {runs} | {true['score']:+.3f} | {shares} | {np.mean(rejected):.3f} | {np.mean(found):.3f} |",
            flush=True,
        )
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
