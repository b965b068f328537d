"""What a comparison of systems found, as records; ``evaluation.records`` makes and reads their JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..data.groups import MIN_CELL
from ..evaluation.resampling import Estimate
from ..evaluation.wording import Verdict


@dataclass(frozen=True)
class ComparedSystem:
    """A system's numbers by the keys of :func:`~.headline`: :func:`~.over_runs`, and the estimates of each run."""

    name: str
    postprocess: str
    values: Mapping[str, float]  # mean over runs; with two groups abs_gap is the size of the mean gap
    sd: Mapping[str, float] | None  # standard deviation over runs, with two groups of all but abs_gap; None of one run
    runs: tuple[Mapping[str, Estimate], ...]  # without worst_cell_f1


@dataclass(frozen=True)
class DifferenceTest:
    """p of a test that a difference is 0, and p after Holm's adjustment."""

    p_value: float
    p_holm: float


@dataclass(frozen=True)
class DifferencePower:
    """How large a difference in P must be, or the data, for 80 % of studies to find it after Holm's adjustment.

    None where nobody can say, or where no number is enough.
    """

    detectable: float  # seen between these very runs with these scans
    scans: float | None  # that would show the observed one between these very runs
    runs: int | None  # of each system that would show it with these scans


@dataclass(frozen=True)
class AucDifference:
    """Difference of the one-against-rest AUCs of two systems in a class, by DeLong, and p of its being 0."""

    class_name: str | None = field(metadata={"key": "class"})  # None: the mean over classes
    difference: Estimate
    p_value: float


@dataclass(frozen=True)
class PairComparison:
    """One system minus the reference.

    Where both have several runs it is about the ways of training, with chance in the scans and in the runs; else about
    these very runs, with chance in the scans only.
    """

    system: str
    reference: str
    seeds: bool  # whether chance in the runs is counted
    differences: Mapping[str, Estimate]  # of the numbers of paired.headline for which an interval holds
    share_higher: float | None  # of the resamples, in which P is higher; ties count half. None but with one run each
    tests: Mapping[str, DifferenceTest]  # of score and, with two groups, abs_gap
    differences_of_these_runs: Mapping[str, Estimate] | None  # with the runs taken as given; None without ``seeds``
    tests_of_these_runs: Mapping[str, DifferenceTest] | None
    power: DifferencePower
    aucs: tuple[AucDifference, ...] = ()  # of classes with scans enough, where all runs have probabilities


@dataclass(frozen=True)
class ComparisonSettings:
    resamples: int
    permutations: int
    confidence: float
    seed: int
    min_cell: int = MIN_CELL


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything that :func:`~.compare` says of several systems on the same ``n`` scans of known group."""

    n: int
    n_unknown: int
    class_names: tuple[str, ...]
    group_names: tuple[str, ...]
    group_by: tuple[str, ...]
    group_scans: tuple[int, ...] = ()  # of the n, by group; comparisons of 0.1 do not say
    n_patients: int | None = None  # of the n scans, where some have several
    synthetic: bool = False
    reference: str
    settings: ComparisonSettings
    systems: tuple[ComparedSystem, ...]
    comparisons: tuple[PairComparison, ...]
    verdicts: tuple[Verdict, ...] = ()

    def to_frame(self) -> Any:
        """The differences as a data frame of pandas, a row a number of a system, minus the reference's.

        Columns: ``system``, ``number`` (its key in the JSON), ``value``, the ends ``low`` and ``high`` of its interval,
        ``p_value`` and ``p_holm``, which are NaN of a number that is not tested.
        """
        import pandas as pd

        none = DifferenceTest(float("nan"), float("nan"))
        rows = [
            (pair.system, name, found.value, found.low, found.high, test.p_value, test.p_holm)
            for pair in self.comparisons
            for name, found in pair.differences.items()
            for test in [pair.tests.get(name, none)]
        ]
        return pd.DataFrame(rows, columns=["system", "number", "value", "low", "high", "p_value", "p_holm"])
