"""Probabilities moved from one class prior to another."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np

from ..evaluation.predictions import Predictions
from ..evaluation.resampling import Floats
from .fitted import Fitted, PostprocessError, UnlabelledPredictions, given_probabilities, log_probabilities, make_fitted

EM_STEPS = 10_000
EM_TOLERANCE = 1e-9  # change of a class frequency at which EM has settled


def fit_prior(
    validation: Predictions | UnlabelledPredictions | None = None,
    target: Mapping[str, float] | Literal["labels", "em"] = "labels", source: Mapping[str, float] | None = None,
) -> Fitted:  # fmt: skip
    """Correction for the class frequencies of the target population (Saerens et al. 2002, Eq. 2.4).

    p'_c is proportional to p_c target_c / source_c. A network trained with logit adjustment (tau = 1) answers as if
    classes were even; one trained with plain cross-entropy answers under the frequencies of its training split.

    Args:
        validation: scans of the target population; only ``labels`` and ``em`` need them.
        target: class frequencies or counts by name; or ``labels``, the counts of the true classes of
            ``validation``; or ``em``, estimated from the probabilities alone (:func:`estimate_prior`).
        source: class frequencies or counts under which the probabilities were given; None is even.

    Raises:
        ValueError: a frequency is missing, not finite or not above 0, or ``target`` is none of the above.
        PostprocessError: scans, labels or probabilities are missing, a class has no scan, or EM leaves one with none.
    """
    scan: Iterable[str] = ()
    if not isinstance(target, str):
        if validation is not None:
            raise ValueError("the target's class frequencies are named; no scans are needed to fit on")
        how, names = "numbers", tuple(target)
        wanted, given = _shares(target, names, "target"), _source(source, names)
    else:
        if target not in ("labels", "em"):
            raise ValueError(f"target must be labels, em or a frequency for each class, got {target!r}")
        if validation is None:
            raise PostprocessError("no validation scans to take class frequencies from, and no frequencies named")
        how, names, scan = target, validation.class_names, validation.scan
        given = _source(source, names)
        if target == "em":
            wanted = estimate_prior(given_probabilities(validation), given)
            if len(none := np.flatnonzero(wanted * len(validation.scan) < 0.5)):
                text = f"by the estimate no scan is {names[none[0]]!r}; with it the class would never be predicted."
                raise PostprocessError(f"{text} Name the frequencies instead")
        elif isinstance(validation, Predictions):
            counts = np.bincount(validation.label, minlength=len(names))
            if (counts == 0).any():
                empty = ", ".join(repr(name) for name, n in zip(names, counts, strict=True) if n == 0)
                raise PostprocessError(f"no scan of class {empty}: with frequency 0 it would never be predicted")
            wanted = counts / counts.sum()
        else:
            raise PostprocessError("the scans have no labels to count; estimate the frequencies (em) or name them")
    offsets = np.log(wanted) - np.log(given)
    numbers = (offsets - offsets.mean(), wanted, given)
    by_name, target_shares, source_shares = (dict(zip(names, part.tolist(), strict=True)) for part in numbers)
    return make_fitted("prior", by_name, {"from": how, "target": target_shares, "source": source_shares}, {}, scan)


def estimate_prior(probabilities: Floats, source: Floats) -> Floats:
    """Class frequencies of unlabelled scans by expectation maximisation (Saerens et al. 2002, Eq. 2.9).

    w_ic proportional to p_ic pi_c / source_c;  pi_c = mean_i w_ic;  until pi settles (else PostprocessError). It
    maximises the likelihood of the scans if the probabilities [N, C] are right under ``source`` [C]; it corrects no
    wrong probabilities.
    """
    likelihood = np.exp(log_probabilities(probabilities)) / source
    prior = np.asarray(source, dtype=float)
    for _ in range(EM_STEPS):
        joint = likelihood * prior
        updated = (joint / joint.sum(1, keepdims=True)).mean(0)
        if np.abs(updated - prior).max() < EM_TOLERANCE:
            return updated
        prior = updated
    raise PostprocessError(f"class frequencies did not settle in {EM_STEPS} steps: {prior.round(4).tolist()}")


def read_target(texts: Sequence[str]) -> dict[str, float] | Literal["labels", "em"]:
    """The target of :func:`fit_prior` from the command line: labels, em, or CLASS=FREQUENCY each; else ValueError."""
    match list(texts):
        case ["labels" | "em" as word]:
            return word
    return read_frequencies(texts, "target")


def read_frequencies(texts: Sequence[str], what: str) -> dict[str, float]:
    """Class frequencies from texts CLASS=FREQUENCY; ValueError for another text, no number, or a class twice."""
    found: dict[str, float] = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = np.nan
        if not name or np.isnan(value):
            raise ValueError(f"{what} must be CLASS=FREQUENCY for each class, got {text!r}")
        if name in found:
            raise ValueError(f"{what} names {name} twice")
        found[name] = value
    return found


def _source(source: Mapping[str, float] | None, names: tuple[str, ...]) -> Floats:
    return np.full(len(names), 1 / len(names)) if source is None else _shares(source, names, "source")


def _shares(frequencies: Mapping[str, float], names: tuple[str, ...], what: str) -> Floats:
    if set(frequencies) != set(names) or len(names) < 2:
        classes, got = ", ".join(names), ", ".join(frequencies)
        raise ValueError(f"{what} must name a frequency for each of the classes {classes}, got {got}")
    values = np.array([frequencies[name] for name in names], dtype=float)
    for name, value in zip(names, values, strict=True):
        if not 0 < value < np.inf:
            raise ValueError(f"{what} frequency of {name} must be above 0, got {value:g}")
    return values / values.sum()
