"""Post-processing of probabilities: fitted on validation scans, applied to other scans, and shown with its cost.

Every method is one map of a scan's class probabilities p, the same for every group::

    p'_c  proportional to  exp(log p_c / T + b_c)

``temperature`` fits T, ``offsets`` chooses b, ``prior`` computes b from class frequencies. None asks for the group of
a scan: different thresholds for men and women would treat two patients with the same scan differently because of
their sex, and would need the sex of every patient.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .audit import summaries
from .bootstrap import check_resampling, estimate, resample_counts
from .calibration import BINS, bin_of
from .errors import UserError
from .labelled_predictions import (
    LISTED,
    POSTPROCESS,
    PROBABILITY,
    SYNTHETIC,
    Predictions,
    load_predictions,
    read_probabilities,
    read_table,
)

Floats = NDArray[np.float64]
Method = Literal["temperature", "offsets", "prior"]
Objective = Literal["score", "gap"]

SMALLEST = 5e-7  # stands for a probability of 0 in a table: half of the last of the six digits that we write
TEMPERATURES = (0.05, 20.0)  # searched; an optimum at an end is none
MAX_LOSS = 0.01  # of P, for a smaller gap
STARTS = 32  # of the search for offsets; the first is no offset at all
NARROWEST = 1e-9  # interval between two breakpoints in which an offset is chosen: rounding must not cross one
EM_STEPS = 10_000
EM_TOLERANCE = 1e-9  # change of a class frequency at which EM has settled
PREFIX = 16  # hexadecimal digits kept of the hash of a scan's name
TIE = 2e-6  # by which a predicted class may fall short of the most probable one: six digits, normalised


class PostprocessError(UserError):
    """Probabilities that cannot be post-processed as asked; the message says why."""


class UnlabelledPredictions(NamedTuple):
    """Predictions of N new scans: ``scan`` N names, ``probabilities`` [N, C] with rows summing to 1."""

    scan: NDArray[np.str_]
    probabilities: Floats
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class Fitted:
    """A fitted method, all of it plain data.

    Args:
        method: temperature, offsets or prior.
        temperature: T; 1 unless the method is temperature.
        offsets: class -> b, summing to 0; all 0 if the method is temperature.
        settings: what it was fitted with.
        validation: what the fit did on the scans it was fitted on, and their number ``n``.
        scans: sorted first 16 hexadecimal digits of the SHA-256 of the name of each scan it was fitted on.
        digest: SHA-256 of their sorted names, a line each; empty without scans.
    """

    method: Method
    temperature: float
    offsets: dict[str, float]
    settings: dict[str, Any]
    validation: dict[str, float]
    scans: tuple[str, ...]
    digest: str

    def transform(self, probabilities: Floats, class_names: Iterable[str]) -> Floats:
        """Post-processed probabilities [N, C] of probabilities [N, C] of ``class_names``, labelled scans or not.

        Raises:
            PostprocessError: the classes are not those it was fitted for (their order may differ).
        """
        names = tuple(class_names)
        if set(names) != set(self.offsets):
            raise PostprocessError(
                f"fitted for the classes {', '.join(self.offsets)}, but the predictions are of {', '.join(names)}"
            )
        return recalibrated(probabilities, self.temperature, np.array([self.offsets[name] for name in names]))

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def load_fitted(path: str | Path) -> Fitted:
    """Read what :meth:`Fitted.save` wrote.

    Raises:
        PostprocessError: no such file, or not such a file.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        fitted = Fitted(**content)
        offsets = {str(name): float(value) for name, value in fitted.offsets.items()}
        fitted = replace(fitted, temperature=float(fitted.temperature), offsets=offsets, scans=tuple(fitted.scans))
    except FileNotFoundError:
        raise PostprocessError(f"{path}: no such file") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        needed = ", ".join(field.name for field in fields(Fitted))
        raise PostprocessError(f"{path} is no saved post-processing ({needed}): {error}") from error
    numbers = [fitted.temperature, *offsets.values()]
    if fitted.method not in get_args(Method) or not np.isfinite(numbers).all() or fitted.temperature <= 0:
        raise PostprocessError(
            f"{path} is no saved post-processing: method {fitted.method!r}, temperature {fitted.temperature}, "
            f"offsets {offsets}"
        )
    return fitted


def log_probabilities(probabilities: Floats) -> Floats:
    """Natural logarithm of probabilities [N, C]; a 0 counts as :data:`SMALLEST`, or the row's smallest if less."""
    positive = np.where(probabilities > 0, probabilities, SMALLEST)
    return np.log(np.where(probabilities > 0, probabilities, positive.min(1, keepdims=True)))


def recalibrated(probabilities: Floats, temperature: float, offsets: Floats) -> Floats:
    """softmax(log p / T + b), which for T alone is temperature scaling of the logits (Guo et al. 2017, Eq. 9).

    Args:
        probabilities: [N, C], rows summing to 1.
        temperature: T > 0; above 1 the probabilities become more even.
        offsets: [C] b, added to the logarithm.

    Returns:
        [N, C].
    """
    from scipy.special import softmax

    return np.asarray(softmax(log_probabilities(probabilities) / temperature + offsets, axis=1))


def mean_nll(log_p: Floats, label: NDArray[np.int64], temperature: float = 1.0) -> float:
    """Mean negative log-likelihood of the true class under softmax(log p / T), in nats.

    Args:
        log_p: [N, C] logarithms of probabilities.
        label: [N] true classes.
    """
    from scipy.special import log_softmax

    return float(-log_softmax(log_p / temperature, axis=1)[np.arange(len(label)), label].mean())


def fit_temperature(validation: Predictions) -> Fitted:
    """Temperature scaling: the T that minimises the NLL of softmax(log p / T) on the validation scans.

    One T a model (Guo et al. 2017, Sec. 4.2). The NLL is convex in 1/T, so it has one minimum.

    Raises:
        PostprocessError: no probabilities, or no optimum in [0.05, 20].
    """
    from scipy.optimize import minimize_scalar

    log_p = log_probabilities(_given(validation))
    ends = np.log(TEMPERATURES)
    found = minimize_scalar(
        lambda log_t: mean_nll(log_p, validation.label, np.exp(log_t)),
        bounds=ends,
        method="bounded",
        options={"xatol": 1e-9, "maxiter": 1000},
    )
    temperature = float(np.exp(found.x))
    if np.abs(found.x - ends).min() < 1e-3:
        hits = int((validation.prediction == validation.label).sum())
        raise PostprocessError(
            f"no temperature in [{TEMPERATURES[0]}, {TEMPERATURES[1]}] is best: the likelihood still rises at "
            f"{temperature:.3g}. {hits} of the {len(validation.label)} validation scans are predicted right; a "
            "temperature needs scans that are right and scans that are wrong"
        )
    before, after = mean_nll(log_p, validation.label), mean_nll(log_p, validation.label, temperature)
    return _fitted(
        "temperature",
        dict.fromkeys(validation.class_names, 0.0),
        {"bounds": list(TEMPERATURES)},
        {"nll_before": before, "nll_after": after},
        validation.scan,
        temperature,
    )


def fit_offsets(validation: Predictions, objective: Objective = "score", max_loss: float | None = None) -> Fitted:
    """Class offsets, chosen on validation scans of known group: thresholds, in the sense of several classes.

    Args:
        validation: labelled predictions with probabilities.
        objective: ``score`` maximises P, the mean over groups of the macro F1; ``gap`` minimises the largest
            difference between the groups' macro F1 while P falls by no more than ``max_loss``.
        max_loss: in [0, 1), with ``gap`` only; None is 0.01.

    Raises:
        ValueError: a setting is out of range.
        PostprocessError: no probabilities, a class without a scan, predictions that are not the most probable class,
            or, for ``gap``, fewer than two groups with a scan.
    """
    if objective not in get_args(Objective):
        raise ValueError(f"objective must be score or gap, got {objective!r}")
    if objective == "score" and max_loss is not None:
        raise ValueError(f"max_loss belongs to the objective gap, got {max_loss} with the objective score")
    max_loss = MAX_LOSS if max_loss is None else max_loss
    if not 0 <= max_loss < 1:
        raise ValueError(f"max_loss must be in [0, 1), got {max_loss}")
    known = validation.known()
    probabilities = _given(known)
    _refuse_other_predictions(known)
    for c, name in enumerate(known.class_names):
        if not (known.label == c).any():
            raise PostprocessError(f"no validation scan of class {name!r} with a known group: no offset can be chosen")
    present, group = np.unique(known.group, return_inverse=True)
    if objective == "gap" and len(present) < 2:
        raise PostprocessError(
            f"a gap needs validation scans of two groups; there are scans of {known.group_names[present[0]]} only"
        )
    log_p = log_probabilities(probabilities)
    offsets = best_offsets(log_p, known.label, group, objective, max_loss)
    before, after = (summaries(_confusion(log_p + b, known.label, group)) for b in (0.0, offsets))
    settings: dict[str, Any] = {"objective": objective, "starts": STARTS, "group_by": list(known.group_by)}
    return _fitted(
        "offsets",
        dict(zip(known.class_names, offsets.tolist(), strict=True)),
        settings | ({"max_loss": max_loss} if objective == "gap" else {}),
        {
            f"{name}_{when}": float(found[name])
            for name in ("score", "abs_gap")
            for when, found in (("before", before), ("after", after))
        },
        known.scan,
    )


def best_offsets(
    log_p: Floats,
    label: NDArray[np.int64],
    group: NDArray[np.int64],
    objective: Objective = "score",
    max_loss: float = MAX_LOSS,
) -> Floats:
    """Offsets b for which the predictions argmax(log p + b) are best, by coordinate search over exact breakpoints.

    With the other offsets fixed, scan i is predicted as c if b_c > t_i = max_{k != c}(log p_ik + b_k) - log p_ic.
    The objective only changes at the t_i, so trying one b_c between each two neighbours is an exact line search. The
    search goes round the classes until none improves, from no offset and from 31 fixed random starts. For two classes
    the optimum is global; for more it is the best of the local ones. Of equally good offsets the smallest are taken,
    then each is put halfway between its two breakpoints.

    Args:
        log_p: [N, C].
        label: [N].
        group: [N] in [0, G), every group with a scan.
        objective: as in :func:`fit_offsets`.
        max_loss: as in :func:`fit_offsets`.

    Returns:
        [C], summing to 0.
    """
    classes = log_p.shape[1]
    floor = float(summaries(_confusion(log_p, label, group))["score"]) - max_loss
    spread = float(np.std(log_p - log_p.mean(1, keepdims=True)))
    starts = np.random.default_rng(0).normal(0, spread, (STARTS, classes))
    starts[0] = 0
    best: tuple[tuple[float, ...], Floats] | None = None
    for start in starts:
        offsets = start
        reached = _rank(_confusion(log_p + offsets, label, group)[None], objective, floor)[:, 0]
        improved = True
        while improved:
            improved = False
            for c in range(classes):
                intervals, confusion = _line(log_p, label, group, offsets, c)
                ranks = _rank(confusion, objective, floor)
                moved = np.repeat(offsets[None], len(intervals), axis=0)
                moved[:, c] = intervals.mean(1)
                first = np.lexsort((_size(moved), *ranks[::-1]))[0]
                if tuple(ranks[:, first]) < tuple(reached):
                    offsets, reached, improved = moved[first] - moved[first].mean(), ranks[:, first], True
        found = (*reached.tolist(), float(_size(offsets[None])[0]))
        if best is None or found < best[0]:
            best = (found, offsets - offsets.mean())
    assert best is not None  # STARTS > 0
    offsets = best[1].copy()
    for c in range(classes) if offsets.any() else ():  # the same predictions, as far from the breakpoints as can be
        intervals, _ = _line(log_p, label, group, offsets, c)
        around = intervals[(intervals[:, 0] < offsets[c]) & (offsets[c] < intervals[:, 1])]
        if len(around):
            offsets[c] = around[0].mean()
    return offsets - offsets.mean()


def _line(
    log_p: Floats, label: NDArray[np.int64], group: NDArray[np.int64], offsets: Floats, c: int
) -> tuple[Floats, NDArray[np.int64]]:
    """The intervals [M, 2] of offset c without a breakpoint in them, and the confusion counts [M, G, C, C] in each."""
    n, classes = log_p.shape
    others = log_p + offsets
    others[:, c] = -np.inf
    second = others.argmax(1)
    breakpoints = others.max(1) - log_p[:, c]
    order = np.argsort(breakpoints, kind="stable")
    row = (group * classes + label)[order] * classes
    steps = np.zeros((n + 1, (int(group.max()) + 1) * classes**2), dtype=np.int64)
    steps[0] = np.bincount(row + second[order], minlength=steps.shape[1])
    steps[np.arange(1, n + 1), row + c] += 1  # scan by scan, in the order in which b_c reaches them, c wins
    steps[np.arange(1, n + 1), row + second[order]] -= 1
    t = breakpoints[order]
    edges = np.concatenate([[t[0] - 2], t, [t[-1] + 2]])
    wide = np.diff(edges) > NARROWEST
    confusion = steps.cumsum(0)[wide].reshape(-1, steps.shape[1] // classes**2, classes, classes)
    return np.stack([edges[:-1], edges[1:]], axis=1)[wide], confusion


def _confusion(log_p: Floats, label: NDArray[np.int64], group: NDArray[np.int64]) -> NDArray[np.int64]:
    classes = log_p.shape[1]
    shape = (int(group.max()) + 1, classes, classes)
    cell = np.ravel_multi_index((group, label, log_p.argmax(1)), shape)
    return np.bincount(cell, minlength=int(np.prod(shape))).reshape(shape)


def _rank(confusion: NDArray[np.int64], objective: Objective, floor: float) -> Floats:
    """What is minimised, the most important first: [K, M]; rounded, so that equal counts are equal."""
    found = summaries(confusion)
    if objective == "score":
        keys = [-found["score"]]
    else:
        keys = [np.maximum(0, floor - found["score"]), found["abs_gap"], -found["score"]]
    return np.round(keys, 12)


def _size(offsets: Floats) -> Floats:
    """Squared norm [M] of offsets [M, C], less what all classes share."""
    return ((offsets - offsets.mean(1, keepdims=True)) ** 2).sum(1)


def fit_prior(
    validation: Predictions | UnlabelledPredictions | None = None,
    target: Mapping[str, float] | Literal["labels", "em"] = "labels",
    source: Mapping[str, float] | None = None,
) -> Fitted:
    """Correction for the class frequencies of the target population (Saerens et al. 2002, Eq. 2.4).

    p'_c is proportional to p_c target_c / source_c. A network trained with logit adjustment (tau = 1) answers as if
    classes were even, which is the default ``source``; one trained with plain cross-entropy answers under the
    frequencies of its training split, which must then be named.

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
        how, wanted = "numbers", _shares(target, tuple(target), "target")
        names = tuple(target)
        given = _source(source, names)
    else:
        if target not in ("labels", "em"):
            raise ValueError(f"target must be labels, em or a frequency for each class, got {target!r}")
        if validation is None:
            raise PostprocessError("no validation scans to take class frequencies from, and no frequencies named")
        how, names, scan = target, validation.class_names, validation.scan
        given = _source(source, names)
        if target == "em":
            wanted = estimate_prior(_given(validation), given)
            for name, share in zip(names, wanted, strict=True):
                if share * len(validation.scan) < 0.5:
                    raise PostprocessError(
                        f"by the estimate no scan is {name!r}; with it the class would never be predicted. Name the "
                        "frequencies instead"
                    )
        elif isinstance(validation, Predictions):
            counts = np.bincount(validation.label, minlength=len(names))
            if (counts == 0).any():
                empty = ", ".join(repr(name) for name, n in zip(names, counts, strict=True) if n == 0)
                raise PostprocessError(f"no scan of class {empty}: with frequency 0 it would never be predicted")
            wanted = counts / counts.sum()
        else:
            raise PostprocessError("the scans have no labels to count; estimate the frequencies (em) or name them")
    offsets = np.log(wanted) - np.log(given)
    return _fitted(
        "prior",
        dict(zip(names, (offsets - offsets.mean()).tolist(), strict=True)),
        {
            "from": how,
            "target": dict(zip(names, wanted.tolist(), strict=True)),
            "source": dict(zip(names, given.tolist(), strict=True)),
        },
        {},
        scan,
    )


def estimate_prior(probabilities: Floats, source: Floats) -> Floats:
    """Class frequencies of unlabelled scans by expectation maximisation (Saerens et al. 2002, Eq. 2.9).

    w_ic proportional to p_ic pi_c / source_c;  pi_c = mean_i w_ic;  until pi settles. It maximises the likelihood of
    the scans if the probabilities are right under ``source``; it does not correct probabilities that are not.

    Args:
        probabilities: [N, C].
        source: [C] frequencies under which the probabilities were given.

    Returns:
        [C] frequencies.

    Raises:
        PostprocessError: not settled after 10,000 steps.
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


SETTINGS: dict[Method, tuple[str, ...]] = {
    "temperature": (),
    "offsets": ("objective", "max_loss"),
    "prior": ("target", "source"),
}


def fit(method: Method, validation: Predictions | UnlabelledPredictions | None = None, **settings: Any) -> Fitted:
    """Fit a method by its name; settings are those of :func:`fit_temperature`, :func:`fit_offsets`, :func:`fit_prior`.

    Raises:
        ValueError: no such method or setting, or one out of range.
        PostprocessError: it cannot be fitted on these scans.
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
        did = f"there the NLL fell from {numbers['nll_before']:.3f} to {numbers['nll_after']:.3f}"
    elif fitted.method == "offsets":
        what = "offsets of log p: " + ", ".join(f"{name} {value:+.3f}" for name, value in fitted.offsets.items())
        did = (
            f"there P went from {numbers['score_before']:.3f} to {numbers['score_after']:.3f} and |gap| from "
            f"{numbers['abs_gap_before']:.3f} to {numbers['abs_gap_after']:.3f}; expect less on others"
        )
    else:
        shares = (f"{name} {settings['source'][name]:.3g} to {share:.3g}" for name, share in settings["target"].items())
        what = "prior, class frequencies from those of the model to the target's: " + ", ".join(shares)
        did = {"labels": "by their labels", "em": "estimated without labels"}.get(settings["from"], "")
    scans = f"fitted on {numbers['n']} scans, {did}" if numbers["n"] else "frequencies as named, fitted on no scan"
    return f"{what} ({scans})"


def apply(fitted: Fitted, predictions: Predictions) -> Predictions:
    """Post-processed predictions of scans that the method was not fitted on.

    Temperature keeps every prediction; the others predict the class that has become the most probable.

    Raises:
        PostprocessError: no probabilities, other classes, a scan that it was fitted on, or (not for temperature)
            predictions that were not the most probable class before.
    """
    probabilities = _given(predictions)
    changed = fitted.transform(probabilities, predictions.class_names)
    seen = set(fitted.scans)
    known = [name for name in predictions.scan.tolist() if _hashed(name) in seen]
    if known:
        more = f" and {len(known) - LISTED} more" if len(known) > LISTED else ""
        raise PostprocessError(
            f"{len(known)} of the {len(predictions.scan)} scans are among those that {fitted.method} was fitted on "
            f"({', '.join(known[:LISTED])}{more}). On them it looks better than it is: fit on the validation split, "
            "judge on scans that chose nothing"
        )
    if fitted.method == "temperature":
        return replace(predictions, probabilities=changed)
    _refuse_other_predictions(predictions)
    return predictions.with_probabilities(changed)


def before_after(
    before: Predictions, after: Predictions, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> dict[str, Any]:
    """What a post-processing changed on the same scans of known group, with paired bootstrap intervals of the changes.

    Scans are resampled within class and group, the same ones before and after. The interval is the basic bootstrap's,
    twice the observed change minus the percentiles (Davison and Hinkley 1997, Sec. 5.2.1): ECE and |gap| are biased
    upward on a sample, and resamples are biased once more, which the percentile interval would count twice. How often
    it holds the truth: benchmarks/postprocessing.py, docs/postprocessing.md.

    Args:
        before: with probabilities.
        after: the same scans, post-processed.
        resamples: at least 100.
        confidence: in (0, 1).
        seed: same seed, same intervals.

    Returns:
        ``overall`` (score, gap with two groups, abs_gap, nll, brier, ece) and ``groups`` (group, n, f1, nll, brier,
        ece), each number as ``{"before", "after", "change": {"value", "low", "high"}}``; ``changed`` predictions,
        ``mended`` (wrong to right) and ``broken`` (right to wrong), in all and for each group; ``cost`` in words
        (:func:`cost`); n, n_unknown, synthetic, names and settings.

    Raises:
        ValueError: a setting is out of range, or the scans, labels or groups differ.
        PostprocessError: no probabilities, or no scan of known group.
    """
    check_resampling(confidence, resamples)
    if any(
        not np.array_equal(getattr(before, name), getattr(after, name))
        for name in ("scan", "label", "group", "class_names", "group_names")
    ):
        raise ValueError("before and after must hold the same scans, labels, groups and classes in the same order")
    scans = len(before.label)
    before, after = before.known(), after.known()
    if not len(before.label):
        raise PostprocessError("no scan has a known group")
    classes, groups = len(before.class_names), len(before.group_names)
    strata = before.group * classes + before.label
    counts = resample_counts(strata, resamples, np.random.default_rng(seed))
    # the first row is the scans themselves, so that one formula gives the value and its resamples
    counts = np.concatenate([np.ones((1, len(strata))), counts])
    numbers = [_numbers(part, counts, groups) for part in (before, after)]
    tail = (1 - confidence) / 2

    def change(name: str) -> dict[str, Any]:
        old, new = (part[name] for part in numbers)
        value = float(new[0] - old[0])
        top, bottom = np.quantile((new - old)[1:], [1 - tail, tail])
        ends = min(2 * value - float(top), value), max(2 * value - float(bottom), value)
        return {"before": float(old[0]), "after": float(new[0]), "change": estimate(value, *ends)}

    def moved(inside: NDArray[np.bool_]) -> dict[str, int]:
        was, now = before.prediction == before.label, after.prediction == after.label
        other = inside & (before.prediction != after.prediction)
        parts = {"changed": other, "mended": other & now, "broken": other & was}
        return {name: int(rows.sum()) for name, rows in parts.items()}

    result: dict[str, Any] = {
        "n": len(before.label),
        "n_unknown": scans - len(before.label),
        "synthetic": before.synthetic,
        "class_names": list(before.class_names),
        "group_names": list(before.group_names),
        "settings": {"resamples": resamples, "confidence": confidence, "seed": seed},
        "overall": {
            name: change(name) for name in ("score", "gap", "abs_gap", "nll", "brier", "ece") if name in numbers[0]
        },
        "groups": [
            {"group": name, "n": int((before.group == g).sum())}
            | {number: change(f"{number} {g}") for number in ("f1", "nll", "brier", "ece")}
            | moved(before.group == g)
            for g, name in enumerate(before.group_names)
            if (before.group == g).any()
        ],
        **moved(np.ones(len(strata), dtype=bool)),
    }
    result["cost"] = cost(result)
    return result


def _numbers(predictions: Predictions, counts: Floats, groups: int) -> dict[str, Floats]:
    """Each number [B] on resamples given as counts [B, N]; those of group g are called ``<number> <g>``."""
    probabilities = _given(predictions)
    label, said = predictions.label, predictions.prediction
    scan, classes = np.arange(len(label)), len(predictions.class_names)
    cell = np.ravel_multi_index((predictions.group, label, said), (groups, classes, classes))
    confusion = (counts @ np.eye(groups * classes**2)[cell]).reshape(-1, groups, classes, classes)
    found = summaries(confusion)
    numbers: dict[str, Floats] = {name: found[name] for name in ("score", "gap", "abs_gap") if name in found}
    numbers |= {f"f1 {g}": found["group_f1"][:, g] for g in range(groups)}
    nll = -log_probabilities(probabilities)[scan, label]
    brier = ((probabilities - np.eye(classes)[label]) ** 2).sum(1)
    sure = probabilities[scan, said]
    surplus = ((said == label) - sure)[:, None] * np.eye(BINS)[bin_of(sure)]
    parts = {f" {g}": predictions.group == g for g in range(groups)} | {"": np.ones(len(label), dtype=bool)}
    for suffix, inside in parts.items():
        if not inside.any():
            continue
        drawn, n = counts[:, inside], int(inside.sum())  # resampling within groups keeps n
        numbers[f"nll{suffix}"] = drawn @ nll[inside] / n
        numbers[f"brier{suffix}"] = drawn @ brier[inside] / n
        numbers[f"ece{suffix}"] = np.abs(drawn @ surplus[inside]).sum(1) / n
    return numbers


NAMES = {
    "score": "P",
    "gap": "the gap",
    "abs_gap": "|gap|",
    "f1": "F1",
    "nll": "NLL",
    "brier": "the Brier score",
    "ece": "the calibration error",
}
BETTER_HIGH = ("score", "f1")


def cost(result: Mapping[str, Any]) -> list[str]:
    """What got worse, in words, the clearest first; one sentence that says so if nothing did.

    Args:
        result: of :func:`before_after`, without its cost. Larger is worse for |gap|, NLL, Brier score and ECE,
            smaller is worse for P and F1; the signed gap has no worse side.
    """
    parts: list[tuple[str, str, Mapping[str, Any]]] = [
        (name, "", number) for name, number in result["overall"].items() if name != "gap"
    ]
    parts += [
        (name, f" of {group['group']} scans", group[name])
        for group in result["groups"]
        for name in ("f1", "nll", "brier", "ece")
    ]
    clear: list[str] = []
    unclear: list[str] = []
    for name, whose, number in parts:
        change = number["change"]
        rises = name not in BETTER_HIGH
        if change["value"] == 0 or (change["value"] > 0) != rises:
            continue
        apart = change["low"] > 0 or change["high"] < 0
        text = (
            f"{NAMES[name]}{whose} {'rises' if rises else 'falls'} from {number['before']:.3f} to "
            f"{number['after']:.3f} ({100 * result['settings']['confidence']:.0f} % interval of the change "
            f"{change['low']:+.3f} to {change['high']:+.3f})"
        )
        text = text[0].upper() + text[1:]
        (clear if apart else unclear).append(text + ("." if apart else ": cannot be told from no change."))
    if result["broken"]:
        by_group = ", ".join(f"{group['group']} {group['broken']}" for group in result["groups"])
        clear.append(
            f"Right before and wrong now: {result['broken']} of the {result['n']} scans ({by_group}); wrong before and "
            f"right now: {result['mended']}."
        )
    return [*clear, *unclear] or [f"None of these numbers got worse on the {result['n']} scans."]


def read_target(texts: Sequence[str]) -> dict[str, float] | Literal["labels", "em"]:
    """The target of :func:`fit_prior` from the command line: the word labels or em, or CLASS=FREQUENCY each.

    Raises:
        ValueError: neither.
    """
    if len(texts) == 1 and texts[0] in ("labels", "em"):
        return "em" if texts[0] == "em" else "labels"
    return read_frequencies(texts, "target")


def read_frequencies(texts: Sequence[str], what: str) -> dict[str, float]:
    """Class frequencies from texts CLASS=FREQUENCY.

    Raises:
        ValueError: no such text, no number, or a class twice.
    """
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


def refuse_overwriting(inputs: Iterable[Path], outputs: Sequence[Path]) -> None:
    """Stop before a file that is read, or one just written, is written over.

    Raises:
        PostprocessError: an output is an input or another output, by whatever path.
    """
    taken = [(path, "is read") for path in inputs]
    for output in outputs:
        for other, why in taken:
            same = output.resolve() == other.resolve()
            if same or (output.exists() and other.exists() and output.samefile(other)):
                raise PostprocessError(f"{output} {why} as well; write to another file")
        taken.append((output, "is written"))


def load_table(path: str | Path, group_by: Iterable[str] | None = None) -> Predictions:
    """Labelled predictions with probabilities, as :func:`~.labelled_predictions.load_predictions` reads them.

    Raises:
        PostprocessError: no column ``scan`` (nobody could tell whether a scan was fitted on), or the table was
            post-processed before.
        PredictionsError: as :func:`~.labelled_predictions.load_predictions`.
    """
    _raw(Path(path))
    return load_predictions(path, group_by=tuple(group_by) if group_by else None)


def load_unlabelled(path: str | Path) -> UnlabelledPredictions:
    """Probabilities of scans without labels, such as inference's predictions.csv; failed scans are left out.

    Raises:
        PostprocessError: as :func:`load_table`, or there is no column or row of probabilities.
        PredictionsError: no such file, or probabilities that are none.
    """
    path = Path(path)
    table = _raw(path)
    names = tuple(column[len(PROBABILITY) :] for column in map(str, table.columns) if column.startswith(PROBABILITY))
    if not names:
        raise PostprocessError(f"{path}: no {PROBABILITY}<class> columns; it has {', '.join(map(str, table.columns))}")
    answered = table[[PROBABILITY + name for name in names]].ne("").any(axis=1)
    table = table[answered].reset_index(drop=True)
    if table.empty:
        raise PostprocessError(f"{path}: no scan has probabilities")
    faults: list[str] = [f"{name!r} is there twice" for name in table["scan"][table["scan"].duplicated()].unique()]
    probabilities = read_probabilities(path, table, table["scan"], names, faults)
    if faults or probabilities is None:
        raise PostprocessError(f"{path}:\n  " + "\n  ".join(faults[:LISTED]))
    return UnlabelledPredictions(table["scan"].to_numpy(dtype=str), probabilities, names)


def write_table(path: str | Path, original: str | Path, predictions: Predictions, method: Method) -> None:
    """Write post-processed predictions: scan, label, groups, prediction, prob_<class>, postprocess, and synthetic.

    Args:
        path: the CSV to write.
        original: the CSV that the predictions come from, with the same scans in the same order; its other columns
            are not copied.
        predictions: of :func:`apply`.
        method: goes into the column ``postprocess``, so that nobody takes the table for the model's own.
    """
    probabilities = _given(predictions)
    table = _raw(Path(original))[["scan", "label", *predictions.group_by]].copy()
    table["prediction"] = np.array(predictions.class_names)[predictions.prediction]
    for c, name in enumerate(predictions.class_names):
        table[PROBABILITY + name] = [f"{value:.8g}" for value in probabilities[:, c]]
    table[POSTPROCESS] = method
    if predictions.synthetic:
        table[SYNTHETIC] = "yes"
    table.to_csv(path, index=False)


def _raw(path: Path) -> pd.DataFrame:
    table = read_table(path)
    if "scan" not in table:
        raise PostprocessError(
            f"{path}: no column 'scan'; without names nobody can tell whether a scan was fitted on and judged as well"
        )
    if POSTPROCESS in table:
        done = ", ".join(sorted(set(table[POSTPROCESS]))) or "?"
        raise PostprocessError(f"{path} was post-processed before ({done}); give the model's own predictions")
    return table


def _fitted(
    method: Method,
    offsets: dict[str, float],
    settings: dict[str, Any],
    validation: dict[str, float],
    scan: Iterable[str],
    temperature: float = 1.0,
) -> Fitted:
    names = sorted(map(str, scan))
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest() if names else ""
    hashes = tuple(sorted(map(_hashed, names)))
    return Fitted(method, temperature, offsets, settings, {"n": len(names)} | validation, hashes, digest)


def _hashed(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:PREFIX]


def _given(predictions: Predictions | UnlabelledPredictions) -> Floats:
    if predictions.probabilities is None:
        raise PostprocessError(f"post-processing needs the {PROBABILITY}<class> columns, and there are none")
    if not len(predictions.probabilities):
        raise PostprocessError("no scan to post-process")
    return predictions.probabilities


def _refuse_other_predictions(predictions: Predictions) -> None:
    """Predictions by another rule would change with the rule, and the change would be laid to the method."""
    probabilities = _given(predictions)
    said = probabilities[np.arange(len(probabilities)), predictions.prediction]
    other = predictions.scan[said < probabilities.max(1) - TIE]
    if len(other):
        raise PostprocessError(
            f"{len(other)} predictions, such as that of {other[0]}, are not the most probable class: another rule "
            "was applied to these probabilities already"
        )


def _source(source: Mapping[str, float] | None, names: tuple[str, ...]) -> Floats:
    return np.full(len(names), 1 / len(names)) if source is None else _shares(source, names, "source")


def _shares(frequencies: Mapping[str, float], names: tuple[str, ...], what: str) -> Floats:
    if set(frequencies) != set(names) or len(names) < 2:
        raise ValueError(
            f"{what} must name a frequency for each of the classes {', '.join(names)}, got {', '.join(frequencies)}"
        )
    values = np.array([frequencies[name] for name in names], dtype=float)
    for name, value in zip(names, values, strict=True):
        if not 0 < value < np.inf:
            raise ValueError(f"{what} frequency of {name} must be above 0, got {value:g}")
    return values / values.sum()
