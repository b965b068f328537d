"""Predictions of noise with something at the true class, and their scores by scikit-learn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import f1_score

from fairlung.pipeline.common.errors import UserError
from fairlung.pipeline.evaluation.predictions import Predictions

CLASSES = ("adeno", "squamous", "covid", "normal")


def predictions(
    seed: int, n: int, classes: int = 4, groups: int = 2, sharp: float = 2.0, name: str = ""
) -> Predictions:
    """Scans whose logits are noise, plus something at the true class."""
    rng = np.random.default_rng(seed)
    label, group = rng.integers(0, classes, n), rng.integers(0, groups, n)
    label[:classes], group[:groups] = range(classes), range(groups)
    logits = rng.normal(size=(n, classes))
    logits[np.arange(n), label] += 1.2
    probabilities = softmax(sharp * logits, axis=1)
    scans = np.array([f"{name or seed}/{i}" for i in range(n)])
    groups_named = ("male", "female", "third")[:groups]
    return Predictions(
        scans, label, probabilities.argmax(1), group, probabilities, CLASSES[:classes], groups_named, ("sex",)
    )


def score_and_gap(label: np.ndarray, said: np.ndarray, group: np.ndarray, classes: int) -> tuple[float, float]:
    macro = [
        f1_score(label[group == g], said[group == g], labels=range(classes), average="macro", zero_division=0)
        for g in np.unique(group)
    ]
    return float(np.mean(macro)), float(np.ptp(macro))


def refused(text: str, call: Callable[[], object]) -> None:
    with pytest.raises((UserError, ValueError), match=text):
        call()
