"""How often a probe's test rejects a true null hypothesis, and its interval covers the AUC on other patients.

    python benchmarks/shortcuts.py [DATA_SETS]

Features are of 256 dimensions: 30 latent factors with decaying weights and noise, as wide networks have. They know the
disease. Prints the tables of docs/statistics.md, in five minutes on one core with 300 data sets a row.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fairlung.pipeline.evaluation.predictions import Predictions
from fairlung.pipeline.shortcuts.features import Features
from fairlung.pipeline.shortcuts.probe import FOLDS, probe

CLASSES = ("adenocarcinoma", "squamous_cell", "covid19", "normal")
DIMENSIONS, LATENT = 256, 30
EVEN, UNEVEN = (0.5, 0.5, 0.5, 0.5), (0.8, 0.3, 0.5, 0.2)  # share of the first value in each class
ALIKE = 0.7  # correlation of the scans of a patient
Drawn = tuple[Any, Any, Any, Any]  # features [N, D], class, value and patient [N]


@dataclass(frozen=True)
class Setting:
    """Patients of four classes, and an attribute that shifts their features by ``signal``."""

    patients: int
    per_patient: tuple[int, ...] = (1,)
    signal: float = 0.0
    shares: tuple[float, ...] = EVEN
    of_scan: bool = False  # the attribute differs within a patient, as a scanner may
    values: int = 2

    def draw(self, patients: int, rng: np.random.Generator) -> Drawn:
        fixed = np.random.default_rng(7)
        mixing = fixed.standard_normal((LATENT, DIMENSIONS)) * (0.85 ** np.arange(LATENT))[:, None]
        of_class = fixed.standard_normal((4, LATENT)) * 1.5
        of_value = fixed.standard_normal((self.values, LATENT)) / np.sqrt(2)
        label = np.arange(patients) % 4
        of = np.repeat(np.arange(patients), rng.choice(self.per_patient, patients))
        share = np.array(self.shares)[label]
        number = len(of) if self.of_scan else patients
        first = rng.random(number) < (share[of] if self.of_scan else share)
        value = np.where(first, 0, rng.integers(1, self.values, number))
        code = value if self.of_scan else value[of]
        own, apart = (rng.standard_normal((n, LATENT)) for n in (patients, len(of)))
        latent = np.sqrt(ALIKE) * own[of] + np.sqrt(1 - ALIKE) * apart
        latent += of_class[label[of]] + self.signal * of_value[code]
        features = latent @ mixing + 0.5 * rng.standard_normal((len(of), DIMENSIONS))
        return features.astype(np.float32), label[of], code, of


def row(setting: Setting, sets: int, permutations: int = 200) -> tuple[float, float, float, float, float]:
    """How often p <= .05, the true AUC (of such a probe on patients of the same mix), mean AUC, coverage, width."""
    names = tuple("abc"[: setting.values])
    rejected, aucs, truth, rng = [], [], [], np.random.default_rng(0)
    large = setting.draw(3000, np.random.default_rng(1))
    for number in range(sets):
        features, label, code, of = setting.draw(setting.patients, rng)
        scan, few = np.arange(len(of)).astype(str), np.zeros((len(of), 1), np.float32)
        table = Predictions(scan, label, label, code, None, CLASSES, names, ("sex",), patient=of)
        given = Features(scan, features, few, few, scan, np.ones(len(scan), dtype=bool), "", "", "")
        found = probe(given, table, "sex", pd.Series(np.array(names)[code]), permutations, seed=number).readings[0]
        rejected.append(found.p_value <= 0.05)
        aucs.append(found.auc)
        if not setting.signal:
            continue
        fit = np.isin(of, rng.permutation(setting.patients)[: round(setting.patients * (1 - 1 / FOLDS))])
        model = make_pipeline(StandardScaler(), Ridge(DIMENSIONS)).fit(features[fit], np.eye(setting.values)[code[fit]])
        cells = [np.bincount(4 * v + c, minlength=4 * setting.values) for c, v in ((label, code), large[1:3])]
        weight, scores = (cells[0] / cells[1])[4 * large[2] + large[1]], model.predict(large[0])
        each = [roc_auc_score(large[2] == v, scores[:, v], sample_weight=weight) for v in range(setting.values)]
        truth.append(np.mean(each))
    true = float(np.mean(truth)) if truth else 0.5
    covered = np.mean([one.low <= true <= one.high for one in aucs])
    mean, width = np.mean([one.value for one in aucs]), np.mean([one.high - one.low for one in aucs])
    return float(np.mean(rejected)), true, float(mean), float(covered), float(width)


def main(sets: int) -> None:
    print(
        "| patients | scans a patient | values | share of the first value | attribute | rejected at .05 |\n"
        + "|---" * 6
    )
    for s in (
        Setting(155), Setting(155, shares=UNEVEN), Setting(60, shares=UNEVEN), Setting(80, (2,), shares=UNEVEN),
        Setting(80, (1, 2, 3), shares=UNEVEN), Setting(80, (2,), shares=UNEVEN, of_scan=True),
        Setting(155, shares=UNEVEN, values=3),
    ):  # fmt: skip
        scans = "-".join(map(str, sorted({s.per_patient[0], s.per_patient[-1]})))
        share, what = ("half" if s.shares == EVEN else ".2-.8 by class"), "scan" if s.of_scan else "patient"
        print(f"| {s.patients} | {scans} | {s.values} | {share} | of the {what} | {row(s, sets)[0]:.3f} |", flush=True)
    print(
        "\n| patients | scans a patient | values | true AUC | mean found | covered | width | p <= .05 |\n" + "|---" * 8
    )
    for s in (
        Setting(155, signal=0.15), Setting(155, signal=0.4), Setting(155, signal=0.8), Setting(60, signal=0.4),
        Setting(80, (2,), 0.3), Setting(80, (1, 2, 3), 0.3), Setting(155, signal=0.4, values=3),
    ):  # fmt: skip
        scans = "-".join(map(str, sorted({s.per_patient[0], s.per_patient[-1]})))
        rejected, *numbers = row(s, sets, permutations=100)
        shown = " | ".join(f"{number:.3f}" for number in (*numbers, rejected))
        print(f"| {s.patients} | {scans} | {s.values} | {shown} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
