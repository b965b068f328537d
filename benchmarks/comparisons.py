"""How often do the intervals of `fairlung compare` cover the truth, and how often do its tests find what is not there?

    python benchmarks/comparisons.py [--datasets 400] [--seed 0] [--only TABLE]

Two systems answer the same scans. Whether a run is right about a scan depends on the accuracy of its system for the
group, how hard the scan is (for both systems), the system's own taste, the seed and the seed's taste: a latent normal
variable. One run each is about these very models, so their seeds are alike. The truth is that of the expected answers.
Where patients have several scans, all that is random of a scan is one draw of the patient's scans by a chance, which is
then their correlation. Prints the tables of docs/simulations.md. About twenty minutes on one core.
"""

from __future__ import annotations

import argparse
import gc
import time
from dataclasses import replace
from itertools import product

import numpy as np
from scipy.stats import norm

from fairlung.pipeline.comparison.compare import compare
from fairlung.pipeline.comparison.paired import headline
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
# scans a patient, and by what chance they are answered alike
PATIENTS = ((1, 1.0), (2, 1.0), (2, 0.5), (3, 1.0), (3, 0.5))
OF_PATIENTS = (((1, 1), ALIKE), ((1, 1), SIGN), ((3, 3), ALIKE), ((3, 3), SIGN))
TASTE, SEED, SEEDS_TASTE = 0.3, 0.2, 0.5  # standard deviations beside 1, how hard a scan is
NUMBERS = ("score", "gap", "abs_gap")
NAMES = ("adenocarcinoma", "squamous_cell", "covid19", "normal"), ("male", "female")


def draw(
    cells: tuple[int, ...], runs: tuple[int, int], systems: tuple[Accuracy, Accuracy], rng: np.random.Generator,
    scans: int = 1, alike: float = 1.0,
) -> dict[str, list[Predictions]]:  # fmt: skip
    """Predictions of systems A and B on newly drawn patients, ``cells`` of them, of so many scans each."""
    label, group = (np.repeat(values, cells) for values in (np.repeat(range(4), 2), np.tile([0, 1], 4)))
    patient = np.repeat(np.arange(len(label)), scans)
    label, group, number = label[patient], group[patient], len(patient)
    same = (rng.random(number // scans) < alike)[patient] if scans > 1 else np.zeros(number, dtype=bool)
    first = np.where(same, patient * scans, np.arange(number))  # the scan whose draws count

    def normal(spread: float) -> np.ndarray:
        return rng.normal(0, spread, number)[first]

    hard, mistaken_for = normal(1), (label + rng.integers(1, 4, number)[first]) % 4
    over_seeds = SEED if max(runs) > 1 else 0.0
    spread = np.sqrt(1 + TASTE**2 + over_seeds**2 + SEEDS_TASTE**2)
    found: dict[str, list[Predictions]] = {}
    for name, of_system, accuracy in zip("AB", runs, systems, strict=True):
        ease = norm.ppf(accuracy)[group] * spread + hard + normal(TASTE)
        for _ in range(of_system):
            seed = rng.normal(0, over_seeds) + normal(SEEDS_TASTE)
            said = np.where(ease + seed > 0, label, mistaken_for)
            about = (None, *NAMES, ("sex",), "", False, patient)
            found.setdefault(name, []).append(Predictions(np.arange(number).astype(str), label, said, group, *about))
    return found


def truth(cells: tuple[int, ...], systems: tuple[Accuracy, Accuracy]) -> dict[str, float]:
    """What an interval has to cover: the numbers of the expected answers."""
    right = np.eye(4)
    answers = [[p * right + (1 - p) * (1 - right) / 3 for p in accuracy] for accuracy in systems]
    found = headline(np.array(answers) * np.array(cells).reshape(4, 2).T[..., None], NAMES[1])
    found["abs_gap"] = np.abs(found["gap"])
    return {name: float(found[name][1] - found[name][0]) for name in NUMBERS}


def row(
    cells: tuple[int, ...], runs: tuple[int, int], systems: tuple[Accuracy, Accuracy], datasets: int,
    rng: np.random.Generator, scans: int = 1, alike: float = 1.0, by_scans: bool = False,
) -> tuple[dict[str, float], list[list[float]]]:  # fmt: skip
    """The true differences, and shares of data sets: covered P, gap, |gap|, and rejected P, |gap|.

    With ``by_scans`` also what the same data sets give where nobody says whose the scans are.
    """
    true = truth(cells, systems)
    found: list[list[list[bool]]] = [[], []]
    for _ in range(datasets):
        drawn = draw(cells, runs, systems, rng, scans, alike)
        unsaid = {name: [replace(table, patient=None) for table in tables] for name, tables in drawn.items()}
        for shares, tables in zip(found, (drawn, unsaid) if by_scans else (drawn,), strict=False):
            (result,) = compare(tables, 400, 400).comparisons
            ends = [(true[number], result.differences[number]) for number in NUMBERS]
            shares.append([e.low <= t <= e.high for t, e in ends] + [t.p_value < 0.05 for t in result.tests.values()])
    return true, [np.mean(shares, axis=0).tolist() for shares in found if shares]


def print_systems(datasets: int, rng: np.random.Generator) -> None:
    columns = "scans | runs | accuracy of A | of B | B - A in P | in absolute gap | covers P | gap | absolute gap"
    print(f"| {columns} | p < .05 for P | for absolute gap |\n|{'---|' * 11}")
    for cells, runs, systems in SETTINGS:
        true, (shares,) = row(CELLS[cells], runs, systems, datasets, rng)
        men_and_women = (" / ".join(f"{share:.2f}" for share in accuracy) for accuracy in systems)
        differences = (f"{true[number]:+.3f}" for number in ("score", "abs_gap"))
        each = str(runs[0]) if runs[0] == runs[1] else " and ".join(map(str, runs))
        texts = (f"{share:.3f}" for share in shares)
        print("|", " | ".join((cells, each, *men_and_women, *differences, *texts)), "|", flush=True)


def print_patients(datasets: int, rng: np.random.Generator) -> None:
    columns = "scans a patient | correlation | runs | accuracy of A | of B | covers P | gap | absolute gap"
    print(f"\n| {columns} | p < .05 for P | for absolute gap | by scans: P, gap, absolute gap | p |\n|{'---|' * 12}")
    for (runs, systems), (scans, alike) in product(OF_PATIENTS, PATIENTS):
        _, (ours, theirs) = row(CELLS[PAPER], runs, systems, datasets, rng, scans, alike, by_scans=True)
        men_and_women = (" / ".join(f"{share:.2f}" for share in accuracy) for accuracy in systems)
        before = [", ".join(f"{share:.3f}" for share in part) for part in (theirs[:3], theirs[3:])]
        texts = (*(f"{share:.3f}" for share in ours), *before)
        about = (str(scans), str(alike) if scans > 1 else "", str(runs[0]), *men_and_women)
        print("|", " | ".join((*about, *texts)), "|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    tables = {"systems": print_systems, "patients": print_patients}
    parser.add_argument("--only", choices=tables, help="one table, by default both")
    options = parser.parse_args()
    gc.freeze()  # statsmodels collects garbage at each adjustment, which would take nearly all of the time
    start = time.perf_counter()
    rng = np.random.default_rng(options.seed)
    error = 1.96 * np.sqrt(0.95 * 0.05 / options.datasets)
    print(f"{options.datasets} data sets a row, so a coverage of .95 is seen as .95 +/- {error:.3f}.\n")
    for table in [options.only] if options.only else tables:
        tables[table](options.datasets, rng)
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
