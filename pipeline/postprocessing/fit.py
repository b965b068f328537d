"""Post-processing of probabilities: fitted on validation scans, applied to other scans, and shown with its cost.

Every method is one map of a scan's class probabilities p, the same for every group::

    p'_c  proportional to  exp(log p_c / T + b_c)

``temperature`` fits T, ``offsets`` chooses b, ``prior`` computes b from class frequencies. None asks for the group of
a scan: different thresholds for men and women would treat two patients with the same scan differently because of
their sex, and would need the sex of every patient.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from ..evaluation.predictions import LISTED, Predictions
from .fitted import (
    Fitted,
    Method,
    PostprocessError,
    UnlabelledPredictions,
    given_probabilities,
    hashed_name,
    log_probabilities,
    make_fitted,
    mean_nll,
    most_probable_only,
)
from .offsets import fit_offsets
from .prior import fit_prior

TEMPERATURES = (0.05, 20.0)  # the range that is searched; an optimum at one of its ends is refused


def fit_temperature(validation: Predictions) -> Fitted:
    """Temperature scaling: the T that minimises the NLL of softmax(log p / T) on the validation scans.

    One T a model (Guo et al. 2017, Sec. 4.2). The NLL is convex in 1/T, so it has one minimum; PostprocessError when it
    is not in [0.05, 20], or without probabilities.
    """
    from scipy.optimize import minimize_scalar

    log_p, label = log_probabilities(given_probabilities(validation)), validation.label
    search: dict[str, Any] = {"method": "bounded", "options": {"xatol": 1e-9, "maxiter": 1000}}
    ends = np.log(TEMPERATURES)
    found = minimize_scalar(lambda log_t: mean_nll(log_p, label, np.exp(log_t)), bounds=ends, **search)
    temperature = float(np.exp(found.x))
    if np.abs(found.x - ends).min() < 1e-3:
        hits = f"{int((validation.prediction == label).sum())} of the {len(label)} validation scans are predicted right"
        if temperature > 1:
            why = "even probabilities fit these labels better than the model's, which know no more of them than chance"
        else:
            why = "they become likelier the surer every answer is, which holds where none that is sure is wrong"
        raise PostprocessError(
            f"no temperature in [{TEMPERATURES[0]}, {TEMPERATURES[1]}] is best: the likelihood still rises at "
            f"{temperature:.3g}, as {why}. {hits}"
        )
    did = {"nll_before": mean_nll(log_p, label), "nll_after": mean_nll(log_p, label, temperature)}
    no_offsets, settings = dict.fromkeys(validation.class_names, 0.0), {"bounds": list(TEMPERATURES)}
    return make_fitted("temperature", no_offsets, settings, did, validation.scan, temperature)


SETTINGS: dict[Method, tuple[str, ...]] = {
    "temperature": (), "offsets": ("objective", "max_loss"), "prior": ("target", "source"),
}  # fmt: skip


def fit(method: Method, validation: Predictions | UnlabelledPredictions | None = None, **settings: Any) -> Fitted:
    """Fit a method by its name; settings are those of :func:`fit_temperature`, :func:`fit_offsets`, :func:`fit_prior`.

    ValueError: no such method or setting, or one out of range. PostprocessError: it cannot be fitted on these scans.
    """
    if method not in SETTINGS:
        raise ValueError(f"method must be one of {', '.join(SETTINGS)}, got {method!r}")
    for name in settings:
        if name not in SETTINGS[method]:
            raise ValueError(f"{method} has no setting {name}; it has {', '.join(SETTINGS[method]) or 'none'}")
    if method == "prior":
        return fit_prior(validation, **settings)
    if not isinstance(validation, Predictions):
        raise PostprocessError(f"{method} is fitted on labelled validation scans, and there are none")
    return (fit_temperature if method == "temperature" else fit_offsets)(validation, **settings)


def describe(fitted: Fitted) -> str:
    """One line: what was fitted, on how many scans, and what it did on them."""
    numbers, settings = fitted.validation, fitted.settings
    if fitted.method == "temperature":
        what = f"temperature T = {fitted.temperature:.4g}"
        did = "there the NLL fell from {nll_before:.3f} to {nll_after:.3f}".format(**numbers)
    elif fitted.method == "offsets":
        what = "offsets of log p: " + ", ".join(f"{name} {value:+.3f}" for name, value in fitted.offsets.items())
        did = "there P went from {score_before:.3f} to {score_after:.3f} and |gap| from {abs_gap_before:.3f} to "
        did = (did + "{abs_gap_after:.3f}; expect less on others").format(**numbers)
    else:
        shares = (f"{name} {settings['source'][name]:.3g} to {share:.3g}" for name, share in settings["target"].items())
        what = "prior, class frequencies from those of the model to the target's: " + ", ".join(shares)
        did = {"labels": "by their labels", "em": "estimated without labels"}.get(settings["from"], "")
    scans = f"fitted on {numbers['n']} scans, {did}" if numbers["n"] else "frequencies as named, fitted on no scan"
    return f"{what} ({scans})"


def apply(fitted: Fitted, predictions: Predictions) -> Predictions:
    """Post-processed predictions of scans that the method was not fitted on.

    Temperature keeps every prediction; the others predict the class that has become the most probable.

    PostprocessError: no probabilities, other classes, a scan that it was fitted on, or (not for temperature)
    predictions that were not the most probable class before.
    """
    probabilities = given_probabilities(predictions)
    changed = fitted.transform(probabilities, predictions.class_names)
    seen = set(fitted.scans)
    if known := [name for name in predictions.scan.tolist() if hashed_name(name) in seen]:
        more = f" and {len(known) - LISTED} more" if len(known) > LISTED else ""
        raise PostprocessError(
            f"{len(known)} of the {len(predictions.scan)} scans are among those that {fitted.method} was fitted on "
            f"({', '.join(known[:LISTED])}{more}). On them it looks better than it is: fit on the validation split, "
            "judge on scans that chose nothing"
        )
    if fitted.method == "temperature":
        return replace(predictions, probabilities=changed)
    most_probable_only(predictions)
    return predictions.with_probabilities(changed)
