"""How often a probe's test rejects a true null hypothesis, and its interval covers the AUC on other patients.

    python benchmarks/shortcuts.py [DATA_SETS]

Features are of 256 dimensions: 30 latent factors with decaying weights and noise, as wide networks have. They know the
disease. Prints the tables of docs/statistics.md.
"""

import sys
import warnings

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


class Data:
    """Draws patients of four classes and an attribute that shifts the features by ``signal``."""

    def __init__(self, shares=EVEN, signal=0.0, per_patient=(1,), within=False, alike=0.7):
        self.shares, self.signal, self.per_patient, self.within, self.alike = shares, signal, per_patient, within, alike
        fixed = np.random.default_rng(7)
        self.mixing = fixed.standard_normal((LATENT, DIMENSIONS)) * (0.85 ** np.arange(LATENT))[:, None]
        self.of_class = fixed.standard_normal((4, LATENT)) * 1.5
        self.direction = fixed.standard_normal(LATENT) / np.sqrt(LATENT)

    def draw(self, patients, rng):
        label = np.arange(patients) % 4
        number = rng.choice(self.per_patient, patients)
        share = np.array(self.shares)[label]
        value = rng.random(patients) < share
        own = rng.standard_normal((patients, LATENT))
        of = np.repeat(np.arange(patients), number)
        code = value[of].astype(int)
        if self.within:  # the attribute of a scan, such as its scanner, differs within a patient
            code = (rng.random(len(of)) < share[of]).astype(int)
        latent = np.sqrt(self.alike) * own[of] + np.sqrt(1 - self.alike) * rng.standard_normal((len(of), LATENT))
        latent += self.of_class[label[of]] + self.signal * (code[:, None] - 0.5) * self.direction * np.sqrt(LATENT)
        features = latent @ self.mixing + 0.5 * rng.standard_normal((len(of), DIMENSIONS))
        return features.astype(np.float32), label[of], code, of


def judged(features, label, code, of, resamples, seed):
    names, n = ("a", "b"), len(label)
    scan = np.arange(n).astype(str)
    table = Predictions(scan, label, label, code, None, CLASSES, names, ("sex",), patient=of)
    tiny = np.zeros((n, 1), np.float32)
    found = Features(scan, features, tiny, tiny, "", "")
    return probe(found, table, "sex", pd.Series(np.array(names)[code]), permutations=resamples, seed=seed)


def row(data, patients, sets, resamples=300):
    rejected, aucs, truth = [], [], []
    rng = np.random.default_rng(0)
    large = data.draw(4000, np.random.default_rng(1))
    for number in range(sets):
        drawn = data.draw(patients, rng)
        reading = judged(*drawn, resamples, number).readings[0]
        features, _, code, of = drawn
        rejected.append(reading.p_value <= 0.05)
        aucs.append(reading.auc)
        chosen = np.isin(of, rng.permutation(patients)[: round(patients * (1 - 1 / FOLDS))])
        if data.signal:
            fitted = make_pipeline(StandardScaler(), Ridge(DIMENSIONS)).fit(features[chosen], code[chosen])
            cells = [np.bincount(2 * of_class + value, minlength=8) for _, of_class, value, _ in (drawn, large)]
            weight = (cells[0] / cells[1])[2 * large[1] + large[2]]  # the mix of classes and values is the design
            truth.append(roc_auc_score(large[2], fitted.predict(large[0]), sample_weight=weight))
    true = np.mean(truth) if truth else 0.5
    covered = np.mean([one.low <= true <= one.high for one in aucs])
    mean, width = np.mean([one.value for one in aucs]), np.mean([one.high - one.low for one in aucs])
    return np.mean(rejected), true, mean, covered, width


def main(sets):
    warnings.simplefilter("ignore")
    print("| patients | scans a patient | attribute | rejected at .05 |\n|---|---|---|---|", flush=True)
    for patients, per, shares, within, said in (
        (155, (1,), EVEN, False, "of the patient, alike in the classes"),
        (155, (1,), UNEVEN, False, "of the patient, .2-.8 of a class"),
        (60, (1,), UNEVEN, False, "of the patient, .2-.8 of a class"),
        (80, (2,), UNEVEN, False, "of the patient, .2-.8 of a class"),
        (80, (1, 2, 3), UNEVEN, False, "of the patient, .2-.8 of a class"),
        (80, (2,), UNEVEN, True, "of the scan, .2-.8 of a class"),
    ):
        rejected, *_ = row(Data(shares, 0.0, per, within), patients, sets)
        print(f"| {patients} | {'-'.join(map(str, sorted({per[0], per[-1]})))} | {said} | {rejected:.3f} |", flush=True)
    print("\n| patients | scans a patient | true AUC | mean AUC found | covered | width | rejected at .05 |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for patients, per, signal in (
        *((155, (1,), signal) for signal in (0.1, 0.2, 0.4, 0.8)),
        (60, (1,), 0.2),
        (60, (1,), 0.4),
        (80, (2,), 0.2),
        (80, (2,), 0.4),
        (80, (1, 2, 3), 0.2),
        (300, (1,), 0.2),
    ):
        rejected, true, mean, covered, width = row(Data(EVEN, signal, per), patients, sets)
        per = "-".join(map(str, sorted({per[0], per[-1]})))
        print(
            f"| {patients} | {per} | {true:.3f} | {mean:.3f} | {covered:.3f} | {width:.3f} | {rejected:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
