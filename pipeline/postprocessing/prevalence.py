"""Answers under the class frequencies of the place where the model works, stated in inference's settings.

:func:`~.fit_prior` computes p'_c, proportional to p_c target_c / source_c; this module finds ``source``, the
frequencies under which the model answers. A training with logit adjustment of strength tau on class frequencies pi
answers under pi^(1 - tau): even classes for tau = 1, pi itself for plain cross-entropy. A checkpoint holds neither tau
nor pi. The training's settings.json, where the checkpoint still lies in its folder, tells tau.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common import run_folder
from ..common.errors import UserError
from ..common.run_folder import training_dir
from ..common.text import did_you_mean
from .fit import describe
from .fitted import Fitted
from .prior import fit_prior, read_frequencies

logger = logging.getLogger(__name__)

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
        trained_prevalence: the same for the frequencies under which the model answers; None is even, which is right
            for logit adjustment with tau = 1.
        checkpoints: of the members, to learn from the settings.json of their trainings whether even is right.

    PrevalenceError: a class is unknown or missing, or a frequency not above 0; a training had another tau than 1 and
    ``trained_prevalence`` is not named; the trainings had different tau, which no one correction serves; or
    ``trained_prevalence`` without ``prevalence``.
    """
    if prevalence is None:
        if trained_prevalence is not None:
            raise PrevalenceError("trained_prevalence is named, but no prevalence to correct for")
        return None
    target = _frequencies(prevalence, class_names, "prevalence")
    source = None if trained_prevalence is None else _frequencies(trained_prevalence, class_names, "trained_prevalence")
    _check_trainings(checkpoints, source)
    fitted = fit_prior(target=target, source=source)
    logger.info("probabilities are corrected: %s", describe(fitted))
    return fitted


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


def _check_trainings(checkpoints: Sequence[str | Path], source: Mapping[str, float] | None) -> None:
    """Stop on what the trainings' settings say against a source, and warn where they say nothing."""
    known = {str(path): _trained_tau(path) for path in checkpoints}
    told = {path: tau[0] for path, tau in known.items() if tau is not None}
    if len(set(told.values())) > 1:
        listed = "\n  ".join(f"{path}: tau {tau}" for path, tau in told.items())
        text = "the trainings had different tau, so their probabilities are of different class frequencies and no one "
        raise PrevalenceError(f"{text}correction serves them:\n  {listed}")
    for path, tau in told.items():
        if tau != 1 and source is None:
            raise PrevalenceError(
                f"{path} was trained with tau {'null' if tau is None else tau}: it need not answer as if classes were "
                "even. Name the class frequencies under which it does with trained_prevalence: those of its training "
                "split after plain cross-entropy, these to the power of 1 - tau after logit adjustment, the same "
                "number for each class if its loss balances them otherwise"
            )
        if tau == 1 and source is not None and len(set(source.values())) > 1:
            text = "was trained with tau 1 and answers as if classes were even, but trained_prevalence says otherwise"
            logger.warning("%s %s", path, text)
    if source is None and (untold := [path for path, tau in known.items() if tau is None]):
        logger.warning(
            "prevalence: nothing beside %s says how it was trained; it is taken to answer as if classes were even, as "
            "after logit adjustment with tau 1. If not, name trained_prevalence", ", ".join(untold)
        )  # fmt: skip


def _trained_tau(checkpoint: str | Path) -> tuple[float | None] | None:
    """(tau,) of the training that a checkpoint lies in, by its settings.json; None where there is none."""
    folder = training_dir(checkpoint, Path(checkpoint).parent.parent)
    try:
        settings = json.loads((folder / run_folder.SETTINGS).read_text()) if folder else {}
    except (OSError, ValueError):
        return None
    told = isinstance(settings, dict) and not {"system", "tau"}.isdisjoint(settings)  # without tau: its loss has none
    return (settings.get("tau"),) if told else None
