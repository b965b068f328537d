"""What the numbers of one model on one set of labelled scans can bear: intervals, tests, calibration and verdicts.

The numbers of scans of each class and group are the design, not chance: resampling is stratified by class and group.
Where patients have several scans, patients are drawn instead (patients.py).
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from ..common import run_folder
from ..common.distributed import is_primary
from ..common.errors import UserError
from ..common.files import replacing
from ..data.groups import MIN_CELL, group_columns
from . import records
from .audit_words import verdicts
from .calibration import group_calibration
from .clinical import SPECIFICITY, clinical, normal_class
from .fairness_criteria import (
    IntervalMethod,
    beyond_fair,
    confusion_intervals,
    differences,
    equivalence,
    fair_model,
    lowest,
    over_sites,
    permutation_test,
    resampled,
    standardised,
    summaries,
)
from .patient_column import warn_of_repeated
from .patients import Clusters, DesignEffects, design_effects
from .predictions import Judged, Predictions, as_predictions, load_predictions
from .records import Audit, Power
from .resampling import TIE, CheckedEstimate, Floats, check_resampling, estimate, partly_pooled, wilson
from .sensitivity import tipping_point
from .wording import POWER

logger = logging.getLogger(__name__)


class NoAuditError(UserError):
    """The scans allow no statement on fairness; the message says why."""


def power_of_gap(
    gap: float, standard_error: float, n: int, confidence: float = 0.95, unsmoothed: float | None = None
) -> Power:
    """The gap that ``n`` scans can show, and the scans that one of size ``gap`` needs (normal approximation).

    ``unsmoothed`` is the standard error of the observed shares, see :func:`scans_for`. No number of scans shows a
    difference that is none (:data:`TIE`).
    """
    from scipy.stats import norm

    quantiles = float(norm.ppf(1 - (1 - confidence) / 2) + norm.ppf(POWER))
    detectable = quantiles * standard_error
    if abs(gap) <= TIE:
        return Power(detectable, None)
    return Power(detectable, float(np.ceil(scans_for(abs(gap) / quantiles, n, standard_error, unsmoothed))))


def scans_for(target: float, n: float, standard_error: float, unsmoothed: float | None = None) -> float:
    """The scans with which the standard error of the gap is ``target``, where that of ``n`` scans is known.

    Smoothing adds one scan a row whatever their number, so that it is less on more scans: with V1 the squared standard
    error at n scans and V0 that of the observed shares (``unsmoothed``; without it V0 = V1), the one at k n scans is
    V0 / k + (V1 - V0) / k^2.
    """
    observed, wanted = standard_error**2, target**2
    plain = observed if unsmoothed is None else min(observed, unsmoothed**2)
    return float(n * (plain + np.sqrt(plain**2 + 4 * wanted * (observed - plain))) / (2 * wanted))


def group_scores(predictions: Predictions) -> dict[str, float]:
    """Macro F1 of each group by scikit-learn through fairlearn's MetricFrame: the independent reading."""
    from fairlearn.metrics import MetricFrame
    from sklearn.metrics import f1_score

    known = predictions.known()

    def macro_f1(true: Any, said: Any) -> float:
        return float(f1_score(true, said, labels=range(len(known.class_names)), average="macro", zero_division=0))

    group = np.array(known.group_names)[known.group]
    frame = MetricFrame(metrics=macro_f1, y_true=known.label, y_pred=known.prediction, sensitive_features=group)
    return {str(group): float(value) for group, value in frame.by_group.items()}


def audit(
    predictions: Judged, resamples: int = 10_000, permutations: int = 10_000, confidence: float = 0.95,
    method: IntervalMethod = "smoothed", seed: int = 0, min_cell: int = MIN_CELL, normal: str | None = None,
    specificity: float = SPECIFICITY, margin: float | None = None,
    duplicates: records.NearDuplicates | None = None,
) -> Audit:  # fmt: skip
    """Everything that can be said of one table of predictions.

    Scans of unknown group (``n_unknown``) and groups without a scan (``absent_groups``) are named and left out.

    Args:
        predictions: a table with a row a scan: a data frame of pandas, or the path of a CSV, with the columns
            ``label``, ``sex`` or ``group``, ``prediction`` or one ``prob_<class>`` a class, and perhaps ``scan`` and
            ``patient``. :func:`~.load_predictions` reads one with other names.
        resamples: bootstrap draws; 1/5 of it for what needs every scan's probability (AUC, calibration).
        method: of the bootstrap, see :func:`confusion_intervals`.
        min_cell: scans of a class and group below which no statement about the cell is made.
        normal: the class of those who have no disease, by default the one that is called so (:func:`.normal_class`).
        specificity: at which sensitivities are compared.
        margin: of the gap, within which the groups count as served alike; None makes no claim of equivalence.
        duplicates: what was found of the judged patients in another split; None says nothing of it.

    Raises:
        NoAuditError: fewer than two groups have a scan.
        PredictionsError: a table that cannot be judged.
        ValueError: a setting is out of range.

    Example:
        >>> import pandas as pd
        >>> from fairlung.pipeline import audit
        >>> table = pd.DataFrame({"label": ["covid", "normal"] * 40, "sex": ["male"] * 40 + ["female"] * 40})
        >>> table["prediction"] = table["label"]
        >>> table.loc[40:59, "prediction"] = ["normal", "covid"] * 10  # half of the women wrong
        >>> result = audit(table, resamples=500, permutations=500)
        >>> result.overall.gap.value
        0.5
        >>> print(result.verdicts[0].level, "|", result.verdicts[0].text.split(",")[0])
        finding | The gap of +0.500 (male minus female
        >>> result.to_frame().query("group == 'female' and number == 'recall'")[["class", "n", "value"]]
             class   n  value
        15   covid  20    0.5
        18  normal  20    0.5
    """
    predictions = as_predictions(predictions)
    check_resampling(confidence, resamples, permutations, min_cell)
    if method not in get_args(IntervalMethod):
        raise ValueError(f"method must be one of {', '.join(get_args(IntervalMethod))}, got {method!r}")
    if not 0 < specificity < 1:
        raise ValueError(f"specificity must be in (0, 1), got {specificity}")
    normal = normal_class(predictions.class_names, normal)
    if margin is not None and not 0 < margin < 1:
        raise ValueError(f"margin must be in (0, 1), got {margin}")
    if margin is not None and confidence <= 0.5:  # there is no interval at 1 - 2 (1 - confidence)
        raise ValueError(f"a margin needs a confidence above 0.5, got {confidence}")
    known = predictions.known().present_groups()
    if len(known.group_names) < 2:
        names = ", ".join(known.group_names) or "none"
        raise NoAuditError(f"an audit of fairness needs scans of two groups at least; there are scans of: {names}")
    if known.patient is None:
        warn_of_repeated(known.scan.tolist())
    rng, patients = np.random.default_rng(seed), Clusters.of(known)
    confusion = known.confusion()[:-1]
    found, draws = confusion_intervals(confusion, rng, resamples, confidence, method, patients)
    together = patients.pooled() if patients else None
    pooled, _ = confusion_intervals(confusion.sum(0, keepdims=True), rng, resamples, confidence, method, together)
    fair_draws = fair_model(confusion, resamples, rng, patients)
    of_scans, plain, shared, of_curves = rng.spawn(4)  # so that what needs probabilities moves no other number
    of_parity, mixed, wrong = rng.spawn(3)
    effects = design_effects(patients, confusion)
    of_groups = (found["group_f1"], max(100, resamples // 5), confidence, of_scans, effects.accuracy)
    groups = _groups(known, confusion, *of_groups)
    cells = _cells(known, confusion, found["cell_f1"], confidence, min_cell, effects)
    settings = records.AuditSettings(resamples, permutations, confidence, method, seed, min_cell)
    p_value = permutation_test(confusion, permutations, rng, patients)
    evidence = _gap_evidence(confusion, found, draws, fair_draws, p_value, settings, plain, patients)
    filled = confusion.sum(-1) > 0
    if (filled.any(0) == filled.all(0)).all() and min(group.n for group in groups) >= min_cell:  # else nothing is said
        evidence["equivalence"] = equivalence(found, draws, confidence, margin)
        evidence["standardised"] = standardised(confusion, mixed, settings, patients, known.class_names)
        if evidence["permutation"].p_value is not None:
            evidence["tipping_point"] = tipping_point(known, settings, found, evidence["fair_model"], p_value, wrong)
    result = Audit(
        n=len(known.label), n_unknown=len(predictions.label) - len(known.label),
        postprocess=predictions.postprocess, synthetic=predictions.synthetic,
        class_names=known.class_names, group_names=known.group_names, group_by=known.group_by,
        absent_groups=tuple(name for name in predictions.group_names if name not in known.group_names),
        settings=settings,
        overall=records.Overall(
            score=estimate(*found["score"]), f1_macro=estimate(*pooled["score"]),
            **{name: estimate(*found[name]) for name in ("gap", "abs_gap") if name in found},
        ),
        groups=groups, cells=cells, worst_cell=_worst_cell(cells, draws["cell_f1"], fair_draws["cell_f1"]),
        **evidence, shared_classes=_shared_classes(known, settings, shared),
        n_not_most_probable=int(known.not_most_probable().sum()),
        patients=patients.worth() if patients else None, by_site=over_sites(known, confidence),
        differences=differences(known, of_parity, settings, patients), confusion=confusion.tolist(),
        clinical=clinical(known, of_curves, max(100, resamples // 5), confidence, normal, specificity, min_cell),
        lowest=lowest(found, draws, known, confidence), duplicates=duplicates,
    )  # fmt: skip
    return replace(result, verdicts=tuple(verdicts(result)))


def write_audit(
    predictions: str | Path, class_names: Sequence[str], group_names: Sequence[str],
    group_by: str | Sequence[str] = "sex", confidence: float = 0.95, resamples: int = 10_000, min_cell: int = MIN_CELL,
    margin: float | None = None, duplicates: records.NearDuplicates | None = None,
) -> Audit | None:  # fmt: skip
    """Audit a prediction table into audit.json beside it, for the end of an evaluation.

    Returns None in processes other than the first, and, with a warning, where the scans allow no audit.
    """
    if not is_primary():
        return None
    path = Path(predictions).with_name(run_folder.AUDIT)
    path.unlink(missing_ok=True)  # an earlier evaluation may have left one
    names = class_names, group_names, group_columns(group_by)
    try:
        table, limits = load_predictions(predictions, *names), {"min_cell": min_cell, "margin": margin}
        result = audit(table, resamples, resamples, confidence, duplicates=duplicates, **limits)  # type: ignore[arg-type]
    except (NoAuditError, ImportError) as error:  # an evaluation is worth keeping without its audit
        logger.warning("no audit: %s", error)
        return None
    path.write_text(records.json_text(result))
    return result


def add_duplicates(evaluation_dir: str | Path, found: records.NearDuplicates) -> None:
    """Put what a later search found into the audit.json of an evaluation, where there is one."""
    path = Path(evaluation_dir, run_folder.AUDIT)
    if path.is_file():
        result = replace(_written(path), duplicates=found)
        with replacing(path) as part:
            part.write_text(records.json_text(replace(result, verdicts=tuple(verdicts(result)))), encoding="utf-8")


def known_duplicates(predictions: Path) -> records.NearDuplicates | None:
    """What the audit of an evaluation says of its table of predictions; None without one."""
    path = predictions.with_name(run_folder.AUDIT)
    ours = predictions.name == run_folder.PREDICTIONS and path.is_file()
    return _written(path).duplicates if ours else None


def _written(path: Path) -> Audit:
    try:
        return records.read_record(Audit, path)
    except (OSError, ValueError) as error:
        raise NoAuditError(f"{path} cannot be read: {error}") from error


def _groups(
    known: Predictions, confusion: NDArray[Any], f1: Sequence[Floats], resamples: int, confidence: float,
    rng: np.random.Generator, effects: Floats,
) -> tuple[records.GroupResult, ...]:  # fmt: skip
    by_fairlearn = group_scores(known)
    calibration = group_calibration(known, rng, resamples, confidence)
    groups = []
    for g, name in enumerate(known.group_names):
        hits, n = int(confusion[g].trace()), int(confusion[g].sum())
        macro_f1 = CheckedEstimate(*estimate(*(part[g] for part in f1)), by_fairlearn[name])
        accuracy = wilson(hits, n, confidence, effects[g])
        groups.append(records.GroupResult(name, n, macro_f1, accuracy, calibration.get(name)))
    return tuple(groups)


def _cells(
    known: Predictions, confusion: NDArray[Any], f1: Sequence[Floats], confidence: float, min_cell: int,
    effects: DesignEffects,
) -> tuple[records.Cell, ...]:  # fmt: skip
    cells = []
    right, scans = np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(-1)
    pooled = partly_pooled(right / effects.recall, scans / effects.recall, confidence)
    for (g, group), (c, name) in product(enumerate(known.group_names), enumerate(known.class_names)):
        hits, n, predicted = (int(k) for k in (confusion[g, c, c], confusion[g, c].sum(), confusion[g, :, c].sum()))
        precision = wilson(hits, predicted, confidence, effects.precision[g, c])
        recall = wilson(hits, n, confidence, effects.recall[g, c])
        found = estimate(*(part[g, c] for part in f1))
        cells.append(records.Cell(group, name, n, predicted, precision, recall, found, n < min_cell, pooled[g, c]))
    return tuple(cells)


def _worst_cell(cells: Sequence[records.Cell], draws: Floats, fair_draws: Floats) -> records.WorstCell:
    filled = [index for index, cell in enumerate(cells) if cell.n]
    worst = min(filled, key=lambda index: cells[index].f1.value)
    lowest = draws.reshape(len(draws), -1)[:, filled].argmin(1)
    share, cell = float((lowest == filled.index(worst)).mean()), cells[worst]
    tied = sum(cells[index].f1.value <= cell.f1.value + TIE for index in filled)
    fair = fair_draws.reshape(len(fair_draws), -1)[:, worst]
    p_value = float((1 + (fair <= cell.f1.value + TIE).sum()) / (1 + len(fair)))
    found = cell.group, cell.class_name, cell.n, cell.f1, cell.small, share, cell.recall, tied
    return records.WorstCell(*found, float(fair.mean()), p_value)


def _gap_evidence(
    confusion: NDArray[Any], found: Mapping[str, Any], draws: Mapping[str, Floats], fair: Mapping[str, Floats],
    p_value: float, settings: records.AuditSettings, rng: np.random.Generator, patients: Clusters | None,
    ratio: float = 1.0,
) -> dict[str, Any]:  # fmt: skip
    """What the gap is held against: a fair model, the permutation test, and with two groups the power.

    ``found``, ``draws`` and ``fair`` are ``ratio`` times what :func:`summaries` says of ``confusion``.
    """
    confidence = settings.confidence
    tail = (1 - confidence) / 2
    expected = [fair["abs_gap"].mean(), np.quantile(fair["abs_gap"], confidence)]
    tested, power = "abs_gap", None  # the largest of several differences is not normally distributed around 0
    if "gap" in found:
        tested, mean = "gap", float(fair["gap"].mean())
        expected += [mean, *np.quantile(fair["gap"], [tail, 1 - tail])]
        plain = summaries(resampled(confusion, settings.resamples, rng, "percentile", patients)[0])["gap"]
        distance, errors = beyond_fair(float(found["gap"][0]), mean), (draws["gap"].std(), ratio * plain.std())
        power = power_of_gap(distance, float(errors[0]), int(confusion.sum()), confidence, float(errors[1]))
    stayed = patients.stayed() if patients else None
    alone = (confusion.sum(-1) > 0).sum(0).max() < 2  # every class is of one group: there is nothing to shuffle
    permutation = records.Permutation(tested, None if alone or stayed == confusion.sum() else p_value, stayed)
    return {"fair_model": records.FairModel(*map(float, expected)), "permutation": permutation, "power": power}


def _shared_classes(
    known: Predictions, settings: records.AuditSettings, rng: np.random.Generator
) -> records.SharedClasses | None:
    """The gap over the scans of the classes that every group has, where a group lacks one that another has.

    Without its scans a class has an F1 of 0 in every group, so that a mean over the others is that over all classes
    times their numbers' ratio.
    """
    confusion = known.confusion()[:-1]
    has = confusion.sum(-1) > 0
    shared = has.all(0)
    if not shared.any() or (shared == has.any(0)).all():
        return None
    counts, ratio = np.where(shared[:, None], confusion, 0), len(shared) / int(shared.sum())
    method = cast(IntervalMethod, settings.method)
    patients = Clusters.of(known.take(shared[known.label]))
    found, draws = confusion_intervals(counts, rng, settings.resamples, settings.confidence, method, patients)
    drawn, fair = (
        {name: ratio * part for name, part in numbers.items()}
        for numbers in (draws, fair_model(counts, settings.resamples, rng, patients))
    )
    p_value = permutation_test(counts, settings.permutations, rng, patients)
    of_gap = {name: np.clip(ratio * np.array(found[name]), -1, 1) for name in found if name in ("gap", "abs_gap")}
    return records.SharedClasses(
        class_names=tuple(np.array(known.class_names)[shared].tolist()), group_scans=tuple(counts.sum((1, 2)).tolist()),
        gap=estimate(*of_gap["gap"]) if "gap" in of_gap else None, abs_gap=estimate(*of_gap["abs_gap"]),
        **_gap_evidence(counts, of_gap, drawn, fair, p_value, settings, rng, patients, ratio),
    )  # fmt: skip
