"""How well an attribute, such as sex or site, can be read from a network's features: a linear probe, patient-safe."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from fairlung.transforms.checks import check_setting

from ..common import run_folder
from ..common.errors import UserError
from ..common.files import json_or_nothing, replacing
from ..common.names import UNKNOWN
from ..common.text import named
from ..data.cohort_checks import NO_AGE, banded, check_age_bands
from ..data.groups import AGE, AGE_BAND, MISSING
from ..evaluation.calibration import auc_interval
from ..evaluation.patient_column import warn_of_repeated
from ..evaluation.predictions import Predictions
from ..evaluation.records import Chance, read_record, to_plain
from ..evaluation.resampling import TIE, Estimate, Floats
from ..evaluation.wording import Verdict, span_text, value_text

if TYPE_CHECKING:
    from .features import Features

FOLDS = 5
FOLDS_SHARE = 1.25  # by which the variance of an AUC over folds is raised
LEAST = 10  # patients of a value; of fewer nothing is said
KIND_NAMES = {
    "network": "the network", "untrained": "the network before its training", "image": "statistics of the image",
}  # fmt: skip
NOT_USED = "That an attribute can be read does not show that the answers rest on it."
Ints = NDArray[np.int64]


class ProbeError(UserError, ValueError):
    """An attribute that cannot be probed; says why."""


@dataclass(frozen=True)
class ClassReading:
    """The probe's AUC among the scans of one class."""

    class_name: str
    n: int  # scans
    auc: Estimate


@dataclass(frozen=True)
class Reading:
    """What a probe reads from the features of one kind."""

    kind: str  # network, untrained or image
    features: int
    auc: Estimate  # of two values the AUC, of more the mean over values, each against the rest
    chance: Chance  # the AUC when targets are shuffled within classes
    p_value: float
    classes: tuple[ClassReading, ...]  # those with enough patients of two values and more


@dataclass(frozen=True)
class Probe:
    """How well one attribute can be read from the features of one evaluation."""

    target: str
    values: dict[str, int]  # scans of each value
    left_out: dict[str, int]  # scans of values of too few patients; "" are those without a value
    n: int
    patients: int
    untrained_is: str  # which weights the untrained network has
    confidence: float
    permutations: int
    seed: int
    readings: tuple[Reading, ...]
    verdict: Verdict


@dataclass(frozen=True)
class Probes:
    """The content of probe.json: a probe an attribute."""

    probes: tuple[Probe, ...]


# ---- maths -----------------------------------------------------------------------------------------------------------
def ridge_weights(features: NDArray[np.floating], fold: Ints) -> Floats:
    """[N, N] matrix S: the out-of-fold scores of a ridge regression on targets y [N, ...] are S y.

    Row i is of the ridge (Hoerl and Kennard 1970) that the scans of all other folds fit, on features standardised
    there and with penalty D, the number of features: with Z = standardised features / sqrt(D) and K = Z Z', it is
    (z_i Z') (K + I)^-1 (I - 11'/n) + 1'/n. scikit-learn's StandardScaler and Ridge(alpha=D) give the same. S does not
    depend on the targets, so that a thousand permutations cost one product of matrices.
    """
    scores = np.zeros((len(fold), len(fold)))
    for held_out in np.unique(fold):
        out, rest = np.flatnonzero(fold == held_out), np.flatnonzero(fold != held_out)
        mean, sd = features[rest].mean(0, dtype=float), features[rest].std(0, dtype=float)
        z = (features - mean) / np.where(sd > 0, sd, 1) / np.sqrt(features.shape[1])
        solved = np.linalg.solve(z[rest] @ z[rest].T + np.eye(len(rest)), z[rest] @ z[out].T).T
        scores[np.ix_(out, rest)] = solved - solved.mean(1, keepdims=True) + 1 / len(rest)
    return scores


def auc_of(scores: Floats, positive: NDArray[np.bool_]) -> Floats:
    """[B] ROC AUC of each column of ``scores`` and ``positive`` [N, B], ties half (Mann and Whitney)."""
    ranks, n = rankdata(scores, axis=0), positive.sum(0)
    return ((ranks * positive).sum(0) - n * (n + 1) / 2) / (n * (len(scores) - n))


def macro_auc(weights: Floats, target: Ints) -> Floats:
    """[B] AUC of the scores ``weights`` @ target, for targets [N, B] of K values: the mean of each against the rest."""
    judged = [1] if target.max() == 1 else range(target.max() + 1)
    return np.mean([auc_of(weights @ (target == value), target == value) for value in judged], axis=0)


def probe_interval(scores: Floats, target: Ints, patient: Ints, confidence: float) -> Estimate:
    """:func:`.auc_interval` of out-of-fold scores [N, K] over patients, with a variance that is raised by a quarter.

    Four fifths of the scans fit every two of the probes, so that their AUCs vary together, which the variance of given
    scores does not know; by how much was chosen by simulation (benchmarks/shortcuts.py, docs/statistics.md). The scans
    of a patient count as one scan, the design effect of a correlation of 1.
    """
    sizes = np.bincount(patient)
    effect = float((sizes**2).sum() / sizes.sum())
    wide = float(2 * norm.cdf(norm.ppf((1 + confidence) / 2) * np.sqrt(FOLDS_SHARE)) - 1)
    return auc_interval(target, scores, wide, patient if effect > 1 else None, effect)


@dataclass(frozen=True)
class Scans:
    """N scans of the patients 0 ... P - 1: the value to be read, the class, whose they are, and the fold, all [N]."""

    value: Ints
    label: Ints
    patient: Ints
    fold: Ints

    def shuffled(self, permutations: int, rng: np.random.Generator) -> Ints:
        """[N, B] values, those of whole patients moved to their like, and shuffled within a patient.

        Alike are patients of one fold who have as many scans of each class.
        """
        like = np.zeros((self.patient.max() + 1, self.label.max() + 2), dtype=np.int64)
        np.add.at(like, (self.patient, self.label), 1)
        size = like.sum(1)
        like[self.patient, -1] = self.fold
        _, kind = np.unique(like, axis=0, return_inverse=True)
        order, start = np.argsort(self.patient, kind="stable"), np.cumsum(size) - size
        found = np.empty((len(self.value), permutations), dtype=np.int64)
        for members in (np.flatnonzero(kind.ravel() == k) for k in range(kind.max() + 1)):
            rows = order[start[members][:, None] + np.arange(size[members[0]])]  # [M, S]
            blocks = np.broadcast_to(self.value[rows], (permutations, *rows.shape))
            moved = rng.permuted(np.broadcast_to(np.arange(len(members)), (permutations, len(members))), axis=1)
            blocks = np.take_along_axis(blocks, moved[:, :, None], axis=1)
            found[rows] = np.moveaxis(rng.permuted(blocks, axis=2), 0, -1)
        return found


# ---- a table ---------------------------------------------------------------------------------------------------------
def probe(
    features: Features, table: Predictions, target: str, values: pd.Series, permutations: int = 1000,
    confidence: float = 0.95, seed: int = 0,
) -> Probe:  # fmt: skip
    """How well ``values`` [N] of the attribute ``target`` can be read from features, by a cross-validated linear probe.

    Folds keep a patient's scans together and are stratified by class and value. The AUC is over the out-of-fold scores
    of all scans; its interval (:func:`probe_interval`) speaks of such a probe on other patients of the same mix of
    classes and values. p = (1 + #{AUC* >= AUC}) / (1 + B) over permutations that move the targets of whole patients
    between patients of the same classes, number of scans and fold: the null is that features say nothing of the
    attribute once the class is known, so that the mix of diseases alone is not readable.

    Raises:
        ProbeError: fewer than two values have :data:`LEAST` patients, or features are not of the table's scans.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    check_setting("confidence", confidence, 0 < confidence < 1, "in (0, 1)")
    check_setting("permutations", permutations, permutations >= 100, "at least 100")
    if list(features.scan) != list(table.scan):
        raise ProbeError(
            "features.npz is not of the scans of predictions.csv: evaluate again with --save_features True"
        )
    if table.patient is None:
        warn_of_repeated(table.scan.tolist())
    patient = np.arange(len(table.scan)) if table.patient is None else table.patient
    texts = values.where(~values.str.casefold().isin({*MISSING, UNKNOWN}), "").to_numpy(dtype=str)
    of_value = pd.Series(patient).groupby(texts).nunique()
    names = sorted(str(name) for name, count in of_value.items() if name and count >= LEAST)
    if len(names) < 2:
        said = ", ".join(f"{name} {count}" for name, count in of_value.items() if name) or "none"
        raise ProbeError(f"{target} needs two values of {LEAST} patients and more, got patients of {said}")
    kept = np.isin(texts, names)
    code = np.searchsorted(names, texts[kept])
    patient, label = patient[kept], table.label[kept]
    _, stratum = np.unique(np.column_stack([label, code]), axis=0, return_inverse=True)
    fold = np.zeros(len(code), dtype=np.int64)
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # some class and value has fewer patients than there are folds
        for number, (_, held_out) in enumerate(splitter.split(code, stratum.ravel(), patient)):
            fold[held_out] = number
    _, of = np.unique(patient, return_inverse=True)
    scans = Scans(code, label, of, fold)
    about = scans.shuffled(permutations, np.random.default_rng(seed)), table.class_names, confidence
    readings = tuple(_read(kind, found[kept], scans, *about) for kind, found in features.kinds().items())
    left = {str(name): int(count) for name, count in pd.Series(texts[~kept]).value_counts().items()}
    found = {name: int((code == k).sum()) for k, name in enumerate(names)}
    return Probe(
        target, found, left, len(code), int(of.max()) + 1, features.untrained_is, confidence, permutations, seed,
        readings, _verdict(target, readings[0], confidence),
    )  # fmt: skip


def _read(
    kind: str, features: NDArray[np.float32], scans: Scans, shuffled: Ints, class_names: Sequence[str],
    confidence: float,
) -> Reading:  # fmt: skip
    weights, code = ridge_weights(features, scans.fold), scans.value
    scores = weights @ np.eye(code.max() + 1)[code]
    value, chance = float(macro_auc(weights, code[:, None])[0]), macro_auc(weights, shuffled)
    p_value = (1 + int((chance >= value - TIE).sum())) / (1 + len(chance))
    classes = []
    for c, name in enumerate(class_names):
        inside = scans.label == c
        patients = pd.Series(scans.patient[inside]).groupby(code[inside]).nunique()
        if len(patients) == code.max() + 1 and patients.min() >= LEAST:
            _, patient = np.unique(scans.patient[inside], return_inverse=True)
            found = probe_interval(scores[inside], code[inside], patient, confidence)
            classes.append(ClassReading(name, int(inside.sum()), found))
    auc = probe_interval(scores, code, scans.patient, confidence)
    null = Chance(float(chance.mean()), float(np.quantile(chance, confidence)))
    return Reading(kind, features.shape[1], auc, null, p_value, tuple(classes))


def _verdict(target: str, reading: Reading, confidence: float) -> Verdict:
    """A finding needs both: a small p, and an interval above what shuffled targets give on average."""
    numbers = f"AUC {span_text(reading.auc)}, {value_text(reading.chance.mean)} if targets are shuffled within classes"
    numbers += f", p {reading.p_value:.3g}"
    level: Literal["finding", "inconclusive"] = "inconclusive"
    if reading.p_value <= 1 - confidence and reading.auc.low > reading.chance.mean:
        level, said = "finding", f"{target} can be read from the network's features ({numbers})."
    else:
        said = f"Whether {target} can be read from the network's features is not settled ({numbers})."
    return Verdict(level, f"{said} {NOT_USED}")


# ---- files -----------------------------------------------------------------------------------------------------------
def attribute(
    table: pd.DataFrame, target: str, beside: pd.DataFrame | None = None, edges: Sequence[int] | None = None,
    known_edges: Sequence[int] | None = None,
) -> pd.Series:  # fmt: skip
    """[N] the column ``target`` of a table of predictions, or of one ``beside`` it that has a column scan.

    Where there is no column ``age_band``, it is made of the column ``age`` as in a cohort, with the ``edges`` that were
    asked for, else with those of the run. ProbeError where a column or the edges lack, or something is no age.
    """
    if target == AGE_BAND:
        if AGE_BAND not in (table if beside is None else beside):
            return _age_band(table, attribute(table, AGE, beside), edges or known_edges)
        if edges:
            raise ProbeError(f"there is a column {AGE_BAND!r} already; leave out --age-bands")
    if beside is None:
        if target not in table:
            raise ProbeError(f"predictions.csv has no column {target!r}: name a table that has it with --table")
        return table[target]
    if missing := [column for column in ("scan", target) if column not in beside]:
        raise ProbeError(f"--table has no column {missing[0]!r}; it has {', '.join(map(str, beside))}")
    if twice := beside["scan"].duplicated().sum():
        raise ProbeError(f"--table names {twice} scans twice")
    found = table["scan"].map(beside.set_index("scan")[target])
    if lacking := int(found.isna().sum()):
        raise ProbeError(f"--table has no row for {lacking} of {len(table)} scans of predictions.csv")
    return found


def _age_band(table: pd.DataFrame, ages: pd.Series, edges: Sequence[int] | None) -> pd.Series:
    if not edges:
        raise ProbeError(f"{AGE_BAND} is made of the column {AGE!r}: name the edges of the bands, as by --age-bands 65")
    bands, wrong = banded(ages.rename(AGE), check_age_bands(list(edges)))
    if wrong.any():
        more = f" and {wrong.sum() - 1} more" if wrong.sum() > 1 else ""
        raise ProbeError(f"{named(table['scan'][wrong].iloc[0])}{more}: {NO_AGE}")
    return pd.Series(bands, index=table.index, dtype=str)


def trained_age_bands(evaluation_dir: str | Path) -> Sequence[int] | None:
    """The edges that the training of the judged checkpoint made its column age_band with; None where it made none."""
    folder = Path(evaluation_dir).absolute()
    checkpoint = json_or_nothing(folder / run_folder.METRICS).get("checkpoint")
    training = run_folder.training_dir(checkpoint, folder.parents[1])
    return json_or_nothing(training / run_folder.SETTINGS).get("age_bands") if training else None


def read_probes(folder: str | Path) -> tuple[Probe, ...]:
    """The probes of an evaluation, none where there is no probe.json; ProbeError for a damaged one."""
    path = Path(folder, run_folder.PROBE)
    try:
        return read_record(Probes, path).probes
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise ProbeError(f"{path} cannot be read: {error}") from error


def write_probe(folder: str | Path, made: Probe) -> Path:
    """Put a probe into probe.json, in the place of an earlier one of the same attribute."""
    path = Path(folder, run_folder.PROBE)
    kept: Mapping[str, Probe] = {one.target: one for one in read_probes(folder)} | {made.target: made}
    with replacing(path) as part:
        part.write_text(json.dumps(to_plain(Probes(tuple(kept.values()))), indent=2) + "\n", encoding="utf-8")
    return path
