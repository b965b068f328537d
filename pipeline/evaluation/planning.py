"""Before data are collected: how many scans and patients find a gap between two groups, or show that there is none.

The engine is the audit's: errors of the gap by its resampling, scans by its normal approximation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .audit import scans_for
from .fairness_criteria import beyond_fair, row_shares, summaries
from .resampling import TIE, Floats
from .wording import MOST_PLANNED, POWER, in_percent

START = 1000  # scans at which the error is looked at first
LOOKS = 4  # the error is looked at again with as many scans as the last look asked for
DRAWS = 2000


class CellPlan(NamedTuple):
    """The scans of one class and group, and the patients that they are of."""

    class_name: str
    group: str
    scans: int
    patients: int


@dataclass(frozen=True)
class Plan:
    """Scans that find a gap of ``size`` (``difference``), or show that it is within ``size`` (``equivalence``)."""

    purpose: Literal["difference", "equivalence"]
    size: float
    cells: tuple[CellPlan, ...]

    @property
    def scans(self) -> int:
        return sum(cell.scans for cell in self.cells)

    @property
    def words(self) -> str:
        scans, patients = self.scans, sum(cell.patients for cell in self.cells)
        of = f"{scans:,} scans" + (f" of {patients:,} patients" if scans > patients else "")
        if self.purpose == "difference":
            return f"A gap of {self.size:g} is found by {in_percent(POWER)} of studies of {of}."
        return f"A fair model is shown to have a gap within +-{self.size:g} by {in_percent(POWER)} of studies of {of}."


@dataclass(frozen=True)
class Design:
    """What is expected of the scans and of the model, before there are any.

    Args:
        mix: scans of each class and group, class -> group -> number; only their proportions count.
        recall: of each class, alike in both groups unless there is a gap; wrong answers are spread evenly.
        scans_per_patient: the same for all patients, all of one class.
        correlation: of the scans of a patient being right, in [0, 1]; 1 if they are all answered alike.
        confidence: of the interval that is to leave out 0; equivalence is tested at 1 - ``confidence`` (two one-sided
            tests), which is an interval of 2 ``confidence`` - 1 inside the margin.

    Raises:
        ValueError: a setting is out of range, or the mix has not two groups.

    Example:
        >>> mix = {name: {"male": 1, "female": 1} for name in ("covid", "normal")}
        >>> design = Design(mix, {"covid": 0.9, "normal": 0.8})
        >>> print(design.plan("difference", 0.1).words)
        A gap of 0.1 is found by 80 % of studies of 512 scans.
    """

    mix: Mapping[str, Mapping[str, float]]
    recall: Mapping[str, float]
    scans_per_patient: float = 1
    correlation: float = 1
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if len(self.class_names) < 2 or len(self.group_names) != 2:
            found = f"classes {', '.join(self.class_names)}; groups {', '.join(self.group_names)}"
            raise ValueError(f"a plan needs two classes at least and two groups, got {found}")
        for name, of_groups in self.mix.items():
            if set(of_groups) != set(self.group_names) or not all(0 < n < math.inf for n in of_groups.values()):
                raise ValueError(f"mix of {name} must be a number above 0 for {' and '.join(self.group_names)}")
        if set(self.recall) != set(self.mix):
            raise ValueError(f"recall must name {', '.join(self.mix)}, got {', '.join(self.recall)}")
        for name, value in self.recall.items():
            if not 0 < value < 1:
                raise ValueError(f"recall of {name} must be in (0, 1), got {value}")
        if not 1 <= self.scans_per_patient < math.inf:
            raise ValueError(f"scans_per_patient must be at least 1, got {self.scans_per_patient}")
        if not 0 <= self.correlation <= 1:
            raise ValueError(f"correlation must be in [0, 1], got {self.correlation}")
        if not 0.5 < self.confidence < 1:
            raise ValueError(f"confidence must be in (0.5, 1), got {self.confidence}")

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.mix)

    @property
    def group_names(self) -> tuple[str, ...]:
        return tuple(next(iter(self.mix.values()), {}))

    @property
    def effect(self) -> float:
        """Scans that tell as much as one scan of as many patients (Kish 1965)."""
        return 1 + (self.scans_per_patient - 1) * self.correlation

    @cached_property
    def share(self) -> Floats:
        """Of each group and class among all scans, [G, C]."""
        scans = np.array([[self.mix[name][group] for name in self.class_names] for group in self.group_names])
        return scans / scans.sum()

    def answers(self, losing: int = 0, lost: float = 0.0) -> Floats:
        """Shares of predictions of each group and true class, [G, C, C].

        The ``losing`` group has ``lost`` of every recall less, as a share of it.
        """
        classes = len(self.class_names)
        right = np.tile([self.recall[name] for name in self.class_names], (len(self.group_names), 1))
        right[losing] *= 1 - lost
        own = np.eye(classes)
        return right[..., None] * own + ((1 - right) / (classes - 1))[..., None] * (1 - own)

    def gaps(self, answers: Floats) -> tuple[float, float]:
        """The gap of ``answers`` [G, C, C], and that of a fair model which behaves alike over both groups."""
        counts = answers * self.share[..., None]
        alike = counts.sum(0) / self.share.sum(0)[:, None]
        fair = np.broadcast_to(alike, counts.shape) * self.share[..., None]
        return float(summaries(counts)["gap"]), float(summaries(fair)["gap"])

    def with_gap(self, size: float, losing: int) -> Floats:
        """Answers whose gap is ``size`` beyond 0 and a fair model's, as recalls of the ``losing`` group are lower."""
        from scipy.optimize import brentq

        def beyond(lost: float) -> float:
            return beyond_fair(*self.gaps(self.answers(losing, lost)))

        lost = np.linspace(0, 1, 101)
        found = [beyond(part) for part in lost]
        top = int(np.argmax(found))
        if found[top] < size:
            raise ValueError(f"gap must be below {found[top]:.3f} with these recalls and this mix, got {size}")
        return self.answers(losing, float(brentq(lambda part: beyond(part) - size, 0, lost[top])))

    def needed_error(self, purpose: str, size: float) -> float:
        """The standard error of the gap with which :data:`POWER` of studies succeed (normal approximation).

        Difference: size / (z_(1 - a/2) + z_power) with a = 1 - confidence. Equivalence, where the model is fair and
        its gap f: the s with Phi((size - f) / s - z_(1 - a)) + Phi((size + f) / s - z_(1 - a)) - 1 = power (Schuirmann
        1987).
        """
        from scipy.optimize import brentq
        from scipy.stats import norm

        level = 1 - self.confidence
        if purpose == "difference":
            return size / float(norm.ppf(1 - level / 2) + norm.ppf(POWER))
        gap = abs(self.gaps(self.answers())[1])
        if gap >= size - TIE:
            raise ValueError(f"margin must be above {gap:.3f}, the gap of a fair model with this mix, got {size}")

        def beyond(error: float) -> float:
            z = norm.ppf(1 - level)
            return float(norm.cdf((size - gap) / error - z) + norm.cdf((size + gap) / error - z) - 1 - POWER)

        return float(brentq(beyond, (size - gap) / 100, size))

    def errors(self, answers: Floats, scans: float) -> tuple[float, float]:
        """Standard error of the gap over ``scans`` of different patients: as an audit's draws show it, and unsmoothed.

        The same seed for every number of scans, so that plans do not jump.
        """
        rng = np.random.default_rng(0)
        counts = np.maximum(1, np.rint(scans * self.share)).astype(np.int64)
        expected: NDArray[np.float64] = answers * counts[..., None]
        smoothed, plain = (
            float(summaries(rng.multinomial(counts, shares, (DRAWS, *counts.shape)))["gap"].std())
            for shares in (row_shares(expected), answers)
        )
        return smoothed, plain

    def plan(self, purpose: Literal["difference", "equivalence"], size: float) -> Plan:
        """Scans with which 80 % of studies find a gap of ``size``, or show that a fair model's is within +-``size``.

        Of a difference, either group may be the worse one; the plan is for the one that needs more scans.
        """
        if not 0 < size < 1:
            raise ValueError(f"{'gap' if purpose == 'difference' else 'margin'} must be in (0, 1), got {size}")
        error = self.needed_error(purpose, size)
        groups = range(len(self.group_names))
        expected = [self.with_gap(size, g) for g in groups] if purpose == "difference" else [self.answers()]
        scans = max(self._scans(answers, error) for answers in expected) * self.effect
        cells = []
        for (g, c), share in np.ndenumerate(self.share):
            patients = math.ceil(scans * share / self.scans_per_patient)
            of_cell = math.ceil(patients * self.scans_per_patient)
            cells.append(CellPlan(self.class_names[c], self.group_names[g], of_cell, patients))
        return Plan(purpose, size, tuple(cells))

    def _scans(self, answers: Floats, error: float) -> float:
        scans = float(START)
        for _ in range(LOOKS):
            scans = min(float(MOST_PLANNED), scans_for(error, scans, *self.errors(answers, scans)))
        return scans


def numbers_by_name(texts: Sequence[str], what: str) -> dict[str, dict[str, float]]:
    """``["covid:male=60,female=50"]`` as ``{"covid": {"male": 60.0, "female": 50.0}}``."""
    found: dict[str, dict[str, float]] = {}
    for text in texts:
        name, _, pairs = text.rpartition(":")
        try:
            numbers = {key.strip(): float(value) for key, value in (pair.rsplit("=", 1) for pair in pairs.split(","))}
        except ValueError:
            numbers = {}
        if not numbers or name.strip() in found:
            raise ValueError(f"{what}, got {text!r}")
        found[name.strip()] = numbers
    return found
