"""A fitted post-processing of probabilities, and how it is saved."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from ..common.errors import UserError
from ..evaluation.predictions import PROBABILITY, Predictions
from ..evaluation.resampling import Floats

Method = Literal["temperature", "offsets", "prior"]

SMALLEST = 5e-7  # replaces a probability of 0: half of the last of the six digits that our tables have
PREFIX = 16  # hexadecimal digits kept of the hash of a scan's name


class PostprocessError(UserError):
    """Probabilities that cannot be post-processed as asked; the message says why."""


class UnlabelledPredictions(NamedTuple):
    """Predictions of N new scans: ``scan`` N names, ``probabilities`` [N, C] with rows summing to 1."""

    scan: NDArray[np.str_]
    probabilities: Floats
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class Fitted:
    """A fitted method, all of it plain data."""

    method: Method
    temperature: float  # T; 1 unless the method is temperature
    offsets: dict[str, float]  # class -> b, summing to 0; all 0 if the method is temperature
    settings: dict[str, Any]  # what it was fitted with
    validation: dict[str, float]  # what the fit did on the scans it was fitted on, and their number n
    scans: tuple[str, ...]  # sorted first 16 hexadecimal digits of the SHA-256 of the name of each of these scans
    digest: str  # SHA-256 of their sorted names, a line each; empty without scans

    def transform(self, probabilities: Floats, class_names: Iterable[str]) -> Floats:
        """Post-processed probabilities [N, C]; PostprocessError for other classes (their order may differ)."""
        names = tuple(class_names)
        if set(names) != set(self.offsets):
            mine, given = ", ".join(self.offsets), ", ".join(names)
            raise PostprocessError(f"fitted for the classes {mine}, but the predictions are of {given}")
        return recalibrated(probabilities, self.temperature, np.array([self.offsets[name] for name in names]))

    def save(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def load_fitted(path: str | Path) -> Fitted:
    """Read what :meth:`Fitted.save` wrote; PostprocessError when there is no such file, or it holds something else."""
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
        holds = f"method {fitted.method!r}, temperature {fitted.temperature}, offsets {offsets}"
        raise PostprocessError(f"{path} is no saved post-processing: {holds}")
    return fitted


def log_probabilities(probabilities: Floats) -> Floats:
    """Natural logarithm of probabilities [N, C]; a 0 counts as :data:`SMALLEST`, or the row's smallest if less."""
    positive = np.where(probabilities > 0, probabilities, SMALLEST)
    return np.log(np.where(probabilities > 0, probabilities, positive.min(1, keepdims=True)))


def recalibrated(probabilities: Floats, temperature: float, offsets: Floats) -> Floats:
    """softmax(log p / T + b), [N, C]; for T alone temperature scaling of the logits (Guo et al. 2017, Eq. 9)."""
    from scipy.special import softmax

    return np.asarray(softmax(log_probabilities(probabilities) / temperature + offsets, axis=1))


def mean_nll(log_p: Floats, label: NDArray[np.int64], temperature: float = 1.0) -> float:
    """Mean negative log-likelihood of the true class [N] under softmax(log p / T), log p [N, C], in nats."""
    from scipy.special import log_softmax

    return float(-log_softmax(log_p / temperature, axis=1)[np.arange(len(label)), label].mean())


def make_fitted(
    method: Method, offsets: dict[str, float], settings: dict[str, Any], validation: dict[str, float],
    scan: Iterable[str], temperature: float = 1.0,
) -> Fitted:  # fmt: skip
    names = sorted(map(str, scan))
    hashes = tuple(sorted(map(hashed_name, names)))
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest() if names else ""
    return Fitted(method, temperature, offsets, settings, {"n": len(names)} | validation, hashes, digest)


def hashed_name(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:PREFIX]


def given_probabilities(predictions: Predictions | UnlabelledPredictions) -> Floats:
    if predictions.probabilities is None:
        raise PostprocessError(f"post-processing needs the {PROBABILITY}<class> columns, and there are none")
    if not len(predictions.probabilities):
        raise PostprocessError("no scan to post-process")
    return predictions.probabilities


def most_probable_only(predictions: Predictions) -> Floats:
    """The probabilities; refused with predictions by another rule, whose change would look like the method's effect."""
    probabilities = given_probabilities(predictions)
    if len(other := predictions.scan[predictions.not_most_probable()]):
        raise PostprocessError(
            f"{len(other)} predictions, such as that of {other[0]}, are not the most probable class: another rule "
            "was applied to these probabilities already"
        )
    return probabilities
