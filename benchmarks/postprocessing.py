"""Do post-processings help on scans that they were not fitted on, and do the intervals of their changes hold the truth?

    python benchmarks/postprocessing.py [--datasets 200] [--resamples 500] [--seed 0]

Logits are normal noise plus 2 at the true class, twice too large, of as many scans a class and sex as the paper
validates on (155). A method is fitted on one draw and judged on 60 times as many new scans; the interval of its change
on 155 new scans is held against that. Prints the table of docs/postprocessing.md. About 9 minutes on one core.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from fairlung.pipeline.common.names import CLASS_NAMES, SEXES
from fairlung.pipeline.evaluation.predictions import Predictions
from fairlung.pipeline.evaluation.resampling import Estimate
from fairlung.pipeline.postprocessing.before_after import before_after
from fairlung.pipeline.postprocessing.fit import apply, fit

CELLS = np.array([[25, 12, 20, 20], [25, 13, 20, 20]])
TIMES = 60  # new scans as many times as fitted ones: their numbers count as the truth
SQUAMOUS = CLASS_NAMES.index("squamous_cell")
MODELS = {
    "no bias": (0.0, 0.0),
    "women's squamous_cell weak": (0.0, -1.0),
    "squamous_cell said too rarely": (-0.8, 0.0),
}
METHODS = {
    "temperature": ("temperature", {}),
    "offsets, score": ("offsets", {"objective": "score"}),
    "offsets, gap": ("offsets", {"objective": "gap", "max_loss": 0.02}),
}
NUMBERS = ("score", "abs_gap", "nll", "ece")


def draw(times: int, shifts: tuple[float, float], name: str, rng: np.random.Generator) -> Predictions:
    """``times`` the paper's scans, by a model that is twice too confident.

    Args:
        shifts: of the logit of squamous_cell, for every scan, and for women who have it.
    """
    cells = times * CELLS
    group = np.repeat([0, 1], cells.sum(1))
    label = np.concatenate([np.repeat(np.arange(4), row) for row in cells])
    logits = rng.normal(size=(len(label), 4))
    logits[np.arange(len(label)), label] += 2
    logits[:, SQUAMOUS] += shifts[0] + shifts[1] * ((group == 1) & (label == SQUAMOUS))
    probabilities: NDArray[np.float64] = softmax(4 * logits, axis=1)
    scan = np.array([f"{name}{i}" for i in range(len(label))])
    return Predictions(scan, label, probabilities.argmax(1), group, probabilities, CLASS_NAMES, SEXES, ("sex",))


def changes(before: Predictions, after: Predictions, resamples: int, seed: int) -> dict[str, Estimate]:
    numbers = before_after(before, after, resamples, seed=seed).numbers
    return {name: numbers[name].change for name in NUMBERS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", type=int, default=200)
    parser.add_argument("--resamples", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start = time.perf_counter()
    rng = np.random.default_rng(options.seed)
    print("Mean change on the fitted scans / on new ones (how often it is for the better on new ones).\n")
    print("| model | method | P | abs. gap | NLL | ECE | intervals that hold the truth |")
    print("|---|---|---|---|---|---|---|")
    for (model, shifts), (title, (method, settings)) in ((m, k) for m in MODELS.items() for k in METHODS.items()):
        fitted_on, on_new, hits = [], [], []
        for seed in range(options.datasets):
            validation, new, many = (
                draw(*part, rng) for part in ((1, shifts, "v"), (1, shifts, "n"), (TIMES, shifts, "m"))
            )
            fitted = fit(method, validation, **settings)
            # without the record of the fitted scans, to see the optimism that apply refuses to show
            seen = changes(validation, apply(replace(fitted, scans=()), validation), 100, seed)
            truth = changes(many, apply(fitted, many), 100, seed)
            found = changes(new, apply(fitted, new), options.resamples, seed)
            fitted_on.append([seen[name].value for name in NUMBERS])
            on_new.append([truth[name].value for name in NUMBERS])
            hits.append([found[name].low <= truth[name].value <= found[name].high for name in NUMBERS])
        first, second, held = np.mean(fitted_on, axis=0), np.mean(on_new, axis=0), np.mean(hits, axis=0)
        better = np.mean(np.array(on_new) * (1, -1, -1, -1) > 0, axis=0)
        cells = " | ".join(f"{first[i]:+.3f} / {second[i]:+.3f} ({better[i]:.2f})" for i in range(len(NUMBERS)))
        holds = ", ".join(f"{name} {share:.2f}" for name, share in zip(NUMBERS, held, strict=True))
        print(f"| {model} | {title} | {cells} | {holds} |", flush=True)
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
