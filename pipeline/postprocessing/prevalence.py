"""Answers under the class frequencies of the place where the model works, stated in inference's settings.

:func:`~.fit_prior` computes p'_c, proportional to p_c target_c / source_c; this module finds ``source``, the
frequencies under which the model answers. A network that sees nothing says these of every scan: the share that each
class had of the objective (under group weights w the sum over g of w_g n_gy / n_g, which CVaR moves away from the
cohort's frequencies) times a factor of the loss, pi_y^-tau after logit adjustment. A checkpoint holds them
(:class:`~.TrainingRecord`); one of fairlung 0.1 does not.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..common.files import json_or_nothing
from ..common.run_folder import METRICS
from ..common.text import did_you_mean
from ..networks.checkpoint import training_record
from .fit import describe
from .fitted import Fitted
from .prior import fit_prior, read_frequencies

logger = logging.getLogger(__name__)

# ratio of two members' frequencies of a class up to which the mean of them serves both: that of seeds and folds
MOST_APART = 1.25
Frequencies = Mapping[str, float] | Sequence[str]


class PrevalenceError(UserError, ValueError):
    """Class frequencies that probabilities cannot be corrected for; the message says why."""


def deployment_prior(
    prevalence: Frequencies | None, class_names: Sequence[str], trained_prevalence: Frequencies | None = None,
    checkpoints: Sequence[str | Path] = (),
) -> Fitted | None:  # fmt: skip
    """The correction of probabilities for a stated prevalence; None without one.

    Args:
        prevalence: how frequent each class is where the model works: shares, percent or counts above 0 by class name
            (or texts CLASS=FREQUENCY); only their ratios count.
        trained_prevalence: the same for the frequencies under which the model answers; None takes what the checkpoints
            say, of several the mean.
        checkpoints: of the members, whose mean answer is corrected.

    PrevalenceError: a class is unknown or missing, or a frequency not above 0; a checkpoint does not say under which
    frequencies it answers and ``trained_prevalence`` is not named; those of the members differ by more than
    :data:`MOST_APART`, which no one correction serves; or ``trained_prevalence`` without ``prevalence``.
    """
    if prevalence is None:
        if trained_prevalence is not None:
            raise PrevalenceError("trained_prevalence is named, but no prevalence to correct for")
        return None
    target = _frequencies(prevalence, class_names, "prevalence")
    named = None if trained_prevalence is None else _frequencies(trained_prevalence, class_names, "trained_prevalence")
    fitted = fit_prior(target=target, source=_source(checkpoints, class_names, named))
    logger.info("probabilities are corrected: %s", describe(fitted))
    return fitted


def answered_under(table: Path) -> dict[str, float]:
    """Class frequencies under which the model answers that an evaluation's table is of, by the checkpoint it names.

    PrevalenceError where nothing says it: the table lies in no evaluation, or its checkpoint is gone or of 0.1.
    """
    evaluation = json_or_nothing(table.with_name(METRICS))
    checkpoint = Path(evaluation.get("checkpoint") or "")
    told = training_record(checkpoint).get("class_frequencies")
    if not told:
        raise PrevalenceError(_untold(str(checkpoint) if checkpoint.name else str(table), "--source"))
    return dict(told)


def _frequencies(given: Any, class_names: Sequence[str], setting: str) -> dict[str, float]:
    if not isinstance(given, Mapping):
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
            raise PrevalenceError(f"{setting} must name a frequency for each class, got {given!r}")
        given = read_frequencies(texts, setting)
    for name, value in given.items():
        if name not in class_names:
            hint = did_you_mean(str(name), class_names)
            raise PrevalenceError(f"{setting}: no class {name!r}{hint}; the model's are {', '.join(class_names)}")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            raise PrevalenceError(f"{setting} of {name} must be a number above 0, got {value!r}")
    if missing := [name for name in class_names if name not in given]:
        raise PrevalenceError(f"{setting} lacks {', '.join(missing)}; it needs a frequency for each class")
    return {name: float(given[name]) for name in class_names}


def _source(
    checkpoints: Sequence[str | Path], class_names: Sequence[str], named: Mapping[str, float] | None
) -> dict[str, float]:
    """Class frequencies under which the members' mean answers: those that are named, else what the checkpoints say."""
    found = {str(path): training_record(path).get("class_frequencies") for path in checkpoints}
    told = {path: share for path, share in found.items() if share and set(share) == set(class_names)}
    ranges = [[share[name] for share in told.values()] for name in class_names] if told else []
    if any(max(of_class) > MOST_APART * min(of_class) for of_class in ranges):
        listed = "\n  ".join(f"{path}: {_text(share)}" for path, share in told.items())
        text = "the members answer under different class frequencies, and no one correction serves them:"
        raise PrevalenceError(f"{text}\n  {listed}")
    mean = {name: sum(of_class) / len(of_class) for name, of_class in zip(class_names, ranges, strict=False)}
    if named is not None:
        whole = sum(named.values())
        if told and any(not 1 / MOST_APART <= named[n] / whole / mean[n] <= MOST_APART for n in class_names):
            text = "trained_prevalence is taken, although by their training they answer under other class frequencies"
            logger.warning("%s: %s: %s", ", ".join(told), text, _text(mean))
        return dict(named)
    if not told or len(told) < len(checkpoints):
        untold = [str(path) for path in checkpoints if str(path) not in told] or ["the model"]
        raise PrevalenceError(_untold(", ".join(untold), "trained_prevalence"))
    return mean


def _untold(model: str, setting: str) -> str:
    return (
        f"{model} does not say under which class frequencies it answers (it is of fairlung 0.1, or its loss leaves "
        f"none that are known, as focal loss and LDAM). Name them with {setting}: those of its training split after "
        "plain cross-entropy, these to the power of 1 - tau after logit adjustment, the same number for each class "
        "where classes were balanced"
    )


def _text(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {share:.3g}" for name, share in shares.items())
