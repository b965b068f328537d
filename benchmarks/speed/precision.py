"""What training in bfloat16 on a CPU changes in P of the phantom cohort, beside what another seed changes."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from .accuracy import cohort
from .harness import Options, Result, in_process

SEEDS = 5
PRECISIONS = {"float32": False, "bfloat16": True}


def measure(options: Options) -> Result:
    result = Result("precision")
    folder = str(cohort(options))
    seeds = range(42, 42 + (options.repeats or (1 if options.small else SEEDS)))
    asked = [(seed, name) for seed in seeds for name in PRECISIONS]

    def p_of(seed: int, name: str) -> dict[str, float]:
        settings = {"amp": PRECISIONS[name], "device": "cpu"}
        model = in_process("accuracy", "train", folder, f"{runs}/{name}-{seed}", seed, settings, options.small)
        found = in_process("accuracy", "answers", folder, model["checkpoint"], "torch")
        return {"F1 men": found["male"], "F1 women": found["female"], "P": (found["male"] + found["female"]) / 2}

    with tempfile.TemporaryDirectory() as runs, ThreadPoolExecutor(2) as pool:  # nothing is timed here
        scores = dict(zip(asked, pool.map(lambda one: p_of(*one), asked), strict=True))
    for seed, name in asked:
        numbers = {key: f"{value:.3f}" for key, value in scores[seed, name].items()}
        change = scores[seed, name]["P"] - scores[seed, "float32"]["P"]
        result.rows.append({"seed": seed, "training in": name, **numbers, "change of P": f"{change:+.3f}"})
    exact, rounded = (np.array([scores[seed, name]["P"] for seed in seeds]) for name in PRECISIONS)
    between, change = float(np.ptp(exact)), rounded - exact
    result.extra = {"float32": exact.tolist(), "bfloat16": rounded.tolist()}
    result.target(
        "training in bfloat16 on a CPU changes P of the phantom cohort", "no more than another seed does",
        f"{change.mean():+.3f} in the mean of {len(seeds)} seeds ({change.min():+.3f} to {change.max():+.3f}); "
        f"seeds differ by {between:.3f}", abs(float(change.mean())) <= between,
    )  # fmt: skip
    result.notes.append(
        "train.yaml with demo.yaml, and --amp, on the phantom cohort in JPEG (synthetic). Its test split is "
        "answered in float32."
    )
    return result
