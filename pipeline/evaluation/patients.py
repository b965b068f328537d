"""Patients, not scans, are what chance draws: the scans of one patient are answered alike.

Everything here treats a patient's scans as one unit (a cluster), in strata by the true classes of these scans.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .predictions import Ints, Predictions
from .records import RepeatedPatients
from .resampling import Floats, resample_counts


@dataclass(frozen=True)
class Clusters:
    """The patients of G groups, those whose scans were answered alike counted together, as P patterns.

    ``patterns`` [P, C, C] are the scans of a patient, rows true, columns predicted; ``count`` [P, G] how many patients
    of each group have the pattern.
    """

    patterns: Floats
    count: Ints

    @classmethod
    def of(cls, known: Predictions) -> Clusters | None:
        """Those of scans of known group; None where no patient has several, or nothing says whose the scans are."""
        if known.patient is None or not known.repeated:
            return None
        ids, first, patient = np.unique(known.patient, return_index=True, return_inverse=True)
        own = np.zeros((len(ids), len(known.class_names), len(known.class_names)), dtype=np.int64)
        np.add.at(own, (patient, known.label, known.prediction), 1)
        patterns, pattern = np.unique(own, axis=0, return_inverse=True)
        count = np.zeros((len(patterns), len(known.group_names)), dtype=np.int64)
        np.add.at(count, (pattern.ravel(), known.group[first]), 1)
        return cls(patterns.astype(float), count)

    @cached_property
    def correlation(self) -> float:
        """Of the scans of a patient, :func:`intraclass_correlation` of their being right, within class and group."""
        return intraclass_correlation(self.patterns.sum(-1), self.patterns.diagonal(0, 1, 2), self.count)

    def worth(self) -> RepeatedPatients:
        """How many patients there are, and as how many scans of one patient each theirs count."""
        sizes = self.patterns.sum((1, 2))
        scans = self.count.sum(1) @ sizes / self.pooled().design_effect(sizes)[0]
        return RepeatedPatients(int(self.count.sum()), self.correlation, float(scans))

    def pooled(self) -> Clusters:
        """The same patients as one group."""
        return Clusters(self.patterns, self.count.sum(1, keepdims=True))

    def design_effect(self, sizes: Floats) -> Floats:
        """How many scans tell as much as one of as many patients (Kish 1965): 1 + (mean size a scan - 1) correlation.

        ``sizes`` [P, ...] are the scans of a patient that are meant; of each group, [G, ...].
        """
        scans, squares = (np.tensordot(self.count.T, part, 1) for part in (sizes, sizes**2))
        return np.where(scans > 0, 1 + (squares / np.maximum(scans, 1) - 1) * self.correlation, 1.0)

    def strata(self, exact: bool) -> Iterator[Ints]:
        """The patterns of each stratum: patients of one class by the class, and those of several classes together.

        ``exact``: by the set of classes instead, and by scans a patient: 1, 2, 3-4, 5-8, ...
        """
        scans = self.patterns.sum(-1)
        has = scans > 0
        key = np.where(has.sum(1) > 1, -1, has.argmax(1))[:, None]
        if exact:
            key = np.column_stack([has, np.ceil(np.log2(scans.sum(1)))])
        _, stratum = np.unique(key, axis=0, return_inverse=True)
        return (np.flatnonzero(stratum.ravel() == s) for s in range(stratum.max() + 1))

    def bootstrap(self, resamples: int, rng: np.random.Generator, smoothed: bool = True) -> tuple[Floats, Floats]:
        """Resamples [B, G, C, C] of the patients of each stratum and group, and their mean [G, C, C].

        ``smoothed`` adds to the patients of each one more, whose answers to each class are spread evenly, with the
        weight of one scan's worth: r + (1 - r) / k of a patient, where r is the correlation and k the scans a patient.
        The scans that it gives to a resample are in blocks of one answer, each worth a scan. With a scan a patient this
        is the bootstrap of :func:`~.bootstrap_confusion`.
        """
        classes, groups = self.patterns.shape[-1], self.count.shape[1]
        draws, mean = np.zeros((resamples, groups, classes, classes)), np.zeros((groups, classes, classes))
        for of in self.strata(exact=False):
            for g, count in enumerate(self.count[of].T):
                if not (patients := count.sum()):
                    continue
                total = np.tensordot(count, self.patterns[of], 1)
                scans = total.sum(-1) / patients  # of each class, a patient
                extra = self.correlation + (1 - self.correlation) / scans.sum() if smoothed else 0.0
                drawn = rng.multinomial(patients, np.append(count, extra) / (patients + extra), size=resamples)
                added = drawn[:, -1]
                blocks = np.maximum(1, np.rint(added / extra if smoothed else added)).astype(np.int64)
                own = np.flatnonzero(scans)
                said = rng.multinomial(np.tile(blocks[:, None], len(own)), np.full(classes, 1 / classes))
                draws[:, g] += np.tensordot(drawn[:, :-1], self.patterns[of], 1)
                draws[:, g, own] += (added / blocks)[:, None, None] * scans[own, None] * said
                mean[g] += patients * (total + extra * scans[:, None] / classes) / (patients + extra)
        return draws, mean

    def alike(self, resamples: int, rng: np.random.Generator) -> Floats:
        """[B, G, C, C] where every group's patients are drawn from those of all groups, within exact strata."""
        draws = np.zeros((resamples, self.count.shape[1], *self.patterns.shape[1:]))
        for of in self.strata(exact=True):
            share = self.count[of].sum(1) / self.count[of].sum()
            for g, patients in enumerate(self.count[of].sum(0)):
                draws[:, g] += np.tensordot(rng.multinomial(patients, share, size=resamples), self.patterns[of], 1)
        return draws

    def stayed(self) -> int:
        """Scans that :meth:`shuffled` leaves where they are: no patient of another group is in their exact stratum."""
        scans = self.count.sum(1) * self.patterns.sum((1, 2))
        alone = [of for of in self.strata(exact=True) if (self.count[of].sum(0) > 0).sum() == 1]
        return int(sum(scans[of].sum() for of in alone))

    def shuffled(self, permutations: int, rng: np.random.Generator) -> Floats:
        """[B, G, C, C] with whole patients moved between the groups, within exact strata.

        Strata by class alone would move patients of many scans into a group whose own have one, and reject a true null
        hypothesis too often.
        """
        found = np.zeros((permutations, self.count.shape[1], *self.patterns.shape[1:]))
        for of in self.strata(exact=True):
            count = self.count[of]
            kinds = np.repeat(np.arange(len(of), dtype=np.int32), count.sum(1))
            order = rng.permuted(np.broadcast_to(kinds, (permutations, len(kinds))), axis=1)
            for g, part in enumerate(np.split(order, np.cumsum(count.sum(0))[:-1], axis=1)):
                tally = np.stack([(part == kind).sum(1) for kind in range(len(of))], axis=1)
                found[:, g] += np.tensordot(tally, self.patterns[of], 1)
        return found


class DesignEffects(NamedTuple):
    """:meth:`Clusters.design_effect` of the accuracy [G] of each group, and of recall and precision [G, C]."""

    accuracy: Floats
    recall: Floats
    precision: Floats


def design_effects(patients: Clusters | None, confusion: NDArray[Any]) -> DesignEffects:
    """Those of counts [G, C, C]: all 1 where no patient has several scans."""
    if patients is None:
        return DesignEffects(*(np.ones(confusion.shape[:axes]) for axes in (1, 2, 2)))
    scans = patients.patterns
    return DesignEffects(*map(patients.design_effect, (scans.sum((1, 2)), scans.sum(2), scans.sum(1))))


def intraclass_correlation(size: Floats, hits: Floats, count: Ints) -> float:
    """In [0, 1], of right and wrong scans of a patient: the analysis of variance's (Fleiss 1981; Ridout et al. 1999).

    With the mean squares between (MSB) and within (MSW) patients of a cell, pooled over the cells,
    ``(MSB - MSW) / (MSB + (n0 - 1) MSW)``, where n0 is the mean number of scans, corrected for their spread. It is 1
    where nothing varies: then nobody can say that the scans of a patient are worth more than one.

    ``size`` and ``hits`` [P, C] are the scans of a patient of each class and the right ones among them, ``count``
    [P, G] the patients.
    """
    scans = np.einsum("pg,pc->gc", count, size)
    share = np.einsum("pg,pc->gc", count, hits) / np.maximum(scans, 1)
    own = hits / np.maximum(size, 1)
    between = float(np.einsum("pg,pc,pgc->", count, size, (own[:, None] - share) ** 2))
    within = float(np.einsum("pg,pc->", count, hits * (1 - own)))
    clusters = np.einsum("pg,pc->gc", count, size > 0)
    apart, inside = (clusters[clusters > 0] - 1).sum(), (scans - clusters).sum()
    if between + within == 0 or apart == 0 or inside == 0:
        return 1.0
    spread = np.einsum("pg,pc->gc", count, size**2) / np.maximum(scans, 1)
    mean = float((scans.sum() - spread.sum()) / apart)
    msb, msw = between / apart, within / inside
    return 0.0 if msb <= msw else min(1.0, float((msb - msw) / (msb + (mean - 1) * msw)))


# ---- scan by scan, for what needs probabilities ----------------------------------------------------------------------
def resample_scans(label: Ints, patient: Ints | None, resamples: int, rng: np.random.Generator) -> Floats:
    """How often each scan was drawn, [B, N], class by class.

    With ``patient`` [N] whole patients are drawn, those of one class by the class, those of several classes together.
    """
    if patient is None:
        return resample_counts(label, resamples, rng)
    _, of = np.unique(patient, return_inverse=True)
    labels = pd.Series(label).groupby(of)
    least, most = labels.min().to_numpy(), labels.max().to_numpy()
    return resample_counts(np.where(least == most, least, -1), resamples, rng)[:, of]


def chances(scans: int, patient: Ints | None, correlation: float, resamples: int, rng: np.random.Generator) -> Floats:
    """[B, N] uniform numbers in [0, 1): those of a ``patient`` [N] are one number with the chance ``correlation``."""
    found = rng.random((resamples, scans))
    if patient is None:
        return found
    ids, of = np.unique(patient, return_inverse=True)
    same, one = rng.random((2, resamples, len(ids)))
    return np.where((same < correlation)[:, of], one[:, of], found)
