"""Runs of several systems on the same scans, and their numbers by scikit-learn."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import f1_score

from fairlung.pipeline.evaluation.predictions import Predictions

CLASSES = ("a", "g", "covid", "normal")
SEXES = ("male", "female")
PAPER = (25, 25, 12, 13, 20, 20, 20, 20)  # scans of each class and sex
FEW = {"resamples": 200, "permutations": 200}


def design(cells: tuple[int, ...] = PAPER) -> tuple[np.ndarray, np.ndarray]:
    return np.repeat(np.repeat(np.arange(4), 2), cells), np.repeat(np.tile([0, 1], 4), cells)


def table(label: np.ndarray, group: np.ndarray, prediction: np.ndarray) -> Predictions:
    names = np.array([f"scan {i}" for i in range(len(label))])
    return Predictions(names, label, prediction, group, None, CLASSES, SEXES, ("sex",))


def runs(seed: int, number: int = 1, right: float = 0.7, cells: tuple[int, ...] = PAPER) -> list[Predictions]:
    rng = np.random.default_rng(seed)
    label, group = design(cells)
    return [
        table(label, group, np.where(rng.random(len(label)) < right, label, rng.integers(0, 4, len(label))))
        for _ in range(number)
    ]


def by_scikit_learn(run: Predictions, weight: np.ndarray) -> dict[str, float]:
    how = {"labels": range(4), "average": None, "zero_division": 0}
    cells = [
        f1_score(run.label[inside], run.prediction[inside], sample_weight=weight[inside], **how)
        for inside in (run.group == 0, run.group == 1)
    ]
    male, female = np.mean(cells, axis=1)
    pooled = f1_score(run.label, run.prediction, sample_weight=weight, **how).mean()
    return {
        "score": (male + female) / 2,
        "gap": male - female,
        "abs_gap": abs(male - female),
        "f1_macro": pooled,
        "worst_cell_f1": np.min(cells),
        "f1_male": male,
        "f1_female": female,
    }
